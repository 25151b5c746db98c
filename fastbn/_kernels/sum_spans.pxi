# Sums over spans: runs of values of one channel.


cdef struct Center:             # what sums are taken about, and where the derivative of an activation changes
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


cdef inline void add_lanes(Sums *sums, lanes_t s, lanes_t t, bint first) noexcept nogil:
    """sums += lanes; nothing is in the sums yet before the first."""
    cdef double a, b
    lanes_sums(s, t, &a, &b)
    if first:
        sums.a, sums.a_low, sums.b, sums.b_low = a, 0, b, 0
    else:
        add_pair(sums, a, b)


# ---- fold after fold

cdef struct Folds:
    # Where sums go: along a fold to lanes, fold by fold to a block.
    Lanes lanes
    Sums block
    Py_ssize_t rows, left       # of a fold: all, and those to come of the one in the lanes
    bint first                  # nothing is in the block yet


cdef inline void begin_folds(Folds *folds, Py_ssize_t rows) noexcept nogil:
    clear_lanes(&folds.lanes)
    folds.rows = folds.left = rows
    folds.first = True


cdef inline void end_fold(Folds *folds, lanes_t s, lanes_t t) noexcept nogil:
    """After its last row, which is in s and t."""
    add_lanes(&folds.block, s, t, folds.first)
    folds.first, folds.left = False, folds.rows


cdef inline void end_folds(Folds *folds) noexcept nogil:
    """The last fold may have fewer rows."""
    if folds.left < folds.rows:
        end_fold(folds, lanes_load(folds.lanes.s), lanes_load(folds.lanes.t))


# ---- loops

cdef inline void add_some(const Place *at, Py_ssize_t i, Py_ssize_t length, lanes_t center, const Coefficients *f,
                          const stored *typed, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of LANES values from i on; with a `length` other than 0, of fewer, up to there. (Which of the two is
    known when this is compiled.)
    """
    cdef const stored *x = <const stored *>at.x
    cdef const stored *dy = <const stored *>at.dy
    cdef const stored *y = <const stored *>at.y
    if length == 0:
        add_line(dy + i, x + i, y + i, center, f, 0, of, s, t)
    else:
        add_last(dy, x, y, length, length - i, center, f, 0, of, s, t)


cdef inline void add_and_ask(const Place *at, const Place *ahead, Py_ssize_t i, Py_ssize_t length, lanes_t center,
                             const Coefficients *f, bint later, const stored *typed, const summed *of, lanes_t *s,
                             lanes_t *t) noexcept nogil:
    """The same. What stands `ahead` is asked for, and comes soon, or `later`."""
    ask_for_line(<const stored *>ahead.dy + i, <const stored *>ahead.x + i, <const stored *>ahead.y + i, later, of)
    add_some(at, i, length, center, f, typed, of, s, t)


cdef inline void add_row(const Place *at, const Steps *ahead, Py_ssize_t length, lanes_t center,
                         const Coefficients *f, bint later, const stored *typed, const summed *of, lanes_t *s,
                         lanes_t *t) noexcept nogil:
    """The sums of a row. What is `ahead` is asked for."""
    cdef Py_ssize_t i = 0, end = length//LANES*LANES, rest = end - LANES
    cdef Place soon = moved(at, ahead)
    if length < LANES:
        add_and_ask(at, &soon, 0, length, center, f, later, typed, of, s, t)
        return
    while True:                 # there is a line
        add_and_ask(at, &soon, i, 0, center, f, later, typed, of, s, t)
        i += LANES
        if i > rest:
            break
    if end < length:            # (not i, which compilers do not know to be the same for all rows)
        add_and_ask(at, &soon, end, length, center, f, later, typed, of, s, t)


cdef inline void add_rows(const Place *first, const Steps *ahead, const Steps *step, Py_ssize_t count,
                          Py_ssize_t length, lanes_t center, const Coefficients *f, bint later, const stored *typed,
                          const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of `count` rows."""
    cdef Place at = first[0]
    cdef Py_ssize_t row
    for row in range(count):
        add_row(&at, ahead, length, center, f, later, typed, of, s, t)
        at = moved(&at, step)


cdef void sums_of_spans(const Place *first, const Steps *ahead, const Steps *step, Py_ssize_t count,
                        Py_ssize_t length, const Center *about, Lanes *lanes, const stored *typed,
                        const summed *of) noexcept nogil:
    """Add `count` rows of one channel to its lanes. What is so far `ahead` of each is asked for meanwhile."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), center = lanes_all(about.center)
    cdef Coefficients own
    own.act, own.gate = about.act, about.gate
    add_rows(first, ahead, step, count, length, center, &own, True, typed, of, &s, &t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void sums_of_neighbours(const Place *first, const Steps *sample, const Steps *neighbour, const Steps *ahead,
                             Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t length, const Center *about,
                             Lanes *lanes, Py_ssize_t stride, const stored *typed, const summed *of) noexcept nogil:
    """Add `rows` short rows of each of some channels to its lanes. The neighbour's are asked for meanwhile, with those
    of the last channel what is so far `ahead`. What a channel's sums are taken about and added to stands `stride` bytes
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
        add_rows(&channel, &soon, sample, rows, length, center, &own, False, typed, of, &s, &t)
        lanes_store(lanes.s, s)
        lanes_store(lanes.t, t)
        channel = moved(&channel, neighbour)
        lanes = <Lanes *>(<char *>lanes + stride)
        about = <const Center *>(<const char *>about + stride)


cdef void sums_of_channels(const Place *first, const Steps *sample, const Steps *neighbour, Py_ssize_t channels,
                           Py_ssize_t rows, Py_ssize_t length, const Centers *about, double *s_of, double *t_of,
                           const stored *typed, const summed *of) noexcept nogil:
    """The sums of some channels, at most TOGETHER, of `rows` rows each. The neighbour's are asked for meanwhile."""
    cdef lanes_t s, t, center
    cdef Coefficients own
    cdef fours_t fours[TOGETHER]
    cdef Py_ssize_t k
    cdef Place channel = first[0]
    own.act = about.act
    for k in range(channels):
        if about.gates != NULL:
            own.gate = about.gates[k]
        s = t = lanes_all(0)
        center = lanes_all(about.center[k])
        add_rows(&channel, neighbour, sample, rows, length, center, &own, False, typed, of, &s, &t)
        fours[k] = lanes_fours(s, t)
        channel = moved(&channel, neighbour)
    fours_sums(fours, channels, s_of, t_of)
