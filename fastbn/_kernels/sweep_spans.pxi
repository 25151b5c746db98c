# Results of spans and sums of others at once: of one channel and of the next, line by line in turn, or row by row.
#
# One streams to memory while the other reads from it: apart, each would leave half of the memory system idle.

cdef enum:
    JOIN_AHEAD = 1024       # values of a residual in longer rows, from what is added to what is asked for


cdef enum:                  # how lines are swept: see Carry and turns_sweep()
    GOES_PAST = 1
    HOLDS_BACK = 2
    IS_NEAR = 4
    ASKS_TOO = 8
    TURNS = 16


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
                                   int how, const Notes *notes, const stored *typed, const formula *what, lanes_t *s,
                                   lanes_t *t) noexcept nogil:
    """Whole lines of results, from value i of one row on, each with the sums of as many values of the other, from its
    first on; where they end. (`how` is a constant: there is a loop for each that is used.)
    """
    cdef Py_ssize_t rest = length - LANES, first = i, end = (length - i)//LANES*LANES, k = 0
    cdef Notes note
    if has_notes(notes, typed, what):
        note = notes[0]
    while i <= rest:
        if has_notes(notes, typed, what):
            add_and_note(at, k, z, note.left, s, t)
        else:
            add_beside(at, k, 0, center, z, typed, what, s, t)
        if formula is not LeakyGradient and formula is not LeakyScaled:     # those need too many others
            lanes_in_registers(s)
            lanes_in_registers(t)
        if how & HOLDS_BACK:
            hold_back(not is_forward(what))
        ask_beside(soon, k, not how & IS_NEAR, typed, what)
        if how & ASKS_TOO:
            ask_for_values(out, i + SPANS_AHEAD, False, typed, what)
        if has_notes(notes, typed, what):
            stream_by_note(out, i, own, note.read, what)
        elif how & TURNS:
            stream_some(out, first + line_of_row_in_turn(k, end), own, True, typed, what)
        else:
            stream_some(out, i, own, how & GOES_PAST, typed, what)
        k += LANES
        i += LANES
    return i


cdef inline bint turns_sweep(const Place *at, const formula *what) noexcept nogil:
    """Whether lines are taken in another order, see bytes_behind(): in forwards, where lines are cut. (With loops for
    both orders in one function a backward takes up to 1.1 times as long at all offsets.)
    """
    return is_forward(what) and turns_lines(at, what) and bytes_behind(at, what) % CACHE_LINE != 0


cdef inline Py_ssize_t sweep_past(const Place *out, Py_ssize_t i, Py_ssize_t length, const Coefficients *own,
                                  const Carry *carry, const Place *at, const Place *soon, lanes_t center,
                                  const Coefficients *z, const Notes *notes, const stored *typed, const formula *what,
                                  lanes_t *s, lanes_t *t) noexcept nogil:
    """The whole lines of a row, past the cache."""
    cdef bint holds = carry.holds and is_light(typed, what)
    if has_notes(notes, typed, what):
        return sweep_lines(out, i, length, own, at, soon, center, z, GOES_PAST, notes, typed, what, s, t)
    if not turns_sweep(out, what):
        if holds:
            return sweep_lines(out, i, length, own, at, soon, center, z, GOES_PAST|HOLDS_BACK, NULL, typed, what, s, t)
        return sweep_lines(out, i, length, own, at, soon, center, z, GOES_PAST, NULL, typed, what, s, t)
    if holds:
        return sweep_lines(out, i, length, own, at, soon, center, z, TURNS|GOES_PAST|HOLDS_BACK, NULL, typed, what, s,
                           t)
    return sweep_lines(out, i, length, own, at, soon, center, z, TURNS|GOES_PAST, NULL, typed, what, s, t)


cdef inline Py_ssize_t sweep_row(const Place *out, Py_ssize_t i, Py_ssize_t length, const Coefficients *own,
                                 const Carry *carry, const Place *at, const Place *soon, lanes_t center,
                                 const Coefficients *z, const Notes *notes, const stored *typed, const formula *what,
                                 lanes_t *s, lanes_t *t) noexcept nogil:
    """The whole lines of a row, in the loop that this call wants: a backward is always past the cache."""
    if not is_forward(what) or carry.past:
        return sweep_past(out, i, length, own, carry, at, soon, center, z, notes, typed, what, s, t)
    if carry.near and carry.asks:
        return sweep_lines(out, i, length, own, at, soon, center, z, IS_NEAR|ASKS_TOO, NULL, typed, what, s, t)
    if carry.near:
        return sweep_lines(out, i, length, own, at, soon, center, z, IS_NEAR, NULL, typed, what, s, t)
    if carry.asks:
        return sweep_lines(out, i, length, own, at, soon, center, z, ASKS_TOO, NULL, typed, what, s, t)
    return sweep_lines(out, i, length, own, at, soon, center, z, 0, NULL, typed, what, s, t)


cdef inline void add_rest(const Place *at, Py_ssize_t k, Py_ssize_t length, const Place *soon, lanes_t center,
                          const Coefficients *z, const stored *typed, const formula *what, lanes_t *s,
                          lanes_t *t) noexcept nogil:
    """The sums of a row from value k on: results have fewer whole lines."""
    cdef Py_ssize_t rest = length - LANES
    while k <= rest:
        add_beside(at, k, 0, center, z, typed, what, s, t)
        ask_beside(soon, k, True, typed, what)
        k += LANES
    if k < length:
        add_beside(at, k, length, center, z, typed, what, s, t)
        ask_beside(soon, k, True, typed, what)


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
                           const Steps *next_step, const Center *about, Folds *folds, const Notes *notes,
                           const stored *typed, const formula *what) noexcept nogil:
    """The results of `count` rows of one channel, the sums of as many of another: by whole lines, only."""
    cdef Coefficients own = coefficients(f, 0, typed, what), z
    cdef lanes_t s = lanes_load(folds.lanes.s), t = lanes_load(folds.lanes.t), center = lanes_all(about.center)
    cdef Py_ssize_t row, k, i, start
    cdef Place out = due[0], at = first[0], soon, following
    cdef Notes note
    if has_notes(notes, typed, what):
        note = notes[0]
    z.act, z.gate = own.act, about.gate
    for row in range(count):
        soon, following = moved(&at, ahead), moved(&out, step)
        ask_for_ends(&following, length*<Py_ssize_t>sizeof(stored), reads_y(what))
        start = stream_first(&out, &own, carry, typed, what)
        if is_forward(what):    # a residual: of this row; where rows are short, of the channel that is due next
            soon.dy = at.dy if length <= JOIN_AHEAD else out.dy + (start + JOIN_AHEAD)*<Py_ssize_t>sizeof(stored)
        i = sweep_row(&out, start, streamed_length(&out, start, length, typed), &own, carry, &at, &soon, center, &z,
                      &note if has_notes(notes, typed, what) else NULL, typed, what, &s, &t)
        k = i - start
        if is_half(typed) and i + LANES <= length:
            store_line_of(out, i, f, typed, what)
            i += LANES
        owe(carry, &out, length, length - i, f, 0, typed, what)
        add_rest(&at, k, length, &soon, center, &z, typed, what, &s, &t)
        if has_notes(notes, typed, what):
            note_values(&at, k, length, &z.act, note.left)
            note.left += note.left_step
            note.read += note.read_step
        out, at = moved(&out, step), moved(&at, next_step)
        folds.left -= 1
        if folds.left == 0:
            end_fold(folds, s, t)
            s = t = lanes_all(0)
    lanes_store(folds.lanes.s, s)
    lanes_store(folds.lanes.t, t)


cdef inline bint gains_beside_sums(const formula *what) noexcept nogil:
    """Whether results of short rows take less time beside the sums of others than right after their own, while a
    second-level cache holds their group: forwards line by line, those of many lines, and the backward behind a
    residual row by row, that of few.

    (Zen 4, one thread and two, arrays of 12 to 150 MB. Right after their sums forwards with a residual take .7 to .95
    of the time, those with a slope .85 to 1.0, those on less than 96 values .85 to 1.0, on more 1.0 to 1.2;
    backwards .75 to 1.0, but behind a residual, where five arrays are read or written, 7x7 1.1 to 1.4 and 14x14 .9 to
    1.2, longer rows .8 to 1.0.)
    """
    return formula is Normalized or formula is Clipped or reads_y(what)


cdef inline Py_ssize_t stream_first_of(Py_ssize_t channel, const Place *at, const Numbers *f, const Coefficients *own,
                                       bint joined, Carry *carry, const stored *typed,
                                       const formula *what) noexcept nogil:
    """stream_first() for a channel's row. Where rows are `joined`, that of the channel before it ends there."""
    cdef Coefficients last
    if joined and channel > 0:
        last = coefficients(f, channel - 1, typed, what)
        last.act = own.act      # that of all: compilers do not know, and would compute all of it twice
        return share_line(at, &last, own, True, typed, what)
    return stream_first(at, own, carry, typed, what)


cdef void results_and_sums_of_neighbours(const Place *due, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                                         const Numbers *f, Carry *carry, const Place *first, const Steps *ahead,
                                         const Center *about, Lanes *lanes, Py_ssize_t stride, const stored *typed,
                                         const formula *what) noexcept nogil:
    """The same for a short row of each of `count` neighbours, see gains_beside_sums(). What a channel's sums are taken
    about and added to stands `stride` bytes from that of the next.
    """
    cdef Coefficients own, z
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
        k = 0
        i = stream_first_of(channel, &out, &numbers, &own, joined, carry, typed, what)
        if is_forward(what):
            s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
            start = i
            i = sweep_past(&out, i, length, &own, carry, &at, &soon, center, &z, NULL, typed, what, &s, &t)
            k = i - start
        else:
            while i <= rest:
                stream_some(&out, i, &own, True, typed, what)
                i += LANES
            s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
        if not joined or channel + 1 == count:
            owe(carry, &out, length, length - i, f, channel, typed, what)
        add_rest(&at, k, length, &soon, center, &z, typed, what, &s, &t)
        lanes_store(lanes.s, s)
        lanes_store(lanes.t, t)
        out, at = moved(&out, step), moved(&at, step)
        lanes = <Lanes *>(<char *>lanes + stride)
        about = <const Center *>(<const char *>about + stride)
