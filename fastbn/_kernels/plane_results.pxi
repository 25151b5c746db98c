# y or dx of planes, with dresidual: of channels whose coefficients are known.


cdef struct Due:
    # Channels side by side whose results are due.
    const Plan *plan
    Py_ssize_t c, count
    Numbers numbers
    Carry *carry                # results that are written by whole lines; NULL: they are not
    char *notes                 # of the channel, where plan.note_row is not 0 ...
    bint noted                  # ... and once they have been left


# ---- values that must be gathered

cdef struct Tiles:
    # CHUNK values of a channel, or TILE_BYTES of each of BESIDE channels.
    double x[CHUNK]
    double dy[CHUNK]
    double y[CHUNK]


cdef Place gathered(const Plan *plan, Py_ssize_t c, Py_ssize_t count, Py_ssize_t position, Py_ssize_t length,
                    Tiles *tiles) noexcept nogil:
    """Where values of some channels are to be read: in place, or in the tiles."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize
    cdef Place at
    at.x = read_tiles(call.x, c, count, position, length, itemsize, tiles.x)
    at.dy = read_tiles(call.dy, c, count, position, length, itemsize, tiles.dy)
    at.y = read_tiles(call.y, c, count, position, length, itemsize, tiles.y)
    at.out = at.dresidual = NULL
    return at


cdef Steps to_gathered(const Plan *plan, Py_ssize_t position, Py_ssize_t length) noexcept nogil:
    """From there to the same values of the next channel."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize
    cdef Steps step
    step.x = step_of_tiles(call.x, position, length, itemsize)
    step.dy = step_of_tiles(call.dy, position, length, itemsize)
    step.y = step_of_tiles(call.y, position, length, itemsize)
    step.out = step_of_tiles(call.out, position, length, itemsize)
    step.dresidual = step_of_tiles(call.dresidual, position, length, itemsize)
    return step


# ---- results

cdef void apply_to_rows(const Due *due, Py_ssize_t first, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """The results of some rows, of the channels from number `first` on."""
    cdef const Plan *plan = due.plan
    cdef Place at
    while row < end:
        at = row_of(plan.call, due.c + first, row)
        plan.loops.apply_spans(&at, 1, &plan.neighbour, due.count - first, plan.plane, &due.numbers, first, due.carry,
                               NULL, NULL)
        row += 1


cdef void apply_to_two_samples(const Due *due) noexcept nogil:
    """The results of all rows: of half of the samples, and of those behind them."""
    cdef const Plan *plan = due.plan
    cdef Carry carry[2]
    cdef Place at[2]
    cdef Py_ssize_t row, half = plan.rows//2
    begin_carry(&carry[0], plan)
    carry[1] = carry[0]
    for row in range(half):
        at[0], at[1] = row_of(plan.call, due.c, row), row_of(plan.call, due.c, row + half)
        plan.loops.apply_spans(at, 2, &plan.neighbour, due.count, plan.plane, &due.numbers, 0, carry, NULL, NULL)
    plan.loops.put_owed(&carry[0], NULL, NULL)
    plan.loops.put_owed(&carry[1], NULL, NULL)
    apply_to_rows(due, 0, 2*half, plan.rows)


cdef void apply_to_values(const Due *due, Py_ssize_t k, Py_ssize_t count, Py_ssize_t begin,
                          Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of `count` channels: of one, where they need not be gathered (see `beside`)."""
    if due.plan.run >= SHORTEST:
        apply_in_place(due, k, begin, end)
    else:
        apply_to_tiles(due, k, count, begin, end)


cdef void apply_in_place(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Plan *plan = due.plan
    cdef Py_ssize_t run = plan.run, row = begin//run, start = begin - row*run, length, left = end - begin
    cdef Place at
    while left > 0:
        length = min(left, run - start)
        at = row_of(plan.call, due.c + k, row)
        at = shifted(&at, start*plan.loops.itemsize)
        plan.loops.apply_spans(&at, 1, &plan.neighbour, 1, length, &due.numbers, k, due.carry, NULL, NULL)
        left -= length
        row += 1
        start = 0


cdef void apply_to_tiles(const Due *due, Py_ssize_t k, Py_ssize_t count, Py_ssize_t begin,
                         Py_ssize_t end) noexcept nogil:
    """The same where some array has no runs worth the name: through tiles."""
    cdef Tiles tiles
    cdef double out_tiles[CHUNK]
    cdef double dresidual_tiles[CHUNK]
    cdef const Plan *plan = due.plan
    cdef const Call *call = plan.call
    cdef Py_ssize_t c = due.c + k, itemsize = plan.loops.itemsize, length
    cdef Place at
    cdef Steps step
    while begin < end:
        length = min(plan.piece, end - begin)
        at, step = gathered(plan, c, count, begin, length, &tiles), to_gathered(plan, begin, length)
        at.out = open_tiles(call.out, c, begin, length, itemsize, out_tiles)
        at.dresidual = open_tiles(call.dresidual, c, begin, length, itemsize, dresidual_tiles)
        plan.loops.apply_spans(&at, 1, &step, count, length, &due.numbers, k, NULL, NULL, NULL)
        close_tiles(call.out, c, count, begin, length, itemsize, at.out, out_tiles)
        close_tiles(call.dresidual, c, count, begin, length, itemsize, at.dresidual, dresidual_tiles)
        begin += length


cdef void apply_all(const Due *due) noexcept nogil:
    """The results of all channels that are due, in the order of memory."""
    cdef const Plan *plan = due.plan
    cdef Py_ssize_t k, position = 0, some
    if plan.two_samples:
        apply_to_two_samples(due)
        return
    if plan.run == plan.plane:
        apply_to_rows(due, 0, 0, plan.rows)
        return
    while position < plan.call.values:
        some = min(plan.piece, plan.call.values - position)
        k = 0
        while k < due.count:
            apply_to_values(due, k, min(plan.beside, due.count - k), position, position + some)
            k += plan.beside
        position += some
