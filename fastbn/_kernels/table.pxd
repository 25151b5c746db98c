"""What a call hands to a kernel, and the table of functions that one build of the kernels exports."""

from libc.math cimport INFINITY, fabs, sqrt

cdef enum Order:
    PLANES              # (n, c, s): the values of a channel in runs of s
    ROWS                # (m, c): the channels of a value side by side

cdef enum Dtype:        # of the arithmetic
    FLOAT32
    FLOAT64

cdef enum Storage:
    AS_IS               # in the type of the arithmetic
    FLOAT16             # half types are widened
    BFLOAT16

cdef enum Stores:       # how results are written
    BY_CACHE            # by ordinary stores, right after the sums
    WHOLE_LINES         # a line at a time, mostly with the sums of what follows: planes of a forward, else BY_CACHE
    PAST_CACHE          # the same by streaming stores: results are too large to stay in a cache

cdef enum:
    MAX_AXES = 64       # NumPy's own limit
    LANES = 16          # partial sums side by side in every reduction
    CACHE_LINE = 64     # bytes
    CHUNK = 512         # values of a tile
    ROW_CHUNK = 256     # rows that are added up one after the other before the sum is put away
    SHORTEST = 16       # planes of fewer values are gathered before anything is done with them
    SHORT = 256         # planes of fewer values are short for every type
    SHORT_RUN = 3072    # bytes: shorter rows of planes are read in groups of channels, one behind the other
    COLUMN_PHASE = 256  # bytes, see in_phase()
    NARROW = 64         # rows of fewer channels are taken several at once, side by side
    MAX_BLOCKS = 64     # parts of a channel (planes) or of the rows whose sums may be taken in parallel
    NOTED = 1 << 20     # values of a channel, up to which notes are left of it (see notes.pxi)
    NUMBERS = 8         # float64 of memory that the coefficients of a channel take
    TOGETHER = 64       # channels whose numbers are worked out together, at most
    MOST_PLANES = 16384     # channels of a part of a call, at most: scratch does not grow with their number
    MOST_ROWS = 4096


cdef struct View:
    # The values of channel c, in logical order (sample, then position), wherever they are in memory:
    # value (i0, i1, ...) is at data + c*channel + i0*step[0] + i1*step[1] + ..., all in bytes.
    # Neighbouring axes that are one run in memory are merged, so that a contiguous NCHW array has (n, s).
    char *data
    Py_ssize_t channel
    Py_ssize_t shape[MAX_AXES]
    Py_ssize_t step[MAX_AXES]
    int axes
    bint aligned        # to the size of a value, which may then be read in place


cdef struct Sums:
    # Two sums, each as an unevaluated pair (sum + what its additions have rounded away).
    double a, b
    double a_low, b_low


cdef struct Activation:
    # With a slope other than 1: y = z, and slope*z where z < 0; the derivative is 1, and slope where z <= 0.
    # Otherwise y = z, but not below `lower` or above `upper` (NaN: there is no bound); the derivative is 1, and 0 where
    # z <= lower or z >= upper.
    double slope, lower, upper


cdef struct Gate:
    # act'(z), told from x. With a slope: 1 where low <= x <= high, else slope (NaN: everywhere). Otherwise 1, but 0
    # where x <= low or x >= high (NaN: nowhere).
    double low, high


cdef struct Coefficients:
    # Forward: z = (x - center)*mul + add (+ residual), of which y = z or what an activation makes of it. Where z < 0
    # a slope makes that (x - center)*mul_below + add_below: multiplying z by it would round twice more.
    # Backward: dx = (dy*mul + add) + (x - center)*by_x, behind an activation with mul*act'(z) for mul. Where x is
    # slope*z, all four are others (see undo()).
    double center, mul, add, by_x
    double center_below, mul_below, add_below, by_x_below
    Activation act
    Gate gate
    bint wide           # float32 cannot hold these numbers, or what comes between: computed in float64


cdef struct Numbers:
    # Coefficients of some channels side by side, so that loops over channels become vectors. What is not here follows
    # from it. `wide` is 0 where it is false. Those in float64 are there only where float32 will not do: for float64,
    # for gates, where y stands for x, and in a group (of TOGETHER) in which a channel is wide.
    double *center
    double *mul
    double *add
    double *by_x
    double *wide
    float *center32         # the same where float32 computes
    float *mul32
    float *add32
    float *by_x32
    float *mul_below32      # and these, where there is a slope
    float *add_below32
    bint any_wide
    const Gate *gates       # NULL: there are none
    Activation act


cdef struct Vector:
    # A number per channel, side by side, as the caller gave them.
    const char *data        # NULL: there are none
    bint float32            # else float64


cdef struct Call:
    # forward:   z = (x - mean)*invstd*gamma + beta (+ residual), out = y = act(z)
    # backward:  g = dy*act'(z)
    #            out = dx = gamma*invstd*(g - sum_g/count - (x - mean)*invstd**2*sum_g_xmu/count)
    #            or gamma*invstd*g, where the statistics are `constant`
    # measure: sums are taken first, in forward for mean and var, in backward for sum_g and sum_g_xmu.
    bint backward, constant, measure
    Stores stores
    Dtype dtype
    Storage storage
    Py_ssize_t channels
    Py_ssize_t values       # per channel, n*s
    Py_ssize_t plane        # of these the ones that stand inside the channels in memory, s
    const View *x           # NULL: not read
    const View *dy          # forward: the residual, or NULL
    const View *out         # NULL: only measured
    bint activated          # else act(z) = z
    Activation act
    # Of act'(z) x tells, but for two cases:
    const View *y           # y does, and then g goes to dresidual as well; NULL: it does not
    const View *dresidual   # with y; NULL: only sums are taken
    bint from_y             # x is what an in-place forward made of it: act((x - mean)*mul + beta)
    Vector given_mean       # forward without `measure`; else they stand in mean and var
    Vector given_var
    double *mean
    double *var
    const double *origin    # what (x - mean) is taken about: mean; beta if from_y
    double *sum_dy
    double *sum_dy_xmu
    Vector gamma            # without: ones
    Vector beta             # without: zeros
    double eps
    double count            # values per channel behind the statistics and the sums
    int threads
    char *scratch           # scratch_bytes(), from where a cache line begins


cdef struct Kernels:
    void (*run)(Call *, Order) noexcept nogil
    void (*floor)(const char *x, const char *w, char *y, Py_ssize_t lines, Dtype dtype, bint stream,
                  int threads) noexcept nogil
    bint (*any_sign)(const Vector *v, Py_ssize_t n) noexcept nogil


cdef inline bint split_channels(Py_ssize_t channels, int threads) noexcept nogil:
    """Whether planes have so few channels that threads share them. (The bits do not know: see block_count.)"""
    return 2*channels <= threads


cdef inline Py_ssize_t side_by_side(Py_ssize_t channels, Py_ssize_t values) noexcept nogil:
    """How many narrow rows make one: as few as fill some whole lines, as far as there are so many."""
    cdef Py_ssize_t rows = 1
    if channels >= NARROW:
        return 1
    while (rows*channels < NARROW or rows*channels % LANES != 0) and rows < values:
        rows *= 2
    return min(rows, values)


cdef inline Py_ssize_t block_count(Py_ssize_t channels, Py_ssize_t values, Order order) noexcept nogil:
    """Into how many parts a channel's values are cut for summation: a matter of the shape alone, never of threads."""
    cdef Py_ssize_t most = MAX_BLOCKS, least = 32*CHUNK
    if order == ROWS:
        # Partial sums stand for all channels at once: fewer blocks where there are many channels.
        most = max(1, min(most, 16384//channels))
        least = max(ROW_CHUNK, 16384//channels)
    return max(1, min(most, values//least))


cdef inline Py_ssize_t padded(Py_ssize_t columns) noexcept nogil:
    """Numbers of a vector for columns that is read in whole lines, with a line before it and one behind it."""
    return (columns + LANES - 1)//LANES*LANES + 2*LANES


cdef inline Numbers lay_out_numbers(double *memory, Py_ssize_t channels, const Call *call) noexcept nogil:
    """Where the coefficients of so many channels stand in memory; their gates are not known here."""
    cdef Numbers f
    f.center, f.mul, f.add = memory, memory + channels, memory + 2*channels
    f.by_x, f.wide = memory + 3*channels, memory + 4*channels
    f.center32 = <float *>(memory + 5*channels)
    f.mul32, f.add32, f.by_x32 = f.center32 + channels, f.center32 + 2*channels, f.center32 + 3*channels
    f.mul_below32, f.add_below32 = f.center32 + 4*channels, f.center32 + 5*channels
    f.any_wide, f.gates, f.act = False, NULL, call.act
    return f


cdef inline Numbers numbers_from(const Numbers *f, Py_ssize_t k) noexcept nogil:
    """Those of channel k and of the next ones."""
    cdef Numbers rest = f[0]
    rest.center += k
    rest.mul += k
    rest.add += k
    rest.by_x += k
    rest.wide += k
    rest.center32 += k
    rest.mul32 += k
    rest.add32 += k
    rest.by_x32 += k
    rest.mul_below32 += k
    rest.add_below32 += k
    rest.gates += k if f.gates != NULL else 0
    return rest


cdef inline bint goes_by_groups(const Call *call) noexcept nogil:
    """Whether planes are finished a few channels after the other: where they are measured, and in a single sample."""
    return call.measure or call.values == call.plane


cdef inline bint has_gates(const Call *call) noexcept nogil:
    """Whether values of x tell of act'(z)."""
    return call.backward and call.activated and call.y == NULL and not call.from_y


cdef inline bint undoes_a_slope(const Call *call) noexcept nogil:
    """Whether x is the y of an activation with a slope."""
    return call.from_y and call.act.slope != 1


cdef inline Py_ssize_t arrays_read(const Call *call) noexcept nogil:
    return (call.x != NULL) + (call.dy != NULL) + (call.y != NULL)


cdef inline Gate *gates_of(const Call *call) noexcept nogil:
    """Of all channels: what the scratch begins with."""
    return <Gate *>call.scratch


cdef inline Py_ssize_t bytes_of_gates(const Call *call, Py_ssize_t channels) noexcept nogil:
    """Of so many channels, up to where a cache line begins."""
    return (channels*<Py_ssize_t>sizeof(Gate) + CACHE_LINE - 1)//CACHE_LINE*CACHE_LINE if has_gates(call) else 0


cdef inline char *after_gates(const Call *call) noexcept nogil:
    return call.scratch + bytes_of_gates(call, call.channels)


cdef inline Py_ssize_t bytes_of_a_noted_row(const Call *call) noexcept nogil:
    """Of the notes that sums leave for results (see notes.pxi); 0 where they leave none."""
    if not (call.backward and call.measure and call.out != NULL and call.y != NULL and call.activated
            and call.act.slope == 1 and call.dtype == FLOAT32 and call.storage == AS_IS
            and call.stores == PAST_CACHE and call.plane*<Py_ssize_t>sizeof(float) >= SHORT_RUN
            and call.values <= NOTED):
        return 0
    return (call.plane + LANES - 1)//LANES*(LANES//8)


cdef inline Py_ssize_t bytes_of_notes(const Call *call) noexcept nogil:
    """Of a channel, and what is read behind them. (_core does not ask which build runs: memory that one without notes
    does not touch costs nothing.)
    """
    cdef Py_ssize_t row = bytes_of_a_noted_row(call)
    return 0 if row == 0 else (call.values//call.plane*row + 2*CACHE_LINE - 1)//CACHE_LINE*CACHE_LINE


cdef inline Py_ssize_t part_length(Py_ssize_t length, Py_ssize_t most) noexcept nogil:
    """`length` values in equal parts, each a whole number of lines (but the last), of at most about `most` values."""
    cdef Py_ssize_t parts = (length + most - 1)//most
    return (length + parts*LANES - 1)//(parts*LANES)*LANES


cdef inline Py_ssize_t part_of_channels(const Call *call, Order order) noexcept nogil:
    """How many channels a call takes at once."""
    cdef Py_ssize_t most = MOST_PLANES if order == PLANES else MOST_ROWS
    return call.channels if call.channels <= most else part_length(call.channels, most)


cdef inline Py_ssize_t scratch_of_part(const Call *call, Py_ssize_t channels, Order order) noexcept nogil:
    """Gates and coefficients of so many channels; on rows also of columns, a centre, and sums of all blocks, as
    lay_out_scratch() places them.
    """
    cdef Py_ssize_t rows, columns, gates = bytes_of_gates(call, channels)
    cdef Py_ssize_t each = NUMBERS*channels*<Py_ssize_t>sizeof(double)
    if order == PLANES:
        return gates + (2*call.threads*bytes_of_notes(call) if goes_by_groups(call) else each)
    rows = side_by_side(channels, call.values)
    columns = rows*channels
    return (gates + each + columns + COLUMN_PHASE
            + padded(columns)*(5 + 4*block_count(columns, call.values//rows, ROWS))*<Py_ssize_t>sizeof(double))


cdef inline Py_ssize_t scratch_bytes(const Call *call, Order order) noexcept nogil:
    """Of any part of a call. (Fewer channels may have more blocks.)"""
    cdef Py_ssize_t part = part_of_channels(call, order)
    cdef Py_ssize_t last = call.channels - (call.channels - 1)//part*part
    return max(scratch_of_part(call, part, order), scratch_of_part(call, last, order))


cdef inline double inverse_std(double var, double eps) noexcept nogil:
    """1/sqrt(var + eps), and 0 for a constant channel with eps = 0: y is beta there, as with any other eps.

    (Asked of the result: of var + eps, compilers would make a branch, and no vectors.)
    """
    cdef double invstd = 1/sqrt(var + eps)
    return 0.0 if fabs(invstd) == INFINITY else invstd
