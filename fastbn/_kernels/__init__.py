"""The loops: one source, compiled once per instruction set (see setup.py). From the bottom up:

=================== ===================================================================================
table.pxd           what a call hands to a kernel, and the table of functions that one build exports
platform.h          what C loops cannot say: floating-point mode, streaming stores, memory, fork, the CPU
half.h              float16 and bfloat16, to float32 and back
lanes.h             the partial sums of a reduction: 16 float64 in as many registers as it takes
team.pxi            the one place for threads: a range of work items cut into one part per thread
lanes.pxi           lanes and lines of values of any type
views.pxi           any strides: values of a channel as one sequence, gathered tile by tile
places.pxi          the arrays of a call together
vectors.pxi         the caller's vectors, a number per channel
sums.pxi            sums of sums, compensated and merged in order, and what follows from them
numbers.pxi         the coefficients of the loops, which follow from that
columns.pxi         coefficients of one channel, or of the columns of a row
activations.pxi     activations, and what their derivatives make of gradients
gates.pxi           where the derivative of an activation changes, as values of x
formulas.pxi        y and dx: what becomes of a line of values
summands.pxi        what is summed, and about what
sum_spans.pxi       loops over runs of values of one channel: sums
stored_spans.pxi    the same: y or dx, by ordinary stores
streamed_spans.pxi  by whole lines, past the cache
result_spans.pxi    which of both
notes.pxi           which gradients an activation has cut off, noted by sums for results
sweep_spans.pxi     results of one channel with the sums of another
sum_rows.pxi        loops over channels side by side: sums
result_rows.pxi     the same: y or dx
loops.pxi           which of these loops a call runs
plane_plan.pxi      planes, (n, c, s): how a call goes through its channels
plane_results.pxi   y or dx of channels whose coefficients are known
plane_sums.pxi      sums of channels, with the results of others meanwhile
plane_measures.pxi  what follows from them, and whether they must be taken again
planes.pxi          the driver: a few channels after the other
row_table.pxi       rows, (m, c): the table of a call, and where its rows are
row_measures.pxi    sums of rows, and what follows from them
rows.pxi            the driver: results, and all in order
parts.pxi           both, for very many channels: part after part
floor.pxi           copy and triad at the speed of memory, for benchmarks
kernels.pxi         all of these, and the table
baseline.pyx ...    one stub per build
=================== ===================================================================================
"""
