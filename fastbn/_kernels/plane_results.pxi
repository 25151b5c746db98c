# y or dx of planes, and dresidual on the way: of channels whose coefficients are known.


cdef struct Due:
    # Channels side by side whose results are due.
    const Plan *plan
    Py_ssize_t c, count
    Numbers numbers
    Carry *carry                # results on their way past the cache; NULL: they do not go there


# ---- what loops read

cdef struct Tiles:
    # Values of a channel that must be gathered, or gated on the way.
    double x[CHUNK]
    double dy[CHUNK]
    double y[CHUNK]


cdef void gate(const Plan *plan, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length) noexcept nogil:
    """dresidual = dy*act', for values of a channel."""
    cdef double dy_tile[CHUNK]
    cdef double y_tile[CHUNK]
    cdef double g_tile[CHUNK]
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize, some
    cdef char *g
    while length > 0:
        some = min(CHUNK, length)
        g = open_tile(call.dresidual, c, position, some, itemsize, g_tile)
        plan.loops.gate_span(read_tile(call.dy, c, position, some, itemsize, dy_tile),
                             read_tile(call.y, c, position, some, itemsize, y_tile), g, some, &call.act)
        close_tile(call.dresidual, c, position, some, itemsize, g, g_tile)
        position += some
        length -= some


cdef inline void gate_part(const Plan *plan, Py_ssize_t c, Py_ssize_t row, Py_ssize_t start,
                           Py_ssize_t length) noexcept nogil:
    """The same for a part of a row, or from its start on for as many rows as stand one behind the other."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t skip = start*plan.loops.itemsize
    if plan.gate_in_place:
        plan.loops.gate_span(row_start(call.dy, c, row) + skip, row_start(call.y, c, row) + skip,
                             row_start(call.dresidual, c, row) + skip, length, &call.act)
    else:
        gate(plan, c, row*plan.plane + start, length)


cdef void gate_rows(const Plan *plan, Py_ssize_t c, Py_ssize_t count, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    """The same for some rows of `count` channels."""
    cdef Py_ssize_t i, k, at_once = count if plan.gate_together else 1
    for i in range(row, row + rows):
        k = c
        while k < c + count:
            gate_part(plan, k, i, 0, at_once*plan.plane)
            k += at_once


cdef void read_values(const Plan *plan, Py_ssize_t c, Py_ssize_t position, Py_ssize_t length, Tiles *tiles,
                      const char **x, const char **dy) noexcept nogil:
    """Where values of x and of what loops read as dy are."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize
    cdef const char *y
    x[0] = read_tile(call.x, c, position, length, itemsize, tiles.x)
    dy[0] = read_tile(plan.dy, c, position, length, itemsize, tiles.dy)
    if must_gate_tiles(call):
        y = read_tile(call.y, c, position, length, itemsize, tiles.y)
        plan.loops.gate_span(dy[0], y, tiles.dy, length, &call.act)
        dy[0] = <const char *>tiles.dy
        if call.from_y:
            undo_values(<const double *>y, tiles.x, length, &call.act)
            x[0] = <const char *>tiles.x


# ---- results

cdef void apply_to_rows(const Due *due, Py_ssize_t first, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """The results of some rows, of the channels from number `first` on."""
    cdef const Plan *plan = due.plan
    cdef const Call *call = plan.call
    cdef Py_ssize_t c = due.c + first, count = due.count - first
    while row < end:
        if plan.gate_late:
            gate_rows(plan, c, count, row, 1)
        plan.loops.apply_spans(row_start(plan.dy, c, row), row_start(call.x, c, row), row_start(call.out, c, row),
                               &plan.neighbour, count, plan.plane, &due.numbers, first, due.carry, NULL)
        row += 1


cdef void apply_to_values(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of a channel."""
    if due.plan.gate_late:
        gate(due.plan, due.c + k, begin, end - begin)
    if due.plan.run >= SHORTEST:
        apply_in_place(due, k, begin, end)
    else:
        apply_to_tiles(due, k, begin, end)


cdef void apply_in_place(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Plan *plan = due.plan
    cdef const Call *call = plan.call
    cdef Py_ssize_t c = due.c + k, run = plan.run
    cdef Py_ssize_t row = begin//run, start = begin - row*run, length, left = end - begin
    cdef Py_ssize_t skip = start*plan.loops.itemsize
    while left > 0:
        length = min(left, run - start)
        plan.loops.apply_spans(row_start(plan.dy, c, row) + skip, row_start(call.x, c, row) + skip,
                               row_start(call.out, c, row) + skip, &plan.neighbour, 1, length,
                               &due.numbers, k, due.carry, NULL)
        left -= length
        row += 1
        start = skip = 0


cdef void apply_to_tiles(const Due *due, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The same where some array has no runs worth the name: through tiles."""
    cdef Tiles tiles
    cdef double out_tile[CHUNK]
    cdef const Call *call = due.plan.call
    cdef const Loops *loops = &due.plan.loops
    cdef Py_ssize_t c = due.c + k, itemsize = loops.itemsize, length
    cdef const char *x
    cdef const char *dy
    cdef char *out
    while begin < end:
        length = min(CHUNK, end - begin)
        read_values(due.plan, c, begin, length, &tiles, &x, &dy)
        if call.unrounded and call.dresidual != NULL:
            move(call.dresidual, c, begin, length, itemsize, <char *>tiles.dy, True)
        out = open_tile(call.out, c, begin, length, itemsize, out_tile)
        loops.apply_spans(dy, x, out, &due.plan.neighbour, 1, length, &due.numbers, k, NULL, NULL)
        close_tile(call.out, c, begin, length, itemsize, out, out_tile)
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


cdef inline void put_owed_results(const Plan *plan, Carry *carry) noexcept nogil:
    plan.loops.apply_spans(NULL, NULL, NULL, &plan.neighbour, 0, 0, NULL, 0, carry, NULL)
