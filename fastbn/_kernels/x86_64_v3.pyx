"""The kernels for x86-64-v3: AVX2 and its company."""

include "kernels.pxi"
