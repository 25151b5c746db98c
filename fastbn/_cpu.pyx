"""What the CPU can run, and its floating-point mode. Built for the baseline: this module must import anywhere."""

cdef extern from "platform.h":
    int cpu_has_x86_64_v3() nogil
    int cpu_streams_slowly() nogil
    const char *compiler_name() nogil
    ctypedef unsigned int fp_mode
    fp_mode fp_default() nogil
    void fp_restore(fp_mode) nogil


def has_x86_64_v3() -> bool:
    """Whether CPU and operating system can run the x86-64-v3 build, and the compiler could make it."""
    return cpu_has_x86_64_v3() != 0


def streams_slowly() -> bool:
    """Whether this is one of Intel's Xeons before Ice Lake (see platform.h)."""
    return cpu_streams_slowly() != 0


def compiler() -> str:
    """Name and version of the compiler that built this module."""
    return compiler_name().decode()


cdef class DefaultMode:
    """With-block in which NumPy computes in the default floating-point mode, as the kernels do.

    Another library may have switched flush-to-zero on for this thread; its mode comes back at the end of the block.
    """
    cdef fp_mode before

    def __enter__(self):
        self.before = fp_default()

    def __exit__(self, *error):
        fp_restore(self.before)
