# Loops over contiguous values. Nothing here knows of strides or threads, and nothing branches inside a loop.
#
# Sums run in LANES partial sums of float64, whatever the type of the values: nothing overflows below 1e38 or vanishes
# above 1e-38, and widening costs less than the memory. Products of two float32 are exact there, so float32 is summed
# about 0, in three operations a value; what cancels when the mean is far from 0 is made good by a second sum about the
# mean, for the few channels that need it (statistics() and far_from_zero() tell). float64 is summed about a pivot.
# The order of the additions is the one written here; compilers may not change it: every build gives the same bits.
#
# *_span: a run of values of one channel. Rows have loops of their own, sum_rows.pxi and result_rows.pxi.


ctypedef fused real:
    float
    double


cdef struct Lanes:
    double s[LANES]
    double t[LANES]


cdef inline void clear_lanes(Lanes *lanes) noexcept nogil:
    """(Not by memset: what compilers make of it takes longer than the sums of a short row.)"""
    lanes_store(lanes.s, lanes_all(0))
    lanes_store(lanes.t, lanes_all(0))


cdef inline lanes_t read_lanes(const real *x) noexcept nogil:
    if real is double:
        return lanes_load(x)
    else:
        return lanes_widen(x)


cdef inline lanes_t near_deviations(const real *x, lanes_t center) noexcept nogil:
    """What the first attempt takes as x - center: float32 about 0."""
    if real is double:
        return lanes_sub(read_lanes(x), center)
    else:
        return read_lanes(x)


cdef inline lanes_t add_near_product(const real *typed, lanes_t a, lanes_t b, lanes_t total) noexcept nogil:
    """total + a*b, for what near_deviations() or read_lanes() gave."""
    if real is double:
        return lanes_add(total, lanes_mul(a, b))
    else:
        return lanes_add_exact(a, b, total)


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


cdef inline void normalize_line(const real *x, real *y, real center, real mul, real add) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(LANES):
        y[k] = (x[k] - center)*mul + add


cdef inline void gradient_line(const real *dy, const real *x, real *dx, real center, real mul, real add,
                               real by_x) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(LANES):
        dx[k] = (dy[k]*mul + add) + (x[k] - center)*by_x


cdef inline void stream_lanes(real *to, const real *line) noexcept nogil:
    """LANES values past the cache; `to` is aligned to 64 bytes."""
    stream_line(to, line)
    if real is double:
        stream_line(to + LANES//2, line + LANES//2)


cdef inline Py_ssize_t unaligned(const real *out, Py_ssize_t length) noexcept nogil:
    """Values before the first whole cache line of `out`."""
    return min(length, <Py_ssize_t>(-<uintptr_t>out % 64//sizeof(real)))


# ---- sums over a span

cdef void far_deviations_span(const real *dy, const real *x, const real *dy_ahead, const real *x_ahead,
                              Py_ssize_t length, double center, Lanes *lanes) noexcept nogil:
    """s += x - center, t += (x - center)**2. There is no dy."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center), d
    cdef real line[LANES]
    cdef Py_ssize_t i = 0
    while i + LANES <= length:
        d = lanes_sub(read_lanes(x + i), middle)
        s = lanes_add(s, d)
        t = lanes_add(t, lanes_mul(d, d))
        i += LANES
    if i < length:
        d = lanes_last(lanes_sub(read_lanes(last_line(x, length, line)), middle), length - i)
        s = lanes_add(s, d)
        t = lanes_add(t, lanes_mul(d, d))
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void far_products_span(const real *dy, const real *x, const real *dy_ahead, const real *x_ahead,
                            Py_ssize_t length, double center, Lanes *lanes) noexcept nogil:
    """s += dy, t += dy*(x - center)."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center), g, d
    cdef real x_line[LANES]
    cdef real dy_line[LANES]
    cdef Py_ssize_t i = 0
    while i + LANES <= length:
        g = read_lanes(dy + i)
        d = lanes_sub(read_lanes(x + i), middle)
        s = lanes_add(s, g)
        t = lanes_add(t, lanes_mul(g, d))
        i += LANES
    if i < length:
        g = lanes_last(read_lanes(last_line(dy, length, dy_line)), length - i)
        d = lanes_last(lanes_sub(read_lanes(last_line(x, length, x_line)), middle), length - i)
        s = lanes_add(s, g)
        t = lanes_add(t, lanes_mul(g, d))
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void deviations_span(const real *dy, const real *x, const real *dy_ahead, const real *x_ahead, Py_ssize_t length,
                          double center, Lanes *lanes) noexcept nogil:
    """far_deviations_span as the first attempt, with the values that come next on their way."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center), d
    cdef real line[LANES]
    cdef Py_ssize_t i = 0
    while i + LANES <= length:
        prefetch_lanes(x_ahead + i)
        d = near_deviations(x + i, middle)
        s = lanes_add(s, d)
        t = add_near_product(x, d, d, t)
        i += LANES
    if i < length:
        d = lanes_last(near_deviations(last_line(x, length, line), middle), length - i)
        s = lanes_add(s, d)
        t = add_near_product(x, d, d, t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void products_span(const real *dy, const real *x, const real *dy_ahead, const real *x_ahead, Py_ssize_t length,
                        double center, Lanes *lanes) noexcept nogil:
    """far_products_span as the first attempt, with the values that come next on their way."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center), g, d
    cdef real x_line[LANES]
    cdef real dy_line[LANES]
    cdef Py_ssize_t i = 0
    while i + LANES <= length:
        prefetch_lanes(dy_ahead + i)
        prefetch_lanes(x_ahead + i)
        g = read_lanes(dy + i)
        d = near_deviations(x + i, middle)
        s = lanes_add(s, g)
        t = add_near_product(x, g, d, t)
        i += LANES
    if i < length:
        g = lanes_last(read_lanes(last_line(dy, length, dy_line)), length - i)
        d = lanes_last(near_deviations(last_line(x, length, x_line), middle), length - i)
        s = lanes_add(s, g)
        t = add_near_product(x, g, d, t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


# ---- results over a span; with `stream`, whole lines of them go past the cache
#
# Results may take the place of x or dy, so a line is computed as a whole before it is written, and the last LANES
# values, which are computed together whatever the length, are read before anything is written.

cdef void normalize_span(const real *dy, const real *x, real *y, Py_ssize_t length, const Coefficients *f,
                         bint stream) noexcept nogil:
    """y = (x - center)*mul + add. There is no dy."""
    cdef real line[LANES]
    cdef real last[LANES]
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add
    cdef Py_ssize_t i = 0, k
    if f.wide:
        for i in range(length):
            y[i] = <real>((<double>x[i] - f.center)*f.mul + f.add)
    elif stream or length < LANES:
        if stream:
            while i < unaligned(y, length):
                y[i] = (x[i] - center)*mul + add
                i += 1
            while i + LANES <= length:
                normalize_line(x + i, line, center, mul, add)
                stream_lanes(y + i, line)
                i += LANES
        while i < length:
            y[i] = (x[i] - center)*mul + add
            i += 1
    else:
        normalize_line(x + length - LANES, last, center, mul, add)
        while i + LANES <= length:
            normalize_line(x + i, line, center, mul, add)
            for k in range(LANES):
                y[i + k] = line[k]
            i += LANES
        for k in range(LANES):
            y[length - LANES + k] = last[k]


cdef void gradient_span(const real *dy, const real *x, real *dx, Py_ssize_t length, const Coefficients *f,
                        bint stream) noexcept nogil:
    """dx = (dy*mul + add) + (x - center)*by_x: this order keeps every term within four roundings."""
    cdef real line[LANES]
    cdef real last[LANES]
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add, by_x = <real>f.by_x
    cdef Py_ssize_t i = 0, k
    if f.wide:
        for i in range(length):
            dx[i] = <real>((<double>dy[i]*f.mul + f.add) + (<double>x[i] - f.center)*f.by_x)
    elif stream or length < LANES:
        if stream:
            while i < unaligned(dx, length):
                dx[i] = (dy[i]*mul + add) + (x[i] - center)*by_x
                i += 1
            while i + LANES <= length:
                gradient_line(dy + i, x + i, line, center, mul, add, by_x)
                stream_lanes(dx + i, line)
                i += LANES
        while i < length:
            dx[i] = (dy[i]*mul + add) + (x[i] - center)*by_x
            i += 1
    else:
        gradient_line(dy + length - LANES, x + length - LANES, last, center, mul, add, by_x)
        while i + LANES <= length:
            gradient_line(dy + i, x + i, line, center, mul, add, by_x)
            for k in range(LANES):
                dx[i + k] = line[k]
            i += LANES
        for k in range(LANES):
            dx[length - LANES + k] = last[k]


cdef void scale_span(const real *dy, const real *x, real *dx, Py_ssize_t length, const Coefficients *f,
                     bint stream) noexcept nogil:
    """dx = dy*mul: the gradient where the statistics are constants. x is not read."""
    cdef real mul = <real>f.mul
    cdef Py_ssize_t i
    if f.wide:
        for i in range(length):
            dx[i] = <real>(<double>dy[i]*f.mul)
    else:
        for i in range(length):
            dx[i] = dy[i]*mul


# ---- both at once: the result of one channel and the sums of the next, line by line in turn
#
# One streams to memory while the other reads from it: apart, each would leave half of the memory system idle.

cdef void normalize_and_deviations(const real *dy, const real *x, real *y, const Coefficients *f, bint stream,
                                   const real *next_dy, const real *next_x, const real *dy_ahead,
                                   const real *x_ahead, Py_ssize_t length, double center_of_sums,
                                   Lanes *lanes) noexcept nogil:
    """normalize_span of one channel and deviations_span of another, `length` values of each."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center_of_sums), d
    cdef real line[LANES]
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add
    cdef Py_ssize_t i = 0, start = unaligned(y, length)
    if f.wide or not stream:
        start = length
    if start > 0:
        normalize_span(dy, x, y, start, f, False)
    while start + LANES <= length:
        prefetch_lanes(x_ahead + i)
        d = near_deviations(next_x + i, middle)
        s = lanes_add(s, d)
        t = add_near_product(next_x, d, d, t)
        normalize_line(x + start, line, center, mul, add)
        stream_lanes(y + start, line)
        i += LANES
        start += LANES
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)
    if i < length:
        normalize_span(dy, x + start, y + start, length - start, f, False)
        deviations_span(dy, next_x + i, dy, x_ahead + i, length - i, center_of_sums, lanes)


cdef void gradient_and_products(const real *dy, const real *x, real *dx, const Coefficients *f, bint stream,
                                const real *next_dy, const real *next_x, const real *dy_ahead,
                                const real *x_ahead, Py_ssize_t length, double center_of_sums,
                                Lanes *lanes) noexcept nogil:
    """gradient_span of one channel and products_span of another, `length` values of each."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), middle = lanes_all(center_of_sums), g, d
    cdef real line[LANES]
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.add, by_x = <real>f.by_x
    cdef Py_ssize_t i = 0, start = unaligned(dx, length)
    if f.wide or not stream:
        start = length
    if start > 0:
        gradient_span(dy, x, dx, start, f, False)
    while start + LANES <= length:
        prefetch_lanes(dy_ahead + i)
        prefetch_lanes(x_ahead + i)
        g = read_lanes(next_dy + i)
        d = near_deviations(next_x + i, middle)
        s = lanes_add(s, g)
        t = add_near_product(next_x, g, d, t)
        gradient_line(dy + start, x + start, line, center, mul, add, by_x)
        stream_lanes(dx + start, line)
        i += LANES
        start += LANES
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)
    if i < length:
        gradient_span(dy + start, x + start, dx + start, length - start, f, False)
        products_span(next_dy + i, next_x + i, dy_ahead + i, x_ahead + i, length - i, center_of_sums, lanes)


cdef void scale_and_products(const real *dy, const real *x, real *dx, const Coefficients *f, bint stream,
                             const real *next_dy, const real *next_x, const real *dy_ahead,
                             const real *x_ahead, Py_ssize_t length, double center_of_sums,
                             Lanes *lanes) noexcept nogil:
    """scale_span of one channel and products_span of another."""
    scale_span(dy, x, dx, length, f, stream)
    products_span(next_dy, next_x, dy_ahead, x_ahead, length, center_of_sums, lanes)


ctypedef void (*sum_span)(const void *dy, const void *x, const void *dy_ahead, const void *x_ahead, Py_ssize_t length,
                          double center, Lanes *) noexcept nogil
ctypedef void (*apply_span)(const void *dy, const void *x, void *out, Py_ssize_t length,
                            const Coefficients *, bint stream) noexcept nogil
ctypedef void (*sweep_span)(const void *dy, const void *x, void *out, const Coefficients *, bint stream,
                            const void *next_dy, const void *next_x, const void *dy_ahead, const void *x_ahead,
                            Py_ssize_t length, double center, Lanes *) noexcept nogil


cdef struct Loops:
    # What a call does to contiguous values of its type: chosen once, so that drivers know neither types nor options.
    Py_ssize_t itemsize
    sum_span sum_span
    sum_span far_sum_span       # the same about any centre, for a second attempt
    apply_span apply_span
    sweep_span sweep_span       # apply_span of one channel and sum_span of the next


cdef inline Loops loops_of(const Call *call, real typed) noexcept nogil:
    """The loops for a call on values of the type of `typed`."""
    cdef Loops loops
    loops.itemsize = sizeof(real)
    loops.sum_span = <sum_span>deviations_span[real]
    loops.far_sum_span = <sum_span>far_deviations_span[real]
    loops.apply_span = <apply_span>normalize_span[real]
    loops.sweep_span = <sweep_span>normalize_and_deviations[real]
    if call.backward:
        loops.sum_span = <sum_span>products_span[real]
        loops.far_sum_span = <sum_span>far_products_span[real]
        loops.apply_span = <apply_span>gradient_span[real]
        loops.sweep_span = <sweep_span>gradient_and_products[real]
        if call.constant:
            loops.apply_span = <apply_span>scale_span[real]
            loops.sweep_span = <sweep_span>scale_and_products[real]
    return loops


cdef inline Loops choose_loops(const Call *call) noexcept nogil:
    return loops_of(call, <double>0) if call.dtype == FLOAT64 else loops_of(call, <float>0)
