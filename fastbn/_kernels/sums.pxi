# Sums of sums, and what follows from them: statistics of channels, or the sums of their gradients.
#
# Up to TOGETHER channels at once, each step for all of them before the next, in loops without a branch: compilers make
# vectors of those, and a square root or a division of four numbers takes as long as that of one. What a channel gets
# does not depend on those beside it.

cdef enum:
    PIVOT = 16              # values whose mean is the pivot of float64: near enough nearly always, and checked
    NEAR = 4                # standard deviations, from which on a mean is far from zero


cdef struct SumsTogether:
    # Sums of some channels, side by side.
    double a[TOGETHER]
    double b[TOGETHER]
    double a_low[TOGETHER]
    double b_low[TOGETHER]


cdef inline void put_sums(SumsTogether *to, Py_ssize_t k, const Sums *sums) noexcept nogil:
    to.a[k], to.b[k], to.a_low[k], to.b_low[k] = sums.a, sums.b, sums.a_low, sums.b_low


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
    """The sum of a pair. An infinite sum has NaN in its low part (inf - inf): the high part is the answer then.

    (What is added is chosen, not what is returned: compilers would add on one branch only, and make no vectors.)
    """
    cdef double added = low if low == low else 0.0
    return high + added


cdef double first_pivot(const Call *call, Py_ssize_t c) noexcept nogil:
    """About what float64 is summed at first: the mean of a few values, as x0 + mean(x - x0), which is exact where they
    are all equal.
    """
    cdef double tile[PIVOT]
    cdef Py_ssize_t length = min(PIVOT, call.values), i
    cdef const double *x = <const double *>read_tiles(call.x, c, 1, 0, length, sizeof(double), tile)
    cdef double pivot = 0
    for i in range(length):
        pivot += x[i] - x[0]
    pivot = x[0] + pivot/length
    return pivot if isfinite(pivot) else 0.0


cdef inline double tolerated_share(bint float64) noexcept nogil:
    """See statistics(). float32 values are summed with 29 bits to spare: 16 of them may be lost before it shows."""
    return 0.5 if float64 else 1 - 2.0**-16


cdef inline bint statistics(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums,
                            const double *centers, double *again) noexcept nogil:
    """Mean and biased variance from sums of d = x - center; whether and where they must be taken again with this mean
    as centre.

    var = E[d**2] - E[d]**2 loses the digits that the two have in common: none to speak of while E[d]**2 stays under
    `tolerated` times E[d**2].
    """
    cdef double tolerated = tolerated_share(call.dtype == FLOAT64), values = call.values, first, second
    cdef double mean[TOGETHER]      # stores to these change nothing that is read, compilers see
    cdef double var[TOGETHER]
    cdef Py_ssize_t k, kept = 0
    for k in range(count):
        first = whole(sums.a[k], sums.a_low[k])/values
        second = whole(sums.b[k], sums.b_low[k])/values
        mean[k] = centers[k] + first
        var[k] = second - first*first
        again[k] = 1.0 if first*first > tolerated*second else 0.0
        kept += not first*first > tolerated*second
    memcpy(call.mean + c, mean, count*sizeof(double))
    memcpy(call.var + c, var, count*sizeof(double))
    return kept < count


cdef inline bint gradient_sums(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums,
                               const double *centers, double *again) noexcept nogil:
    """sum(dy) and sum(dy*(x - origin)) from sums about a centre; whether and where they must be taken again."""
    cdef const double *origin = call.origin + c
    cdef double sum_dy[TOGETHER]    # stores to these change nothing that is read, compilers see
    cdef double sum_dy_xmu[TOGETHER]
    cdef double moved[TOGETHER]
    cdef double v
    cdef Py_ssize_t k, lost = 0
    for k in range(count):
        sum_dy[k] = whole(sums.a[k], sums.a_low[k])
        sum_dy_xmu[k] = whole(sums.b[k], sums.b_low[k])
        moved[k] = sum_dy_xmu[k] - (origin[k] - centers[k])*sum_dy[k]
    for k in range(count):
        v = moved[k]
        sum_dy_xmu[k] = v if centers[k] != origin[k] else sum_dy_xmu[k]
    for k in range(count):      # Infinite gradients: not inf - inf, but what the formula gives.
        lost += (moved[k] - moved[k] != 0) & (centers[k] != origin[k])
    for k in range(count if lost > 0 else 0):
        again[k] = moved[k] - moved[k] if centers[k] != origin[k] else 0.0
    if call.from_y:
        for k in range(count):
            if lost == 0 or again[k] == 0:
                v = sum_dy_xmu[k]/number_of(&call.gamma, c + k, 1.0)    # first: the sum has that factor
                sum_dy_xmu[k] = v*sqrt(call.var[c + k] + call.eps)
    memcpy(call.sum_dy + c, sum_dy, count*sizeof(double))
    memcpy(call.sum_dy_xmu + c, sum_dy_xmu, count*sizeof(double))
    return lost > 0


cdef bint settle(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums, const double *centers,
                 double *again) noexcept nogil:
    """Turn sums of `count` channels from c on, each about its centre, into what the call asked for; whether and where
    (not 0) they must be taken again, about the origin.
    """
    if call.backward:
        return gradient_sums(call, c, count, sums, centers, again)
    return statistics(call, c, count, sums, centers, again)


cdef inline double spread(const Call *call, Py_ssize_t c) noexcept nogil:
    """The variance of what stands where x is read: from_y that is y, before a slope."""
    cdef double mul
    if not call.from_y:
        return call.var[c]
    mul = inverse_std(call.var[c], call.eps)*number_of(&call.gamma, c, 1.0)
    return mul*mul*call.var[c]


cdef inline bint is_near(double mean, double var) noexcept nogil:
    return mean*mean <= NEAR*NEAR*var


cdef inline bint far_from_zero(const Call *call, Py_ssize_t c) noexcept nogil:
    """Whether sums of dy*x, without the mean, would lose bits that dx needs: sum_dy_xmu is what is left of them, and
    itself may have cancelled (as it has where dy comes from another normalization).

    Given statistics say nothing about where x is.
    """
    return call.constant or not is_near(call.origin[c], spread(call, c))


cdef inline bint any_far_from_zero(const Call *call, Py_ssize_t c, Py_ssize_t count) noexcept nogil:
    """Whether one of `count` channels from c on is."""
    cdef const double *origin = call.origin + c
    cdef const double *var = call.var + c
    cdef Py_ssize_t k, near = 0
    if call.constant:
        return True
    if call.from_y:
        for k in range(count):
            near += is_near(origin[k], spread(call, c + k))
    else:
        for k in range(count):
            near += is_near(origin[k], var[k])
    return near < count


# ---- about what sums are taken at first: float32 about 0 where that is good enough

cdef inline bint all_about_0(const Call *call, Py_ssize_t c, Py_ssize_t count) noexcept nogil:
    """Whether those of `count` channels from c on are."""
    return call.dtype != FLOAT64 and not (call.backward and any_far_from_zero(call, c, count))


cdef inline double first_center(const Call *call, Py_ssize_t c, bint *far) noexcept nogil:
    """About what; `far`, where that is not 0 and float32 is summed."""
    far[0] = False
    if call.backward:
        far[0] = call.dtype != FLOAT64 and far_from_zero(call, c)
        return call.origin[c] if call.dtype == FLOAT64 or far[0] else 0.0
    return first_pivot(call, c) if call.dtype == FLOAT64 else 0.0
