# Driver for planes, (n, c, s): a few channels after the other.
#
# The values of a channel, sample after sample, are cut into pieces of at most CHUNK: a row of s values into equal
# parts, or as many short rows as fit. A piece is summed in lanes (lanes.pxi), pieces are added up within a block, and
# blocks are merged in order. While the sums of a channel are taken, a channel before it, which is still in the cache,
# gets its result: memory sees x once, and is read and written at the same time. Short rows go through memory in groups
# of neighbouring channels. Only where channels are fewer than half the threads do threads share a channel. None of
# this changes the order of a channel's additions.

cdef enum:
    PIVOT = 16              # values whose mean is the pivot of float64: near enough nearly always, and checked
    SHORT = 256             # rows of fewer values are summed several at a time, and not written past the cache
    SHORTEST = 16           # runs of fewer values are gathered before anything is done with them
    GROUP = 16              # channels side by side, at most
    GROUP_BYTES = 204800    # what a group of channels with short rows may take of the cache


cdef struct Plan:
    # How a call goes through its channels: the same for all of them.
    const Call *call
    Loops loops
    Py_ssize_t plane            # values of a row
    Py_ssize_t rows             # of a channel, one per sample
    Py_ssize_t per_piece        # short rows of a piece; 0: rows are long
    Py_ssize_t per_row          # pieces of a long row
    Py_ssize_t pieces, blocks   # of a channel
    Py_ssize_t run              # length of the runs that all arrays have in place; 0: some must be gathered
    Py_ssize_t group            # channels that go side by side


cdef struct Channel:
    const Plan *plan
    Py_ssize_t c
    double center               # the sums are taken about it
    bint far                    # it is not 0 although the values are float32
    Coefficients coefficients
    const Channel *before       # gets its result while the sums of this one are taken; or NULL
    Sums total, block
    Sums *parts                 # of all blocks, where threads share the channel


cdef struct Piece:
    Py_ssize_t row, start, length       # values from `start` on in a row, or all values of some rows


cdef Plan make_plan(const Call *call) noexcept nogil:
    cdef Plan plan
    plan.call = call
    plan.loops = choose_loops(call)
    plan.plane = call.plane
    plan.rows = call.values//call.plane
    plan.per_piece = CHUNK//call.plane if call.plane < SHORT else 0
    plan.per_row = (call.plane + CHUNK - 1)//CHUNK
    plan.pieces = plan.rows*plan.per_row
    plan.group = 1              # and the one before
    if plan.per_piece:
        plan.pieces = (plan.rows + plan.per_piece - 1)//plan.per_piece
        plan.group = max(1, min(GROUP, GROUP_BYTES//(call.values*plan.loops.itemsize)))
    if not call.measure:
        plan.group = GROUP
    plan.blocks = block_count(call.channels, call.values, PLANES)
    plan.run = common_run(call, plan.loops.itemsize)
    return plan


cdef inline Piece find_piece(const Plan *plan, Py_ssize_t number) noexcept nogil:
    """Short rows: as many as fit. Long ones: equal parts, each beginning at a multiple of LANES."""
    cdef Piece piece
    cdef Py_ssize_t part, lines = (plan.plane + LANES - 1)//LANES
    if plan.per_piece:
        piece.row = number*plan.per_piece
        piece.start = 0
        piece.length = min(plan.per_piece, plan.rows - piece.row)*plan.plane
        return piece
    piece.row = number//plan.per_row
    part = number - piece.row*plan.per_row
    piece.start = part*lines//plan.per_row*LANES
    piece.length = min(plan.plane, (part + 1)*lines//plan.per_row*LANES) - piece.start
    return piece


cdef inline const char *piece_in_row(const Plan *plan, const View *v, Py_ssize_t c, Piece piece) noexcept nogil:
    """Where a piece is that lies in a row in place."""
    return NULL if v == NULL else row_start(v, c, piece.row) + piece.start*plan.loops.itemsize


cdef inline const char *read_piece(const Plan *plan, const View *v, Py_ssize_t c, Piece piece,
                                   char *tile) noexcept nogil:
    """The values of a piece: in place, or gathered into the tile. NULL where no array is."""
    cdef Py_ssize_t itemsize = plan.loops.itemsize, size = plan.plane*itemsize, byte = 0, row = piece.row
    if v == NULL:
        return NULL
    if plan.run != plan.plane:
        return read_tile(v, c, piece.row*plan.plane + piece.start, piece.length, itemsize, tile)
    if piece.length <= plan.plane:
        return piece_in_row(plan, v, c, piece)
    while byte < piece.length*itemsize:
        memcpy(tile + byte, row_start(v, c, row), size)
        byte += size
        row += 1
    return tile


cdef inline void prefetch_rows(const Plan *plan, const View *v, Py_ssize_t c, Py_ssize_t row) noexcept nogil:
    """Ask for the short rows of a piece that comes soon."""
    cdef Py_ssize_t end = min(row + plan.per_piece, plan.rows)
    if v == NULL or plan.run != plan.plane:
        return
    while row < end:
        prefetch_bytes(row_start(v, c, row), plan.plane*plan.loops.itemsize)
        row += 1


cdef void sum_piece(const Channel *channel, Py_ssize_t number, Sums *sums) noexcept nogil:
    """Add a piece to the sums; the same piece of the channel before gets its result."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef const Plan *plan = channel.plan
    cdef const Call *call = plan.call
    cdef const Channel *before = channel.before
    cdef Piece piece = find_piece(plan, number)
    cdef const char *x = read_piece(plan, call.x, channel.c, piece, <char *>x_tile)
    cdef const char *dy = read_piece(plan, call.dy, channel.c, piece, <char *>dy_tile)
    cdef const char *x_ahead = x
    cdef const char *dy_ahead = dy
    cdef Py_ssize_t position = piece.row*plan.plane + piece.start
    if plan.per_piece:
        prefetch_rows(plan, call.x, channel.c, piece.row + plan.per_piece)
        prefetch_rows(plan, call.dy, channel.c, piece.row + plan.per_piece)
    elif plan.run == plan.plane and number + 1 < plan.pieces:
        x_ahead = piece_in_row(plan, call.x, channel.c, find_piece(plan, number + 1))
        dy_ahead = piece_in_row(plan, call.dy, channel.c, find_piece(plan, number + 1))
    if before == NULL:
        sum_span_of(channel, dy, x, dy_ahead, x_ahead, piece.length, sums)
    elif plan.per_piece or channel.far or plan.run != plan.plane:
        apply_to_span(<void *>before, position, position + piece.length)
        sum_span_of(channel, dy, x, dy_ahead, x_ahead, piece.length, sums)
    else:
        plan.loops.sweep_span(
            piece_in_row(plan, call.dy, before.c, piece), piece_in_row(plan, call.x, before.c, piece),
            <char *>piece_in_row(plan, call.out, before.c, piece), &before.coefficients, call.stream,
            dy, x, dy_ahead, x_ahead, piece.length, channel.center, sums)


cdef inline void sum_span_of(const Channel *channel, const void *dy, const void *x, const void *dy_ahead,
                             const void *x_ahead, Py_ssize_t length, Sums *sums) noexcept nogil:
    if channel.far:
        channel.plan.loops.far_sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, sums)
    else:
        channel.plan.loops.sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, sums)


cdef void sum_blocks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The sums of blocks begin..end of a channel, each for itself."""
    cdef Channel *channel = <Channel *>task
    cdef const Plan *plan = channel.plan
    cdef Py_ssize_t block, piece
    for block in range(begin, end):
        memset(&channel.parts[block], 0, sizeof(Sums))
        for piece in range(plan.pieces*block//plan.blocks, plan.pieces*(block + 1)//plan.blocks):
            sum_piece(channel, piece, &channel.parts[block])


cdef void sum_by_team(Channel *channel, int threads) noexcept nogil:
    """The sums of a channel, by all threads."""
    cdef Sums parts[MAX_BLOCKS]
    cdef Py_ssize_t block
    channel.parts = parts
    share(sum_blocks, channel, channel.plan.blocks, threads)
    memset(&channel.total, 0, sizeof(Sums))
    for block in range(channel.plan.blocks):
        merge_sums(&channel.total, &parts[block])


cdef void sum_side_by_side(Channel *channels, Py_ssize_t count) noexcept nogil:
    """The sums of channels, piece after piece of each in turn: their rows are neighbours in memory."""
    cdef Py_ssize_t block, piece, k, pieces = channels.plan.pieces, blocks = channels.plan.blocks
    for k in range(count):
        memset(&channels[k].total, 0, sizeof(Sums))
    for block in range(blocks):
        for k in range(count):
            memset(&channels[k].block, 0, sizeof(Sums))
        for piece in range(pieces*block//blocks, pieces*(block + 1)//blocks):
            for k in range(count):
                sum_piece(&channels[k], piece, &channels[k].block)
        for k in range(count):
            merge_sums(&channels[k].total, &channels[k].block)


cdef double first_pivot(const Channel *channel) noexcept nogil:
    """Mean of the first few values, as value + mean(x - value): exact where they are all equal."""
    cdef double tile[PIVOT]
    cdef const Call *call = channel.plan.call
    cdef const Loops *loops = &channel.plan.loops
    cdef Py_ssize_t length = min(PIVOT, call.values)
    cdef const char *x = read_tile(call.x, channel.c, 0, length, loops.itemsize, tile)
    cdef double value, pivot
    cdef Sums sums
    memset(&sums, 0, sizeof(Sums))
    loops.far_sum_span(NULL, x, NULL, NULL, 1, 0.0, &sums)
    value = sums.a
    memset(&sums, 0, sizeof(Sums))
    loops.far_sum_span(NULL, x, NULL, NULL, length, value, &sums)
    pivot = value + sums.a/length
    return pivot if isfinite(pivot) else 0.0


cdef void choose_center(Channel *channel) noexcept nogil:
    """About what the first attempt sums: float32 about 0 where that is good enough."""
    cdef const Call *call = channel.plan.call
    channel.far = False
    channel.center = 0
    if call.backward:
        channel.far = call.dtype != FLOAT64 and far_from_zero(call, channel.c)
        if call.dtype == FLOAT64 or channel.far:
            channel.center = call.mean[channel.c]
    elif call.dtype == FLOAT64:
        channel.center = first_pivot(channel)


cdef bint must_sum_again(Channel *channel) noexcept nogil:
    """Take what the call asked for from the sums, or make ready for better ones."""
    channel.before = NULL
    if not settle(channel.plan.call, channel.c, &channel.total, channel.center):
        return False
    channel.center = channel.plan.call.mean[channel.c]
    channel.far = True
    return True


cdef void measure_channels(Channel *channels, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        choose_center(&channels[k])
    sum_side_by_side(channels, count)
    for k in range(count):
        if must_sum_again(&channels[k]):
            sum_side_by_side(&channels[k], 1)
            must_sum_again(&channels[k])


cdef void apply_to_span(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of a channel."""
    cdef const Channel *channel = <const Channel *>task
    if channel.plan.run >= SHORTEST:
        apply_in_place(channel, begin, end)
    else:
        apply_to_tiles(channel, begin, end)


cdef void apply_in_place(const Channel *channel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Plan *plan = channel.plan
    cdef const Call *call = plan.call
    cdef Py_ssize_t c = channel.c, run = plan.run
    cdef Py_ssize_t row = begin//run, start = begin - row*run, length, left = end - begin
    cdef Py_ssize_t skip = start*plan.loops.itemsize
    cdef bint stream = call.stream and run >= SHORT
    while left > 0:
        length = min(left, run - start)
        plan.loops.apply_span(row_start(call.dy, c, row) + skip, row_start(call.x, c, row) + skip,
                              row_start(call.out, c, row) + skip, length, &channel.coefficients, stream)
        left -= length
        row += 1
        start = skip = 0


cdef void apply_to_tiles(const Channel *channel, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The same where some array has no runs worth the name: through tiles."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef double out_tile[CHUNK]
    cdef const Call *call = channel.plan.call
    cdef const Loops *loops = &channel.plan.loops
    cdef Py_ssize_t c = channel.c, itemsize = loops.itemsize, length
    cdef const char *x
    cdef const char *dy
    cdef char *out
    while begin < end:
        length = min(CHUNK, end - begin)
        x = read_tile(call.x, c, begin, length, itemsize, x_tile)
        dy = read_tile(call.dy, c, begin, length, itemsize, dy_tile)
        out = open_tile(call.out, c, begin, length, itemsize, out_tile)
        loops.apply_span(dy, x, out, length, &channel.coefficients, False)
        close_tile(call.out, c, begin, length, itemsize, out, out_tile)
        begin += length


cdef void apply_side_by_side(const Channel *channels, Py_ssize_t count) noexcept nogil:
    """The results of channels (if any), row after row of each in turn."""
    cdef Py_ssize_t position = 0, k
    if count <= 0:
        return
    while position < channels.plan.call.values:
        for k in range(count):
            apply_to_span(<void *>&channels[k], position, position + channels.plan.plane)
        position += channels.plan.plane


cdef void run_channels(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Channels begin..end, by one thread: a pipeline in which a group gets its result with the sums of the next."""
    cdef const Plan *plan = <const Plan *>task
    cdef const Call *call = plan.call
    cdef Channel groups[2][GROUP]
    cdef Channel *group
    cdef Channel *before = NULL
    cdef Py_ssize_t c = begin, k, count, waiting = 0
    while c < end:
        count = min(plan.group, end - c)
        group = groups[(c - begin)//plan.group % 2]
        for k in range(count):
            group[k].plan = plan
            group[k].c = c + k
            group[k].before = &before[k] if k < waiting else NULL
        if call.measure:
            measure_channels(group, count)
            apply_side_by_side(before + count, waiting - count)
        if call.out != NULL:
            for k in range(count):
                group[k].coefficients = coefficients(call, c + k)
            if call.measure:
                before = group
                waiting = count
            else:
                apply_side_by_side(group, count)
        c += count
    apply_side_by_side(before, waiting)


cdef void run_channel_by_team(const Plan *plan, Py_ssize_t c) noexcept nogil:
    """One channel, by all threads."""
    cdef const Call *call = plan.call
    cdef Channel channel
    channel.plan = plan
    channel.c = c
    channel.before = NULL
    if call.measure:
        choose_center(&channel)
        sum_by_team(&channel, call.threads)
        if must_sum_again(&channel):
            sum_by_team(&channel, call.threads)
            must_sum_again(&channel)
    if call.out != NULL:
        channel.coefficients = coefficients(call, c)
        share(apply_to_span, &channel, call.values, call.threads)


cdef void run_planes(Call *call) noexcept nogil:
    cdef fp_mode before = fp_default()
    cdef Plan plan = make_plan(call)
    cdef Py_ssize_t c
    if split_channels(call.channels, call.threads):
        for c in range(call.channels):
            run_channel_by_team(&plan, c)
    else:
        share(run_channels, &plan, call.channels, call.threads)
    fp_restore(before)
