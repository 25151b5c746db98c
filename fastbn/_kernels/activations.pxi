# Activations: a slope or bounds (see Activation), and what the derivative makes of a gradient, line by line.
#
# One choice a loop: where there are several in one, compilers branch, and a gradient takes twenty times as long.
# Comparisons with NaN are false: where there is no bound, and where z is NaN.


cdef inline void take_below(real *z, real *below, const Activation *act, Py_ssize_t count) noexcept nogil:
    """y in place of z, with a slope; `below` is y where z < 0 (and not above 0 then, however that was rounded)."""
    cdef Py_ssize_t k
    cdef real b, zero = <real>(act.slope*0)     # computed: of a comparison with a literal 0 GCC makes no minimum
    for k in range(count):
        b = below[k]
        below[k] = zero if zero < b else b
    for k in range(count):      # (the sign alone does not tell: that of a NaN, too, may be set)
        b = below[k]
        z[k] = b if z[k] < 0 else z[k]


cdef inline void clip_line(real *z, const Activation *act, Py_ssize_t count) noexcept nogil:
    """y in place of z, with bounds."""
    cdef Py_ssize_t k
    cdef real lower = <real>act.lower, upper = <real>act.upper
    for k in range(count):
        z[k] = lower if lower > z[k] else z[k]
    for k in range(count):
        z[k] = upper if upper < z[k] else z[k]


cdef inline void gate_line(const real *dy, const real *x, real *g, coefficient above, coefficient below,
                           gate_bound low, gate_bound high, Py_ssize_t column, bint slope,
                           Py_ssize_t count) noexcept nogil:
    """g = dy*above where low <= x <= high, else dy*below; without a `slope` g = dy*above, and 0 where x <= low or
    x >= high.
    """
    cdef Py_ssize_t k
    cdef real by[LANES]
    cdef real kept[LANES]
    cdef real v, b
    for k in range(count):
        v, b = number(above, column + k, x), number(below, column + k, x)
        by[k] = v if not slope or (x[k] >= number(low, column + k, x)) & (x[k] <= number(high, column + k, x)) else b
    for k in range(count):
        kept[k] = dy[k]*by[k]
    if not slope:
        for k in range(count):
            v = kept[k]
            kept[k] = 0 if x[k] <= number(low, column + k, x) else v
        for k in range(count):
            v = kept[k]
            kept[k] = 0 if x[k] >= number(high, column + k, x) else v
    for k in range(count):
        g[k] = kept[k]


cdef inline void choose_line(const real *y, real *to, coefficient above, coefficient below, Py_ssize_t column,
                             Py_ssize_t count) noexcept nogil:
    """`above` where y > 0, else `below`."""
    cdef Py_ssize_t k
    cdef real v, b
    for k in range(count):
        v, b = number(above, column + k, y), number(below, column + k, y)
        to[k] = v if y[k] > 0 else b


# ---- gradients behind an activation, for their sums

cdef inline lanes_t leaky_lanes(const stored *dy, lanes_t x, const numbers *f, Py_ssize_t column) noexcept nogil:
    """In float64: where gradients cancel, rounding them to float32 would be what is left of their sum."""
    cdef lanes_t low, high
    if numbers is Coefficients:
        low, high = lanes_all(f.gate.low), lanes_all(f.gate.high)
    else:
        low, high = lanes_load(f.gate.low64 + column), lanes_load(f.gate.high64 + column)
    return lanes_leak(read_lanes(dy), x, low, high, f.act.slope)


cdef inline lanes_t clipped_lanes(const stored *dy, const stored *x, gate_bound low, gate_bound high,
                                  Py_ssize_t column) noexcept nogil:
    cdef double g64[LANES]
    cdef float g32[LANES]
    cdef float x32[LANES]
    cdef float dy32[LANES]
    if stored is double:
        gate_line(dy, x, <double *>g64, 1.0, 1.0, low, high, column, False, LANES)
        return lanes_load(g64)
    elif stored is float:
        gate_line(dy, x, <float *>g32, 1.0, 1.0, low, high, column, False, LANES)
        return lanes_widen(g32)
    else:
        widen(x, x32, LANES)
        widen(dy, dy32, LANES)
        gate_line(<const float *>dy32, <const float *>x32, <float *>g32, 1.0, 1.0, low, high, column, False, LANES)
        return lanes_widen(g32)
