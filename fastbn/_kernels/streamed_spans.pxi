# y or dx of spans by whole lines, past the cache or as if.

cdef enum:
    SPANS_AHEAD = 512           # values from what is computed to what is asked for
    TWO_SPANS_AHEAD = 64        # the same in each of two rows
    CLOSE = 128                 # bytes, see bytes_behind()
    TURNED = 4                  # lines that go from the last to the first then: a power of 2


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


# ---- lines in another order

cdef inline Py_ssize_t nearer(Py_ssize_t nearest, const char *out, const char *read) noexcept nogil:
    """That, if it is nearer, or as near but before."""
    cdef Py_ssize_t behind = bytes_from(read, out)
    if behind != 0 and max(behind, -behind) < max(nearest, -nearest) + (behind < 0):
        return behind
    return nearest


cdef inline Py_ssize_t bytes_behind(const Place *at, const formula *what) noexcept nogil:
    """How closely results stand behind what is read; 0: not closely, or as closely before it.

    A processor that looks at offsets alone takes what it reads next for what was written just before, and waits until
    that has been computed; longest where a vector that it reads seems to have been written as parts of two. (Zen 4:
    training took up to 3 times as long, inference up to 2.5, channels-last 1.5, now 1.0 to 1.3.)
    """
    cdef Py_ssize_t nearest = CLOSE
    if reads_x(what):
        nearest = nearer(nearest, at.out, at.x)
    if reads_dy(what):
        nearest = nearer(nearest, at.out, at.dy)
    if reads_y(what):
        nearest = nearer(nearest, at.out, at.y)
        nearest = nearer(nearest, at.dresidual, at.x)
        nearest = nearer(nearest, at.dresidual, at.dy)
        nearest = nearer(nearest, at.dresidual, at.y)
    return nearest if 0 < nearest < CLOSE else 0


cdef inline bint turns_lines(const Place *at, const formula *what) noexcept nogil:
    """Whether lines are taken in another order for that. (With vectors of 128 bits rows take 1.0 to 1.1 times as long
    then.)
    """
    return VECTOR > 16 and bytes_behind(at, what) > 0


cdef inline Py_ssize_t lines_to_turn(Py_ssize_t length) noexcept nogil:
    """How many values are taken in another order."""
    return length//(TURNED*LANES)*(TURNED*LANES)


cdef inline Py_ssize_t line_in_turn(Py_ssize_t i, Py_ssize_t turned) noexcept nogil:
    """Which line is taken when it would be that at i. Of the first `turned` values the last of TURNED lines goes first.
    """
    return i ^ (TURNED - 1)*LANES if i < turned else i


cdef inline Py_ssize_t line_of_row_in_turn(Py_ssize_t i, Py_ssize_t length) noexcept nogil:
    """The same in a row of so many values, where of the lines that are left the last goes first, too: those of 7x7 are
    all left.
    """
    cdef Py_ssize_t turned = lines_to_turn(length)
    return line_in_turn(i, turned) if i < turned else turned + length - LANES - i


cdef inline Py_ssize_t stream_lines(const Place *at, const Place *other, bint two, Py_ssize_t i, Py_ssize_t length,
                                    const Coefficients *f, bint past, bint turns, const stored *typed,
                                    const formula *what) noexcept nogil:
    """The whole lines from value i of a row on, with `two` in turn with those of the other; where they end."""
    cdef Py_ssize_t ahead = TWO_SPANS_AHEAD if two else SPANS_AHEAD
    cdef Py_ssize_t k, line_at, lines = (length - i)//LANES
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef stored other_line[LANES]
    cdef stored other_g[LANES]
    for k in range(lines):
        ask_for_values(at, i + k*LANES + ahead, False, typed, what)
        if two:
            ask_for_values(other, i + k*LANES + ahead, False, typed, what)
        line_at = i + (line_of_row_in_turn(k*LANES, lines*LANES) if turns else k*LANES)
        compute_line(at, line_at, <stored *>line, <stored *>g, f, 0, LANES, what)
        if two:
            compute_line(other, line_at, <stored *>other_line, <stored *>other_g, f, 0, LANES, what)
        stream_results(at, line_at, <const stored *>line, <const stored *>g, past, what)
        if two:
            stream_results(other, line_at, <const stored *>other_line, <const stored *>other_g, past, what)
    return i + lines*LANES


cdef inline void stream_span(const Place *at, const Place *other, bint two, Py_ssize_t length, const Numbers *f,
                             Py_ssize_t k, Carry *carry, const stored *typed, const formula *what) noexcept nogil:
    """By whole lines, past the cache or as if. With `two` another row of the channel, too, where the LANES of the
    result begin as here: there is a second carry then.
    """
    cdef Coefficients own = coefficients(f, k, typed, what)
    cdef Py_ssize_t i = stream_first(at, &own, carry, typed, what)
    if two:
        stream_first(other, &own, carry + 1, typed, what)
    if is_forward(what) and not (two or carry.past):
        i = stream_lines(at, other, two, i, length, &own, False, False, typed, what)
    elif not two and turns_lines(at, what):     # (two samples begin where results do not stand so)
        i = stream_lines(at, other, two, i, length, &own, True, True, typed, what)
    else:
        i = stream_lines(at, other, two, i, length, &own, True, False, typed, what)
    owe(carry, at, length, length - i, f, k, typed, what)
    if two:
        owe(carry + 1, other, length, length - i, f, k, typed, what)
