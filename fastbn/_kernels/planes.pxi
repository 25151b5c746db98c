# Driver for planes, (n, c, s): a channel at a time.
#
# The sums of a channel are taken over its values as one sequence of n*s: chunks of CHUNK values, summed in lanes
# (lanes.pxi); chunks added up within a block; blocks merged in order. A channel is normalised right after its
# statistics are known, while it is still in the cache, so that memory sees x once. Only where channels are fewer than
# half the threads do threads share a channel, and then the order of the additions is still the same.

cdef enum:
    PIVOT = 16      # values whose mean is the pivot: near enough for nearly all data, and checked (see statistics)
    SHORTEST = 16   # runs shorter than this are gathered into tiles


cdef struct Channel:
    const Call *call
    Loops loops
    Py_ssize_t c, blocks
    double center               # the pivot of the statistics, or the mean of the backward sums
    Coefficients coefficients
    Sums parts[MAX_BLOCKS]


cdef inline void sum_chunk(const Channel *channel, Py_ssize_t position, Py_ssize_t length, double center,
                           Sums *sums) noexcept nogil:
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef const Call *call = channel.call
    cdef Py_ssize_t itemsize = channel.loops.itemsize
    cdef const char *x = read_tile(call.x, channel.c, position, length, itemsize, x_tile)
    cdef const char *dy = read_tile(call.dy, channel.c, position, length, itemsize, dy_tile)
    channel.loops.sum_span(dy, x, length, center, sums)


cdef void sum_blocks(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The sums of blocks begin..end of a channel. A block is a whole number of chunks."""
    cdef Channel *channel = <Channel *>task
    cdef Py_ssize_t values = channel.call.values, chunks = (values + CHUNK - 1)//CHUNK
    cdef Py_ssize_t block, chunk
    for block in range(begin, end):
        memset(&channel.parts[block], 0, sizeof(Sums))
        for chunk in range(chunks*block//channel.blocks, chunks*(block + 1)//channel.blocks):
            sum_chunk(channel, chunk*CHUNK, min(CHUNK, values - chunk*CHUNK), channel.center, &channel.parts[block])


cdef double first_pivot(const Channel *channel) noexcept nogil:
    """Mean of the first few values, as value + mean(x - value): exact where they are all equal."""
    cdef Py_ssize_t length = min(PIVOT, channel.call.values)
    cdef double value, pivot
    cdef Sums sums
    memset(&sums, 0, sizeof(Sums))
    sum_chunk(channel, 0, 1, 0.0, &sums)
    value = sums.a
    memset(&sums, 0, sizeof(Sums))
    sum_chunk(channel, 0, length, value, &sums)
    pivot = value + sums.a/length
    return pivot if isfinite(pivot) else 0.0


cdef void measure_channel(Channel *channel, int threads) noexcept nogil:
    cdef const Call *call = channel.call
    cdef Py_ssize_t c = channel.c, block
    cdef Sums total
    cdef int attempt
    channel.center = call.mean[c] if call.backward else first_pivot(channel)
    for attempt in range(2):
        share(sum_blocks, channel, channel.blocks, threads)
        memset(&total, 0, sizeof(Sums))
        for block in range(channel.blocks):
            merge_sums(&total, &channel.parts[block])
        if not settle(call, c, &total, channel.center):
            return
        channel.center = call.mean[c]


cdef void apply_to_span(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """y or dx of the values begin..end of a channel."""
    cdef double x_tile[CHUNK]
    cdef double dy_tile[CHUNK]
    cdef double out_tile[CHUNK]
    cdef const Channel *channel = <const Channel *>task
    cdef const Call *call = channel.call
    cdef Py_ssize_t c = channel.c, itemsize = channel.loops.itemsize, length
    cdef const char *x
    cdef const char *dy
    cdef char *out
    while begin < end:
        length = min(in_place(call.x, begin, itemsize), in_place(call.dy, begin, itemsize))
        length = min(length, in_place(call.out, begin, itemsize))
        length = min(length if length >= SHORTEST else CHUNK, end - begin)
        x = read_tile(call.x, c, begin, length, itemsize, x_tile)
        dy = read_tile(call.dy, c, begin, length, itemsize, dy_tile)
        out = open_tile(call.out, c, begin, length, itemsize, out_tile)
        channel.loops.apply_span(dy, x, out, length, &channel.coefficients)
        close_tile(call.out, c, begin, length, itemsize, out, out_tile)
        begin += length


cdef void run_channel(const Call *call, const Loops *loops, Py_ssize_t c, int threads) noexcept nogil:
    cdef Channel channel
    channel.call = call
    channel.loops = loops[0]
    channel.c = c
    channel.blocks = block_count(call.channels, call.values, PLANES)
    if call.measure:
        measure_channel(&channel, threads)
    if call.out != NULL:
        channel.coefficients = coefficients(call, c)
        share(apply_to_span, &channel, call.values, threads)


cdef void run_channels(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const Call *call = <const Call *>task
    cdef Loops loops = choose_loops(call)
    cdef Py_ssize_t c
    for c in range(begin, end):
        run_channel(call, &loops, c, 1)


cdef void run_planes(Call *call) noexcept nogil:
    cdef Loops loops = choose_loops(call)
    cdef fp_mode before = fp_default()
    cdef Py_ssize_t c
    if split_channels(call.channels, call.threads):
        for c in range(call.channels):
            run_channel(call, &loops, c, call.threads)
    else:
        share(run_channels, call, call.channels, call.threads)
    fp_restore(before)
