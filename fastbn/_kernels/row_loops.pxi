# Which loops a call on rows runs.


ctypedef void (*sum_rows)(const void **dy, const void **x, Py_ssize_t rows, Py_ssize_t width, const double *center,
                          double *a, double *b) noexcept nogil
ctypedef void (*apply_rows)(const void **dy, const void **x, void **out, Py_ssize_t rows, Py_ssize_t width,
                            const Coefficients *) noexcept nogil


cdef struct RowLoops:
    # What a call does to rows of its type, chosen once.
    Py_ssize_t itemsize
    sum_rows sum_rows
    apply_rows apply_rows


cdef inline RowLoops row_loops_of(const Call *call, real typed) noexcept nogil:
    """The loops for a call on values of the type of `typed`."""
    cdef RowLoops loops
    loops.itemsize = sizeof(real)
    loops.sum_rows = <sum_rows>deviations_rows[real]
    loops.apply_rows = <apply_rows>normalize_rows[real]
    if call.backward:
        loops.sum_rows = <sum_rows>products_rows[real]
        loops.apply_rows = <apply_rows>scale_rows[real] if call.constant else <apply_rows>gradient_rows[real]
    return loops


cdef inline RowLoops choose_row_loops(const Call *call) noexcept nogil:
    return row_loops_of(call, <double>0) if call.dtype == FLOAT64 else row_loops_of(call, <float>0)
