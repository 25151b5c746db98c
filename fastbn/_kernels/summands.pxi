# What is summed, and about what: one of these types, so that it is chosen when this is compiled; they hold nothing.
# Which of them goes with which formula use_formula() says for whole calls, add_beside() for sums beside results: types
# cannot be handed on.


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


cdef struct ClippedJoinProducts:    # y tells of act'(z)
    char nothing


cdef struct LeakyJoinProducts:
    char nothing


cdef struct UndoneProducts:     # so does x, which is y itself, with a slope: dy*x is g*z then
    char nothing


cdef struct FarClippedProducts:
    char nothing


cdef struct FarLeakyProducts:
    char nothing


cdef struct FarClippedJoinProducts:
    char nothing


cdef struct FarLeakyJoinProducts:
    char nothing


cdef struct FarUndoneProducts:
    char nothing


ctypedef fused summed:
    Deviations
    FarDeviations
    Products
    FarProducts
    ClippedProducts
    LeakyProducts
    ClippedJoinProducts
    LeakyJoinProducts
    UndoneProducts
    FarClippedProducts
    FarLeakyProducts
    FarClippedJoinProducts
    FarLeakyJoinProducts
    FarUndoneProducts


ctypedef fused summed_first:
    Deviations
    Products
    ClippedProducts
    LeakyProducts
    ClippedJoinProducts
    LeakyJoinProducts
    UndoneProducts


ctypedef fused summed_again:
    FarDeviations
    FarProducts
    FarClippedProducts
    FarLeakyProducts
    FarClippedJoinProducts
    FarLeakyJoinProducts
    FarUndoneProducts


cdef inline bint is_first_attempt(const summed *of) noexcept nogil:
    return summed in summed_first


cdef inline bint sums_dy(const summed *of) noexcept nogil:
    return summed is not Deviations and summed is not FarDeviations


cdef inline bint sums_by_y(const summed *of) noexcept nogil:
    return (summed is ClippedJoinProducts or summed is LeakyJoinProducts or summed is FarClippedJoinProducts
            or summed is FarLeakyJoinProducts)


cdef inline bint is_about_0(const stored *typed, const summed *of) noexcept nogil:
    return stored is not double and is_first_attempt(of)


cdef inline lanes_t deviations(lanes_t x, lanes_t center, const stored *typed, const summed *of) noexcept nogil:
    return x if is_about_0(typed, of) else lanes_sub(x, center)


cdef inline bint are_exact(const stored *typed, const summed *of) noexcept nogil:
    """Products in float64, of two numbers that are float32 still."""
    return is_about_0(typed, of) and summed is not LeakyProducts and summed is not LeakyJoinProducts


cdef inline lanes_t add_products(lanes_t total, lanes_t a, lanes_t b, const stored *typed,
                                 const summed *of) noexcept nogil:
    """total + a*b."""
    if are_exact(typed, of):
        return lanes_add_exact(a, b, total)
    return lanes_add(total, lanes_mul(a, b))


cdef inline void summands(const stored *dy, const stored *x, const stored *y, lanes_t center, const numbers *f,
                          Py_ssize_t column, const summed *of, lanes_t *g, lanes_t *by, lanes_t *d) noexcept nogil:
    """What goes into the first sum, and the two whose product goes into the second: LANES values of each.

    (What needs x twice reads it once. The others read it late: registers are few.)
    """
    cdef lanes_t values
    if not sums_dy(of):
        d[0] = by[0] = g[0] = deviations(read_lanes(x), center, x, of)
    elif summed is LeakyProducts or summed is FarLeakyProducts:
        values = read_lanes(x)
        by[0] = g[0] = leaky_lanes(dy, values, f, column)
        d[0] = deviations(values, center, x, of)
    elif summed is UndoneProducts or summed is FarUndoneProducts:
        values, by[0] = read_lanes(x), read_lanes(dy)
        g[0] = lanes_leak_above_0(by[0], values, f.act.slope)
        d[0] = values if is_about_0(x, of) else lanes_sub(values, lanes_leak_above_0(center, values, f.act.slope))
    else:
        if summed is ClippedProducts or summed is FarClippedProducts:
            g[0] = clipped_lanes(dy, x, f.gate.low, f.gate.high, column)
        elif summed is ClippedJoinProducts or summed is FarClippedJoinProducts:
            g[0] = clipped_lanes(dy, y, f.act.lower, f.act.upper, column)
        elif summed is LeakyJoinProducts or summed is FarLeakyJoinProducts:
            g[0] = lanes_leak_above_0(read_lanes(dy), read_lanes(y), f.act.slope)
        else:
            g[0] = read_lanes(dy)
        by[0] = g[0]
        d[0] = deviations(read_lanes(x), center, x, of)


cdef inline void add_line(const stored *dy, const stored *x, const stored *y, lanes_t center, const numbers *f,
                          Py_ssize_t column, const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of LANES values, the first of which stands in `column`."""
    cdef lanes_t g, by, d
    if stored is float and summed is Deviations:
        lanes_add_both(x, x, s, t)
    elif stored is float and summed is Products:
        lanes_add_both(dy, x, s, t)
    else:
        summands(dy, x, y, center, f, column, of, &g, &by, &d)
        s[0] = lanes_add(s[0], g)
        if stored is float and are_exact(x, of):
            t[0] = lanes_add_widened(by, x, t[0])       # d is x, and is not computed then
        else:
            t[0] = add_products(t[0], by, d, x, of)


cdef inline void add_last(const stored *dy, const stored *x, const stored *y, Py_ssize_t length, Py_ssize_t some,
                          lanes_t center, const numbers *f, Py_ssize_t column, const summed *of, lanes_t *s,
                          lanes_t *t) noexcept nogil:
    """The sums of the last `some` of `length` values, fewer than LANES. Lanes before them stay as they are."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef stored y_line[LANES]
    cdef lanes_t g, by, d
    x = last_line(x, length, x_line)
    if sums_dy(of):
        dy = last_line(dy, length, dy_line)
    if sums_by_y(of):
        y = last_line(y, length, y_line)
    if some > FEW:
        summands(dy, x, y, center, f, column, of, &g, &by, &d)
        g, by, d = lanes_last(g, some), lanes_last(by, some), lanes_last(d, some)
        s[0] = lanes_add(s[0], g)
        t[0] = add_products(t[0], by, d, x, of)
        return
    summands(dy, x, y, center, f, column, of, &g, &by, &d)      # once more: compilers leave out what is not added
    g, by, d = lanes_last(g, some), lanes_last(by, some), lanes_last(d, some)
    s[0] = lanes_add_few(g, s[0])       # rows of 7x7 and 14x14 end so
    if are_exact(x, of):
        t[0] = lanes_add_exact_few(by, d, t[0])
    else:
        t[0] = lanes_add_few(lanes_mul(by, d), t[0])


cdef inline void ask_for_line(const stored *dy, const stored *x, const stored *y, bint later,
                              const summed *of) noexcept nogil:
    """Values that come soon, or `later`, on their way."""
    prefetch_lanes(x, later)
    if sums_dy(of):
        prefetch_lanes(dy, later)
    if sums_by_y(of):
        prefetch_lanes(y, later)
