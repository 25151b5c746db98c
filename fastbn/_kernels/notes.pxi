# Which gradients an activation with bounds has cut off, a bit each: float32 behind a residual, in long rows.
#
# There y tells. Sums leave notes of it for the results of their channel, which then need not read y again: three arrays
# of a channel are more than a second-level cache keeps. (Zen 4: .82 to .95 of the time.)


cdef struct Notes:              # of rows, one after the other, or of parts of one
    char *left                  # by the sums of one channel, ...
    const char *read            # ... and read with the results of another
    Py_ssize_t left_step, read_step     # bytes from one row to the next


cdef inline bint has_notes(const Notes *notes, const stored *typed, const formula *what) noexcept nogil:
    return NOTES_PAY and stored is float and is_clipped_join(what) and notes != NULL


cdef inline void leave_note(char *left, Py_ssize_t i, uint16_t cut) noexcept nogil:
    """Of LANES values from i on, which is a multiple of them."""
    memcpy(left + i//8, &cut, sizeof(cut))


cdef inline uint32_t read_note(const char *read, Py_ssize_t i) noexcept nogil:
    """Of LANES values from any i on, the first in the lowest bit. (Others follow.)"""
    cdef uint32_t cut
    memcpy(&cut, read + i//8, sizeof(cut))
    return cut >> (i % 8)


cdef inline void add_and_note(const Place *at, Py_ssize_t i, const Coefficients *f, char *left, lanes_t *s,
                              lanes_t *t) noexcept nogil:
    """Sums of a line of ClippedJoinProducts, with a note. (A 0 that came may be noted like one that was made.)"""
    cdef float g[LANES]
    cdef lanes_t wide
    gate_line(<const float *>at.dy + i, <const float *>at.y + i, <float *>g, 1.0, 1.0, f.act.lower, f.act.upper, 0,
              False, LANES)
    wide = lanes_widen(g)
    s[0] = lanes_add(s[0], wide)
    t[0] = lanes_add_widened(wide, <const float *>at.x + i, t[0])
    leave_note(left, i, zeros_of_line(g))


cdef void note_values(const Place *at, Py_ssize_t i, Py_ssize_t length, const Activation *act,
                      char *left) noexcept nogil:
    """Notes of the values from i on, which is a multiple of LANES: where no sums leave them."""
    cdef const float *y = <const float *>at.y
    cdef float lower = <float>act.lower, upper = <float>act.upper
    cdef uint32_t cut
    cdef Py_ssize_t k
    while i < length:
        cut = 0
        for k in range(min(LANES, length - i)):
            cut |= <uint32_t>((y[i + k] <= lower) | (y[i + k] >= upper)) << k
        leave_note(left, i, <uint16_t>cut)
        i += LANES


cdef inline void cut_line(const float *dy, uint32_t cut, float *g) noexcept nogil:
    """dy, and 0 where that is noted."""
    cdef Py_ssize_t k
    cdef float v
    for k in range(LANES):
        v = dy[k]
        g[k] = 0 if cut & (<uint32_t>1 << k) else v


cdef inline void stream_by_note(const Place *at, Py_ssize_t i, const Coefficients *f, const char *read,
                                const formula *what) noexcept nogil:
    """The results of a line behind a residual: those of a gradient of which is cut off what is noted."""
    cdef float line[LANES]
    cdef float g[LANES]
    cdef const float *x = <const float *>at.x + i
    cut_line(<const float *>at.dy + i, read_note(read, i), <float *>g)
    if is_gradient(what):
        compute_reals(<const float *>g, x, NULL, <float *>line, NULL, f, 0, LANES, <const Gradient *>NULL)
    else:
        compute_reals(<const float *>g, x, NULL, <float *>line, NULL, f, 0, LANES, <const Scaled *>NULL)
    stream_results(at, i, <const float *>line, <const float *>g, True, what)
