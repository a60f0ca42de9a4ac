"""Gradients made smaller before a step: by their norm, or one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cylstm import checks
from cylstm.module import Array, Module
from cylstm.training.optim.optimizer import blocks, modules_of


def clip_grad_norm(
    modules: Module | Iterable[Module],
    max_norm: float,
    *,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale the gradients of all modules together so that their norm is at most `max_norm`.

    The gradients are multiplied by min(1, max_norm / (norm + 1e-6)), as by
    `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013). A norm that is not finite makes them
    0 or NaN: ask for an error, or look at what is returned before the step. Gradients of frozen
    parameters are neither counted nor changed.

    Parameters
    ----------
    modules : Module or iterable of Module
        Whose gradients to scale.
    max_norm : float
        At least 0; infinity only measures.
    error_if_nonfinite : bool, default False
        Whether a norm that is infinite or NaN is an error. Then no gradient has been changed.

    Returns
    -------
    float
        Euclidean norm of all gradients before scaling, computed in float64.

    Raises
    ------
    TypeError
        `modules` are not `Module`, `max_norm` is not a number, or `error_if_nonfinite` is
        neither True nor False.
    ValueError
        `max_norm` is negative or NaN, there are no modules, one comes twice, or, with
        `error_if_nonfinite`, the norm is not finite (torch raises RuntimeError); the message names
        the module and the parameter.
    """
    several = modules_of(modules)
    max_norm = checks.number("max_norm", max_norm, 0, math.inf)
    checks.flag("error_if_nonfinite", error_if_nonfinite)
    grads = _trainable(several)
    with np.errstate(all="ignore"):
        norm = _norm(grads)
        if error_if_nonfinite and not math.isfinite(norm):
            raise ValueError(_not_finite(several, norm))
        scale = max_norm / (norm + 1e-6)
        if not scale >= 1:  # NaN included
            for vector in grads:
                np.multiply(vector, scale, out=vector)
    return norm


def clip_grad_value(modules: Module | Iterable[Module], max_value: float) -> None:
    """Clamp every gradient of all modules to [-max_value, max_value].

    As `torch.nn.utils.clip_grad_value_`. Unlike `clip_grad_norm` it changes the direction of the
    gradient. Infinities become the bound, NaN stays NaN. Gradients of frozen parameters are left
    alone.

    Parameters
    ----------
    modules : Module or iterable of Module
        Whose gradients to clamp.
    max_value : float
        At least 0.

    Raises
    ------
    TypeError
        `modules` are not `Module`, or `max_value` is not a number.
    ValueError
        `max_value` is negative or NaN, there are no modules, or one comes twice.
    """
    several = modules_of(modules)
    max_value = checks.number("max_value", max_value, 0, math.inf)
    with np.errstate(all="ignore"):
        for vector in _trainable(several):
            bound = vector.dtype.type(max_value)  # infinite where it is beyond float32: no bound
            np.clip(vector, -bound, bound, out=vector)


def _trainable(modules: tuple[Module, ...]) -> list[Array]:
    """Return views of the gradients that are not frozen."""
    return [module.flat_grads[part] for module in modules for part in module.trainable_slices()]


def _norm(vectors: list[Array]) -> float:
    total = _sum_of_squares(vectors)
    if 0 < total < math.inf:
        return math.sqrt(total)
    # The squares of float64 over- or underflow where the numbers themselves do not.
    largest = max((float(np.abs(vector).max(initial=0)) for vector in vectors), default=0.0)
    if not 0 < largest < math.inf:
        return total
    return largest * math.sqrt(_sum_of_squares(vectors, largest))


def _sum_of_squares(vectors: list[Array], unit: float | None = None) -> float:
    parts = (vector[block] for vector in vectors for block in blocks(0, vector.size))
    if unit is not None:
        parts = (part / unit for part in parts)
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)


def _not_finite(modules: tuple[Module, ...], norm: float) -> str:
    """Say where the first gradient is that is not finite."""
    for i, module in enumerate(modules):
        for name, grad in module.grads.items():
            wrong = grad[~np.isfinite(grad)]
            if wrong.size and name not in module.frozen:
                return (
                    f"modules[{i}].grads[{name!r}]: expected finite gradients of this "
                    f"{type(module).__name__}, got {wrong[0]}"
                )
    return f"modules: expected gradients with a finite norm, got {norm}"
