"""Random masks of one call, drawn layer by layer: they depend on shapes and `rng` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.engine.batches import Batch
    from cylstm.layers.recurrent import Recurrent

Masks = dict[str, Any]


def inverted(rng: np.random.Generator, p: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """Inverted dropout: 0 with probability p, otherwise 1 / (1 - p)."""
    keep = 1 - p
    mask = (rng.random(shape, np.float32) < keep).astype(dtype)
    mask *= 1 / keep if keep else 0
    return mask


def chosen(rng: np.random.Generator, p: float, shape: tuple[int, ...], dtype: Any) -> Array:
    """1 with probability p, otherwise 0."""
    return (rng.random(shape, np.float32) < p).astype(dtype)


def of_layer(layer: Recurrent, depth: int, batch: Batch, rng: np.random.Generator) -> Masks:
    """Masks of one layer's recurrence."""
    found: Masks = {}
    if not layer._draws:
        return found
    steps, width, dtype = batch.x.shape[0], batch.x.shape[1], layer.dtype
    directions, hidden = layer.num_directions, layer.hidden_sizes[depth]
    outputs = layer.output_sizes[depth]
    if getattr(layer, "dropconnect", 0):
        shape = (len(layer.gates) * hidden, outputs // layer._heads)
        found["dropconnect"] = [
            inverted(rng, layer.dropconnect, shape, dtype) for _ in range(directions)
        ]
    if getattr(layer, "recurrent_dropout", 0):
        shape3 = (directions, batch.rows, outputs)
        found["recurrent"] = inverted(rng, layer.recurrent_dropout, shape3, dtype)
    if layer.zoneout:
        found["zoneout"] = chosen(rng, layer.zoneout, (steps, width, directions * outputs), dtype)
    if layer._cell.zone_c:
        shape3 = (steps, width, directions * hidden)
        found["zoneout_cell"] = chosen(rng, layer._cell.zone_c, shape3, dtype)
    return found


def between(layer: Recurrent, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Dropout of a layer's output."""
    if layer.variational:
        shape = (1, *shape[1:])
    return inverted(rng, layer.dropout, shape, layer.dtype)
