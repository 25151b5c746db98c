# The one place where threads are made. A range of items is cut into one part per thread; what a part computes
# depends on its items alone, so the number of threads never shows in a result.


ctypedef void (*work_t)(void *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil


cdef void work_on(work_t work, void *job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """One thread's part, in the default floating-point mode."""
    cdef fp_mode before = fp_default()
    work(job, begin, end)
    stream_fence()
    fp_restore(before)


cdef void share(work_t work, void *job, Py_ssize_t items, int threads) noexcept nogil:
    """Work on items 0..items with a team of `threads`. Always the whole team: changing its size costs up to 1 ms."""
    cdef int t
    if threads == 1:
        work_on(work, job, 0, items)
        return
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        work_on(work, job, items*t//threads, items*(t + 1)//threads)
