# A call with very many channels, part after part: scratch is that of a part. (What there is of it, and the order in
# which rows are added up, is a matter of the number of channels alone.)

ctypedef void (*run_order)(Call *) noexcept nogil


cdef inline const double *from_channel(const double *vector, Py_ssize_t c) noexcept nogil:
    if vector != NULL:
        vector += c
    return vector


cdef const View *view_from_channel(const View *v, Py_ssize_t c, View *to) noexcept nogil:
    if v == NULL:
        return NULL
    to[0] = v[0]
    to.data += c*v.channel
    return to


cdef void run_part(const Call *whole, Py_ssize_t c, Py_ssize_t channels, run_order run) noexcept nogil:
    """Channels c..c + channels."""
    cdef View views[ARRAYS]
    cdef Call call = whole[0]
    call.channels = channels
    call.x = view_from_channel(whole.x, c, &views[0])
    call.dy = view_from_channel(whole.dy, c, &views[1])
    call.out = view_from_channel(whole.out, c, &views[2])
    call.y = view_from_channel(whole.y, c, &views[3])
    call.dresidual = view_from_channel(whole.dresidual, c, &views[4])
    call.mean, call.var = <double *>from_channel(whole.mean, c), <double *>from_channel(whole.var, c)
    call.sum_dy = <double *>from_channel(whole.sum_dy, c)
    call.sum_dy_xmu = <double *>from_channel(whole.sum_dy_xmu, c)
    call.origin = from_channel(whole.origin, c)
    call.given_mean = vector_from_channel(&whole.given_mean, c)
    call.given_var = vector_from_channel(&whole.given_var, c)
    call.gamma, call.beta = vector_from_channel(&whole.gamma, c), vector_from_channel(&whole.beta, c)
    run(&call)


cdef void run_parts(Call *call, Order order) noexcept nogil:
    cdef run_order run = run_planes if order == PLANES else run_rows
    cdef Py_ssize_t c = 0, most = part_of_channels(call, order)
    if most == call.channels:
        run(call)
        return
    while c < call.channels:
        run_part(call, c, min(most, call.channels - c), run)
        c += most
