# What is summed, and about what: one of these types, so that it is chosen when this is compiled; they hold nothing.


cdef struct Deviations:         # s += x - center, t += (x - center)**2: the first attempt (float32 about 0)
    char nothing


cdef struct FarDeviations:      # the same about any center
    char nothing


cdef struct Products:           # s += dy, t += dy*(x - center): the first attempt
    char nothing


cdef struct FarProducts:
    char nothing


cdef struct ClippedProducts:    # the first attempt with dy*act'(z), of an activation with bounds
    char nothing


cdef struct LeakyProducts:      # of one with a slope
    char nothing


cdef struct FarClippedProducts:
    char nothing


cdef struct FarLeakyProducts:
    char nothing


ctypedef fused summed:
    Deviations
    FarDeviations
    Products
    FarProducts
    ClippedProducts
    LeakyProducts
    FarClippedProducts
    FarLeakyProducts


ctypedef fused summed_first:
    Deviations
    Products
    ClippedProducts
    LeakyProducts


ctypedef fused summed_again:
    FarDeviations
    FarProducts
    FarClippedProducts
    FarLeakyProducts


cdef inline bint is_first_attempt(const summed *of) noexcept nogil:
    return summed is Deviations or summed is Products or summed is ClippedProducts or summed is LeakyProducts


cdef inline lanes_t deviations(lanes_t x, lanes_t center, const stored *typed, const summed *of) noexcept nogil:
    if stored is not double and is_first_attempt(of):
        return x
    return lanes_sub(x, center)


cdef inline bint are_exact(const stored *typed, const summed *of) noexcept nogil:
    """Products in float64, of two numbers that are float32 still."""
    return stored is not double and is_first_attempt(of) and summed is not LeakyProducts


cdef inline lanes_t add_products(lanes_t total, lanes_t a, lanes_t b, const stored *typed,
                                 const summed *of) noexcept nogil:
    """total + a*b."""
    if are_exact(typed, of):
        return lanes_add_exact(a, b, total)
    return lanes_add(total, lanes_mul(a, b))


cdef inline void summands(const stored *dy, const stored *x, lanes_t center, const numbers *f, Py_ssize_t column,
                          const summed *of, lanes_t *g, lanes_t *d) noexcept nogil:
    """What goes into the first sum, and what that is multiplied with for the second: LANES values of each.

    (What needs x twice reads it once. The others read it late: registers are few.)
    """
    cdef lanes_t values
    if summed is Deviations or summed is FarDeviations:
        d[0] = g[0] = deviations(read_lanes(x), center, x, of)
    elif summed is LeakyProducts or summed is FarLeakyProducts:
        values = read_lanes(x)
        g[0] = leaky_lanes(dy, values, f, column)
        d[0] = deviations(values, center, x, of)
    else:
        if summed is ClippedProducts or summed is FarClippedProducts:
            g[0] = clipped_lanes(dy, x, f, column)
        else:
            g[0] = read_lanes(dy)
        d[0] = deviations(read_lanes(x), center, x, of)


cdef inline void add_line(const stored *dy, const stored *x, lanes_t center, const numbers *f, Py_ssize_t column,
                          const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of LANES values, the first of which stands in `column`."""
    cdef lanes_t d, g
    summands(dy, x, center, f, column, of, &g, &d)
    s[0] = lanes_add(s[0], g)
    t[0] = add_products(t[0], g, d, x, of)


cdef inline void add_last(const stored *dy, const stored *x, Py_ssize_t length, Py_ssize_t some, lanes_t center,
                          const numbers *f, Py_ssize_t column, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of the last `some` of `length` values, fewer than LANES. Lanes before them stay as they are."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef lanes_t d, g
    x = last_line(x, length, x_line)
    if summed is not Deviations and summed is not FarDeviations:
        dy = last_line(dy, length, dy_line)
    if some > FEW:
        summands(dy, x, center, f, column, of, &g, &d)
        g, d = lanes_last(g, some), lanes_last(d, some)
        s[0] = lanes_add(s[0], g)
        t[0] = add_products(t[0], g, d, x, of)
        return
    summands(dy, x, center, f, column, of, &g, &d)      # once more: compilers leave out what is not added
    g, d = lanes_last(g, some), lanes_last(d, some)
    s[0] = lanes_add_few(g, s[0])       # rows of 7x7 and 14x14 end so
    if are_exact(x, of):
        t[0] = lanes_add_exact_few(g, d, t[0])
    else:
        t[0] = lanes_add_few(lanes_mul(g, d), t[0])


cdef inline void ask_for_line(const stored *dy, const stored *x, const summed *of) noexcept nogil:
    """Values that come next, on their way. (A second attempt is rare.)"""
    if is_first_attempt(of):
        prefetch_lanes(x)
    if is_first_attempt(of) and summed is not Deviations:
        prefetch_lanes(dy)
