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
