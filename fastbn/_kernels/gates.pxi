# Where the derivative of an activation changes, as values of x.
#
# z = (x - center)*mul + add grows with x, or falls, and so does what rounding makes of it. act'(z) therefore changes at
# one value of x or two, and loops that need it compare x and never compute z again. These values are found by trying:
# z is computed as the forward does and rounded as it was stored, whatever the type.
#
# (Where mul is 0, every finite x gives the same z. An infinite x gives NaN then, and may be gated as if it did not.)

cdef enum:
    WIDEST_STEP = 4096      # ranks; after that, by halves
    NEARBY = 4              # ranks on either side of a guess that are tried first


cdef enum Crossing:         # what becomes true as z grows; where z is NaN ...
    ABOVE                   # z > bound         ...is not
    REACHED                 # z >= bound        ...is not
    NOT_BELOW               # not z <= bound    ...is


# ---- the values of a type, counted from 0 upwards and downwards

cdef inline int64_t rank_of_infinity(const stored *typed) noexcept nogil:
    if stored is double:
        return <int64_t>0x7FF << 52
    elif stored is float:
        return <int64_t>0xFF << 23
    elif stored is float16_t:
        return 0x1F << 10
    else:
        return 0xFF << 7


cdef inline void put_ranked(int64_t rank, stored *x) noexcept nogil:
    """The value with this rank: its magnitude has the bits of abs(rank)."""
    cdef uint64_t bits64 = rank if rank >= 0 else -rank
    cdef uint32_t bits32 = <uint32_t>bits64 | <uint32_t>(rank < 0) << 31
    cdef uint16_t bits16 = <uint16_t>(bits64 | <uint64_t>(rank < 0) << 15)
    bits64 |= <uint64_t>(rank < 0) << 63
    if stored is double:
        memcpy(x, &bits64, sizeof(stored))
    elif stored is float:
        memcpy(x, &bits32, sizeof(stored))
    else:
        memcpy(x, &bits16, sizeof(stored))


cdef inline int64_t rank_of(const stored *x) noexcept nogil:
    cdef uint64_t bits64
    cdef uint32_t bits32
    cdef uint16_t bits16
    if stored is double:
        memcpy(&bits64, x, sizeof(stored))
        return -<int64_t>(bits64 & INT64_MAX) if bits64 >> 63 else <int64_t>bits64
    elif stored is float:
        memcpy(&bits32, x, sizeof(stored))
        return -<int64_t>(bits32 & INT32_MAX) if bits32 >> 31 else <int64_t>bits32
    else:
        memcpy(&bits16, x, sizeof(stored))
        return -<int64_t>(bits16 & INT16_MAX) if bits16 >> 15 else <int64_t>bits16


cdef inline double ranked(int64_t rank, const stored *typed) noexcept nogil:
    cdef stored x
    put_ranked(rank, &x)
    return value_of(&x)


# ---- z, and where it crosses a bound

cdef inline double stored_z(const stored *x, const Coefficients *f) noexcept nogil:
    """z of one value, as it was stored."""
    cdef stored z
    cdef float wide_x = <float>value_of(x)
    if f.wide or stored is double:
        put_value(&z, (value_of(x) - f.center)*f.mul + f.add)
    else:
        put_value(&z, (wide_x - <float>f.center)*<float>f.mul + <float>f.add)
    return value_of(&z)


cdef inline bint has_crossed(const Coefficients *f, int64_t rank, double bound, Crossing how,
                             const stored *typed) noexcept nogil:
    cdef stored x
    cdef double z
    put_ranked(rank, &x)
    z = stored_z(&x, f)
    if how == ABOVE:
        return z > bound
    return z >= bound if how == REACHED else not z <= bound


cdef int64_t first_rank(const Coefficients *f, int side, double bound, Crossing how,
                        const stored *typed) noexcept nogil:
    """The rank from which on, with the sign `side`, z has crossed a bound; one more than that of infinity if it never
    does. From a guess on in growing steps, then by halves.
    """
    cdef int64_t high = rank_of_infinity(typed) + 1, low = -high, at, step = 1
    cdef stored guess
    put_value(&guess, f.center + (bound - f.add)/f.mul)
    at = side*rank_of(&guess)
    at = at if low + 1 < at < high - 1 else 0       # not from infinity, where z may be NaN
    while low + 1 < high:
        if has_crossed(f, side*at, bound, how, typed):
            high = at
            at = high - step
        else:
            low = at
            at = low + step
        if step < WIDEST_STEP and low < at < high:
            step *= 2
        else:
            at = low + (high >> 1) - (low >> 1)
    return high


cdef void find_gate(const Coefficients *z, Gate *gate, const stored *typed) noexcept nogil:
    """The gate of a channel from the coefficients of its z."""
    cdef int side = -1 if z.mul < 0 else 1
    cdef int64_t most = rank_of_infinity(typed), first
    cdef double low = NAN, high = NAN
    if z.act.slope != 1:
        first = first_rank(z, side, 0, ABOVE, typed)
        if first <= most:
            low, high = ranked(side*first, typed), side*INFINITY
    else:
        if z.act.lower == z.act.lower:
            first = first_rank(z, side, z.act.lower, NOT_BELOW, typed)
            low = ranked(side*(first - 1), typed) if first > -most else NAN
        if z.act.upper == z.act.upper:
            first = first_rank(z, side, z.act.upper, REACHED, typed)
            high = ranked(side*first, typed) if first <= most else NAN
    gate.low, gate.high = (low, high) if side > 0 else (high, low)


# ---- the gates of some channels

cdef void find_nearby(const Numbers *z, Py_ssize_t count, double bound, bint reached, double *before, double *first,
                      int32_t *found) noexcept nogil:
    """first_rank() for float32 and the channels of one group, in loops that become vectors: each tries some values on
    either side of its guess. Crossed is what is above the bound, or with `reached` at it. (z is finite near a bound.)

    Found are the last value `before` the bound is crossed and the `first` behind; else, rarely, `found` becomes 0.
    """
    cdef float x[TOGETHER]
    cdef int32_t guess[TOGETHER]    # the bits of x, which count upwards from 0 on either side
    cdef int32_t unit[TOGETHER]     # to the next x with a larger z
    cdef int32_t at[TOGETHER]
    cdef int32_t crossed[TOGETHER]
    cdef int32_t size, step
    cdef float v, limit = <float>bound
    cdef Py_ssize_t k, bytes = count*<Py_ssize_t>sizeof(float)
    for k in range(count):
        x[k] = <float>(z.center[k] + (bound - z.add[k])/z.mul[k])
        crossed[k] = 0
    memcpy(guess, x, bytes)
    for k in range(count):
        size = guess[k] & INT32_MAX
        found[k] &= (size > NEARBY) & (size < (0xFF << 23) - NEARBY)
        guess[k] *= found[k]
    for k in range(count):
        unit[k] = 1 - 2*((z.mul32[k] < 0) ^ (guess[k] < 0))
    for step in range(-NEARBY, NEARBY + 1):
        for k in range(count):
            at[k] = guess[k] + step*unit[k]
        memcpy(x, at, bytes)
        for k in range(count):
            v = (x[k] - z.center32[k])*z.mul32[k] + z.add32[k]
            crossed[k] += v >= limit if reached else v > limit
    for k in range(count):
        found[k] &= (crossed[k] > 0) & (crossed[k] <= 2*NEARBY)
        at[k] = guess[k] + (NEARBY + 1 - crossed[k])*unit[k]
    memcpy(x, at, bytes)
    for k in range(count):
        first[k] = x[k]
        at[k] -= unit[k]
    memcpy(x, at, bytes)
    for k in range(count):
        before[k] = x[k]


cdef void find_gates_nearby(const Numbers *z, Py_ssize_t count, Gate *gates, int32_t *found) noexcept nogil:
    """Gates in float32 that are near a guess: where `found` stays 1."""
    cdef double low[TOGETHER]
    cdef double high[TOGETHER]
    cdef double spare[TOGETHER]
    cdef Py_ssize_t k
    for k in range(count):
        found[k] = z.wide[k] == 0
        low[k] = high[k] = NAN
    if z.act.slope != 1:
        find_nearby(z, count, 0, False, spare, low, found)
        for k in range(count):
            high[k] = -INFINITY if z.mul[k] < 0 else INFINITY
    else:
        if z.act.lower == z.act.lower:
            find_nearby(z, count, z.act.lower, False, low, spare, found)
        if z.act.upper == z.act.upper:
            find_nearby(z, count, z.act.upper, True, spare, high, found)
    for k in range(count):      # (no branch: every other channel may have a negative gamma)
        spare[k] = low[k]
        low[k] = high[k] if z.mul[k] < 0 else low[k]
        high[k] = spare[k] if z.mul[k] < 0 else high[k]
    for k in range(count):
        gates[k].low, gates[k].high = low[k], high[k]


cdef void find_some_gates(const Numbers *z, Py_ssize_t count, Gate *gates, const stored *typed) noexcept nogil:
    """Those of channels with the coefficients `z`, at most TOGETHER."""
    cdef int32_t found[TOGETHER]
    cdef Coefficients own
    cdef Py_ssize_t k
    if stored is float:
        find_gates_nearby(z, count, gates, found)
    for k in range(count):
        if stored is not float or found[k] == 0:
            own = coefficients_of(z, k)
            find_gate(&own, gates + k, typed)


ctypedef void (*find_gates_of)(const Numbers *z, Py_ssize_t count, Gate *, const void *typed) noexcept nogil


cdef void find_gates(const Call *call, find_gates_of find, Py_ssize_t c, Py_ssize_t count) noexcept nogil:
    """Those of `count` channels from c on, if the call has any."""
    cdef double memory[NUMBERS*TOGETHER]
    cdef Numbers z = lay_out_numbers(memory, TOGETHER, call)
    cdef Py_ssize_t some
    while count > 0 and has_gates(call):
        some = min(count, TOGETHER)
        z_numbers(call, c, some, True, &z)
        find(&z, some, gates_of(call) + c, NULL)
        c += some
        count -= some
