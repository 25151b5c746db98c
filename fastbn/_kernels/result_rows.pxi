# Results of rows: some rows of `width` channels, each row contiguous.


cdef inline Py_ssize_t alike(const Coefficients *f, Py_ssize_t j, Py_ssize_t width) noexcept nogil:
    """End of the run of columns that are computed in the same precision as column j."""
    cdef Py_ssize_t stop = j + 1
    while stop < width and f[stop].wide == f[j].wide:
        stop += 1
    return stop


cdef void normalize_rows(const real **dy, const real **x, real **y, Py_ssize_t rows, Py_ssize_t width,
                         const Coefficients *f) noexcept nogil:
    """normalize_span with coefficients for each column."""
    cdef real center[TILE_WIDTH]
    cdef real mul[TILE_WIDTH]
    cdef real add[TILE_WIDTH]
    cdef const real *xi
    cdef real *yi
    cdef Py_ssize_t i, j, start = 0, stop
    for j in range(width):
        center[j], mul[j], add[j] = <real>f[j].center, <real>f[j].mul, <real>f[j].add
    while start < width:
        stop = alike(f, start, width)
        for i in range(rows):
            xi, yi = x[i], y[i]
            if f[start].wide:
                for j in range(start, stop):
                    yi[j] = <real>((<double>xi[j] - f[j].center)*f[j].mul + f[j].add)
            else:
                for j in range(start, stop):
                    yi[j] = (xi[j] - center[j])*mul[j] + add[j]
        start = stop


cdef void gradient_rows(const real **dy, const real **x, real **dx, Py_ssize_t rows, Py_ssize_t width,
                        const Coefficients *f) noexcept nogil:
    """gradient_span with coefficients for each column."""
    cdef real center[TILE_WIDTH]
    cdef real mul[TILE_WIDTH]
    cdef real add[TILE_WIDTH]
    cdef real by_x[TILE_WIDTH]
    cdef const real *xi
    cdef const real *dyi
    cdef real *dxi
    cdef Py_ssize_t i, j, start = 0, stop
    for j in range(width):
        center[j], mul[j], add[j], by_x[j] = <real>f[j].center, <real>f[j].mul, <real>f[j].add, <real>f[j].by_x
    while start < width:
        stop = alike(f, start, width)
        for i in range(rows):
            xi, dyi, dxi = x[i], dy[i], dx[i]
            if f[start].wide:
                for j in range(start, stop):
                    dxi[j] = <real>((<double>dyi[j]*f[j].mul + f[j].add) + (<double>xi[j] - f[j].center)*f[j].by_x)
            else:
                for j in range(start, stop):
                    dxi[j] = (dyi[j]*mul[j] + add[j]) + (xi[j] - center[j])*by_x[j]
        start = stop


cdef void scale_rows(const real **dy, const real **x, real **dx, Py_ssize_t rows, Py_ssize_t width,
                     const Coefficients *f) noexcept nogil:
    """scale_span with coefficients for each column. x is not read."""
    cdef real mul[TILE_WIDTH]
    cdef const real *dyi
    cdef real *dxi
    cdef Py_ssize_t i, j, start = 0, stop
    for j in range(width):
        mul[j] = <real>f[j].mul
    while start < width:
        stop = alike(f, start, width)
        for i in range(rows):
            dyi, dxi = dy[i], dx[i]
            if f[start].wide:
                for j in range(start, stop):
                    dxi[j] = <real>(<double>dyi[j]*f[j].mul)
            else:
                for j in range(start, stop):
                    dxi[j] = dyi[j]*mul[j]
        start = stop
