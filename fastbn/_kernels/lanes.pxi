# Loops over contiguous values. Nothing here knows of strides or threads, and nothing branches inside a loop.
#
# Sums run in LANES partial sums of float64, whatever the type of the values: nothing overflows below 1e38 or vanishes
# above 1e-38, and widening costs less than the memory. Products of two float32 are exact there, so float32 is summed
# about 0, in three operations a value; what cancels when the mean is far from 0 is made good by a second sum about the
# mean, for the few channels that need it (statistics() and far_from_zero() tell). float64 is summed about a pivot.
# The order of the additions is the one written here; compilers may not change it: every build gives the same bits.
#
# *_spans: runs of values of one channel each.  *_rows: some rows of `width` channels, each row contiguous.


ctypedef fused real:
    float
    double


cdef inline lanes_t read_lanes(const real *x) noexcept nogil:
    if real is double:
        return lanes_load(x)
    else:
        return lanes_widen(x)


cdef inline const real *last_line(const real *x, Py_ssize_t length, real *line) noexcept nogil:
    """The last LANES of `length` values; of fewer, in `line`, with something before them."""
    cdef Py_ssize_t k
    if length >= LANES:
        return x + length - LANES
    for k in range(LANES):
        line[k] = 0
    for k in range(length):
        line[LANES - length + k] = x[k]
    return line


cdef inline void prefetch_lanes(const real *ahead) noexcept nogil:
    """Ask for the LANES values that will be read soon."""
    prefetch_line(ahead)
    if real is double:
        prefetch_line(ahead + LANES//2)


cdef inline void stream_lanes(real *to, const real *line) noexcept nogil:
    """LANES values past the cache; `to` is aligned to 64 bytes."""
    stream_line(to, line)
    if real is double:
        stream_line(to + LANES//2, line + LANES//2)


# ---- rows

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
