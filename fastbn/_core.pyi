"""Types of the compiled front door, for the rest of the package."""

from typing import Any

import numpy as np

from fastbn.statistics import BatchStats

def set_threads(chosen: int, most: int) -> None: ...
def forget_result() -> None: ...
def set_streams_slowly(slowly: bool) -> bool: ...
def get_threads() -> int: ...
def chosen_threads() -> int: ...
def bound_processors() -> int: ...
def pause_threads() -> None: ...
def openmp() -> int: ...
def build() -> str: ...
def batch_stats(x: Any, axis: Any) -> BatchStats: ...
def batch_norm(
    x: Any, gamma: Any, beta: Any, eps: Any, axis: Any, activation: Any, negative_slope: Any, residual: Any, out: Any
) -> tuple[np.ndarray, BatchStats]: ...
def normalize(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any,
    beta: Any,
    eps: Any,
    axis: Any,
    activation: Any,
    negative_slope: Any,
    residual: Any,
    out: Any,
) -> np.ndarray: ...
def backward(
    dy: Any,
    x: Any,
    stats: Any,
    sums: Any,
    gamma: Any,
    beta: Any,
    eps: Any,
    axis: Any,
    activation: Any,
    negative_slope: Any,
    residual: Any,
    y: Any,
    training: bool,
    need_dx: bool,
    need_params: bool,
    out: Any,
    whole: bool,
) -> Any: ...  # Gradients; of sums alone GradientSums
def move_running(
    to: tuple[np.ndarray, np.ndarray, np.ndarray],
    stats: BatchStats,
    weight: float | None,
    batches: int | None,
    finite_only: bool,
) -> list[int] | None: ...
def same_memory(out: Any, x: Any) -> bool: ...
def copies(
    a: np.ndarray | None, b: np.ndarray | None, c: np.ndarray | None, d: np.ndarray | None
) -> np.ndarray | None: ...
def put(to: np.ndarray, values: np.ndarray) -> None: ...
def check_writeable(name: str, a: np.ndarray | None) -> None: ...
def check_target(name: str, a: np.ndarray | None, channels: int) -> None: ...
def check_running(to: tuple[np.ndarray, np.ndarray, np.ndarray], channels: int, momentum: Any) -> bool: ...
def fits(x: Any, axis: int, channels: int, ranks: tuple[int, ...] | None, several: bool) -> bool: ...
def floor(x: np.ndarray, w: np.ndarray | None, y: np.ndarray, stream: bool) -> None: ...
