# Driver for rows, (m, c): channels side by side, a value of each channel in every row.
#
# Loops run along the channels. Several rows of few channels count as one row: its columns belong to a channel each, and
# vectors are full. Rows are cut into blocks; in a block ROW_CHUNK rows are added up, column by column, before their
# sums are put away in compensated sums; the blocks of a column are merged in order, then the columns of a channel.
# Threads share the (block, tile of columns) pairs, so that narrow and wide arrays alike keep them busy.
#
# The results come from the last rows to the first: what the sums have read last is still in the cache. Large arrays get
# theirs in two places at once, where coefficients are in phase with all rows.

cdef enum:
    RESULT_VALUES = 16384       # of an item, that is rows whose results one thread computes
    RESULT_ITEMS = 32           # that are computed together: where they begin, memory has to be waited for
    RESULT_ROWS = 8             # of wide rows, that are computed part after part


cdef void apply_to_part(const Table *table, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """y or dx of values start..end, counted row by row."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef double y_tile[CHUNK]
    cdef double out_tile[CHUNK]
    cdef double dresidual_tile[CHUNK]
    cdef const Call *call = table.call
    cdef Py_ssize_t length, left = end - start
    cdef Place at
    while left > 0:
        length = left
        if not table.flat:
            if not table.in_place:
                length = min(length, CHUNK)
            if table.side_by_side == 1:
                length = min(length, call.channels - start % call.channels)
        at = place_of_run(table, start, length, x_tile, dy_tile, y_tile)
        at.out = open_run(table, call.out, start, length, out_tile, False)
        at.dresidual = open_run(table, call.dresidual, start, length, dresidual_tile, False)
        table.loops.apply_rows(&at, 1, &table.row, 1, length, &table.columns, start % table.width, 0, table.stream,
                               NULL, NULL)
        close_run(table, call.out, start, length, at.out, out_tile)
        close_run(table, call.dresidual, start, length, at.dresidual, dresidual_tile)
        start += length
        left -= length


cdef inline Place place_of_results(const Table *table, Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """Where a run of values is read and written, all of it in place."""
    cdef Place at = place_of_run(table, start, length, NULL, NULL, NULL)
    at.out = open_run(table, table.call.out, start, length, NULL, False)
    at.dresidual = open_run(table, table.call.dresidual, start, length, NULL, False)
    return at


cdef void apply_rows_in_two_places(const Table *table, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The same of whole rows: half of them, and as many behind them. (Lines of the result begin alike in all rows.)"""
    cdef Py_ssize_t half = (end - start)//(2*table.width)*table.width
    cdef Place at[2]
    at[0] = place_of_results(table, start, half)
    at[1] = place_of_results(table, start + half, half)
    table.loops.apply_rows(at, 2, &table.row, 1, half, &table.columns, 0, RESULTS_SOON, True, NULL, NULL)
    apply_to_part(table, start + 2*half, end)


cdef void apply_to_columns(const Table *table, Py_ssize_t start, Py_ssize_t length, Py_ssize_t end,
                           Py_ssize_t ahead) noexcept nogil:
    """The same of `length` values from `start` on and of as many in each row behind, before `end`."""
    cdef Py_ssize_t count = 1 + (end - start - length)//table.width if start + length <= end else 0
    cdef Place at = place_of_results(table, start, length)
    table.loops.apply_rows(&at, 1, &table.row, count, length, &table.columns, start % table.width, ahead, table.stream,
                           NULL, NULL)
    start += count*table.width
    if start < end:             # past the cache: the last row ends before these columns do
        apply_to_part(table, start, end)


cdef void apply_by_columns(const Table *table, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The same of wide rows, some of them at a time, part after part; past the cache from where a line of the result
    begins. Asked for is what comes next in these rows, or where they end in the next ones.
    """
    cdef Py_ssize_t width = table.width, column, length, rest
    if table.stream:
        length = (-<uintptr_t>table.call.out.data % CACHE_LINE)//table.loops.itemsize
        apply_to_part(table, start, start + length)
        start += length
    while start < end:
        column = 0
        while column < width:
            length = min(table.result_width, width - column)
            rest = width - column - length
            apply_to_columns(table, start + column, length, min(start + RESULT_ROWS*width, end),
                             length if rest > 0 else RESULT_ROWS*width - column)
            column += length
        start += RESULT_ROWS*width


cdef inline Py_ssize_t rows_of_item(const Table *table) noexcept nogil:
    return max(1, RESULT_VALUES//table.width)


cdef void apply_items(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Items are some rows each; after the sums the last ones first."""
    cdef const Table *table = <const Table *>task
    cdef Py_ssize_t some = rows_of_item(table)*table.width, last = table.call.values*table.call.channels, first = begin
    while end > begin:
        if table.call.measure:
            first = max(begin, end - RESULT_ITEMS)
        if table.in_two_places:
            apply_rows_in_two_places(table, first*some, min(end*some, last))
        elif table.result_width < table.width:
            apply_by_columns(table, first*some, min(end*some, last))
        else:
            apply_to_part(table, first*some, min(end*some, last))
        end = first


cdef void run_rows(Call *call) noexcept nogil:
    cdef Table table
    cdef fp_mode before = fp_default()
    cdef Py_ssize_t some
    table.call = call
    table.loops = choose_loops(call)
    find_shape(&table)
    find_places(&table)
    lay_out_scratch(&table)
    table.columns.act = call.act
    if has_gates(call):
        find_gates(call, table.loops.find_gates, 0, call.channels)
        table.loops.set_gate_columns(&table.columns, gates_of(call), NULL)
    if call.measure:
        measure_rows(&table)
    if call.out != NULL:
        find_numbers(call, 0, call.channels, &table.columns.each)
        table.loops.set_columns(&table.columns, undoes_a_slope(call), NULL)
        some = rows_of_item(&table)
        share(apply_items, &table, (table.rows + some - 1)//some, call.threads)
    fp_restore(before)
