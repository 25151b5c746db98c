# Results over spans: y or dx. What is computed is one of three types, so that the loops stand once.
#
# Results may take the place of x or dy, so a line is computed as a whole before it is written, and of two lines that
# overlap both are.


cdef struct Normalized:         # y = (x - center)*mul + add
    Coefficients f


cdef struct Activated:          # y = act(z)
    Coefficients f


cdef struct Joined:             # y = act(z + residual); the residual comes as dy
    Coefficients f


cdef struct Gradient:           # dx = (dy*mul + add) + (x - center)*by_x: every term within four roundings
    Coefficients f


cdef struct GatedGradient:      # the same behind an activation
    Coefficients f


cdef struct Scaled:             # dx = dy*mul: the gradient where the statistics are constants. x is not read
    Coefficients f


cdef struct GatedScaled:        # the same behind an activation
    Coefficients f


ctypedef fused formula:
    Normalized
    Activated
    Joined
    Gradient
    GatedGradient
    Scaled
    GatedScaled


cdef inline bint reads_x(const formula *what) noexcept nogil:
    return formula is not Scaled


cdef inline bint reads_dy(const formula *what) noexcept nogil:
    return formula is not Normalized and formula is not Activated


cdef struct Carry:
    # Past the cache go whole lines only. Rows that follow each other in memory share a line: it is written with the
    # second. Until then the end of the first is owed.
    Py_ssize_t owed             # values
    const char *x               # behind them, in each array
    const char *dy
    char *out
    const Coefficients *what


cdef inline void compute_reals(const real *dy, const real *x, const real *z, real *line,
                               const formula *what) noexcept nogil:
    """LANES results; z is read behind an activation in backward."""
    cdef Py_ssize_t k
    cdef real d
    cdef real below[LANES]
    cdef real center = <real>what.f.center, mul = <real>what.f.mul, add = <real>what.f.add, by_x = <real>what.f.by_x
    cdef real mul_below = <real>what.f.mul_below, add_below = <real>what.f.add_below, slope = <real>what.f.act.slope
    if formula is GatedGradient or formula is GatedScaled:
        gate_line(dy, z, line, mul, mul_below, &what.f.act)
    for k in range(LANES):
        if formula is Normalized:
            line[k] = (x[k] - center)*mul + add
        elif formula is Activated:
            d = x[k] - center
            line[k] = d*mul + add
            below[k] = d*mul_below + add_below
        elif formula is Joined:
            d = x[k] - center
            line[k] = d*mul + (add + dy[k])
            below[k] = d*mul_below + (add_below + dy[k]*slope)
        elif formula is Gradient:
            line[k] = (dy[k]*mul + add) + (x[k] - center)*by_x
        elif formula is GatedGradient:
            line[k] = (line[k] + add) + (x[k] - center)*by_x
        elif formula is Scaled:
            line[k] = dy[k]*mul
    if formula is Activated or formula is Joined:
        activate_line(line, <real *>below, &what.f.act)


cdef inline void compute_line(const stored *dy, const stored *x, stored *line, const formula *what) noexcept nogil:
    """LANES results; those of half types as float32, rounded."""
    cdef float wide_x[LANES]
    cdef float wide_dy[LANES]
    cdef float wide_line[LANES]
    cdef float wide_z[LANES]
    cdef stored z[LANES]
    if stored is float or stored is double:
        if formula is GatedGradient or formula is GatedScaled:
            z_of_line(x, <stored *>z, &what.f)
        compute_reals(dy, x, <const stored *>z, line, what)
    else:
        if reads_x(what):
            widen(x, wide_x, LANES)
        if reads_dy(what):
            widen(dy, wide_dy, LANES)
        if formula is GatedGradient or formula is GatedScaled:
            z_of_line(<const float *>wide_x, <float *>wide_z, &what.f)
            round_line(wide_z, x)
        compute_reals(<const float *>wide_dy, <const float *>wide_x, <const float *>wide_z, <float *>wide_line, what)
        narrow(wide_line, line, LANES)


cdef void compute_each(const stored *dy, const stored *x, stored *out, Py_ssize_t length,
                       const formula *what) noexcept nogil:
    """The same in float64, where the coefficients are `wide`."""
    cdef double x64[LANES]
    cdef double dy64[LANES]
    cdef double z64[LANES]
    cdef double line[LANES]
    cdef Py_ssize_t k, i = 0, some
    memset(x64, 0, sizeof(x64))
    memset(dy64, 0, sizeof(dy64))
    memset(z64, 0, sizeof(z64))
    while i < length:
        some = min(LANES, length - i)
        for k in range(some):
            if reads_x(what):
                x64[k] = value_of(x + i + k)
            if reads_dy(what):
                dy64[k] = value_of(dy + i + k)
            if formula is GatedGradient or formula is GatedScaled:
                z64[k] = stored_z(x + i + k, &what.f)
        compute_reals(<const double *>dy64, <const double *>x64, <const double *>z64, <double *>line, what)
        for k in range(some):
            put_value(out + i + k, line[k])
        i += some


cdef inline void compute_last(const stored *dy, const stored *x, Py_ssize_t length, stored *line,
                              const formula *what) noexcept nogil:
    """The last LANES of `length` results; of fewer, in the last places of the line."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    if reads_x(what):
        x = last_line(x, length, x_line)
    if reads_dy(what):
        dy = last_line(dy, length, dy_line)
    compute_line(dy, x, line, what)


cdef void store_span(const stored *dy, const stored *x, stored *out, Py_ssize_t length,
                     const formula *what) noexcept nogil:
    """By ordinary stores."""
    cdef stored line[LANES]
    cdef stored last[LANES]
    cdef formula own = what[0]
    cdef Py_ssize_t i = 0
    compute_last(dy, x, length, last, what)
    if length < LANES:
        memcpy(out, last + LANES - length, length*sizeof(stored))
        return
    while i + LANES <= length:
        compute_line(dy + i, x + i, line, &own)
        put_line(out + i, line)
        i += LANES
    put_line(out + length - LANES, last)


# ---- past the cache

cdef void put_owed(Carry *carry, const stored *typed, const formula *what) noexcept nogil:
    """Write what is owed by ordinary stores: no row goes on from there."""
    cdef Py_ssize_t some = carry.owed
    if some > 0:
        store_span(<const stored *>carry.dy - some, <const stored *>carry.x - some, <stored *>carry.out - some, some,
                   <const formula *>carry.what)
    carry.owed = 0


cdef inline bint follows(const Carry *carry, const stored *dy, const stored *x, const stored *out,
                         const formula *what) noexcept nogil:
    """Whether a row begins where the one of which some is owed ends, in all arrays."""
    cdef bint same = carry.out == <const char *>out
    if reads_x(what):
        same = same and carry.x == <const char *>x
    if reads_dy(what):
        same = same and carry.dy == <const char *>dy
    return same


cdef inline Py_ssize_t stream_first(const stored *dy, const stored *x, stored *out, const formula *what,
                                    Carry *carry) noexcept nogil:
    """Write the line in which `out` is, together with what is owed of it; how many values of the row that took."""
    cdef stored before[LANES]
    cdef stored line[LANES]
    cdef Py_ssize_t k, missing = <uintptr_t>out % (LANES*sizeof(stored))//sizeof(stored)
    if missing > 0 and missing == carry.owed and follows(carry, dy, x, out, what):
        compute_line(dy - missing, x - missing, before, <const formula *>carry.what)
        compute_line(dy - missing, x - missing, line, what)
        for k in range(LANES):
            line[k] = before[k] if k < missing else line[k]
        stream_lanes(out - missing, line)
        return LANES - missing
    put_owed(carry, x, what)
    if missing == 0:
        return 0
    store_span(dy, x, out, LANES - missing, what)
    return LANES - missing


cdef inline void owe(Carry *carry, const stored *dy, const stored *x, stored *out, Py_ssize_t some,
                     const formula *what) noexcept nogil:
    """The last `some` values of the row that ends here are to be written with the next."""
    carry.owed = some
    carry.x, carry.dy, carry.out = <const char *>x, <const char *>dy, <char *>out
    carry.what = &what.f


cdef inline void stream_span(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const formula *what,
                             Carry *carry) noexcept nogil:
    """By whole lines past the cache."""
    cdef stored line[LANES]
    cdef formula own = what[0]      # nothing else is written to it, compilers see
    cdef Py_ssize_t i = stream_first(dy, x, out, what, carry)
    while i + LANES <= length:
        if reads_x(what):
            prefetch_lanes(x + i + CHUNK)
        if reads_dy(what):
            prefetch_lanes(dy + i + CHUNK)
        compute_line(dy + i, x + i, line, &own)
        stream_lanes(out + i, line)
        i += LANES
    owe(carry, dy + length, x + length, out + length, length - i, what)


cdef void results_of_spans(const stored *dy, const stored *x, stored *out, const Steps *step, Py_ssize_t count,
                           Py_ssize_t length, const formula *formulas, Carry *carry) noexcept nogil:
    """The results of `count` rows, each with a formula of its own. With `carry` they go past the cache, and after the
    last row another call with a count of 0 writes what is owed.
    """
    cdef const formula *what
    cdef Py_ssize_t row
    if count == 0:
        put_owed(carry, x, formulas)
    for row in range(count):
        what = formulas + row
        if carry != NULL and length >= LANES and not what.f.wide:
            stream_span(dy, x, out, length, what, carry)
        else:
            if carry != NULL:
                put_owed(carry, x, what)
            if what.f.wide:
                compute_each(dy, x, out, length, what)
            else:
                store_span(dy, x, out, length, what)
        dy = next_row(dy, step.dy)
        x = next_row(x, step.x)
        out = <stored *>next_row(<const stored *>out, step.out)


# ---- both at once: the result of one channel and the sums of the next, line by line in turn
#
# One streams to memory while the other reads from it: apart, each would leave half of the memory system idle.

cdef inline void add_line_beside(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                                 lanes_t center, const void *about, const formula *what, lanes_t *s,
                                 lanes_t *t) noexcept nogil:
    """The sums that go with a formula, of LANES values."""
    if formula is Gradient or formula is Scaled:
        ask_for_line(dy_ahead, x_ahead, <const Products *>about)
        add_line(dy, x, center, <const Products *>about, s, t)
    elif formula is GatedGradient or formula is GatedScaled:
        ask_for_line(dy_ahead, x_ahead, <const GatedProducts *>about)
        add_line(dy, x, center, <const GatedProducts *>about, s, t)
    else:
        ask_for_line(dy_ahead, x_ahead, <const Deviations *>about)
        add_line(dy, x, center, <const Deviations *>about, s, t)


cdef inline void add_last_beside(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                                 Py_ssize_t length, Py_ssize_t some, lanes_t center, const void *about,
                                 const formula *what, lanes_t *s, lanes_t *t) noexcept nogil:
    """The same of the last `some` of `length` values."""
    if formula is Gradient or formula is Scaled:
        ask_for_line(dy_ahead, x_ahead, <const Products *>about)
        add_last(dy, x, length, some, center, <const Products *>about, s, t)
    elif formula is GatedGradient or formula is GatedScaled:
        ask_for_line(dy_ahead, x_ahead, <const GatedProducts *>about)
        add_last(dy, x, length, some, center, <const GatedProducts *>about, s, t)
    else:
        ask_for_line(dy_ahead, x_ahead, <const Deviations *>about)
        add_last(dy, x, length, some, center, <const Deviations *>about, s, t)


cdef void results_and_sums(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const formula *what,
                           Carry *carry, const stored *next_dy, const stored *next_x, const stored *dy_ahead,
                           const stored *x_ahead, const Center *about, Lanes *lanes) noexcept nogil:
    """`length` results of one channel, sums of as many values of another. Whole lines past the cache, only."""
    cdef formula own = what[0]
    cdef Center beside = about[0]
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), center = lanes_all(about.center)
    cdef stored line[LANES]
    cdef Py_ssize_t k = 0, i = stream_first(dy, x, out, what, carry)
    while i + LANES <= length:
        add_line_beside(next_dy + k, next_x + k, dy_ahead + k, x_ahead + k, center, &beside, what, &s, &t)
        k += LANES
        compute_line(dy + i, x + i, line, &own)
        stream_lanes(out + i, line)
        i += LANES
    owe(carry, dy + length, x + length, out + length, length - i, what)
    if k + LANES <= length:     # one more than there were whole lines of results
        add_line_beside(next_dy + k, next_x + k, dy_ahead + k, x_ahead + k, center, &beside, what, &s, &t)
        k += LANES
    if k < length:
        add_last_beside(next_dy, next_x, dy_ahead + k, x_ahead + k, length, length - k, center, &beside, what, &s, &t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)
