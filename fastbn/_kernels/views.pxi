# Any strides. A channel's values are one sequence in logical order; a tile of it is used in place where it is
# contiguous and gathered into a small buffer where it is not, so that arrays are never copied as a whole.


cdef inline Py_ssize_t in_place(const View *v, Py_ssize_t position, Py_ssize_t itemsize) noexcept nogil:
    """How many values from this position on stand one behind the other in memory. (Any number where no array is.)"""
    cdef int last
    if v == NULL:
        return INTPTR_MAX
    last = v.axes - 1
    if v.step[last] != itemsize or not v.aligned:
        return 0
    return v.shape[last] - position % v.shape[last]


cdef inline char *row_start(const View *v, Py_ssize_t c, Py_ssize_t row) noexcept nogil:
    """Where a row of channel c begins: a run along the last axis. NULL where no array is."""
    cdef char *where
    cdef int axis
    if v == NULL:
        return NULL
    where = v.data + c*v.channel
    if v.axes == 2:         # nearly always: no division
        return where + row*v.step[0]
    for axis in range(v.axes - 2, -1, -1):
        where += (row % v.shape[axis])*v.step[axis]
        row //= v.shape[axis]
    return where


cdef inline char *address(const View *v, Py_ssize_t c, Py_ssize_t position) noexcept nogil:
    """Where the value at this position of channel c is."""
    cdef Py_ssize_t run = v.shape[v.axes - 1]
    return row_start(v, c, position//run) + position % run*v.step[v.axes - 1]


cdef inline void copy_value(char *to, const char *source, Py_ssize_t itemsize) noexcept nogil:
    if itemsize == 4:
        memcpy(to, source, 4)
    elif itemsize == 8:
        memcpy(to, source, 8)
    else:
        memcpy(to, source, 2)


cdef void copy_values(char *where, Py_ssize_t step, Py_ssize_t run, Py_ssize_t itemsize, char *tile,
                      bint put) noexcept nogil:
    """Copy a run of values with one step. By memcpy: nothing says that they are aligned."""
    cdef Py_ssize_t k
    if step == itemsize:
        if put:
            memcpy(where, tile, run*itemsize)
        else:
            memcpy(tile, where, run*itemsize)
    elif put:
        for k in range(run):
            copy_value(where + k*step, tile + k*itemsize, itemsize)
    else:
        for k in range(run):
            copy_value(tile + k*itemsize, where + k*step, itemsize)


cdef enum:
    BESIDE = 8              # channels of tiny planes whose values are gathered together: they share cache lines
    TILE_BYTES = 512        # of each
    FAR = 4 << 20           # bytes of an array, from which on the next values are asked for


cdef inline void copy_parts(char *to, Py_ssize_t to_row, Py_ssize_t to_channel, const char *source, Py_ssize_t row,
                            Py_ssize_t channel, Py_ssize_t rows, Py_ssize_t count, Py_ssize_t bytes, Py_ssize_t parts,
                            Py_ssize_t size) noexcept nogil:
    """Copy so many bytes of some rows of `count` channels, which stand so far from each other: in `parts` of a `size`,
    both known when this is compiled, of which the last two may overlap.
    """
    cdef Py_ssize_t i, k, part
    for i in range(rows):
        for k in range(count):
            for part in range(parts - 1):
                memcpy(to + k*to_channel + part*size, source + k*channel + part*size, size)
            memcpy(to + k*to_channel + bytes - size, source + k*channel + bytes - size, size)
        to += to_row
        source += row


cdef void copy_rows(char *to, Py_ssize_t to_row, Py_ssize_t to_channel, const char *source, Py_ssize_t row,
                    Py_ssize_t channel, Py_ssize_t rows, Py_ssize_t count, Py_ssize_t bytes) noexcept nogil:
    """The same of any size. (A memcpy() of few bytes, of which compilers do not know how many, is a call.)"""
    cdef Py_ssize_t i, k
    if bytes < 4 or bytes > 64:
        for i in range(rows):
            for k in range(count):
                memcpy(to + i*to_row + k*to_channel, source + i*row + k*channel, bytes)
    elif bytes < 8:
        copy_parts(to, to_row, to_channel, source, row, channel, rows, count, bytes, 2, 4)
    elif bytes <= 16:
        copy_parts(to, to_row, to_channel, source, row, channel, rows, count, bytes, 2, 8)
    elif bytes <= 32:
        copy_parts(to, to_row, to_channel, source, row, channel, rows, count, bytes, 2, 16)
    elif bytes <= 48:
        copy_parts(to, to_row, to_channel, source, row, channel, rows, count, bytes, 3, 16)
    else:
        copy_parts(to, to_row, to_channel, source, row, channel, rows, count, bytes, 4, 16)


cdef inline void ask_for_rows(const char *first, Py_ssize_t step, Py_ssize_t rows, Py_ssize_t bytes) noexcept nogil:
    """Ask for so many bytes of some rows: too few of each for a processor to see what comes next. (Zen 4, 4096 samples
    of 64 channels of 2x2: .3 to .7 of the time; in arrays that a second-level cache holds it would take 1.1.)
    """
    cdef Py_ssize_t i, k
    for i in range(rows):
        k = 0
        while k < bytes:
            prefetch_line(first + i*step + k)
            k += CACHE_LINE


cdef void move(const View *v, Py_ssize_t c, Py_ssize_t count, Py_ssize_t position, Py_ssize_t length,
               Py_ssize_t itemsize, char *tile, bint put) noexcept nogil:
    """Copy values of `count` channels from the array into tiles, or (put) from these into the array."""
    cdef Py_ssize_t run = v.shape[v.axes - 1], step = v.step[v.axes - 1], bytes = run*itemsize
    cdef Py_ssize_t row = position//run, start = position % run, some, rows, k
    cdef char *where
    while length > 0:
        where = row_start(v, c, row) + start*step
        some = min(length, run - start)
        rows = length//run if v.axes == 2 and step == itemsize and start == 0 else 0
        if rows > 0:        # whole rows, in place and with the same step
            if v.shape[0]*v.step[0] >= FAR and v.channel == bytes:      # channels stand side by side
                ask_for_rows(where + rows*v.step[0], v.step[0], rows, count*bytes)
            if put:
                copy_rows(where, v.step[0], v.channel, tile, bytes, TILE_BYTES, rows, count, bytes)
            else:
                copy_rows(tile, bytes, TILE_BYTES, where, v.step[0], v.channel, rows, count, bytes)
            row += rows
            some = rows*run
        else:
            for k in range(count):
                copy_values(where + k*v.channel, step, some, itemsize, tile + k*TILE_BYTES, put)
            row += 1
        tile += some*itemsize
        length -= some
        start = 0


cdef inline char *read_tiles(const View *v, Py_ssize_t c, Py_ssize_t count, Py_ssize_t position, Py_ssize_t length,
                             Py_ssize_t itemsize, void *tiles) noexcept nogil:
    """`length` values of `count` channels from this position on: in place, or gathered into tiles, one behind the
    other. NULL where no array is.
    """
    if v == NULL:
        return NULL
    if in_place(v, position, itemsize) >= length:
        return address(v, c, position)
    move(v, c, count, position, length, itemsize, <char *>tiles, False)
    return <char *>tiles


cdef inline char *open_tiles(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
                             void *tiles) noexcept nogil:
    """Where they are to be written: in place, or into tiles, which close_tiles() then puts away. NULL: no array."""
    if v == NULL:
        return NULL
    if in_place(v, position, itemsize) >= length:
        return address(v, c, position)
    return <char *>tiles


cdef inline void close_tiles(const View *v, Py_ssize_t c, Py_ssize_t count, Py_ssize_t position, Py_ssize_t length,
                             Py_ssize_t itemsize, const char *written, void *tiles) noexcept nogil:
    if written == <const char *>tiles:
        move(v, c, count, position, length, itemsize, <char *>tiles, True)


cdef inline Py_ssize_t step_of_tiles(const View *v, Py_ssize_t position, Py_ssize_t length,
                                     Py_ssize_t itemsize) noexcept nogil:
    """Bytes from the values of a channel to those of the next, in place or in tiles."""
    if v == NULL or in_place(v, position, itemsize) < length:
        return TILE_BYTES
    return v.channel


# ---- the arrays of a call together

cdef enum:
    ARRAYS = 5
    HELD_BACK = 40 << 20    # held back from so many bytes on, read and of one result: few last-level caches hold them


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
    cdef Py_ssize_t arrays = 1 + (call.x != NULL) + (call.dy != NULL) + (call.y != NULL)
    return call.channels*call.values*itemsize*arrays


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
