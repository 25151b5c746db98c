"""How a case is timed: checked against the reference first, then in rounds, each with the floor beside it."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

import fastbn
from fastbn import reference
from fastbn.bench.cases import STREAMS, Case, dtype_of
from fastbn.bench.floor import Array, aligned, as_moved, move, seconds
from fastbn.commands import CannotRunError

CACHE = 64 << 20  # bytes: larger than the last-level cache of most machines, by which cold cases cycle
AT_ONCE = 1 << 18  # values whose float64 reference is computed at a time: it stays in the caches

# The absolute terms of a result add up to some 24, or 29 with a residual: four roundings of them are 116 units.
# (float64: the reference rounds too, in sums of all values.)
TOLERANCE = dict.fromkeys(("float32", "float16", "bfloat16"), 120 * 2.0**-24) | {"float64": 120 * 2.0**-50}

# The last rounding, to a half type, in parts of the value (subnormals are nearer than the tolerance).
LAST_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}

# Sums in float64. Of means in deviations, of variances in parts of them, of gradients of gamma and beta by the value.
VECTORS = dict.fromkeys(("mean", "var", "dgamma", "dbeta"), 1e-9)

KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,)}
SLOPE = 0.01
NEAR = 1e-5  # to a kink: float32 may have seen the value on its other side


class WrongResultError(CannotRunError):
    """A result is not the reference's: what made it is not timed."""


class Buffers(NamedTuple):
    """The arrays of one call; the last three where there is a residual."""

    x: Array
    dy: Array
    out: Array
    residual: Any = None
    y: Any = None
    dresidual: Any = None


class Prepared:
    """A case with its arrays: what is timed, and the floor beside it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        sets = max(2, CACHE * 2 // case.bytes + 1) if case.cold else 1
        self.memory = [self.allocate() for _ in range(sets)]
        self.buffers = [Buffers(*map(self.view, flat)) for flat in self.memory]
        self.to_move = [self.moves(flat) for flat in self.memory]
        rng = np.random.default_rng(0)
        for flat in self.memory:
            for memory in (flat.x, flat.dy, flat.residual):
                if memory is not None:
                    fill(memory, rng)
        vectors = np.float64 if case.dtype == "float64" else np.float32
        self.gamma, self.beta = rng.standard_normal((2, case.channels)).astype(vectors)
        self.stats = fastbn.batch_stats(self.buffers[0].x, axis=case.axis)
        if case.what == "from-y":
            for b in self.buffers:
                fastbn.batch_norm(b.x, self.gamma, self.beta, out=b.x, **self.options)
        if case.residual and case.activation and case.what == "backward":
            for b in self.buffers:
                fastbn.batch_norm(b.x, self.gamma, self.beta, residual=b.residual, out=b.y, **self.options)
        self.calls = [self.call_on(b) for b in self.buffers]
        self.turn = 0

    def allocate(self) -> Buffers:
        """Flat memory for one call."""
        size, dtype = prod(self.case.shape), dtype_of(self.case.dtype)
        of_x = 2 * size if self.case.order == "slice" else size
        count = 5 if self.case.residual else 2
        return Buffers(aligned(of_x, dtype), *(aligned(size, dtype) for _ in range(count)))

    def view(self, memory: Any) -> Any:
        """Flat memory, where there is any, in the order of the case."""
        return None if memory is None else self.case.view(memory)

    @property
    def options(self) -> dict[str, Any]:
        """What all calls of this case are given."""
        return {"axis": self.case.axis, "activation": self.case.activation, "negative_slope": SLOPE}

    def call_on(self, b: Buffers) -> Callable[[], Any]:
        """The call that is timed, its arguments at hand: to find them takes as long as a small call."""
        case, affine, options = self.case, (self.gamma, self.beta), self.options
        out: Any = b.out if case.out else None
        if case.what == "statistics":
            return partial(fastbn.batch_stats, b.x, axis=case.axis)
        if case.what == "training":
            return partial(fastbn.batch_norm, b.x, *affine, residual=b.residual, out=out, **options)
        if case.what == "inference":
            return partial(fastbn.normalize, b.x, *self.stats[1:], *affine, residual=b.residual, out=out, **options)
        backward = partial(fastbn.batch_norm_backward, b.dy)
        if case.what == "params":
            return partial(backward, b.x, self.stats, *affine, need_dx=False, **options)
        if case.what == "from-y":
            return partial(backward, None, self.stats, *affine, y=b.x, out=out, **options)
        if case.residual:
            options |= {"residual": True, "y": b.y if case.activation else None}
            out = (b.out, b.dresidual) if case.out else None
        if case.what.startswith("frozen"):
            options |= {"training": False, "need_params": case.what == "frozen"}
        return partial(backward, b.x, self.stats, *affine, out=out, **options)

    def results(self, returned: Any) -> dict[str, Array]:
        """All that such a call has returned, by name: y or dx first, where it makes one."""
        if self.case.what == "training":
            y, stats = returned
            return {"y": y, "mean": stats.mean, "var": stats.var}
        if self.case.what == "inference":
            return {"y": returned}
        if self.case.what == "statistics":
            return {"mean": returned.mean, "var": returned.var}
        return {name: value for name, value in returned._asdict().items() if value is not None}

    def expected(self, channels: slice) -> dict[str, Array]:
        """The float64 reference's results of some channels, these on axis 1."""
        b, what = self.buffers[0], self.case.what
        x, dy, residual, y = (self.some(a, channels) for a in (b.x, b.dy, b.residual, b.y))
        count, mean, var = self.stats
        stats = fastbn.BatchStats(count, mean[channels], var[channels])
        affine = self.gamma[channels], self.beta[channels]
        act: dict[str, Any] = {"activation": self.case.activation, "negative_slope": SLOPE}
        if what == "inference":
            return {"y": reference.normalize(x, *stats[1:], *affine, residual=residual, **act)}
        if what in ("training", "statistics"):
            right, own = reference.batch_norm(x, *affine, residual=residual, **act)
            return {"y": right, "mean": own.mean, "var": own.var}
        if what == "from-y":
            found = reference.batch_norm_backward(dy, None, stats, *affine, y=x, **act)
        else:
            act |= {"training": not what.startswith("frozen"), "residual": residual is not None}
            found = reference.batch_norm_backward(dy, x, stats, *affine, y=y if act["residual"] else None, **act)
        return found._asdict()

    def given_to_activation(self, channels: slice) -> Array:
        """z of some channels, these on axis 1, in float64."""
        b, (_, mean, var) = self.buffers[0], self.stats
        affine = self.gamma[channels], self.beta[channels]
        z: Array = reference.normalize(self.some(b.x, channels), mean[channels], var[channels], *affine)
        return z if b.residual is None else z + self.some(b.residual, channels).astype(np.float64)

    def near_a_kink(self, channels: slice, near: float) -> Array | bool:
        """Where the gradients of some channels may be those of either side."""
        kinks = KINKS.get(self.case.activation or "", ())
        if not kinks or self.case.what in ("training", "inference", "statistics", "from-y"):
            return False
        z = self.given_to_activation(channels)
        return np.any([np.abs(z - kink) < near for kink in kinks], axis=0)

    def some(self, a: Any, channels: slice) -> Any:
        """Some channels of an array, on axis 1."""
        return None if a is None else np.moveaxis(a, self.case.axis, 1)[:, channels]

    def verify(self) -> None:
        """Compare all that a call returns with the reference."""
        with fastbn.num_threads(self.case.threads):
            self.check_own(self.calls[0]())

    def check_own(self, returned: Any) -> None:
        """Compare all that fastbn has returned with the reference; WrongResultError where it is wrong."""
        self.check(self.results(returned), TOLERANCE[self.case.dtype], NEAR)

    def check(self, results: Mapping[str, Array], tolerance: float, near: float) -> None:
        """The same for some results; arrays may be off by `tolerance`, and gradients by what is `near` a kink."""
        size = prod(self.case.shape)
        some = max(1, AT_ONCE * self.case.channels // size)
        for start in range(0, self.case.channels, some):
            channels = slice(start, start + some)
            right, either = self.expected(channels), self.near_a_kink(channels, near)
            for name, got in results.items():
                if name in VECTORS:
                    self.judge(name, self.off_by(name, got[channels], right, channels, either), VECTORS[name])
                    continue
                off = np.abs(self.some(got, channels).astype(np.float64) - right[name])
                off -= LAST_ROUNDING.get(self.case.dtype, 0) * np.abs(right[name])
                off[either] = 0
                self.judge(name, off, tolerance)

    def off_by(self, name: str, got: Array, right: Mapping[str, Array], channels: slice, either: Array | bool) -> Array:
        """How far a vector is off, as VECTORS has it."""
        off = np.abs(got - right[name])
        if name == "mean":
            return off / np.sqrt(right["var"])
        if name == "var":
            return off / right["var"]
        off = off - np.finfo(got.dtype).eps * np.abs(right[name])  # their own last rounding
        if either is not False:
            b, (_, mean, var) = self.buffers[0], self.stats
            terms = np.abs(self.some(b.dy, channels).astype(np.float64)) * either
            if name == "dgamma":
                terms *= np.abs(reference.normalize(self.some(b.x, channels), mean[channels], var[channels]))
            off -= terms.sum(axis=tuple(k for k in range(terms.ndim) if k != 1))
        return off / self.stats.count

    def judge(self, name: str, off: Array, tolerance: float) -> None:
        """WrongResultError where a result is too far off somewhere."""
        if not (off <= tolerance).all():
            most = f"off by {off.max():.2g} where {tolerance:.2g} is granted"
            raise WrongResultError(f"{self.case}: a wrong result, {name} is {most}")

    def moves(self, flat: Buffers) -> list[tuple[Array, Array | None, Array]]:
        """What `move` moves: as many arrays are read and written as in the case (or see `share`)."""
        size = prod(self.case.shape)
        x, dy, out, residual, y, dresidual = (None if m is None else as_moved(m, size) for m in flat)
        assert x is not None
        assert out is not None
        if self.case.what != "backward" or not self.case.residual:
            added = dy if STREAMS[self.case.what][0] == 2 else residual
            return [(x, added, out)]
        assert dy is not None
        assert dresidual is not None
        if self.case.activation is None:
            return [(x, None, out), (dy, None, dresidual)]
        assert y is not None
        return [(x, dy, out), (y, None, dresidual)]

    @property
    def share(self) -> float:
        """Of the floor's bytes, where a case only reads."""
        moved = sum(2 if added is None else 3 for _, added, _ in self.to_move[0])
        return self.case.streams / moved

    def once(self) -> None:
        """One call on the next buffers: all the same when warm, long unused ones when cold."""
        self.turn = (self.turn + 1) % len(self.calls)
        self.calls[self.turn]()

    @property
    def repeat(self) -> int:
        """Calls that are timed together, so that a round is no shorter than the clock can tell."""
        return max(1, int(2e6) // self.case.bytes)

    def floor(self) -> float:
        """Seconds of copies and triads of as many bytes: the faster of ordinary and streaming ones."""
        return self.share * min(self.seconds(partial(self.move, stream)) for stream in (True, False))

    def move(self, stream: bool) -> None:
        """The copies and triads, in the next memory."""
        self.turn = (self.turn + 1) % len(self.buffers)
        for x, added, out in self.to_move[self.turn]:
            move(x, added, out, stream)

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call, in a row of its like: the first does not count, which pays for what another left in the caches.

        Streaming stores have driven its arrays out; ordinary ones leave lines there that must be written to memory
        before others take their places, of arrays of any size.
        """
        work()
        return seconds(work, self.repeat)

    def round(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds of `work` and of the floor."""
        floor = self.floor()
        return self.seconds(work), floor


def fill(a: Array, rng: np.random.Generator) -> None:
    """With random values, which repeat after a million: to draw a gigabyte of them takes longer than to time it."""
    values = rng.standard_normal(min(a.size, 1_000_003), np.float32).astype(a.dtype)
    for start in range(0, a.size, values.size):
        part = a[start : start + values.size]
        part[:] = values[: part.size]


class Timing(NamedTuple):
    """A case, timed: seconds of a call and of the floor, round by round."""

    case: Case
    seconds: Array
    floor: Array

    @property
    def ratio(self) -> float:
        """Time over floor: taken within each round, so that it survives a change of clock speed; then the median."""
        return float(np.median(self.seconds / self.floor))

    @property
    def gb_per_s(self) -> float:
        """At which the bytes that must be moved were moved."""
        return self.case.bytes / float(np.median(self.seconds)) / 1e9

    @property
    def floor_gb_per_s(self) -> float:
        """The same of the floor."""
        return self.case.bytes / float(np.median(self.floor)) / 1e9


def measure(case: Case, rounds: int = 15) -> Timing:
    """Verify a case, then time it and its floor in turn."""
    p = Prepared(case)
    p.verify()
    with fastbn.num_threads(case.threads):
        took, floor = np.array([p.round(p.once) for _ in range(rounds)]).T
    return Timing(case, took, floor)
