"""From what the kernels give, both directions side by side, to what the caller gets, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.batches import POOLED, Batch
from cylstm.params import Array

if TYPE_CHECKING:
    from cylstm.recurrent import Recurrent

#: What is made of both directions' outputs; names are Keras'.
MERGE_MODES = ("concat", "sum", "mul", "ave", "separate")
SIDE_BY_SIDE = ("concat", "separate")


def place(layer: Recurrent, out: Array | None, batch: Batch) -> Array | None:
    """Where the kernels write the last layer's outputs; None for a new array of their own."""
    if out is None and batch.pick == "all" and not batch.batch_first and batch.batched:
        return None
    direct = layer.merge_mode in SIDE_BY_SIDE and batch.pick not in POOLED
    if out is not None:
        if batch.ragged or layer.merge_mode == "separate":
            what = "a list as x" if batch.ragged else "merge_mode='separate'"
            raise ValueError(f"out: expected None with {what}, got an array")
        checks.out(out, batch.y_shape(layer._merged(-1)), layer.dtype)
        return batch.inward(out) if direct else None
    width = layer.num_directions * layer.output_sizes[-1]
    if batch.pick == "every":
        steps = int(batch.y_lengths.sum()) if batch.ragged else batch.steps // batch.every
        return batch.empty(steps, width, layer.dtype)
    if direct and not batch.ragged:
        return batch.empty(batch.steps, width, layer.dtype)
    return None


def join(layer: Recurrent, both: Array, batch: Batch | None) -> Array:
    """Both directions merged; with `batch` those of the last layer, maybe one output per row."""
    if batch is not None and batch.pick in POOLED:
        both = np.concatenate(list(both), axis=-1)
    if layer.num_directions == 1 or layer.merge_mode in SIDE_BY_SIDE:
        return both
    one, other = np.split(both, 2, axis=-1)
    merged: Array = one * other if layer.merge_mode == "mul" else one + other
    if layer.merge_mode == "ave":
        merged *= 0.5
    return merged


def result(
    layer: Recurrent, y: Array, batch: Batch, out: Array | None, inside: Array | None
) -> Any:
    """Turn the last layer's merged output into what the caller gets."""
    if out is None:
        if layer.merge_mode != "separate":
            return batch.y_outward(y)
        return tuple(batch.y_outward(part) for part in np.split(y, 2, axis=-1))
    if inside is None:
        by_row = out if batch.batched else out[None]
        into = by_row if batch.pick in POOLED else batch.inward(out)
        into[...] = y
    return out


def gradient(layer: Recurrent, dy: Any, batch: Batch) -> Array:
    """Check dy; both directions of "separate" side by side."""
    if layer.merge_mode != "separate":
        return batch.y_inward("dy", dy, layer._merged(-1), layer.dtype)
    if not isinstance(dy, tuple) or len(dy) != 2:
        raise TypeError(f"dy: expected a tuple (forward, reverse), got {type(dy).__name__}")
    size = layer.output_sizes[-1]
    parts = [batch.y_inward(f"dy[{i}]", d, size, layer.dtype) for i, d in enumerate(dy)]
    return np.concatenate(parts, axis=-1)


def part(layer: Recurrent, dy: Array, batch: Batch | None, both: Array | None) -> Array:
    """Gradient of both directions' outputs, from that of what `join` made of them.

    `both` is what the kernels gave, needed for products only.
    """
    pooled = batch is not None and batch.pick in POOLED
    if layer.merge_mode == "ave":
        dy = dy * np.asarray(0.5, dy.dtype)
    if both is not None:
        one, other = both if pooled else np.split(both, 2, axis=-1)
        dy = np.concatenate([dy * other, dy * one], axis=-1)
    elif layer.merge_mode not in SIDE_BY_SIDE:
        dy = np.concatenate([dy, dy], axis=-1)
    return np.stack(np.split(dy, layer.num_directions, axis=-1)) if pooled else dy
