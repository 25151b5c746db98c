# Sums over spans: which two, about what, is one of four types, so that the loop stands once.


cdef struct Lanes:
    double s[LANES]
    double t[LANES]


cdef struct Steps:
    # Bytes from one row to the next.
    Py_ssize_t x, dy, out


cdef struct Center:             # what sums are taken about, and for gated ones the z of the channel
    double center
    Coefficients f


cdef struct Deviations:         # s += x - center, t += (x - center)**2: the first attempt (float32 about 0)
    Center about


cdef struct FarDeviations:      # the same about any centre
    Center about


cdef struct Products:           # s += dy, t += dy*(x - center): the first attempt
    Center about


cdef struct FarProducts:
    Center about


cdef struct GatedProducts:      # the same with dy*act'(z)
    Center about


cdef struct FarGatedProducts:   # z may have been computed in float64
    Center about


ctypedef fused summed:
    Deviations
    FarDeviations
    Products
    FarProducts
    GatedProducts
    FarGatedProducts


cdef inline void clear_lanes(Lanes *lanes) noexcept nogil:
    """(Not by memset: what compilers make of it takes longer than the sums of a short row.)"""
    lanes_store(lanes.s, lanes_all(0))
    lanes_store(lanes.t, lanes_all(0))


cdef inline lanes_t deviations(const stored *x, lanes_t center, const summed *of) noexcept nogil:
    if stored is double:
        return lanes_sub(read_lanes(x), center)
    elif summed is Deviations or summed is Products or summed is GatedProducts:
        return read_lanes(x)
    else:
        return lanes_sub(read_lanes(x), center)


cdef inline lanes_t add_products(lanes_t total, lanes_t a, lanes_t b, const stored *typed,
                                 const summed *of) noexcept nogil:
    """total + a*b; products of two float32 are exact."""
    if stored is double:
        return lanes_add(total, lanes_mul(a, b))
    elif summed is Deviations or summed is Products or summed is GatedProducts:
        return lanes_add_exact(a, b, total)
    else:
        return lanes_add(total, lanes_mul(a, b))


cdef inline lanes_t gradients(const stored *dy, const stored *x, const summed *of) noexcept nogil:
    if summed is GatedProducts:
        return gated_lanes(dy, x, &of.about.f)
    elif summed is FarGatedProducts:
        return gated_lanes_each(dy, x, &of.about.f) if of.about.f.z_wide else gated_lanes(dy, x, &of.about.f)
    else:
        return read_lanes(dy)


cdef inline void add_line(const stored *dy, const stored *x, lanes_t center, const summed *of, lanes_t *s,
                          lanes_t *t) noexcept nogil:
    """The sums of LANES values."""
    cdef lanes_t d = deviations(x, center, of), g = d
    if summed is not Deviations and summed is not FarDeviations:
        g = gradients(dy, x, of)
    s[0] = lanes_add(s[0], g)
    t[0] = add_products(t[0], g, d, x, of)


cdef inline void add_last(const stored *dy, const stored *x, Py_ssize_t length, Py_ssize_t some, lanes_t center,
                          const summed *of, lanes_t *s, lanes_t *t) noexcept nogil:
    """The sums of the last `some` of `length` values, fewer than LANES. Lanes before them stay as they are."""
    cdef stored x_line[LANES]
    cdef stored dy_line[LANES]
    cdef lanes_t d, g
    x = last_line(x, length, x_line)
    d = g = lanes_last(deviations(x, center, of), some)
    if summed is not Deviations and summed is not FarDeviations:
        g = lanes_last(gradients(last_line(dy, length, dy_line), x, of), some)
    if some > FEW:
        s[0] = lanes_add(s[0], g)
        t[0] = add_products(t[0], g, d, x, of)
        return
    s[0] = lanes_add_few(g, s[0])       # rows of 7x7 and 14x14 end so
    if stored is not double and (summed is Deviations or summed is Products or summed is GatedProducts):
        t[0] = lanes_add_exact_few(g, d, t[0])
    else:
        t[0] = lanes_add_few(lanes_mul(g, d), t[0])


cdef inline void ask_for_line(const stored *dy, const stored *x, const summed *of) noexcept nogil:
    """Values that come next, on their way. (A second attempt is rare.)"""
    if summed is Deviations or summed is Products or summed is GatedProducts:
        prefetch_lanes(x)
    if summed is Products or summed is GatedProducts:
        prefetch_lanes(dy)


cdef inline const stored *next_row(const stored *row, Py_ssize_t step) noexcept nogil:
    return <const stored *>(<const char *>row + step)


cdef void sums_of_spans(const stored *dy, const stored *x, const stored *dy_ahead, const stored *x_ahead,
                        const Steps *step, Py_ssize_t count, Py_ssize_t length, const summed *of,
                        Lanes *lanes) noexcept nogil:
    """The sums of `count` rows of one channel. What stands `ahead` of them is asked for."""
    cdef lanes_t s = lanes_load(lanes.s), t = lanes_load(lanes.t), center = lanes_all(of.about.center)
    cdef Py_ssize_t i, row
    cdef summed own = of[0]
    for row in range(count):
        i = 0
        while i + LANES <= length:
            ask_for_line(dy_ahead + i, x_ahead + i, of)
            add_line(dy + i, x + i, center, &own, &s, &t)
            i += LANES
        if i < length:
            ask_for_line(dy_ahead + i, x_ahead + i, of)
            add_last(dy, x, length, length - i, center, of, &s, &t)
        x = next_row(x, step.x)
        dy = next_row(dy, step.dy)
        x_ahead = next_row(x_ahead, step.x)
        dy_ahead = next_row(dy_ahead, step.dy)
    lanes_store(lanes.s, s)
    lanes_store(lanes.t, t)
