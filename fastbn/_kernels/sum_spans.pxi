# Sums over spans: runs of values of one channel.

cdef enum:
    SOON = 512              # values, at which long rows are asked for before they are summed


cdef struct Lanes:
    double s[LANES]
    double t[LANES]


cdef struct Steps:
    # Bytes from one row to the next.
    Py_ssize_t x, dy, out


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


cdef inline const stored *next_row(const stored *row, Py_ssize_t step) noexcept nogil:
    return <const stored *>(<const char *>row + step)


cdef inline void add_and_ask(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                             Py_ssize_t length, Py_ssize_t some, lanes_t center, const Coefficients *f,
                             const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of LANES values, or of the last `some` of `length`. What stands `ahead` of them is asked for."""
    ask_for_line(dy_ahead, x_ahead, of)
    if some == LANES:
        add_line(dy, x, center, f, 0, of, s, t)
    else:
        add_last(dy, x, length, some, center, f, 0, of, s, t)


cdef inline Py_ssize_t near_end(Py_ssize_t length) noexcept nogil:
    """Of a long row, up to where what comes SOON is still in the row, in whole lines."""
    return (length - SOON)//LANES*LANES if length > SOON else 0


cdef inline void add_rows(const stored *dy, const stored *x, const stored *dy_after, const stored *x_after,
                          const Steps *step, Py_ssize_t count, Py_ssize_t length, lanes_t center,
                          const Coefficients *f, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of `count` rows of one channel. `after` the first row come others."""
    cdef Py_ssize_t i, row, until, near = near_end(length)
    cdef int part
    cdef const stored *x_ahead
    cdef const stored *dy_ahead
    for row in range(count):
        i = 0
        for part in range(0 if near > 0 else 1, 2):
            until, x_ahead, dy_ahead = length, x_after - near, dy_after - near
            if part == 0:
                until, x_ahead, dy_ahead = near, x + (length - near), dy + (length - near)
            while i + LANES <= until:
                add_and_ask(dy + i, x + i, dy_ahead + i, x_ahead + i, LANES, LANES, center, f, of, s, t)
                i += LANES
        if i < length:
            add_and_ask(dy, x, dy_ahead + i, x_ahead + i, length, length - i, center, f, of, s, t)
        x, x_after = next_row(x, step.x), next_row(x_after, step.x)
        dy, dy_after = next_row(dy, step.dy), next_row(dy_after, step.dy)


cdef void sums_of_spans(const stored *dy, const stored *x, const stored *dy_after, const stored *x_after,
                        const Steps *step, Py_ssize_t count, Py_ssize_t length, const Center *about, Lanes *lanes,
                        const summed *of) noexcept nogil:
    """Add `count` rows of one channel to its lanes."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t)
    cdef Coefficients own
    own.act, own.gate = about.act, about.gate
    add_rows(dy, x, dy_after, x_after, step, count, length, lanes_all(about.center), &own, of, &s, &t)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)


cdef void sums_of_channels(const stored *dy, const stored *x, const Steps *sample, const Steps *neighbour,
                           Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t length, const Centers *about,
                           double *s_of, double *t_of, const summed *of) noexcept nogil:
    """The sums of some channels, of `rows` rows each."""
    cdef lanes_t s, t
    cdef Coefficients own
    cdef Py_ssize_t k
    cdef const stored *next_x
    cdef const stored *next_dy
    own.act = about.act
    for k in range(channels):
        next_x, next_dy = next_row(x, neighbour.x), next_row(dy, neighbour.dy)
        if about.gates != NULL:
            own.gate = about.gates[k]
        s = t = lanes_all(0)
        add_rows(dy, x, next_dy, next_x, sample, rows, length, lanes_all(about.center[k]), &own, of, &s, &t)
        lanes_sums(s, t, &s_of[k], &t_of[k])
        x, dy = next_x, next_dy
