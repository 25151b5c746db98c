# A call on rows: its table of (rows, columns), what stands where in the scratch, and where rows are.

cdef enum:
    TILE_LINES = 128            # lines of columns that are summed together
    ROW_TILE = TILE_LINES*LANES
    SHARED_TILE = 512           # where there are threads to share them
    GATHERED_TILE = 128         # where they must be gathered, since threads have small stacks
    MOST_FORWARD = 20 << 10     # bytes of coefficients, up to which a row gets its results as a whole
    MOST_BACKWARD = 24 << 10
    FEW_COEFFICIENTS = 16 << 10     # those of a part of it, which a first-level cache keeps next to the values
    ROWS_HELD_BACK = 32 << 20   # held back from so many bytes on, as HELD_BACK for planes


cdef struct Table:
    Call *call
    Loops loops
    Py_ssize_t side_by_side     # rows of the array that make one row
    Py_ssize_t width            # columns of a row
    Py_ssize_t rows             # the last one may be shorter
    Py_ssize_t blocks, tiles    # parts of the rows, parts of the columns
    Py_ssize_t tile_width
    bint in_place               # no value must be gathered
    bint flat                   # and there are no gaps between rows
    bint even                   # in place, and rows follow each other with the same step where they are read
    bint steady                 # and where they are written
    Steps row                   # bytes from one to the next
    bint stream
    Py_ssize_t result_width     # columns whose results are computed together, row after row
    bint in_two_places          # results are computed, a line in each in turn
    bint second                 # attempt: only tiles with columns that are far
    bint any_far
    double *center              # per column: what the sums are taken about
    char *far                   # per column: whether the loops of a first attempt will not do
    ColumnSums parts            # of all blocks
    Columns columns


cdef inline bint one_axis(const View *v) noexcept nogil:
    return v == NULL or v.axes == 1


cdef void find_shape(Table *table) noexcept nogil:
    """Rows and columns, and into how many parts the rows are cut."""
    cdef const Call *call = table.call
    table.side_by_side = side_by_side(call.channels, call.values)
    table.width = table.side_by_side*call.channels
    table.rows = (call.values + table.side_by_side - 1)//table.side_by_side
    table.blocks = block_count(table.width, call.values//table.side_by_side, ROWS)


cdef inline Py_ssize_t numbers_of_a_column(const Call *call) noexcept nogil:
    """How many coefficients and bounds the results of a column take."""
    cdef bint slope = call.act.slope != 1
    if undoes_a_slope(call):        # four, and four of what is below 0
        return 8
    return 4 + slope + 2*has_gates(call) if call.backward else 3 + 2*slope


cdef Py_ssize_t width_of_results(const Table *table) noexcept nogil:
    """All columns, unless they have more coefficients than a first-level cache keeps: then equal parts of them, which
    past the cache must begin with a line of the result in all rows. (Zen 4: 2048 and 4096 take .5 to .9 of the time.)
    """
    cdef const Call *call = table.call
    cdef Py_ssize_t itemsize = sizeof(double) if call.dtype == FLOAT64 else sizeof(float)
    cdef Py_ssize_t each = numbers_of_a_column(call)*itemsize
    cdef Py_ssize_t most = MOST_BACKWARD if call.backward else MOST_FORWARD
    if not table.steady or table.width*each <= most:
        return table.width
    if table.stream and not (table.flat and table.width*table.loops.itemsize % CACHE_LINE == 0):
        return table.width
    return part_length(table.width, FEW_COEFFICIENTS//each)


cdef inline bint gains_by_two_places(const Table *table) noexcept nogil:
    """Whether results are computed in two places at once: memory is read faster then, and coefficients are loaded once.
    They are to be in phase, in all rows, see in_phase().

    (Zen 4: .75 to .95 of the time; 80 columns 1.25; half types, a backward of float64, or where caches hold the arrays,
    1.0 to 1.2.)
    """
    cdef const Call *call = table.call
    return (table.flat and table.stream and table.columns.holds and call.storage == AS_IS
            and not (call.dtype == FLOAT64 and call.backward)
            and table.width*table.loops.itemsize % COLUMN_PHASE == 0 and not results_are_close_behind(call))


cdef void find_places(Table *table) noexcept nogil:
    """Where rows are, and how the loops go through them."""
    cdef const Call *call = table.call
    cdef Py_ssize_t itemsize = table.loops.itemsize, k
    cdef const View *views[ARRAYS]
    views_of(call, views)
    table.flat = table.in_place = True
    for k in range(ARRAYS):
        table.flat = table.flat and is_flat(views[k], call.channels, itemsize)
        table.in_place = table.in_place and channels_in_place(views[k], itemsize)
    table.in_place = table.flat or (table.in_place and table.side_by_side == 1)
    table.even = table.flat or (table.in_place and one_axis(call.x) and one_axis(call.dy) and one_axis(call.y))
    table.steady = table.even and (table.flat or (one_axis(call.out) and one_axis(call.dresidual)))
    table.row = along_row(table.width*itemsize) if table.flat else steps_to_samples(call)
    table.stream = (call.stores == PAST_CACHE and share_lines(call.out, call.dresidual)
                    and (table.flat or (table.in_place and call.channels*itemsize >= 1024)))
    table.result_width = width_of_results(table)
    table.tile_width = GATHERED_TILE
    if table.in_place:
        table.tile_width = ROW_TILE if call.threads == 1 else SHARED_TILE
    table.tiles = (table.width + table.tile_width - 1)//table.tile_width
    table.columns.holds = holds_back(call, itemsize, ROWS_HELD_BACK)
    table.in_two_places = gains_by_two_places(table)


cdef inline double *in_phase(double *columns, const View *out) noexcept nogil:
    """Where coefficients begin, from there on: where offsets in COLUMN_PHASE are as in the first result's line.

    A processor that looks at offsets alone takes coefficients that it reads for results written just before, and waits
    for these. In phase, those of a column are read before its results are written, and then not for a row. (Zen 4, in a
    busy hour: large arrays of 64 or 256 columns took 1.5 to 3 times as long a line out of phase.)
    """
    cdef uintptr_t line
    if out == NULL:
        return columns
    line = (<uintptr_t>out.data + CACHE_LINE - 1)//CACHE_LINE*CACHE_LINE
    return columns + (line - <uintptr_t>columns) % COLUMN_PHASE//sizeof(double)


cdef void lay_out_scratch(Table *table) noexcept nogil:
    """What stands in the scratch, behind the gates of channels. Of each column: its centre, the sums of all blocks and
    four vectors more, for coefficients and gates; then numbers of channels, and `far`. scratch_of_part() counts it.
    """
    cdef const Call *call = table.call
    cdef Py_ssize_t size = padded(table.width)
    cdef double *columns
    table.center = <double *>after_gates(call) + LANES
    table.parts.a = table.center + size
    table.parts.a_low = table.parts.a + size
    table.parts.b = table.parts.a_low + size
    table.parts.b_low = table.parts.b + size
    columns = in_phase(table.parts.a, table.call.out)   # results need them when they need no sums any more
    table.columns.center, table.columns.mul = columns, columns + size
    table.columns.add, table.columns.by_x = columns + 2*size, columns + 3*size
    columns += 4*table.blocks*size
    table.columns.mul_below, table.columns.add_below = columns, columns + size
    table.columns.gate.low64, table.columns.gate.high64 = columns, columns + size
    table.columns.gate.low, table.columns.gate.high = columns + 2*size, columns + 3*size
    table.columns.center_below, table.columns.by_x_below = columns + 2*size, columns + 3*size
    table.columns.width = table.width
    table.columns.channels = call.channels
    table.columns.each = lay_out_numbers(columns + 4*size - LANES, call.channels, call)
    table.far = <char *>(table.columns.each.add_below32 + call.channels)


# ---- where rows are

cdef inline bint channels_in_place(const View *v, Py_ssize_t itemsize) noexcept nogil:
    """Whether the channels stand one behind the other in memory."""
    return v == NULL or (v.channel == itemsize and v.aligned)


cdef inline bint is_flat(const View *v, Py_ssize_t channels, Py_ssize_t itemsize) noexcept nogil:
    """Whether the rows, too, stand one behind the other."""
    return v == NULL or (channels_in_place(v, itemsize) and v.axes == 1
                         and (v.step[0] == channels*itemsize or v.shape[0] == 1))


cdef inline bint run_in_place(const Table *table, const View *v, Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """Whether a run of values, counted row by row from the first value of the array, is one in memory."""
    cdef Py_ssize_t channels = table.call.channels
    if is_flat(v, channels, table.loops.itemsize):
        return True
    return channels_in_place(v, table.loops.itemsize) and start % channels + length <= channels


cdef inline char *value_in_row(const View *v, Py_ssize_t row, Py_ssize_t c) noexcept nogil:
    if v.axes == 1:             # nearly always: no division
        return v.data + row*v.step[0] + c*v.channel
    return address(v, c, row)


cdef inline char *value_at(const Table *table, const View *v, Py_ssize_t start) noexcept nogil:
    cdef Py_ssize_t channels = table.call.channels, row = start//channels
    return value_in_row(v, row, start - row*channels)


cdef void move_values(const Table *table, const View *v, Py_ssize_t start, Py_ssize_t length, char *tile,
                      bint put) noexcept nogil:
    """Copy a run of values from the array into a tile, or (put) from the tile into the array."""
    cdef Py_ssize_t channels = table.call.channels, itemsize = table.loops.itemsize, some
    while length > 0:
        some = min(length, channels - start % channels)
        copy_values(value_at(table, v, start), v.channel, some, itemsize, tile, put)
        tile += some*itemsize
        start += some
        length -= some


cdef inline char *open_run(const Table *table, const View *v, Py_ssize_t start, Py_ssize_t length, void *tile,
                           bint fill) noexcept nogil:
    """Where a run of values is: in place, or in the tile, to which it is copied with `fill`. NULL: no array."""
    if v == NULL:
        return NULL
    if table.flat:
        return v.data + start*table.loops.itemsize
    if run_in_place(table, v, start, length):
        return value_at(table, v, start)
    if fill:
        move_values(table, v, start, length, <char *>tile, False)
    return <char *>tile


cdef inline char *row_in_place(const Table *table, const View *v, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    """Where a column of a row is, of a table that is in place. NULL: no array."""
    if v == NULL:
        return NULL
    if table.flat:
        return v.data + (row*table.width + column)*table.loops.itemsize
    return value_in_row(v, row, column)


cdef inline void close_run(const Table *table, const View *v, Py_ssize_t start, Py_ssize_t length,
                           const char *written, void *tile) noexcept nogil:
    if written == <const char *>tile:
        move_values(table, v, start, length, <char *>tile, True)


cdef inline Place place_in_row(const Table *table, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    """Where a column of a row is read, of a table that is in place."""
    cdef const Call *call = table.call
    cdef Place at
    at.x = row_in_place(table, call.x, row, column)
    at.dy = row_in_place(table, call.dy, row, column)
    at.y = row_in_place(table, call.y, row, column)
    at.out = at.dresidual = NULL
    return at


cdef inline Place place_of_run(const Table *table, Py_ssize_t start, Py_ssize_t length, void *x_tile, void *dy_tile,
                               void *y_tile) noexcept nogil:
    """Where a run of values is to be read: in place, or in the tiles."""
    cdef const Call *call = table.call
    cdef Place at
    at.x = open_run(table, call.x, start, length, x_tile, True)
    at.dy = open_run(table, call.dy, start, length, dy_tile, True)
    at.y = open_run(table, call.y, start, length, y_tile, True)
    at.out = at.dresidual = NULL
    return at
