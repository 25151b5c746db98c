# The kernels, for any instruction set: the stubs beside this file include it and are compiled with different flags.

from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange
from libc.math cimport fabs, isfinite
from libc.stdint cimport INTPTR_MAX, uintptr_t
from libc.string cimport memcpy, memset

from fastbn._kernels.table cimport *

cdef extern from "platform.h":
    ctypedef unsigned int fp_mode
    fp_mode fp_default() noexcept nogil
    void fp_restore(fp_mode) noexcept nogil
    void stream_line(void *to, const void *line) noexcept nogil
    void stream_fence() noexcept nogil
    void prefetch_line(const void *address) noexcept nogil
    double add_exact_product(double a, double b, double c) noexcept nogil

include "team.pxi"
include "views.pxi"
include "sums.pxi"
include "lanes.pxi"
include "planes.pxi"
include "rows.pxi"

cdef Kernels KERNELS
KERNELS.run[<int>PLANES] = run_planes
KERNELS.run[<int>ROWS] = run_rows

table = PyCapsule_New(&KERNELS, "fastbn.Kernels", NULL)
