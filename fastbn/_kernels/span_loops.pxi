# Which loops a call on planes runs.


ctypedef void (*sum_spans)(const void *dy, const void *x, const void *dy_ahead, const void *x_ahead, const Steps *,
                           Py_ssize_t count, Py_ssize_t length, const void *about, Lanes *) noexcept nogil
ctypedef void (*apply_spans)(const void *dy, const void *x, void *out, const Steps *, Py_ssize_t count,
                             Py_ssize_t length, const void *formulas, Carry *) noexcept nogil
ctypedef void (*sweep_span)(const void *dy, const void *x, void *out, Py_ssize_t length, const void *formula, Carry *,
                            const void *next_dy, const void *next_x, const void *dy_ahead, const void *x_ahead,
                            const void *about, Lanes *) noexcept nogil


cdef struct Loops:
    # What a call does to contiguous values of its type: chosen once, so that drivers know neither types nor options.
    Py_ssize_t itemsize
    sum_spans sum_spans
    sum_spans sum_spans_again   # the same about any centre, for a second attempt
    apply_spans apply_spans
    sweep_span sweep_span       # apply_spans of one channel and sum_spans of the next


cdef inline Loops loops_of(const Call *call, const stored *typed) noexcept nogil:
    cdef Loops loops
    loops.itemsize = sizeof(stored)
    if not call.backward:
        loops.sum_spans = <sum_spans>sums_of_spans[stored, Deviations]
        loops.sum_spans_again = <sum_spans>sums_of_spans[stored, FarDeviations]
        loops.apply_spans = <apply_spans>results_of_spans[stored, Normalized]
        loops.sweep_span = <sweep_span>results_and_sums[stored, Normalized, Deviations]
    else:
        loops.sum_spans = <sum_spans>sums_of_spans[stored, Products]
        loops.sum_spans_again = <sum_spans>sums_of_spans[stored, FarProducts]
        if call.constant:
            loops.apply_spans = <apply_spans>results_of_spans[stored, Scaled]
            loops.sweep_span = <sweep_span>results_and_sums[stored, Scaled, Products]
        else:
            loops.apply_spans = <apply_spans>results_of_spans[stored, Gradient]
            loops.sweep_span = <sweep_span>results_and_sums[stored, Gradient, Products]
    return loops


cdef inline Loops choose_loops(const Call *call) noexcept nogil:
    """By the type of the values."""
    if call.dtype == FLOAT64:
        return loops_of(call, <const double *>NULL)
    if call.storage == FLOAT16:
        return loops_of(call, <const float16_t *>NULL)
    if call.storage == BFLOAT16:
        return loops_of(call, <const bfloat16_t *>NULL)
    return loops_of(call, <const float *>NULL)
