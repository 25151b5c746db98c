# The coefficients of the loops: what follows from statistics and sums of gradients.
#
# Up to TOGETHER channels at once, as in sums.pxi.

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


cdef inline double scale_of(double var, double invstd, double gamma) noexcept nogil:
    """invstd*gamma; of a constant channel finite as they are: 0 is multiplied by it, and y is beta."""
    cdef double mul = invstd*gamma, most = DBL_MAX if gamma > 0 else -DBL_MAX
    return most if (var == 0) & (fabs(mul) == INFINITY) & (fabs(gamma) < INFINITY) else mul


cdef inline void scale_numbers(const Call *call, Py_ssize_t c, Py_ssize_t count, const double *var, double *invstd,
                               double *mul) noexcept nogil:
    cdef double gamma[TOGETHER]
    cdef double eps = call.eps
    cdef Py_ssize_t k
    read_vector(&call.gamma, c, count, 1.0, gamma)
    for k in range(count):
        invstd[k] = inverse_std(var[k], eps)
        mul[k] = scale_of(var[k], invstd[k], gamma[k])


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
    own.act = f.act
    if f.gates != NULL:
        own.gate = f.gates[k]
    own.wide = f.wide[k] != 0
    return own
