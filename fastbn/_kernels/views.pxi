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


cdef inline char *address(const View *v, Py_ssize_t c, Py_ssize_t position) noexcept nogil:
    """Where the value at this position of channel c is."""
    cdef char *where = v.data + c*v.channel
    cdef int axis = v.axes - 1
    while axis > 0:
        where += (position % v.shape[axis])*v.step[axis]
        position //= v.shape[axis]
        axis -= 1
    return where + position*v.step[0]


cdef inline void copy_value(char *to, const char *source, Py_ssize_t itemsize) noexcept nogil:
    if itemsize == 4:
        memcpy(to, source, 4)
    else:
        memcpy(to, source, 8)


cdef void move_run(char *where, Py_ssize_t step, Py_ssize_t run, Py_ssize_t itemsize, char *tile,
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


cdef void move(const View *v, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Py_ssize_t itemsize,
               char *tile, bint put) noexcept nogil:
    """Copy values from the array into a tile, or (put) from the tile into the array."""
    cdef int last = v.axes - 1
    cdef Py_ssize_t run
    while length > 0:
        run = min(length, v.shape[last] - position % v.shape[last])
        move_run(address(v, c, position), v.step[last], run, itemsize, tile, put)
        tile += run*itemsize
        position += run
        length -= run


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


cdef inline Py_ssize_t all_in_place(const Call *call, Py_ssize_t position, Py_ssize_t itemsize) noexcept nogil:
    """How many values from this position on are in place in all arrays of a call."""
    return min(in_place(call.x, position, itemsize), in_place(call.dy, position, itemsize),
               in_place(call.out, position, itemsize))


cdef inline const char *ahead(const View *v, Py_ssize_t c, Py_ssize_t position) noexcept nogil:
    """An address to prefetch: it need not be that of a value."""
    return NULL if v == NULL else address(v, c, position)
