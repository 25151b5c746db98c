# Sums over spans: runs of values of one channel.


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


cdef inline void add_rows(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                          const Steps *step, Py_ssize_t count, Py_ssize_t length, lanes_t center,
                          const Coefficients *f, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of `count` rows of one channel."""
    cdef Py_ssize_t i, row
    for row in range(count):
        i = 0
        while i + LANES <= length:
            add_and_ask(dy + i, x + i, dy_ahead + i, x_ahead + i, LANES, LANES, center, f, of, s, t)
            i += LANES
        if i < length:
            add_and_ask(dy, x, dy_ahead + i, x_ahead + i, length, length - i, center, f, of, s, t)
        x = next_row(x, step.x)
        dy = next_row(dy, step.dy)
        x_ahead = next_row(x_ahead, step.x)
        dy_ahead = next_row(dy_ahead, step.dy)


cdef void sums_of_spans(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                        const Steps *step, Py_ssize_t count, Py_ssize_t length, const Center *about, Lanes *lanes,
                        const summed *of) noexcept nogil:
    """Add `count` rows of one channel to its lanes."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t)
    cdef Coefficients own
    own.act, own.gate = about.act, about.gate
    add_rows(dy, x, dy_ahead, x_ahead, step, count, length, lanes_all(about.center), &own, of, &s, &t)
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
        s_of[k], t_of[k] = lanes_sum(s), lanes_sum(t)
        x, dy = next_x, next_dy
