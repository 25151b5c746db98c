# Sums of rows, and what a call measures with them.

cdef enum:
    AHEAD = 1024                # values from what is summed to what is asked for


cdef inline Py_ssize_t columns_of(const Table *table, Py_ssize_t tile) noexcept nogil:
    return min(table.tile_width, table.width - tile*table.tile_width)


cdef inline bint are_far(const Table *table, Py_ssize_t column, Py_ssize_t width) noexcept nogil:
    """Whether some of these columns are."""
    cdef Py_ssize_t j
    for j in range(column, column + width if table.any_far else column):
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
    sums_line_t s[TILE_LINES + 2]   # LANES before the first column, and some behind the last
    sums_line_t t[TILE_LINES + 2]


cdef inline double *first_column(sums_line_t *of) noexcept nogil:
    return of[1].sums


cdef void clear_strip(Strip *strip) noexcept nogil:
    memset(strip.s, 0, padded(strip.width)*sizeof(double))
    memset(strip.t, 0, padded(strip.width)*sizeof(double))


cdef void sum_some_rows(Strip *strip, const Py_ssize_t *rows, Py_ssize_t places, Py_ssize_t count,
                        Py_ssize_t width) noexcept nogil:
    """Add `count` rows from each of SUMMED_PLACES rows on, or from one, to the sums of the first `width` columns."""
    cdef double x_tile[SUMMED_PLACES][GATHERED_TILE]
    cdef double dy_tile[SUMMED_PLACES][GATHERED_TILE]
    cdef double y_tile[SUMMED_PLACES][GATHERED_TILE]
    cdef Place at[SUMMED_PLACES]
    cdef const Table *table = strip.table
    cdef RowCenters about
    cdef Py_ssize_t k, ahead = AHEAD if table.flat else 0
    cdef sum_rows sum = table.loops.sum_rows_again if strip.far else table.loops.sum_rows
    for k in range(places):
        if table.in_place:
            at[k] = place_in_row(table, rows[k], strip.column)
        else:
            at[k] = place_of_run(table, rows[k]*table.width + strip.column, width, x_tile[k], dy_tile[k], y_tile[k])
    about.center, about.f, about.column = table.center + strip.column, &table.columns, strip.column
    sum(at, places, &table.row, count, width, ahead, &about, first_column(strip.s), first_column(strip.t), NULL, NULL)


cdef void sum_block_of_rows(Strip *strip, Py_ssize_t begin, Py_ssize_t end, const ColumnSums *sums) noexcept nogil:
    """Add rows begin..end to `sums`: SUMMED_PLACES parts of them side by side, a row of each in turn, then the rest.

    (Memory is read faster in several places at once.)
    """
    cdef const Table *table = strip.table
    cdef Py_ssize_t whole = min(end, table.call.values//table.side_by_side), part = (whole - begin)//SUMMED_PLACES
    cdef Py_ssize_t rows[SUMMED_PLACES]
    cdef Py_ssize_t i = 0, k, width, some
    cdef bint first = True
    clear_strip(strip)
    while i < part:
        some = min(part - i, ROW_CHUNK//SUMMED_PLACES) if table.even else 1
        for k in range(SUMMED_PLACES):
            rows[k] = begin + k*part + i
        sum_some_rows(strip, rows, SUMMED_PLACES, some, strip.width)
        i += some
        if i*SUMMED_PLACES % ROW_CHUNK == 0:
            add_to_columns(sums, strip.column, first_column(strip.s), first_column(strip.t), strip.width, first)
            first = False
            clear_strip(strip)
    for k in range(begin + part*SUMMED_PLACES, end):
        width = strip.width
        if k == whole:          # the last row, which is shorter
            width = min(width, table.call.values*table.call.channels - k*table.width - strip.column)
        if width > 0:
            sum_some_rows(strip, &k, 1, 1, width)
    add_to_columns(sums, strip.column, first_column(strip.s), first_column(strip.t), strip.width, first)


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
        strip.far = are_far(table, strip.column, strip.width)
        if table.second and not strip.far:
            continue
        sums = sums_of_block(table, block)
        sum_block_of_rows(&strip, table.rows*block//table.blocks, table.rows*(block + 1)//table.blocks, &sums)


cdef void set_center(Table *table, Py_ssize_t c, double center, bint far) noexcept nogil:
    table.any_far = table.any_far or far
    while c < table.width:
        table.center[c] = center
        table.far[c] = far
        c += table.call.channels


cdef void choose_centers(Table *table) noexcept nogil:
    """About what the first attempt sums."""
    cdef const Call *call = table.call
    cdef Py_ssize_t c
    cdef double center
    cdef bint far
    table.any_far = False
    if all_about_0(call, 0, call.channels):
        memset(table.center, 0, table.width*sizeof(double))
        memset(table.far, False, table.width)       # (some may become far yet)
        return
    for c in range(call.channels):
        center = first_center(call, c, &far)
        set_center(table, c, center, far)


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
    cdef double again[TOGETHER]
    cdef ColumnSums total = sums_of_block(table, 0), part
    cdef SumsTogether sums
    for block in range(1, table.blocks):
        part = sums_of_block(table, block)
        merge_columns(&total, &part, table.width)
    while c < call.channels:
        some = 1 if table.second else min(TOGETHER, call.channels - c)
        if not table.second or table.far[c]:
            sums_of_channels_from(table, &total, c, some, &sums)
            if settle(call, c, some, &sums, table.center + c, again):
                any_again = True
                for k in range(some):
                    if again[k] != 0:
                        set_center(table, c + k, call.origin[c + k], True)
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
