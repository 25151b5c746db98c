"""The command `fastbn bench`: how far fastbn, and what else is installed, are from the speed of memory here.

Time over floor for ResNet-50's shapes, for other orders and types, and for fusions: fastbn against the NumPy formula,
and PyTorch and onnxruntime where these are installed (PyTorch belongs to no extra). Microseconds of small calls. GB/s
over the size of the array, 1 KB to 1 GB. Scaling over threads. Every answer is checked against the float64 reference
before it is timed.

    cases.py        what is timed           floor.py     what it is compared with
    measure.py      check, rounds, ratios   machine.py   its name, its free memory
    contenders.py   who is raced            race.py, worker.py   one process for each
    sizes.py, scaling.py   the sweeps       report.py, pictures.py   what comes out
    command.py      all of it in order      memory.py     the peak of a call, from outside

The suite in the checkout's folder bench/ times the same cases with pytest-benchmark.
"""
