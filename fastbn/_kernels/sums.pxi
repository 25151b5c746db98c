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


# ---- coefficients

cdef enum:
    ROOM = 100              # float32 computes with 2**-ROOM to 2**ROOM: there is room for the products of what it holds


cdef inline bint unfit(double v) noexcept nogil:
    """Whether a factor, or its products with ordinary values, leave float32's range of full precision."""
    return fabs(v) > 2.0**ROOM or 0 < fabs(v) < 2.0**-ROOM


cdef inline double without_payload(double v) noexcept nogil:
    """v, a float32 or float64; a NaN without what someone may have written into it (see half.h)."""
    return v if v == v else NAN


cdef inline bint lacks_room(double mul, double add, double by_x, double origin, double slope) noexcept nogil:
    """Whether float32 cannot compute with these numbers, or with what a slope makes of them."""
    return (unfit(slope) or unfit(mul) or unfit(mul*slope) or unfit(by_x)
            or max(fabs(origin), fabs(add)*max(slope, 1.0)) > 2.0**ROOM)


cdef inline bint reaches_far(double by_x, double var, double values) noexcept nogil:
    """Whether (x - mean)*by_x may be too large: of so many values behind the statistics none is farther than
    sqrt(values) deviations. What it is added to may bring it back.
    """
    return by_x*by_x*(var*values) > 2.0**(2*ROOM)


cdef inline bint lacks_room_from_y(const Call *call, Py_ssize_t c, double origin, double by_x) noexcept nogil:
    """The same for y in the place of x, and for what undo() makes of these numbers."""
    cdef double slope = call.act.slope
    return (unfit(by_x/slope) or max(fabs(origin*by_x), fabs(origin*slope)) > 2.0**ROOM
            or reaches_far(by_x, spread(call, c), call.count))


cdef bint find_wide(const Call *call, Py_ssize_t c, Py_ssize_t count, const double *origin, const double *var,
                    const double *mul, const double *add, const double *by_x, const Numbers *to) noexcept nogil:
    """Mark the channels for whose numbers float32 has no room; whether there are any."""
    cdef double slope = call.act.slope, values = call.count if call.backward else call.values
    cdef Py_ssize_t k
    cdef bint any_wide = False
    for k in range(count):
        if (lacks_room(mul[k], added_in_float32(origin[k], add[k], by_x[k]), by_x[k], origin[k], slope)
                or reaches_far(by_x[k], var[k], values)
                or (call.from_y and lacks_room_from_y(call, c + k, origin[k], by_x[k]))):
            to.wide[k], any_wide = 1, True
    return any_wide


cdef inline double added_in_float32(double origin, double add, double by_x) noexcept nogil:
    """What is added where float32 computes: it takes the origin as two numbers, center + low.

    x - center is exact where it is small, and low goes into the constant. The folded form x*by_x + add would lose
    digits when abs(mean) >> std.
    """
    return add - (origin - <float>origin)*by_x


cdef inline bint choose_floats(const Call *call, Py_ssize_t c, Py_ssize_t count, const double *origin,
                               const double *var, const double *mul, const double *add, const double *by_x,
                               const Numbers *to) noexcept nogil:
    """The numbers with which float32 computes; whether some are `wide`.

    Nearly always float32 has room for all numbers of all channels, which is seen at a glance: by a sum and a product
    that are not too large and two factors that are not too small, with a factor of 2 to spare. (What passes here passes
    find_wide() too: a channel does not know those beside it.)
    """
    cdef double slope = call.act.slope, values = call.count if call.backward else call.values, low, factor, other
    cdef double largest = 2.0**(ROOM - 1)/max(slope, 1.0), farthest = 2.0**(2*ROOM - 1)/values
    cdef double smallest = 2.0**(1 - ROOM)/(slope if 0 < slope < 1 else 1.0)
    cdef Py_ssize_t k, fit = 0
    for k in range(count):
        low = added_in_float32(origin[k], add[k], by_x[k])
        factor, other = fabs(mul[k]), fabs(by_x[k])
        fit += (((factor + fabs(low)) + (other + fabs(origin[k])) <= largest) & (other*other*var[k] <= farthest)
                & ((factor >= smallest) | (factor == 0)) & ((other >= smallest) | (other == 0)))
        to.center32[k], to.mul32[k] = <float>origin[k], <float>mul[k]
        to.add32[k], to.by_x32[k] = <float>low, <float>by_x[k]
    if slope != 1:
        for k in range(count):
            to.mul_below32[k] = <float>(mul[k]*slope)
            to.add_below32[k] = <float>(added_in_float32(origin[k], add[k], by_x[k])*slope)
    if call.storage == BFLOAT16:
        for k in range(count):
            to.center32[k], to.mul32[k] = without_payload(to.center32[k]), without_payload(to.mul32[k])
            to.add32[k], to.by_x32[k] = without_payload(to.add32[k]), without_payload(to.by_x32[k])
        for k in range(count if slope != 1 else 0):
            to.mul_below32[k] = without_payload(to.mul_below32[k])
            to.add_below32[k] = without_payload(to.add_below32[k])
    if fit < count or unfit(slope) or call.from_y:
        return find_wide(call, c, count, origin, var, mul, add, by_x, to)
    return False


cdef void choose_doubles(const Call *call, Py_ssize_t count, const double *origin, const double *mul,
                         const double *add, const double *by_x, const Numbers *to) noexcept nogil:
    """The same as float64."""
    cdef double center[TOGETHER]    # stores to these change nothing that is read, compilers see
    cdef double low[TOGETHER]
    cdef double v
    cdef Py_ssize_t k, bytes = count*<Py_ssize_t>sizeof(double)
    memcpy(to.mul, mul, bytes)
    memcpy(to.by_x, by_x, bytes)
    if call.dtype == FLOAT64:
        memcpy(to.center, origin, bytes)
        memcpy(to.add, add, bytes)
        return
    for k in range(count):
        v = <float>origin[k]
        center[k] = origin[k] if to.wide[k] != 0 else v
        v = added_in_float32(origin[k], add[k], by_x[k])
        low[k] = add[k] if to.wide[k] != 0 else v
    memcpy(to.center, center, bytes)
    memcpy(to.add, low, bytes)
    if call.storage == BFLOAT16:
        for k in range(count):
            to.center[k], to.mul[k] = without_payload(to.center[k]), without_payload(to.mul[k])
            to.add[k], to.by_x[k] = without_payload(to.add[k]), without_payload(to.by_x[k])


cdef inline bint choose_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, bint doubles, const double *origin,
                                const double *var, const double *mul, const double *add, const double *by_x,
                                const Numbers *to) noexcept nogil:
    """Settle what x is taken about, and whether float32 will do; by_x is the factor of x."""
    cdef bint any_wide = False
    memset(to.wide, 0, count*sizeof(double))
    if call.dtype != FLOAT64:
        any_wide = choose_floats(call, c, count, origin, var, mul, add, by_x, to)
    if doubles or any_wide or call.dtype == FLOAT64 or call.from_y:
        choose_doubles(call, count, origin, mul, add, by_x, to)
    return any_wide


cdef inline void scale_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, const double *var, double *invstd,
                               double *mul) noexcept nogil:
    cdef double gamma[TOGETHER]
    cdef double eps = call.eps
    cdef Py_ssize_t k
    read_vector(&call.gamma, c, count, 1.0, gamma)
    for k in range(count):
        invstd[k] = inverse_std(var[k], eps)
        mul[k] = invstd[k]*gamma[k]


cdef inline bint z_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, bint doubles,
                           const Numbers *to) noexcept nogil:
    """The numbers with which the loops compute z, and y (see Call and Coefficients for the formulas)."""
    cdef double mean[TOGETHER]      # stores to these change nothing that is read, compilers see
    cdef double var[TOGETHER]
    cdef double invstd[TOGETHER]
    cdef double mul[TOGETHER]
    cdef double add[TOGETHER]
    if call.given_mean.data != NULL:
        read_vector(&call.given_mean, c, count, NAN, mean)
        read_vector(&call.given_var, c, count, NAN, var)
    else:
        memcpy(mean, call.mean + c, count*sizeof(double))
        memcpy(var, call.var + c, count*sizeof(double))
    scale_numbers(call, c, count, var, invstd, mul)
    read_vector(&call.beta, c, count, 0.0, add)
    return choose_numbers(call, c, count, doubles, mean, var, mul, add, mul, to)


cdef inline bint dx_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, bint doubles,
                            const Numbers *to) noexcept nogil:
    """The numbers with which the loops compute dx."""
    cdef const double *sum_dy = call.sum_dy + c
    cdef const double *sum_dy_xmu = call.sum_dy_xmu + c
    cdef double invstd[TOGETHER]
    cdef double mul[TOGETHER]
    cdef double add[TOGETHER]
    cdef double by_x[TOGETHER]
    cdef double values = call.count, v
    cdef bint from_y = call.from_y      # (x - mean) has the factor mul already
    cdef Py_ssize_t k
    scale_numbers(call, c, count, call.var + c, invstd, mul)
    memset(add, 0, count*sizeof(double))
    memset(by_x, 0, count*sizeof(double))
    if not call.constant:
        for k in range(count):
            add[k] = -mul[k]*(sum_dy[k]/values)
            v = -invstd[k]*(invstd[k]*(sum_dy_xmu[k]/values))
            by_x[k] = v if from_y else v*mul[k]
    return choose_numbers(call, c, count, doubles, call.origin + c, call.var + c, mul, add, by_x, to)


cdef void find_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, Numbers *to) noexcept nogil:
    """What the call computes `count` channels from c on with."""
    cdef Numbers some
    cdef Py_ssize_t k = 0
    cdef bint any_wide
    to.any_wide = False
    if has_gates(call):
        to.gates = gates_of(call) + c
    while k < count:
        some = numbers_from(to, k)
        if call.backward:
            any_wide = dx_numbers(call, c + k, min(count - k, TOGETHER), False, &some)
        else:
            any_wide = z_numbers(call, c + k, min(count - k, TOGETHER), False, &some)
        to.any_wide = to.any_wide or any_wide
        k += TOGETHER


cdef inline Coefficients coefficients_of(const Numbers *f, Py_ssize_t k) noexcept nogil:
    """Those of one channel, as float64 (see Numbers)."""
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
