# What becomes of LANES values: y or dx. The formula is one of these types, so that it is chosen when this is compiled;
# they hold nothing.


cdef struct Normalized:         # y = (x - center)*mul + add
    char nothing


cdef struct Clipped:            # y = act(z), an activation with bounds: relu, relu6
    char nothing


cdef struct Leaky:              # y = act(z), one with a slope
    char nothing


cdef struct ClippedJoin:        # y = act(z + residual), with bounds or nothing; the residual comes as dy
    char nothing


cdef struct LeakyJoin:          # the same with a slope
    char nothing


cdef struct Gradient:           # dx = (dy*mul + add) + (x - center)*by_x: every term within four roundings
    char nothing


cdef struct ClippedGradient:    # the same behind an activation with bounds
    char nothing


cdef struct LeakyGradient:      # behind one with a slope
    char nothing


cdef struct Scaled:             # dx = dy*mul: the gradient where the statistics are constants. x is not read
    char nothing


cdef struct ClippedScaled:      # the same behind an activation with bounds
    char nothing


cdef struct LeakyScaled:        # behind one with a slope
    char nothing


ctypedef fused formula:
    Normalized
    Clipped
    Leaky
    ClippedJoin
    LeakyJoin
    Gradient
    ClippedGradient
    LeakyGradient
    Scaled
    ClippedScaled
    LeakyScaled


cdef inline bint reads_x(const formula *what) noexcept nogil:
    return formula is not Scaled


cdef inline bint reads_dy(const formula *what) noexcept nogil:
    return formula is not Normalized and formula is not Clipped and formula is not Leaky


cdef inline bint is_gated(const formula *what) noexcept nogil:
    return (formula is ClippedGradient or formula is ClippedScaled or formula is LeakyGradient
            or formula is LeakyScaled)


cdef inline void compute_reals(const real *dy, const real *x, real *line, const numbers *f, Py_ssize_t column,
                               Py_ssize_t count, const formula *what) noexcept nogil:
    """`count` results, at most LANES, the first of which stands in `column`."""
    cdef Py_ssize_t k
    cdef real d
    cdef real below[LANES]
    if is_gated(what):
        gate_line(dy, x, line, f.mul, f.mul_below, f.gate.low, f.gate.high, column,
                  formula is LeakyGradient or formula is LeakyScaled, count)
    for k in range(count):
        if formula is Normalized:
            d = x[k] - number(f.center, column + k, x)
            line[k] = d*number(f.mul, column + k, x) + number(f.add, column + k, x)
        elif formula is Clipped or formula is Leaky:
            d = x[k] - number(f.center, column + k, x)
            line[k] = d*number(f.mul, column + k, x) + number(f.add, column + k, x)
            if formula is Leaky:
                below[k] = d*number(f.mul_below, column + k, x) + number(f.add_below, column + k, x)
        elif formula is ClippedJoin or formula is LeakyJoin:
            d = x[k] - number(f.center, column + k, x)
            line[k] = d*number(f.mul, column + k, x) + (number(f.add, column + k, x) + dy[k])
            if formula is LeakyJoin:
                below[k] = (d*number(f.mul_below, column + k, x)
                            + (number(f.add_below, column + k, x) + dy[k]*<real>f.act.slope))
        elif formula is Gradient or formula is ClippedGradient or formula is LeakyGradient:
            d = (x[k] - number(f.center, column + k, x))*number(f.by_x, column + k, x)
            if formula is Gradient:
                line[k] = (dy[k]*number(f.mul, column + k, x) + number(f.add, column + k, x)) + d
            else:
                line[k] = (line[k] + number(f.add, column + k, x)) + d
        elif formula is Scaled:
            line[k] = dy[k]*number(f.mul, column + k, x)
    if formula is Leaky or formula is LeakyJoin:
        take_below(line, <real *>below, count)
    elif formula is Clipped or formula is ClippedJoin:
        clip_line(line, &f.act, count)


cdef inline void compute_line(const stored *dy, const stored *x, stored *line, const numbers *f, Py_ssize_t column,
                              Py_ssize_t count, const formula *what) noexcept nogil:
    """`count` results, at most LANES; those of half types as float32, rounded."""
    cdef float wide_x[LANES]
    cdef float wide_dy[LANES]
    cdef float wide_line[LANES]
    if stored is float or stored is double:
        compute_reals(dy, x, line, f, column, count, what)
    elif numbers is Coefficients:       # count is LANES
        if reads_x(what):
            widen_line(x, wide_x)
        if reads_dy(what):
            widen_line(dy, wide_dy)
        compute_reals(<const float *>wide_dy, <const float *>wide_x, <float *>wide_line, f, column, LANES, what)
        narrow_line(wide_line, line)
    else:
        if reads_x(what):
            widen(x, wide_x, count)
        if reads_dy(what):
            widen(dy, wide_dy, count)
        compute_reals(<const float *>wide_dy, <const float *>wide_x, <float *>wide_line, f, column, count, what)
        narrow(wide_line, line, count)


cdef void compute_each(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Coefficients *f,
                       const formula *what) noexcept nogil:
    """Any number of results of one channel in float64, where the coefficients are `wide`."""
    cdef double x64[LANES]
    cdef double dy64[LANES]
    cdef double line[LANES]
    cdef Py_ssize_t k, i = 0, some
    memset(x64, 0, sizeof(x64))
    memset(dy64, 0, sizeof(dy64))
    while i < length:
        some = min(LANES, length - i)
        for k in range(some):
            if reads_x(what):
                x64[k] = value_of(x + i + k)
            if reads_dy(what):
                dy64[k] = value_of(dy + i + k)
        compute_reals(<const double *>dy64, <const double *>x64, <double *>line, f, 0, LANES, what)
        for k in range(some):
            put_value(out + i + k, line[k])
        i += some
