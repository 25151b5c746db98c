# Lanes, and lines of values of any type: what loops over contiguous values are made of. Nothing in those knows of
# strides or threads, and nothing branches inside a loop.
#
# Sums run in LANES partial sums of float64, whatever the type of the values: nothing overflows below 1e38 or vanishes
# above 1e-38, and widening costs less than the memory. Products of two float32 are exact there, so float32 is summed
# about 0, in three operations a value; what cancels when the mean is far from 0 is made good by a second sum about the
# mean, for the few channels that need it (statistics() and far_from_zero() tell). float64 is summed about a pivot.
# The order of the additions is the one written here; compilers may not change it: every build gives the same bits.
#
# Runs of values of one channel each have their loops in *_spans.pxi, rows of channels in sum_rows.pxi and
# result_rows.pxi.

cdef enum:
    PLACES_AHEAD = 128          # values from what is written to what is asked for


ctypedef fused real:
    float
    double


ctypedef fused stored:      # half types are computed as float32
    float
    double
    float16_t
    bfloat16_t


cdef inline bint is_half(const stored *typed) noexcept nogil:
    return stored is float16_t or stored is bfloat16_t


cdef inline lanes_t read_lanes(const stored *x) noexcept nogil:
    if stored is double:
        return lanes_load(x)
    elif stored is float:
        return lanes_widen(x)
    elif stored is float16_t:
        return lanes_widen_float16(x)
    else:
        return lanes_widen_bfloat16(x)


cdef inline void widen(const stored *x, float *to, Py_ssize_t n) noexcept nogil:
    """Half types only."""
    if stored is float16_t:
        widen_float16s(x, to, n)
    elif stored is bfloat16_t:
        widen_bfloat16s(x, to, n)


cdef inline void narrow(const float *values, stored *to, Py_ssize_t n) noexcept nogil:
    """Half types only."""
    if stored is float16_t:
        narrow_float16s(values, to, n)
    elif stored is bfloat16_t:
        narrow_bfloat16s(values, to, n)


cdef inline void widen_line(const stored *x, float *to) noexcept nogil:
    """LANES values of a half type in some order, for what treats all alike; narrow_line() puts them back in theirs."""
    if stored is bfloat16_t:
        widen_line_bfloat16(x, to)
    else:
        widen(x, to, LANES)


cdef inline void narrow_line(const float *values, stored *to) noexcept nogil:
    if stored is bfloat16_t:
        narrow_line_bfloat16(values, to)
    else:
        narrow(values, to, LANES)


cdef inline const stored *last_line(const stored *x, Py_ssize_t length, stored *line) noexcept nogil:
    """The last LANES of `length` values; of fewer, in `line`, with something before them."""
    if length >= LANES:
        return x + length - LANES
    memset(line, 0, LANES*sizeof(stored))
    memcpy(line + LANES - length, x, length*sizeof(stored))
    return line


cdef inline void prefetch_lanes(const stored *ahead, bint later) noexcept nogil:
    """Ask for the LANES values that will be read soon, or `later`."""
    cdef Py_ssize_t k = 0
    while k < LANES*<Py_ssize_t>sizeof(stored):
        if later:
            prefetch_later(<const char *>ahead + k)
        else:
            prefetch_line(<const char *>ahead + k)
        k += 64


cdef inline void ask_for_place(stored *to) noexcept nogil:
    """Ask for the lines that will be written soon after `to`: stores that cross lines wait for one after the other, and
    few are asked for by themselves while much else is computed."""
    prefetch_lanes(<const stored *>to + PLACES_AHEAD, False)


cdef inline void stream_lanes(stored *to, const stored *line) noexcept nogil:
    """LANES values past the cache; `to` is where a cache line begins, or half a line for half types."""
    if stored is double:
        stream_line(to, line)
        stream_line(to + LANES//2, line + LANES//2)
    elif stored is float:
        stream_line(to, line)
    else:
        stream_half_line(to, line)


cdef inline void store_lanes(stored *to, const stored *line) noexcept nogil:
    """The same by way of the cache. (put_line() keeps to an order that only lines across two cache lines need.)"""
    cdef Py_ssize_t k = 0
    while k < LANES*<Py_ssize_t>sizeof(stored):
        store_half_line(<char *>to + k, <const char *>line + k)
        k += 32


cdef inline double value_of(const stored *x) noexcept nogil:
    cdef float wide
    if stored is float or stored is double:
        return x[0]
    else:
        widen(x, &wide, 1)
        return wide


cdef inline void put_value(stored *out, double value) noexcept nogil:
    cdef float wide = <float>value
    if stored is float or stored is double:
        out[0] = <stored>value
    else:
        narrow(&wide, out, 1)


cdef inline void put_line(stored *out, const stored *line, Py_ssize_t count) noexcept nogil:
    """`count` values, some times 32 bytes, by way of the cache."""
    cdef Py_ssize_t k = 0, bytes = count*<Py_ssize_t>sizeof(stored)
    while k + 64 <= bytes:
        store_line(<char *>out + k, <const char *>line + k)
        k += 64
    if k < bytes:
        store_half_line(<char *>out + k, <const char *>line + k)
