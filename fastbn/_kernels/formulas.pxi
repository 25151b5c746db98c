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


cdef struct ClippedJoinGradient:    # behind a residual and bounds or nothing, of which y tells; g = dy*act'(z), too
    char nothing


cdef struct LeakyJoinGradient:
    char nothing


cdef struct ClippedJoinScaled:
    char nothing


cdef struct LeakyJoinScaled:
    char nothing


cdef struct UndoneGradient:     # where x is the y of an activation with a slope
    char nothing


cdef struct UndoneScaled:
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
    ClippedJoinGradient
    LeakyJoinGradient
    ClippedJoinScaled
    LeakyJoinScaled
    UndoneGradient
    UndoneScaled


cdef inline bint reads_x(const formula *what) noexcept nogil:
    return formula is not Scaled and formula is not ClippedJoinScaled and formula is not LeakyJoinScaled


cdef inline bint reads_dy(const formula *what) noexcept nogil:
    return formula is not Normalized and formula is not Clipped and formula is not Leaky


cdef inline bint is_forward(const formula *what) noexcept nogil:
    return (formula is Normalized or formula is Clipped or formula is Leaky or formula is ClippedJoin
            or formula is LeakyJoin)


cdef inline bint is_clipped_join(const formula *what) noexcept nogil:
    return formula is ClippedJoinGradient or formula is ClippedJoinScaled


cdef inline bint is_leaky_join(const formula *what) noexcept nogil:
    return formula is LeakyJoinGradient or formula is LeakyJoinScaled


cdef inline bint reads_y(const formula *what) noexcept nogil:
    """And writes g."""
    return is_clipped_join(what) or is_leaky_join(what)


cdef inline bint is_undone(const formula *what) noexcept nogil:
    return formula is UndoneGradient or formula is UndoneScaled


cdef inline bint is_gated(const formula *what) noexcept nogil:
    return (formula is ClippedGradient or formula is ClippedScaled or formula is LeakyGradient
            or formula is LeakyScaled)


cdef inline bint is_chosen(const formula *what) noexcept nogil:
    """Whether a comparison chooses what a gradient is multiplied by."""
    return is_gated(what) or reads_y(what) or is_undone(what)


cdef inline bint is_light(const stored *typed, const formula *what) noexcept nogil:
    """Whether a line takes so few operations, with its sums, that processors run far ahead."""
    return not is_half(typed) and (is_forward(what) or formula is Gradient)


cdef inline bint is_gradient(const formula *what) noexcept nogil:
    """In full: with the terms that the statistics bring."""
    return (formula is Gradient or formula is ClippedGradient or formula is LeakyGradient
            or formula is ClippedJoinGradient or formula is LeakyJoinGradient or formula is UndoneGradient)


cdef inline Place needed(const Place *at, const formula *what) noexcept nogil:
    """Without what the formula does not use, so that compilers need not keep it."""
    cdef Place own
    own.x = at.x if reads_x(what) else NULL
    own.dy = at.dy if reads_dy(what) else NULL
    own.y = at.y if reads_y(what) else NULL
    own.out = at.out
    own.dresidual = at.dresidual if reads_y(what) else NULL
    return own


# ---- coefficients

cdef inline void undo(Coefficients *f) noexcept nogil:
    """Where x is the y of an activation with a slope, and float32 computes: those of what is below 0.

    (x/slope - center)*by_x is (x - center*slope)*by_x/slope, in which the product is again taken as two numbers.
    """
    cdef double center = f.center*f.act.slope
    f.center_below = <float>center
    f.by_x_below = f.by_x/f.act.slope
    f.add_below = f.add - (center - f.center_below)*f.by_x_below


cdef inline Coefficients coefficients_as_float64(const Numbers *f, Py_ssize_t k, const stored *typed,
                                                 const formula *what) noexcept nogil:
    """Those of one channel, where Numbers has them."""
    cdef Coefficients own = coefficients_of(f, k)
    if is_undone(what) and stored is not double:
        undo(&own)
    return own


cdef inline Coefficients coefficients(const Numbers *f, Py_ssize_t k, const stored *typed,
                                      const formula *what) noexcept nogil:
    """Those of one channel that is not wide."""
    cdef Coefficients own
    if stored is double or is_undone(what):
        return coefficients_as_float64(f, k, typed, what)
    own.center, own.mul, own.add, own.by_x = f.center32[k], f.mul32[k], f.add32[k], f.by_x32[k]
    own.mul_below, own.add_below = f.mul_below32[k], f.add_below32[k]
    own.act = f.act
    if f.gates != NULL:
        own.gate = f.gates[k]
    return own


# ---- the formulas

cdef inline void multiply_gradients(const real *dy, const real *x, const real *y, real *line, real *g,
                                    const numbers *f, Py_ssize_t column, Py_ssize_t count,
                                    const formula *what) noexcept nogil:
    """dy*mul*act'(z), and g = dy*act'(z) where y tells."""
    cdef real by[LANES]
    cdef Py_ssize_t k
    if is_gated(what):
        gate_line(dy, x, line, f.mul, f.mul_below, f.gate.low, f.gate.high, column,
                  formula is LeakyGradient or formula is LeakyScaled, count)
    elif is_clipped_join(what):
        gate_line(dy, y, g, 1.0, 1.0, f.act.lower, f.act.upper, column, False, count)
        for k in range(count):
            line[k] = g[k]*number(f.mul, column + k, x)
    elif is_leaky_join(what):
        choose_line(y, <real *>by, 1.0, f.act.slope, column, count)
        for k in range(count):
            g[k] = dy[k]*by[k]
        choose_line(y, <real *>by, f.mul, f.mul_below, column, count)
        for k in range(count):      # float64 has g as it is stored; float32 would round it once more
            line[k] = g[k]*number(f.mul, column + k, x) if real is double else dy[k]*by[k]
    elif is_undone(what):
        choose_line(x, <real *>by, f.mul, f.mul_below, column, count)
        for k in range(count):
            line[k] = dy[k]*by[k]
    else:
        for k in range(count):
            line[k] = dy[k]*number(f.mul, column + k, x)


cdef inline void add_undone(const real *x, real *line, const numbers *f, Py_ssize_t column,
                            Py_ssize_t count) noexcept nogil:
    """line + add + (z - center)*by_x, with the z of which a slope has made x."""
    cdef real add[LANES]
    cdef real by_x[LANES]
    cdef real d[LANES]
    cdef Py_ssize_t k
    if real is double:
        choose_line(x, <real *>d, 1.0, f.act.slope, column, count)
        for k in range(count):
            d[k] = (x[k]/d[k] - number(f.center, column + k, x))*number(f.by_x, column + k, x)
            line[k] = (line[k] + number(f.add, column + k, x)) + d[k]
    else:
        choose_line(x, <real *>d, f.center, f.center_below, column, count)
        choose_line(x, <real *>add, f.add, f.add_below, column, count)
        choose_line(x, <real *>by_x, f.by_x, f.by_x_below, column, count)
        for k in range(count):
            line[k] = (line[k] + add[k]) + (x[k] - d[k])*by_x[k]


cdef inline void compute_reals(const real *dy, const real *x, const real *y, real *line, real *g, const numbers *f,
                               Py_ssize_t column, Py_ssize_t count, const formula *what) noexcept nogil:
    """`count` results, at most LANES, the first of which stands in `column`."""
    cdef Py_ssize_t k
    cdef real d
    cdef real below[LANES]
    if not is_forward(what):
        multiply_gradients(dy, x, y, line, g, f, column, count, what)
    if formula is UndoneGradient:
        add_undone(x, line, f, column, count)
    elif is_gradient(what):
        for k in range(count):
            d = (x[k] - number(f.center, column + k, x))*number(f.by_x, column + k, x)
            line[k] = (line[k] + number(f.add, column + k, x)) + d
    elif formula is Normalized or formula is Clipped or formula is Leaky:
        for k in range(count):
            d = x[k] - number(f.center, column + k, x)
            line[k] = d*number(f.mul, column + k, x) + number(f.add, column + k, x)
            if formula is Leaky:
                below[k] = d*number(f.mul_below, column + k, x) + number(f.add_below, column + k, x)
    elif formula is ClippedJoin or formula is LeakyJoin:
        for k in range(count):
            d = x[k] - number(f.center, column + k, x)
            line[k] = d*number(f.mul, column + k, x) + (number(f.add, column + k, x) + dy[k])
            if formula is LeakyJoin:
                below[k] = (d*number(f.mul_below, column + k, x)
                            + (number(f.add_below, column + k, x) + dy[k]*<real>f.act.slope))
    if formula is Leaky or formula is LeakyJoin:
        take_below(line, <real *>below, &f.act, count)
    elif formula is Clipped or formula is ClippedJoin:
        clip_line(line, &f.act, count)


cdef inline void compute_line(const Place *at, Py_ssize_t i, stored *line, stored *g, const numbers *f,
                              Py_ssize_t column, Py_ssize_t count, const formula *what) noexcept nogil:
    """`count` results from value i on, at most LANES; those of half types as float32, rounded."""
    cdef const stored *x = <const stored *>at.x + i
    cdef const stored *dy = <const stored *>at.dy + i
    cdef const stored *y = <const stored *>at.y + i
    cdef float wide_x[LANES]
    cdef float wide_dy[LANES]
    cdef float wide_y[LANES]
    cdef float wide_line[LANES]
    cdef float wide_g[LANES]
    if stored is float or stored is double:
        compute_reals(dy, x, y, line, g, f, column, count, what)
    else:       # count is LANES where the coefficients are those of one channel: its values may then stand in any order
        if reads_x(what):
            widen_some(x, <float *>wide_x, count, f)
        if reads_dy(what):
            widen_some(dy, <float *>wide_dy, count, f)
        if reads_y(what):
            widen_some(y, <float *>wide_y, count, f)
        compute_reals(<const float *>wide_dy, <const float *>wide_x, <const float *>wide_y, <float *>wide_line,
                      <float *>wide_g, f, column, LANES if numbers is Coefficients else count, what)
        narrow_some(<const float *>wide_line, line, count, f)
        if reads_y(what):
            narrow_some(<const float *>wide_g, g, count, f)


cdef inline void widen_some(const stored *x, float *to, Py_ssize_t count, const numbers *f) noexcept nogil:
    if numbers is Coefficients:
        widen_line(x, to)
    else:
        widen(x, to, count)


cdef inline void narrow_some(const float *values, stored *to, Py_ssize_t count, const numbers *f) noexcept nogil:
    if numbers is Coefficients:
        narrow_line(values, to)
    else:
        narrow(values, to, count)


cdef void compute_each(const Place *at, Py_ssize_t length, const Coefficients *f, const stored *typed,
                       const formula *what) noexcept nogil:
    """Any number of results of one channel in float64, where the coefficients are `wide`: never those of float64."""
    cdef double x64[LANES]
    cdef double dy64[LANES]
    cdef double y64[LANES]
    cdef double line[LANES]
    cdef double g[LANES]
    cdef Py_ssize_t k, i = 0, some
    cdef double by[LANES]
    cdef double slope = f.act.slope if unfit(f.act.slope) else <float>f.act.slope
    memset(x64, 0, sizeof(x64))
    memset(dy64, 0, sizeof(dy64))
    memset(y64, 0, sizeof(y64))
    while i < length:
        some = min(LANES, length - i)
        for k in range(some):
            if reads_x(what):
                x64[k] = value_of(<const stored *>at.x + i + k)
            if reads_dy(what):
                dy64[k] = value_of(<const stored *>at.dy + i + k)
            if reads_y(what):
                y64[k] = value_of(<const stored *>at.y + i + k)
        compute_reals(<const double *>dy64, <const double *>x64, <const double *>y64, <double *>line, <double *>g, f,
                      0, LANES, what)
        if is_leaky_join(what):     # dresidual is the same, wide or not
            choose_line(<const double *>y64, <double *>by, 1.0, slope, 0, LANES)
            for k in range(LANES):
                g[k] = dy64[k]*by[k]
        for k in range(some):
            put_value(<stored *>at.out + i + k, line[k])
            if reads_y(what):
                put_value(<stored *>at.dresidual + i + k, g[k])
        i += some
