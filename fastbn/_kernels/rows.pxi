# Driver for rows, (m, c): channels side by side, a value of each channel in every row.
#
# Loops run along the channels. Several rows of few channels count as one row: its columns belong to a channel each, and
# vectors are full. Rows are cut into blocks; in a block ROW_CHUNK rows are added up, column by column, before their
# sums are put away in compensated sums; the blocks of a column are merged in order, then the columns of a channel.
# Threads share the (block, tile of columns) pairs, so that narrow and wide arrays alike keep them busy.
#
# The results come from the last rows to the first: what the sums have read last is still in the cache.

cdef enum:
    ROW_TILE = 2048             # columns that are summed together
    SHARED_TILE = 512           # where there are threads to share them
    GATHERED_TILE = 128         # where they must be gathered, since threads have small stacks
    STREAMS = 8                 # parts of a block that are read side by side
    STREAMS_BACK = 4            # in each of two arrays
    AHEAD = 128                 # values
    RESULT_VALUES = 16384       # of an item, that is rows whose results one thread computes
    RESULT_ITEMS = 8            # that are computed together: where they begin, memory has to be waited for


cdef struct Table:
    Call *call
    Loops loops
    Py_ssize_t side_by_side     # rows of the array that make one row
    Py_ssize_t width            # columns of a row
    Py_ssize_t rows             # the last one may be shorter
    Py_ssize_t blocks, tiles    # parts of the rows, parts of the columns
    Py_ssize_t tile_width
    const View *dy              # what loops read as dy: dresidual, where that is filled first
    bint in_place               # no value must be gathered, or gated on the way
    bint flat                   # and there are no gaps between rows
    bint stream
    bint second                 # attempt: only the tiles that need it
    double *center              # per column: what the sums are taken about
    char *far                   # per column: whether the loops of a first attempt will not do
    ColumnSums parts            # of all blocks
    Columns columns


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
        copy_run(value_at(table, v, start), v.channel, some, v.storage, itemsize, tile, put)
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


cdef void gate_run(const Table *table, Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """dresidual = dy*act', for a run of values."""
    cdef double dy_tile[CHUNK]
    cdef double y_tile[CHUNK]
    cdef double g_tile[CHUNK]
    cdef const Call *call = table.call
    cdef Py_ssize_t some
    cdef char *g
    while length > 0:
        some = length if table.in_place else min(CHUNK, length)
        g = open_run(table, call.dresidual, start, some, g_tile, False)
        table.loops.gate_span(open_run(table, call.dy, start, some, dy_tile, True),
                              open_run(table, call.y, start, some, y_tile, True), g, some, &call.act)
        if g == <char *>g_tile:
            move_values(table, call.dresidual, start, some, g, True)
        start += some
        length -= some


cdef void read_run(const Table *table, Py_ssize_t start, Py_ssize_t length, void *x_tile, void *dy_tile,
                   const void **x, const void **dy) noexcept nogil:
    """Where a run of x and of what loops read as dy is; at most CHUNK values where they are not in place."""
    cdef double y_tile[CHUNK]
    cdef const Call *call = table.call
    cdef const char *y
    x[0] = open_run(table, call.x, start, length, x_tile, True)
    dy[0] = open_run(table, table.dy, start, length, dy_tile, True)
    if must_gate_tiles(call):
        y = open_run(table, call.y, start, length, y_tile, True)
        table.loops.gate_span(dy[0], y, dy_tile, length, &call.act)
        dy[0] = dy_tile
        if call.from_y:
            undo_values(<const double *>y, <double *>x_tile, length, &call.act)
            x[0] = x_tile


# ---- sums

cdef inline Py_ssize_t columns_of(const Table *table, Py_ssize_t tile) noexcept nogil:
    return min(table.tile_width, table.width - tile*table.tile_width)


cdef inline bint any_far(const Table *table, Py_ssize_t column, Py_ssize_t width) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(column, column + width):
        if table.far[j]:
            return True
    return False


cdef inline ColumnSums sums_of_block(const Table *table, Py_ssize_t block) noexcept nogil:
    cdef ColumnSums sums
    cdef Py_ssize_t first = 4*block*padded(table.width)
    sums.a, sums.a_low = table.parts.a + first, table.parts.a_low + first
    sums.b, sums.b_low = table.parts.b + first, table.parts.b_low + first
    return sums


cdef struct Strip:
    # Columns on the way through the rows of a block.
    const Table *table
    Py_ssize_t column, width
    bint far
    double s[ROW_TILE + 2*LANES]    # a line before the first column, and one behind the last
    double t[ROW_TILE + 2*LANES]


cdef void clear_strip(Strip *strip) noexcept nogil:
    memset(strip.s, 0, padded(strip.width)*sizeof(double))
    memset(strip.t, 0, padded(strip.width)*sizeof(double))


cdef void sum_some_rows(Strip *strip, const Py_ssize_t *rows, Py_ssize_t count, Py_ssize_t width) noexcept nogil:
    """Add at most STREAMS rows to the sums of the first `width` columns."""
    cdef double x_tile[STREAMS*GATHERED_TILE]
    cdef double dy_tile[STREAMS*GATHERED_TILE]
    cdef const void *x[STREAMS]
    cdef const void *dy[STREAMS]
    cdef const Table *table = strip.table
    cdef const Call *call = table.call
    cdef RowCenters about
    cdef Py_ssize_t i, start, ahead = AHEAD if table.flat else 0
    cdef sum_rows sum = table.loops.sum_rows_again if strip.far else table.loops.sum_rows
    for i in range(count):
        start = rows[i]*table.width + strip.column
        if fills_dresidual(call) and not table.second:
            gate_run(table, start, width)
        if table.in_place:
            x[i] = row_in_place(table, call.x, rows[i], strip.column)
            dy[i] = row_in_place(table, table.dy, rows[i], strip.column)
        else:
            read_run(table, start, width, x_tile + i*GATHERED_TILE, dy_tile + i*GATHERED_TILE, &x[i], &dy[i])
    about.center, about.f, about.column = table.center + strip.column, &table.columns, strip.column
    sum(dy, x, count, width, ahead, &about, strip.s + LANES, strip.t + LANES, NULL)


cdef void sum_block_of_rows(Strip *strip, Py_ssize_t begin, Py_ssize_t end, const ColumnSums *sums) noexcept nogil:
    """Add rows begin..end to `sums`: some parts of them side by side, a row of each in turn, then the rest.

    (Memory is read faster in several places at once.)
    """
    cdef const Table *table = strip.table
    cdef Py_ssize_t streams = STREAMS_BACK if table.call.backward else STREAMS
    cdef Py_ssize_t whole = min(end, table.call.values//table.side_by_side), part = (whole - begin)//streams
    cdef Py_ssize_t rows[STREAMS]
    cdef Py_ssize_t i, k, width
    clear_strip(strip)
    for i in range(part):
        for k in range(streams):
            rows[k] = begin + k*part + i
        sum_some_rows(strip, rows, streams, strip.width)
        if (i + 1)*streams % ROW_CHUNK == 0:
            add_to_columns(sums, strip.column, strip.s + LANES, strip.t + LANES, strip.width)
            clear_strip(strip)
    for k in range(begin + part*streams, end):
        width = strip.width
        if k == whole:          # the last row, which is shorter
            width = min(width, table.call.values*table.call.channels - k*table.width - strip.column)
        if width > 0:
            sum_some_rows(strip, &k, 1, width)
    add_to_columns(sums, strip.column, strip.s + LANES, strip.t + LANES, strip.width)


cdef void sum_items(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Items are (block of rows, tile of columns): the sums of each into table.parts."""
    cdef const Table *table = <const Table *>task
    cdef Strip strip
    cdef ColumnSums sums
    cdef Py_ssize_t item, block
    strip.table = table
    for item in range(begin, end):
        block = item//table.tiles
        strip.column = item % table.tiles*table.tile_width
        strip.width = columns_of(table, item % table.tiles)
        strip.far = any_far(table, strip.column, strip.width)
        if table.second and not strip.far:
            continue
        sums = sums_of_block(table, block)
        clear_columns(&sums, strip.column, strip.width)
        sum_block_of_rows(&strip, table.rows*block//table.blocks, table.rows*(block + 1)//table.blocks, &sums)


cdef double first_pivot_of_rows(const Call *call, Py_ssize_t c) noexcept nogil:
    """As first_pivot() in planes.pxi, for float64."""
    cdef double tile[PIVOT]
    cdef Py_ssize_t length = min(PIVOT, call.values), i
    cdef double *x = <double *>read_tile(call.x, c, 0, length, sizeof(double), tile)
    cdef double pivot = 0
    for i in range(length):
        pivot += x[i] - x[0]
    pivot = x[0] + pivot/length
    return pivot if isfinite(pivot) else 0.0


cdef void set_center(Table *table, Py_ssize_t c, double center, bint far) noexcept nogil:
    while c < table.width:
        table.center[c] = center
        table.far[c] = far
        c += table.call.channels


cdef void choose_centers(Table *table) noexcept nogil:
    """About what the first attempt sums: float32 about 0 where that is good enough."""
    cdef const Call *call = table.call
    cdef Py_ssize_t c
    cdef bint far, float64 = call.dtype == FLOAT64
    if not (float64 or (call.backward and any_far_from_zero(call, 0, call.channels))):
        memset(table.center, 0, table.width*sizeof(double))
        memset(table.far, False, table.width)
        return
    for c in range(call.channels):
        if call.backward:
            far = not float64 and far_from_zero(call, c)
            set_center(table, c, call.origin[c] if float64 or far else 0.0, far)
        else:
            set_center(table, c, first_pivot_of_rows(call, c), False)


cdef inline Sums sums_of_channel(const Table *table, const ColumnSums *columns, Py_ssize_t c) noexcept nogil:
    """Those of its columns, merged."""
    cdef Sums total, one
    cdef Py_ssize_t j = c
    while j < table.width:
        one.a, one.a_low, one.b, one.b_low = columns.a[j], columns.a_low[j], columns.b[j], columns.b_low[j]
        if j == c:
            total = one
        else:
            merge_sums(&total, &one)
        j += table.call.channels
    return total


cdef inline void sums_of_channels_from(const Table *table, const ColumnSums *columns, Py_ssize_t c, Py_ssize_t count,
                                       SumsTogether *to) noexcept nogil:
    """Those of `count` channels from c on."""
    cdef Sums one
    cdef Py_ssize_t k
    if table.side_by_side == 1:         # a column each
        memcpy(to.a, columns.a + c, count*sizeof(double))
        memcpy(to.b, columns.b + c, count*sizeof(double))
        memcpy(to.a_low, columns.a_low + c, count*sizeof(double))
        memcpy(to.b_low, columns.b_low + c, count*sizeof(double))
        return
    for k in range(count):
        one = sums_of_channel(table, columns, c + k)
        put_sums(to, k, &one)


cdef bint settle_channels(Table *table) noexcept nogil:
    """Merge blocks and columns; whether any channel must be summed again (then about its origin)."""
    cdef const Call *call = table.call
    cdef Py_ssize_t block, k, c = 0, some
    cdef bint any_again = False
    cdef bint again[TOGETHER]
    cdef ColumnSums total = sums_of_block(table, 0), part
    cdef SumsTogether sums
    for block in range(1, table.blocks):
        part = sums_of_block(table, block)
        merge_columns(&total, &part, table.width)
    while c < call.channels:
        some = 1 if table.second else min(TOGETHER, call.channels - c)
        if not table.second or table.far[c]:
            sums_of_channels_from(table, &total, c, some, &sums)
            settle(call, c, some, &sums, table.center + c, again)
            for k in range(some):
                if again[k]:
                    set_center(table, c + k, call.origin[c + k], True)
                    any_again = True
        c += some
    return any_again


cdef void measure_rows(Table *table) noexcept nogil:
    choose_centers(table)
    table.second = False
    share(sum_items, table, table.tiles*table.blocks, table.call.threads)
    if settle_channels(table):
        table.second = True
        share(sum_items, table, table.tiles*table.blocks, table.call.threads)
        settle_channels(table)


# ---- results

cdef void apply_to_part(const Table *table, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """y or dx of values start..end, counted row by row."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef double out_tile[CHUNK]
    cdef const Call *call = table.call
    cdef Py_ssize_t length, left = end - start
    cdef const void *x
    cdef const void *dy
    cdef char *out
    while left > 0:
        length = left
        if not table.flat:
            if not table.in_place:
                length = min(length, CHUNK)
            if table.side_by_side == 1:
                length = min(length, call.channels - start % call.channels)
        if fills_dresidual(call) and not call.measure:
            gate_run(table, start, length)
        read_run(table, start, length, x_tile, dy_tile, &x, &dy)
        if call.unrounded and call.dresidual != NULL:
            move_values(table, call.dresidual, start, length, <char *>dy_tile, True)
        out = open_run(table, call.out, start, length, out_tile, False)
        table.loops.apply_rows(dy, x, out, length, &table.columns, start % table.width, table.stream, NULL)
        if out == <char *>out_tile:
            move_values(table, call.out, start, length, out, True)
        start += length
        left -= length


cdef inline Py_ssize_t rows_of_item(const Table *table) noexcept nogil:
    return max(1, RESULT_VALUES//table.width)


cdef void apply_items(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Items are some rows each; after the sums the last ones first."""
    cdef const Table *table = <const Table *>task
    cdef Py_ssize_t some = rows_of_item(table)*table.width, last = table.call.values*table.call.channels, first = begin
    while end > begin:
        if table.call.measure:
            first = max(begin, end - RESULT_ITEMS)
        apply_to_part(table, first*some, min(end*some, last))
        end = first


cdef void lay_out_table(Table *table) noexcept nogil:
    """Sizes, and where everything stands in the scratch."""
    cdef Call *call = table.call
    cdef Py_ssize_t itemsize = table.loops.itemsize, size, k
    cdef const View *views[5]
    cdef double *columns
    table.side_by_side = side_by_side(call.channels, call.values)
    table.width = table.side_by_side*call.channels
    table.rows = (call.values + table.side_by_side - 1)//table.side_by_side
    table.blocks = block_count(table.width, call.values//table.side_by_side, ROWS)
    views[0], views[1], views[2], views[3], views[4] = call.x, call.dy, call.out, call.y, call.dresidual
    table.dy = read_as_dy(call)
    table.flat = table.in_place = not must_gate_tiles(call)
    for k in range(5):
        table.flat = table.flat and is_flat(views[k], call.channels, itemsize)
        table.in_place = table.in_place and channels_in_place(views[k], itemsize)
    table.in_place = table.flat or (table.in_place and table.side_by_side == 1)
    table.stream = call.stream and (table.flat or (table.in_place and call.channels*itemsize >= 1024))
    table.tile_width = GATHERED_TILE
    if table.in_place:
        table.tile_width = ROW_TILE if call.threads == 1 else SHARED_TILE
    table.tiles = (table.width + table.tile_width - 1)//table.tile_width
    size = padded(table.width)
    table.center = <double *>after_gates(call) + LANES
    table.parts.a = table.center + size
    table.parts.a_low = table.parts.a + size
    table.parts.b = table.parts.a_low + size
    table.parts.b_low = table.parts.b + size
    columns = table.parts.a + 4*table.blocks*size
    table.columns.center, table.columns.mul = columns, columns + size
    table.columns.add, table.columns.by_x = columns + 2*size, columns + 3*size
    table.columns.mul_below, table.columns.add_below = columns + 4*size, columns + 5*size
    table.columns.gate.low, table.columns.gate.high = columns + 6*size, columns + 7*size
    table.columns.gate.low64, table.columns.gate.high64 = columns + 8*size, columns + 9*size
    table.columns.width = table.width
    table.columns.channels = call.channels
    table.columns.each = lay_out_numbers(columns + 10*size - LANES, call.channels, call)
    table.far = <char *>(table.columns.each.wide + call.channels)


cdef inline bint is_activated(const Call *call) noexcept nogil:
    return call.gated or (call.dy != NULL and not call.backward)


cdef void run_rows(Call *call) noexcept nogil:
    cdef Table table
    cdef fp_mode before = fp_default()
    cdef Py_ssize_t some
    table.call = call
    table.loops = choose_loops(call)
    lay_out_table(&table)
    if has_gates(call):
        find_gates(call, table.loops.find_gate, 0, call.channels)
        table.columns.act = call.act
        table.loops.set_gate_columns(&table.columns, gates_of(call), NULL)
    if call.measure:
        measure_rows(&table)
    if call.out != NULL:
        find_numbers(call, 0, call.channels, &table.columns.each)
        table.loops.set_columns(&table.columns, is_activated(call), NULL)
        some = rows_of_item(&table)
        share(apply_items, &table, (table.rows + some - 1)//some, call.threads)
    fp_restore(before)
