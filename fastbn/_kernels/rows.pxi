# Driver for rows, (m, c): channels side by side, a value of each channel in every row.
#
# Loops run along the channels. Rows are cut into blocks; in a block ROW_CHUNK rows are added up, column by column,
# before their sums are put away in compensated sums, and the blocks of a channel are merged in order. Threads share the
# (tile of columns, block) pairs, so that narrow and wide arrays alike keep them busy.


cdef struct Table:
    Call *call
    RowLoops loops
    Py_ssize_t blocks, tiles    # parts of the rows, parts of the columns
    Py_ssize_t tile_rows        # rows of a tile: few where tiles must be gathered, since threads have small stacks
    double *center              # per channel: the pivot of the statistics, or the mean of the backward sums
    Coefficients *coefficients  # per channel
    Sums *parts                 # per block and channel


cdef inline bint rows_in_place(const View *v, Py_ssize_t itemsize) noexcept nogil:
    """Whether the channels of a row stand one behind the other in memory."""
    return v == NULL or (v.channel == itemsize and v.aligned)


cdef void row_addresses(const View *v, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t width,
                        Py_ssize_t itemsize, char **where, void *tile, bint fill) noexcept nogil:
    """Where a tile's rows are: in place, or one after the other in `tile`, to which they are copied with `fill`."""
    cdef Py_ssize_t i
    cdef char *there
    if v == NULL:
        return
    for i in range(rows):
        there = address(v, column, row + i)
        if rows_in_place(v, itemsize):
            where[i] = there
        else:
            where[i] = <char *>tile + i*width*itemsize
            if fill:
                move_run(v, there, v.channel, width, itemsize, where[i], False)


cdef void put_rows(const View *v, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t width,
                   Py_ssize_t itemsize, char **where) noexcept nogil:
    """Put rows that were computed in a tile into the array."""
    cdef Py_ssize_t i
    if rows_in_place(v, itemsize):
        return
    for i in range(rows):
        move_run(v, address(v, column, row + i), v.channel, width, itemsize, where[i], True)


cdef void sum_tile(const Table *table, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t width,
                   const double *center, double *a, double *b) noexcept nogil:
    """Add at most TILE_ROWS rows to the sums of their columns."""
    cdef char *x[TILE_ROWS]
    cdef char *dy[TILE_ROWS]
    cdef double x_tile[GATHERED_ROWS*TILE_WIDTH]
    cdef double dy_tile[GATHERED_ROWS*TILE_WIDTH]
    cdef const Call *call = table.call
    row_addresses(call.x, row, rows, column, width, table.loops.itemsize, x, x_tile, True)
    row_addresses(call.dy, row, rows, column, width, table.loops.itemsize, dy, dy_tile, True)
    table.loops.sum_rows(<const void **>dy, <const void **>x, rows, width, center, a, b)


cdef void sum_chunk_of_rows(const Table *table, Py_ssize_t row, Py_ssize_t end, Py_ssize_t column, Py_ssize_t width,
                            const double *center, double *a, double *b) noexcept nogil:
    """The sums of columns over rows row..end, at most ROW_CHUNK."""
    cdef Py_ssize_t rows
    memset(a, 0, width*sizeof(double))
    memset(b, 0, width*sizeof(double))
    while row < end:
        rows = min(table.tile_rows, end - row)
        sum_tile(table, row, rows, column, width, center, a, b)
        row += rows


cdef inline Py_ssize_t columns_from(const Table *table, Py_ssize_t tile) noexcept nogil:
    return min(TILE_WIDTH, table.call.channels - tile*TILE_WIDTH)


cdef void sum_items(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Items are (tile of columns, block of rows): the sums of each into table.parts."""
    cdef const Table *table = <const Table *>task
    cdef const Call *call = table.call
    cdef double a[TILE_WIDTH]
    cdef double b[TILE_WIDTH]
    cdef Py_ssize_t chunks = (call.values + ROW_CHUNK - 1)//ROW_CHUNK
    cdef Py_ssize_t item, block, chunk, column, width, j
    cdef Sums *parts
    for item in range(begin, end):
        column = item//table.blocks*TILE_WIDTH
        width = columns_from(table, item//table.blocks)
        block = item % table.blocks
        parts = table.parts + block*call.channels + column
        memset(parts, 0, width*sizeof(Sums))
        for chunk in range(chunks*block//table.blocks, chunks*(block + 1)//table.blocks):
            sum_chunk_of_rows(table, chunk*ROW_CHUNK, min((chunk + 1)*ROW_CHUNK, call.values), column, width,
                              table.center + column, a, b)
            for j in range(width):
                add_pair(&parts[j], a[j], b[j])


cdef void pivot_tiles(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """A pivot for each channel, as first_pivot() in planes.pxi."""
    cdef const Table *table = <const Table *>task
    cdef double a[TILE_WIDTH]
    cdef double b[TILE_WIDTH]
    cdef Py_ssize_t length = min(PIVOT, table.call.values), tile, column, width, j
    cdef double *center
    for tile in range(begin, end):
        column = tile*TILE_WIDTH
        width = columns_from(table, tile)
        center = table.center + column
        memset(center, 0, width*sizeof(double))
        sum_chunk_of_rows(table, 0, 1, column, width, center, a, b)
        memcpy(center, a, width*sizeof(double))
        sum_chunk_of_rows(table, 0, length, column, width, center, a, b)
        for j in range(width):
            center[j] += a[j]/length
            if not isfinite(center[j]):
                center[j] = 0


cdef bint settle_channels(const Table *table) noexcept nogil:
    """Merge the blocks of every channel; whether any channel must be summed again (its pivot is then its mean)."""
    cdef const Call *call = table.call
    cdef Py_ssize_t c, block
    cdef bint again = False
    cdef Sums total
    for c in range(call.channels):
        memset(&total, 0, sizeof(Sums))
        for block in range(table.blocks):
            merge_sums(&total, &table.parts[block*call.channels + c])
        if settle(call, c, &total, table.center[c]):
            table.center[c] = call.mean[c]
            again = True
    return again


cdef void measure_rows(Table *table) noexcept nogil:
    cdef const Call *call = table.call
    cdef int attempt
    if call.backward:
        memcpy(table.center, call.mean, call.channels*sizeof(double))
    else:
        share(pivot_tiles, table, table.tiles, call.threads)
    for attempt in range(2):
        share(sum_items, table, table.tiles*table.blocks, call.threads)
        if not settle_channels(table):
            return


cdef void apply_items(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Items are (tile_rows rows, tile of columns): y or dx of each."""
    cdef const Table *table = <const Table *>task
    cdef const Call *call = table.call
    cdef char *x[TILE_ROWS]
    cdef char *dy[TILE_ROWS]
    cdef char *out[TILE_ROWS]
    cdef double x_tile[GATHERED_ROWS*TILE_WIDTH]
    cdef double dy_tile[GATHERED_ROWS*TILE_WIDTH]
    cdef double out_tile[GATHERED_ROWS*TILE_WIDTH]
    cdef Py_ssize_t itemsize = table.loops.itemsize, item, row, rows, column, width
    for item in range(begin, end):
        row = item//table.tiles*table.tile_rows
        rows = min(table.tile_rows, call.values - row)
        column = item % table.tiles*TILE_WIDTH
        width = columns_from(table, item % table.tiles)
        row_addresses(call.x, row, rows, column, width, itemsize, x, x_tile, True)
        row_addresses(call.dy, row, rows, column, width, itemsize, dy, dy_tile, True)
        row_addresses(call.out, row, rows, column, width, itemsize, out, out_tile, False)
        table.loops.apply_rows(<const void **>dy, <const void **>x, <void **>out, rows, width,
                               table.coefficients + column)
        put_rows(call.out, row, rows, column, width, itemsize, out)


cdef void run_rows(Call *call) noexcept nogil:
    cdef Table table
    cdef fp_mode before = fp_default()
    cdef Py_ssize_t c
    table.call = call
    table.loops = choose_row_loops(call)
    table.blocks = block_count(call.channels, call.values, ROWS)
    table.tiles = (call.channels + TILE_WIDTH - 1)//TILE_WIDTH
    table.tile_rows = GATHERED_ROWS
    if (rows_in_place(call.x, table.loops.itemsize) and rows_in_place(call.dy, table.loops.itemsize)
            and rows_in_place(call.out, table.loops.itemsize)):
        table.tile_rows = TILE_ROWS
    table.coefficients = <Coefficients *>call.scratch
    table.parts = <Sums *>(table.coefficients + call.channels)
    table.center = <double *>(table.parts + table.blocks*call.channels)
    if call.measure:
        measure_rows(&table)
    if call.out != NULL:
        for c in range(call.channels):
            table.coefficients[c] = coefficients(call, c)
        share(apply_items, &table, (call.values + table.tile_rows - 1)//table.tile_rows*table.tiles, call.threads)
    fp_restore(before)
