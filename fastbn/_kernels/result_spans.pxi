# Results over spans: y or dx.
#
# They may take the place of x or dy, so a line is computed as a whole before it is written, and of two lines that
# overlap both are.


cdef struct Carry:
    # Past the cache, or as if, go whole lines only. Rows that follow each other in memory share a line: it is written
    # with the second. Until then the end of the first is owed.
    bint past                   # else they go by way of it after all: forward only
    bint holds                  # they are held back
    bint near                   # what is asked for because it will be summed comes soon, not later: not past the cache
    bint asks                   # what results need has left the second-level cache, and is asked for: the same
    Py_ssize_t owed             # values
    Place end                   # behind them
    const Numbers *f            # with which they are computed
    Py_ssize_t k


cdef inline Py_ssize_t values_before(const stored *out) noexcept nogil:
    """How many values of a line stand before it."""
    return <uintptr_t>out % (LANES*sizeof(stored))//sizeof(stored)


cdef inline Place last_values(const Place *at, Py_ssize_t length, stored *x_line, stored *dy_line, stored *y_line,
                              const formula *what) noexcept nogil:
    """The last LANES of `length` values that are read; of fewer, in lines, with something before them."""
    cdef Place last = at[0]
    if reads_x(what):
        last.x = <const char *>last_line(<const stored *>at.x, length, x_line)
    if reads_dy(what):
        last.dy = <const char *>last_line(<const stored *>at.dy, length, dy_line)
    if reads_y(what):
        last.y = <const char *>last_line(<const stored *>at.y, length, y_line)
    return last


cdef void store_few(const Place *at, Py_ssize_t length, const Coefficients *f, const stored *typed,
                    const formula *what) noexcept nogil:
    """Fewer than LANES results, by ordinary stores."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored y_line[LANES]
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef Place last = last_values(at, length, <stored *>x_line, <stored *>dy_line, <stored *>y_line, what)
    compute_line(&last, 0, <stored *>line, <stored *>g, f, 0, LANES, what)
    memcpy(at.out, line + LANES - length, length*sizeof(stored))
    if reads_y(what):
        memcpy(at.dresidual, g + LANES - length, length*sizeof(stored))


cdef inline void put_some(stored *out, const stored *line, Py_ssize_t count) noexcept nogil:
    """`count` values, a number that is known when this is compiled."""
    cdef Py_ssize_t k
    if count*sizeof(stored) >= 32:
        put_line(out, line, count)
    else:
        for k in range(count):
            out[k] = line[k]


cdef inline void store_some(const Place *at, Py_ssize_t i, const Coefficients *f, Py_ssize_t count,
                            const stored *typed, const formula *what) noexcept nogil:
    """`count` results."""
    cdef stored line[LANES]
    cdef stored g[LANES]
    compute_line(at, i, <stored *>line, <stored *>g, f, 0, count, what)
    put_some(<stored *>at.out + i, <const stored *>line, count)
    if reads_y(what):
        put_some(<stored *>at.dresidual + i, <const stored *>g, count)


cdef inline void put_last(stored *end, const stored *line, Py_ssize_t count) noexcept nogil:
    """The last `count` of 8 values, fewer than all, up to `end`."""
    cdef Py_ssize_t last = count & 3
    if count & 4:
        memcpy(end - count, line + 8 - count, 4*sizeof(stored))
    if count & 2:
        memcpy(end - last, line + 8 - last, 2*sizeof(stored))
    if count & 1:
        end[-1] = line[7]


cdef inline void store_last(const Place *at, Py_ssize_t length, const Coefficients *f, Py_ssize_t count,
                            const stored *typed, const formula *what) noexcept nogil:
    """The last `count` results of a row, fewer than 8, of 8 that are computed: of fewer compilers make no vectors, and
    where an activation chooses, branches, which processors guess wrong half of the time.
    """
    cdef stored line[8]
    cdef stored g[8]
    compute_line(at, length - 8, <stored *>line, <stored *>g, f, 0, 8, what)
    put_last(<stored *>at.out + length, <const stored *>line, count)
    if reads_y(what):
        put_last(<stored *>at.dresidual + length, <const stored *>g, count)


cdef inline void store_rest(const Place *at, Py_ssize_t i, Py_ssize_t length, const Coefficients *f,
                            const stored *typed, const formula *what) noexcept nogil:
    """The results from value i of a row on, where less than a line is left."""
    if length & 8:
        store_some(at, i, f, 8, typed, what)
    if length & 7:
        store_last(at, length, f, length & 7, typed, what)


cdef inline void store_span(const Place *at, Py_ssize_t length, const Numbers *f, Py_ssize_t k, const stored *typed,
                            const formula *what) noexcept nogil:
    """LANES or more by ordinary stores."""
    cdef stored last[LANES]
    cdef stored last_g[LANES]
    cdef Coefficients own = coefficients(f, k, typed, what)
    cdef Py_ssize_t i = 0, rest = length - LANES
    if is_half(typed):      # to round one value takes as long as to round LANES
        compute_line(at, rest, <stored *>last, <stored *>last_g, &own, 0, LANES, what)
    while True:                 # (there is one: compilers then convert coefficients once)
        ask_for_place(<stored *>at.out + i)
        if reads_y(what):
            ask_for_place(<stored *>at.dresidual + i)
        store_some(at, i, &own, LANES, typed, what)
        i += LANES
        if i > rest:
            break
    if is_half(typed):
        put_line(<stored *>at.out + rest, <const stored *>last, LANES)
        if reads_y(what):
            put_line(<stored *>at.dresidual + rest, <const stored *>last_g, LANES)
        return
    # No value twice: stores that cross cache lines take longer than anything else here.
    if length % LANES == 1 and not is_chosen(what):     # 7x7
        store_some(at, i, &own, 1, typed, what)
    elif length % LANES == 1:
        store_last(at, length, &own, 1, typed, what)
    elif length % LANES == 4:       # 14x14
        store_last(at, length, &own, 4, typed, what)
    elif length % LANES > 0:
        store_rest(at, i, length, &own, typed, what)


# ---- by whole lines, past the cache or as if

cdef inline void begin_carry(Carry *carry, const Call *call, bint holds, bint near, bint asks) noexcept nogil:
    carry.past, carry.owed = call.stores == PAST_CACHE, 0
    carry.holds, carry.near, carry.asks = holds, near, asks


cdef inline void ask_for_end(const char *end) noexcept nogil:
    if <uintptr_t>end % CACHE_LINE != 0:
        prefetch_line(end)


cdef inline void ask_for_ends(const Place *at, Py_ssize_t bytes, bint with_dresidual) noexcept nogil:
    """Ask for the lines that results soon share with what stands beside them: others are written without being read."""
    ask_for_end(at.out)
    ask_for_end(at.out + bytes)
    if with_dresidual:
        ask_for_end(at.dresidual)
        ask_for_end(at.dresidual + bytes)


cdef inline void stream_results(const Place *at, Py_ssize_t i, const stored *line, const stored *g, bint past,
                                const formula *what) noexcept nogil:
    if is_forward(what) and not past:
        ask_for_place(<stored *>at.out + i)
        store_lanes(<stored *>at.out + i, line)
        return
    stream_lanes(<stored *>at.out + i, line)
    if reads_y(what):
        stream_lanes(<stored *>at.dresidual + i, g)


cdef inline void stream_some(const Place *at, Py_ssize_t i, const Coefficients *f, bint past, const stored *typed,
                             const formula *what) noexcept nogil:
    """The results of a line."""
    cdef stored line[LANES]
    cdef stored g[LANES]
    compute_line(at, i, <stored *>line, <stored *>g, f, 0, LANES, what)
    stream_results(at, i, <const stored *>line, <const stored *>g, past, what)


cdef void put_owed(Carry *carry, const stored *typed, const formula *what) noexcept nogil:
    """Write what is owed by ordinary stores: no row goes on from there."""
    cdef Place at
    cdef Coefficients own
    if carry.owed > 0:
        own = coefficients(carry.f, carry.k, typed, what)
        at = shifted(&carry.end, -carry.owed*<Py_ssize_t>sizeof(stored))
        store_few(&at, carry.owed, &own, typed, what)
    carry.owed = 0


cdef inline bint follows(const Place *end, const Place *at, const formula *what) noexcept nogil:
    """Whether a row begins where another ends, in all arrays."""
    cdef bint same = end.out == at.out
    if reads_x(what):
        same = same and end.x == at.x
    if reads_dy(what):
        same = same and end.dy == at.dy
    if reads_y(what):
        same = same and end.y == at.y and end.dresidual == at.dresidual
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
    if reads_y(what):
        same = same and step.y == bytes and step.dresidual == bytes
    return same


cdef inline bint stands_before(Py_ssize_t k, Py_ssize_t count, const stored *typed) noexcept nogil:
    """k < count, in numbers that are no wider than the values, or than 32 bits: vectors of both then fit better."""
    if stored is double:
        return k < count
    else:
        return <int>k < <int>count


cdef inline Py_ssize_t share_line(const Place *at, const Coefficients *one, const Coefficients *other, bint past,
                                  const stored *typed, const formula *what) noexcept nogil:
    """Write the line in which a row ends and the next begins; how many values of the latter that took."""
    cdef stored first[LANES]
    cdef stored first_g[LANES]
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef Py_ssize_t k, missing = values_before(<const stored *>at.out)
    if missing == 0:
        return 0
    compute_line(at, -missing, <stored *>first, <stored *>first_g, one, 0, LANES, what)
    compute_line(at, -missing, <stored *>line, <stored *>g, other, 0, LANES, what)
    for k in range(LANES):
        line[k] = first[k] if stands_before(k, missing, typed) else line[k]
    stream_results(at, -missing, <const stored *>line, <const stored *>g, past, what)   # g is the same with both
    return LANES - missing


cdef inline Py_ssize_t stream_first(const Place *at, const Coefficients *f, Carry *carry, const stored *typed,
                                    const formula *what) noexcept nogil:
    """Write the line in which a row begins, together with what is owed of it; how many values of the row that took."""
    cdef Coefficients owed, own
    cdef Place here
    cdef Py_ssize_t missing = values_before(<const stored *>at.out)
    if missing > 0 and missing == carry.owed and follows(&carry.end, at, what):
        owed = coefficients(carry.f, carry.k, typed, what)
        return share_line(at, &owed, f, carry.past, typed, what)
    if carry.owed > 0:
        put_owed(carry, typed, what)
    if missing == 0:
        return 0
    own, here = f[0], needed(at, what)
    store_few(&here, LANES - missing, &own, typed, what)
    return LANES - missing


cdef inline void owe(Carry *carry, const Place *at, Py_ssize_t length, Py_ssize_t some, const Numbers *f,
                     Py_ssize_t k, const stored *typed, const formula *what) noexcept nogil:
    """The last `some` values of a row are to be written with the next."""
    cdef Place here = needed(at, what)
    carry.owed = some
    carry.end = shifted(&here, length*<Py_ssize_t>sizeof(stored))
    carry.f, carry.k = f, k


cdef inline void ask_for_values(const Place *at, Py_ssize_t i, bint later, const stored *typed,
                                const formula *what) noexcept nogil:
    """Ask for what a formula needs of the values from i on, which will be read soon, or `later`."""
    if reads_x(what):
        prefetch_lanes(<const stored *>at.x + i, later)
    if reads_dy(what):
        prefetch_lanes(<const stored *>at.dy + i, later)
    if reads_y(what):
        prefetch_lanes(<const stored *>at.y + i, later)


cdef inline Py_ssize_t stream_lines(const Place *at, Py_ssize_t i, Py_ssize_t length, const Coefficients *f, bint past,
                                    const stored *typed, const formula *what) noexcept nogil:
    """The whole lines from value i of a row on; where they end."""
    cdef Py_ssize_t rest = length - LANES
    while i <= rest:
        ask_for_values(at, i + CHUNK, False, typed, what)
        stream_some(at, i, f, past, typed, what)
        i += LANES
    return i


cdef inline void stream_span(const Place *at, Py_ssize_t length, const Numbers *f, Py_ssize_t k, Carry *carry,
                             const stored *typed, const formula *what) noexcept nogil:
    """By whole lines, past the cache or as if."""
    cdef Coefficients own = coefficients(f, k, typed, what)
    cdef Py_ssize_t i = stream_first(at, &own, carry, typed, what)
    if carry.past or not is_forward(what):
        i = stream_lines(at, i, length, &own, True, typed, what)
    else:
        i = stream_lines(at, i, length, &own, False, typed, what)
    owe(carry, at, length, length - i, f, k, typed, what)


cdef void store_any(const Place *at, Py_ssize_t length, const Numbers *f, Py_ssize_t k, const stored *typed,
                    const formula *what) noexcept nogil:
    """Few of them, or any number in float64."""
    cdef Coefficients own
    if f.wide[k] != 0:
        own = coefficients_as_float64(f, k, typed, what)
        compute_each(at, length, &own, typed, what)
    else:
        own = coefficients(f, k, typed, what)
        store_few(at, length, &own, typed, what)


cdef void results_of_spans(const Place *first, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                           const Numbers *f, Py_ssize_t k, Carry *carry, const stored *typed,
                           const formula *what) noexcept nogil:
    """The results of `count` rows, with coefficients k, k + 1, ... With `carry` they are written by whole lines, and
    after the last row put_owed() writes what is owed.
    """
    cdef Py_ssize_t end = k + count, until
    cdef Numbers own            # nothing that is written changes it
    cdef Place at, here
    own, at = f[0], first[0]
    while k < end:
        until = k + 1 if own.any_wide else end      # where no channel is wide, nothing is asked for again
        if length < LANES or (own.any_wide and own.wide[k] != 0):
            if carry != NULL:
                put_owed(carry, typed, what)
            while k < until:
                here = needed(&at, what)
                store_any(&here, length, f, k, typed, what)
                k += 1
                at = moved(&at, step)
        elif carry != NULL:
            while k < until:
                stream_span(&at, length, f, k, carry, typed, what)
                k += 1
                at = moved(&at, step)
        else:
            while k < until:
                store_span(&at, length, &own, k, typed, what)
                k += 1
                at = moved(&at, step)


# ---- both at once: the result of one channel and the sums of the next, line by line in turn, or row by row
#
# One streams to memory while the other reads from it: apart, each would leave half of the memory system idle.

cdef enum:
    LINE_BY_LINE = 96       # values of a short row, from which on see goes_line_by_line()
    JOIN_AHEAD = 1024       # values of a residual in longer rows, from what is added to what is asked for


cdef inline void add_beside(const Place *at, Py_ssize_t i, Py_ssize_t length, lanes_t center, const Coefficients *f,
                            const stored *typed, const formula *what, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums that go with a formula: of LANES values from i on, or with a length of fewer, up to there."""
    if formula is Gradient or formula is Scaled:
        add_some(at, i, length, center, f, typed, <const Products *>NULL, s, t)
    elif formula is ClippedGradient or formula is ClippedScaled:
        add_some(at, i, length, center, f, typed, <const ClippedProducts *>NULL, s, t)
    elif formula is LeakyGradient or formula is LeakyScaled:
        add_some(at, i, length, center, f, typed, <const LeakyProducts *>NULL, s, t)
    elif is_clipped_join(what):
        add_some(at, i, length, center, f, typed, <const ClippedJoinProducts *>NULL, s, t)
    elif is_leaky_join(what):
        add_some(at, i, length, center, f, typed, <const LeakyJoinProducts *>NULL, s, t)
    elif is_undone(what):
        add_some(at, i, length, center, f, typed, <const UndoneProducts *>NULL, s, t)
    else:
        add_some(at, i, length, center, f, typed, <const Deviations *>NULL, s, t)


cdef inline void ask_beside(const Place *ahead, Py_ssize_t i, bint later, const stored *typed,
                            const formula *what) noexcept nogil:
    """Ask for what will be summed soon, or `later`, and for a residual, which is read with the results."""
    prefetch_lanes(<const stored *>ahead.x + i, later)
    if reads_dy(what):
        prefetch_lanes(<const stored *>ahead.dy + i, later or is_forward(what))
    if reads_y(what):
        prefetch_lanes(<const stored *>ahead.y + i, later)


cdef inline Py_ssize_t sweep_lines(const Place *out, Py_ssize_t i, Py_ssize_t length, const Coefficients *own,
                                   const Place *at, const Place *soon, lanes_t center, const Coefficients *z,
                                   bint past, bint holds, bint near, bint asks, const stored *typed,
                                   const formula *what, lanes_t *s, lanes_t *t) noexcept nogil:
    """Whole lines of results, from value i of one row on, each with the sums of as many values of the other, from its
    first on; where they end.
    """
    cdef Py_ssize_t rest = length - LANES, k = 0
    while i <= rest:
        add_beside(at, k, 0, center, z, typed, what, s, t)
        if formula is not LeakyGradient and formula is not LeakyScaled:     # those need too many others
            lanes_in_registers(s)
            lanes_in_registers(t)
        if holds:
            hold_back(not is_forward(what))
        ask_beside(soon, k, not near, typed, what)
        k += LANES
        if asks:
            ask_for_values(out, i + CHUNK, False, typed, what)
        stream_some(out, i, own, past, typed, what)
        i += LANES
    return i


cdef inline Py_ssize_t sweep_past(const Place *out, Py_ssize_t i, Py_ssize_t length, const Coefficients *own,
                                  const Carry *carry, const Place *at, const Place *soon, lanes_t center,
                                  const Coefficients *z, const stored *typed, const formula *what, lanes_t *s,
                                  lanes_t *t) noexcept nogil:
    """The whole lines of a row, past the cache."""
    if carry.holds and is_light(typed, what):
        return sweep_lines(out, i, length, own, at, soon, center, z, True, True, False, False, typed, what, s, t)
    return sweep_lines(out, i, length, own, at, soon, center, z, True, False, False, False, typed, what, s, t)


cdef inline Py_ssize_t sweep_row(const Place *out, Py_ssize_t i, Py_ssize_t length, const Coefficients *own,
                                 const Carry *carry, const Place *at, const Place *soon, lanes_t center,
                                 const Coefficients *z, const stored *typed, const formula *what, lanes_t *s,
                                 lanes_t *t) noexcept nogil:
    """The whole lines of a row, in the loop that this call wants: a backward is always past the cache."""
    if not is_forward(what) or carry.past:
        return sweep_past(out, i, length, own, carry, at, soon, center, z, typed, what, s, t)
    if carry.near and carry.asks:
        return sweep_lines(out, i, length, own, at, soon, center, z, False, False, True, True, typed, what, s, t)
    if carry.near:
        return sweep_lines(out, i, length, own, at, soon, center, z, False, False, True, False, typed, what, s, t)
    if carry.asks:
        return sweep_lines(out, i, length, own, at, soon, center, z, False, False, False, True, typed, what, s, t)
    return sweep_lines(out, i, length, own, at, soon, center, z, False, False, False, False, typed, what, s, t)


cdef inline Py_ssize_t streamed_length(const Place *at, Py_ssize_t i, Py_ssize_t length,
                                       const stored *typed) noexcept nogil:
    """Up to where the lines of a row from value i on may be streamed: of a half type, which is streamed by half lines,
    not a last one that shares its line with what is owed behind it.

    An ordinary store into a line of which a half was just streamed waits for memory (Zen 4: 190 ns).
    """
    cdef Py_ssize_t end = i + (length - i)//LANES*LANES
    if is_half(typed) and i < end < length and <uintptr_t>(<stored *>at.out + end) % CACHE_LINE == 32:
        return length - LANES
    return length


cdef void store_line_of(Place at, Py_ssize_t i, const Numbers *f, const stored *typed,
                        const formula *what) noexcept nogil:
    """LANES results from value i on, by ordinary stores. (Nothing is taken by address that the loops before it use:
    compilers would read it again after each store.)
    """
    cdef Coefficients own = coefficients(f, 0, typed, what)
    at = shifted(&at, i*<Py_ssize_t>sizeof(stored))
    at = needed(&at, what)
    store_few(&at, LANES, &own, typed, what)


cdef void results_and_sums(const Place *due, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                           const Numbers *f, Carry *carry, const Place *first, const Steps *ahead,
                           const Steps *next_step, const Center *about, Folds *folds, const stored *typed,
                           const formula *what) noexcept nogil:
    """The results of `count` rows of one channel, the sums of as many of another: by whole lines, only."""
    cdef Coefficients own = coefficients(f, 0, typed, what), z
    cdef lanes_t s = lanes_load(folds.lanes.s), t = lanes_load(folds.lanes.t), center = lanes_all(about.center)
    cdef Py_ssize_t row, k, i, start
    cdef Place out = due[0], at = first[0], soon, following
    z.act, z.gate = own.act, about.gate
    for row in range(count):
        soon, following = moved(&at, ahead), moved(&out, step)
        ask_for_ends(&following, length*<Py_ssize_t>sizeof(stored), reads_y(what))
        start = stream_first(&out, &own, carry, typed, what)
        if is_forward(what):    # a residual: of this row; where rows are short, of the channel that is due next
            soon.dy = at.dy if length <= JOIN_AHEAD else out.dy + (start + JOIN_AHEAD)*<Py_ssize_t>sizeof(stored)
        i = sweep_row(&out, start, streamed_length(&out, start, length, typed), &own, carry, &at, &soon, center, &z,
                      typed, what, &s, &t)
        k = i - start
        if is_half(typed) and i + LANES <= length:
            store_line_of(out, i, f, typed, what)
            i += LANES
        owe(carry, &out, length, length - i, f, 0, typed, what)
        while k + LANES <= length:      # one or two more than whole lines of results were streamed
            add_beside(&at, k, 0, center, &z, typed, what, &s, &t)
            ask_beside(&soon, k, True, typed, what)
            k += LANES
        if k < length:
            add_beside(&at, k, length, center, &z, typed, what, &s, &t)
            ask_beside(&soon, k, True, typed, what)
        out, at = moved(&out, step), moved(&at, next_step)
        folds.left -= 1
        if folds.left == 0:
            end_fold(folds, s, t)
            s = t = lanes_all(0)
    lanes_store(folds.lanes.s, s)
    lanes_store(folds.lanes.t, t)


cdef inline bint goes_line_by_line(Py_ssize_t length, const formula *what) noexcept nogil:
    """Whether results and sums of short rows take turns line by line, not row by row. Other formulas need more
    registers than there are; shorter rows have too few lines.
    """
    return length >= LINE_BY_LINE and (is_forward(what) or formula is Gradient)


cdef void results_and_sums_of_neighbours(const Place *due, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                                         const Numbers *f, Carry *carry, const Place *first, const Steps *ahead,
                                         const Center *about, Lanes *lanes, Py_ssize_t stride, const stored *typed,
                                         const formula *what) noexcept nogil:
    """The same for a short row of each of `count` neighbours. What a channel's sums are taken about and added to stands
    `stride` bytes from that of the next.
    """
    cdef Coefficients own, last, z
    cdef lanes_t s, t, center
    cdef Py_ssize_t channel, k, i, start
    cdef bint joined = are_joined(step, length, typed, what)
    cdef Place out = due[0], at = first[0], soon
    cdef Numbers numbers = f[0]     # nothing that is written changes it
    cdef Py_ssize_t rest = length - LANES
    for channel in range(count):
        own = coefficients(&numbers, channel, typed, what)
        z.act, z.gate = own.act, about.gate
        soon = moved(&at, ahead)
        if is_forward(what):    # a residual: of the group that is due next
            soon.dy = at.dy
        k = 0
        if joined and channel > 0:
            last = coefficients(&numbers, channel - 1, typed, what)
            last.act = own.act      # that of all: compilers do not know, and would compute all of it twice
            i = share_line(&out, &last, &own, True, typed, what)
        else:
            i = stream_first(&out, &own, carry, typed, what)
        if goes_line_by_line(length, what):
            s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
            start = i
            i = sweep_past(&out, i, length, &own, carry, &at, &soon, center, &z, typed, what, &s, &t)
            k = i - start
        else:
            while i <= rest:
                stream_some(&out, i, &own, True, typed, what)
                i += LANES
            s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
        if not joined or channel + 1 == count:
            owe(carry, &out, length, length - i, f, channel, typed, what)
        while k <= rest:
            add_beside(&at, k, 0, center, &z, typed, what, &s, &t)
            ask_beside(&soon, k, True, typed, what)
            k += LANES
        if k < length:
            add_beside(&at, k, length, center, &z, typed, what, &s, &t)
            ask_beside(&soon, k, True, typed, what)
        lanes_store(lanes.s, s)
        lanes_store(lanes.t, t)
        out, at = moved(&out, step), moved(&at, step)
        lanes = <Lanes *>(<char *>lanes + stride)
        about = <const Center *>(<const char *>about + stride)
