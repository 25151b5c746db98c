# Sums over spans: runs of values of one channel.


cdef struct Lanes:
    double s[LANES]
    double t[LANES]


cdef struct Steps:
    # Bytes from one row to the next.
    Py_ssize_t x, dy, out


cdef struct Center:             # what sums are taken about, and where there is an activation the z of the channel
    double center
    Coefficients f


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


cdef void sums_of_spans(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                        const Steps *step, Py_ssize_t count, Py_ssize_t length, const Center *about, Lanes *lanes,
                        const summed *of) noexcept nogil:
    """The sums of `count` rows of one channel."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), center = lanes_all(about.center)
    cdef Py_ssize_t i, row
    cdef Coefficients own = about.f
    for row in range(count):
        i = 0
        while i + LANES <= length:
            add_and_ask(dy + i, x + i, dy_ahead + i, x_ahead + i, LANES, LANES, center, &own, of, &s, &t)
            i += LANES
        if i < length:
            add_and_ask(dy, x, dy_ahead + i, x_ahead + i, length, length - i, center, &own, of, &s, &t)
        x = next_row(x, step.x)
        dy = next_row(dy, step.dy)
        x_ahead = next_row(x_ahead, step.x)
        dy_ahead = next_row(dy_ahead, step.dy)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)
