# Results of spans: y or dx.


cdef void results_of_spans(const Place *first, Py_ssize_t places, const Steps *step, Py_ssize_t count,
                           Py_ssize_t length, const Numbers *f, Py_ssize_t k, Carry *carry, const stored *typed,
                           const formula *what) noexcept nogil:
    """The results of `count` rows, with coefficients k, k + 1, ...; with two places (float32 and float64, past the
    cache) of as many from each on. With `carry`, one for each place, they are written by whole lines, and after the
    last row put_owed() writes what is owed.
    """
    cdef Py_ssize_t end = k + count, until
    cdef Numbers own            # nothing that is written changes it
    cdef Place at, other, here
    own, at, other = f[0], first[0], first[places - 1]
    while k < end:
        until = k + 1 if own.any_wide else end      # where no channel is wide, nothing is asked for again
        if length < LANES or (own.any_wide and own.wide[k] != 0):
            if carry != NULL:
                put_owed(carry, typed, what)
                put_owed(carry + places - 1, typed, what)
            while k < until:
                here = needed(&at, what)
                store_any(&here, length, f, k, typed, what)
                if places == 2:
                    here = needed(&other, what)
                    store_any(&here, length, f, k, typed, what)
                k += 1
                at, other = moved(&at, step), moved(&other, step)
        elif not is_half(typed) and places == 2:
            while k < until:
                stream_span(&at, &other, True, length, f, k, carry, typed, what)
                k += 1
                at, other = moved(&at, step), moved(&other, step)
        elif carry != NULL:
            while k < until:
                stream_span(&at, &at, False, length, f, k, carry, typed, what)
                k += 1
                at = moved(&at, step)
        else:
            while k < until:
                store_span(&at, length, &own, k, typed, what)
                k += 1
                at = moved(&at, step)
