# Sums of rows: some rows of `width` channels, each row contiguous.


cdef void deviations_rows(const real **dy, const real **x, Py_ssize_t rows, Py_ssize_t width,
                          const double *restrict pivot, double *restrict s, double *restrict t) noexcept nogil:
    """s += sum(x - pivot), t += sum((x - pivot)**2) column by column, four rows at a time."""
    cdef Py_ssize_t i = 0, j
    cdef const real *x0
    cdef const real *x1
    cdef const real *x2
    cdef const real *x3
    cdef double d0, d1, d2, d3
    while i + 4 <= rows:
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(width):
            d0 = <double>x0[j] - pivot[j]
            d1 = <double>x1[j] - pivot[j]
            d2 = <double>x2[j] - pivot[j]
            d3 = <double>x3[j] - pivot[j]
            s[j] += (d0 + d1) + (d2 + d3)
            t[j] += (d0*d0 + d1*d1) + (d2*d2 + d3*d3)
        i += 4
    while i < rows:
        x0 = x[i]
        for j in range(width):
            d0 = <double>x0[j] - pivot[j]
            s[j] += d0
            t[j] += d0*d0
        i += 1


cdef void products_rows(const real **dy, const real **x, Py_ssize_t rows, Py_ssize_t width,
                        const double *restrict mean, double *restrict s, double *restrict t) noexcept nogil:
    """s += sum(dy), t += sum(dy*(x - mean)) column by column, two rows at a time."""
    cdef Py_ssize_t i = 0, j
    cdef const real *x0
    cdef const real *x1
    cdef const real *dy0
    cdef const real *dy1
    cdef double g0, g1
    while i + 2 <= rows:
        x0, x1, dy0, dy1 = x[i], x[i + 1], dy[i], dy[i + 1]
        for j in range(width):
            g0 = dy0[j]
            g1 = dy1[j]
            s[j] += g0 + g1
            t[j] += g0*(<double>x0[j] - mean[j]) + g1*(<double>x1[j] - mean[j])
        i += 2
    while i < rows:
        x0, dy0 = x[i], dy[i]
        for j in range(width):
            g0 = dy0[j]
            s[j] += g0
            t[j] += g0*(<double>x0[j] - mean[j])
        i += 1
