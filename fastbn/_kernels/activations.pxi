# Activations: a slope or bounds (see Activation), and what the derivative makes of a gradient, line by line.
#
# One choice a loop: of several in one, compilers make branches, and a gradient takes twenty times as long. Comparisons
# with NaN are false: where there is no bound, and where z is NaN.
#
# Where act'(z) is known from z computed again, that is z as it was stored: for half types it is rounded first.


cdef inline void take_below(real *z, real *below) noexcept nogil:
    """y in place of z, with a slope; `below` is y where z < 0 (and not above 0 then, however that was rounded)."""
    cdef Py_ssize_t k
    cdef real b
    for k in range(LANES):
        b = below[k]
        below[k] = 0 if 0 < b else b
    for k in range(LANES):
        b = below[k]
        z[k] = b if z[k] < 0 else z[k]


cdef inline void clip_line(real *z, const Activation *act) noexcept nogil:
    """y in place of z, with bounds."""
    cdef Py_ssize_t k
    cdef real lower = <real>act.lower, upper = <real>act.upper
    for k in range(LANES):
        z[k] = lower if lower > z[k] else z[k]
    for k in range(LANES):
        z[k] = upper if upper < z[k] else z[k]


cdef inline void gate_line(const real *dy, const real *z, real *g, held above, held below, Py_ssize_t column,
                           const Activation *act, bint slope) noexcept nogil:
    """g = dy*above where z > 0, else dy*below; without a `slope` g = dy*above, 0 where y stays at a bound. The same for
    z and for y.
    """
    cdef Py_ssize_t k
    cdef real lower = <real>act.lower, upper = <real>act.upper
    cdef real by[LANES]
    cdef real kept[LANES]
    cdef real v, b
    for k in range(LANES):
        v, b = number(above, column + k, z), number(below, column + k, z)
        by[k] = v if z[k] > 0 or not slope else b
    for k in range(LANES):
        kept[k] = dy[k]*by[k]
    if not slope:
        for k in range(LANES):
            v = kept[k]
            kept[k] = 0 if z[k] <= lower else v
        for k in range(LANES):
            v = kept[k]
            kept[k] = 0 if z[k] >= upper else v
    for k in range(LANES):
        g[k] = kept[k]


# ---- z again

cdef inline void z_of_line(const real *x, real *z, const numbers *f, Py_ssize_t column) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(LANES):
        z[k] = (x[k] - number(f.center, column + k, x))*number(f.mul, column + k, x) + number(f.z_add, column + k, x)


cdef inline void round_line(float *line, const stored *typed) noexcept nogil:
    """LANES values as half types store them."""
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


# ---- gradients behind an activation, for their sums

cdef inline lanes_t gated_lanes(const stored *dy, const stored *x, const numbers *f, Py_ssize_t column,
                                bint slope) noexcept nogil:
    cdef double z64[LANES]
    cdef double g64[LANES]
    cdef float z32[LANES]
    cdef float g32[LANES]
    cdef float x32[LANES]
    cdef float dy32[LANES]
    if stored is double:
        z_of_line(x, <double *>z64, f, column)
        gate_line(dy, <const double *>z64, <double *>g64, 1.0, f.act.slope, column, &f.act, slope)
        return lanes_load(g64)
    elif stored is float:
        z_of_line(x, <float *>z32, f, column)
        gate_line(dy, <const float *>z32, <float *>g32, 1.0, f.act.slope, column, &f.act, slope)
        return lanes_widen(g32)
    else:
        widen(x, x32, LANES)
        widen(dy, dy32, LANES)
        z_of_line(<const float *>x32, <float *>z32, f, column)
        round_line(z32, x)
        gate_line(<const float *>dy32, <const float *>z32, <float *>g32, 1.0, f.act.slope, column, &f.act, slope)
        return lanes_widen(g32)


cdef inline lanes_t gated_lanes_each(const stored *dy, const stored *x, const numbers *f,
                                     Py_ssize_t column) noexcept nogil:
    """The same where z of some channels may have been computed in float64."""
    cdef double dy64[LANES]
    cdef double z64[LANES]
    cdef double g64[LANES]
    cdef double line[LANES]
    cdef bint slope = f.act.slope != 1
    cdef Py_ssize_t k
    if not z_is_wide(f):
        return gated_lanes(dy, x, f, column, slope)
    for k in range(LANES):
        dy64[k] = value_of(dy + k)
        z64[k] = stored_z(x + k, of_column(f, column + k))
    gate_line(<const double *>dy64, <const double *>z64, <double *>g64, 1.0, f.act.slope, column, &f.act, slope)
    lanes_store(line, gated_lanes(dy, x, f, column, slope))
    for k in range(LANES):
        if of_column(f, column + k).z_wide:
            line[k] = g64[k]
    return lanes_load(line)


# ---- gradients of which y tells

cdef inline void gate_stored(const stored *dy, const stored *y, stored *g, const Activation *act,
                             bint slope) noexcept nogil:
    """LANES of them, as they are stored."""
    cdef float dy32[LANES]
    cdef float y32[LANES]
    cdef float g32[LANES]
    if stored is float or stored is double:
        gate_line(dy, y, g, 1.0, act.slope, 0, act, slope)
    else:
        widen(dy, dy32, LANES)
        widen(y, y32, LANES)
        gate_line(<const float *>dy32, <const float *>y32, <float *>g32, 1.0, act.slope, 0, act, slope)
        narrow(g32, g, LANES)


cdef inline void gate_lines(const stored *dy, const stored *y, stored *g, Py_ssize_t length, const Activation *act,
                            bint slope) noexcept nogil:
    """Of LANES values or more. g may take the place of dy, so the last LANES, which overlap others, are read first."""
    cdef stored line[LANES]
    cdef stored last[LANES]
    cdef Py_ssize_t i = 0, rest = length - LANES
    gate_stored(dy + rest, y + rest, last, act, slope)
    while i + LANES <= length:
        prefetch_lanes(dy + i + CHUNK)
        prefetch_lanes(y + i + CHUNK)
        gate_stored(dy + i, y + i, line, act, slope)
        put_line(g + i, line)
        i += LANES
    put_line(g + rest, last)


cdef void gate_values(const stored *dy, const stored *y, stored *g, Py_ssize_t length,
                      const Activation *act) noexcept nogil:
    """g = dy*act'."""
    cdef stored dy_line[LANES]
    cdef stored y_line[LANES]
    cdef stored line[LANES]
    cdef Activation own = act[0]
    if length < LANES:
        gate_stored(last_line(dy, length, dy_line), last_line(y, length, y_line), line, &own, own.slope != 1)
        memcpy(g, line + LANES - length, length*sizeof(stored))
    elif own.slope == 1:
        gate_lines(dy, y, g, length, &own, False)
    else:
        gate_lines(dy, y, g, length, &own, True)


cdef void undo_values(const stored *y, stored *z, Py_ssize_t length, const Activation *act) noexcept nogil:
    """z from the y of a leaky activation."""
    cdef Py_ssize_t i
    for i in range(length):
        put_value(z + i, value_of(y + i) if value_of(y + i) > 0 else value_of(y + i)/act.slope)
