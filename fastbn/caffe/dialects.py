"""How forks of Caffe store a batch normalisation, and how that becomes blobs of `BatchNorm` and `Scale`.

What a layer's blobs are, in the order of the file::

    BVLC's BatchNorm      sum of means, sum of variances, weight      statistics are the sums divided by the weight
    NVIDIA's BatchNorm    mean, variance, 1, scale, bias              averages
    yjxiong's BN          scale, bias, mean, variance                 averages; before April 2016 the fourth is invstd
"""

from __future__ import annotations

import numpy as np

from fastbn.caffe.blobs import Blob

BVLC = ("mean", "var", "weight")
NVIDIA = ("mean", "var", "weight", "gamma", "beta")
BN = {"variance": ("gamma", "beta", "mean", "var"), "invstd": ("gamma", "beta", "mean", "invstd")}


def take(roles: tuple[str, ...], arrays: list[np.ndarray], eps: float) -> dict[str, np.ndarray]:
    """Arrays of a file by what they are: mean, var and weight, and where the layer has them gamma and beta."""
    found = dict(zip(roles, arrays, strict=True))
    sizes = {role: array.size for role, array in found.items()}
    channels = sizes["mean"]
    wrong = {role: size for role, size in sizes.items() if size != (1 if role == "weight" else channels)}
    if wrong or channels == 0:
        raise ValueError(f"blobs: expected C values each and one weight, got {sizes}")
    if "invstd" in found:
        found["var"] = _variance(found.pop("invstd"), eps)
    if roles != BVLC:
        found["weight"] = np.ones(1, found["mean"].dtype)  # NVIDIA's third blob is not divided by
    return found


def give(roles: tuple[str, ...], batch_norm: list[Blob], scale: list[Blob], eps: float) -> list[np.ndarray]:
    """The arrays that stand in a file for the blobs of both layers."""
    found = dict(zip(BVLC, (blob.data for blob in batch_norm), strict=True))
    found |= dict(zip(("gamma", "beta"), (blob.data for blob in scale), strict=False))
    if "invstd" in roles:
        with np.errstate(all="ignore"):
            found["invstd"] = 1 / np.sqrt(found["var"] + np.asarray(eps, found["var"].dtype))
    return [found[role].copy() for role in roles]


def _variance(invstd: np.ndarray, eps: float) -> np.ndarray:
    """invstd**-2 - eps, which roundings may put just below 0."""
    if not (invstd > 0).all():
        raise ValueError(f'blobs[3]: expected inverse standard deviations > 0 (bn="invstd"), got {invstd.min():g}')
    with np.errstate(all="ignore"):
        var = invstd.astype(np.float64) ** -2 - eps
    if (var < -1e-6 * eps).any():
        raise ValueError(
            f'blobs[3]: expected inverse standard deviations of at most eps**-0.5 = {eps**-0.5:g} (bn="invstd"), got '
            f"{invstd.max():g}"
        )
    return np.maximum(var, 0)
