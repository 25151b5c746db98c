# Results over rows: the columns of a run of values come round again and again, and their coefficients with them.
#
# Results may take the place of x or dy: a line is computed as a whole before it is written.


cdef struct Columns:
    # Coefficients side by side, of the type of the values: of `width` columns and, once more, of the first LANES.
    void *center
    void *mul
    void *add
    void *by_x
    Py_ssize_t width
    bint wide                   # some channels are computed in float64:
    Py_ssize_t channels
    const Coefficients *each    # of every channel


cdef struct NormalizedRows:     # y = (x - center)*mul + add. There is no dy.
    Columns f


cdef struct GradientRows:       # dx = (dy*mul + add) + (x - center)*by_x
    Columns f


cdef struct ScaledRows:         # dx = dy*mul. x is not read.
    Columns f


ctypedef fused row_formula:
    NormalizedRows
    GradientRows
    ScaledRows


cdef void set_columns(Columns *columns, const real *typed) noexcept nogil:
    """Coefficients of all columns from those of their channels."""
    cdef Py_ssize_t j, c = 0
    cdef const Coefficients *f
    columns.wide = False
    for j in range(columns.width + LANES):
        f = columns.each + c
        (<real *>columns.center)[j] = <real>f.center
        (<real *>columns.mul)[j] = <real>f.mul
        (<real *>columns.add)[j] = <real>f.add
        (<real *>columns.by_x)[j] = <real>f.by_x
        columns.wide = columns.wide or f.wide
        c += 1
        if c == columns.channels:
            c = 0


cdef inline void compute_real_columns(const real *dy, const real *x, real *line, Py_ssize_t column,
                                      const row_formula *what) noexcept nogil:
    cdef const real *center = <const real *>what.f.center + column
    cdef const real *mul = <const real *>what.f.mul + column
    cdef const real *add = <const real *>what.f.add + column
    cdef const real *by_x = <const real *>what.f.by_x + column
    cdef Py_ssize_t k
    for k in range(LANES):
        if row_formula is NormalizedRows:
            line[k] = (x[k] - center[k])*mul[k] + add[k]
        elif row_formula is GradientRows:
            line[k] = (dy[k]*mul[k] + add[k]) + (x[k] - center[k])*by_x[k]
        else:
            line[k] = dy[k]*mul[k]


cdef inline void compute_wide(const real *dy, const real *x, real *line, Py_ssize_t column,
                              const row_formula *what) noexcept nogil:
    """The values of a line that are computed in float64."""
    cdef Py_ssize_t k
    cdef const Coefficients *f
    for k in range(LANES):
        f = what.f.each + (column + k) % what.f.channels
        if f.wide:
            if row_formula is NormalizedRows:
                line[k] = <real>((<double>x[k] - f.center)*f.mul + f.add)
            elif row_formula is GradientRows:
                line[k] = <real>((<double>dy[k]*f.mul + f.add) + (<double>x[k] - f.center)*f.by_x)
            else:
                line[k] = <real>(<double>dy[k]*f.mul)


cdef inline void compute_columns(const stored *dy, const stored *x, stored *line, Py_ssize_t column,
                                 const row_formula *what, bint wide) noexcept nogil:
    """The results of LANES values, the first of which stands in `column`."""
    cdef float wide_x[LANES]
    cdef float wide_dy[LANES]
    cdef float wide_line[LANES]
    if stored is float or stored is double:
        compute_real_columns(dy, x, line, column, what)
        if wide:
            compute_wide(dy, x, line, column, what)
    else:
        if row_formula is NormalizedRows or row_formula is GradientRows:
            widen(x, wide_x, LANES)
        if row_formula is GradientRows or row_formula is ScaledRows:
            widen(dy, wide_dy, LANES)
        compute_real_columns(<const float *>wide_dy, <const float *>wide_x, <float *>wide_line, column, what)
        if wide:
            compute_wide(<const float *>wide_dy, <const float *>wide_x, <float *>wide_line, column, what)
        narrow(wide_line, line, LANES)


cdef inline void store_lanes(stored *to, const stored *line) noexcept nogil:
    """LANES values by way of the cache."""
    cdef Py_ssize_t k = 0
    while k < LANES:
        store_half_line(to + k, line + k)
        k += 32//sizeof(stored)


cdef inline Py_ssize_t before_a_line(const stored *out, Py_ssize_t length) noexcept nogil:
    """Values before the first whole cache line."""
    return min(length, <Py_ssize_t>(-<uintptr_t>out % 64//sizeof(stored)))


cdef inline void ask_for_columns(const stored *dy, const stored *x, const row_formula *what) noexcept nogil:
    if row_formula is NormalizedRows or row_formula is GradientRows:
        prefetch_lanes(x + CHUNK)
    if row_formula is GradientRows or row_formula is ScaledRows:
        prefetch_lanes(dy + CHUNK)


cdef void some_results(const stored *dy, const stored *x, stored *out, Py_ssize_t some, Py_ssize_t column,
                       const row_formula *what) noexcept nogil:
    """The results of at most LANES values: any number, any formula, by way of the stack."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored line[LANES]
    memset(x_line, 0, sizeof(x_line))
    memset(dy_line, 0, sizeof(dy_line))
    if row_formula is NormalizedRows or row_formula is GradientRows:
        memcpy(x_line, x, some*sizeof(stored))
    if row_formula is GradientRows or row_formula is ScaledRows:
        memcpy(dy_line, dy, some*sizeof(stored))
    compute_columns(<const stored *>dy_line, <const stored *>x_line, line, column, what, what.f.wide)
    memcpy(out, line, some*sizeof(stored))


cdef inline void lines_of_results(const stored *dy, const stored *x, stored *out, Py_ssize_t length, Py_ssize_t column,
                                  const row_formula *what, bint stream) noexcept nogil:
    """The results of whole lines, all of which begin before the last column."""
    cdef stored line[LANES]
    cdef Py_ssize_t i = 0
    while i < length:
        ask_for_columns(dy + i, x + i, what)
        compute_columns(dy + i, x + i, line, column + i, what, False)
        if stream:
            stream_lanes(out + i, line)
        else:
            store_lanes(out + i, <const stored *>line)
        i += LANES


cdef void results_of_rows(const stored *dy, const stored *x, stored *out, Py_ssize_t length, Py_ssize_t column,
                          const row_formula *what, bint stream) noexcept nogil:
    """The results of a run of values, the first of which stands in `column`. With `stream` whole lines of them go past
    the cache.
    """
    cdef row_formula here = what[0]     # nothing that is written changes it
    cdef Py_ssize_t i = 0, some, width = here.f.width
    if stream and not here.f.wide:
        i = before_a_line(out, length)
        if i > 0:
            some_results(dy, x, out, i, column, what)
            column = (column + i) % width
    while i < length:
        some = min((width - column + LANES - 1)//LANES, (length - i)//LANES)*LANES
        if some == 0 or here.f.wide:
            some = min(LANES, length - i)
            some_results(dy + i, x + i, out + i, some, column, what)
        elif stream:
            lines_of_results(dy + i, x + i, out + i, some, column, &here, True)
        else:
            lines_of_results(dy + i, x + i, out + i, some, column, &here, False)
        i += some
        column += some
        column -= width if column >= width else 0
