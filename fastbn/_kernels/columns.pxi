# Coefficients as loops take them: those of one channel, or side by side those of the columns of a row. Formulas are
# written once for both.

ctypedef void *column_values


cdef struct GateColumns:
    column_values low, high
    double *low64               # the same, for sums
    double *high64


cdef struct Columns:
    # Of the type of the values: of `width` columns and, once more, of the first LANES.
    column_values center, mul, add, by_x
    column_values mul_below, add_below      # only where there is a slope
    column_values center_below, by_x_below  # only where x is the y of an activation with a slope: there are no gates
    GateColumns gate
    Activation act
    Py_ssize_t width
    bint wide                   # some channels are computed in float64
    bint holds                  # results are held back (see hold_back())
    Py_ssize_t channels
    Numbers each                # of every channel


ctypedef fused numbers:
    Coefficients
    Columns


ctypedef fused coefficient:     # of one channel, or of columns
    double
    column_values


ctypedef fused gate_bound:      # another type: where columns have gates, coefficients may still be the same for all
    double
    column_values


cdef inline real number(coefficient value, Py_ssize_t column, const real *typed) noexcept nogil:
    """A coefficient."""
    if coefficient is double:
        return <real>value
    else:
        return (<const real *>value)[column]


ctypedef fused given:
    float
    double


cdef void put_columns(column_values to, const given *numbers, double times, const Columns *columns,
                      const real *typed) noexcept nogil:
    """The numbers of all channels, and again, up to the last column and the first LANES behind it."""
    cdef Py_ssize_t j
    cdef real *v = <real *>to
    for j in range(columns.channels):
        v[j] = <real>(numbers[j]*times)
    repeat_columns(to, columns, typed)


cdef inline void repeat_columns(column_values first, const Columns *columns, const real *typed) noexcept nogil:
    cdef Py_ssize_t j
    cdef real *v = <real *>first
    for j in range(columns.channels, columns.width + LANES):
        v[j] = v[j - columns.channels]


cdef void set_columns(Columns *columns, bint undone, const real *typed) noexcept nogil:
    """Coefficients of all columns from those of their channels."""
    cdef const Numbers *f = &columns.each
    if real is float:
        put_columns(columns.center, f.center32, 1, columns, typed)
        put_columns(columns.mul, f.mul32, 1, columns, typed)
        put_columns(columns.add, f.add32, 1, columns, typed)
        put_columns(columns.by_x, f.by_x32, 1, columns, typed)
        if f.act.slope != 1:
            put_columns(columns.mul_below, f.mul_below32, 1, columns, typed)
            put_columns(columns.add_below, f.add_below32, 1, columns, typed)
        if undone:
            undo_columns(columns, typed)
    else:
        put_columns(columns.center, f.center, 1, columns, typed)
        put_columns(columns.mul, f.mul, 1, columns, typed)
        put_columns(columns.add, f.add, 1, columns, typed)
        put_columns(columns.by_x, f.by_x, 1, columns, typed)
        if f.act.slope != 1:
            put_columns(columns.mul_below, f.mul, f.act.slope, columns, typed)
            put_columns(columns.add_below, f.add, f.act.slope, columns, typed)
    columns.wide = f.any_wide


cdef void undo_columns(Columns *columns, const real *typed) noexcept nogil:
    """undo() for all columns."""
    cdef Coefficients own
    cdef Py_ssize_t c
    for c in range(columns.channels):
        own = coefficients_of(&columns.each, c)
        undo(&own)
        (<real *>columns.center_below)[c] = <real>own.center_below
        (<real *>columns.add_below)[c], (<real *>columns.by_x_below)[c] = <real>own.add_below, <real>own.by_x_below
    repeat_columns(columns.center_below, columns, typed)
    repeat_columns(columns.add_below, columns, typed)
    repeat_columns(columns.by_x_below, columns, typed)


cdef void set_gate_columns(Columns *columns, const Gate *gates, const real *typed) noexcept nogil:
    """Gates of all columns from those of their channels."""
    cdef Py_ssize_t c
    cdef GateColumns *to = &columns.gate
    for c in range(columns.channels):
        to.low64[c], to.high64[c] = gates[c].low, gates[c].high
    repeat_columns(to.low64, columns, to.low64)
    repeat_columns(to.high64, columns, to.high64)
    for c in range(columns.width + LANES):
        (<real *>to.low)[c], (<real *>to.high)[c] = <real>to.low64[c], <real>to.high64[c]
