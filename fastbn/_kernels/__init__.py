"""The loops: one source, compiled once per instruction set (see setup.py).

    table.pxd          what a call hands to a kernel, and the table of functions that one build exports
    platform.h         what C loops cannot say: floating-point mode, fork
    team.pxi           one place for threads: a range of work items cut into one part per thread
    views.pxi          any strides: values of a channel as one sequence, gathered tile by tile
    lanes.pxi          loops over contiguous values that the compiler vectorises: sums, normalise, gradient
    sums.pxi           sums of sums: compensated, merged in order, and what follows from them
    planes.pxi         drivers for (n, c, s): a channel at a time
    rows.pxi           drivers for (m, c): channels side by side
    kernels.pxi        the table
    baseline.pyx, x86_64_v3.pyx    one stub per build
"""
