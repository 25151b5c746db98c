# Driver for planes, (n, c, s): a few channels after the other.
#
# The values of a channel are cut into folds of some FOLD values: rows of s values, or equal parts of longer ones. A
# fold is summed in lanes (lanes.pxi), folds are added up within a block, and blocks are merged in order. While the sums
# of a channel are taken, a channel before it, which is still in the cache, gets its result: memory sees x once, and is
# read and written at the same time. Short rows go through memory in groups of neighbouring channels, a row of each in
# turn. Only where channels are fewer than half the threads do threads share a channel. None of this changes the order
# of a channel's additions.

cdef enum:
    PIVOT = 16              # values whose mean is the pivot of float64: near enough nearly always, and checked
    SHORT = 256             # rows of fewer values go in groups
    SHORT_STREAM = 128      # rows of fewer values are not written past the cache, which only whole lines can be
    SHORT_STREAM_FROM = 16 << 20    # bytes of a result from which short rows are
    SHORTEST = 16           # rows of fewer values are gathered before anything is done with them
    FOLD = 4096             # values that share lanes, 256 additions a lane; more often, folding would take a third
    PIECE = 1024            # values that are swept at once, where they need not be gathered into tiles of CHUNK
    GROUP = 32              # channels side by side, at most
    GROUP_BYTES = 204800    # what a group of channels with short rows may take of the cache


cdef struct Plan:
    # How a call goes through its channels: the same for all of them.
    const Call *call
    Loops loops
    Py_ssize_t plane            # values of a row
    Py_ssize_t rows             # of a channel, one per sample
    Py_ssize_t segments         # folds of a row; 0: folds are made of rows
    Py_ssize_t per_fold         # values of a segment, or rows of a fold
    Py_ssize_t piece            # values that are swept at once
    Py_ssize_t folds, blocks    # of a channel
    Py_ssize_t run              # length of the runs that all arrays have in place; 0: some must be gathered
    Py_ssize_t group            # channels that go side by side
    bint rows_in_turn           # a short row of each, all of them in place; else piece by piece
    Py_ssize_t at_once          # short rows that are summed before as many get their results
    bint stream                 # write past the cache


cdef struct Channel:
    const Plan *plan
    Py_ssize_t c
    double center               # the sums are taken about it
    bint far                    # it is not 0 although the values are float32
    Coefficients coefficients
    const Channel *before       # gets its result while the sums of this one are taken; or NULL
    Lanes lanes
    Sums total, block
    Sums *parts                 # of all blocks, where threads share the channel


cdef Plan make_plan(const Call *call) noexcept nogil:
    cdef Plan plan
    cdef Py_ssize_t channel_bytes
    plan.call = call
    plan.loops = choose_loops(call)
    plan.plane = call.plane
    plan.rows = call.values//call.plane
    plan.blocks = block_count(call.channels, call.values, PLANES)
    plan.run = common_run(call, plan.loops.itemsize)
    plan.rows_in_turn = SHORTEST <= call.plane < SHORT and plan.run == call.plane
    cut_into_folds(&plan)
    channel_bytes = call.values*plan.loops.itemsize
    plan.at_once = max(1, SHORT//call.plane)
    plan.stream = call.stream
    if call.plane < SHORT:
        plan.stream = call.plane >= SHORT_STREAM and call.channels*channel_bytes >= SHORT_STREAM_FROM
    plan.group = 1              # and the one before
    if call.plane < SHORT:
        plan.group = max(1, min(GROUP, GROUP_BYTES//channel_bytes))
    if not call.measure:
        plan.group = GROUP
    return plan


cdef inline Py_ssize_t part_length(Py_ssize_t length, Py_ssize_t most) noexcept nogil:
    """`length` values in equal parts, each a whole number of lines (but the last), of at most about `most` values."""
    cdef Py_ssize_t parts = (length + most - 1)//most
    return (length + parts*LANES - 1)//(parts*LANES)*LANES


cdef inline void cut_into_folds(Plan *plan) noexcept nogil:
    """By the shape alone. Pieces do not matter: lanes go on from one to the next."""
    cdef Py_ssize_t plane = plan.plane
    if plane < SHORTEST:                # as one long row
        plane = plan.call.values
        plan.rows = 1
    plan.piece = part_length(plane, PIECE if plan.run == plane else CHUNK)
    plan.segments = 0
    if plane > FOLD:
        plan.per_fold = part_length(plane, FOLD)
        plan.segments = (plane + plan.per_fold - 1)//plan.per_fold
        plan.folds = plan.rows*plan.segments
    else:
        plan.per_fold = FOLD//plane
        plan.folds = (plan.rows + plan.per_fold - 1)//plan.per_fold
    plan.plane = plane


cdef void sum_piece(Channel *channel, Py_ssize_t row, Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """Add a piece of a row to the lanes; the same piece of the channel before gets its result."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef const Plan *plan = channel.plan
    cdef const Call *call = plan.call
    cdef const Channel *before = channel.before
    cdef Py_ssize_t itemsize = plan.loops.itemsize, skip = start*itemsize, position = row*plan.plane + start
    cdef Py_ssize_t soon, skip_soon
    cdef const char *x
    cdef const char *dy
    cdef const char *x_soon
    cdef const char *dy_soon
    if plan.run != plan.plane:
        x = read_tile(call.x, channel.c, position, length, itemsize, x_tile)
        dy = read_tile(call.dy, channel.c, position, length, itemsize, dy_tile)
        if before != NULL:
            apply_to_span(<void *>before, position, position + length)
        sum_span_of(channel, dy, x, dy, x, length)
        return
    soon, skip_soon = row, skip + length*itemsize
    if start + length == plan.plane:
        soon, skip_soon = min(row + 1, plan.rows - 1), 0
    x = row_start(call.x, channel.c, row) + skip
    dy = row_start(call.dy, channel.c, row) + skip
    x_soon = row_start(call.x, channel.c, soon) + skip_soon
    dy_soon = row_start(call.dy, channel.c, soon) + skip_soon
    if before == NULL:
        sum_span_of(channel, dy, x, dy_soon, x_soon, length)
    elif channel.far:
        apply_to_span(<void *>before, position, position + length)
        sum_span_of(channel, dy, x, dy_soon, x_soon, length)
    else:
        plan.loops.sweep_span(
            row_start(call.dy, before.c, row) + skip, row_start(call.x, before.c, row) + skip,
            row_start(call.out, before.c, row) + skip, &before.coefficients, plan.stream,
            dy, x, dy_soon, x_soon, length, channel.center, &channel.lanes)


cdef inline void sum_span_of(Channel *channel, const void *dy, const void *x, const void *dy_ahead,
                             const void *x_ahead, Py_ssize_t length) noexcept nogil:
    if channel.far:
        channel.plan.loops.far_sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, &channel.lanes)
    else:
        channel.plan.loops.sum_span(dy, x, dy_ahead, x_ahead, length, channel.center, &channel.lanes)


cdef inline Py_ssize_t channel_step(const View *v) noexcept nogil:
    return 0 if v == NULL else v.channel


cdef struct Rows:
    # The same row of channels side by side, on the way through them.
    const char *x
    const char *dy
    char *out
    Py_ssize_t x_step, dy_step, out_step
    Py_ssize_t x_soon, dy_soon  # from here to the next row of the same channel


cdef inline Rows rows_of(const Channel *channel, Py_ssize_t row) noexcept nogil:
    cdef const Call *call = channel.plan.call
    cdef Rows r
    cdef Py_ssize_t soon = min(row + 1, channel.plan.rows - 1)
    r.x = row_start(call.x, channel.c, row)
    r.dy = row_start(call.dy, channel.c, row)
    r.out = row_start(call.out, channel.c, row)
    r.x_step, r.dy_step, r.out_step = channel_step(call.x), channel_step(call.dy), channel_step(call.out)
    r.x_soon = row_start(call.x, channel.c, soon) - r.x
    r.dy_soon = row_start(call.dy, channel.c, soon) - r.dy
    return r


cdef inline void apply_rows_of(Rows *rows, const Channel *channels, Py_ssize_t count) noexcept nogil:
    """The result of the next `count` channels."""
    cdef const Plan *plan = channels.plan
    cdef apply_span apply = plan.loops.apply_span
    cdef Py_ssize_t k, length = plan.plane
    cdef bint stream = plan.stream
    cdef Rows r = rows[0]
    for k in range(count):
        apply(r.dy, r.x, r.out, length, &channels[k].coefficients, stream)
        r.x += r.x_step
        r.dy += r.dy_step
        r.out += r.out_step
    rows[0] = r


cdef inline void sum_rows_of(Rows *rows, Channel *channels, Py_ssize_t count) noexcept nogil:
    """Add the next `count` rows to the lanes of their channels."""
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t k, length = plan.plane
    cdef Rows r = rows[0]
    for k in range(count):
        sum_span_of(&channels[k], r.dy, r.x, r.dy + r.dy_soon, r.x + r.x_soon, length)
        r.x += r.x_step
        r.dy += r.dy_step
    rows[0] = r


cdef void sum_row_of_each(Channel *channels, Py_ssize_t count, Py_ssize_t row) noexcept nogil:
    """Add a row of each channel to its lanes; the same row of the channel before it gets its result.

    Some channels are summed, then as many get their results: memory is read and written in turn.
    """
    cdef const Plan *plan = channels.plan
    cdef const Channel *before = channels.before
    cdef Rows sums = rows_of(channels, row), results
    cdef Py_ssize_t k = 0, some
    if before == NULL:
        sum_rows_of(&sums, channels, count)
        return
    results = rows_of(before, row)
    while k < count:
        some = min(plan.at_once, count - k)
        if channels[k + some - 1].before == NULL:       # a last group of fewer channels than the one before
            some = 1
        if channels[k].before != NULL:
            apply_rows_of(&results, before + k, some)
        sum_rows_of(&sums, channels + k, some)
        k += some


cdef void apply_row_of_each(const Channel *channels, Py_ssize_t count, Py_ssize_t row) noexcept nogil:
    """The results of a row of each channel."""
    cdef const Plan *plan = channels.plan
    cdef Rows results = rows_of(channels, row)
    cdef Py_ssize_t k = 0, some, bytes = plan.plane*plan.loops.itemsize
    while k < count:
        some = min(plan.at_once, count - k)
        prefetch_bytes(results.x + results.x_soon, some*bytes)
        if results.dy != NULL:
            prefetch_bytes(results.dy + results.dy_soon, some*bytes)
        apply_rows_of(&results, channels + k, some)
        k += some


cdef inline void add_lanes(Sums *sums, const Lanes *lanes) noexcept nogil:
    add_pair(sums, lanes_sum(lanes_load(lanes.s)), lanes_sum(lanes_load(lanes.t)))


cdef void sum_fold(Channel *channels, Py_ssize_t count, Py_ssize_t number) noexcept nogil:
    """Add up a fold of each channel, in its lanes, and to its block."""
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t k, row, start, begin = 0, end = plan.plane
    cdef Py_ssize_t first = number*plan.per_fold, last = min(first + plan.per_fold, plan.rows)
    if plan.segments:
        first = number//plan.segments
        last = first + 1
        begin = (number - first*plan.segments)*plan.per_fold
        end = min(begin + plan.per_fold, plan.plane)
    for k in range(count):
        clear_lanes(&channels[k].lanes)
    if plan.rows_in_turn:
        for row in range(first, last):
            sum_row_of_each(channels, count, row)
    else:
        for row in range(first, last):
            start = begin
            while start < end:
                for k in range(count):
                    sum_piece(&channels[k], row, start, min(plan.piece, end - start))
                start += plan.piece
    for k in range(count):
        add_lanes(&channels[k].block, &channels[k].lanes)


cdef void sum_block(Channel *channels, Py_ssize_t count, Py_ssize_t block) noexcept nogil:
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t k, i
    for k in range(count):
        memset(&channels[k].block, 0, sizeof(Sums))
    for i in range(plan.folds*block//plan.blocks, plan.folds*(block + 1)//plan.blocks):
        sum_fold(channels, count, i)


cdef void sum_side_by_side(Channel *channels, Py_ssize_t count) noexcept nogil:
    """The sums of channels, piece after piece of each in turn: their rows are neighbours in memory."""
    cdef Py_ssize_t block, k
    for k in range(count):
        memset(&channels[k].total, 0, sizeof(Sums))
    for block in range(channels.plan.blocks):
        sum_block(channels, count, block)
        for k in range(count):
            merge_sums(&channels[k].total, &channels[k].block)


cdef void sum_blocks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The sums of blocks begin..end of a channel, each for itself."""
    cdef Channel channel = (<Channel *>task)[0]
    cdef Py_ssize_t block
    for block in range(begin, end):
        sum_block(&channel, 1, block)
        channel.parts[block] = channel.block


cdef void sum_by_team(Channel *channel, int threads) noexcept nogil:
    """The sums of a channel, by all threads."""
    cdef Sums parts[MAX_BLOCKS]
    cdef Py_ssize_t block
    channel.parts = parts
    share(sum_blocks, channel, channel.plan.blocks, threads)
    memset(&channel.total, 0, sizeof(Sums))
    for block in range(channel.plan.blocks):
        merge_sums(&channel.total, &parts[block])


cdef double first_pivot(const Channel *channel) noexcept nogil:
    """Mean of the first few values, as value + mean(x - value): exact where they are all equal."""
    cdef double tile[PIVOT]
    cdef const Call *call = channel.plan.call
    cdef const Loops *loops = &channel.plan.loops
    cdef Py_ssize_t length = min(PIVOT, call.values)
    cdef const char *x = read_tile(call.x, channel.c, 0, length, loops.itemsize, tile)
    cdef double value, pivot
    cdef Lanes lanes
    clear_lanes(&lanes)
    loops.far_sum_span(NULL, x, NULL, NULL, 1, 0.0, &lanes)
    value = lanes_sum(lanes_load(lanes.s))
    clear_lanes(&lanes)
    loops.far_sum_span(NULL, x, NULL, NULL, length, value, &lanes)
    pivot = value + lanes_sum(lanes_load(lanes.s))/length
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
    cdef bint stream = plan.stream and run == plan.plane
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
    cdef const Plan *plan
    cdef Py_ssize_t row, k, position = 0, some
    if count <= 0:
        return
    plan = channels.plan
    if plan.rows_in_turn:
        for row in range(plan.rows):
            apply_row_of_each(channels, count, row)
        return
    some = plan.plane if plan.run == plan.plane else plan.piece
    while position < plan.call.values:
        for k in range(count):
            apply_to_span(<void *>&channels[k], position, min(position + some, plan.call.values))
        position += some


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
