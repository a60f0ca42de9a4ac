"""States of all layers: one array of each for the caller, one tuple per layer inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.params import Array

if TYPE_CHECKING:
    from cylstm.batches import Batch
    from cylstm.recurrent import Recurrent

State = Any  # an array, or for LSTM a tuple (h, c) of arrays
Parts = tuple[Any, ...]  # of one layer: (h,) or (h, c), each (D, B, size) or None


def uniform(layer: Recurrent) -> bool:
    """Whether all layers have the same size, so that their states make one array."""
    return len(set(layer.hidden_sizes)) == 1


def inward(layer: Recurrent, name: str, state: State, batch: Batch) -> list[Parts]:
    """Check a state, or a gradient of one, and part it by layers."""
    if state is None:
        return layer._no_state
    parts = checks.parts(name, state, layer.states)
    h = _by_layer(layer, name, " h", parts[0], layer.output_sizes, batch)
    if len(parts) == 1:
        return [(part,) for part in h]
    c = _by_layer(layer, name, " c", parts[1], layer.hidden_sizes, batch)
    return [(h[0], c[0])] if len(h) == 1 else list(zip(h, c, strict=True))


def _by_layer(
    layer: Recurrent, name: str, what: str, value: Any, widths: Sequence[int], batch: Batch
) -> Sequence[Array | None]:
    """One part of a state, h or c, as (D, B, size) arrays."""
    n, d, rows = layer.num_layers, layer.num_directions, batch.rows
    if value is None:
        return (None,) * n
    if n == 1 or uniform(layer):
        shape = (n * d, rows, widths[0])
        # What the last call gave back passes with no further ado.
        if (
            type(value) is np.ndarray
            and value.dtype is layer.dtype
            and value.shape == shape
            and batch.batched
            and value.flags.num & checks.READY == checks.READY
        ):  # as steps give it back
            whole = value
        else:
            whole = _checked(layer, name + what, value, shape, batch)
        return (whole,) if n == 1 else [whole[i : i + d] for i in range(0, n * d, d)]
    names = [f"{name}{what}[{i}]" for i in range(n)]
    return [
        None if part is None else _checked(layer, names[i], part, (d, rows, widths[i]), batch)
        for i, part in enumerate(checks.parts(name + what, value, names))
    ]


def _checked(
    layer: Recurrent, name: str, value: Any, shape: tuple[int, int, int], batch: Batch
) -> Array:
    whole = checks.array(name, value, layer.dtype)
    if batch.batched:
        return checks.shape(name, whole, shape)
    return checks.shape(name, whole, (shape[0], shape[2])).reshape(shape)


def outward(layer: Recurrent, layers: list[Parts], batch: Batch) -> State:
    """Join the states of all layers."""
    if not batch.batched:
        layers = [tuple([part[:, 0] for part in parts]) for parts in layers]
    states: Sequence[Any] = layers[0]
    if len(layers) > 1:
        join: Any = np.concatenate if uniform(layer) else tuple
        states = [join(parts) for parts in zip(*layers, strict=True)]
    return states[0] if len(states) == 1 else tuple(states)
