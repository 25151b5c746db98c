# Results over rows: the columns of a run of values come round again and again, and their coefficients with them.
#
# Results may take the place of x or dy: a line is computed as a whole before it is written.


cdef inline Py_ssize_t before_a_line(const stored *out, Py_ssize_t length) noexcept nogil:
    """Values before the first whole cache line."""
    return min(length, <Py_ssize_t>(-<uintptr_t>out % 64//sizeof(stored)))


cdef void compute_wide(const stored *dy, const stored *x, stored *line, const Columns *f, Py_ssize_t column,
                       const formula *what) noexcept nogil:
    """The values of a line that are computed in float64."""
    cdef Coefficients own
    cdef Py_ssize_t k
    for k in range(LANES):
        own = of_column(f, column + k)
        if own.wide:
            compute_each(dy + k, x + k, line + k, 1, &own, what)


cdef void some_results(const stored *dy, const stored *x, stored *out, Py_ssize_t some, const Columns *f,
                       Py_ssize_t column, const formula *what) noexcept nogil:
    """The results of at most LANES values: any number, any formula, by way of the stack."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored line[LANES]
    memset(x_line, 0, sizeof(x_line))
    memset(dy_line, 0, sizeof(dy_line))
    if reads_x(what):
        memcpy(x_line, x, some*sizeof(stored))
    if reads_dy(what):
        memcpy(dy_line, dy, some*sizeof(stored))
    compute_line(<const stored *>dy_line, <const stored *>x_line, line, f, column, LANES, what)
    if f.wide:
        compute_wide(<const stored *>dy_line, <const stored *>x_line, line, f, column, what)
    memcpy(out, line, some*sizeof(stored))


cdef inline void lines_of_results(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Columns *f,
                                  Py_ssize_t column, const formula *what, bint stream) noexcept nogil:
    """The results of whole lines, all of which begin before the last column."""
    cdef stored line[LANES]
    cdef Py_ssize_t i = 0
    while i < length:
        ask_for_values(dy + i, x + i, what)
        compute_line(dy + i, x + i, line, f, column + i, LANES, what)
        if stream:
            stream_lanes(out + i, line)
        else:
            put_line(out + i, <const stored *>line, LANES)
        i += LANES


cdef void results_of_rows(const stored *dy, const stored *x, stored *out, Py_ssize_t length,
                          const Columns *columns, Py_ssize_t column, bint stream, const formula *what) noexcept nogil:
    """The results of a run of values, the first of which stands in `column`. With `stream` whole lines of them go past
    the cache.
    """
    cdef Columns f = columns[0]     # nothing that is written changes it
    cdef Py_ssize_t i = 0, some, first = 0, width = f.width
    if stream and not f.wide:
        first = before_a_line(out, length)
    while i < first:            # of half types up to twice LANES
        some = min(LANES, first - i)
        some_results(dy + i, x + i, out + i, some, columns, column, what)
        column = (column + some) % width
        i += some
    while i < length:
        some = min((width - column + LANES - 1)//LANES, (length - i)//LANES)*LANES
        if some == 0 or f.wide:
            some = min(LANES, length - i)
            some_results(dy + i, x + i, out + i, some, columns, column, what)
        elif stream:
            lines_of_results(dy + i, x + i, out + i, some, &f, column, what, True)
        else:
            lines_of_results(dy + i, x + i, out + i, some, &f, column, what, False)
        i += some
        column += some
        column -= width if column >= width else 0
