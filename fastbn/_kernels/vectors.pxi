# The caller's vectors, float32 or float64: read as float64, some channels at a time, so that no copy of them is made.


cdef inline Vector vector_from_channel(const Vector *v, Py_ssize_t c) noexcept nogil:
    cdef Vector rest = v[0]
    if v.data != NULL:
        rest.data += c*<Py_ssize_t>(sizeof(float) if v.float32 else sizeof(double))
    return rest


cdef inline double number_of(const Vector *v, Py_ssize_t c, double missing) noexcept nogil:
    """That of channel c, or what is used where there are none."""
    if v.data == NULL:
        return missing
    return (<const float *>v.data)[c] if v.float32 else (<const double *>v.data)[c]


cdef inline void read_vector(const Vector *v, Py_ssize_t c, Py_ssize_t count, double missing,
                             double *to) noexcept nogil:
    """The numbers of `count` channels from c on."""
    cdef Vector rest = vector_from_channel(v, c)
    cdef Py_ssize_t k
    if v.data == NULL:
        for k in range(count):
            to[k] = missing
    elif v.float32:
        for k in range(count):
            to[k] = (<const float *>rest.data)[k]
    else:
        memcpy(to, rest.data, count*sizeof(double))


cdef bint any_sign(const Vector *v, Py_ssize_t n) noexcept nogil:
    """Whether any number has its sign bit set: a negative one, -0.0, or some NaN."""
    cdef int32_t bits32, signs32 = 0
    cdef int64_t bits, signs = 0
    cdef Py_ssize_t c
    if v.float32:
        for c in range(n):
            memcpy(&bits32, v.data + c*sizeof(float), sizeof(bits32))
            signs32 |= bits32
    else:
        for c in range(n):
            memcpy(&bits, v.data + c*sizeof(double), sizeof(bits))
            signs |= bits
    return signs < 0 or signs32 < 0
