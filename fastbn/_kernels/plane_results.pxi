# y or dx of planes, with dresidual: of channels whose coefficients are known.


cdef struct Due:
    # Channels side by side whose results are due.
    const Plan *plan
    Py_ssize_t c, count
    Numbers numbers
    Carry *carry                # results that are written by whole lines; NULL: they are not


# ---- values that must be gathered

cdef struct Tiles:
    double x[CHUNK]
    double dy[CHUNK]
    double y[CHUNK]


cdef Place gathered(const Plan *plan, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length,
                    Tiles *tiles) noexcept nogil:
    """Where values of a channel are to be read: in place, or in the tiles."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize
    cdef Place at
    at.x = read_tile(call.x, c, position, length, itemsize, tiles.x)
    at.dy = read_tile(call.dy, c, position, length, itemsize, tiles.dy)
    at.y = read_tile(call.y, c, position, length, itemsize, tiles.y)
    at.out = at.dresidual = NULL
    return at


# ---- results

cdef void apply_to_rows(const Due *due, Py_ssize_t first, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """The results of some rows, of the channels from number `first` on."""
    cdef const Plan *plan = due.plan
    cdef Place at
    while row < end:
        at = row_of(plan.call, due.c + first, row)
        plan.loops.apply_spans(&at, &plan.neighbour, due.count - first, plan.plane, &due.numbers, first, due.carry,
                               NULL, NULL)
        row += 1


cdef void apply_to_values(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of a channel."""
    if due.plan.run >= SHORTEST:
        apply_in_place(due, k, begin, end)
    else:
        apply_to_tiles(due, k, begin, end)


cdef void apply_in_place(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Plan *plan = due.plan
    cdef Py_ssize_t run = plan.run, row = begin//run, start = begin - row*run, length, left = end - begin
    cdef Place at
    while left > 0:
        length = min(left, run - start)
        at = row_of(plan.call, due.c + k, row)
        at = shifted(&at, start*plan.loops.itemsize)
        plan.loops.apply_spans(&at, &plan.neighbour, 1, length, &due.numbers, k, due.carry, NULL, NULL)
        left -= length
        row += 1
        start = 0


cdef void apply_to_tiles(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The same where some array has no runs worth the name: through tiles."""
    cdef Tiles tiles
    cdef double out_tile[CHUNK]
    cdef double dresidual_tile[CHUNK]
    cdef const Call *call = due.plan.call
    cdef const Loops *loops = &due.plan.loops
    cdef Py_ssize_t c = due.c + k, itemsize = loops.itemsize, length
    cdef Place at
    while begin < end:
        length = min(CHUNK, end - begin)
        at = gathered(due.plan, c, begin, length, &tiles)
        at.out = open_tile(call.out, c, begin, length, itemsize, out_tile)
        at.dresidual = open_tile(call.dresidual, c, begin, length, itemsize, dresidual_tile)
        loops.apply_spans(&at, &due.plan.neighbour, 1, length, &due.numbers, k, NULL, NULL, NULL)
        close_tile(call.out, c, begin, length, itemsize, at.out, out_tile)
        close_tile(call.dresidual, c, begin, length, itemsize, at.dresidual, dresidual_tile)
        begin += length


cdef void apply_all(const Due *due) noexcept nogil:
    """The results of all channels that are due, in the order of memory."""
    cdef const Plan *plan = due.plan
    cdef Py_ssize_t k, position = 0, some
    if plan.run == plan.plane:
        apply_to_rows(due, 0, 0, plan.rows)
        return
    while position < plan.call.values:
        some = min(plan.piece, plan.call.values - position)
        for k in range(due.count):
            apply_to_values(due, k, position, position + some)
        position += some
