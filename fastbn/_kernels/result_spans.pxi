# Results over spans: y or dx.
#
# They may take the place of x or dy, so a line is computed as a whole before it is written, and of two lines that
# overlap both are.


cdef struct Carry:
    # Past the cache go whole lines only. Rows that follow each other in memory share a line: it is written with the
    # second. Until then the end of the first is owed.
    Py_ssize_t owed             # values
    const char *x               # behind them, in each array
    const char *dy
    char *out
    const Numbers *f            # with which they are computed
    Py_ssize_t k


cdef void store_few(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Coefficients *f,
                    const formula *what) noexcept nogil:
    """Fewer than LANES results, by ordinary stores."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored line[LANES]
    if reads_x(what):
        x = last_line(x, length, x_line)
    if reads_dy(what):
        dy = last_line(dy, length, dy_line)
    compute_line(dy, x, line, f, 0, LANES, what)
    memcpy(out, line + LANES - length, length*sizeof(stored))


cdef inline void store_some(const stored *dy, const stored *x, stored *out, const Coefficients *f, Py_ssize_t count,
                            const formula *what) noexcept nogil:
    """`count` results, a number that is known when this is compiled."""
    cdef stored line[LANES]
    cdef Py_ssize_t k
    compute_line(dy, x, line, f, 0, count, what)
    if count*sizeof(stored) >= 32:
        put_line(out, line, count)
    else:
        for k in range(count):
            out[k] = line[k]


cdef inline void store_span(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Numbers *f,
                            Py_ssize_t k, const formula *what) noexcept nogil:
    """LANES or more by ordinary stores."""
    cdef stored last[LANES]
    cdef Coefficients own = coefficients_of(f, k)
    cdef Py_ssize_t i = 0, rest = length - LANES
    if is_half(x):      # to round one value takes as long as to round LANES
        compute_line(dy + rest, x + rest, last, &own, 0, LANES, what)
    while i + LANES <= length:
        store_some(dy + i, x + i, out + i, &own, LANES, what)
        i += LANES
    if is_half(x):
        put_line(out + rest, last, LANES)
        return
    # No value twice: stores that cross cache lines take longer than anything else here.
    if length & 8:
        store_some(dy + i, x + i, out + i, &own, 8, what)
        i += 8
    if length & 4:
        store_some(dy + i, x + i, out + i, &own, 4, what)
        i += 4
    if length & 2:
        store_some(dy + i, x + i, out + i, &own, 2, what)
        i += 2
    if length & 1:
        store_some(dy + i, x + i, out + i, &own, 1, what)


# ---- past the cache

cdef void put_owed(Carry *carry, const stored *typed, const formula *what) noexcept nogil:
    """Write what is owed by ordinary stores: no row goes on from there."""
    cdef Py_ssize_t some = carry.owed
    cdef Coefficients own
    if some > 0:
        own = coefficients_of(carry.f, carry.k)
        store_few(<const stored *>carry.dy - some, <const stored *>carry.x - some, <stored *>carry.out - some, some,
                  &own, what)
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


cdef inline bint are_joined(const Steps *step, Py_ssize_t length, const stored *typed,
                            const formula *what) noexcept nogil:
    """Whether each row begins where the one before it ends, in all arrays."""
    cdef Py_ssize_t bytes = length*<Py_ssize_t>sizeof(stored)
    cdef bint same = step.out == bytes
    if reads_x(what):
        same = same and step.x == bytes
    if reads_dy(what):
        same = same and step.dy == bytes
    return same


cdef inline bint stands_before(Py_ssize_t k, Py_ssize_t count, const stored *typed) noexcept nogil:
    """k < count, in numbers that are no wider than the values, or than 32 bits: vectors of both then fit better."""
    if stored is double:
        return k < count
    return <int>k < <int>count


cdef inline Py_ssize_t share_line(const stored *dy, const stored *x, stored *out, const Coefficients *before,
                                  const Coefficients *f, const formula *what) noexcept nogil:
    """Write the line in which a row ends and the next, at `out`, begins; how many values of the latter that took."""
    cdef stored first[LANES]
    cdef stored line[LANES]
    cdef Py_ssize_t k, missing = <uintptr_t>out % (LANES*sizeof(stored))//sizeof(stored)
    if missing == 0:
        return 0
    compute_line(dy - missing, x - missing, first, before, 0, LANES, what)
    compute_line(dy - missing, x - missing, line, f, 0, LANES, what)
    for k in range(LANES):
        line[k] = first[k] if stands_before(k, missing, x) else line[k]
    stream_lanes(out - missing, line)
    return LANES - missing


cdef inline Py_ssize_t stream_first(const stored *dy, const stored *x, stored *out, const Coefficients *f,
                                    const formula *what, Carry *carry) noexcept nogil:
    """Write the line in which `out` is, together with what is owed of it; how many values of the row that took."""
    cdef Coefficients owed, own
    cdef Py_ssize_t missing = <uintptr_t>out % (LANES*sizeof(stored))//sizeof(stored)
    if missing > 0 and missing == carry.owed and follows(carry, dy, x, out, what):
        owed = coefficients_of(carry.f, carry.k)
        return share_line(dy, x, out, &owed, f, what)
    if carry.owed > 0:
        put_owed(carry, x, what)
    if missing == 0:
        return 0
    own = f[0]
    store_few(dy, x, out, LANES - missing, &own, what)
    return LANES - missing


cdef inline void owe(Carry *carry, const stored *dy, const stored *x, stored *out, Py_ssize_t some, const Numbers *f,
                     Py_ssize_t k) noexcept nogil:
    """The last `some` values of the row that ends here are to be written with the next."""
    carry.owed = some
    carry.x, carry.dy, carry.out = <const char *>x, <const char *>dy, <char *>out
    carry.f, carry.k = f, k


cdef inline void ask_for_values(const stored *dy, const stored *x, const formula *what) noexcept nogil:
    if reads_x(what):
        prefetch_lanes(x + CHUNK)
    if reads_dy(what):
        prefetch_lanes(dy + CHUNK)


cdef inline void stream_span(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Numbers *f,
                             Py_ssize_t k, const formula *what, Carry *carry) noexcept nogil:
    """By whole lines past the cache."""
    cdef stored line[LANES]
    cdef Coefficients own = coefficients_of(f, k)
    cdef Py_ssize_t i = stream_first(dy, x, out, &own, what, carry)
    while i + LANES <= length:
        ask_for_values(dy + i, x + i, what)
        compute_line(dy + i, x + i, line, &own, 0, LANES, what)
        stream_lanes(out + i, line)
        i += LANES
    owe(carry, dy + length, x + length, out + length, length - i, f, k)


cdef void store_any(const stored *dy, const stored *x, stored *out, Py_ssize_t length, const Numbers *f, Py_ssize_t k,
                    const formula *what) noexcept nogil:
    """Few of them, or any number in float64."""
    cdef Coefficients own = coefficients_of(f, k)
    if own.wide:
        compute_each(dy, x, out, length, &own, what)
    else:
        store_few(dy, x, out, length, &own, what)


cdef void results_of_spans(const stored *dy, const stored *x, stored *out, const Steps *step, Py_ssize_t count,
                           Py_ssize_t length, const Numbers *f, Py_ssize_t k, Carry *carry,
                           const formula *what) noexcept nogil:
    """The results of `count` rows, with coefficients k, k + 1, ... With `carry` they go past the cache, and after the
    last row another call with a count of 0 writes what is owed.
    """
    cdef Py_ssize_t end = k + count
    cdef Numbers own            # nothing that is written changes it
    if count == 0:
        put_owed(carry, x, what)
        return
    own = f[0]
    while k < end:
        if length < LANES or (own.any_wide and own.wide[k] != 0):
            if carry != NULL:
                put_owed(carry, x, what)
            store_any(dy, x, out, length, f, k, what)
        elif carry != NULL:
            stream_span(dy, x, out, length, f, k, what, carry)
        else:
            store_span(dy, x, out, length, &own, k, what)
        k += 1
        dy = next_row(dy, step.dy)
        x = next_row(x, step.x)
        out = <stored *>next_row(<const stored *>out, step.out)


# ---- both at once: the result of one channel and the sums of the next, line by line in turn
#
# One streams to memory while the other reads from it: apart, each would leave half of the memory system idle.

cdef inline void add_beside(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                            Py_ssize_t length, Py_ssize_t some, lanes_t center, const Coefficients *f,
                            const formula *what, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums that go with a formula: of LANES values, or of the last `some` of `length`."""
    if formula is Gradient or formula is Scaled:
        add_and_ask(dy, x, dy_ahead, x_ahead, length, some, center, f, <const Products *>NULL, s, t)
    elif formula is ClippedGradient or formula is ClippedScaled:
        add_and_ask(dy, x, dy_ahead, x_ahead, length, some, center, f, <const ClippedProducts *>NULL, s, t)
    elif formula is LeakyGradient or formula is LeakyScaled:
        add_and_ask(dy, x, dy_ahead, x_ahead, length, some, center, f, <const LeakyProducts *>NULL, s, t)
    else:
        add_and_ask(dy, x, dy_ahead, x_ahead, length, some, center, f, <const Deviations *>NULL, s, t)


cdef void results_and_sums(const stored *dy, const stored *x, stored *out, const Steps *step, Py_ssize_t count,
                           Py_ssize_t length, const Numbers *f, Py_ssize_t channel, Carry *carry,
                           const stored *next_dy, const stored *next_x, const stored *dy_after,
                           const stored *x_after, const Steps *next_step, const Center *about, Lanes *lanes,
                           Py_ssize_t apart, const formula *what) noexcept nogil:
    """The results of `count` rows, the sums of as many others. Whole lines past the cache, only.

    The rows are of one channel each, or of neighbours: then what the sums are taken about and added to stands `apart`
    bytes from that of the next.
    """
    cdef Coefficients own, before, z
    cdef lanes_t s, t, center
    cdef stored line[LANES]
    cdef Py_ssize_t row, k, i, until, near = near_end(length)
    cdef bint joined = are_joined(step, length, x, what)
    cdef int part
    cdef const stored *x_ahead
    cdef const stored *dy_ahead
    for row in range(count):
        own = coefficients_of(f, channel)
        z.act, z.gate = about.act, about.gate
        s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
        k = 0
        if joined and row > 0:
            i = share_line(dy, x, out, &before, &own, what)
        else:
            i = stream_first(dy, x, out, &own, what, carry)
        for part in range(0 if near > 0 else 1, 2):
            until, x_ahead, dy_ahead = length, x_after - near, dy_after - near
            if part == 0:
                until, x_ahead, dy_ahead = near + i, next_x + (length - near), next_dy + (length - near)
            while i + LANES <= until:
                add_beside(next_dy + k, next_x + k, dy_ahead + k, x_ahead + k, LANES, LANES, center, &z, what, &s, &t)
                k += LANES
                compute_line(dy + i, x + i, line, &own, 0, LANES, what)
                stream_lanes(out + i, line)
                i += LANES
        if not joined or row + 1 == count:
            owe(carry, dy + length, x + length, out + length, length - i, f, channel)
        before = own
        if k + LANES <= length:     # one more than there were whole lines of results
            add_beside(next_dy + k, next_x + k, dy_ahead + k, x_ahead + k, LANES, LANES, center, &z, what, &s, &t)
            k += LANES
        if k < length:
            add_beside(next_dy, next_x, dy_ahead + k, x_ahead + k, length, length - k, center, &z, what, &s, &t)
        lanes_store(lanes.s, s)
        lanes_store(lanes.t, t)
        dy, next_dy, dy_after = next_row(dy, step.dy), next_row(next_dy, next_step.dy), next_row(dy_after, next_step.dy)
        x, next_x, x_after = next_row(x, step.x), next_row(next_x, next_step.x), next_row(x_after, next_step.x)
        out = <stored *>next_row(<const stored *>out, step.out)
        lanes = <Lanes *>(<char *>lanes + apart)
        about = <const Center *>(<const char *>about + apart)
        channel += apart != 0
