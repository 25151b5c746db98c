"""What the CPU can run. Built for the baseline: this module must import anywhere."""

cdef extern from "platform.h":
    int cpu_has_x86_64_v3() nogil
    const char *compiler_name() nogil


def has_x86_64_v3() -> bool:
    """Whether the CPU has AVX2, FMA, BMI and the operating system saves the wide registers."""
    return cpu_has_x86_64_v3() != 0


def compiler() -> str:
    """Name and version of the compiler that built this module."""
    return compiler_name().decode()
