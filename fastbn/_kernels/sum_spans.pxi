# Sums over spans: runs of values of one channel.

cdef enum:
    SOON = 512              # values, at which long rows are asked for before they are summed


cdef struct Lanes:
    double s[LANES]
    double t[LANES]


cdef struct Center:             # what sums are taken about, and where there is an activation where that changes
    double center
    Activation act
    Gate gate


cdef struct Centers:            # the same of some channels
    const double *center
    const Gate *gates           # NULL: there are none
    Activation act


cdef inline void clear_lanes(Lanes *lanes) noexcept nogil:
    """(Not by memset: what compilers make of it takes longer than the sums of a short row.)"""
    lanes_store(lanes.s, lanes_all(0))
    lanes_store(lanes.t, lanes_all(0))


cdef inline void add_and_ask(const Place *at, const Place *ahead, Py_ssize_t i, lanes_t center,
                             const Coefficients *f, const stored *typed, const summed *of, lanes_t *s,
                             lanes_t *t) noexcept nogil:
    """The sums of LANES values from i on. What stands `ahead` is asked for."""
    cdef const stored *x = <const stored *>at.x
    cdef const stored *dy = <const stored *>at.dy
    cdef const stored *y = <const stored *>at.y
    ask_for_line(<const stored *>ahead.dy + i, <const stored *>ahead.x + i, <const stored *>ahead.y + i, of)
    add_line(dy + i, x + i, y + i, center, f, 0, of, s, t)


cdef inline void add_end(const Place *at, const Place *ahead, Py_ssize_t i, Py_ssize_t length, lanes_t center,
                         const Coefficients *f, const stored *typed, const summed *of, lanes_t *s,
                         lanes_t *t) noexcept nogil:
    """The same of fewer values from i on, up to the end of a row."""
    cdef const stored *x = <const stored *>at.x
    cdef const stored *dy = <const stored *>at.dy
    cdef const stored *y = <const stored *>at.y
    ask_for_line(<const stored *>ahead.dy + i, <const stored *>ahead.x + i, <const stored *>ahead.y + i, of)
    add_last(dy, x, y, length, length - i, center, f, 0, of, s, t)


cdef inline void add_some(const Place *at, const Place *ahead, Py_ssize_t i, Py_ssize_t length, lanes_t center,
                          const Coefficients *f, const stored *typed, const summed *of, lanes_t *s,
                          lanes_t *t) noexcept nogil:
    """add_end(), or with a length of 0, which is known when this is compiled, add_and_ask()."""
    if length == 0:
        add_and_ask(at, ahead, i, center, f, typed, of, s, t)
    else:
        add_end(at, ahead, i, length, center, f, typed, of, s, t)


cdef inline Py_ssize_t near_end(Py_ssize_t length) noexcept nogil:
    """Of a long row, up to where what comes SOON is still in the row, in whole lines."""
    return (length - SOON)//LANES*LANES if length > SOON else 0


cdef inline Place ahead_of(const Place *at, const Steps *ahead, Py_ssize_t length, Py_ssize_t near, int part,
                           const stored *typed) noexcept nogil:
    """What is asked for: in the first part of a long row, up to `near`, the rest of it, else what is `ahead`."""
    cdef Place to = moved(at, ahead)
    if part == 0:
        return shifted(at, (length - near)*<Py_ssize_t>sizeof(stored))
    return shifted(&to, -near*<Py_ssize_t>sizeof(stored))


cdef inline void add_row(const Place *at, const Steps *ahead, Py_ssize_t length, Py_ssize_t near, lanes_t center,
                         const Coefficients *f, const stored *typed, const summed *of, lanes_t *s,
                         lanes_t *t) noexcept nogil:
    """The sums of a row. Up to `near` what comes later in it is asked for, then what is `ahead`."""
    cdef Py_ssize_t i = 0, end = length//LANES*LANES, rest
    cdef int part
    cdef Place soon
    if length < LANES:
        soon = moved(at, ahead)
        add_end(at, &soon, 0, length, center, f, typed, of, s, t)
        return
    for part in range(0 if near > 0 else 1, 2):
        rest = (end if part else near) - LANES
        soon = ahead_of(at, ahead, length, near, part, typed)
        while True:             # there is a line in either part
            add_and_ask(at, &soon, i, center, f, typed, of, s, t)
            i += LANES
            if i > rest:
                break
    if end < length:            # (not i, which compilers do not know to be the same for all rows)
        add_end(at, &soon, end, length, center, f, typed, of, s, t)


cdef inline void add_rows(const Place *first, const Steps *ahead, const Steps *step, Py_ssize_t count,
                          Py_ssize_t length, Py_ssize_t near, lanes_t center, const Coefficients *f,
                          const stored *typed, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of `count` rows."""
    cdef Place at = first[0]
    cdef Py_ssize_t row
    for row in range(count):
        add_row(&at, ahead, length, near, center, f, typed, of, s, t)
        at = moved(&at, step)


cdef void sums_of_spans(const Place *first, const Steps *ahead, const Steps *step, Py_ssize_t count,
                        Py_ssize_t length, const Center *about, Lanes *lanes, const stored *typed,
                        const summed *of) noexcept nogil:
    """Add `count` rows of one channel to its lanes. What is so far `ahead` of each is asked for meanwhile."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), center = lanes_all(about.center)
    cdef Coefficients own
    own.act, own.gate = about.act, about.gate
    add_rows(first, ahead, step, count, length, near_end(length), center, &own, typed, of, &s, &t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void sums_of_neighbours(const Place *first, const Steps *sample, const Steps *neighbour, const Steps *ahead,
                             Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t length, const Center *about,
                             Lanes *lanes, Py_ssize_t apart, const stored *typed, const summed *of) noexcept nogil:
    """Add `rows` short rows of each of some channels to its lanes. The neighbour's are asked for meanwhile, with those
    of the last channel what is so far `ahead`. What a channel's sums are taken about and added to stands `apart` bytes
    from that of the next.
    """
    cdef lanes_t s, t, center
    cdef Coefficients own
    cdef Steps soon
    cdef Py_ssize_t k
    cdef Place channel = first[0]
    for k in range(channels):
        s, t, center = lanes_load(lanes.s), lanes_load(lanes.t), lanes_all(about.center)
        own.act, own.gate = about.act, about.gate
        soon = neighbour[0] if k + 1 < channels else ahead[0]
        add_rows(&channel, &soon, sample, rows, length, 0, center, &own, typed, of, &s, &t)
        lanes_store(lanes.s, s)
        lanes_store(lanes.t, t)
        channel = moved(&channel, neighbour)
        lanes = <Lanes *>(<char *>lanes + apart)
        about = <const Center *>(<const char *>about + apart)


cdef void sums_of_channels(const Place *first, const Steps *sample, const Steps *neighbour, Py_ssize_t channels,
                           Py_ssize_t rows, Py_ssize_t length, const Centers *about, double *s_of, double *t_of,
                           const stored *typed, const summed *of) noexcept nogil:
    """The sums of some channels, of `rows` rows each. The neighbour's are asked for meanwhile."""
    cdef lanes_t s, t, center
    cdef Coefficients own
    cdef Py_ssize_t k
    cdef Place channel = first[0]
    own.act = about.act
    for k in range(channels):
        if about.gates != NULL:
            own.gate = about.gates[k]
        s = t = lanes_all(0)
        center = lanes_all(about.center[k])
        add_rows(&channel, neighbour, sample, rows, length, 0, center, &own, typed, of, &s, &t)
        lanes_sums(s, t, &s_of[k], &t_of[k])
        channel = moved(&channel, neighbour)
