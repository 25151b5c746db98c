# Sums over rows, column by column: which two, about what, is one of four types, so that the loop stands once.
#
# LANES columns at a time go through some rows with their sums in registers. Within a column additions follow each other
# row by row, whatever stands beside it: how many columns or rows are taken at once does not change a bit.


cdef struct RowDeviations:      # s += x - center, t += (x - center)**2: the first attempt (float32 about 0)
    const double *center


cdef struct FarRowDeviations:   # the same about any centres
    const double *center


cdef struct RowProducts:        # s += dy, t += dy*(x - center): the first attempt
    const double *center


cdef struct FarRowProducts:
    const double *center


ctypedef fused row_sums:
    RowDeviations
    FarRowDeviations
    RowProducts
    FarRowProducts


cdef inline lanes_t row_deviations(const stored *x, lanes_t center, const row_sums *about) noexcept nogil:
    if stored is not double:
        if row_sums is RowDeviations or row_sums is RowProducts:
            return read_lanes(x)
        else:
            return lanes_sub(read_lanes(x), center)
    else:
        return lanes_sub(read_lanes(x), center)


cdef inline lanes_t add_row_products(lanes_t total, lanes_t a, lanes_t b, const stored *typed,
                                     const row_sums *about) noexcept nogil:
    """total + a*b; products of two float32 are exact."""
    if stored is not double:
        if row_sums is RowDeviations or row_sums is RowProducts:
            return lanes_add_exact(a, b, total)
        else:
            return lanes_add(total, lanes_mul(a, b))
    else:
        return lanes_add(total, lanes_mul(a, b))


cdef void sums_of_rows(const stored **dy, const stored **x, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t ahead,
                       const row_sums *about, double *s_of, double *t_of) noexcept nogil:
    """Add some rows to the sums of their `width` columns, and ask for what stands `ahead` values behind each.

    (LANES sums before the first column may be read too.)
    """
    cdef Py_ssize_t column = 0, some, at, i
    cdef lanes_t s, t, center, d, g
    cdef stored line[LANES]
    while column + LANES <= width:
        s, t, center = lanes_load(s_of + column), lanes_load(t_of + column), lanes_load(about.center + column)
        for i in range(rows):
            prefetch_lanes(x[i] + column + ahead)
            d = g = row_deviations(x[i] + column, center, about)
            if row_sums is RowProducts or row_sums is FarRowProducts:
                prefetch_lanes(dy[i] + column + ahead)
                g = read_lanes(dy[i] + column)
            s = lanes_add(s, g)
            t = add_row_products(t, g, d, x[i], about)
        lanes_store(s_of + column, s)
        lanes_store(t_of + column, t)
        column += LANES
    if column < width:
        some, at = width - column, width - LANES
        s, t, center = lanes_load(s_of + at), lanes_load(t_of + at), lanes_load(about.center + at)
        for i in range(rows):
            d = g = lanes_last(row_deviations(last_line(x[i], width, line), center, about), some)
            if row_sums is RowProducts or row_sums is FarRowProducts:
                g = lanes_last(read_lanes(last_line(dy[i], width, line)), some)
            s = lanes_add(s, g)
            t = add_row_products(t, g, d, x[i], about)
        lanes_store(s_of + at, s)
        lanes_store(t_of + at, t)


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


cdef inline void add_to_columns(const ColumnSums *to, Py_ssize_t first, const double *s, const double *t,
                                Py_ssize_t width) noexcept nogil:
    """Add the sums of `width` columns, or of a few more, to those from column `first` on."""
    cdef Py_ssize_t j = 0
    while j < width:
        add_columns(to.a + first + j, to.a_low + first + j, lanes_load(s + j))
        add_columns(to.b + first + j, to.b_low + first + j, lanes_load(t + j))
        j += LANES


cdef inline void clear_columns(const ColumnSums *sums, Py_ssize_t first, Py_ssize_t width) noexcept nogil:
    """Of `width` columns from `first` on, or a few more."""
    cdef Py_ssize_t j = first
    cdef lanes_t zero = lanes_all(0)
    while j < first + width:
        lanes_store(sums.a + j, zero)
        lanes_store(sums.a_low + j, zero)
        lanes_store(sums.b + j, zero)
        lanes_store(sums.b_low + j, zero)
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
