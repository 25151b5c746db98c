# The arrays of a call together: where the same values are in each.

cdef enum:
    ARRAYS = 5
    PAGE = 4096             # bytes, after which the sets of a first-level cache begin again, and offsets in pages
    CLOSE_TO_TWO = 512      # bytes behind what is read, up to which no results are computed in two places at once


cdef struct Place:
    # Where the same values are in each. NULL, or any number of bytes from there, where no array is.
    const char *x
    const char *dy
    const char *y
    char *out
    char *dresidual


cdef struct Steps:
    # Bytes from one row to another.
    Py_ssize_t x, dy, y, out, dresidual


cdef inline Place moved(const Place *at, const Steps *step) noexcept nogil:
    """A row further."""
    cdef Place to
    to.x, to.dy, to.y = at.x + step.x, at.dy + step.dy, at.y + step.y
    to.out, to.dresidual = at.out + step.out, at.dresidual + step.dresidual
    return to


cdef inline Place shifted(const Place *at, Py_ssize_t bytes) noexcept nogil:
    """Further in the same row."""
    cdef Place to
    to.x, to.dy, to.y = at.x + bytes, at.dy + bytes, at.y + bytes
    to.out, to.dresidual = at.out + bytes, at.dresidual + bytes
    return to


cdef inline Steps distance(const Place *at, const Place *to) noexcept nogil:
    """From one place to another."""
    cdef Steps way
    way.x, way.dy, way.y = to.x - at.x, to.dy - at.dy, to.y - at.y
    way.out, way.dresidual = to.out - at.out, to.dresidual - at.dresidual
    return way


cdef inline Steps along_row(Py_ssize_t bytes) noexcept nogil:
    """As far in the same row."""
    cdef Steps step
    step.x = step.dy = step.y = step.out = step.dresidual = bytes
    return step


cdef inline Place row_of(const Call *call, Py_ssize_t c, Py_ssize_t row) noexcept nogil:
    """Where a row of channel c begins."""
    cdef Place at
    at.x, at.dy, at.y = row_start(call.x, c, row), row_start(call.dy, c, row), row_start(call.y, c, row)
    at.out, at.dresidual = row_start(call.out, c, row), row_start(call.dresidual, c, row)
    return at


cdef inline Py_ssize_t sample_step(const View *v) noexcept nogil:
    """Bytes from one row of a channel to the next, where rows have one axis."""
    return 0 if v == NULL else v.step[0]


cdef inline Steps steps_to_samples(const Call *call) noexcept nogil:
    cdef Steps step
    step.x, step.dy, step.y = sample_step(call.x), sample_step(call.dy), sample_step(call.y)
    step.out, step.dresidual = sample_step(call.out), sample_step(call.dresidual)
    return step


cdef inline void views_of(const Call *call, const View **views) noexcept nogil:
    views[0], views[1], views[2], views[3], views[4] = call.x, call.dy, call.y, call.out, call.dresidual


cdef inline Py_ssize_t bytes_of_arrays(const Call *call, Py_ssize_t itemsize) noexcept nogil:
    """Of those that are read, and of one that is written."""
    return call.channels*call.values*itemsize*(arrays_read(call) + 1)


cdef inline bint holds_back(const Call *call, Py_ssize_t itemsize, Py_ssize_t least) noexcept nogil:
    """Whether results are held back (see hold_back()), where there are so many bytes at least."""
    return call.stores == PAST_CACHE and bytes_of_arrays(call, itemsize) >= least


cdef inline Py_ssize_t common_run(const Call *call, Py_ssize_t itemsize) noexcept nogil:
    """Length of the rows that all arrays have in place; 0 where they differ."""
    cdef Py_ssize_t run = 0, its
    cdef const View *views[ARRAYS]
    cdef const View *v
    views_of(call, views)
    for v in views:
        if v != NULL:
            its = in_place(v, 0, itemsize)
            if its == 0 or (run != 0 and its != run):
                return 0
            run = its
    return run


cdef inline bint share_lines(const View *a, const View *b) noexcept nogil:
    """Whether the same values of two arrays have the same place in their cache lines. (Where one is NULL: yes.)"""
    cdef int axis
    if a == NULL or b == NULL:
        return True
    if (a.data - b.data) % CACHE_LINE != 0 or (a.channel - b.channel) % CACHE_LINE != 0 or a.axes != b.axes:
        return False
    for axis in range(a.axes):
        if a.shape[axis] != b.shape[axis] or (a.step[axis] - b.step[axis]) % CACHE_LINE != 0:
            return False
    return True


cdef inline Py_ssize_t bytes_from(const char *read, const char *out) noexcept nogil:
    """How far behind what is read a result stands, or before it, as far as the offsets in their pages tell."""
    return ((out - read + PAGE//2) & (PAGE - 1)) - PAGE//2


cdef inline bint is_close_behind(const View *out, const View *read) noexcept nogil:
    return read != NULL and 0 < bytes_from(read.data, out.data) < CLOSE_TO_TWO


cdef inline bint is_close_behind_any(const Call *call, const View *out) noexcept nogil:
    """Whether a result, if there is one, stands so closely behind any array that is read."""
    return out != NULL and (is_close_behind(out, call.x) or is_close_behind(out, call.dy)
                            or is_close_behind(out, call.y))


cdef inline bint results_are_close_behind(const Call *call) noexcept nogil:
    """Whether any result does, as far as the offsets in their pages tell: two places at once would wait for each other
    then, see bytes_behind(). (Zen 4, in a busy hour: inference took up to 5 times as long, of rows up to 4 times.)
    """
    return is_close_behind_any(call, call.out) or is_close_behind_any(call, call.dresidual)
