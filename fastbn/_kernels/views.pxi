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


cdef void convert_run(stored *where, Py_ssize_t step, Py_ssize_t run, double *tile, bint put) noexcept nogil:
    """The same for at most CHUNK values that are float64 in the tile."""
    cdef stored line[CHUNK]
    cdef bint in_line = step != sizeof(stored) or <uintptr_t>where % sizeof(stored) != 0
    cdef stored *values = <stored *>line if in_line else where
    cdef Py_ssize_t i = 0, k
    if in_line and not put:
        copy_values(<char *>where, step, run, sizeof(stored), <char *>line, False)
    while i + LANES <= run:
        if put:
            write_lanes(values + i, lanes_load(tile + i))
        else:
            lanes_store(tile + i, read_lanes(values + i))
        i += LANES
    for k in range(i, run):
        if put:
            put_value(values + k, tile[k])
        else:
            tile[k] = value_of(values + k)
    if in_line and put:
        copy_values(<char *>where, step, run, sizeof(stored), <char *>line, True)


cdef void copy_run(char *where, Py_ssize_t step, Py_ssize_t run, Storage storage, Py_ssize_t itemsize, char *tile,
                   bint put) noexcept nogil:
    """The same, wherever values are stored in the type that they have in the tile, or in another."""
    if storage == AS_IS:
        copy_values(where, step, run, itemsize, tile, put)
    elif storage == SINGLE:
        convert_run(<float *>where, step, run, <double *>tile, put)
    elif storage == FLOAT16:
        convert_run(<float16_t *>where, step, run, <double *>tile, put)
    else:
        convert_run(<bfloat16_t *>where, step, run, <double *>tile, put)


cdef void move(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
               char *tile, bint put) noexcept nogil:
    """Copy values from the array into a tile, or (put) from the tile into the array."""
    cdef Py_ssize_t run = v.shape[v.axes - 1], step = v.step[v.axes - 1]
    cdef Py_ssize_t row = position//run, start = position % run, some
    while length > 0:
        some = min(length, run - start)
        copy_run(row_start(v, c, row) + start*step, step, some, v.storage, itemsize, tile, put)
        tile += some*itemsize
        length -= some
        row += 1
        start = 0


cdef inline char *read_tile(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
                            void *tile) noexcept nogil:
    """`length` values from this position on: in place, or gathered into the tile. NULL where no array is."""
    if v == NULL:
        return NULL
    if in_place(v, position, itemsize) >= length:
        return address(v, c, position)
    move(v, c, position, length, itemsize, <char *>tile, False)
    return <char *>tile


cdef inline char *open_tile(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
                            void *tile) noexcept nogil:
    """Where `length` values are to be written: in place, or into the tile, which close_tile() then puts away."""
    if in_place(v, position, itemsize) >= length:
        return address(v, c, position)
    return <char *>tile


cdef inline void close_tile(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
                            const char *written, void *tile) noexcept nogil:
    if written == <const char *>tile:
        move(v, c, position, length, itemsize, <char *>tile, True)


cdef inline Py_ssize_t common_run(const View *a, const View *b, const View *c, Py_ssize_t itemsize) noexcept nogil:
    """Length of the rows that three arrays have in place, as far as there are so many; 0 where they differ."""
    cdef Py_ssize_t run = 0, its
    cdef const View *views[3]
    cdef const View *v
    views[0], views[1], views[2] = a, b, c
    for v in views:
        if v != NULL:
            its = in_place(v, 0, itemsize)
            if its == 0 or (run != 0 and its != run):
                return 0
            run = its
    return run


cdef inline void prefetch_bytes(const char *where, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t byte = 0
    while byte < count:
        prefetch_line(where + byte)
        byte += 64
