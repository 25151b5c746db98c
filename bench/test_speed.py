"""Every case: verified, then timed with its floor beside it. See README.md here."""

import numpy as np

import fastbn
from fastbn import _dispatch
from fastbn.bench import machine
from fastbn.bench.measure import Prepared

ROUNDS = 15


def test_speed(benchmark, case):
    prepared = Prepared(case)
    prepared.verify()
    floors = []

    def floor():
        """Before every round: the same memory at the speed of memory; then a call that does not count."""
        floors.append(prepared.floor())
        prepared.once()

    def work():
        for _ in range(prepared.repeat):
            prepared.once()

    with fastbn.num_threads(case.threads):
        benchmark.pedantic(work, setup=floor, rounds=ROUNDS)
    took = np.array(benchmark.stats.stats.data) / prepared.repeat
    ratio = float(np.median(took / np.array(floors)[: len(took)]))
    benchmark.extra_info.update(
        bytes=case.bytes,
        gb_per_s=round(case.bytes / float(np.median(took)) / 1e9, 2),
        ratio=round(ratio, 3),
        kernels=_dispatch.kernels.__name__.rpartition(".")[2],
        threads=case.threads,
        machine=machine.name(),
    )
    assert np.isfinite(ratio)  # that the answer is right was checked before it was timed
