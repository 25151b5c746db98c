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


cdef inline RowLoops row_loops_of(const Call *call, real typed) noexcept nogil:
    """The loops for a call on values of the type of `typed`."""
    cdef RowLoops loops
    loops.itemsize = sizeof(real)
    loops.set_columns = <void (*)(Columns *, const void *) noexcept nogil>set_columns[real]
    loops.sum_rows = <sum_rows>sums_of_rows[real, RowDeviations]
    loops.far_sum_rows = <sum_rows>sums_of_rows[real, FarRowDeviations]
    loops.apply_rows = <apply_rows>results_of_rows[real, NormalizedRows]
    if call.backward:
        loops.sum_rows = <sum_rows>sums_of_rows[real, RowProducts]
        loops.far_sum_rows = <sum_rows>sums_of_rows[real, FarRowProducts]
        loops.apply_rows = <apply_rows>results_of_rows[real, GradientRows]
        if call.constant:
            loops.apply_rows = <apply_rows>results_of_rows[real, ScaledRows]
    return loops


cdef inline RowLoops choose_row_loops(const Call *call) noexcept nogil:
    return row_loops_of(call, <double>0) if call.dtype == FLOAT64 else row_loops_of(call, <float>0)
