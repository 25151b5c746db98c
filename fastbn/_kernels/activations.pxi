# Activations: three numbers (see Activation), and what the derivative makes of a gradient, line by line.
#
# Where act'(z) is known from z computed again, that is z as it was stored: for half types it is rounded first.


cdef inline real bounded(real y, const Activation *act) noexcept nogil:
    """(A comparison with NaN is false: where there is no bound, and where y is NaN.)"""
    cdef real lower = <real>act.lower, upper = <real>act.upper
    y = lower if y < lower else y
    return upper if y > upper else y


cdef inline real activated(real z, real below, const Activation *act) noexcept nogil:
    """y; `below` is what it is for z < 0 (and not above 0 then, however that was rounded)."""
    below = 0 if below > 0 else below
    return bounded(below if z < 0 else z, act)


cdef inline real gated(real z, real above, real below, const Activation *act) noexcept nogil:
    """`above` where z > 0, else `below`; 0 where y stays at a bound. The same for z and for y."""
    cdef real lower = <real>act.lower, upper = <real>act.upper
    cdef real g = above if z > 0 else below
    g = 0 if z <= lower else g
    return 0 if z >= upper else g


# ---- z again

cdef inline void z_of_reals(const real *x, real *z, const Coefficients *f) noexcept nogil:
    cdef Py_ssize_t k
    cdef real center = <real>f.center, mul = <real>f.mul, add = <real>f.z_add
    for k in range(LANES):
        z[k] = (x[k] - center)*mul + add


cdef inline void round_line(float *line, const stored *typed) noexcept nogil:
    """LANES values as they would be stored."""
    cdef stored rounded[LANES]
    if stored is float16_t or stored is bfloat16_t:
        narrow(line, rounded, LANES)
        widen(rounded, line, LANES)


cdef inline double stored_z(const stored *x, const Coefficients *f) noexcept nogil:
    """z of one value, as it was stored, also where it was computed in float64."""
    cdef stored z
    cdef float wide_x = <float>value_of(x)
    if f.z_wide or stored is double:
        put_value(&z, (value_of(x) - f.center)*f.mul + f.z_add)
    else:
        put_value(&z, (wide_x - <float>f.center)*<float>f.mul + <float>f.z_add)
    return value_of(&z)


# ---- gradients behind the activation

cdef inline void gate_reals(const real *dy, const real *z, real *g, const Activation *act) noexcept nogil:
    cdef Py_ssize_t k
    cdef real slope = <real>act.slope
    for k in range(LANES):
        g[k] = gated(z[k], dy[k], dy[k]*slope, act)


cdef inline lanes_t gated_lanes(const stored *dy, const stored *x, const Coefficients *f) noexcept nogil:
    """The gradients of LANES values, for their sums."""
    cdef double z64[LANES]
    cdef float z32[LANES]
    cdef float x32[LANES]
    cdef float dy32[LANES]
    if stored is double:
        z_of_reals(x, <double *>z64, f)
        gate_reals(dy, <const double *>z64, <double *>z64, &f.act)
        return lanes_load(z64)
    elif stored is float:
        z_of_reals(x, <float *>z32, f)
        gate_reals(dy, <const float *>z32, <float *>z32, &f.act)
        return lanes_widen(z32)
    else:
        widen(x, x32, LANES)
        widen(dy, dy32, LANES)
        z_of_reals(<const float *>x32, <float *>z32, f)
        round_line(z32, x)
        gate_reals(<const float *>dy32, <const float *>z32, <float *>z32, &f.act)
        return lanes_widen(z32)


cdef inline lanes_t gated_lanes_each(const stored *dy, const stored *x, const Coefficients *f) noexcept nogil:
    """The same where z was computed in float64."""
    cdef double g[LANES]
    cdef Py_ssize_t k
    for k in range(LANES):
        g[k] = gated(stored_z(x + k, f), value_of(dy + k), value_of(dy + k)*f.act.slope, &f.act)
    return lanes_load(g)


# ---- y tells

cdef void gate_values(const stored *dy, const stored *y, stored *g, Py_ssize_t length,
                      const Activation *act) noexcept nogil:
    """g = dy*act'; it may take the place of dy."""
    cdef float dy32[LANES]
    cdef float y32[LANES]
    cdef stored line[LANES]
    cdef Py_ssize_t i = 0
    while i + LANES <= length:
        if stored is float or stored is double:
            gate_reals(dy + i, y + i, <stored *>line, act)
        else:
            widen(dy + i, dy32, LANES)
            widen(y + i, y32, LANES)
            gate_reals(<const float *>dy32, <const float *>y32, <float *>y32, act)
            narrow(y32, line, LANES)
        put_line(g + i, line)
        i += LANES
    for i in range(i, length):
        if stored is double:
            g[i] = gated(y[i], dy[i], dy[i]*act.slope, act)
        else:
            put_value(g + i, gated(<float>value_of(y + i), <float>value_of(dy + i),
                                   <float>value_of(dy + i)*<float>act.slope, act))


cdef void undo_values(const stored *y, stored *z, Py_ssize_t length, const Activation *act) noexcept nogil:
    """z from the y of a leaky activation."""
    cdef Py_ssize_t i
    for i in range(length):
        put_value(z + i, value_of(y + i) if value_of(y + i) > 0 else value_of(y + i)/act.slope)
