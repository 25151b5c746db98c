# What a call does to contiguous values: chosen once, so that drivers know neither types nor options. The last two
# arguments of sums and results are types only.


ctypedef void (*sum_spans)(const Place *at, const Steps *ahead, const Steps *, Py_ssize_t count, Py_ssize_t length,
                           const Center *, Lanes *, const void *, const void *) noexcept nogil
ctypedef void (*sum_neighbours)(const Place *at, const Steps *sample, const Steps *neighbour, const Steps *ahead,
                                Py_ssize_t channels, Py_ssize_t rows, Py_ssize_t length, const Center *, Lanes *,
                                Py_ssize_t stride, const void *, const void *) noexcept nogil
ctypedef void (*sum_channels)(const Place *at, const Steps *sample, const Steps *neighbour, Py_ssize_t channels,
                              Py_ssize_t rows, Py_ssize_t length, const Centers *, double *s, double *t, const void *,
                              const void *) noexcept nogil
ctypedef void (*apply_spans)(const Place *at, Py_ssize_t places, const Steps *, Py_ssize_t count, Py_ssize_t length,
                             const Numbers *, Py_ssize_t k, Carry *, const void *, const void *) noexcept nogil
ctypedef void (*put_owed_values)(Carry *, const void *, const void *) noexcept nogil
ctypedef void (*sweep_spans)(const Place *due, const Steps *, Py_ssize_t count, Py_ssize_t length, const Numbers *,
                             Carry *, const Place *at, const Steps *ahead, const Steps *, const Center *, Folds *,
                             const Notes *, const void *, const void *) noexcept nogil
ctypedef void (*sweep_neighbours)(const Place *due, const Steps *, Py_ssize_t count, Py_ssize_t length,
                                  const Numbers *, Carry *, const Place *at, const Steps *ahead, const Center *,
                                  Lanes *, Py_ssize_t stride, const void *, const void *) noexcept nogil
ctypedef void (*sum_rows)(const Place *at, Py_ssize_t places, const Steps *, Py_ssize_t count, Py_ssize_t width,
                          Py_ssize_t ahead, const RowCenters *, double *s, double *t, const void *,
                          const void *) noexcept nogil
ctypedef void (*apply_rows)(const Place *at, Py_ssize_t places, const Steps *, Py_ssize_t count, Py_ssize_t length,
                            const Columns *, Py_ssize_t column, Py_ssize_t ahead, bint stream, const void *,
                            const void *) noexcept nogil
ctypedef void (*fill_columns)(Columns *, bint undone, const void *) noexcept nogil
ctypedef void (*fill_gates)(Columns *, const Gate *, const void *) noexcept nogil


cdef struct Loops:
    Py_ssize_t itemsize
    sum_spans sum_spans
    sum_spans sum_spans_again   # the same about any center, for a second attempt
    sum_neighbours sum_neighbours   # some short rows of some channels
    sum_neighbours sum_neighbours_again
    sum_channels sum_channels   # some channels, the whole of each
    sum_channels sum_channels_again
    apply_spans apply_spans
    put_owed_values put_owed    # what results by whole lines have left
    sweep_spans sweep_spans     # apply_spans of a channel and sum_spans of the next
    sweep_neighbours sweep_neighbours   # of a sample's short rows; NULL: they gain nothing by it
    sum_rows sum_rows
    sum_rows sum_rows_again
    apply_rows apply_rows
    fill_columns set_columns
    fill_gates set_gate_columns
    find_gates_of find_gates


cdef inline void use_sums(Loops *loops, const stored *typed, const summed_first *first,
                          const summed_again *again) noexcept nogil:
    """The sums of a first attempt, and those of a second."""
    loops.sum_spans = <sum_spans>sums_of_spans[stored, summed_first]
    loops.sum_spans_again = <sum_spans>sums_of_spans[stored, summed_again]
    loops.sum_neighbours = <sum_neighbours>sums_of_neighbours[stored, summed_first]
    loops.sum_neighbours_again = <sum_neighbours>sums_of_neighbours[stored, summed_again]
    loops.sum_channels = <sum_channels>sums_of_channels[stored, summed_first]
    loops.sum_channels_again = <sum_channels>sums_of_channels[stored, summed_again]
    loops.sum_rows = <sum_rows>sums_of_rows[stored, summed_first]
    loops.sum_rows_again = <sum_rows>sums_of_rows[stored, summed_again]


cdef inline void use_formula(Loops *loops, const stored *typed, const formula *what) noexcept nogil:
    """The results of a formula, and the sums that go with it."""
    loops.apply_spans = <apply_spans>results_of_spans[stored, formula]
    loops.put_owed = <put_owed_values>put_owed[stored, formula]
    loops.sweep_spans = <sweep_spans>results_and_sums[stored, formula]
    loops.sweep_neighbours = NULL
    if gains_beside_sums(what):
        loops.sweep_neighbours = <sweep_neighbours>results_and_sums_of_neighbours[stored, formula]
    loops.apply_rows = <apply_rows>results_of_rows[stored, formula]
    if formula is Gradient or formula is Scaled:
        use_sums(loops, typed, <const Products *>NULL, <const FarProducts *>NULL)
    elif formula is ClippedGradient or formula is ClippedScaled:
        use_sums(loops, typed, <const ClippedProducts *>NULL, <const FarClippedProducts *>NULL)
    elif formula is LeakyGradient or formula is LeakyScaled:
        use_sums(loops, typed, <const LeakyProducts *>NULL, <const FarLeakyProducts *>NULL)
    elif is_clipped_join(what):
        use_sums(loops, typed, <const ClippedJoinProducts *>NULL, <const FarClippedJoinProducts *>NULL)
    elif is_leaky_join(what):
        use_sums(loops, typed, <const LeakyJoinProducts *>NULL, <const FarLeakyJoinProducts *>NULL)
    elif is_undone(what):
        use_sums(loops, typed, <const UndoneProducts *>NULL, <const FarUndoneProducts *>NULL)
    else:
        use_sums(loops, typed, <const Deviations *>NULL, <const FarDeviations *>NULL)


cdef inline Loops loops_of(const Call *call, const stored *typed) noexcept nogil:
    cdef Loops loops
    cdef bint slope = call.act.slope != 1
    loops.itemsize = sizeof(stored)
    loops.set_columns = <fill_columns>set_columns[float]
    loops.set_gate_columns = <fill_gates>set_gate_columns[float]
    if stored is double:
        loops.set_columns = <fill_columns>set_columns[double]
        loops.set_gate_columns = <fill_gates>set_gate_columns[double]
    loops.find_gates = <find_gates_of>find_some_gates[stored]
    if not call.backward:
        choose_forward(&loops, call, slope, typed)
    elif call.y != NULL:
        choose_behind_a_join(&loops, call, slope, typed)
    else:
        choose_backward(&loops, call, slope, typed)
    return loops


cdef inline void choose_forward(Loops *loops, const Call *call, bint slope, const stored *typed) noexcept nogil:
    if call.dy != NULL:
        if slope:
            use_formula(loops, typed, <const LeakyJoin *>NULL)
        else:
            use_formula(loops, typed, <const ClippedJoin *>NULL)
    elif not call.activated:
        use_formula(loops, typed, <const Normalized *>NULL)
    elif slope:
        use_formula(loops, typed, <const Leaky *>NULL)
    else:
        use_formula(loops, typed, <const Clipped *>NULL)


cdef inline void choose_behind_a_join(Loops *loops, const Call *call, bint slope, const stored *typed) noexcept nogil:
    if call.constant:
        if slope:
            use_formula(loops, typed, <const LeakyJoinScaled *>NULL)
        else:
            use_formula(loops, typed, <const ClippedJoinScaled *>NULL)
    elif slope:
        use_formula(loops, typed, <const LeakyJoinGradient *>NULL)
    else:
        use_formula(loops, typed, <const ClippedJoinGradient *>NULL)


cdef inline void choose_backward(Loops *loops, const Call *call, bint slope, const stored *typed) noexcept nogil:
    if undoes_a_slope(call):
        if call.constant:
            use_formula(loops, typed, <const UndoneScaled *>NULL)
        else:
            use_formula(loops, typed, <const UndoneGradient *>NULL)
    elif call.constant:
        if not has_gates(call):
            use_formula(loops, typed, <const Scaled *>NULL)
        elif slope:
            use_formula(loops, typed, <const LeakyScaled *>NULL)
        else:
            use_formula(loops, typed, <const ClippedScaled *>NULL)
    elif not has_gates(call):
        use_formula(loops, typed, <const Gradient *>NULL)
    elif slope:
        use_formula(loops, typed, <const LeakyGradient *>NULL)
    else:
        use_formula(loops, typed, <const ClippedGradient *>NULL)


cdef inline Loops choose_loops(const Call *call) noexcept nogil:
    """By the type of the values."""
    if call.dtype == FLOAT64:
        return loops_of(call, <const double *>NULL)
    if call.storage == FLOAT16:
        return loops_of(call, <const float16_t *>NULL)
    if call.storage == BFLOAT16:
        return loops_of(call, <const bfloat16_t *>NULL)
    return loops_of(call, <const float *>NULL)
