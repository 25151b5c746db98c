"""The one front door to NumPy: accepts arguments, makes views, allocates, runs a kernel without the GIL.

Good arguments are accepted by a few checks in C. Whatever is not accepted at once goes to `_explain`, which converts it
or finds out what is wrong and raises the error; nothing has been written by then.
"""

cimport numpy as cnp
from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.math cimport NAN, isfinite
from libc.stdint cimport INT64_MAX, uintptr_t
from libc.string cimport memcpy, memset

from fastbn import _dispatch, _explain
from fastbn._kernels.table cimport *
from fastbn.statistics import BatchStats, Gradients, GradientSums

cdef extern from "platform.h":
    ctypedef unsigned int fp_mode
    fp_mode fp_default() nogil
    void fp_restore(fp_mode) nogil
    void openmp_pause() nogil
    int openmp_max_threads() nogil
    int openmp_bound_processors() nogil
    int openmp_kind() nogil
    void *exchange(void **place, void *memory) nogil
    bint lend(void *memory, size_t bytes) nogil
    const char *FASTBN_BUILD

cdef extern from "numpy/arrayobject.h":
    PyObject *PyDataMem_DefaultHandler

cdef extern from *:
    """
    /* NULL instead of an exception where a fresh array like x cannot be had: Cython then raises what NumPy set. */
    #define fastbn_like(x) PyArray_NewLikeArray((x), NPY_KEEPORDER, NULL, 0)
    """
    cnp.ndarray fastbn_like(cnp.ndarray x)

cnp.import_array()

cdef Kernels *KERNELS = <Kernels *>PyCapsule_GetPointer(_dispatch.kernels.table, "fastbn.Kernels")


# ---- memory of large results
#
# They begin with a page: rows of whole cache lines are then written as such, and where an x that was such a result gets
# one, offsets in pages are the same. (NumPy's mostly begin 16 bytes behind. Zen 4, 512x28x28: without `out`, training
# takes .9 to 1.0 of the time, the backward .9; in float16 .6 to .9; short and longer rows 1.0.)
#
# glibc gives what is freed above 32 MiB back to the system, and the next result is new memory, which the system clears
# first: that takes about as long as a pass. So of such results the memory of the one that was freed last is kept for
# the next of the same size. The system may have it meanwhile, and a large result of another size gives it back first:
# at their peak large results take no more than without that. (Beside smaller ones it stands until the system takes it.)

cdef size_t ALIGNED_FROM = 1 << 20  # bytes
cdef size_t KEPT_FROM = 32 << 20
cdef size_t PAGE = 4096
cdef void *KEPT = NULL
cdef cnp.PyDataMem_Handler HANDLER  # how NumPy gets memory for large results
cdef cnp.PyDataMemAllocator NUMPYS  # how it gets all other


cdef struct Memory:             # stands before the first value
    void *start                 # of what NumPy's allocator gave
    size_t bytes                # from the first value on


cdef inline Memory *described(void *values) noexcept:
    return <Memory *>values - 1


cdef inline size_t bytes_to_get(size_t bytes) noexcept:
    return sizeof(Memory) + PAGE + bytes


cdef void give_back(void *values) noexcept:
    if values != NULL:
        NUMPYS.free(NUMPYS.ctx, described(values).start, bytes_to_get(described(values).bytes))


cdef void *get_memory(void *ctx, size_t bytes) noexcept:
    cdef void *values
    cdef void *start
    if bytes >= KEPT_FROM:
        values = exchange(&KEPT, NULL)
        if values != NULL and described(values).bytes == bytes:
            return values
        give_back(values)
    start = NUMPYS.malloc(NUMPYS.ctx, bytes_to_get(bytes))
    if start == NULL:
        return NULL
    values = <void *>((<uintptr_t>start + sizeof(Memory) + PAGE - 1)//PAGE*PAGE)
    described(values).start, described(values).bytes = start, bytes
    return values


cdef void free_memory(void *ctx, void *values, size_t bytes) noexcept:
    if bytes >= KEPT_FROM and lend(values, bytes):
        give_back(exchange(&KEPT, values))
    else:
        give_back(values)


cdef void *get_zeros(void *ctx, size_t count, size_t each) noexcept:
    cdef void *values = get_memory(ctx, count*each)
    return NULL if values == NULL else memset(values, 0, count*each)


cdef void *get_other_memory(void *ctx, void *values, size_t bytes) noexcept:
    """For a result whose owner changes its size."""
    cdef void *other = get_memory(ctx, bytes)
    if other != NULL and values != NULL:
        memcpy(other, values, min(bytes, described(values).bytes))
        give_back(values)
    return other


cdef object make_handler():
    cdef cnp.PyDataMem_Handler *numpys = <cnp.PyDataMem_Handler *>PyCapsule_GetPointer(
        NUMPYS_HANDLER, "mem_handler")
    global NUMPYS, HANDLER
    NUMPYS = numpys.allocator
    HANDLER = numpys[0]
    memcpy(HANDLER.name, b"fastbn", 7)
    HANDLER.allocator.malloc, HANDLER.allocator.free = get_memory, free_memory
    HANDLER.allocator.calloc, HANDLER.allocator.realloc = get_zeros, get_other_memory
    return PyCapsule_New(&HANDLER, "mem_handler", NULL)


cdef object NUMPYS_HANDLER = <object>PyDataMem_DefaultHandler
cdef object RESULT_HANDLER = make_handler()


cdef cnp.ndarray result_like(cnp.ndarray x):
    """A fresh array like x. Memory is had as a user has told NumPy to, if any has."""
    if cnp.PyArray_NBYTES(x) < <Py_ssize_t>ALIGNED_FROM or cnp.PyDataMem_GetHandler() is not NUMPYS_HANDLER:
        return fastbn_like(x)
    cnp.PyDataMem_SetHandler(RESULT_HANDLER)
    try:
        return fastbn_like(x)
    finally:
        cnp.PyDataMem_SetHandler(NUMPYS_HANDLER)


def forget_result():
    """Give the memory back that is kept. (It counts as this process's until the system takes it.)"""
    give_back(exchange(&KEPT, NULL))


# ---- threads: the numbers that _threads.py decides on

# Below this many values a call stays on one thread: a team costs some 5 to 20 us to wake.
cdef Py_ssize_t PARALLEL_FROM = 65536

cdef int CHOSEN = 0         # set_num_threads; 0: not set
cdef int MOST = 1           # what the machine grants this process
cdef bint ALONE = False     # there are no other threads in this process, and there will be none


def set_threads(int chosen, int most):
    """Use `chosen` threads; with 0 as many as OpenMP would, at most `most`."""
    global CHOSEN, MOST
    CHOSEN, MOST = chosen, most


def stay_alone():
    """Use one thread from now on, whatever is set: what a child does that OpenMP's threads did not follow."""
    global ALONE
    ALONE = True


def get_threads():
    """The threads of the next large call. OpenMP is asked each time, so that threadpoolctl's limits count."""
    if openmp_kind() == 0 or ALONE:
        return 1
    return CHOSEN if CHOSEN else max(1, min(MOST, openmp_max_threads()))


def chosen_threads():
    """`chosen` as set_threads was last given it; 0: nothing is set."""
    return CHOSEN


def bound_processors():
    """What OpenMP's threads are bound to; 0: they are not."""
    return openmp_bound_processors()


def pause_threads():
    """Let go of OpenMP's threads, which a fork would not take along."""
    openmp_pause()


def openmp():
    """0: serial build, 1: threads that a forked child must do without, 2: threads that are safe with fork."""
    return openmp_kind()


def build():
    """Flags and Cython version of the build."""
    return (<bytes>FASTBN_BUILD).decode()


# ---- accepting arguments

# What NumPy calls the bfloat16 of ml_dtypes, once an array of it has come.
cdef int BFLOAT16_TYPE = -1


cdef inline bint plain(cnp.ndarray a):
    """Whether an array is of a type the kernels compute in, in this machine's byte order."""
    cdef int dtype = cnp.PyArray_TYPE(a)
    return (dtype == cnp.NPY_FLOAT32 or dtype == cnp.NPY_FLOAT64) and cnp.PyArray_ISNOTSWAPPED(a)


cdef inline Storage storage_of(cnp.ndarray a):
    """Of which half type an array is, if of one."""
    cdef int dtype = cnp.PyArray_TYPE(a)
    if dtype == cnp.NPY_FLOAT16:
        return FLOAT16
    return BFLOAT16 if dtype == BFLOAT16_TYPE else AS_IS


cdef cnp.ndarray accept_array(object given, str name):
    """An array of one of the kernels' types."""
    global BFLOAT16_TYPE
    if cnp.PyArray_CheckExact(given) and (plain(given) or (storage_of(given) and cnp.PyArray_ISNOTSWAPPED(given))):
        return given
    cdef cnp.ndarray a = _explain.as_array(name, given)
    if not plain(a) and cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT16:
        BFLOAT16_TYPE = cnp.PyArray_TYPE(a)
    return a


cdef int accept_axis(object axis, cnp.ndarray x) except -1:
    """The axis of the channels, from 0 on: one of at least two, and not empty."""
    cdef int ndim = cnp.PyArray_NDIM(x), overflow = 0
    cdef long channels = 0
    if type(axis) is int and ndim >= 2:
        channels = PyLong_AsLongAndOverflow(axis, &overflow)
        channels += ndim if channels < 0 else 0
        if overflow == 0 and 0 <= channels < ndim and cnp.PyArray_DIM(x, <int>channels) > 0:
            return <int>channels
    return _explain.checked_axis(x, axis)


cdef cnp.ndarray accept_like(object given, str name, cnp.ndarray x):
    """An array of x's shape and type, in any memory order."""
    given = accept_array(given, name)
    if not (cnp.PyArray_TYPE(given) == cnp.PyArray_TYPE(x) and cnp.PyArray_SAMESHAPE(given, x)):
        _explain.check_like(name, given, (<object>x).shape, x.dtype)
    return given


cdef cnp.ndarray accept_vector(object v, str name, Py_ssize_t channels):
    """A vector of one number per channel, or None."""
    if v is None or (cnp.PyArray_CheckExact(v) and plain(v) and cnp.PyArray_NDIM(v) == 1
                     and cnp.PyArray_DIM(v, 0) == channels):
        return v
    return _explain.as_vector(name, v, channels)


cdef cnp.ndarray accept_needed(object v, str name, Py_ssize_t channels):
    return accept_vector(_explain.as_vector(name, v, channels) if v is None else v, name, channels)


cdef cnp.ndarray in_float64(cnp.ndarray v):
    """A vector's numbers as contiguous float64: itself where it is that, else a copy. None for None."""
    if v is None or (cnp.PyArray_TYPE(v) == cnp.NPY_FLOAT64 and cnp.PyArray_ISCARRAY_RO(v)):
        return v
    if not cnp.PyArray_ISALIGNED(v):
        return in_float64(v.copy())
    cdef cnp.npy_intp shape = cnp.PyArray_DIM(v, 0)
    cdef cnp.ndarray numbers = cnp.PyArray_EMPTY(1, &shape, cnp.NPY_FLOAT64, 0)
    cdef double *to = <double *>cnp.PyArray_DATA(numbers)
    cdef char *source = cnp.PyArray_BYTES(v)
    cdef Py_ssize_t step = cnp.PyArray_STRIDE(v, 0), c
    cdef fp_mode before = fp_default()      # a caller's flush-to-zero would swallow subnormal float32
    if cnp.PyArray_TYPE(v) == cnp.NPY_FLOAT64:
        for c in range(shape):
            to[c] = (<double *>(source + c*step))[0]
    else:
        for c in range(shape):
            to[c] = (<float *>(source + c*step))[0]
    fp_restore(before)
    return numbers


cdef Py_ssize_t accept_count(Py_ssize_t count, const Call *call, bint whole, bint need_dx) except -1:
    """The n of a training backward; x holds all of these values (`whole`), or some of them."""
    if whole and count != call.values:
        _explain.wrong_count(count, call.values)
    if need_dx and count < 1 <= call.values:
        _explain.no_count(count)
    return max(count, 1)        # where it is 0, there is no value and nothing is divided


cdef double accept_eps(object eps) except -1:
    if type(eps) is float and 0 <= <double>eps < 1e300:
        return eps
    return _explain.as_eps(eps)


cdef bint accept_flag(object given, str name) except -1:
    return given if type(given) is bool else _explain.as_flag(name, given)


cdef Activation accept_activation(object name, object slope) except *:
    """The numbers of an activation; neutral ones for None."""
    cdef Activation act
    act.slope, act.lower, act.upper = 1, NAN, NAN
    if not (type(slope) is float and 0 <= <double>slope < 1e300):
        slope = _explain.as_slope(slope)
    if name is None:
        return act
    _explain.check_activation(name)
    if name == "leaky_relu":
        act.slope = slope
    else:
        act.lower = 0
        act.upper = 6 if name == "relu6" else NAN
    return act


cdef cnp.ndarray contiguous(cnp.ndarray v):
    """A vector whose numbers stand side by side: itself, or a copy. None for None."""
    return v if v is None or cnp.PyArray_ISCARRAY_RO(v) else v.copy()


cdef inline Vector vector_of(cnp.ndarray v) noexcept:
    """What a kernel sees of a contiguous vector, or of None. To be taken before anything else is converted: that may
    change the vector's type.
    """
    cdef Vector to
    to.data = NULL if v is None else cnp.PyArray_BYTES(v)
    to.float32 = v is not None and cnp.PyArray_TYPE(v) == cnp.NPY_FLOAT32
    return to


cdef inline int check_size(cnp.ndarray v, Py_ssize_t bytes) except -1:
    """That a vector still has the memory that will be read: an __array__ of the caller's may have resized it since."""
    if v is not None and cnp.PyArray_NBYTES(v) != bytes:
        _explain.has_changed()


cdef inline int check_vector(cnp.ndarray v, const Vector *taken, Py_ssize_t channels) except -1:
    """The same, and where it was when it was accepted."""
    if v is not None and cnp.PyArray_BYTES(v) != taken.data:
        _explain.has_changed()
    return check_size(v, channels*(sizeof(float) if taken.float32 else sizeof(double)))


cdef int check_variance(cnp.ndarray v, str name) except -1:
    """That a contiguous vector does not hold negative numbers."""
    cdef Vector var = vector_of(v)
    if KERNELS.any_sign(&var, cnp.PyArray_DIM(v, 0)):       # perhaps of -0.0, or of NaN
        _explain.check_variance(name, in_float64(v))
    return 0


cdef inline double *doubles(cnp.ndarray v) noexcept:
    """The numbers of a float64 vector, NULL for None."""
    return NULL if v is None else <double *>cnp.PyArray_DATA(v)


# ---- memory: extent, overlap, order

cdef inline void extent(cnp.ndarray a, char **low, char **high) noexcept:
    """The bytes from the lowest to behind the highest that an array reaches."""
    cdef int axis
    cdef Py_ssize_t reach
    low[0] = cnp.PyArray_BYTES(a)
    high[0] = low[0] + cnp.PyArray_ITEMSIZE(a)
    for axis in range(cnp.PyArray_NDIM(a)):
        reach = (cnp.PyArray_DIM(a, axis) - 1)*cnp.PyArray_STRIDE(a, axis)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef inline bint apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether no byte lies between the ends of both."""
    cdef char *a_low
    cdef char *a_high
    cdef char *b_low
    cdef char *b_high
    extent(a, &a_low, &a_high)
    extent(b, &b_low, &b_high)
    return a_high <= b_low or b_high <= a_low


cdef inline bint same_values(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two arrays of one shape are the same values."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, axis) > 1 and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis):
            return False
    return True


cdef inline bint plain_result(cnp.ndarray out, cnp.ndarray x) noexcept:
    """Whether an array can take a result like x, each value in a place of its own."""
    return (cnp.PyArray_TYPE(out) == cnp.PyArray_TYPE(x) and cnp.PyArray_ISNOTSWAPPED(out)
            and cnp.PyArray_SAMESHAPE(out, x) and cnp.PyArray_ISWRITEABLE(out) and cnp.PyArray_IS_C_CONTIGUOUS(out))


cdef cnp.ndarray accept_out(object out, cnp.ndarray x, tuple names, tuple inputs, Py_ssize_t arrays):
    """A fresh array like x, or `out` once it is safe to write to.

    It may be the same memory as one of the first `arrays` inputs; of all others, vectors or None, it must be apart.
    """
    if out is None:
        return result_like(x)
    if not (cnp.PyArray_CheckExact(out) and plain_result(out, x)):
        _explain.check_out(out, x)
    if cnp.PyArray_SIZE(out) == 0:
        return out
    cdef cnp.ndarray result = out, other
    cdef Py_ssize_t i
    for i in range(len(inputs)):
        other = inputs[i]
        if not (other is None or apart(result, other) or (i < arrays and same_values(result, other))):
            _explain.check_overlap(result, names[i], other, i < arrays)
    return result


cdef inline bint is_inside(cnp.ndarray x, int axis, int channels) noexcept:
    """Whether an axis longer than 1 stands inside that of the channels in memory, in np.empty_like's reckoning."""
    cdef Py_ssize_t step = cnp.PyArray_STRIDE(x, axis), channel = cnp.PyArray_STRIDE(x, channels)
    step, channel = max(step, -step), max(channel, -channel)    # (abs() would make Python objects of them)
    return step < channel or (step == channel and axis > channels)


cdef Order memory_order(cnp.ndarray x, int channels) noexcept:
    """ROWS where no axis stands inside that of the channels. Axes of length 1 do not count."""
    cdef int axis
    cdef bint others = False
    if cnp.PyArray_DIM(x, channels) == 1:
        return PLANES
    for axis in range(cnp.PyArray_NDIM(x)):
        if axis != channels and cnp.PyArray_DIM(x, axis) != 1:
            others = True
            if is_inside(x, axis, channels):
                return PLANES
    return ROWS if others else PLANES


cdef Py_ssize_t values_in_a_row(cnp.ndarray x, int channels) noexcept:
    """s of planes (n, c, s): the last axes of a channel's values, as far as they stand inside that of the channels.

    An axis of length 1 may have any stride: an only channel is taken to stand, as in NCHW, inside the first of the
    other axes. Its sums are then those that it has beside others there.
    """
    cdef int axis, first = 1 if channels == 0 else 0
    cdef Py_ssize_t plane = 1
    if cnp.PyArray_DIM(x, channels) == 1:
        for axis in range(first + 1, cnp.PyArray_NDIM(x)):
            plane *= cnp.PyArray_DIM(x, axis)
        return plane
    for axis in range(cnp.PyArray_NDIM(x) - 1, -1, -1):
        if axis != channels and cnp.PyArray_DIM(x, axis) != 1:
            if not is_inside(x, axis, channels):
                break
            plane *= cnp.PyArray_DIM(x, axis)
    return plane


cdef inline void take_rows_apart(View *v, Py_ssize_t plane) noexcept:
    """Rows of an only channel follow each other without a gap, and were merged as the axes of a row are."""
    cdef int last = v.axes - 1
    if SHORTEST <= plane < v.shape[last]:
        v.shape[last + 1], v.step[last + 1] = plane, v.step[last]
        v.shape[last] //= plane
        v.step[last] *= plane
        v.axes += 1


cdef const View *view_of(cnp.ndarray a, int channels, Py_ssize_t plane, View *v) noexcept:
    """The view that kernels take of an array with its channels on this axis, so many values in a row; NULL of None."""
    cdef int axis, last = -1
    cdef Py_ssize_t length, step
    if a is None:
        return NULL
    v.data = cnp.PyArray_BYTES(a)
    v.channel = cnp.PyArray_STRIDE(a, channels)
    v.aligned = cnp.PyArray_ISALIGNED(a)
    for axis in range(cnp.PyArray_NDIM(a)):
        length, step = cnp.PyArray_DIM(a, axis), cnp.PyArray_STRIDE(a, axis)
        if axis == channels or length == 1:
            continue
        if last >= 0 and v.step[last] == length*step:
            v.shape[last] *= length
        else:
            last += 1
            v.shape[last] = length
        v.step[last] = step
    if last < 0:        # one value per channel
        last = 0
        v.shape[0] = 1
        v.step[0] = cnp.PyArray_ITEMSIZE(a)
    v.axes = last + 1
    if cnp.PyArray_DIM(a, channels) == 1:
        take_rows_apart(v, plane)
    return v


# ---- what a call hands to a kernel

cdef Call describe(cnp.ndarray x, int channels, double eps) noexcept:
    """A call on x, with its channels on this axis, which has just been checked (later code of the caller's may have
    changed it), and everything optional absent.
    """
    cdef Call call
    memset(&call, 0, sizeof(Call))
    call.dtype = FLOAT64 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64 else FLOAT32
    call.storage = storage_of(x)
    call.channels = cnp.PyArray_DIM(x, channels)
    call.values = cnp.PyArray_SIZE(x)//call.channels
    call.plane = values_in_a_row(x, channels)
    call.eps = eps
    return call


cdef inline Py_ssize_t itemsize_of(const Call *call) noexcept:
    if call.storage != AS_IS:
        return 2
    return 8 if call.dtype == FLOAT64 else 4


cdef inline int check_described(cnp.ndarray a, cnp.ndarray x, int channels, const Call *call) except -1:
    """That an array, if any, still is what was checked: an __array__ of the caller's may have changed it since."""
    if a is not None and not (
            cnp.PyArray_SAMESHAPE(a, x) and channels < cnp.PyArray_NDIM(a)
            and cnp.PyArray_DIM(a, channels) == call.channels and cnp.PyArray_SIZE(a) == call.values*call.channels
            and cnp.PyArray_ITEMSIZE(a) == itemsize_of(call)):
        _explain.has_changed()
    return 0


# ---- how results are written

# From this many bytes on, a result is written past the cache: it would only push other things out. (With 2 MiB instead,
# calls on rows of 2 to 3 MiB take 0.8 to 0.9 of their time alone, but 1.03 to 1.5 with what reads the result next.)
cdef Py_ssize_t STREAM_FROM = 4 << 20

# A forward on rows of half types so short that nearly each line is shared by two takes twice the instructions past the
# cache. (Zen 4, one thread and two, 6 MB of 5x5 and 7x7: by way of it inference takes .4 to .8 and training .65 to .9
# of the time, 13 MB .94 to .97; 8x8, float32 and backwards up to 1.5.)
cdef Py_ssize_t SHORT_HALVES = 64       # values of a row, which are fewer
cdef Py_ssize_t SHORT_HALVES_STREAM_FROM = 8 << 20

# Where a processor streams slowly (_dispatch.py), ordinary stores are faster while the last-level cache holds all
# arrays of a call. A forward is faster with them at any size, but for training with a residual (0.97 to 1.06 of the
# time past the cache; a backward: 1.03 to 1.08), until so many threads run that memory is what they wait for: it then
# sees each line of the result twice. A backward of short rows is faster for longer, since whole lines cost it more
# (planes of 14x14 0.85 to 0.93, of 7x7 0.92 to 0.98; above that 7x7 1.0 to 1.11).
cdef bint STREAMS_SLOWLY = _dispatch.streams_slowly
cdef Py_ssize_t SLOW_STREAM_FROM = 32 << 20     # bytes of all arrays; measured with 36 MB of cache
cdef Py_ssize_t SHORT_ROWS_STREAM_FROM = 128 << 20      # the same of such a backward
cdef int FEW_THREADS = 4


def set_streams_slowly(bint slowly):
    """Whether this is such a machine; what it was before. No result depends on it."""
    global STREAMS_SLOWLY
    before, STREAMS_SLOWLY = STREAMS_SLOWLY, slowly
    return before


cdef inline Stores stores_of(const Call *call, Order order) noexcept:
    """How its results are best written."""
    cdef Py_ssize_t bytes = call.values*call.channels*itemsize_of(call), least = SLOW_STREAM_FROM
    cdef bint few = call.threads <= FEW_THREADS
    if call.out == NULL or bytes < STREAM_FROM:
        return BY_CACHE
    if (call.storage != AS_IS and order == PLANES and call.plane < SHORT_HALVES and not call.backward
            and bytes < SHORT_HALVES_STREAM_FROM):
        return BY_CACHE
    if not STREAMS_SLOWLY:
        return PAST_CACHE
    if few and not (call.backward or (call.measure and call.dy != NULL)):
        return WHOLE_LINES
    if few and call.backward and order == PLANES and call.plane < SHORT:
        least = SHORT_ROWS_STREAM_FROM
    return PAST_CACHE if (arrays_read(call) + 1 + (call.dresidual != NULL))*bytes >= least else BY_CACHE


# ---- running a kernel

cdef int run(Call *call, int channels, cnp.ndarray order_of, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray out,
             cnp.ndarray y=None, cnp.ndarray dresidual=None) except -1:
    """Run the kernel for the memory order of `order_of` on those of the arrays that are not None."""
    cdef View views[5]
    cdef Order order
    cdef Py_ssize_t scratch
    cdef char *memory = NULL
    check_described(order_of, order_of, channels, call)
    check_described(x, order_of, channels, call)
    check_described(dy, order_of, channels, call)
    check_described(out, order_of, channels, call)
    check_described(y, order_of, channels, call)
    check_described(dresidual, order_of, channels, call)
    call.x = call.dy = call.out = call.y = call.dresidual = NULL
    order = memory_order(order_of, channels)
    if call.values == 0:
        return 0
    call.x, call.dy = view_of(x, channels, call.plane, &views[0]), view_of(dy, channels, call.plane, &views[1])
    call.out, call.y = view_of(out, channels, call.plane, &views[2]), view_of(y, channels, call.plane, &views[3])
    call.dresidual = view_of(dresidual, channels, call.plane, &views[4])
    call.threads = get_threads() if call.values*call.channels >= PARALLEL_FROM else 1
    call.stores = stores_of(call, order)
    scratch = scratch_bytes(call, order)
    if scratch:
        memory = <char *>PyMem_Malloc(scratch + CACHE_LINE)
        if memory == NULL:
            raise MemoryError(f"fastbn: no memory for {scratch} bytes of scratch")
        call.scratch = memory + -<uintptr_t>memory % CACHE_LINE
    with nogil:
        KERNELS.run(call, order)
    PyMem_Free(memory)
    call.scratch = NULL     # a call may run more than once
    return 0


cdef cnp.ndarray new_vector(Py_ssize_t channels):
    """A vector of zeros, float64: what sums and statistics of no value are."""
    cdef cnp.npy_intp shape = channels
    return cnp.PyArray_ZEROS(1, &shape, cnp.NPY_FLOAT64, 0)


cdef object tuple_of(object kind, tuple parts):
    """A BatchStats, GradientSums or Gradients of parts that need no checks."""
    cdef tuple arguments = (parts,)
    return (<PyTypeObject *>tuple).tp_new(kind, <PyObject *>arguments, NULL)


cdef cnp.ndarray read_only(cnp.ndarray v):
    cnp.PyArray_CLEARFLAGS(v, cnp.NPY_ARRAY_WRITEABLE)
    return v


# ---- the calls of functional.py

def batch_stats(x, axis):
    """The BatchStats of x."""
    cdef cnp.ndarray a = accept_array(x, "x")
    cdef int channels = accept_axis(axis, a)
    cdef Call call = describe(a, channels, 0)
    cdef cnp.ndarray mean = new_vector(call.channels), var = new_vector(call.channels)
    call.measure = True
    call.mean = call.origin = doubles(mean)
    call.var = doubles(var)
    run(&call, channels, a, a, None, None)
    return tuple_of(BatchStats, (call.values, read_only(mean), read_only(var)))


def batch_norm(x, gamma, beta, eps, axis, activation, negative_slope, residual, out):
    """(y, BatchStats): statistics and result in one go."""
    cdef double given_eps = accept_eps(eps)
    cdef cnp.ndarray a = accept_array(x, "x"), r = None, y
    cdef int channels = accept_axis(axis, a)
    cdef Call call = describe(a, channels, given_eps)
    cdef cnp.ndarray g = accept_vector(gamma, "gamma", call.channels), g_read = contiguous(g)
    call.gamma = vector_of(g_read)
    cdef cnp.ndarray b = accept_vector(beta, "beta", call.channels), b_read = contiguous(b)
    call.beta = vector_of(b_read)
    call.act, call.activated = accept_activation(activation, negative_slope), activation is not None
    if residual is not None:
        r = accept_like(residual, "residual", a)
    if call.values == 0:
        _explain.no_values(a)
    y = accept_out(out, a, ("x", "residual", "gamma", "beta"), (a, r, g, b), 2)
    check_vector(g_read, &call.gamma, call.channels)
    check_vector(b_read, &call.beta, call.channels)
    cdef cnp.ndarray mean = new_vector(call.channels), var = new_vector(call.channels)
    call.measure = True
    call.mean = call.origin = doubles(mean)
    call.var = doubles(var)
    run(&call, channels, a, a, r, y)
    return y, tuple_of(BatchStats, (call.values, read_only(mean), read_only(var)))


def normalize(x, mean, var, gamma, beta, eps, axis, activation, negative_slope, residual, out):
    """y from given statistics."""
    cdef double given_eps = accept_eps(eps)
    cdef cnp.ndarray a = accept_array(x, "x"), r = None, y
    cdef int channels = accept_axis(axis, a)
    cdef Call call = describe(a, channels, given_eps)
    cdef cnp.ndarray m = accept_needed(mean, "mean", call.channels), m_read = contiguous(m)
    call.given_mean = vector_of(m_read)
    cdef cnp.ndarray v = accept_needed(var, "var", call.channels), v_read = contiguous(v)
    call.given_var = vector_of(v_read)
    check_variance(v_read, "var")
    cdef cnp.ndarray g = accept_vector(gamma, "gamma", call.channels), g_read = contiguous(g)
    call.gamma = vector_of(g_read)
    cdef cnp.ndarray b = accept_vector(beta, "beta", call.channels), b_read = contiguous(b)
    call.beta = vector_of(b_read)
    call.act, call.activated = accept_activation(activation, negative_slope), activation is not None
    if residual is not None:
        r = accept_like(residual, "residual", a)
    y = accept_out(out, a, ("x", "residual", "mean", "var", "gamma", "beta"), (a, r, m, v, g, b), 2)
    check_vector(m_read, &call.given_mean, call.channels)
    check_vector(v_read, &call.given_var, call.channels)
    check_vector(g_read, &call.gamma, call.channels)
    check_vector(b_read, &call.beta, call.channels)
    run(&call, channels, a, a, r, y)
    return y


def backward(dy, x, stats, sums, gamma, beta, eps, axis, activation, negative_slope, residual, y, training, need_dx,
             need_params, out, whole):
    """Gradients: a whole backward or, from `sums`, its second half. Not `whole` and without sums its first half:
    GradientSums. Of a whole one x is all that the statistics came from, so the counts must agree.
    """
    training, need_dx = accept_flag(training, "training"), accept_flag(need_dx, "need_dx")
    need_params, residual = accept_flag(need_params, "need_params"), accept_flag(residual, "residual")
    cdef Activation act = accept_activation(activation, negative_slope)
    cdef double given_eps = accept_eps(eps)
    cdef bint from_y = x is None and y is not None, reads_x
    cdef cnp.ndarray a = accept_array(y if from_y else x, "y" if from_y else "x")
    cdef cnp.ndarray d, given_y = None, tells, dx = None, dresidual = None
    cdef int channels = accept_axis(axis, a)
    cdef Call call = describe(a, channels, given_eps)
    d = accept_like(dy, "dy", a)
    count, mean, var = stats if type(stats) is BatchStats else _explain.as_stats(stats, training)
    cdef cnp.ndarray m = accept_needed(mean, "stats.mean", call.channels), m64 = in_float64(m)
    cdef cnp.ndarray v = accept_needed(var, "stats.var", call.channels), v64 = in_float64(v)
    check_variance(v64, "stats.var")
    cdef cnp.ndarray g = accept_vector(gamma, "gamma", call.channels), g_read = contiguous(g)
    call.gamma = vector_of(g_read)
    cdef cnp.ndarray b = accept_vector(beta, "beta", call.channels), b_read = contiguous(b), b64 = None
    call.beta = vector_of(b_read)
    if from_y:
        b64 = new_vector(call.channels) if b is None else in_float64(b)
        _explain.check_can_undo(activation, act.slope, g, residual, a.dtype)
    cdef cnp.ndarray s, t, s64, t64, dgamma = None, dbeta = None
    if y is not None and not from_y:
        given_y = accept_like(y, "y", a)
    elif residual and activation is not None:
        _explain.needs_y(activation)
    if training:
        call.count = accept_count(count, &call, whole, need_dx)
    if sums is not None:
        s, t = accept_needed(sums[0], "sums", call.channels), accept_needed(sums[1], "sums", call.channels)
        s64, t64 = in_float64(s), in_float64(t)
    else:
        call.measure = need_params or (need_dx and training)
        s = s64 = new_vector(call.channels)
        t = t64 = new_vector(call.channels)
    out, out_residual = _explain.as_outs(out) if residual and out is not None else (out, None)
    if need_dx:
        dx = accept_out(out, a, ("y" if from_y else "x", "dy", "y", "stats", "stats", "gamma", "beta", "sums", "sums"),
                        (a, d, given_y, m, v, g, b, s, t), 2)
    elif out is not None:
        _explain.useless_out()
    if residual and (whole or sums is not None):
        dresidual = accept_out(out_residual, a,
                               ("x", "dy", "dx", "y", "stats", "stats", "gamma", "beta", "sums", "sums"),
                               (a, d, dx, given_y, m, v, g, b, s, t), 2)
    call.backward, call.constant, call.from_y = True, not training, from_y
    call.act, call.activated = act, activation is not None
    call.mean, call.var = doubles(m64), doubles(v64)
    call.origin = call.mean
    if from_y:
        call.origin = doubles(b64)
    # What tells of act'(z), if not x. Behind a residual without an activation nothing is cut off: any array will do.
    tells = None if not residual else d if activation is None else given_y
    call.sum_dy, call.sum_dy_xmu = doubles(s64), doubles(t64)
    check_vector(g_read, &call.gamma, call.channels)
    check_vector(b_read, &call.beta, call.channels)     # (b64 is b_read, or a copy that nobody else has)
    check_size(m64, call.channels*sizeof(double))
    check_size(v64, call.channels*sizeof(double))
    check_size(s64, call.channels*sizeof(double))
    check_size(t64, call.channels*sizeof(double))
    if need_params:
        dgamma, dbeta = gradient_like(g, &call), gradient_like(b, &call)
    if call.measure or need_dx:
        reads_x = call.measure or training or from_y or (call.activated and not residual)
        run(&call, channels, a, a if reads_x else None, d, dx, tells, dresidual if need_dx else None)
    if dresidual is not None and not need_dx:
        fill_dresidual(call, channels, a, d, None if activation is None else given_y, dresidual)
    if need_params:
        put_gradients(&call, dgamma, dbeta)
    if sums is None and not whole:
        return tuple_of(GradientSums, (read_only(s), read_only(t)))
    return tuple_of(Gradients, (dx, dgamma, dbeta, dresidual))


cdef int fill_dresidual(Call call, int channels, cnp.ndarray order_of, cnp.ndarray dy, cnp.ndarray y,
                        cnp.ndarray dresidual) except -1:
    """dresidual without dx: what dx is where statistics are constant and scale nothing. z is then y, if that tells."""
    cdef cnp.ndarray zeros = new_vector(call.channels)
    call.measure, call.constant, call.activated = False, True, y is not None
    call.mean = call.var = doubles(zeros)
    call.origin, call.gamma, call.beta, call.eps = call.mean, vector_of(None), vector_of(None), 1
    return run(&call, channels, order_of, y, dy, dresidual)


cdef cnp.ndarray gradient_like(cnp.ndarray parameter, const Call *call):
    """A fresh vector for a parameter's gradient: of its type where it is given, else float32 (float64 for float64)."""
    cdef cnp.npy_intp shape = call.channels
    cdef int kind = cnp.NPY_FLOAT64 if call.dtype == FLOAT64 else cnp.NPY_FLOAT32
    if parameter is not None:
        kind = cnp.NPY_FLOAT64 if cnp.PyArray_TYPE(parameter) == cnp.NPY_FLOAT64 else cnp.NPY_FLOAT32
    return cnp.PyArray_EMPTY(1, &shape, kind, 0)


ctypedef fused real:
    float
    double


cdef void put_numbers(real *to, const double *numbers, const double *var, double eps, Py_ssize_t channels) noexcept:
    """numbers*invstd, or (without var) the numbers."""
    cdef Py_ssize_t c
    if var == NULL:
        for c in range(channels):
            to[c] = <real>numbers[c]
    else:
        for c in range(channels):
            to[c] = <real>(numbers[c]*inverse_std(var[c], eps))


cdef void put_gradient(cnp.ndarray gradient, const double *numbers, const double *var, const Call *call) noexcept:
    if cnp.PyArray_TYPE(gradient) == cnp.NPY_FLOAT64:
        put_numbers(<double *>cnp.PyArray_DATA(gradient), numbers, var, call.eps, call.channels)
    else:
        put_numbers(<float *>cnp.PyArray_DATA(gradient), numbers, var, call.eps, call.channels)


cdef void put_gradients(const Call *call, cnp.ndarray dgamma, cnp.ndarray dbeta) noexcept:
    """dgamma = sum_dy_xmu*invstd, dbeta = sum_dy."""
    cdef fp_mode before = fp_default()
    put_gradient(dgamma, call.sum_dy_xmu, call.var, call)
    put_gradient(dbeta, call.sum_dy, NULL, call)
    fp_restore(before)


# ---- running statistics

cdef inline double number(cnp.ndarray v, Py_ssize_t c) noexcept:
    if cnp.PyArray_TYPE(v) == cnp.NPY_FLOAT64:
        return (<double *>cnp.PyArray_DATA(v))[c]
    return (<float *>cnp.PyArray_DATA(v))[c]


cdef void put_number(cnp.ndarray v, Py_ssize_t c, double value) noexcept:
    if cnp.PyArray_TYPE(v) == cnp.NPY_FLOAT64:
        (<double *>cnp.PyArray_DATA(v))[c] = value
    else:
        (<float *>cnp.PyArray_DATA(v))[c] = <float>value


cdef inline double mixed(cnp.ndarray running, Py_ssize_t c, double new, double weight) noexcept:
    """(1 - weight)*running + weight*new as the running vector's type holds it. With weight 1 the old is forgotten."""
    cdef double value = new if weight == 1 else (1 - weight)*number(running, c) + weight*new
    return value if cnp.PyArray_TYPE(running) == cnp.NPY_FLOAT64 else <float>value


cpdef int check_writeable(str name, cnp.ndarray a) except -1:
    """ValueError for a read-only array."""
    if a is not None and not cnp.PyArray_ISWRITEABLE(a):
        _explain.read_only(name)
    return 0


cpdef int check_target(str name, cnp.ndarray a, Py_ssize_t channels) except -1:
    """That a layer's vector, if it has one, still takes a number per channel: its owner may have resized or cast it."""
    if a is not None and not (cnp.PyArray_ISWRITEABLE(a) and plain(a) and cnp.PyArray_NDIM(a) == 1
                              and cnp.PyArray_DIM(a, 0) == channels and cnp.PyArray_IS_C_CONTIGUOUS(a)
                              and cnp.PyArray_ISALIGNED(a)):
        _explain.wrong_target(name, a, channels)
    return 0


cpdef bint check_running(tuple to, Py_ssize_t channels, object momentum) except -1:
    """That (running_mean, running_var, tracked) can be moved; whether momentum is None or a float from 0 to 1."""
    cdef cnp.ndarray tracked = to[2]
    check_target("running_mean", to[0], channels)
    check_target("running_var", to[1], channels)
    check_writeable("num_batches_tracked", tracked)
    if (cnp.PyArray_TYPE(tracked) != cnp.NPY_INT64 or not cnp.PyArray_ISNOTSWAPPED(tracked)
            or cnp.PyArray_SIZE(tracked) != 1):
        _explain.wrong_target("num_batches_tracked", tracked, None)
    return momentum is None or (type(momentum) is float and 0 <= <double>momentum <= 1)


def move_running(tuple to not None, object stats, object weight, object batches, bint finite_only):
    """Move running statistics towards the mean and the unbiased variance of BatchStats of two values or more.

    `to` is (running_mean, running_var, tracked). `batches` is what the 0-d `tracked` becomes, None: one more than
    before. `weight` None: 1/batches. Returns None when all is written. Where a channel would not be finite, nothing is
    written and a list of these channels is returned; with `finite_only` all other channels are written.
    """
    cdef tuple parts = <tuple>stats     # unchecked: of a subtype
    cdef cnp.ndarray mean = parts[1], var = parts[2]
    cdef double count = parts[0], correction
    cdef Py_ssize_t c
    cdef double new_mean, new_var, new_weight
    cdef bint write
    cdef list odd = []
    cdef fp_mode before
    cdef cnp.ndarray running_mean = to[0], running_var = to[1], tracked = to[2]
    check_running(to, cnp.PyArray_DIM(mean, 0), weight)
    cdef cnp.int64_t *number_of = <cnp.int64_t *>cnp.PyArray_DATA(tracked)
    cdef cnp.int64_t new_batches = number_of[0] + (number_of[0] < INT64_MAX) if batches is None else batches
    before = fp_default()
    try:
        correction = count/(count - 1)
        new_weight = 1.0/new_batches if weight is None else weight
        for write in (False, True):
            for c in range(cnp.PyArray_DIM(mean, 0)):
                new_mean = mixed(running_mean, c, doubles(mean)[c], new_weight)
                new_var = mixed(running_var, c, doubles(var)[c]*correction, new_weight)
                if not (isfinite(new_mean) and isfinite(new_var)):
                    if not write:
                        odd.append(c)
                elif write:
                    put_number(running_mean, c, new_mean)
                    put_number(running_var, c, new_var)
            if odd and not finite_only:
                break
        else:
            number_of[0] = new_batches
    finally:
        fp_restore(before)
    return odd or None


# ---- what layers ask for in every call

def fits(x, Py_ssize_t axis, Py_ssize_t channels, object ranks, bint several):
    """Whether x is an array with so many channels, of one of the ranks (None: any); `several`: with more than one value
    each.
    """
    if not cnp.PyArray_CheckExact(x):
        return False
    cdef cnp.ndarray a = x
    cdef Py_ssize_t ndim = cnp.PyArray_NDIM(a)
    if axis < 0:
        axis += ndim
    return (0 <= axis < ndim and cnp.PyArray_DIM(a, axis) == channels and (ranks is None or ndim in ranks)
            and (cnp.PyArray_SIZE(a) > channels if several else ndim >= 2))


def same_memory(out, cnp.ndarray x not None):
    """Whether out is x itself, value by value."""
    return (isinstance(out, cnp.ndarray) and cnp.PyArray_SAMESHAPE(<cnp.ndarray>out, x)
            and same_values(<cnp.ndarray>out, x))


def copies(a, b, c, d):
    """Copies of the vectors that are not None, of one length and type: rows of one array, since each takes a while."""
    cdef tuple given = (a, b, c, d)
    cdef cnp.ndarray kept, v
    cdef cnp.npy_intp shape[2]
    cdef Py_ssize_t k, row = 0
    cdef char *to
    shape[0] = shape[1] = 0
    for k in range(4):
        if given[k] is not None:
            v = given[k]
            if cnp.PyArray_NDIM(v) != 1 or (shape[0] > 0 and cnp.PyArray_DIM(v, 0) != shape[1]):
                _explain.has_changed()      # by another thread, since it was accepted
            shape[0] += 1
            shape[1] = cnp.PyArray_DIM(v, 0)
    if shape[0] == 0:
        return None
    kept = cnp.PyArray_EMPTY(2, shape, cnp.PyArray_TYPE(v), 0)
    to = <char *>cnp.PyArray_DATA(kept)
    for k in range(4):
        if given[k] is not None:
            v = given[k]
            if cnp.PyArray_IS_C_CONTIGUOUS(v) and cnp.PyArray_TYPE(v) == cnp.PyArray_TYPE(kept):
                memcpy(to, cnp.PyArray_DATA(v), cnp.PyArray_NBYTES(v))
            else:
                kept[row] = v
            to += cnp.PyArray_STRIDE(kept, 0)
            row += 1
    return kept


def put(cnp.ndarray to not None, cnp.ndarray values not None):
    """to[...] = values, for vectors of one length."""
    if (cnp.PyArray_ISCARRAY(to) and cnp.PyArray_TYPE(to) == cnp.PyArray_TYPE(values)
            and cnp.PyArray_IS_C_CONTIGUOUS(values) and cnp.PyArray_SIZE(to) == cnp.PyArray_SIZE(values)):
        memcpy(cnp.PyArray_DATA(to), cnp.PyArray_DATA(values), cnp.PyArray_NBYTES(to))
    else:
        cnp.PyArray_CopyInto(to, values)


# ---- for benchmarks

def floor(cnp.ndarray x not None, cnp.ndarray w, cnp.ndarray y not None, bint stream):
    """y = x, or y = x + w, as fast as memory goes: what benchmarks compare with.

    Contiguous float32 or float64 arrays of one size, from multiples of 64 bytes on. What is left after lines of 16
    values is left out.
    """
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x)
    cdef Dtype dtype = FLOAT64 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64 else FLOAT32
    cdef int threads = get_threads() if size >= PARALLEL_FROM else 1
    cdef const char *added = NULL if w is None else cnp.PyArray_BYTES(w)
    cdef cnp.ndarray a
    for a in (x, y) if w is None else (x, w, y):  # in C: a small array's copy takes less time than Python's attributes
        if (not plain(a) or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(x) or cnp.PyArray_SIZE(a) != size
                or not cnp.PyArray_IS_C_CONTIGUOUS(a) or <size_t>cnp.PyArray_BYTES(a) % 64):
            raise ValueError("floor: expected contiguous arrays of one size and dtype, float32 or float64, "
                             "from multiples of 64 bytes on")
    check_writeable("floor", y)
    KERNELS.floor(cnp.PyArray_BYTES(x), added, cnp.PyArray_BYTES(y), size//LANES, dtype, stream, threads)
