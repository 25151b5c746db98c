# What a call does to rows: chosen once, so that the driver knows neither types nor options.


ctypedef void (*sum_rows)(const void **dy, const void **x, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t ahead,
                          const void *about, double *s, double *t) noexcept nogil
ctypedef void (*apply_rows)(const void *dy, const void *x, void *out, Py_ssize_t length, Py_ssize_t column,
                            const void *columns, bint stream) noexcept nogil


cdef struct RowLoops:
    Py_ssize_t itemsize
    sum_rows sum_rows
    sum_rows far_sum_rows       # the same about any centres
    apply_rows apply_rows
    void (*set_columns)(Columns *, const void *) noexcept nogil


cdef inline RowLoops row_loops_of(const Call *call, const stored *typed) noexcept nogil:
    cdef RowLoops loops
    loops.itemsize = sizeof(stored)
    if stored is double:
        loops.set_columns = <void (*)(Columns *, const void *) noexcept nogil>set_columns[double]
    else:
        loops.set_columns = <void (*)(Columns *, const void *) noexcept nogil>set_columns[float]
    loops.sum_rows = <sum_rows>sums_of_rows[stored, RowDeviations]
    loops.far_sum_rows = <sum_rows>sums_of_rows[stored, FarRowDeviations]
    loops.apply_rows = <apply_rows>results_of_rows[stored, NormalizedRows]
    if call.backward:
        loops.sum_rows = <sum_rows>sums_of_rows[stored, RowProducts]
        loops.far_sum_rows = <sum_rows>sums_of_rows[stored, FarRowProducts]
        loops.apply_rows = <apply_rows>results_of_rows[stored, GradientRows]
        if call.constant:
            loops.apply_rows = <apply_rows>results_of_rows[stored, ScaledRows]
    return loops


cdef inline RowLoops choose_row_loops(const Call *call) noexcept nogil:
    """By the type of the values."""
    if call.dtype == FLOAT64:
        return row_loops_of(call, <const double *>NULL)
    if call.storage == FLOAT16:
        return row_loops_of(call, <const float16_t *>NULL)
    if call.storage == BFLOAT16:
        return row_loops_of(call, <const bfloat16_t *>NULL)
    return row_loops_of(call, <const float *>NULL)
