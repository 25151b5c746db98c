# Results over rows: the columns of a run of values come round again and again, and their coefficients with them.
#
# Results may take the place of x or dy: a line is computed as a whole before it is written.

cdef enum:
    RESULTS_AHEAD = 4096        # values of x and dy from what is computed to what is asked for, past the cache
    RESULTS_SOON = 256          # the same in each of two places
    CACHED_RESULTS_AHEAD = 512  # the same by way of the cache


cdef inline Py_ssize_t before_a_line(const stored *out, Py_ssize_t length) noexcept nogil:
    """Values before the first whole cache line."""
    return min(length, <Py_ssize_t>(-<uintptr_t>out % CACHE_LINE//sizeof(stored)))


cdef void compute_wide(const Place *at, const Columns *f, Py_ssize_t column, const stored *typed,
                       const formula *what) noexcept nogil:
    """The results of a line that are computed in float64."""
    cdef Coefficients own
    cdef Place value = at[0]
    cdef Py_ssize_t k
    for k in range(LANES):
        own = coefficients_of(&f.each, (column + k) % f.channels)
        if own.wide:
            compute_each(&value, 1, &own, typed, what)
        value = shifted(&value, sizeof(stored))


cdef void some_results(const Place *at, Py_ssize_t some, const Columns *f, Py_ssize_t column,
                       const stored *typed, const formula *what) noexcept nogil:
    """The results of at most LANES values: any number, any formula, by way of the stack."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored y_line[LANES]
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef Place own
    cdef Py_ssize_t bytes = some*<Py_ssize_t>sizeof(stored)
    memset(x_line, 0, sizeof(x_line))
    memset(dy_line, 0, sizeof(dy_line))
    memset(y_line, 0, sizeof(y_line))
    if reads_x(what):
        memcpy(x_line, at.x, bytes)
    if reads_dy(what):
        memcpy(dy_line, at.dy, bytes)
    if reads_y(what):
        memcpy(y_line, at.y, bytes)
    own.x, own.dy, own.y = <const char *>x_line, <const char *>dy_line, <const char *>y_line
    own.out, own.dresidual = <char *>line, <char *>g
    compute_line(&own, 0, <stored *>line, <stored *>g, f, column, LANES, what)
    if stored is not double and f.wide:
        compute_wide(&own, f, column, typed, what)
    memcpy(at.out, line, bytes)
    if reads_y(what):
        memcpy(at.dresidual, g, bytes)


cdef inline void put_results(const Place *at, Py_ssize_t i, const stored *line, const stored *g, bint stream,
                             const formula *what) noexcept nogil:
    if stream:
        stream_results(at, i, line, g, True, what)
        return
    ask_for_place(<stored *>at.out + i)
    put_line(<stored *>at.out + i, line, LANES)
    if reads_y(what):
        ask_for_place(<stored *>at.dresidual + i)
        put_line(<stored *>at.dresidual + i, g, LANES)


cdef inline void lines_of_results(const Place *at, const Place *other, bint two, Py_ssize_t length, const Columns *f,
                                  Py_ssize_t column, Py_ssize_t ahead, bint stream, bint holds, bint turns,
                                  const stored *typed, const formula *what) noexcept nogil:
    """The results of whole lines, which all begin in one row; with `two` of those in the other place,
    too, in turn. What is so many values `ahead` is asked for; 0: as many as is best in a long run.
    """
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef stored other_line[LANES]
    cdef stored other_g[LANES]
    cdef Py_ssize_t k = 0, i, turned = lines_to_turn(length) if turns and not two else 0
    if ahead == 0 and stream:
        ahead = RESULTS_AHEAD//2 if reads_x(what) and reads_dy(what) else RESULTS_AHEAD
    elif ahead == 0:
        ahead = CACHED_RESULTS_AHEAD
    while k < length:
        ask_for_values(at, k + ahead, stream, typed, what)
        if two:
            ask_for_values(other, k + ahead, stream, typed, what)
        if holds:
            hold_back(not is_forward(what))
        i = line_in_turn(k, turned)
        compute_line(at, i, <stored *>line, <stored *>g, f, column + i, LANES, what)
        if two:                 # before anything is written: coefficients are loaded once
            compute_line(other, i, <stored *>other_line, <stored *>other_g, f, column + i, LANES, what)
        put_results(at, i, <const stored *>line, <const stored *>g, stream, what)
        if two:
            put_results(other, i, <const stored *>other_line, <const stored *>other_g, stream, what)
        k += LANES


cdef inline void results_of_run(Place at, Place other, bint two, Py_ssize_t length, const Columns *columns, Columns f,
                                Py_ssize_t column, Py_ssize_t ahead, bint stream, const stored *typed,
                                const formula *what) noexcept nogil:
    """The results of a run of values, the first of which stands in `column`; with `two` those in the other place, too,
    where lines begin as here. (Columns come twice: once by address, for what is no loop.)
    """
    cdef Place here
    cdef Py_ssize_t i = 0, some, first = 0, width = f.width
    cdef bint turns = stream and turns_lines(&at, what), wide = stored is not double and f.wide
    if stream and not wide:
        first = before_a_line(<const stored *>at.out, length)
    while i < length:
        some = min((width - column + LANES - 1)//LANES, (length - i)//LANES)*LANES
        if i < first or some == 0 or wide:
            some = min(LANES, (first if i < first else length) - i)     # before the first line of half types: twice
            here = at
            some_results(&here, some, columns, column, typed, what)
            if two:
                here = other
                some_results(&here, some, columns, column, typed, what)
        elif stream and (two or columns.holds) and is_light(typed, what):
            lines_of_results(&at, &other, two, some, &f, column, ahead, True, True, turns, typed, what)
        elif stream:
            lines_of_results(&at, &other, two, some, &f, column, ahead, True, False, turns, typed, what)
        else:
            lines_of_results(&at, &other, False, some, &f, column, ahead, False, False, False, typed, what)
        at, other = shifted(&at, some*<Py_ssize_t>sizeof(stored)), shifted(&other, some*<Py_ssize_t>sizeof(stored))
        i += some
        column += some
        while column >= width:
            column -= width


cdef void results_of_rows(const Place *first, Py_ssize_t places, const Steps *step, Py_ssize_t count,
                          Py_ssize_t length, const Columns *columns, Py_ssize_t column, Py_ssize_t ahead, bint stream,
                          const stored *typed, const formula *what) noexcept nogil:
    """The results of `count` runs of values, the first of each in `column`; with two places (float32 and forwards of
    float64, past the cache) of as many from each on. With `stream` whole lines of them go past the cache.
    """
    cdef Columns f = columns[0]     # nothing that is written changes it
    cdef Place at = needed(&first[0], what), other = needed(&first[places - 1], what)
    while count > 0:
        if places == 2 and (stored is float or (stored is double and is_forward(what))):
            results_of_run(at, other, True, length, columns, f, column, ahead, True, typed, what)
        else:
            results_of_run(at, at, False, length, columns, f, column, ahead, stream, typed, what)
        at, other = moved(&at, step), moved(&other, step)
        count -= 1
