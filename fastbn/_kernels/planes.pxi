# Driver for planes, (n, c, s): a few channels after the other.
#
# The values of a channel are cut into folds of some FOLD values: rows of s values, or equal parts of longer ones. A
# fold is summed in lanes (lanes.pxi), folds are added up within a block, and blocks are merged in order. While the sums
# of a channel are taken, a channel before it, which is still in the cache, gets its result: memory sees x once, and is
# read and written at the same time. Where rows are short, channels go in groups of neighbours, so that memory is still
# read and written in long runs. Channels that are one fold are summed whole, many of them in one call, unless others
# get results meanwhile: the ways between loops would take longer than the loops. Only where channels are fewer than
# half the threads do threads share a channel. None of this changes the order of a channel's additions.

cdef enum:
    PIVOT = 16              # values whose mean is the pivot of float64: near enough nearly always, and checked
    SHORT = 256             # rows of fewer values are summed several in one go
    SHORTEST = 16           # rows of fewer values are gathered before anything is done with them
    FOLD = 4096             # values that share lanes, 256 additions a lane; more often, folding would take a third
    GATED_ALONE = 128       # rows of fewer values get dresidual with those of other channels: to begin takes longer
    GROUP = TOGETHER        # channels side by side, at most
    GROUP_BYTES = 204800    # what a group may take of the cache; one channel may take more
    IN_ONE_GO = 800         # values of short rows
    LAST_FIRST = 1 << 20    # bytes of a channel, from which on its last rows get their results first


cdef struct Plan:
    # How a call goes through its channels: the same for all of them.
    const Call *call
    Loops loops
    Py_ssize_t plane            # values of a row
    Py_ssize_t rows             # of a channel, one per sample
    Py_ssize_t segments         # folds of a row; 0: folds are made of rows
    Py_ssize_t per_fold         # values of a segment, or rows of a fold
    Py_ssize_t piece            # values that are gathered or gated at once, before they are swept; else a whole fold
    Py_ssize_t folds, blocks    # of a channel
    Py_ssize_t run              # length of the runs that all arrays have in place; 0: some must be gathered
    Py_ssize_t group            # channels that go side by side: one, where long rows go past the cache
    bint rows_in_turn           # short rows, all of them in place; else piece by piece
    Py_ssize_t in_one_go        # of them are summed by one call
    bint last_first             # results are taken from the last row to the first
    bint whole                  # a channel is one fold, and in place: all of it is summed in one go
    bint even                   # rows are in place, follow each other with the same step, and need no gate
    Steps sample, neighbour     # bytes from a row to the same channel's next, and to the next channel's
    Steps due_sample            # to the row that gets its results next
    bint stream                 # write past the cache
    const View *dy              # what loops read as dy: dresidual, where that is filled first
    bint gate_late              # dresidual is filled with the results, since no sums are taken
    bint gate_in_place          # its rows, and those that it comes from, are in place
    bint gate_together          # and so are those of all channels of a sample, one after the other


cdef struct Due:
    # Channels side by side whose results are due.
    const Plan *plan
    Py_ssize_t c, count
    Numbers numbers
    Carry *carry                # results on their way past the cache; NULL: they do not go there


cdef struct Channel:
    const Plan *plan
    Py_ssize_t c
    Center about                # what the sums are taken about
    bint far                    # that is not 0 although the values are float32
    bint second                 # attempt: dresidual is filled
    const Due *due              # get their results while the sums of a group are taken; NULL: none do
    Lanes lanes
    Sums total, block
    Sums *parts                 # of all blocks, where threads share the channel


cdef inline Py_ssize_t channel_step(const View *v) noexcept nogil:
    return 0 if v == NULL else v.channel


cdef inline Py_ssize_t sample_step(const View *v) noexcept nogil:
    """Bytes from one row of a channel to the next, where rows have one axis."""
    return 0 if v == NULL else v.step[0]


cdef inline bint one_step(const View *v) noexcept nogil:
    """Whether all rows of a channel, if in place, follow each other with the same step."""
    return v == NULL or v.axes <= 2


cdef inline bint follow_each_other(const View *dy, const View *y, const View *g, Py_ssize_t itemsize) noexcept nogil:
    """Whether in these arrays the rows of a sample's channels, if in place, stand without gaps."""
    cdef const View *views[3]
    cdef const View *v
    views[0], views[1], views[2] = dy, y, g
    for v in views:
        if v != NULL and v.channel != v.shape[v.axes - 1]*itemsize:
            return False
    return True


cdef Plan make_plan(const Call *call) noexcept nogil:
    cdef Plan plan
    cdef Py_ssize_t channel_bytes
    plan.call = call
    plan.loops = choose_loops(call)
    plan.plane = call.plane
    plan.rows = call.values//call.plane
    plan.blocks = block_count(call.channels, call.values, PLANES)
    plan.dy = read_as_dy(call)
    plan.gate_late = fills_dresidual(call) and not call.measure
    plan.run = 0 if must_gate_tiles(call) else common_run(call.x, plan.dy, call.out, plan.loops.itemsize)
    cut_into_folds(&plan)
    plan.rows_in_turn = SHORTEST <= plan.plane < SHORT and plan.run == plan.plane
    plan.gate_in_place = common_run(call.dy, call.y, call.dresidual, plan.loops.itemsize) == plan.plane
    plan.gate_together = (plan.gate_in_place and plan.plane < GATED_ALONE
                          and follow_each_other(call.dy, call.y, call.dresidual, plan.loops.itemsize))
    channel_bytes = call.values*plan.loops.itemsize
    plan.stream = call.stream and plan.run == plan.plane >= SHORTEST
    plan.sample.x, plan.sample.dy, plan.sample.out = sample_step(call.x), sample_step(plan.dy), sample_step(call.out)
    plan.neighbour.x, plan.neighbour.dy, plan.neighbour.out = (
        channel_step(call.x), channel_step(plan.dy), channel_step(call.out))
    plan.in_one_go = max(1, IN_ONE_GO//plan.plane) if one_step(call.x) and one_step(plan.dy) else 1
    plan.whole = plan.folds == 1 and plan.run == plan.plane and one_step(call.x) and one_step(plan.dy)
    plan.even = (plan.run == plan.plane and call.dresidual == NULL and one_step(call.x) and one_step(plan.dy)
                 and one_step(call.out))
    plan.group = 1 if plan.stream and plan.plane >= SHORT else max(1, min(GROUP, GROUP_BYTES//channel_bytes))
    # A large channel has been driven out of a second-level cache before the sums of the next are done, but for its end.
    plan.last_first = channel_bytes*(1 if call.dy == NULL else 2) >= LAST_FIRST
    plan.due_sample = plan.sample
    if plan.last_first:
        plan.due_sample.x, plan.due_sample.dy = -plan.sample.x, -plan.sample.dy
        plan.due_sample.out = -plan.sample.out
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
    plan.piece = FOLD if plan.run == plane and plan.call.dresidual == NULL else CHUNK
    plan.piece = part_length(min(plane, part_length(plane, FOLD)), plan.piece)
    plan.segments = 0
    if plane > FOLD:
        plan.per_fold = part_length(plane, FOLD)
        plan.segments = (plane + plan.per_fold - 1)//plan.per_fold
        plan.folds = plan.rows*plan.segments
    else:
        plan.per_fold = FOLD//plane
        plan.folds = (plan.rows + plan.per_fold - 1)//plan.per_fold
    plan.plane = plane


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


cdef struct Tiles:
    # Values of a channel that must be gathered, or gated on the way.
    double x[CHUNK]
    double dy[CHUNK]
    double y[CHUNK]


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


cdef inline bint can_sweep(const Channel *channel, const Due *due, Py_ssize_t length) noexcept nogil:
    """Whether results and sums may be taken in one loop."""
    return length >= LANES and not (channel.far or due.numbers.wide[0] != 0)


cdef void sum_piece(Channel *channel, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                    Py_ssize_t length) noexcept nogil:
    """Add a piece of some rows to the lanes of a channel; the same pieces of the one that is due get their results."""
    cdef Tiles tiles
    cdef const Plan *plan = channel.plan
    cdef const Call *call = plan.call
    cdef const Due *due = channel.due
    cdef Py_ssize_t itemsize = plan.loops.itemsize, skip = start*itemsize, soon = row, skip_soon, i, at
    cdef Py_ssize_t due_row = plan.rows - 1 - row if plan.last_first else row
    cdef const char *x
    cdef const char *dy
    cdef const char *x_soon
    cdef const char *dy_soon
    if fills_dresidual(call) and not channel.second:
        gate_part(plan, channel.c, row, start, length)
    if due != NULL and not can_sweep(channel, due, length):
        for i in range(rows):
            at = (due_row - i if plan.last_first else due_row + i)*plan.plane + start
            apply_to_values(due, 0, at, at + length)
        due = NULL
    if plan.run != plan.plane:
        read_values(plan, channel.c, row*plan.plane + start, length, &tiles, &x, &dy)
        sum_spans_of(channel, dy, x, dy, x, 1, length)
        return
    skip_soon = skip + length*itemsize
    if start + length == plan.plane:
        soon, skip_soon = min(row + 1, plan.rows - 1), 0
    x = row_start(call.x, channel.c, row) + skip
    dy = row_start(plan.dy, channel.c, row) + skip
    x_soon = row_start(call.x, channel.c, soon) + skip_soon
    dy_soon = row_start(plan.dy, channel.c, soon) + skip_soon
    if due == NULL:
        sum_spans_of(channel, dy, x, dy_soon, x_soon, rows, length)
        return
    plan.loops.sweep_spans(
        row_start(plan.dy, due.c, due_row) + skip, row_start(call.x, due.c, due_row) + skip,
        row_start(call.out, due.c, due_row) + skip, &plan.due_sample, rows, length, &due.numbers, 0, due.carry, dy,
        x, dy_soon, x_soon, &plan.sample, &channel.about, &channel.lanes, 0, NULL)


cdef inline void sum_spans_of(Channel *channel, const void *dy, const void *x, const void *dy_after,
                              const void *x_after, Py_ssize_t count, Py_ssize_t length) noexcept nogil:
    cdef const Plan *plan = channel.plan
    if channel.far:
        plan.loops.sum_spans_again(dy, x, dy_after, x_after, &plan.sample, count, length, &channel.about,
                                   &channel.lanes, NULL)
    else:
        plan.loops.sum_spans(dy, x, dy_after, x_after, &plan.sample, count, length, &channel.about, &channel.lanes,
                             NULL)


# ---- short rows: through the channels of a sample, as they stand in memory; without results beside them some samples
# of a channel are summed in one go

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


cdef void sum_rows_in_turn(Channel *channels, Py_ssize_t count, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    """Add some rows of each channel to its lanes."""
    cdef const Plan *plan = channels.plan
    cdef const Call *call = plan.call
    cdef Py_ssize_t k, soon = min(row + rows, plan.rows - 1)
    cdef const char *x = row_start(call.x, channels.c, row)
    cdef const char *dy = row_start(plan.dy, channels.c, row)
    cdef const char *x_soon = x + plan.neighbour.x
    cdef const char *dy_soon = dy + plan.neighbour.dy
    if call.dresidual != NULL and not channels.second:
        gate_rows(plan, channels.c, count, row, rows)
    for k in range(count):
        if k + 1 == count:
            x_soon, dy_soon = row_start(call.x, channels.c, soon), row_start(plan.dy, channels.c, soon)
        sum_spans_of(&channels[k], dy, x, dy_soon, x_soon, rows, plan.plane)
        x, dy = x_soon, dy_soon
        x_soon += plan.neighbour.x
        dy_soon += plan.neighbour.dy


cdef inline bint can_sweep_together(const Channel *channels, Py_ssize_t count) noexcept nogil:
    """Whether results and sums of all channels may be taken in one loop."""
    cdef Py_ssize_t k
    if channels.due.numbers.any_wide:
        return False
    for k in range(count):
        if channels[k].far:
            return False
    return True


cdef void sweep_sample(Channel *channels, Py_ssize_t count, Py_ssize_t row) noexcept nogil:
    """Add a sample's row of each channel to its lanes; the rows of those that are due get their results."""
    cdef const Plan *plan = channels.plan
    cdef const Call *call = plan.call
    cdef const Due *due = channels.due
    cdef Py_ssize_t c = channels.c, soon = min(row + 1, plan.rows - 1)
    if call.dresidual != NULL:
        gate_rows(plan, c, count, row, 1)
    plan.loops.sweep_spans(
        row_start(plan.dy, due.c, row), row_start(call.x, due.c, row), row_start(call.out, due.c, row),
        &plan.neighbour, count, plan.plane, &due.numbers, 0, due.carry, row_start(plan.dy, c, row),
        row_start(call.x, c, row), row_start(plan.dy, c, soon), row_start(call.x, c, soon), &plan.neighbour,
        &channels.about, &channels.lanes, sizeof(Channel), NULL)
    if due.count > count:   # a last group of fewer channels than the one before
        apply_to_rows(due, count, row, row + 1)


cdef void sum_short_rows(Channel *channels, Py_ssize_t count, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """Add some rows of each channel to its lanes; the rows of those that are due get their results."""
    cdef const Plan *plan = channels.plan
    cdef const Due *due = channels.due
    if due != NULL and can_sweep_together(channels, count):
        while row < end:
            sweep_sample(channels, count, row)
            row += 1
        return
    if due != NULL:
        apply_to_rows(due, 0, row, end)
    while row < end:
        sum_rows_in_turn(channels, count, row, min(plan.in_one_go, end - row))
        row += plan.in_one_go


cdef inline void add_lanes(Sums *sums, const Lanes *lanes, bint first) noexcept nogil:
    """sums += lanes; nothing is in the sums yet before the first."""
    cdef double s, t
    lanes_sums(lanes_load(lanes.s), lanes_load(lanes.t), &s, &t)
    if first:
        sums.a, sums.a_low, sums.b, sums.b_low = s, 0, t, 0
    else:
        add_pair(sums, s, t)


cdef void sum_fold(Channel *channels, Py_ssize_t count, Py_ssize_t number, bint first_of_block) noexcept nogil:
    """Add up a fold of each channel, in its lanes, and to its block."""
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t k, row, rows, start, begin = 0, end = plan.plane
    cdef Py_ssize_t first = number*plan.per_fold, last = min(first + plan.per_fold, plan.rows)
    if plan.segments:
        first = number//plan.segments
        last = first + 1
        begin = (number - first*plan.segments)*plan.per_fold
        end = min(begin + plan.per_fold, plan.plane)
    for k in range(count):
        clear_lanes(&channels[k].lanes)
    if plan.rows_in_turn:
        sum_short_rows(channels, count, first, last)
    else:
        rows = last - first if plan.even and end - begin <= plan.piece else 1
        while first < last:
            start = begin
            while start < end:
                for k in range(count):
                    sum_piece(&channels[k], first, rows, start, min(plan.piece, end - start))
                start += plan.piece
            first += rows
    for k in range(count):
        add_lanes(&channels[k].block, &channels[k].lanes, first_of_block)


cdef void sum_block(Channel *channels, Py_ssize_t count, Py_ssize_t block) noexcept nogil:
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t i, first = plan.folds*block//plan.blocks
    for i in range(first, plan.folds*(block + 1)//plan.blocks):
        sum_fold(channels, count, i, i == first)


cdef void sum_side_by_side(Channel *channels, Py_ssize_t count) noexcept nogil:
    """The sums of channels, piece after piece of each in turn: their rows are neighbours in memory."""
    cdef Py_ssize_t block, k
    sum_block(channels, count, 0)
    for k in range(count):
        channels[k].total = channels[k].block
    for block in range(1, channels.plan.blocks):
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
    channel.total = parts[0]
    for block in range(1, channel.plan.blocks):
        merge_sums(&channel.total, &parts[block])


cdef double first_pivot(const Plan *plan, Py_ssize_t c) noexcept nogil:
    """Mean of the first few values, as value + mean(x - value): exact where they are all equal."""
    cdef double tile[PIVOT]
    cdef const Call *call = plan.call
    cdef const Loops *loops = &plan.loops
    cdef Py_ssize_t length = min(PIVOT, call.values)
    cdef const char *x = read_tile(call.x, c, 0, length, loops.itemsize, tile)
    cdef double value, unused
    cdef Center about
    cdef Lanes lanes
    clear_lanes(&lanes)
    about.center = 0
    loops.sum_spans_again(NULL, x, NULL, NULL, &plan.sample, 1, 1, &about, &lanes, NULL)
    lanes_sums(lanes_load(lanes.s), lanes_load(lanes.t), &about.center, &unused)
    clear_lanes(&lanes)
    loops.sum_spans_again(NULL, x, NULL, NULL, &plan.sample, 1, length, &about, &lanes, NULL)
    lanes_sums(lanes_load(lanes.s), lanes_load(lanes.t), &value, &unused)
    value = about.center + value/length
    return value if isfinite(value) else 0.0


cdef inline double first_center(const Plan *plan, Py_ssize_t c, bint *far) noexcept nogil:
    """About what the first attempt sums: float32 about 0 where that is good enough, else it is `far`."""
    cdef const Call *call = plan.call
    far[0] = False
    if call.backward:
        far[0] = call.dtype != FLOAT64 and far_from_zero(call, c)
        return call.origin[c] if call.dtype == FLOAT64 or far[0] else 0.0
    return first_pivot(plan, c) if call.dtype == FLOAT64 else 0.0


cdef void first_centers(const Plan *plan, Py_ssize_t c, Py_ssize_t count, double *centers, bint *far) noexcept nogil:
    """Those of `count` channels from c on."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t k
    if call.dtype != FLOAT64 and not (call.backward and any_far_from_zero(call, c, count)):
        memset(centers, 0, count*sizeof(double))
        memset(far, False, count*sizeof(bint))
        return
    for k in range(count):
        centers[k] = first_center(plan, c + k, &far[k])


cdef void begin_channels(Channel *channels, Py_ssize_t count, const Plan *plan, Py_ssize_t c,
                         const Due *due) noexcept nogil:
    """Make channels c..c + count ready for their sums."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t k
    if has_gates(call):
        for k in range(count):
            channels[k].about.act, channels[k].about.gate = call.act, gates_of(call)[c + k]
    for k in range(count):
        channels[k].plan, channels[k].c, channels[k].due = plan, c + k, due
        channels[k].about.center = first_center(plan, c + k, &channels[k].far)
        channels[k].second = False


cdef void begin_again(Channel *channel, const Plan *plan, Py_ssize_t c) noexcept nogil:
    """Make a channel ready for better sums, about its origin."""
    begin_channels(channel, 1, plan, c, NULL)
    channel.about.center = plan.call.origin[c]
    channel.far = channel.second = True


cdef void settle_group(const Channel *channels, Py_ssize_t count, bint *again) noexcept nogil:
    """Take what the call asked for from the sums; where that asks for better ones."""
    cdef SumsTogether sums
    cdef double centers[GROUP]
    cdef Py_ssize_t k
    for k in range(count):
        put_sums(&sums, k, &channels[k].total)
        centers[k] = channels[k].about.center
    settle(channels.plan.call, channels.c, count, &sums, centers, again)


cdef void measure_group(const Plan *plan, Py_ssize_t c, Py_ssize_t count, const Due *due, bint *again) noexcept nogil:
    cdef Channel channels[GROUP]
    begin_channels(channels, count, plan, c, due)
    sum_side_by_side(channels, count)
    settle_group(channels, count, again)


cdef void measure_again(const Plan *plan, Py_ssize_t c) noexcept nogil:
    cdef Channel channel
    cdef bint again
    begin_again(&channel, plan, c)
    sum_side_by_side(&channel, 1)
    settle_group(&channel, 1, &again)


cdef void sum_whole(const Plan *plan, Py_ssize_t c, Py_ssize_t count, const double *centers, bint far, double *s,
                    double *t) noexcept nogil:
    """The sums of channels that are one fold each."""
    cdef const Call *call = plan.call
    cdef sum_channels sum = plan.loops.sum_channels_again if far else plan.loops.sum_channels
    cdef Centers about
    cdef Py_ssize_t k
    about.center, about.gates, about.act = centers, NULL, call.act
    if has_gates(call):
        about.gates = gates_of(call) + c
    if call.dresidual != NULL:
        gate_rows(plan, c, count, 0, plan.rows)
    sum(row_start(plan.dy, c, 0), row_start(call.x, c, 0), &plan.sample, &plan.neighbour, count, plan.rows, plan.plane,
        &about, s, t, NULL)


cdef void measure_whole(const Plan *plan, Py_ssize_t c, Py_ssize_t count, bint *again) noexcept nogil:
    """measure_group() for channels that are one fold each: by calls for as many as can be summed alike."""
    cdef const Call *call = plan.call
    cdef SumsTogether sums
    cdef double centers[GROUP]
    cdef bint far[GROUP]
    cdef Py_ssize_t k, first = 0
    first_centers(plan, c, count, centers, far)
    memset(sums.a_low, 0, count*sizeof(double))
    memset(sums.b_low, 0, count*sizeof(double))
    for k in range(1, count + 1):
        if k == count or far[k] != far[first]:
            sum_whole(plan, c + first, k - first, centers + first, far[first], sums.a + first, sums.b + first)
            first = k
    settle(call, c, count, &sums, centers, again)


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


cdef void apply_part(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The values begin..end of a channel, by one of a team."""
    cdef Due due = (<const Due *>task)[0]
    cdef Carry carry
    carry.owed = 0
    if due.plan.stream:
        due.carry = &carry
    apply_to_values(&due, 0, begin, end)
    put_owed_results(due.plan, &carry)


cdef void measure_and_apply(const Plan *plan, Py_ssize_t begin, Py_ssize_t end, Carry *carry) noexcept nogil:
    """Channels begin..end: a pipeline in which a group gets its result with the sums of the next.

    Not where nothing goes past the cache: results are then sooner there right after the sums.
    """
    cdef const Call *call = plan.call
    cdef double memory[2][5*GROUP]
    cdef Due due[2]
    cdef Due *ready = NULL      # its channels have their sums
    cdef bint again[GROUP]
    cdef Py_ssize_t c = begin, count, k
    cdef int turn
    for turn in range(2):
        due[turn].plan, due[turn].carry = plan, carry
        due[turn].numbers = lay_out_numbers(memory[turn], GROUP, call)
    while c < end:
        count = min(plan.group, end - c)
        if plan.whole and ready == NULL:
            measure_whole(plan, c, count, again)
        else:
            measure_group(plan, c, count, ready, again)
        for k in range(count):
            if again[k]:
                measure_again(plan, c + k)
        if call.out != NULL:
            turn = 1 - turn
            ready = &due[turn]
            ready.c, ready.count = c, count
            find_numbers(call, c, count, &ready.numbers)
            if carry == NULL:
                apply_all(ready)
                ready = NULL
        c += count
    if ready != NULL:
        apply_all(ready)
        put_owed_results(plan, carry)


cdef void run_channels(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Channels begin..end, by one thread."""
    cdef const Plan *plan = <const Plan *>task
    cdef const Call *call = plan.call
    cdef Carry carry
    cdef Due due
    if begin == end:        # fewer channels than threads
        return
    carry.owed = 0
    due.plan, due.c, due.count, due.carry = plan, begin, end - begin, &carry if plan.stream else NULL
    find_gates(call, plan.loops.find_gate, begin, end - begin)
    if call.measure:
        measure_and_apply(plan, begin, end, due.carry)
        return
    due.numbers = lay_out_numbers(<double *>after_gates(call) + 5*begin, due.count, call)
    find_numbers(call, begin, due.count, &due.numbers)
    apply_all(&due)
    put_owed_results(plan, &carry)


cdef void run_channel_by_team(const Plan *plan, Py_ssize_t c) noexcept nogil:
    """One channel, by all threads."""
    cdef const Call *call = plan.call
    cdef Channel channel
    cdef double memory[5]
    cdef Due due
    cdef bint again
    find_gates(call, plan.loops.find_gate, c, 1)
    if call.measure:
        begin_channels(&channel, 1, plan, c, NULL)
        sum_by_team(&channel, call.threads)
        settle_group(&channel, 1, &again)
        if again:
            begin_again(&channel, plan, c)
            sum_by_team(&channel, call.threads)
            settle_group(&channel, 1, &again)
    if call.out != NULL:
        due.plan, due.c, due.count, due.carry = plan, c, 1, NULL
        due.numbers = lay_out_numbers(memory, 1, call)
        find_numbers(call, c, 1, &due.numbers)
        share(apply_part, &due, call.values, call.threads)


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
