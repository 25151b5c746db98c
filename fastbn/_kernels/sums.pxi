# Sums of sums, and what follows from them: statistics of channels, coefficients of the loops.
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


cdef inline double at(const double *vector, Py_ssize_t c, double missing) noexcept nogil:
    return missing if vector == NULL else vector[c]


cdef inline double whole(double high, double low) noexcept nogil:
    """The sum of a pair. An infinite sum has NaN in its low part (inf - inf): the high part is the answer then.

    (What is added is chosen, not what is returned: compilers would add on one branch only, and make no vectors.)
    """
    cdef double added = low if low == low else 0.0
    return high + added


cdef inline double tolerated_share(bint float64) noexcept nogil:
    """See statistics(). float32 values are summed with 29 bits to spare: 16 of them may be lost before it shows."""
    return 0.5 if float64 else 1 - 2.0**-16


cdef inline void statistics(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums,
                            const double *centers, bint *again) noexcept nogil:
    """Mean and biased variance from sums of d = x - center; whether they must be taken again with this mean as centre.

    var = E[d**2] - E[d]**2 loses the digits that the two have in common: none to speak of while E[d]**2 stays under
    `tolerated` times E[d**2].
    """
    cdef double tolerated = tolerated_share(call.dtype == FLOAT64), values = call.values, first, second
    cdef double mean[TOGETHER]      # nothing that is read overlaps these, compilers see
    cdef double var[TOGETHER]
    cdef double lost[TOGETHER]
    cdef Py_ssize_t k
    for k in range(count):
        first = whole(sums.a[k], sums.a_low[k])/values
        second = whole(sums.b[k], sums.b_low[k])/values
        mean[k] = centers[k] + first
        var[k] = second - first*first
        lost[k] = 1.0 if first*first > tolerated*second else 0.0
    memcpy(call.mean + c, mean, count*sizeof(double))
    memcpy(call.var + c, var, count*sizeof(double))
    for k in range(count):
        again[k] = lost[k] != 0


cdef inline void keep_where_apart(double *v, const double *a, const double *b, Py_ssize_t count) noexcept nogil:
    """0 in place of v where a and b are equal. (One choice a loop: of more, compilers make branches.)"""
    cdef Py_ssize_t k
    cdef double kept
    for k in range(count):
        kept = v[k]
        v[k] = kept if a[k] != b[k] else 0.0


cdef inline void gradient_sums(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums,
                               const double *centers, bint *again) noexcept nogil:
    """sum(dy) and sum(dy*(x - origin)) from sums about a centre."""
    cdef const double *origin = call.origin + c
    cdef double sum_dy[TOGETHER]    # nothing that is read overlaps these, compilers see
    cdef double sum_dy_xmu[TOGETHER]
    cdef double lost[TOGETHER]
    cdef double shift[TOGETHER]
    cdef double times[TOGETHER]
    cdef double v
    cdef Py_ssize_t k
    for k in range(count):
        sum_dy[k] = times[k] = whole(sums.a[k], sums.a_low[k])
        shift[k] = origin[k] - centers[k]
    keep_where_apart(shift, centers, origin, count)     # nothing is moved elsewhere, whatever the numbers
    keep_where_apart(times, centers, origin, count)
    for k in range(count):
        v = whole(sums.b[k], sums.b_low[k]) - shift[k]*times[k]
        sum_dy_xmu[k] = v
        lost[k] = v - v         # Infinite gradients: not inf - inf, but what the formula gives.
    keep_where_apart(lost, centers, origin, count)
    for k in range(count):
        again[k] = lost[k] != 0
    if call.from_y:
        for k in range(count):
            if not again[k]:
                sum_dy_xmu[k] /= inverse_std(call.var[c + k], call.eps)*at(call.gamma, c + k, 1.0)
    memcpy(call.sum_dy + c, sum_dy, count*sizeof(double))
    memcpy(call.sum_dy_xmu + c, sum_dy_xmu, count*sizeof(double))


cdef void settle(const Call *call, Py_ssize_t c, Py_ssize_t count, const SumsTogether *sums, const double *centers,
                 bint *again) noexcept nogil:
    """Turn sums of `count` channels from c on, each about its centre, into what the call asked for; and whether they
    must be taken again, about the origin.
    """
    if call.backward:
        gradient_sums(call, c, count, sums, centers, again)
    else:
        statistics(call, c, count, sums, centers, again)


cdef inline double spread(const Call *call, Py_ssize_t c) noexcept nogil:
    """The variance of what stands where x is read: from_y that is y, before a slope."""
    cdef double mul
    if not call.from_y:
        return call.var[c]
    mul = inverse_std(call.var[c], call.eps)*at(call.gamma, c, 1.0)
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


# ---- coefficients

cdef inline double unfit(double v) noexcept nogil:
    """1 where a factor, or its products with ordinary values, leave float32's range of full precision."""
    cdef double size = fabs(v)
    cdef double vanishing = 1.0 if size < 2.0**-100 else 0.0
    vanishing = 0.0 if size == 0 else vanishing
    return 1.0 if size > 2.0**100 else vanishing


cdef inline double large(double v) noexcept nogil:
    """1 where float32 + v may overflow: from half the spacing of the largest one (2**103) on it may."""
    return 1.0 if fabs(v) >= 2.0**102 else 0.0


cdef inline double plain(double v) noexcept nogil:
    """v; a NaN without what someone may have written into it (see half.h)."""
    return v if v == v else NAN


cdef inline double far_reaching(double by_x, double var, double values) noexcept nogil:
    """1 where (x - mean)*by_x may be `large`: of so many values behind the statistics none is farther than sqrt(values)
    deviations. What it is added to may bring it back.
    """
    return 1.0 if by_x*by_x*var*values >= 2.0**204 else 0.0


cdef inline void choose_floats(const Call *call, Numbers *f, Py_ssize_t c, Py_ssize_t count, const double *origin,
                               const double *by_x) noexcept nogil:
    """choose_numbers() where float32 is computed: it takes the origin as two numbers, center + low.

    x - center is exact where it is small, and low goes into the constant. The folded form x*by_x + add would lose
    digits when abs(mean) >> std.
    """
    cdef double center, add, wide, slope = call.act.slope, values = call.count if call.backward else call.values
    cdef const double *var = call.var + c
    cdef Py_ssize_t k
    for k in range(count):
        center = <float>origin[k]
        add = f.add[k] - (origin[k] - center)*by_x[k]
        wide = (unfit(slope) + unfit(f.mul[k]) + unfit(f.mul[k]*slope) + unfit(f.by_x[k]) + large(origin[k])
                + large(add) + large(add*slope) + far_reaching(by_x[k], var[k], values))
        f.center[k] = origin[k] if wide > 0 else center
        f.add[k] = f.add[k] if wide > 0 else add
        f.wide[k] = wide
    if call.from_y:
        widen_from_y(call, f, c, count, origin, by_x)


cdef inline void widen_from_y(const Call *call, Numbers *f, Py_ssize_t c, Py_ssize_t count, const double *origin,
                              const double *by_x) noexcept nogil:
    """The same for y in the place of x, and for what undo() makes of these numbers."""
    cdef double wide
    cdef Py_ssize_t k
    for k in range(count):
        wide = (unfit(by_x[k]/call.act.slope) + large(origin[k]*by_x[k]) + large(origin[k]*call.act.slope)
                + far_reaching(by_x[k], spread(call, c + k), call.count))
        if f.wide[k] == 0 and wide > 0:
            f.add[k] += (origin[k] - f.center[k])*by_x[k]
            f.center[k], f.wide[k] = origin[k], wide


cdef inline void choose_numbers(const Call *call, Numbers *f, Py_ssize_t c, Py_ssize_t count, const double *origin,
                                const double *by_x) noexcept nogil:
    """Settle what x is taken about, and whether float32 will do; by_x is the factor of x."""
    cdef Py_ssize_t k
    if call.dtype == FLOAT64:
        for k in range(count):
            f.center[k] = origin[k]
            f.wide[k] = 0
    else:
        choose_floats(call, f, c, count, origin, by_x)
    if call.storage == BFLOAT16:
        for k in range(count):
            f.center[k], f.mul[k] = plain(f.center[k]), plain(f.mul[k])
            f.add[k], f.by_x[k] = plain(f.add[k]), plain(f.by_x[k])


cdef inline void scale_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, double *invstd,
                               double *mul) noexcept nogil:
    cdef const double *var = call.var + c
    cdef double eps = call.eps
    cdef Py_ssize_t k
    for k in range(count):
        invstd[k] = inverse_std(var[k], eps)
    for k in range(count):
        mul[k] = invstd[k]*at(call.gamma, c + k, 1.0)


cdef inline void z_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, Numbers *f) noexcept nogil:
    """The numbers with which the loops compute z, and y (see Call and Coefficients for the formulas)."""
    cdef double invstd[TOGETHER]
    cdef Py_ssize_t k
    scale_numbers(call, c, count, invstd, f.mul)
    for k in range(count):
        f.add[k] = at(call.beta, c + k, 0.0)
        f.by_x[k] = 0
    choose_numbers(call, f, c, count, call.mean + c, f.mul)


cdef inline void dx_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, Numbers *f) noexcept nogil:
    """The numbers with which the loops compute dx."""
    cdef const double *sum_dy = call.sum_dy + c
    cdef const double *sum_dy_xmu = call.sum_dy_xmu + c
    cdef double invstd[TOGETHER]
    cdef double values = call.count, by_x
    cdef bint from_y = call.from_y      # (x - mean) has the factor mul already
    cdef Py_ssize_t k
    scale_numbers(call, c, count, invstd, f.mul)
    for k in range(count):
        f.add[k] = f.by_x[k] = 0
    if not call.constant:
        for k in range(count):
            f.add[k] = -f.mul[k]*(sum_dy[k]/values)
            by_x = -invstd[k]*(invstd[k]*(sum_dy_xmu[k]/values))
            f.by_x[k] = by_x if from_y else by_x*f.mul[k]
    choose_numbers(call, f, c, count, call.origin + c, f.by_x)


cdef void find_some_numbers(const Call *call, bint backward, Py_ssize_t c, Py_ssize_t count,
                            const Numbers *to) noexcept nogil:
    """Those of dx or of z, of `count` channels from c on, at most TOGETHER."""
    cdef double memory[5*TOGETHER]      # nothing that is read overlaps it, compilers see
    cdef Numbers f = lay_out_numbers(memory, TOGETHER, call)
    if backward:
        dx_numbers(call, c, count, &f)
    else:
        z_numbers(call, c, count, &f)
    memcpy(to.center, f.center, count*sizeof(double))
    memcpy(to.mul, f.mul, count*sizeof(double))
    memcpy(to.add, f.add, count*sizeof(double))
    memcpy(to.by_x, f.by_x, count*sizeof(double))
    memcpy(to.wide, f.wide, count*sizeof(double))


cdef inline bint any_other_than_0(const double *v, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k, others = 0
    for k in range(count):
        others += v[k] != 0
    return others > 0


cdef void find_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, Numbers *to) noexcept nogil:
    """What the call computes `count` channels from c on with."""
    cdef Numbers some
    cdef Py_ssize_t k = 0
    if has_gates(call):
        to.gates = gates_of(call) + c
    while k < count:
        some = numbers_from(to, k)
        find_some_numbers(call, call.backward, c + k, min(count - k, TOGETHER), &some)
        k += TOGETHER
    to.any_wide = any_other_than_0(to.wide, count)


cdef inline Coefficients coefficients_of(const Numbers *f, Py_ssize_t k) noexcept nogil:
    """Those of one channel."""
    cdef Coefficients own
    own.center, own.mul, own.add, own.by_x = f.center[k], f.mul[k], f.add[k], f.by_x[k]
    own.mul_below, own.add_below = f.mul[k]*f.act.slope, f.add[k]*f.act.slope
    own.center_below, own.by_x_below = f.center[k], f.by_x[k]
    own.act = f.act
    own.gate.low = own.gate.high = NAN
    if f.gates != NULL:
        own.gate = f.gates[k]
    own.wide = f.wide[k] != 0
    return own
