# Sums of sums, and what follows from them: statistics of a channel, coefficients of the loops.


cdef inline void add_one(double *high, double *low, double value) noexcept nogil:
    """high + low += value, with what the addition rounds away kept in low (Knuth's two-sum)."""
    cdef double total = high[0] + value
    cdef double added = total - high[0]
    low[0] += (high[0] - (total - added)) + (value - added)
    high[0] = total


cdef inline void add_pair(Sums *total, double a, double b) noexcept nogil:
    add_one(&total.a, &total.a_low, a)
    add_one(&total.b, &total.b_low, b)


cdef inline void merge_sums(Sums *total, const Sums *part) noexcept nogil:
    add_pair(total, part.a, part.b)
    total.a_low += part.a_low
    total.b_low += part.b_low


cdef inline double whole(double high, double low) noexcept nogil:
    """The sum of a pair. An infinite sum has NaN in its low part (inf - inf): the high part is the answer then."""
    return high + low if low == low else high


cdef inline bint statistics(const Sums *sums, double count, double center, double tolerated,
                            double *mean, double *var) noexcept nogil:
    """Mean and biased variance from sums of d = x - center; whether they must be taken again with this mean as centre.

    var = E[d**2] - E[d]**2 loses the digits that the two have in common: none to speak of while E[d]**2 stays under
    `tolerated` times E[d**2].
    """
    cdef double first = whole(sums.a, sums.a_low)/count
    cdef double second = whole(sums.b, sums.b_low)/count
    mean[0] = center + first
    var[0] = second - first*first
    return first*first > tolerated*second


cdef inline double tolerated_share(bint float64) noexcept nogil:
    """See statistics(). float32 values are summed with 29 bits to spare: 16 of them may be lost before it shows."""
    return 0.5 if float64 else 1 - 2.0**-16


cdef inline bint far_from_zero(const Call *call, Py_ssize_t c) noexcept nogil:
    """Whether sums of dy*x, without the mean, would lose too many of those bits: sum_dy_xmu is what is left of them.

    Given statistics say nothing about where x is.
    """
    return call.constant or call.from_y or not call.mean[c]*call.mean[c] <= 2.0**32*call.var[c]


cdef inline bint fits(double v) noexcept nogil:
    """Whether a factor, and its products with ordinary values, stay in float32's range of full precision."""
    return v == 0 or (2.0**-100 <= fabs(v) <= 2.0**100) or v != v


cdef inline bint small(double v) noexcept nogil:
    """Whether adding v to any float32 stays in range: v is below half the spacing of the largest one (2**103)."""
    return not fabs(v) >= 2.0**102


cdef inline double at(const double *vector, Py_ssize_t c, double missing) noexcept nogil:
    return missing if vector == NULL else vector[c]


cdef inline double factor(const Call *call, Py_ssize_t c) noexcept nogil:
    return inverse_std(call.var[c], call.eps)*at(call.gamma, c, 1.0)


cdef inline void choose_numbers(const Call *call, Coefficients *f, double origin, double by_x) noexcept nogil:
    """Settle what x is taken about, and whether float32 will do; by_x is the factor of x.

    float32 takes the origin as two numbers, center + low: x - center is exact where it is small, and low goes into the
    constant. The folded form x*by_x + add would lose digits when abs(mean) >> std.
    """
    cdef double center = <float>origin, add = f.add - (origin - center)*by_x
    f.center = origin
    f.wide = False
    if call.dtype == FLOAT64:
        return
    f.wide = not (fits(f.mul) and fits(f.mul_below) and fits(f.by_x) and small(origin) and small(add)
                  and small(add*f.act.slope))
    if not f.wide:
        f.center = center
        f.add = add


cdef inline Coefficients forward_coefficients(const Call *call, Py_ssize_t c) noexcept nogil:
    """The numbers with which the loops compute z of a channel, and y (see Call and Coefficients for the formulas)."""
    cdef Coefficients f
    f.act = call.act
    f.mul = factor(call, c)
    f.mul_below = f.mul*f.act.slope
    f.add = at(call.beta, c, 0.0)
    f.by_x = 0
    choose_numbers(call, &f, call.mean[c], f.mul)
    f.z_add, f.z_wide = f.add, f.wide
    f.add_below = f.add*f.act.slope
    return f


cdef inline Coefficients backward_coefficients(const Call *call, Py_ssize_t c, const Coefficients *of_z) noexcept nogil:
    """The numbers with which the loops compute dx of a channel, from those of its z."""
    cdef Coefficients f = of_z[0]
    cdef double invstd = inverse_std(call.var[c], call.eps)
    f.add = f.by_x = 0
    if not call.constant:
        f.add = -f.mul*(call.sum_dy[c]/call.count)
        f.by_x = -invstd*(invstd*(call.sum_dy_xmu[c]/call.count))
        if not call.from_y:     # else (x - mean) has this factor already
            f.by_x *= f.mul
    choose_numbers(call, &f, call.origin[c], f.by_x)
    f.wide = f.wide or (call.gated and f.z_wide)
    return f


cdef inline Coefficients coefficients(const Call *call, Py_ssize_t c) noexcept nogil:
    cdef Coefficients f = forward_coefficients(call, c)
    return backward_coefficients(call, c, &f) if call.backward else f


cdef inline bint settle(const Call *call, Py_ssize_t c, const Sums *total, double center) noexcept nogil:
    """Turn sums about a centre into what the call asked for; whether they must be taken again, about the origin."""
    cdef bint again = False
    if not call.backward:
        return statistics(total, call.values, center, tolerated_share(call.dtype == FLOAT64),
                          &call.mean[c], &call.var[c])
    call.sum_dy[c] = whole(total.a, total.a_low)
    call.sum_dy_xmu[c] = whole(total.b, total.b_low)
    if center != call.origin[c]:
        call.sum_dy_xmu[c] -= (call.origin[c] - center)*call.sum_dy[c]
        again = not isfinite(call.sum_dy_xmu[c])    # infinite gradients: not inf - inf, but what the formula gives
    if call.from_y and not again:
        call.sum_dy_xmu[c] /= factor(call, c)
    return again
