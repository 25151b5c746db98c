# Where the derivative of an activation changes, as values of x.
#
# z = (x - center)*mul + add grows with x, or falls, and so does what rounding makes of it. act'(z) therefore changes at
# one value of x or two, and loops that need it compare x and never compute z again. These values are found by trying:
# z is computed as the forward does and rounded as it was stored, whatever the type.
#
# (Where mul is 0 all z are alike but those of infinite x, which are NaN: they are taken for the others.)

cdef enum:
    WIDEST_STEP = 4096      # ranks; after that, by halves


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


ctypedef void (*find_gate_of)(const Coefficients *z, Gate *, const void *typed) noexcept nogil


cdef void find_gates(const Call *call, find_gate_of find, Py_ssize_t c, Py_ssize_t count) noexcept nogil:
    """Those of `count` channels from c on, if the call has any."""
    cdef double memory[5*TOGETHER]
    cdef Numbers z = lay_out_numbers(memory, TOGETHER, call)
    cdef Coefficients own
    cdef Py_ssize_t k, some
    while count > 0 and has_gates(call):
        some = min(count, TOGETHER)
        find_some_numbers(call, False, c, some, &z)
        for k in range(some):
            own = coefficients_of(&z, k)
            find(&own, gates_of(call) + c + k, NULL)
        c += some
        count -= some
