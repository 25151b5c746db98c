# y or dx of spans by ordinary stores.
#
# Results may take the place of x or dy, so a line is computed as a whole before it is written, and of two lines that
# overlap both are.


cdef inline Place last_values(const Place *at, Py_ssize_t length, stored *x_line, stored *dy_line, stored *y_line,
                              const formula *what) noexcept nogil:
    """The last LANES of `length` values that are read; of fewer, in lines, with something before them."""
    cdef Place last = at[0]
    if reads_x(what):
        last.x = <const char *>last_line(<const stored *>at.x, length, x_line)
    if reads_dy(what):
        last.dy = <const char *>last_line(<const stored *>at.dy, length, dy_line)
    if reads_y(what):
        last.y = <const char *>last_line(<const stored *>at.y, length, y_line)
    return last


cdef void store_few(const Place *at, Py_ssize_t length, const Coefficients *f, const stored *typed,
                    const formula *what) noexcept nogil:
    """At most LANES results, by ordinary stores."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored y_line[LANES]
    cdef stored line[LANES]
    cdef stored g[LANES]
    cdef Place last = last_values(at, length, <stored *>x_line, <stored *>dy_line, <stored *>y_line, what)
    compute_line(&last, 0, <stored *>line, <stored *>g, f, 0, LANES, what)
    memcpy(at.out, line + LANES - length, length*sizeof(stored))
    if reads_y(what):
        memcpy(at.dresidual, g + LANES - length, length*sizeof(stored))


cdef inline void put_some(stored *out, const stored *line, Py_ssize_t count) noexcept nogil:
    """`count` values, a number that is known when this is compiled."""
    cdef Py_ssize_t k
    if count*sizeof(stored) >= 32:
        put_line(out, line, count)
    else:
        for k in range(count):
            out[k] = line[k]


cdef inline void store_some(const Place *at, Py_ssize_t i, const Coefficients *f, Py_ssize_t count,
                            const stored *typed, const formula *what) noexcept nogil:
    """`count` results."""
    cdef stored line[LANES]
    cdef stored g[LANES]
    compute_line(at, i, <stored *>line, <stored *>g, f, 0, count, what)
    put_some(<stored *>at.out + i, <const stored *>line, count)
    if reads_y(what):
        put_some(<stored *>at.dresidual + i, <const stored *>g, count)


cdef inline void put_last(stored *end, const stored *line, Py_ssize_t count) noexcept nogil:
    """The last `count` of 8 values, fewer than all, up to `end`."""
    cdef Py_ssize_t last = count & 3
    if count & 4:
        memcpy(end - count, line + 8 - count, 4*sizeof(stored))
    if count & 2:
        memcpy(end - last, line + 8 - last, 2*sizeof(stored))
    if count & 1:
        (end - 1)[0] = line[7]


cdef inline void store_last(const Place *at, Py_ssize_t length, const Coefficients *f, Py_ssize_t count,
                            const stored *typed, const formula *what) noexcept nogil:
    """The last `count` results of a row, fewer than 8, of 8 that are computed: of fewer compilers make no vectors, and
    where an activation chooses, branches, which processors guess wrong half of the time.
    """
    cdef stored line[8]
    cdef stored g[8]
    compute_line(at, length - 8, <stored *>line, <stored *>g, f, 0, 8, what)
    put_last(<stored *>at.out + length, <const stored *>line, count)
    if reads_y(what):
        put_last(<stored *>at.dresidual + length, <const stored *>g, count)


cdef inline void store_rest(const Place *at, Py_ssize_t i, Py_ssize_t length, const Coefficients *f,
                            const stored *typed, const formula *what) noexcept nogil:
    """The results from value i of a row on, where less than a line is left."""
    if length & 8:
        store_some(at, i, f, 8, typed, what)
    if length & 7:
        store_last(at, length, f, length & 7, typed, what)


cdef inline void store_span(const Place *at, Py_ssize_t length, const Numbers *f, Py_ssize_t k, const stored *typed,
                            const formula *what) noexcept nogil:
    """LANES or more by ordinary stores."""
    cdef stored last[LANES]
    cdef stored last_g[LANES]
    cdef Coefficients own = coefficients(f, k, typed, what)
    cdef Py_ssize_t i = 0, rest = length - LANES
    if is_half(typed):      # to round one value takes as long as to round LANES
        compute_line(at, rest, <stored *>last, <stored *>last_g, &own, 0, LANES, what)
    while True:                 # (there is one: compilers then convert coefficients once)
        ask_for_place(<stored *>at.out + i)
        if reads_y(what):
            ask_for_place(<stored *>at.dresidual + i)
        store_some(at, i, &own, LANES, typed, what)
        i += LANES
        if i > rest:
            break
    if is_half(typed):
        put_line(<stored *>at.out + rest, <const stored *>last, LANES)
        if reads_y(what):
            put_line(<stored *>at.dresidual + rest, <const stored *>last_g, LANES)
        return
    # No value twice: stores that cross cache lines take longer than anything else here.
    if length % LANES == 1 and not is_chosen(what):     # 7x7
        store_some(at, i, &own, 1, typed, what)
    elif length % LANES == 1:
        store_last(at, length, &own, 1, typed, what)
    elif length % LANES == 4:       # 14x14
        store_last(at, length, &own, 4, typed, what)
    elif length % LANES > 0:
        store_rest(at, i, length, &own, typed, what)


cdef void store_any(const Place *at, Py_ssize_t length, const Numbers *f, Py_ssize_t k, const stored *typed,
                    const formula *what) noexcept nogil:
    """Few of them, or any number in float64."""
    cdef Coefficients own
    if stored is not double and f.wide[k] != 0:
        own = coefficients_as_float64(f, k, typed, what)
        compute_each(at, length, &own, typed, what)
    else:
        own = coefficients(f, k, typed, what)
        store_few(at, length, &own, typed, what)
