# Loops over contiguous values. Nothing here knows of strides or threads, and nothing branches inside a loop.
#
# Sums run in LANES partial sums of float64, whatever the type of the values: a float32 deviation and its square are
# then as good as exact, nothing overflows below 1e38 or vanishes above 1e-38, and widening costs less than the memory.
# The order of the additions is the one written here; compilers may not change it, so every build gives the same bits.
#
# *_span: a run of values of one channel.  *_rows: some rows of `width` channels, each row contiguous.


ctypedef fused real:
    float
    double


cdef inline double fold(double *lane) noexcept nogil:
    """Sum of the lanes, as a tree. Destroys them."""
    cdef int k
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef void deviations_span(const real *dy, const real *x, Py_ssize_t length, double pivot, Sums *total) noexcept nogil:
    """a += sum(x - pivot), b += sum((x - pivot)**2), at most CHUNK values. There is no dy."""
    cdef double s[LANES]
    cdef double t[LANES]
    cdef double rest[LANES]
    cdef double d
    cdef Py_ssize_t i = 0, k, full = length - length % LANES
    for k in range(LANES):
        s[k] = 0
        t[k] = 0
    while i < full:
        for k in range(LANES):
            d = <double>x[i + k] - pivot
            s[k] += d
            t[k] += d*d
        i += LANES
    if full < length:
        # The last, partial group: filled up with zeros, so that the lanes stay in registers.
        for k in range(LANES):
            rest[k] = 0
        for k in range(length - full):
            rest[k] = <double>x[full + k] - pivot
        for k in range(LANES):
            s[k] += rest[k]
            t[k] += rest[k]*rest[k]
    add_pair(total, fold(s), fold(t))


cdef void products_span(const real *dy, const real *x, Py_ssize_t length, double mean, Sums *total) noexcept nogil:
    """a += sum(dy), b += sum(dy*(x - mean)) over at most CHUNK values."""
    cdef double s[LANES]
    cdef double t[LANES]
    cdef double rest[2*LANES]
    cdef double g
    cdef Py_ssize_t i = 0, k, full = length - length % LANES
    for k in range(LANES):
        s[k] = 0
        t[k] = 0
    while i < full:
        for k in range(LANES):
            g = dy[i + k]
            s[k] += g
            t[k] += g*(<double>x[i + k] - mean)
        i += LANES
    if full < length:
        for k in range(2*LANES):
            rest[k] = 0
        for k in range(length - full):
            rest[k] = dy[full + k]
            rest[LANES + k] = <double>x[full + k] - mean
        for k in range(LANES):
            s[k] += rest[k]
            t[k] += rest[k]*rest[LANES + k]
    add_pair(total, fold(s), fold(t))


cdef void normalize_span(const real *dy, const real *x, real *y, Py_ssize_t length,
                         const Coefficients *f) noexcept nogil:
    """y = (x - center)*mul + add. There is no dy."""
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add
    cdef Py_ssize_t i
    if f.wide:
        for i in range(length):
            y[i] = <real>((<double>x[i] - f.center)*f.mul + f.add)
    else:
        for i in range(length):
            y[i] = (x[i] - center)*mul + add


cdef void gradient_span(const real *dy, const real *x, real *dx, Py_ssize_t length,
                        const Coefficients *f) noexcept nogil:
    """dx = (dy*mul + add) + (x - center)*by_x: this order keeps every term within four roundings."""
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add, by_x = <real>f.by_x
    cdef Py_ssize_t i
    if f.wide:
        for i in range(length):
            dx[i] = <real>((<double>dy[i]*f.mul + f.add) + (<double>x[i] - f.center)*f.by_x)
    else:
        for i in range(length):
            dx[i] = (dy[i]*mul + add) + (x[i] - center)*by_x


cdef void scale_span(const real *dy, const real *x, real *dx, Py_ssize_t length,
                     const Coefficients *f) noexcept nogil:
    """dx = dy*mul: the gradient where the statistics are constants. x is not read."""
    cdef real mul = <real>f.mul
    cdef Py_ssize_t i
    if f.wide:
        for i in range(length):
            dx[i] = <real>(<double>dy[i]*f.mul)
    else:
        for i in range(length):
            dx[i] = dy[i]*mul


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


ctypedef void (*sum_span)(const void *dy, const void *x, Py_ssize_t length, double center, Sums *) noexcept nogil
ctypedef void (*sum_rows)(const void **dy, const void **x, Py_ssize_t rows, Py_ssize_t width, const double *center,
                          double *a, double *b) noexcept nogil
ctypedef void (*apply_span)(const void *dy, const void *x, void *out, Py_ssize_t length,
                            const Coefficients *) noexcept nogil
ctypedef void (*apply_rows)(const void **dy, const void **x, void **out, Py_ssize_t rows, Py_ssize_t width,
                            const Coefficients *) noexcept nogil


cdef struct Loops:
    # What a call does to contiguous values of its type: chosen once, so that drivers know neither types nor options.
    Py_ssize_t itemsize
    sum_span sum_span
    sum_rows sum_rows
    apply_span apply_span
    apply_rows apply_rows


cdef inline Loops loops_of(const Call *call, real typed) noexcept nogil:
    """The loops for a call on values of the type of `typed`."""
    cdef Loops loops
    loops.itemsize = sizeof(real)
    loops.sum_span = <sum_span>deviations_span[real]
    loops.sum_rows = <sum_rows>deviations_rows[real]
    loops.apply_span = <apply_span>normalize_span[real]
    loops.apply_rows = <apply_rows>normalize_rows[real]
    if call.backward:
        loops.sum_span = <sum_span>products_span[real]
        loops.sum_rows = <sum_rows>products_rows[real]
        loops.apply_span = <apply_span>gradient_span[real]
        loops.apply_rows = <apply_rows>gradient_rows[real]
        if call.constant:
            loops.apply_span = <apply_span>scale_span[real]
            loops.apply_rows = <apply_rows>scale_rows[real]
    return loops


cdef inline Loops choose_loops(const Call *call) noexcept nogil:
    return loops_of(call, <double>0) if call.dtype == FLOAT64 else loops_of(call, <float>0)
