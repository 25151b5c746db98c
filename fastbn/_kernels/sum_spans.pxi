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


cdef inline void add_and_ask(const Place *at, const Place *ahead, Py_ssize_t i, Py_ssize_t length, Py_ssize_t some,
                             lanes_t center, const Coefficients *f, const stored *typed, const summed *of, lanes_t *s,
                             lanes_t *t) noexcept nogil:
    """The sums of LANES values from i on, or of the last `some` of `length`. What stands `ahead` is asked for."""
    cdef const stored *x = <const stored *>at.x
    cdef const stored *dy = <const stored *>at.dy
    cdef const stored *y = <const stored *>at.y
    ask_for_line(<const stored *>ahead.dy + i, <const stored *>ahead.x + i, <const stored *>ahead.y + i, of)
    if some == LANES:
        add_line(dy + i, x + i, y + i, center, f, 0, of, s, t)
    else:
        add_last(dy, x, y, length, some, center, f, 0, of, s, t)


cdef inline Py_ssize_t near_end(Py_ssize_t length) noexcept nogil:
    """Of a long row, up to where what comes SOON is still in the row, in whole lines."""
    return (length - SOON)//LANES*LANES if length > SOON else 0


cdef inline Place ahead_of(const Place *at, const Place *after, Py_ssize_t length, int part,
                           const stored *typed) noexcept nogil:
    """What comes SOON: in the first part of a long row the rest of it, else what comes `after`."""
    cdef Py_ssize_t near = near_end(length)
    if part == 0:
        return shifted(at, (length - near)*<Py_ssize_t>sizeof(stored))
    return shifted(after, -near*<Py_ssize_t>sizeof(stored))


cdef inline void add_rows(const Place *first, const Place *first_after, const Steps *step, Py_ssize_t count,
                          Py_ssize_t length, lanes_t center, const Coefficients *f, const stored *typed,
                          const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of `count` rows of one channel. After the first row come others."""
    cdef Py_ssize_t i, row, until, near = near_end(length)
    cdef int part
    cdef Place at = first[0], after = first_after[0], ahead
    for row in range(count):
        i = 0
        for part in range(0 if near > 0 else 1, 2):
            until = length if part else near
            ahead = ahead_of(&at, &after, length, part, typed)
            while i + LANES <= until:
                add_and_ask(&at, &ahead, i, LANES, LANES, center, f, typed, of, s, t)
                i += LANES
        if i < length:
            add_and_ask(&at, &ahead, i, length, length - i, center, f, typed, of, s, t)
        at, after = moved(&at, step), moved(&after, step)


cdef void sums_of_spans(const Place *at, const Place *after, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                        const Center *about, Lanes *lanes, const stored *typed, const summed *of) noexcept nogil:
    """Add `count` rows of one channel to its lanes."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t)
    cdef Coefficients own
    own.act, own.gate = about.act, about.gate
    add_rows(at, after, step, count, length, lanes_all(about.center), &own, typed, of, &s, &t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void sums_of_channels(const Place *first, const Steps *sample, const Steps *neighbour, Py_ssize_t channels,
                           Py_ssize_t rows, Py_ssize_t length, const Centers *about, double *s_of, double *t_of,
                           const stored *typed, const summed *of) noexcept nogil:
    """The sums of some channels, of `rows` rows each."""
    cdef lanes_t s, t
    cdef Coefficients own
    cdef Py_ssize_t k
    cdef Place at = first[0], next_channel
    own.act = about.act
    for k in range(channels):
        next_channel = moved(&at, neighbour)
        if about.gates != NULL:
            own.gate = about.gates[k]
        s = t = lanes_all(0)
        add_rows(&at, &next_channel, sample, rows, length, lanes_all(about.center[k]), &own, typed, of, &s, &t)
        lanes_sums(s, t, &s_of[k], &t_of[k])
        at = next_channel
