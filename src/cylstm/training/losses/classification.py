"""Losses of classes: softmax cross-entropy, and independent yes or no."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.module import Array
from cylstm.training.losses.elements import Elements, Steps, numbers

if TYPE_CHECKING:
    import numpy.typing as npt


def cross_entropy(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    ignore_index: int = -100,
    weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Softmax cross-entropy with class indices as targets.

    With p = softmax(logits), the class weights w (1 by default), the target y of an element and the
    label smoothing e, the loss of an element is, as of `torch.nn.functional.cross_entropy`::

        (1 - e) w_y (-log p_y)  +  e / C sum_c w_c (-log p_c)

    (Goodfellow et al. 2016, "Deep Learning", section 6.2.2.3; Szegedy et al. 2016, section 7). The
    mean is their sum over the sum of w_y. The greatest logit of an element is subtracted from its
    logits first, so that nothing overflows.

    Parameters
    ----------
    logits : array-like of shape (N, C), (T, B, C), or (B, T, C) with `batch_first`, or any (..., C)
        float32 or float64, C classes. Or a list with an array of shape (T_i, C) for each sequence.
    targets : array-like of int, of the shape of `logits` without its last axis
        Class indices from 0 to C - 1, or `ignore_index`. With a list as `logits`, a list of arrays
        of shape (T_i,).
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no class at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `targets`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    ignore_index : int, default -100
        Elements with this target do not count. It may be the index of a class.
    weight : array-like of shape (C,), optional
        Weight of each class, at least 0.
    label_smoothing : float, default 0.0
        How much of the target is spread evenly over all classes, 0 to 1.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all elements that count: their mean, weighted if there are weights, or their sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts, and as the mean if the weights of
        all their classes are 0.
    dlogits : ndarray of the shape and dtype of `logits`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `logits` are neither float32 nor float64; `targets`, `lengths` or `ignore_index` are not
        integers; `mask` is neither of booleans nor of integers; `weight` or `label_smoothing` are
        not real numbers; or only one of `logits` and `targets` is a list of sequences.
    ValueError
        Shapes do not fit; a target that counts, a length, a value of `mask`, a weight or
        `label_smoothing` is out of range; `reduction` is neither 'mean' nor 'sum'; or there are
        `lengths` with lists.
    """
    smoothing = checks.number("label_smoothing", label_smoothing, 0, 1)
    weights = None if weight is None else _class_weights(weight)
    elements = Elements(
        ("logits", "targets"),
        logits,
        targets,
        Steps(lengths, mask, batch_first, reduction),
        kinds="iu",
        last=("C", 1 if weights is None else weights.size),
        ignore_index=checks.size("ignore_index", ignore_index, -(2**31)),
    )
    z, classes = elements.prediction, elements.prediction.shape[-1]
    if weights is None:
        weights = np.ones(classes)
    checks.shape("weight", weights, (classes,))
    target = elements.target.copy()
    outside = (target < 0) | (target >= classes)
    if outside.any():
        raise ValueError(
            f"targets: expected class indices from 0 to {classes - 1}, got {target[outside][0]}"
        )
    target = target.astype(np.intp)
    at_target = np.arange(target.size), target
    of_target = weights[target]
    with np.errstate(all="ignore"):
        z = z - z.max(axis=-1, keepdims=True)
        # The loss of an element is the sum of all c_j (log(sum_k exp(z_k)) - z_j).
        c_target, c_every = (1 - smoothing) * of_target, smoothing / classes * weights
        c_sum = c_target + c_every.sum()
        losses = -c_target * z[at_target]
        if smoothing:
            losses -= (c_every * z).sum(axis=-1)
        p = np.exp(z, out=z)
        total = p.sum(axis=-1, dtype=np.float64)
        losses += c_sum * np.log(total)
        p *= (c_sum / total).astype(p.dtype)[:, np.newaxis]
        p[at_target] -= c_target
        if smoothing:
            p -= c_every
        return elements.reduce(losses, p, float(of_target.sum()))


def binary_cross_entropy_with_logits(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    batch_first: bool = False,
    weight: npt.ArrayLike | None = None,
    pos_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
) -> tuple[float, Any]:
    """Cross-entropy of independent yes-or-no answers, each with a logit of its own.

    With s the logistic function, the logit z, the target t, the weight w and the weight of positive
    answers q (both 1 by default), the loss of an element is, as of
    `torch.nn.functional.binary_cross_entropy_with_logits`::

        w (q t (-log s(z))  +  (1 - t) (-log s(-z)))

    in which -log s(z) is computed as max(-z, 0) + log(1 + exp(-abs(z))), which does not overflow.

    Parameters
    ----------
    logits : array-like of any shape; with `lengths` (T, B, ...) or (B, T, ...)
        float32 or float64. Or a list with an array of shape (T_i, ...) for each sequence.
    targets : array-like of the shape of `logits`
        Probabilities from 0 to 1, such as 0 and 1 or booleans. With a list as `logits`, a list.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; all by default. What lies beyond is not looked at, be it
        NaN or no probability at all. Not with lists, which have their lengths.
    mask : array-like of bool, or of integers 0 and 1, optional
        Which elements count (True, 1), laid out as the leading axes of `targets`: any number of
        them, from one to all. What does not count is not looked at. With `lengths`, elements count
        that both leave. With lists, a list of such arrays.
    batch_first : bool, default False
        Whether the batch is the first axis, the steps the second. Matters to `lengths` alone.
    weight : array-like, optional
        Weight of each element, of a shape that broadcasts to that of `logits`; with lists, to that
        of one step, `logits[0].shape[1:]`. A mean is not divided by it.
    pos_weight : array-like, optional
        Weight of positive answers, of such a shape: above 1 it favours recall, below 1 precision.
    reduction : {'mean', 'sum'}, default 'mean'
        Over all elements that count: the sum of their losses over their number, or the sum.

    Returns
    -------
    loss : float
        Accumulated in float64. 0.0 if no element counts.
    dlogits : ndarray of the shape and dtype of `logits`, or a list of them
        Gradient of the loss, 0 where an element does not count.

    Raises
    ------
    TypeError
        `logits` are neither float32 nor float64; `targets` are neither real numbers nor booleans;
        `lengths` are not integers; `mask` is neither of booleans nor of integers; `weight` or
        `pos_weight` are not real numbers; or only one of `logits` and `targets` is a list of
        sequences.
    ValueError
        Shapes do not fit; a target that counts, a length or a value of `mask` is out of range;
        `reduction` is neither 'mean' nor 'sum'; or there are `lengths` with lists.
    """
    elements = Elements(
        ("logits", "targets"),
        logits,
        targets,
        Steps(lengths, mask, batch_first, reduction),
        kinds="fiub",
    )
    w, q = elements.along("weight", weight), elements.along("pos_weight", pos_weight)
    z, t = elements.prediction, elements.target.copy()
    with np.errstate(all="ignore"):
        outside = ~((t >= 0) & (t <= 1))  # NaN included
        if outside.any():
            raise ValueError(f"targets: expected values from 0 to 1, got {t[outside][0]}")
        t = t.astype(np.result_type(z, t))
        e = np.exp(-np.abs(z))
        positive = z >= 0
        s, s_minus = np.where(positive, 1, e) / (1 + e), np.where(positive, e, 1) / (1 + e)
        log_1_e = np.log1p(e)
        yes, no = q * t, 1 - t
        losses = yes * (np.maximum(-z, 0) + log_1_e) + no * (np.maximum(z, 0) + log_1_e)
        slopes = no * s - yes * s_minus
        return elements.reduce(w * losses, w * slopes)


def _class_weights(weight: npt.ArrayLike) -> Array:
    weights = numbers("weight", weight)
    if weights.ndim != 1:
        raise ValueError(f"weight: expected shape (C,), got {weights.shape}")
    wrong = weights[~((weights >= 0) & (weights < np.inf))]
    if wrong.size:
        raise ValueError(f"weight: expected finite numbers of at least 0, got {wrong[0]}")
    return weights
