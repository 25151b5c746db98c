# The kernels, for any instruction set: the stubs beside this file include it and are compiled with different flags.

from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, fabs, isfinite, sqrt
from libc.stdint cimport (
    INT16_MAX, INT32_MAX, INT64_MAX, INTPTR_MAX, int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t,
)
from libc.string cimport memcpy, memset

from fastbn._kernels.table cimport *

cdef extern from "platform.h":
    ctypedef unsigned int fp_mode
    fp_mode fp_default() noexcept nogil
    void fp_restore(fp_mode) noexcept nogil
    void stream_line(void *to, const void *line) noexcept nogil
    void stream_half_line(void *to, const void *line) noexcept nogil
    void stream_fence() noexcept nogil
    void store_half_line(void *to, const void *line) noexcept nogil
    void store_line(void *to, const void *line) noexcept nogil
    void prefetch_line(const void *address) noexcept nogil
    void prefetch_later(const void *address) noexcept nogil
    bint NOTES_PAY
    uint16_t zeros_of_line(const float *) noexcept nogil
    void hold_back(bint longer) noexcept nogil

cdef extern from "lanes.h":
    ctypedef struct lanes_t:    # LANES float64 in registers
        pass
    Py_ssize_t VECTOR
    lanes_t lanes_load(const double *) noexcept nogil
    lanes_t lanes_widen(const float *) noexcept nogil
    lanes_t lanes_widen_float16(const void *) noexcept nogil
    lanes_t lanes_widen_bfloat16(const void *) noexcept nogil
    lanes_t lanes_all(double) noexcept nogil
    lanes_t lanes_add(lanes_t x, lanes_t y) noexcept nogil
    lanes_t lanes_sub(lanes_t x, lanes_t y) noexcept nogil
    lanes_t lanes_mul(lanes_t x, lanes_t y) noexcept nogil
    lanes_t lanes_add_exact(lanes_t x, lanes_t y, lanes_t z) noexcept nogil
    Py_ssize_t FEW
    lanes_t lanes_add_few(lanes_t x, lanes_t y) noexcept nogil
    lanes_t lanes_add_exact_few(lanes_t x, lanes_t y, lanes_t z) noexcept nogil
    lanes_t lanes_last(lanes_t x, Py_ssize_t n) noexcept nogil
    void lanes_in_registers(lanes_t *x) noexcept nogil
    void lanes_add_both(const float *dy, const float *x, lanes_t *s, lanes_t *t) noexcept nogil
    lanes_t lanes_add_widened(lanes_t x, const float *, lanes_t z) noexcept nogil
    lanes_t lanes_leak(lanes_t dy, lanes_t x, lanes_t low, lanes_t high, double slope) noexcept nogil
    lanes_t lanes_leak_above_0(lanes_t dy, lanes_t y, double slope) noexcept nogil
    void lanes_sums(lanes_t s, lanes_t t, double *s_sum, double *t_sum) noexcept nogil
    ctypedef struct Lanes:
        double s[LANES]
        double t[LANES]
    ctypedef struct sums_line_t:
        double sums[LANES]
    ctypedef struct fours_t:
        pass
    fours_t lanes_fours(lanes_t s, lanes_t t) noexcept nogil
    void fours_sums(const fours_t *fours, Py_ssize_t n, double *s_of, double *t_of) noexcept nogil
    void lanes_store(double *, lanes_t) noexcept nogil

cdef extern from "half.h":
    ctypedef struct float16_t:
        pass
    ctypedef struct bfloat16_t:
        pass
    void widen_line_bfloat16(const bfloat16_t *source, float *to) noexcept nogil
    void narrow_line_bfloat16(const float *source, bfloat16_t *to) noexcept nogil
    void widen_float16s(const float16_t *source, float *to, Py_ssize_t n) noexcept nogil
    void narrow_float16s(const float *source, float16_t *to, Py_ssize_t n) noexcept nogil
    void widen_bfloat16s(const bfloat16_t *source, float *to, Py_ssize_t n) noexcept nogil
    void narrow_bfloat16s(const float *source, bfloat16_t *to, Py_ssize_t n) noexcept nogil

include "team.pxi"
include "lanes.pxi"
include "views.pxi"
include "places.pxi"
include "vectors.pxi"
include "sums.pxi"
include "numbers.pxi"
include "columns.pxi"
include "activations.pxi"
include "gates.pxi"
include "formulas.pxi"
include "summands.pxi"
include "sum_spans.pxi"
include "stored_spans.pxi"
include "streamed_spans.pxi"
include "result_spans.pxi"
include "notes.pxi"
include "sweep_spans.pxi"
include "sum_rows.pxi"
include "result_rows.pxi"
include "loops.pxi"
include "plane_plan.pxi"
include "plane_results.pxi"
include "plane_sums.pxi"
include "plane_measures.pxi"
include "planes.pxi"
include "row_table.pxi"
include "row_measures.pxi"
include "rows.pxi"
include "parts.pxi"
include "floor.pxi"

cdef Kernels KERNELS
KERNELS.run = run_parts
KERNELS.floor = run_floor
KERNELS.any_sign = any_sign

table = PyCapsule_New(&KERNELS, "fastbn.Kernels", NULL)
