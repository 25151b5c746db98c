# Driver for planes, (n, c, s): a few channels after the other.
#
# The values of a channel are cut into folds of some FOLD values: rows of s values, or equal parts of longer ones. A
# fold is summed in lanes (lanes.pxi), folds are added up within a block, and blocks are merged in order. While the
# sums of a channel are taken, a channel before it, which is still in the cache, gets its result: memory sees x once,
# and is read and written at the same time. Where rows are short, channels go in groups of neighbours, so that memory
# is still read and written in long runs; such a group mostly gets its results right after its sums. Else channels that
# are one fold are summed whole, many of them in one call, unless others get results meanwhile or their rows are
# scattered: the ways between loops would take longer than the loops. Planes of a few values are gathered, those of some
# channels together. Where there are no sums to take, two samples get their results at once. Only where channels are at
# most half as many as threads do threads share a channel. None of this changes the order of a channel's additions.


cdef void apply_part(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The values begin..end of a channel, by one of a team."""
    cdef Due due = (<const Due *>task)[0]
    cdef Carry carry
    begin_carry(&carry, due.plan)
    if due.plan.by_lines:
        due.carry = &carry
    apply_to_values(&due, 0, 1, begin, end)
    due.plan.loops.put_owed(&carry, NULL, NULL)


cdef inline Py_ssize_t next_group(const Plan *plan, Py_ssize_t c, Py_ssize_t end) noexcept nogil:
    """How many channels go side by side from channel c on. Of whole lines a group takes a few less, if its results then
    end where a line does: else each of its rows, and of the next group's, would write a part of one.
    """
    cdef Py_ssize_t k, count = min(plan.group, end - c)
    if plan.by_lines and c + count < end:
        for k in range(count, count//2, -1):
            if <uintptr_t>address(plan.call.out, c + k, 0) % CACHE_LINE == 0:
                return k
    return count


cdef inline char *notes_of_thread(const Call *call, Py_ssize_t begin) noexcept nogil:
    """Where notes of two channels are left by the thread whose channels begin there (see share())."""
    cdef Py_ssize_t thread = (begin*call.threads + call.channels - 1)//call.channels
    return call.scratch + 2*thread*bytes_of_notes(call)


cdef void measure_and_apply(const Plan *plan, Py_ssize_t begin, Py_ssize_t end, Carry *carry) noexcept nogil:
    """Channels begin..end: a pipeline in which a group gets its result with the sums of the next.

    Only where results are written by whole lines and groups do not go apart: else their results follow their sums at
    once. Without `measure` there are results alone.
    """
    cdef const Call *call = plan.call
    cdef double memory[2][NUMBERS*TOGETHER]
    cdef Due due[2]
    cdef Due *ready = NULL      # its channels have their sums
    cdef double again[TOGETHER]
    cdef bint any_again = False
    cdef Py_ssize_t c = begin, count, k
    cdef int turn = 0
    cdef char *notes = notes_of_thread(call, begin)
    for k in range(2):
        due[k].plan, due[k].carry = plan, carry
        due[k].numbers = lay_out_numbers(memory[k], TOGETHER, call)
        due[k].noted = False
        due[k].notes = notes + k*bytes_of_notes(call)
    while c < end:
        count = next_group(plan, c, end) if call.measure else min(TOGETHER, end - c)
        if call.measure and plan.whole and ready == NULL:     # (as it is where a group is larger than GROUP)
            any_again = measure_whole(plan, c, count, again)
        elif call.measure:
            any_again = measure_group(plan, c, count, ready, &due[1 - turn], again)
        for k in range(count if any_again else 0):
            if again[k] != 0:
                measure_again(plan, c + k)
        if call.out != NULL:
            turn = 1 - turn
            ready = &due[turn]
            ready.c, ready.count = c, count
            find_numbers(call, c, count, &ready.numbers)
            if carry == NULL or not call.measure or plan.apart:
                apply_all(ready)
                ready = NULL
        c += count
    if ready != NULL:
        apply_all(ready)
    if carry != NULL:
        plan.loops.put_owed(carry, NULL, NULL)


cdef void run_channels(void *task, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Channels begin..end, by one thread."""
    cdef const Plan *plan = <const Plan *>task
    cdef const Call *call = plan.call
    cdef Carry carry
    cdef Due due
    if begin == end:        # fewer channels than threads
        return
    begin_carry(&carry, plan)
    due.plan, due.c, due.count, due.carry = plan, begin, end - begin, &carry if plan.by_lines else NULL
    find_gates(call, plan.loops.find_gates, begin, end - begin)
    if goes_by_groups(call):
        measure_and_apply(plan, begin, end, due.carry)
        return
    due.numbers = lay_out_numbers(<double *>after_gates(call) + NUMBERS*begin, due.count, call)
    find_numbers(call, begin, due.count, &due.numbers)
    apply_all(&due)
    plan.loops.put_owed(&carry, NULL, NULL)


cdef void run_channel_by_team(const Plan *plan, Py_ssize_t c) noexcept nogil:
    """One channel, by all threads."""
    cdef const Call *call = plan.call
    cdef Channel channel
    cdef double memory[NUMBERS]
    cdef Due due
    cdef double again
    find_gates(call, plan.loops.find_gates, c, 1)
    if call.measure:
        begin_channels(&channel, 1, plan, c, NULL)
        sum_by_team(&channel, call.threads)
        if settle_group(&channel, 1, &again):
            begin_again(&channel, plan, c)
            sum_by_team(&channel, call.threads)
            settle_group(&channel, 1, &again)
    if call.out != NULL:
        due.plan, due.c, due.count, due.carry = plan, c, 1, NULL
        due.numbers = lay_out_numbers(memory, 1, call)
        find_numbers(call, c, 1, &due.numbers)
        share(apply_part, &due, call.values, call.threads)


cdef void run_planes(Call *call) noexcept nogil:
    cdef fp_mode before = fp_default()
    cdef Plan plan = make_plan(call)
    cdef Py_ssize_t c
    if split_channels(call.channels, call.threads):
        for c in range(call.channels):
            run_channel_by_team(&plan, c)
    else:
        share(run_channels, &plan, call.channels, call.threads)
    fp_restore(before)
