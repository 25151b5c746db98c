# Sums of channels of planes: in lanes along a fold, added up along a block. Channels that are due get their results
# meanwhile.


cdef struct Channel:
    const Plan *plan
    Py_ssize_t c
    Center about                # what the sums are taken about
    bint far                    # so that the loops of a first attempt will not do
    const Due *due              # get their results while the sums of a group are taken; NULL: none do
    char *notes                 # where the sums leave notes then
    Lanes lanes
    Sums total, block
    Sums *parts                 # of all blocks, where threads share the channel


cdef inline Py_ssize_t due_row(const Plan *plan, Py_ssize_t row) noexcept nogil:
    """The row that gets its results while this one is summed."""
    return plan.rows - 1 - row if plan.last_first else row


cdef inline Place place_ahead(const Plan *plan, Py_ssize_t c, Py_ssize_t row, Py_ssize_t start) noexcept nogil:
    """What is asked for when a channel comes to value `start` of a row: of the next group, where its own rows end."""
    cdef Place at
    row += plan.ahead
    if row >= plan.rows:
        c = min(c + plan.group, plan.call.channels - 1)
        row -= plan.rows
    at = row_of(plan.call, c, row)
    return shifted(&at, start*plan.loops.itemsize + plan.further)


cdef inline Py_ssize_t rows_in_step(const Plan *plan, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """How many rows from this one on, up to `end`, follow each other, and what is asked for with them, in one step."""
    cdef Py_ssize_t count = end - row if plan.even else 1
    if row < plan.rows - plan.ahead:    # what is asked for is of this channel still
        return min(count, plan.rows - plan.ahead - row)
    return count


cdef void sum_gathered(Channel *channels, Py_ssize_t count, Py_ssize_t position, Py_ssize_t length) noexcept nogil:
    """Add a piece of some channels to their lanes: one that some array has not in place."""
    cdef Tiles tiles
    cdef const Plan *plan = channels.plan
    cdef Place at = gathered(plan, channels.c, count, position, length, &tiles)
    cdef Steps step = to_gathered(plan, position, length)
    cdef Py_ssize_t k
    for k in range(count):
        sum_spans_of(&channels[k], &at, &at, 1, length)
        at = moved(&at, &step)


cdef void sum_piece(Channel *channel, Py_ssize_t count, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t start,
                    Py_ssize_t length) noexcept nogil:
    """Add a piece of some rows to the lanes of a channel; the same pieces of the one that is due get their results.
    Where pieces are gathered, those of `count` channels are.
    """
    cdef const Plan *plan = channel.plan
    cdef Py_ssize_t i, where
    cdef Place at, soon
    if channel.due != NULL:
        for i in range(row, row + rows):
            where = due_row(plan, i)*plan.plane + start
            apply_to_values(channel.due, 0, 1, where, where + length)
    if plan.run != plan.plane:
        sum_gathered(channel, count, row*plan.plane + start, length)
        return
    at = row_of(plan.call, channel.c, row)
    at = shifted(&at, start*plan.loops.itemsize)
    soon = place_ahead(plan, channel.c, row, start)
    sum_spans_of(channel, &at, &soon, rows, length)


cdef inline void sum_spans_of(Channel *channel, const Place *at, const Place *soon, Py_ssize_t count,
                              Py_ssize_t length) noexcept nogil:
    """What is to be asked for with the first row stands at `soon`."""
    cdef const Plan *plan = channel.plan
    cdef sum_spans sum = plan.loops.sum_spans_again if channel.far else plan.loops.sum_spans
    cdef Steps ahead = distance(at, soon)
    sum(at, &ahead, &plan.sample, count, length, &channel.about, &channel.lanes, NULL, NULL)


# ---- short rows: through the channels of a sample, as they stand in memory; without results beside them some samples
# of a channel are summed in one go

cdef void sum_neighbours_of(Channel *channels, Py_ssize_t count, Py_ssize_t row, Py_ssize_t rows,
                            const Place *soon) noexcept nogil:
    """Add some rows of channels that are summed alike to their lanes. What is read `soon`, after them, is asked for."""
    cdef const Plan *plan = channels.plan
    cdef sum_neighbours sum = plan.loops.sum_neighbours_again if channels.far else plan.loops.sum_neighbours
    cdef Place at = row_of(plan.call, channels.c, row), last = row_of(plan.call, channels.c + count - 1, row)
    cdef Steps ahead = distance(&last, soon)
    sum(&at, &plan.sample, &plan.neighbour, &ahead, count, rows, plan.plane, &channels.about, &channels.lanes,
        sizeof(Channel), NULL, NULL)


cdef void sum_rows_in_turn(Channel *channels, Py_ssize_t count, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    """Add some rows of each channel to its lanes. (Nearly always all are summed alike: `soon` is what comes next.)"""
    cdef const Plan *plan = channels.plan
    cdef Place soon = row_of(plan.call, channels.c, min(row + rows, plan.rows - 1))
    cdef Py_ssize_t k, first = 0
    for k in range(1, count + 1):
        if k == count or channels[k].far != channels[first].far:
            sum_neighbours_of(&channels[first], k - first, row, rows, &soon)
            first = k


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
    cdef const Due *due = channels.due
    cdef Py_ssize_t both = min(count, due.count)
    cdef Place due_at = row_of(plan.call, due.c, row), at = row_of(plan.call, channels.c, row)
    cdef Place soon = place_ahead(plan, channels.c, row, 0)
    cdef Steps ahead = distance(&at, &soon)
    cdef Place following = moved(&due_at, &plan.sample)
    ask_for_ends(&following, due.count*plan.plane*plan.loops.itemsize, plan.call.dresidual != NULL)
    plan.loops.sweep_neighbours(&due_at, &plan.neighbour, both, plan.plane, &due.numbers, due.carry, &at, &ahead,
                                &channels.about, &channels.lanes, sizeof(Channel), NULL, NULL)
    if due.count > both:    # groups differ, where they end with a line and at the end
        apply_to_rows(due, both, row, row + 1)
    if count > both:
        sum_neighbours_of(&channels[both], count - both, row, 1, &soon)


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


# ---- folds and blocks

cdef Notes notes_of_rows(const Channel *channel, Py_ssize_t row, Py_ssize_t start, Py_ssize_t length) noexcept nogil:
    """Where the notes of rows, or of parts of one, begin."""
    cdef const Plan *plan = channel.plan
    cdef Notes notes
    notes.left = channel.notes + row*plan.note_row + start//8
    notes.read = channel.due.notes + due_row(plan, row)*plan.note_row + start//8
    notes.left_step = notes.read_step = length//8
    if length == plan.plane:
        notes.left_step = plan.note_row
        notes.read_step = -plan.note_row if plan.last_first else plan.note_row
    return notes


cdef void sweep_rows(Channel *channel, Folds *folds, Py_ssize_t row, Py_ssize_t start, Py_ssize_t count,
                     Py_ssize_t length, const Steps *step, const Steps *due_step) noexcept nogil:
    """Add `count` times `length` values to folds, the first of which is value `start` of a row; as many of the channel
    that is due get their results.
    """
    cdef const Plan *plan = channel.plan
    cdef const Due *due = channel.due
    cdef Py_ssize_t bytes = start*plan.loops.itemsize
    cdef Place at = row_of(plan.call, channel.c, row), soon = place_ahead(plan, channel.c, row, start)
    cdef Place due_at = row_of(plan.call, due.c, due_row(plan, row))
    cdef Notes notes
    cdef Steps ahead
    at, due_at = shifted(&at, bytes), shifted(&due_at, bytes)
    ahead = distance(&at, &soon)
    if plan.note_row > 0:
        notes = notes_of_rows(channel, row, start, length)
    plan.loops.sweep_spans(&due_at, due_step, count, length, &due.numbers, due.carry, &at, &ahead, step,
                           &channel.about, folds, &notes if plan.note_row > 0 else NULL, NULL, NULL)


cdef void sweep_segments(Channel *channel, Folds *folds, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """Folds first..end, which are parts of rows, in as few calls as there are rows."""
    cdef const Plan *plan = channel.plan
    cdef Py_ssize_t row, start, count, length = plan.per_fold
    cdef Steps step = along_row(length*plan.loops.itemsize)
    while first < end:
        row = first//plan.segments
        start = (first - row*plan.segments)*length
        count = min(end - first, (plan.plane - start)//length)
        if count > 0:
            sweep_rows(channel, folds, row, start, count, length, &step, &step)
        else:                   # what is left of a row
            count = 1
            sweep_rows(channel, folds, row, start, 1, plan.plane - start, &step, &step)
        first += count


cdef void sweep_whole_rows(Channel *channel, Folds *folds, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """The same of rows row..end, which are folds or parts of folds."""
    cdef const Plan *plan = channel.plan
    cdef Py_ssize_t count
    while row < end:
        count = rows_in_step(plan, row, end)
        sweep_rows(channel, folds, row, 0, count, plan.plane, &plan.sample, &plan.due_sample)
        row += count


cdef void sweep_block(Channel *channel, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """Folds first..end of a block; as much of the channel that is due gets its results."""
    cdef const Plan *plan = channel.plan
    cdef Folds folds
    begin_folds(&folds, 1 if plan.segments else plan.per_fold)
    if plan.segments:
        sweep_segments(channel, &folds, first, end)
    else:
        sweep_whole_rows(channel, &folds, first*plan.per_fold, min(end*plan.per_fold, plan.rows))
    end_folds(&folds)
    channel.block = folds.block


cdef inline bint can_sweep(const Channel *channels, Py_ssize_t count) noexcept nogil:
    """Whether a block of a channel, with the results of another, can be taken in one loop."""
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t last = plan.plane - max(plan.segments - 1, 0)*plan.per_fold     # part of a row
    return (count == 1 and channels.due != NULL and not plan.rows_in_turn and last >= LANES
            and not (channels.far or channels.due.numbers.any_wide))


cdef void sum_fold(Channel *channels, Py_ssize_t count, Py_ssize_t number, bint first_of_block) noexcept nogil:
    """Add up a fold of each channel, in its lanes, and to its block."""
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t k, rows, start, begin = 0, end = plan.plane
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
        while first < last:
            rows = rows_in_step(plan, first, last) if end - begin <= plan.piece else 1
            start = begin
            while start < end:
                k = 0
                while k < count:
                    sum_piece(&channels[k], min(plan.beside, count - k), first, rows, start,
                              min(plan.piece, end - start))
                    k += plan.beside
                start += plan.piece
            first += rows
    for k in range(count):
        add_lanes(&channels[k].block, lanes_load(channels[k].lanes.s), lanes_load(channels[k].lanes.t), first_of_block)


cdef void sum_block(Channel *channels, Py_ssize_t count, Py_ssize_t block) noexcept nogil:
    cdef const Plan *plan = channels.plan
    cdef Py_ssize_t i, first = plan.folds*block//plan.blocks, end = plan.folds*(block + 1)//plan.blocks
    if can_sweep(channels, count):
        sweep_block(channels, first, end)
        return
    for i in range(first, end):
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
