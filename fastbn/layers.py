"""Layers: parameters, running statistics, train and eval, state. All else they leave to `_core`, as functions do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastbn import _core, _explain, functional
from fastbn._cpu import DefaultMode
from fastbn._integers import as_integer
from fastbn.statistics import BatchStats

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]

# attribute -> key in state_dict: PyTorch's names
STATE = {
    "_gamma": "weight",
    "_beta": "bias",
    "_running_mean": "running_mean",
    "_running_var": "running_var",
    "_num_batches_tracked": "num_batches_tracked",
}


# What a forward keeps for backward (a plain tuple: every call makes one):
_Saved: TypeAlias = tuple[
    Any,  # x; None: it was overwritten
    Any,  # y, where backward reads it
    Any,  # BatchStats of x
    Any,  # copies of gamma and beta (if any), of the mean and var that did not come from x
    bool,  # whether the statistics came from x
    bool,  # whether there was a residual
    tuple[float, int, str | None, float],  # eps, axis, activation, negative_slope
]


def _array(attribute: str, what: str) -> Any:
    """A property for an array that stays the same object for life: assignment copies into it."""

    def get(layer: BatchNorm) -> np.ndarray | None:
        return getattr(layer, attribute)

    def put(layer: BatchNorm, value: ArrayLike) -> None:
        array = getattr(layer, attribute)
        if array is None:
            raise AttributeError(f"{attribute[1:]}: this layer has none, so nothing can be assigned to it")
        if array is not value:
            name = attribute[1:]
            given = _explain.as_any_array(name, value)
            if given.ndim == 0:  # one number for all channels
                given = np.broadcast_to(given, array.shape)
            new = _checked_state(name, given, array)
            _core.check_writeable(name, array)
            array[...] = new

    return property(get, put, doc=what)


def _checked_features(num_features: Any) -> int:
    features = as_integer("num_features", num_features)
    if features < 1:
        raise ValueError(f"num_features: expected at least 1, got {num_features}")
    if features > np.iinfo(np.intp).max // 8:
        raise ValueError(f"num_features: expected a number of values that memory can hold, got {num_features}")
    return features


def _checked_axis(axis: Any) -> int:
    """Of an x that is not known yet."""
    axis = as_integer("axis", axis)
    if not -64 <= axis < 64:
        raise ValueError(f"axis: expected one that an array can have, -64 to 63, got {axis}")
    return axis


def _checked_eps(eps: Any) -> float:
    eps = _explain.as_number("eps", eps)
    if eps <= 0:
        raise ValueError(f"eps: expected a number > 0, got {eps}")
    return eps


def _checked_momentum(momentum: Any) -> float | None:
    if momentum is None:
        return None
    momentum = _explain.as_number("momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected 0 to 1 or None, got {momentum}")
    return momentum


def _checked_use(use_global_stats: Any) -> bool | None:
    if use_global_stats is None:
        return None
    if not isinstance(use_global_stats, (bool, np.bool_)):
        raise TypeError(f"use_global_stats: expected None, True or False, got {type(use_global_stats).__name__}")
    return bool(use_global_stats)


class BatchNorm:
    """Batch normalisation of arrays with two or more dimensions, with running statistics.

    In training (`train`, the state after construction) a batch is normalised with its own statistics, which also move
    the running ones; in evaluation (`eval`) with the running ones::

        y = (x - mean)/sqrt(var + eps)*gamma + beta
        running = (1 - momentum)*running + momentum*batch

    The batch's biased variance normalises, its unbiased one (n/(n - 1)) goes into `running_var`, as in PyTorch.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float
        Added to the variance, > 0.
    momentum : float or None
        Weight of the *new* value, 0 to 1. (Keras, TensorFlow and Caffe give that of the old one: take 1 minus theirs.)
        None: the plain average of all batches seen. (A batch that a channel's statistics leave out, see the warning of
        a call, counts for it as one that changed nothing.)
    affine : bool
        Whether the layer has gamma and beta. (As in PyTorch, to set it later changes nothing.)
    track_running_stats : bool
        Without, the layer has no running statistics, and evaluation uses batch statistics too. (Set to False later,
        they stay as they are; evaluation uses them.)
    axis : int
        Where the channels of x are: 1 in (N, C, ...), -1 in channels-last (N, ..., C), or any other.
    dtype : float32 or float64
        Of parameters and running statistics; x may be of any type.
    activation : {None, "relu", "relu6", "leaky_relu"}
        Applied to y, as in `batch_norm`, in the same pass.
    negative_slope : float
        Of "leaky_relu", >= 0.
    use_global_stats : bool or None
        True: always running statistics, which then never move, while gamma and beta still learn (a frozen backbone).
        False: always batch statistics. None: batch statistics in training, running ones in evaluation.

    Attributes
    ----------
    gamma, beta : ndarray, shape (C,), or None
        Parameters. These and the arrays below stay the same objects for life; assignment copies into them.
    dgamma, dbeta : ndarray, shape (C,), or None
        Gradients, overwritten by each `backward`.
    running_mean, running_var : ndarray, shape (C,), or None
    num_batches_tracked : ndarray of int64, shape (), or None
    training : bool

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came. Assignments to the arrays above and to options raise the
        same (momentum and activation in the next call), before anything is written.

    Notes
    -----
    What `backward` needs is kept as it is, not copied: x (y, after a forward with ``out=x``), and behind a residual
    with an activation y as well. If something else is written there before `backward`, its gradients are wrong. Every
    forward, in evaluation too, replaces what the one before has kept: a layer belongs to one thread at a time. (The
    functions may be called from any number of threads.)

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> bn = fastbn.BatchNorm(2)
    >>> y = bn(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> bn.running_mean
    array([0.2, 2. ], dtype=float32)
    >>> dx = bn.backward(np.ones((2, 2)))
    >>> bn.dbeta
    array([2., 2.], dtype=float32)
    """

    ranks: tuple[int, ...] | None = None  # None: any from 2 on

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        activation: str | None = None,
        negative_slope: float = 0.01,
        use_global_stats: bool | None = None,
    ) -> None:
        if activation is not None:
            _explain.check_activation(activation)
        self.num_features = num_features
        self.eps = eps
        self.momentum = _checked_momentum(momentum)
        self.affine = _explain.as_flag("affine", affine)
        self.track_running_stats = track_running_stats
        self.axis = axis
        self._dtype = _explain.as_dtype(dtype)
        self.activation = activation
        self.negative_slope = negative_slope
        self.use_global_stats = use_global_stats
        _check_tracked(self.use_global_stats, self.track_running_stats)
        self.training = True

        def vector(make: Callable[..., np.ndarray], wanted: bool) -> np.ndarray | None:
            return make(self.num_features, self.dtype) if wanted else None

        self._gamma, self._beta = vector(np.ones, self.affine), vector(np.zeros, self.affine)
        self._dgamma, self._dbeta = vector(np.zeros, self.affine), vector(np.zeros, self.affine)
        self._running_mean = vector(np.zeros, self.track_running_stats)
        self._running_var = vector(np.ones, self.track_running_stats)
        self._num_batches_tracked = np.zeros((), np.int64) if self.track_running_stats else None
        self._saved: _Saved | None = None

    _num_features: int
    _eps: float
    _axis: int
    _negative_slope: float
    _track_running_stats: bool
    _use_global_stats: bool | None
    _training: bool

    dtype = property(attrgetter("_dtype"), doc="That of parameters and running statistics.")
    num_features: int = _explain.option("_num_features", _checked_features, "C, the number of channels.")
    eps: float = _explain.option("_eps", _checked_eps, "Added to the variance, > 0.")
    axis: int = _explain.option("_axis", _checked_axis, "Where the channels of x are.")
    negative_slope: float = _explain.option("_negative_slope", _explain.as_slope, 'Of "leaky_relu", >= 0.')
    track_running_stats: bool = _explain.option(
        "_track_running_stats", partial(_explain.as_flag, "track_running_stats"), "Whether running statistics are used."
    )
    use_global_stats: bool | None = _explain.option(
        "_use_global_stats", _checked_use, "Whether running statistics are always used, or never."
    )
    training: bool = _explain.option(
        "_training", partial(_explain.as_flag, "training"), "What `train` and `eval` switch."
    )

    gamma = _array("_gamma", "Scale, shape (C,).")
    beta = _array("_beta", "Shift, shape (C,).")
    dgamma = _array("_dgamma", "Gradient of gamma, from the last backward.")
    dbeta = _array("_dbeta", "Gradient of beta, from the last backward.")
    running_mean = _array("_running_mean", "Running mean, shape (C,).")
    running_var = _array("_running_var", "Running (unbiased) variance, shape (C,).")
    num_batches_tracked = _array("_num_batches_tracked", "Training batches since the last reset.")

    # ---- forward and backward

    def __call__(self, x: ArrayLike, residual: ArrayLike | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Normalise x; in training, move the running statistics.

        Parameters
        ----------
        x : array_like, shape (N, C, ...), float32, float64, float16 or bfloat16 (of ml_dtypes)
        residual : array_like, optional
            Added before the activation: the shape and dtype of x. `backward` then returns its gradient, too.
        out : ndarray, optional
            As in `batch_norm`; no array of the layer. With x itself, `backward` works from y alone, and the memory of
            one activation is saved: without an activation or with leaky_relu with a slope > 0, without a residual, and
            where no gamma is 0.

        Returns
        -------
        y : ndarray, shape and dtype of x

        Raises
        ------
        TypeError, ValueError
            As in `batch_norm`; ValueError also for another number of channels or rank, and in training for one value
            per channel, whose running variance is undefined, for an x that backward would need overwritten, and for
            running statistics that cannot be written. Neither layer nor x has changed then.

        Warns
        -----
        RuntimeWarning
            Where running statistics of some channels would not be finite: they stay as they were. (Turned into an
            error, it is raised after `out` was written; nothing else has changed. `backward` still belongs to the
            forward before, unless what that one has kept stood in `out`.)
        """
        training, given = self._training, self._use_global_stats
        mean, var = self._running_mean, self._running_var
        from_batch = training or mean is None if given is None else not given
        if mean is None and not from_batch:
            _check_tracked(given, tracked=False)
        if not _core.fits(x, self._axis, self._num_features, self.ranks, from_batch and training):
            x = self._checked_input(x, from_batch)
        moves = from_batch and training and self._track_running_stats and mean is not None
        to: Any
        if moves:
            momentum, to = self.momentum, (mean, var, self._num_batches_tracked)
            if not _core.check_running(to, self._num_features, momentum):
                momentum = _checked_momentum(momentum)
        in_place = out is not None and _core.same_memory(out, x)
        if out is not None and (type(out) is not np.ndarray or out.nbytes <= 8 * self._num_features):
            self._check_apart(out)
        if out is not None and in_place and training:
            _explain.check_can_undo(
                self.activation, self._negative_slope, self._gamma, residual is not None, out.dtype, "out"
            )
        gamma, beta = self._gamma, self._beta
        eps, axis, activation, slope = self._eps, self._axis, self.activation, self._negative_slope
        stats: Any = None
        if from_batch and not training and np.size(x) == 0:
            stats = _core.batch_stats(x, axis)
            y = _core.normalize(x, stats[1], stats[2], gamma, beta, eps, axis, activation, slope, residual, out)
        elif from_batch:
            y, stats = _core.batch_norm(x, gamma, beta, eps, axis, activation, slope, residual, out)
        else:
            try:
                y = _core.normalize(x, mean, var, gamma, beta, eps, axis, activation, slope, residual, out)
            except ValueError:
                _explain.check_variance("running_var", var)  # type: ignore[arg-type]
                raise
        vectors = _core.copies(gamma, beta, None if from_batch else mean, None if from_batch else var)
        if moves:
            odd = _core.move_running(to, stats, momentum, None, False)
            if odd is not None:
                self._forget_what_is_lost(out)  # a warning may be an error
                self._move_the_others(odd, to, stats, momentum, None)
        reads_y = in_place or (residual is not None and activation is not None)
        self._saved = (
            None if in_place else x, y if reads_y else None, stats, vectors, from_batch, residual is not None,
            (eps, axis, activation, slope),
        )  # fmt: skip
        return y

    def backward(
        self, dy: ArrayLike, out: np.ndarray | tuple[np.ndarray | None, np.ndarray | None] | None = None
    ) -> Any:
        """Gradient of the last forward's x; writes `dgamma` and `dbeta`.

        Parameters
        ----------
        dy : array_like
            Gradient of y: the shape and dtype of the last x.
        out : ndarray, optional
            Takes dx, as in `batch_norm_backward`; may be dy, but no array of the layer. After a forward with a
            residual a pair.

        Returns
        -------
        dx : ndarray, shape and dtype of x
            After a forward with a residual a pair, dx and the gradient of the residual.

        Raises
        ------
        RuntimeError
            There was no forward, it wrote over an x that cannot be had from y, or the last backward wrote its result
            over the x or y of that forward.
        TypeError, ValueError
            As in `batch_norm_backward`.
        """
        saved = self._saved
        if saved is None:
            raise RuntimeError("backward: expected a forward before it, there was none (or its x or y was overwritten)")
        dgamma, dbeta = self._dgamma, self._dbeta
        _core.check_target("dgamma", dgamma, self._num_features)
        _core.check_target("dbeta", dbeta, self._num_features)
        if out is not None and (type(out) is not np.ndarray or out.nbytes <= 8 * self._num_features):
            self._check_apart(out)
        x, y, stats, vectors, from_batch, residual, (eps, axis, activation, slope) = saved
        affine = dgamma is not None
        gamma, beta = (vectors[0], vectors[1]) if affine else (None, None)
        if not from_batch:
            stats = vectors[-2], vectors[-1]
        if x is None:
            _check_can_undo(activation, slope, gamma, residual, y.dtype)
        dx, new_dgamma, new_dbeta, dresidual = _core.backward(
            dy, x, stats, None, gamma, beta, eps, axis, activation, slope, residual, y, from_batch, True, affine, out,
            True,
        )  # fmt: skip
        if out is not None and _wrote_over(out, x, y):
            self._saved = None
        if dgamma is not None:
            _core.put(dgamma, new_dgamma)
            _core.put(dbeta, new_dbeta)  # type: ignore[arg-type]
        return (dx, dresidual) if residual else dx

    def _check_apart(self, out: Any) -> None:
        """That a result does not stand in an array of the layer: arrays of their own, of at most 8 bytes a channel."""
        for result in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(result, np.ndarray) and result.nbytes <= 8 * self._num_features:
                for name in ("gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var", "num_batches_tracked"):
                    array = getattr(self, name)
                    if array is not None:
                        _explain.check_overlap(result, name, array, False)

    def _forget_what_is_lost(self, out: np.ndarray | None) -> None:
        """The last forward, where `out` was written over what it has kept."""
        kept = self._saved[:2] if self._saved is not None and out is not None else ()
        if any(array is not None and np.may_share_memory(out, array) for array in kept):
            self._saved = None

    def _check_rank(self, x: np.ndarray) -> None:
        """That x is an input of this layer, as far as its dimensions tell."""
        if self.ranks is not None and x.ndim not in self.ranks:
            ranks = " or ".join(map(str, self.ranks))
            raise ValueError(f"x: {type(self).__name__} expected {ranks} dimensions, got shape {x.shape}")

    def _checked_input(self, x: ArrayLike, from_batch: bool) -> np.ndarray:
        if type(x) is not np.ndarray:
            x = _explain.as_array("x", x)
        self._check_rank(x)
        try:
            channels = x.shape[self.axis] if x.ndim >= 2 else None
        except IndexError:
            channels = None
        if channels is None:
            _explain.wrong_axis(x, self.axis)
        if channels != self.num_features:
            raise ValueError(f"x: expected {self.num_features} channels on axis {self.axis}, got shape {x.shape}")
        if from_batch and self.training and x.size == self.num_features:
            raise ValueError(f"x: expected more than one value per channel in training, got shape {x.shape}")
        return x

    # ---- running statistics

    def _move_the_others(
        self, odd: list[int], to: Any, stats: BatchStats, weight: float | None, batches: int | None
    ) -> None:
        """Warn of channels whose running statistics would not be finite: they stay. Move the others."""
        channels = ", ".join(map(str, odd[:10])) + (", ..." if len(odd) > 10 else "")
        warnings.warn(
            f"running statistics stay as they were in channels with values that are not finite in {self.dtype}: "
            f"{channels}",
            RuntimeWarning,
            stacklevel=3,
        )
        _core.move_running(to, stats, weight, batches, True)

    def _check_writeable(self, *attributes: str) -> None:
        """Before the first byte: a layer read from a read-only buffer must not change by half."""
        for attribute in attributes:
            _core.check_writeable(attribute[1:], getattr(self, attribute))

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the number of batches to 0.

        Raises
        ------
        ValueError
            One of the arrays is read-only. Nothing has changed then.
        """
        if self._running_mean is not None:
            self._check_writeable("_running_mean", "_running_var", "_num_batches_tracked")
            self.running_mean, self.running_var, self.num_batches_tracked = 0, 1, 0

    def recalibrate(self, batches: Iterable[ArrayLike | BatchStats], method: str = "pooled") -> None:
        """Replace the running statistics by those of a population of this layer's inputs.

        Parameters
        ----------
        batches : iterable of array_like or BatchStats
            Inputs of this layer, with weights fixed (Algorithm 2 of the paper; "precise" batch normalisation).
        method : {"pooled", "paper"}
            As in `population_stats`; its `unbiased_var` becomes the running variance, and the number of batches
            `num_batches_tracked`.

        Raises
        ------
        TypeError, ValueError
            As in `population_stats`; ValueError also where there are no running statistics or they cannot be written,
            too few values, or another number of channels. Nothing has changed then.

        Warns
        -----
        RuntimeWarning
            Where statistics of some channels would not be finite: they stay as they were.
        """
        if self._running_mean is None:
            raise ValueError("batches: this layer has no running statistics (track_running_stats=False)")
        _explain.check_method(method)
        stats = functional.stats_of_batches(batches, self.axis, self._check_rank)
        if stats[0].mean.size != self.num_features:
            raise ValueError(f"batches: expected {self.num_features} channels, got {stats[0].mean.size}")
        population = functional.population_stats(stats, method=method)
        if population.count < 2:
            raise ValueError(f"batches: expected 2 or more values per channel, got {population.count}")
        to: Any = self._running_mean, self._running_var, self._num_batches_tracked
        odd = _core.move_running(to, population, 1.0, len(stats), False)
        if odd is not None:
            self._move_the_others(odd, to, population, 1.0, len(stats))

    # ---- modes, parameters, state

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or with False to evaluation; returns the layer.

        Parameters
        ----------
        mode : bool
            0 and 1 will do.

        Returns
        -------
        layer : BatchNorm
            This one.

        Raises
        ------
        TypeError, ValueError
            mode is no bool.
        """
        self.training = _explain.as_flag("mode", mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation. Returns the layer."""
        return self.train(False)

    def parameters(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(name, value, gradient) of gamma and beta: always the same arrays, for an optimiser to hold on to."""
        if self.gamma is None:
            return []
        return [("gamma", self.gamma, self.dgamma), ("beta", self.beta, self.dbeta)]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics under PyTorch's names: weight, bias, running_mean, ..."""
        arrays = {key: getattr(self, attribute) for attribute, key in STATE.items()}
        return {key: array.copy() for key, array in arrays.items() if array is not None}

    def load_state_dict(self, d: Mapping[str, ArrayLike]) -> None:
        """Copy a state in. All of it is checked first; num_batches_tracked may be missing, and is 0 then.

        Parameters
        ----------
        d : mapping
            As `state_dict` gives it, or PyTorch's of a layer like this one.

        Raises
        ------
        KeyError
            A key is missing or unknown.
        TypeError, ValueError
            d is no mapping; a value has another type or shape, does not fit into the layer's dtype, or is a negative
            variance; an array of the layer is read-only. Nothing has changed then.
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"d: expected a mapping, got {type(d).__name__}")
        own = {key: getattr(self, a) for a, key in STATE.items() if getattr(self, a) is not None}
        missing = own.keys() - d.keys() - {"num_batches_tracked"}
        unknown = sorted(d.keys() - own.keys(), key=str)
        if missing or unknown:
            raise KeyError(f"d: expected the keys {sorted(own)}; missing {sorted(missing)}, unknown {unknown}")
        new = {key: _checked_state(key, d.get(key, 0), array) for key, array in own.items()}
        self._check_writeable(*STATE)
        for key, array in own.items():
            array[...] = new[key]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what the last forward kept."""
        return {**self.__dict__, "_saved": None}

    def __repr__(self) -> str:
        defaults = {
            "affine": True,
            "track_running_stats": True,
            "axis": 1,
            "dtype": np.dtype(np.float32),
            "activation": None,
            "negative_slope": 0.01,
            "use_global_stats": None,
        }
        parts = [str(self.num_features), f"eps={self.eps}", f"momentum={self.momentum}"]
        parts += [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return f"{type(self).__name__}({', '.join(parts)})"


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for (N, C) and (N, C, L).

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.BatchNorm1d(3)(np.arange(12.0).reshape(4, 3)).std(axis=0).round(3)
    array([1., 1., 1.])
    """

    ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for (N, C, H, W).

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.BatchNorm2d(3, activation="relu")(np.ones((2, 3, 4, 4), np.float32)).shape
    (2, 3, 4, 4)
    """

    ranks = (4,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm` for (N, C, D, H, W).

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> fastbn.BatchNorm3d(2).eval()(np.ones((1, 2, 1, 1, 2))).round(3).ravel()
    array([1., 1., 1., 1.])
    """

    ranks = (5,)


def _check_can_undo(
    activation: str | None, slope: float, gamma: np.ndarray | None, residual: bool, dtype: np.dtype
) -> None:
    """In evaluation x may be overwritten whatever the options are; then only some have a backward."""
    try:
        _explain.check_can_undo(activation, slope, gamma, residual, dtype)
    except ValueError as error:
        raise RuntimeError(f"backward: the last forward wrote its result over x (out=x); {error}") from None


def _wrote_over(out: Any, *kept: Any) -> bool:
    """Whether a result, or one of a pair, took the place of an array that a forward had kept."""
    results = out if isinstance(out, (tuple, list)) else (out,)
    return any(array is not None and _core.same_memory(result, array) for result in results for array in kept)


def _check_tracked(use_global_stats: bool | None, tracked: bool) -> None:
    if use_global_stats and not tracked:
        raise ValueError("use_global_stats: True needs running statistics (track_running_stats=True), there are none")


def _checked_state(key: str, value: ArrayLike, like: np.ndarray) -> np.ndarray:
    """A value for one of a layer's arrays, ready to be copied into it."""
    given = _explain.as_any_array(key, value)
    if given.shape != like.shape:
        raise ValueError(f"{key}: expected shape {like.shape}, got {given.shape}")
    if not np.can_cast(given.dtype, like.dtype, "same_kind"):
        raise TypeError(f"{key}: expected {like.dtype}, got {given.dtype}")
    with np.errstate(all="ignore"), DefaultMode():
        new = given.astype(like.dtype)
        fits = like.dtype.kind == "f" or np.array_equal(new < 0, given < 0)
    lost, wanted = (np.isfinite(new) != np.isfinite(given)) | (not fits), "values"
    if key.startswith("running"):
        lost, wanted = lost | ~np.isfinite(new), "finite values"
    if lost.any():
        raise ValueError(f"{key}: expected {wanted} in the range of {like.dtype}, got {given[lost].flat[0]}")
    if key in ("running_var", "num_batches_tracked") and (new < 0).any():
        raise ValueError(f"{key}: expected values >= 0, got {new.min()}")
    return new
