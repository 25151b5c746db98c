# What a call measures of channels of planes: about what it sums, what follows from the sums, and whether they must be
# taken again.


cdef bint first_centers(const Plan *plan, Py_ssize_t c, Py_ssize_t count, double *centers, bint *far) noexcept nogil:
    """Those of `count` channels from c on; whether any is `far`, and only then which."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t k
    cdef bint any_far = False
    if all_about_0(call, c, count):
        memset(centers, 0, count*sizeof(double))
        return False
    for k in range(count):
        centers[k] = first_center(call, c + k, &far[k])
        any_far = any_far or far[k]
    return any_far


cdef void begin_channels(Channel *channels, Py_ssize_t count, const Plan *plan, Py_ssize_t c,
                         const Due *due) noexcept nogil:
    """Make channels c..c + count ready for their sums."""
    cdef const Call *call = plan.call
    cdef Py_ssize_t k
    if has_gates(call):
        for k in range(count):
            channels[k].about.gate = gates_of(call)[c + k]
    for k in range(count):
        channels[k].plan, channels[k].c, channels[k].due, channels[k].about.act = plan, c + k, due, call.act
        channels[k].about.center = first_center(call, c + k, &channels[k].far)


cdef void begin_again(Channel *channel, const Plan *plan, Py_ssize_t c) noexcept nogil:
    """Make a channel ready for better sums, about its origin."""
    begin_channels(channel, 1, plan, c, NULL)
    channel.about.center = plan.call.origin[c]
    channel.far = True


cdef bint settle_group(const Channel *channels, Py_ssize_t count, double *again) noexcept nogil:
    """Take what the call asked for from the sums; whether and where that asks for better ones."""
    cdef SumsTogether sums
    cdef double centers[GROUP]
    cdef Py_ssize_t k
    for k in range(count):
        put_sums(&sums, k, &channels[k].total)
        centers[k] = channels[k].about.center
    return settle(channels.plan.call, channels.c, count, &sums, centers, again)


cdef void note_channel(Due *due) noexcept nogil:
    """Notes of a channel whose sums have left none."""
    cdef const Plan *plan = due.plan
    cdef Place at
    cdef Py_ssize_t row
    for row in range(plan.rows):
        at = row_of(plan.call, due.c, row)
        note_values(&at, 0, plan.plane, &plan.call.act, due.notes + row*plan.note_row)
    due.noted = True


cdef bint measure_group(const Plan *plan, Py_ssize_t c, Py_ssize_t count, Due *due, Due *soon,
                        double *again) noexcept nogil:
    """With the results of channels that are `due`; those that are measured will be `soon`."""
    cdef Channel channels[GROUP]
    begin_channels(channels, count, plan, c, due)
    if plan.note_row > 0:
        soon.noted = can_sweep(channels, count)
        channels[0].notes = soon.notes
        if soon.noted and not due.noted:
            note_channel(due)
    sum_side_by_side(channels, count)
    return settle_group(channels, count, again)


cdef void measure_again(const Plan *plan, Py_ssize_t c) noexcept nogil:
    cdef Channel channel
    cdef double again
    begin_again(&channel, plan, c)
    sum_side_by_side(&channel, 1)
    settle_group(&channel, 1, &again)


cdef void sum_whole(const Plan *plan, Py_ssize_t c, Py_ssize_t count, const double *centers, bint far, double *s,
                    double *t) noexcept nogil:
    """The sums of channels that are one fold each."""
    cdef const Call *call = plan.call
    cdef sum_channels sum = plan.loops.sum_channels_again if far else plan.loops.sum_channels
    cdef Centers about
    cdef Place at = row_of(call, c, 0)
    about.center, about.gates, about.act = centers, NULL, call.act
    if has_gates(call):
        about.gates = gates_of(call) + c
    sum(&at, &plan.sample, &plan.neighbour, count, plan.rows, plan.plane, &about, s, t, NULL, NULL)


cdef bint measure_whole(const Plan *plan, Py_ssize_t c, Py_ssize_t count, double *again) noexcept nogil:
    """measure_group() for channels that are one fold each: by calls for as many as can be summed alike."""
    cdef const Call *call = plan.call
    cdef SumsTogether sums
    cdef double centers[TOGETHER]
    cdef bint far[TOGETHER]
    cdef Py_ssize_t k, first = 0
    memset(sums.a_low, 0, count*sizeof(double))
    memset(sums.b_low, 0, count*sizeof(double))
    if not first_centers(plan, c, count, centers, far):
        sum_whole(plan, c, count, centers, False, sums.a, sums.b)
        return settle(call, c, count, &sums, centers, again)
    for k in range(1, count + 1):
        if k == count or far[k] != far[first]:
            sum_whole(plan, c + first, k - first, centers + first, far[first], sums.a + first, sums.b + first)
            first = k
    return settle(call, c, count, &sums, centers, again)
