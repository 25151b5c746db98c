# Sums over rows, column by column.
#
# LANES columns at a time go through some rows with their sums in registers. Within a column additions follow each other
# row by row, whatever stands beside it: how many columns or rows are taken at once does not change a bit.

cdef enum:
    SUMMED_PLACES = 4           # places in an array that are read in turn, ...
    WIDE = 1024                 # ... all in one loop where there are more columns, whose sums no near cache holds


cdef struct RowCenters:         # what sums are taken about, and behind an activation its gates and bounds
    const double *center
    const Columns *f
    Py_ssize_t column           # where the sums begin


cdef inline void add_rows_together(const Place *at, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t ahead,
                                   const RowCenters *about, const Columns *f, double *s_of, double *t_of,
                                   const stored *typed, const summed *of) noexcept nogil:
    """Add a few rows to the sums of their columns.

    They share loads and stores of the sums. Of two at a time, memory is read faster than of four (Zen 4: 5 to 15 %);
    half types are not so fast that it would matter.
    """
    cdef Py_ssize_t column = 0, last, i
    cdef lanes_t s, t, center
    cdef const stored *x
    cdef const stored *dy
    cdef const stored *y
    while column + LANES <= width:
        s, t, center = lanes_load(s_of + column), lanes_load(t_of + column), lanes_load(about.center + column)
        for i in range(rows):
            x, dy = <const stored *>at[i].x + column, <const stored *>at[i].dy + column
            y = <const stored *>at[i].y + column
            ask_for_line(dy + ahead, x + ahead, y + ahead, True, of)
            add_line(dy, x, y, center, f, about.column + column, of, &s, &t)
        lanes_store(s_of + column, s)
        lanes_store(t_of + column, t)
        column += LANES
    if column < width:
        last = width - LANES
        s, t, center = lanes_load(s_of + last), lanes_load(t_of + last), lanes_load(about.center + last)
        for i in range(rows):
            add_last(<const stored *>at[i].dy, <const stored *>at[i].x, <const stored *>at[i].y, width, width - column,
                     center, f, about.column + last, of, &s, &t)
        lanes_store(s_of + last, s)
        lanes_store(t_of + last, t)


cdef inline void add_rows_in_turn(const Place *first, Py_ssize_t places, const Steps *step, Py_ssize_t count,
                                  Py_ssize_t width, Py_ssize_t ahead, const RowCenters *about, double *s_of,
                                  double *t_of, const stored *typed, const summed *of) noexcept nogil:
    """Add `count` rows from each of some places on: SUMMED_PLACES or one."""
    cdef Place at[SUMMED_PLACES]
    cdef Columns f = about.f[0]     # nothing that is written changes it
    cdef Py_ssize_t k, row
    for k in range(places):
        at[k] = first[k]
    for row in range(count):
        if places == 1 or width > WIDE or is_half(typed):
            add_rows_together(&at[0], places, width, ahead, about, &f, s_of, t_of, typed, of)
        else:
            add_rows_together(&at[0], SUMMED_PLACES//2, width, ahead, about, &f, s_of, t_of, typed, of)
            add_rows_together(&at[SUMMED_PLACES//2], SUMMED_PLACES//2, width, ahead, about, &f, s_of, t_of, typed, of)
        for k in range(places):
            at[k] = moved(&at[k], step)


cdef void sums_of_rows(const Place *first, Py_ssize_t places, const Steps *step, Py_ssize_t count, Py_ssize_t width,
                       Py_ssize_t ahead, const RowCenters *about, double *s_of, double *t_of, const stored *typed,
                       const summed *of) noexcept nogil:
    """Add `count` rows from each of SUMMED_PLACES places on, one of each in turn, or of one place, to the sums of their
    `width` columns. What stands `ahead` values behind each is asked for. (LANES sums before the first column may be
    read too.)
    """
    if is_half(typed):          # a loop over rows: without one, sums of half types take 1.15 to 1.3 times as long
        add_rows_in_turn(first, places, step, count, width, ahead, about, s_of, t_of, typed, of)
    elif places == SUMMED_PLACES:   # how many is known when this is compiled, and no such loop is left
        add_rows_in_turn(first, SUMMED_PLACES, step, count, width, ahead, about, s_of, t_of, typed, of)
    else:
        add_rows_in_turn(first, 1, step, count, width, ahead, about, s_of, t_of, typed, of)


# ---- sums of sums, column by column

cdef struct ColumnSums:
    # Two sums of each column, each as an unevaluated pair, as in Sums.
    double *a
    double *a_low
    double *b
    double *b_low


cdef inline void add_columns(double *high, double *low, lanes_t value) noexcept nogil:
    """add_one() for LANES columns."""
    cdef lanes_t before = lanes_load(high), total = lanes_add(before, value), added = lanes_sub(total, before)
    cdef lanes_t lost = lanes_add(lanes_sub(before, lanes_sub(total, added)), lanes_sub(value, added))
    lanes_store(low, lanes_add(lanes_load(low), lost))
    lanes_store(high, total)


cdef inline void put_columns_of_sums(double *high, double *low, lanes_t value) noexcept nogil:
    lanes_store(high, value)
    lanes_store(low, lanes_all(0))


cdef inline void add_to_columns(const ColumnSums *to, Py_ssize_t at, const double *s, const double *t,
                                Py_ssize_t width, bint first) noexcept nogil:
    """Add the sums of `width` columns, or of a few more, to those from column `at` on; nothing is in these before the
    first.
    """
    cdef Py_ssize_t j = 0
    while j < width:
        if first:
            put_columns_of_sums(to.a + at + j, to.a_low + at + j, lanes_load(s + j))
            put_columns_of_sums(to.b + at + j, to.b_low + at + j, lanes_load(t + j))
        else:
            add_columns(to.a + at + j, to.a_low + at + j, lanes_load(s + j))
            add_columns(to.b + at + j, to.b_low + at + j, lanes_load(t + j))
        j += LANES


cdef inline void merge_columns(const ColumnSums *to, const ColumnSums *part, Py_ssize_t width) noexcept nogil:
    """merge_sums() for `width` columns, or a few more."""
    cdef Py_ssize_t j = 0
    while j < width:
        add_columns(to.a + j, to.a_low + j, lanes_load(part.a + j))
        add_columns(to.b + j, to.b_low + j, lanes_load(part.b + j))
        lanes_store(to.a_low + j, lanes_add(lanes_load(to.a_low + j), lanes_load(part.a_low + j)))
        lanes_store(to.b_low + j, lanes_add(lanes_load(to.b_low + j), lanes_load(part.b_low + j)))
        j += LANES
