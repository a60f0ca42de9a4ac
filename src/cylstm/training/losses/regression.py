"""Losses of real numbers: mean squared, mean absolute, Huber's and quantile loss."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.module import Array
from cylstm.training.losses.elements import Elements, Steps, numbers

if TYPE_CHECKING:
    import numpy.typing as npt


def mse_loss(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Mean squared error.

    With d = prediction - target, the loss of an element is d^2, as of
    `torch.nn.functional.mse_loss`.

    Parameters
    ----------
    prediction : array-like of any shape; with `lengths` (T, B, ...) or (B, T, ...)
        float32 or float64. Or a list with an array of shape (T_i, ...) for each sequence.
    target : array-like of the shape of `prediction`
        Real numbers. With a list as `prediction`, a list.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no number at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `target`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all elements that count: the mean of their losses or the sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts.
    dprediction : ndarray of the shape and dtype of `prediction`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `prediction` is neither float32 nor float64; `target` is not of real numbers;
        `lengths` are not integers; `mask` is neither of booleans nor of integers; or only one of
        `prediction` and `target` is a list of sequences.
    ValueError
        Shapes do not fit; a length or a value of `mask` is out of range; `reduction` is
        neither 'mean' nor 'sum'; or there are `lengths` with lists.
    """
    elements = Elements(
        ("prediction", "target"),
        prediction,
        target,
        Steps(lengths, mask, batch_first, reduction),
    )
    with np.errstate(all="ignore"):
        d = elements.prediction - elements.target
        return elements.reduce(np.square(d, dtype=np.float64), np.multiply(d, 2, out=d))


def l1_loss(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Mean absolute error.

    With d = prediction - target, the loss of an element is abs(d), as of
    `torch.nn.functional.l1_loss`. Its derivative at d = 0 is taken to be 0.

    Parameters
    ----------
    prediction : array-like of any shape; with `lengths` (T, B, ...) or (B, T, ...)
        float32 or float64. Or a list with an array of shape (T_i, ...) for each sequence.
    target : array-like of the shape of `prediction`
        Real numbers. With a list as `prediction`, a list.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no number at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `target`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all elements that count: the mean of their losses or the sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts.
    dprediction : ndarray of the shape and dtype of `prediction`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `prediction` is neither float32 nor float64; `target` is not of real numbers;
        `lengths` are not integers; `mask` is neither of booleans nor of integers; or only one of
        `prediction` and `target` is a list of sequences.
    ValueError
        Shapes do not fit; a length or a value of `mask` is out of range; `reduction` is
        neither 'mean' nor 'sum'; or there are `lengths` with lists.
    """
    elements = Elements(
        ("prediction", "target"),
        prediction,
        target,
        Steps(lengths, mask, batch_first, reduction),
    )
    with np.errstate(all="ignore"):
        d = elements.prediction - elements.target
        return elements.reduce(np.abs(d), np.sign(d))


def huber_loss(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    delta: float = 1.0,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Huber's loss: squares near the target, absolute values far from it.

    With d = prediction - target, the loss of an element is, as of
    `torch.nn.functional.huber_loss` (Huber 1964)::

        d^2 / 2                         where abs(d) <= delta
        delta (abs(d) - delta / 2)      elsewhere

    Parameters
    ----------
    prediction : array-like of any shape; with `lengths` (T, B, ...) or (B, T, ...)
        float32 or float64. Or a list with an array of shape (T_i, ...) for each sequence.
    target : array-like of the shape of `prediction`
        Real numbers. With a list as `prediction`, a list.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no number at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `target`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    delta : float, default 1.0
        Where the one becomes the other; above 0, in the unit of the target.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all elements that count: the mean of their losses or the sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts.
    dprediction : ndarray of the shape and dtype of `prediction`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `prediction` is neither float32 nor float64; `target` or `delta` is not of real numbers;
        `lengths` are not integers; `mask` is neither of booleans nor of integers; or only one of
        `prediction` and `target` is a list of sequences.
    ValueError
        Shapes do not fit; a length, `delta` or a value of `mask` is out of range; `reduction` is
        neither 'mean' nor 'sum'; or there are `lengths` with lists.
    """
    delta = checks.number("delta", delta, 0, sys.float_info.max)
    if delta == 0:
        raise ValueError(f"delta: expected a number above 0, got {delta!r}")
    elements = Elements(
        ("prediction", "target"),
        prediction,
        target,
        Steps(lengths, mask, batch_first, reduction),
    )
    with np.errstate(all="ignore"):
        d = elements.prediction - elements.target
        near = np.clip(d, -delta, delta)
        return elements.reduce(near * np.subtract(d, near / 2, dtype=np.float64), near)


def quantile_loss(
    prediction: npt.ArrayLike,
    target: npt.ArrayLike,
    quantiles: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Quantile loss, also called pinball loss: least where the predictions are the quantiles.

    With d = target - prediction, the loss of the prediction of the quantile q is (Koenker & Bassett
    1978)::

        q d             where d >= 0
        (q - 1) d       elsewhere

    Its derivative at d = 0 is taken to be 0. Half the absolute error is the case q = 0.5.

    Parameters
    ----------
    prediction : array-like of shape (..., Q); with `lengths` (T, B, ..., Q) or (B, T, ..., Q)
        float32 or float64: the predicted quantiles, side by side. Or a list with an array of shape
        (T_i, ..., Q) for each sequence.
    target : array-like of the shape of `prediction` without its last axis
        Real numbers. With a list as `prediction`, a list.
    quantiles : array-like of shape (Q,)
        Which quantiles are predicted, each above 0 and below 1, in any order.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no number at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `target`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all quantiles of all elements that count: the mean of their losses or the sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts.
    dprediction : ndarray of the shape and dtype of `prediction`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `prediction` is neither float32 nor float64; `target` or `quantiles` is not of real numbers;
        `lengths` are not integers; `mask` is neither of booleans nor of integers; or only one of
        `prediction` and `target` is a list of sequences.
    ValueError
        Shapes do not fit; a length, a quantile or a value of `mask` is out of range; `reduction` is
        neither 'mean' nor 'sum'; or there are `lengths` with lists.
    """
    q = _quantiles(quantiles)
    elements = Elements(
        ("prediction", "target"),
        prediction,
        target,
        Steps(lengths, mask, batch_first, reduction),
        last=("Q", q.size),
    )
    if elements.prediction.shape[-1] != q.size:
        raise ValueError(
            f"prediction: expected shape (..., {q.size}), a value for each of the quantiles, "
            f"got (..., {elements.prediction.shape[-1]})"
        )
    with np.errstate(all="ignore"):
        d = elements.target[:, np.newaxis] - elements.prediction
        slopes = np.where(d > 0, -q, 1 - q) * np.abs(np.sign(d))
        return elements.reduce(-slopes * d, slopes)


def _quantiles(quantiles: npt.ArrayLike) -> Array:
    q = numbers("quantiles", quantiles)
    if q.ndim != 1 or q.size == 0:
        raise ValueError(f"quantiles: expected shape (Q,) with Q > 0, got {q.shape}")
    wrong = q[~((q > 0) & (q < 1))]
    if wrong.size:
        raise ValueError(f"quantiles: expected numbers above 0 and below 1, got {wrong[0]}")
    return q
