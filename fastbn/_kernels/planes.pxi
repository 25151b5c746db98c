# Driver for planes, (n, c, s): channel after channel.
#
# The values of a channel, in sample after sample, are cut into pieces of at most CHUNK: rows of s values into equal pieces,
# and where rows are short, all of them as one sequence. A piece is summed in lanes (lanes.pxi), pieces are added up
# within a block, and blocks are merged in order. While the sums of a channel are taken, the channel before it, which is
# still in the cache, gets its result: memory sees x once, and is read and written at the same time. Only where channels
# are fewer than half the threads do threads share a channel; the order of the additions is the same then.

cdef enum:
    PIVOT = 16      # values whose mean is the pivot: near enough for nearly all data, and checked (see statistics)
    SHORT = 256     # rows of fewer values are summed as one sequence, and not written past the cache
    SHORTEST = 16   # runs of fewer values are gathered before anything is done with them


cdef struct Channel:
    const Call *call
    Loops loops
    Py_ssize_t c
    Py_ssize_t per_row          # pieces of a row; 0: rows are short
    Py_ssize_t pieces, blocks
    Py_ssize_t run              # length of the rows that all arrays have in place; 0: some must be gathered
    double center               # the sums are taken about it
    bint far                    # it is not 0 although the values are float32
    Coefficients coefficients
    const Channel *before       # gets its result while the sums of this one are taken; or NULL
    Sums parts[MAX_BLOCKS]


cdef void start_channel(Channel *channel, const Call *call, Py_ssize_t c, const Channel *before) noexcept nogil:
    channel.call = call
    channel.loops = choose_loops(call)
    channel.c = c
    channel.before = before
    channel.blocks = block_count(call.channels, call.values, PLANES)
    channel.run = common_run(call, channel.loops.itemsize)
    if call.plane < SHORT:
        channel.per_row = 0
        channel.pieces = (call.values + CHUNK - 1)//CHUNK
    else:
        channel.per_row = (call.plane + CHUNK - 1)//CHUNK
        channel.pieces = call.values//call.plane*channel.per_row


cdef inline Py_ssize_t piece_edge(const Channel *channel, Py_ssize_t piece) noexcept nogil:
    """Position where a piece begins: in rows at a multiple of LANES from the row's beginning."""
    cdef Py_ssize_t plane = channel.call.plane, lines = (plane + LANES - 1)//LANES
    if channel.per_row == 0:
        return min(channel.call.values, piece*CHUNK)
    return piece//channel.per_row*plane + piece % channel.per_row*lines//channel.per_row*LANES


cdef void sum_piece(const Channel *channel, Py_ssize_t piece, Sums *sums) noexcept nogil:
    """Add a piece to the sums; the same piece of the channel before gets its result."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef const Call *call = channel.call
    cdef const Channel *before = channel.before
    cdef const Loops *loops = &channel.loops
    cdef Py_ssize_t c = channel.c, itemsize = loops.itemsize
    cdef Py_ssize_t position = piece_edge(channel, piece), end = piece_edge(channel, piece + 1), length = end - position
    cdef Py_ssize_t soon = end if end < call.values else position
    cdef const char *x = read_tile(call.x, c, position, length, itemsize, x_tile)
    cdef const char *dy = read_tile(call.dy, c, position, length, itemsize, dy_tile)
    cdef const char *x_ahead = ahead(call.x, c, soon)
    cdef const char *dy_ahead = ahead(call.dy, c, soon)
    if before != NULL and not channel.far and channel.run and position % channel.run + length <= channel.run:
        loops.sweep_span(ahead(call.dy, before.c, position), address(call.x, before.c, position),
                         address(call.out, before.c, position), &before.coefficients, call.stream,
                         dy, x, dy_ahead, x_ahead, length, channel.center, sums)
        return
    if before != NULL:
        apply_to_span(<void *>before, position, end)
    if channel.far:
        loops.far_sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, sums)
    else:
        loops.sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, sums)


cdef void sum_blocks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The sums of blocks begin..end of a channel. A block is a whole number of pieces."""
    cdef Channel *channel = <Channel *>task
    cdef Py_ssize_t block, piece
    for block in range(begin, end):
        memset(&channel.parts[block], 0, sizeof(Sums))
        for piece in range(channel.pieces*block//channel.blocks, channel.pieces*(block + 1)//channel.blocks):
            sum_piece(channel, piece, &channel.parts[block])


cdef double first_pivot(const Channel *channel) noexcept nogil:
    """Mean of the first few values, as value + mean(x - value): exact where they are all equal."""
    cdef double tile[PIVOT]
    cdef const Call *call = channel.call
    cdef Py_ssize_t length = min(PIVOT, call.values)
    cdef const char *x = read_tile(call.x, channel.c, 0, length, channel.loops.itemsize, tile)
    cdef double value, pivot
    cdef Sums sums
    memset(&sums, 0, sizeof(Sums))
    channel.loops.far_sum_span(NULL, x, NULL, NULL, 1, 0.0, &sums)
    value = sums.a
    memset(&sums, 0, sizeof(Sums))
    channel.loops.far_sum_span(NULL, x, NULL, NULL, length, value, &sums)
    pivot = value + sums.a/length
    return pivot if isfinite(pivot) else 0.0


cdef void choose_center(Channel *channel) noexcept nogil:
    """About what the first attempt sums: float32 about 0 where that is good enough."""
    cdef const Call *call = channel.call
    channel.far = False
    channel.center = 0
    if call.backward:
        channel.far = call.dtype != FLOAT64 and far_from_zero(call, channel.c)
        if call.dtype == FLOAT64 or channel.far:
            channel.center = call.mean[channel.c]
    elif call.dtype == FLOAT64:
        channel.center = first_pivot(channel)


cdef void measure_channel(Channel *channel, int threads) noexcept nogil:
    cdef const Call *call = channel.call
    cdef Py_ssize_t c = channel.c, block
    cdef Sums total
    cdef int attempt
    choose_center(channel)
    for attempt in range(2):
        share(sum_blocks, channel, channel.blocks, threads)
        channel.before = NULL
        memset(&total, 0, sizeof(Sums))
        for block in range(channel.blocks):
            merge_sums(&total, &channel.parts[block])
        if not settle(call, c, &total, channel.center):
            return
        channel.center = call.mean[c]
        channel.far = True


cdef void apply_to_span(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of a channel."""
    cdef const Channel *channel = <const Channel *>task
    if channel.run >= SHORTEST:
        apply_in_place(channel, begin, end)
    else:
        apply_to_tiles(channel, begin, end)


cdef void apply_in_place(const Channel *channel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Call *call = channel.call
    cdef Py_ssize_t c = channel.c, run = channel.run
    cdef Py_ssize_t row = begin//run, start = begin % run, length, left = end - begin
    cdef Py_ssize_t skip = start*channel.loops.itemsize
    cdef bint stream = call.stream and run >= SHORT
    while left > 0:
        length = min(left, run - start)
        channel.loops.apply_span(row_start(call.dy, c, row) + skip, row_start(call.x, c, row) + skip,
                                 row_start(call.out, c, row) + skip, length, &channel.coefficients, stream)
        left -= length
        row += 1
        start = skip = 0


cdef void apply_to_tiles(const Channel *channel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The same where some array has no runs worth the name: through tiles."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef double out_tile[CHUNK]
    cdef const Call *call = channel.call
    cdef Py_ssize_t c = channel.c, itemsize = channel.loops.itemsize, length
    cdef const char *x
    cdef const char *dy
    cdef char *out
    while begin < end:
        length = min(CHUNK, end - begin)
        x = read_tile(call.x, c, begin, length, itemsize, x_tile)
        dy = read_tile(call.dy, c, begin, length, itemsize, dy_tile)
        out = open_tile(call.out, c, begin, length, itemsize, out_tile)
        channel.loops.apply_span(dy, x, out, length, &channel.coefficients, False)
        close_tile(call.out, c, begin, length, itemsize, out, out_tile)
        begin += length


cdef void measure_and_apply(const Call *call, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Channels begin..end in a pipeline: the sums of each together with the result of the one before."""
    cdef Channel channels[2]
    cdef Channel *channel = NULL
    cdef const Channel *before = NULL
    cdef Py_ssize_t c
    for c in range(begin, end):
        channel = &channels[c % 2]
        start_channel(channel, call, c, before)
        measure_channel(channel, 1)
        if call.out != NULL:
            channel.coefficients = coefficients(call, c)
            before = channel
    if before != NULL:
        apply_to_span(<void *>before, 0, call.values)


cdef void run_channels(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Channels begin..end, by one thread."""
    cdef const Call *call = <const Call *>task
    cdef Channel channel
    cdef Py_ssize_t c
    if call.measure:
        measure_and_apply(call, begin, end)
        return
    for c in range(begin, end):
        start_channel(&channel, call, c, NULL)
        channel.coefficients = coefficients(call, c)
        apply_to_span(&channel, 0, call.values)


cdef void run_channel_by_team(const Call *call, Py_ssize_t c) noexcept nogil:
    """One channel, by all threads."""
    cdef Channel channel
    start_channel(&channel, call, c, NULL)
    if call.measure:
        measure_channel(&channel, call.threads)
    if call.out != NULL:
        channel.coefficients = coefficients(call, c)
        share(apply_to_span, &channel, call.values, call.threads)


cdef void run_planes(Call *call) noexcept nogil:
    cdef fp_mode before = fp_default()
    cdef Py_ssize_t c
    if split_channels(call.channels, call.threads):
        for c in range(call.channels):
            run_channel_by_team(call, c)
    else:
        share(run_channels, call, call.channels, call.threads)
    fp_restore(before)
