"""The loops: one source, compiled once per instruction set (see setup.py).

================= =====================================================================================
table.pxd         what a call hands to a kernel, and the table of functions that one build exports
platform.h        what C loops cannot say: floating-point mode, fork, the CPU
team.pxi          the one place for threads: a range of work items cut into one part per thread
views.pxi         any strides: values of a channel as one sequence, gathered tile by tile
lanes.pxi         loops over contiguous values that the compiler vectorises: sums, y, dx
sums.pxi          sums of sums, compensated and merged in order, and what follows from them
planes.pxi        driver for (n, c, s): a channel at a time
sum_rows.pxi      loops over channels side by side: sums
result_rows.pxi   the same: y, dx
row_loops.pxi     which of them a call runs
rows.pxi          driver for (m, c): channels side by side
kernels.pxi       all of these, and the table
baseline.pyx ...  one stub per build
================= =====================================================================================
"""
