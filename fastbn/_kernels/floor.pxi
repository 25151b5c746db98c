# The floor that benchmarks race against: a copy y = x or a triad y = x + w, with ordinary or with streaming stores,
# built with the same flags as the kernels.

cdef enum:
    FLOOR_AHEAD = 512           # values from what is read to what is asked for


cdef struct Floor:
    const char *x
    const char *w               # NULL: a copy
    char *y
    Dtype dtype
    bint stream


cdef inline void floor_line(const real *x, const real *w, real *y, bint stream) noexcept nogil:
    cdef real line[LANES]
    cdef Py_ssize_t k
    for k in range(LANES):
        line[k] = x[k] + w[k] if w != NULL else x[k]
    if stream:
        stream_lanes(y, line)
    else:
        ask_for_place(y)
        for k in range(LANES):
            y[k] = line[k]


cdef inline void floor_span(const real *x, const real *w, real *y, Py_ssize_t length, bint stream) noexcept nogil:
    cdef Py_ssize_t i = 0
    if w == NULL:
        while i < length:
            prefetch_lanes(x + i + FLOOR_AHEAD, False)
            floor_line(x + i, <const real *>NULL, y + i, stream)
            i += LANES
    else:
        while i < length:
            prefetch_lanes(x + i + FLOOR_AHEAD, False)
            prefetch_lanes(w + i + FLOOR_AHEAD, False)
            floor_line(x + i, w + i, y + i, stream)
            i += LANES


cdef inline void floor_part(const Floor *f, Py_ssize_t first, Py_ssize_t length, real typed) noexcept nogil:
    """Values from `first` on, of the type of `typed`."""
    cdef const real *x = <const real *>f.x + first
    cdef const real *w = NULL
    cdef real *y = <real *>f.y + first
    if f.w != NULL:
        w = <const real *>f.w + first
    if f.stream:
        floor_span(x, w, y, length, True)
    else:
        floor_span(x, w, y, length, False)


cdef void floor_lines(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Lines begin..end, of LANES values each."""
    cdef const Floor *f = <const Floor *>task
    if f.dtype == FLOAT64:
        floor_part(f, begin*LANES, (end - begin)*LANES, <double>0)
    else:
        floor_part(f, begin*LANES, (end - begin)*LANES, <float>0)


cdef void run_floor(const char *x, const char *w, char *y, Py_ssize_t lines, Dtype dtype, bint stream,
                    int threads) noexcept nogil:
    cdef Floor f
    f.x, f.w, f.y, f.dtype, f.stream = x, w, y, dtype, stream
    share(floor_lines, &f, lines, threads)
