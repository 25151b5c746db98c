# Coefficients as loops take them: those of one channel, or side by side those of the columns of a row. Formulas are
# written once for both.

ctypedef void *column_values


cdef struct GateColumns:
    column_values low, high


cdef struct Columns:
    # Of the type of the values: of `width` columns and, once more, of the first LANES.
    column_values center, mul, add, by_x
    column_values mul_below, add_below      # only where there is an activation or a residual
    GateColumns gate
    Activation act
    Py_ssize_t width
    bint wide                   # some channels are computed in float64
    Py_ssize_t channels
    const Coefficients *each    # of every channel


ctypedef fused numbers:
    Coefficients
    Columns


ctypedef fused held:
    double
    column_values


ctypedef fused held_gate:
    double
    column_values


cdef inline real number(held value, Py_ssize_t column, const real *typed) noexcept nogil:
    """A coefficient."""
    if held is double:
        return <real>value
    else:
        return (<const real *>value)[column]


cdef inline const Coefficients *of_column(const numbers *f, Py_ssize_t column) noexcept nogil:
    """All coefficients of a channel."""
    if numbers is Coefficients:
        return f
    else:
        return f.each + max(column, 0) % f.channels     # (before the first one nothing is kept)


cdef void set_columns(Columns *columns, bint activated, const real *typed) noexcept nogil:
    """Coefficients of all columns from those of their channels."""
    cdef Py_ssize_t j, c = 0
    cdef const Coefficients *f
    columns.act = columns.each.act
    columns.wide = False
    for j in range(columns.width + LANES):
        f = columns.each + c
        (<real *>columns.center)[j] = <real>f.center
        (<real *>columns.mul)[j] = <real>f.mul
        (<real *>columns.add)[j] = <real>f.add
        (<real *>columns.by_x)[j] = <real>f.by_x
        if activated:
            (<real *>columns.mul_below)[j] = <real>f.mul_below
            (<real *>columns.add_below)[j] = <real>f.add_below
            (<real *>columns.gate.low)[j] = <real>f.gate.low
            (<real *>columns.gate.high)[j] = <real>f.gate.high
        columns.wide = columns.wide or f.wide
        c += 1
        if c == columns.channels:
            c = 0
