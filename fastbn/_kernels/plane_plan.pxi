# How a call on planes goes through its channels: a matter of their shape and place, the same for all of them.

cdef enum:
    FOLD = 4096             # values that share lanes, 256 additions a lane; more often, folding would take a third
    GROUP = 32              # channels side by side, at most
    BYTES_AHEAD = 800 << 10     # of all arrays, at most, from what is summed to what is asked for
    FEW_BYTES_AHEAD = 64 << 10      # of each array, where rows are cut into folds and a channel has up to BYTES_AHEAD
    ROWS_AHEAD = 2          # from what is summed to what is asked for, where rows are not cut into folds
    LATER = 16384           # bytes, the same where that comes to no whole row
    SOON = 2048             # bytes, the same where that is near
    GROUP_BYTES = 204800    # what a group may take of all arrays that are read: twice as much if it goes alone
    LONG_RUN = 6400         # bytes of a group's row that would have fewer than SHORT_RUN: both twice if it goes alone
    IN_ONE_GO = 800         # values of short rows of a channel that are summed before its neighbour's, ...
    AT_ONCE = 16            # ... and of how many rows at most, in all arrays, ...
    COLLIDING = 8           # ... or where they would drive each other out of a first-level cache
    TWO_SAMPLES = 300       # values of a row, from which on two samples get results at once where there are no sums
    LINE_BY_LINE = 96       # values of a short row that has many lines, see gains_beside_sums()
    SCATTERED = 64          # rows in all arrays from which on, see is_scattered()
    SECOND_LEVEL = 2 << 20  # bytes, what a second-level cache may hold
    HELD_BACK = 40 << 20    # held back from so many bytes on, read and of one result: few last-level caches hold them
    SHORT_HELD_BACK = 96 << 20      # the same in forwards on short rows, see held_back_from()
    LAST_FIRST = 3 << 17    # bytes of a channel, from which on its last rows get their results first
    LONG_LAST_FIRST = 1 << 20   # the same of rows of more than a fold whose results go by way of the cache


cdef struct Plan:
    # How a call goes through its channels: the same for all of them.
    const Call *call
    Loops loops
    Py_ssize_t plane            # values of a row
    Py_ssize_t rows             # of a channel, one per sample
    Py_ssize_t segments         # folds of a row; 0: folds are made of rows
    Py_ssize_t per_fold         # values of a segment, or rows of a fold
    Py_ssize_t piece            # values that are gathered at once, ...
    Py_ssize_t beside           # ... of so many channels; else a whole fold of one
    Py_ssize_t folds, blocks    # of a channel
    Py_ssize_t run              # length of the runs that all arrays have in place; 0: some must be gathered
    Py_ssize_t group            # channels that go side by side: one, where long rows are written by whole lines
    bint rows_in_turn           # short rows, all of them in place; else piece by piece
    Py_ssize_t in_one_go        # of them are summed before the neighbour's
    Py_ssize_t ahead            # rows of a channel from what is summed to what is asked for, ...
    Py_ssize_t further          # ... and bytes
    bint near                   # which comes soon, not later: long rows whose results go by way of the cache
    bint last_first             # results are taken from the last row to the first, ...
    bint asks                   # ... and what they need is asked for, where they go by way of the cache
    bint holds                  # they are held back (see hold_back())
    bint apart                  # by whole lines too a group gets its results right after its sums, not with the next's
    bint whole                  # a channel is one fold, and in place: all of it is summed in one go
    bint even                   # rows are in place, and follow each other with the same step
    Steps sample, neighbour     # bytes from a row to the same channel's next, and to the next channel's
    Steps due_sample            # to the row that gets its results next
    bint by_lines               # results are written by whole lines, past the cache or as if
    Py_ssize_t note_row         # bytes of notes that are left of a row; 0: none are
    bint two_samples            # and there are no sums: of two samples at once, a line of each in turn


cdef inline Py_ssize_t channel_step(const View *v) noexcept nogil:
    return 0 if v == NULL else v.channel


cdef inline bint one_step(const Call *call) noexcept nogil:
    """Whether all rows of a channel, if in place, follow each other with the same step, in every array."""
    cdef const View *views[ARRAYS]
    cdef const View *v
    views_of(call, views)
    for v in views:
        if v != NULL and v.axes > 2:
            return False
    return True


cdef inline Steps steps_to_neighbours(const Call *call) noexcept nogil:
    cdef Steps step
    step.x, step.dy, step.y = channel_step(call.x), channel_step(call.dy), channel_step(call.y)
    step.out, step.dresidual = channel_step(call.out), channel_step(call.dresidual)
    return step


cdef inline Steps backwards(const Steps *step) noexcept nogil:
    cdef Steps back
    back.x, back.dy, back.y, back.out, back.dresidual = -step.x, -step.dy, -step.y, -step.out, -step.dresidual
    return back


cdef inline bint are_short(const Call *call, Py_ssize_t row) noexcept nogil:
    """Whether rows of so many bytes are read, and written past the cache, in groups of channels, one behind the other:
    memory wants longer runs. By whole lines through the cache results go with the sums of single channels only. (Zen 4,
    planes of 17x17 to 24x24, large: training and backward .6 to .9 of the time of single channels.)
    """
    return row < SHORT_RUN and (call.plane < SHORT or call.stores != WHOLE_LINES)


cdef inline bint wants_lines(const Call *call, Py_ssize_t plane) noexcept nogil:
    """Whether results are written a line at a time. Through the cache, short rows gain nothing from sums in between."""
    return call.stores == PAST_CACHE or (call.stores == WHOLE_LINES and not (call.measure and plane < SHORT))


cdef inline bint is_scattered(const Plan *plan, Py_ssize_t arrays) noexcept nogil:
    """Whether the short rows of a channel are so many, in arrays that no near cache holds, that they are read faster a
    few samples at a time, through all channels of a group: TLBs and prefetchers keep track of so many places.
    """
    cdef Py_ssize_t bytes = plan.call.channels*plan.call.values*plan.loops.itemsize
    return plan.rows_in_turn and plan.rows*arrays >= SCATTERED and bytes*arrays >= SECOND_LEVEL


cdef inline bint goes_apart(const Plan *plan) noexcept nogil:
    """Whether groups get their results right after their sums although they are written by whole lines, see
    gains_beside_sums().
    """
    cdef bint beside = plan.plane < SHORT if plan.call.backward else plan.plane >= LINE_BY_LINE
    return plan.by_lines and plan.rows_in_turn and not (beside and plan.loops.sweep_neighbours != NULL)


cdef inline Py_ssize_t held_back_from(const Plan *plan) noexcept nogil:
    """From how many bytes on results are held back: from more in a forward on short rows of float32. (Zen 4, 14x14: of
    50 MB it would take 1.09 times as long, of 200 MB it takes .88.)
    """
    if plan.rows_in_turn and not plan.call.backward and plan.loops.itemsize == sizeof(float):
        return SHORT_HELD_BACK
    return HELD_BACK


cdef inline Py_ssize_t most_in_one_go(const Plan *plan, Py_ssize_t arrays) noexcept nogil:
    """How many short rows of a channel are summed before its neighbour's: fewer where all begin at about the same place
    of a page, as 2048 planes of 7x7 do. They share the sets of a first-level cache then, which have 8 or 12 ways.
    """
    cdef Py_ssize_t offset = plan.sample.x & (PAGE - 1), row = plan.plane*plan.loops.itemsize
    cdef Py_ssize_t at_once = AT_ONCE if row <= offset <= PAGE - row else COLLIDING
    return max(1, min(IN_ONE_GO//plan.plane, at_once//arrays))


cdef inline Py_ssize_t channels_of_a_group(const Plan *plan, Py_ssize_t arrays) noexcept nogil:
    """How many channels go side by side: as many as a second-level cache keeps until they get their results, next to
    the group before them unless they go alone.

    Where many samples make channels large these are few, and memory would be read in short runs: that it is not matters
    more. (Zen 4: 256 samples of 14x14 or 7x7 take .4 to .7 of the time.)
    """
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize, row = call.plane*itemsize, many
    cdef Py_ssize_t times = 2 if plan.apart or not plan.by_lines else 1
    if plan.by_lines and not plan.rows_in_turn:
        return 1
    many = times*GROUP_BYTES//(arrays*call.values*itemsize)
    if many*row < times*SHORT_RUN:
        many = times*LONG_RUN//row
    return max(1, min(many, TOGETHER if plan.whole and not plan.by_lines else GROUP))


cdef inline bint takes_two_samples(const Plan *plan) noexcept nogil:
    """Whether two samples get their results at once, if the LANES of the result begin in both alike: memory is read
    faster from two places. (Zen 4: .8 to .97 of the time; half types take 1.0 to 1.2, rows of 14x14 up to 1.3.)
    """
    cdef const Call *call = plan.call
    cdef Py_ssize_t itemsize = plan.loops.itemsize
    return (not call.measure and call.stores == PAST_CACHE and plan.by_lines and plan.even and plan.plane >= TWO_SAMPLES
            and itemsize >= <Py_ssize_t>sizeof(float) and plan.rows > 1 and not results_are_close_behind(call)
            and plan.rows//2*plan.sample.out % (LANES*itemsize) == 0)


cdef Plan make_plan(const Call *call) noexcept nogil:
    """(In this order: each step reads what those before it have set.)"""
    cdef Plan plan
    cdef Py_ssize_t channel_bytes
    cdef bint steady = one_step(call), in_place
    cdef Py_ssize_t arrays = arrays_read(call), summed = arrays if call.backward else 1
    plan.call = call
    plan.loops = choose_loops(call)
    plan.plane = call.plane
    plan.rows = call.values//call.plane
    plan.blocks = block_count(call.channels, call.values, PLANES)
    plan.run = common_run(call, plan.loops.itemsize)
    cut_into_folds(&plan)
    in_place = plan.run == plan.plane >= SHORTEST
    plan.rows_in_turn = in_place and are_short(call, plan.plane*plan.loops.itemsize)
    channel_bytes = call.values*plan.loops.itemsize
    plan.by_lines = in_place and wants_lines(call, plan.plane) and share_lines(call.out, call.dresidual)
    plan.sample, plan.neighbour = steps_to_samples(call), steps_to_neighbours(call)
    plan.even = plan.run == plan.plane and steady
    plan.two_samples = takes_two_samples(&plan)
    plan.in_one_go = most_in_one_go(&plan, summed) if steady else 1
    plan.apart = goes_apart(&plan)      # not by sums of whole channels then: they gain less, or nothing
    plan.whole = plan.folds == 1 and plan.even and not plan.apart and not is_scattered(&plan, summed)
    plan.group = channels_of_a_group(&plan, arrays)
    plan.note_row = bytes_of_a_noted_row(call) if NOTES_PAY and plan.by_lines and plan.even else 0
    plan.holds = holds_back(call, plan.loops.itemsize, held_back_from(&plan))
    plan.near = plan.segments > 0 and plan.by_lines and call.stores == WHOLE_LINES
    plan.ahead = 0 if plan.near else rows_ahead(&plan, summed)
    plan.further = SOON if plan.near else LATER if plan.ahead == 0 else 0
    # A large channel has been driven out of a second-level cache before the sums of the next are done, but for its end.
    plan.last_first = channel_bytes*arrays >= (LONG_LAST_FIRST if plan.near else LAST_FIRST)
    plan.asks = plan.last_first and call.stores == WHOLE_LINES
    plan.due_sample = backwards(&plan.sample) if plan.last_first else plan.sample
    return plan


cdef inline Py_ssize_t rows_ahead(const Plan *plan, Py_ssize_t arrays) noexcept nogil:
    """How many rows there are between those that are summed and those that are asked for: few, since what is asked for
    too early drives out what gets its results next, or is driven out itself. (Zen 4: two rows instead of the whole next
    group take .8 to 1.0 of the time; sums alone of rows of 20x20 and 28x28 .6 to .75.)

    Rows that are cut into folds want more, unless a second-level cache holds a channel. (Channels of 200 to 800 KB take
    .85 to .97 of the time with FEW_BYTES_AHEAD; larger ones 1.1 to 1.3.)
    """
    cdef Py_ssize_t row = plan.plane*plan.loops.itemsize, rows = BYTES_AHEAD//(row*arrays)
    if plan.segments == 0:
        return min(plan.rows, ROWS_AHEAD)
    return rows if plan.rows > rows else min(plan.rows, FEW_BYTES_AHEAD//row)


cdef inline void begin_carry(Carry *carry, const Plan *plan) noexcept nogil:
    carry.past, carry.owed = plan.call.stores == PAST_CACHE, 0
    carry.holds, carry.near, carry.asks = plan.holds, plan.near, plan.asks


cdef inline void cut_into_folds(Plan *plan) noexcept nogil:
    """By the shape alone. Pieces do not matter: lanes go on from one to the next."""
    cdef Py_ssize_t plane = plan.plane
    if plane < SHORTEST:                # as one long row
        plane = plan.call.values
        plan.rows = 1
    plan.piece, plan.beside = FOLD if plan.run == plane else CHUNK, 1
    if plan.run != plane and plan.run < SHORTEST and plan.call.plane < SHORTEST:
        plan.piece, plan.beside = TILE_BYTES//plan.loops.itemsize, BESIDE
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
