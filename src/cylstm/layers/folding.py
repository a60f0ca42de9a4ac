"""Networks for inference without `BatchNorm`: its scale and shift in the weights beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from cylstm.layers.container import Container
from cylstm.layers.conv import Conv1d
from cylstm.layers.flow import Flowing
from cylstm.layers.linear import Linear
from cylstm.layers.norm import BatchNorm
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.sequential import Sequential
from cylstm.module import Array


def folded(network: Container) -> Any:
    """Return a copy of a network with as little `BatchNorm` as possible."""
    twin: Any = copy.deepcopy(network)
    counts: dict[int, int] = {}
    for module in twin._all().values():
        counts[id(module)] = counts.get(id(module), 0) + 1
    tied = {id(getattr(module, "tied_to", None)) for module in twin._all().values()}
    fixed = {key for key, count in counts.items() if count > 1} | tied
    return _rebuilt(twin, fixed, {})


def _rebuilt(container: Container, fixed: set[int], made: dict[int, Any]) -> Any:
    """Make a container again of what is left of its modules."""
    if id(container) in made:
        return made[id(container)]
    children: dict[str, Any] = {
        name: _rebuilt(child, fixed, made) if isinstance(child, Container) else child
        for name, child in container._children.items()
    }
    if isinstance(container, Sequential):
        while (step := _step(children, fixed)) is not None:
            children = step
    found = made[id(container)] = type(container)._of(children, {})
    return found


def _step(children: dict[str, Any], fixed: set[int]) -> dict[str, Any] | None:
    """Fold one norm into a module beside it; None if there is no more to fold."""
    for (name, one), (after, other) in pairwise(children.items()):
        if isinstance(other, BatchNorm) and id(one) not in fixed:
            changed = _into_outputs(one, *other.scale_and_shift())
            if changed is not None:
                left = children | {name: changed}
                return {key: child for key, child in left.items() if key != after}
        if isinstance(one, BatchNorm) and id(other) not in fixed:
            changed = _into_inputs(other, *one.scale_and_shift())
            if changed is not None:
                left = children | {after: changed}
                return {key: child for key, child in left.items() if key != name}
    return None


def _into_outputs(module: Flowing, scale: Array, shift: Array) -> Any:
    """Return a module whose outputs are scaled and shifted; None where weights cannot say so."""
    if not isinstance(module, (Linear, Conv1d)) or module.activation is not None:
        return None
    if isinstance(module, Linear) and module.tied_to is not None:
        return None
    weight = module.params["weight"].astype(float)
    by_output = scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = module.params.get("bias", np.zeros(len(weight))) * scale + shift
    return _with(module, {"weight": weight * by_output, "bias": bias})


def _into_inputs(module: Flowing, scale: Array, shift: Array) -> Any:
    """Return a module that scales and shifts its inputs; None where weights cannot say so."""
    if isinstance(module, Recurrent):
        return _into_recurrent(module, scale, shift)
    if isinstance(module, Conv1d) and module._before + module._after:
        return None  # the zeros around would have to be others
    if not isinstance(module, (Linear, Conv1d)):
        return None
    if isinstance(module, Linear) and module.tied_to is not None:
        return None
    weight = module.params["weight"].astype(float)
    by_input = scale.reshape(-1, *[1] * (weight.ndim - 2))
    more = np.tensordot(weight, shift, axes=(1, 0)).reshape(len(weight), -1).sum(axis=1)
    bias = module.params.get("bias", np.zeros(len(weight))) + more
    return _with(module, {"weight": weight * by_input, "bias": bias})


def _into_recurrent(module: Recurrent, scale: Array, shift: Array) -> Any:
    """Change what the first layer makes of x; None where a norm or no bias comes between."""
    if getattr(module, "layer_norm", None) or not module.bias:
        return None
    changes: dict[str, Array] = {}
    for direction in module._directions():
        weight = module.params[f"weight_ih_l0{direction}"].astype(float)
        changes[f"weight_ih_l0{direction}"] = weight * scale
        name = f"bias_ih_l0{direction}"
        changes[name] = module.params[name] + weight @ shift
    module.assign(changes)
    return module


def _with(module: Linear | Conv1d, values: Mapping[str, Array]) -> Any:
    """Make a module of the same kind that has a bias."""
    made = type(module).from_config({**module.config, "bias": True}, rng=0)
    made.assign(values)
    return made
