# Results of spans: y or dx.


cdef void results_of_spans(const Place *first, const Steps *step, Py_ssize_t count, Py_ssize_t length,
                           const Numbers *f, Py_ssize_t k, Carry *carry, const stored *typed,
                           const formula *what) noexcept nogil:
    """The results of `count` rows, with coefficients k, k + 1, ... With `carry` they are written by whole lines, and
    after the last row put_owed() writes what is owed.
    """
    cdef Py_ssize_t end = k + count, until
    cdef Numbers own            # nothing that is written changes it
    cdef Place at, here
    own, at = f[0], first[0]
    while k < end:
        until = k + 1 if own.any_wide else end      # where no channel is wide, nothing is asked for again
        if length < LANES or (own.any_wide and own.wide[k] != 0):
            if carry != NULL:
                put_owed(carry, typed, what)
            while k < until:
                here = needed(&at, what)
                store_any(&here, length, f, k, typed, what)
                k += 1
                at = moved(&at, step)
        elif carry != NULL:
            while k < until:
                stream_span(&at, length, f, k, carry, typed, what)
                k += 1
                at = moved(&at, step)
        else:
            while k < until:
                store_span(&at, length, &own, k, typed, what)
                k += 1
                at = moved(&at, step)
