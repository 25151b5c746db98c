# Loops over contiguous values. Nothing here knows of strides or threads, and nothing branches inside a loop.
#
# Sums run in LANES partial sums of float64, whatever the type of the values: nothing overflows below 1e38 or vanishes
# above 1e-38, and widening costs less than the memory. Products of two float32 are exact there, so float32 is summed
# about 0, in three operations a value; what cancels when the mean is far from 0 is made good by a second sum about the
# mean, for the few channels that need it (statistics() and far_from_zero() tell). float64 is summed about a pivot.
# The order of the additions is the one written here; compilers may not change it: every build gives the same bits.
#
# Runs of values of one channel each have their loops in sum_spans.pxi and result_spans.pxi, rows of channels in
# sum_rows.pxi and result_rows.pxi.


ctypedef fused real:
    float
    double


cdef inline lanes_t read_lanes(const real *x) noexcept nogil:
    if real is double:
        return lanes_load(x)
    else:
        return lanes_widen(x)


cdef inline const real *last_line(const real *x, Py_ssize_t length, real *line) noexcept nogil:
    """The last LANES of `length` values; of fewer, in `line`, with something before them."""
    cdef Py_ssize_t k
    if length >= LANES:
        return x + length - LANES
    for k in range(LANES):
        line[k] = 0
    for k in range(length):
        line[LANES - length + k] = x[k]
    return line


cdef inline void prefetch_lanes(const real *ahead) noexcept nogil:
    """Ask for the LANES values that will be read soon."""
    prefetch_line(ahead)
    if real is double:
        prefetch_line(ahead + LANES//2)


cdef inline void stream_lanes(real *to, const real *line) noexcept nogil:
    """LANES values past the cache; `to` is aligned to 64 bytes."""
    stream_line(to, line)
    if real is double:
        stream_line(to + LANES//2, line + LANES//2)
