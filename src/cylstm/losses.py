"""Losses over padded batches, each with its gradient: the mean over all valid elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cylstm import checks
from cylstm.params import Array


def cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float, Array]:
    """Softmax cross-entropy with class numbers as targets.

    The mean over the valid elements of log(sum_j exp(z_j)) - z_target, in which z are the logits
    less their greatest, so that nothing overflows (`torch.nn.CrossEntropyLoss`, Goodfellow et al.
    2016, "Deep Learning", section 6.2.2.3). The gradient is (softmax(z) - onehot(target)) / n.

    Parameters
    ----------
    logits : array-like of shape (N, C), (T, B, C), or (B, T, C) with `batch_first`
        float32 or float64, C classes.
    targets : array-like of int, of the shape of `logits` without its last axis
        Class numbers from 0 to C - 1.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. Logits and targets beyond are not looked
        at, be they NaN or no class at all.
    batch_first : bool, default False
        Whether the batch is the first axis. Has no effect without `lengths`.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element is valid.
    dlogits : ndarray of the shape and dtype of `logits`
        Gradient of the loss, 0 beyond the lengths.

    Raises
    ------
    TypeError
        `logits` are neither float32 nor float64, or `targets` or `lengths` are not integers.
    ValueError
        Shapes do not fit, or a valid target or a length is out of range.
    """
    logits = _float_array("logits", logits)
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integers, got dtype {targets.dtype}")
    if logits.ndim < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., C) with C > 0, got {logits.shape}")
    checks.shape("targets", targets, logits.shape[:-1])
    valid = _valid_steps("targets", targets.shape, lengths, batch_first)
    classes = logits.shape[-1]
    picked, target = logits[valid], targets[valid].ravel()
    outside = (target < 0) | (target >= classes)
    if outside.any():
        raise ValueError(
            f"targets: expected classes from 0 to {classes - 1}, got {target[outside][0]}"
        )
    dlogits = np.zeros(logits.shape, logits.dtype)
    if target.size == 0:
        return 0.0, dlogits
    with np.errstate(under="ignore"):
        z = picked.reshape(-1, classes)
        z = z - z.max(axis=-1, keepdims=True)
        at_target = np.arange(len(z)), target
        z_target = z[at_target]
        p = np.exp(z, out=z)
        total = p.sum(axis=-1, dtype=np.float64)
        loss = float(np.mean(np.log(total) - z_target))
        p /= total.astype(p.dtype)[:, np.newaxis]
        p[at_target] -= 1
        p /= len(p)
        dlogits[valid] = p.reshape(picked.shape)
    return loss, dlogits


def mse_loss(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float, Array]:
    """Mean squared error.

    The mean over the valid elements of (prediction - target)**2, as `torch.nn.MSELoss`.

    Parameters
    ----------
    prediction : array-like of any shape; with `lengths` (T, B, ...) or (B, T, ...)
        float32 or float64.
    target : array-like of the shape of `prediction`
        Real numbers.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. Values beyond are not looked at.
    batch_first : bool, default False
        Whether the batch is the first axis. Has no effect without `lengths`.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element is valid.
    dprediction : ndarray of the shape and dtype of `prediction`
        Gradient of the loss, 0 beyond the lengths.

    Raises
    ------
    TypeError
        `prediction` is neither float32 nor float64, `target` is not made of real numbers, or
        `lengths` are not integers.
    ValueError
        Shapes do not fit, or a length is out of range.
    """
    prediction = _float_array("prediction", prediction)
    target = np.asarray(target)
    if target.dtype.kind not in "fiu":
        raise TypeError(f"target: expected real numbers, got dtype {target.dtype}")
    checks.shape("target", target, prediction.shape)
    valid = _valid_steps("prediction", prediction.shape, lengths, batch_first)
    difference = prediction[valid] - target[valid]
    dprediction = np.zeros(prediction.shape, prediction.dtype)
    if difference.size == 0:
        return 0.0, dprediction
    loss = float(np.mean(np.square(difference, dtype=np.float64)))
    dprediction[valid] = difference * (2 / difference.size)
    return loss, dprediction


def _valid_steps(
    name: str, shape: tuple[int, ...], lengths: npt.ArrayLike | None, batch_first: bool
) -> Any:
    """Index of the valid steps of an array of the shape: a mask of its first two axes, or all."""
    if lengths is None:
        return ...
    if len(shape) < 2:
        raise ValueError(f"{name}: with lengths, expected at least 2 axes, got shape {shape}")
    rows, steps = shape[:2] if batch_first else shape[1::-1]
    mask = np.arange(steps) < checks.lengths(lengths, rows, steps)[:, np.newaxis]
    return mask if batch_first else mask.T


def _float_array(name: str, value: npt.ArrayLike) -> Array:
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {array.dtype}")
    return array.astype(native, copy=False)
