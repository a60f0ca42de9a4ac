"""Outputs of both directions, as the kernels give them, merged for the caller; gradients back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.engine.batches import POOLED, Batch
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.layers.recurrent import Recurrent

#: What is made of both directions' outputs; names are Keras'.
MERGE_MODES = ("concat", "sum", "mul", "ave", "separate")
SIDE_BY_SIDE = ("concat", "separate")


def place(layer: Recurrent, out: Array | None, batch: Batch, taped: bool) -> Array | None:
    """Where the kernels write the last layer's outputs; None for a new array of their own."""
    direct = layer.merge_mode in SIDE_BY_SIDE and batch.pick not in POOLED
    if out is not None:
        if batch.ragged or layer.merge_mode == "separate":
            what = "a list as x" if batch.ragged else "merge_mode='separate'"
            raise ValueError(f"out: expected None with {what}, got an array")
        checks.out(out, batch.y_shape(layer._merged(-1)), layer.dtype)
        shared = checks.shares_memory(out, batch.x)
        if shared and taped:
            raise ValueError("out: expected memory of its own, got some of x, which the tape keeps")
        if direct and not shared:
            return batch.inward(out)
    width = layer.num_directions * layer.output_sizes[-1]
    if batch.pick == "every":
        steps = int(batch.y_lengths.sum()) if batch.ragged else batch.steps // batch.every
        return batch.empty(steps, width, layer.dtype)
    if direct and not batch.ragged and (batch.batch_first or not batch.batched):
        return batch.empty(batch.steps, width, layer.dtype)
    return None


def blank(layer: Recurrent, depth: int, batch: Batch, inside: Array | None) -> Array | None:
    """Zeros for the steps between segments, to which the kernels never write."""
    if batch.segments is None or not batch.padded:
        return inside
    if inside is None:
        width = layer.num_directions * layer.output_sizes[depth]
        return np.zeros((*batch.x.shape[:2], width), layer.dtype)
    inside[...] = 0
    return inside


def of_rows(layer: Recurrent, both: Array, batch: Batch) -> Array:
    """Of the outputs that each segment has, take the one that is its row's."""
    if batch.segments is None:
        return both
    return np.stack([y[at] for y, at in zip(both, _picked(layer, batch), strict=True)])


def _picked(layer: Recurrent, batch: Batch) -> list[Array]:
    """For each direction the segments that hold each row's picked output."""
    cut = batch.segments
    assert cut is not None
    if batch.pick == "last":
        return [cut.last_read] * layer.num_directions
    return [cut.left(backwards) for backwards in layer._backwards]


def join(layer: Recurrent, both: Array, batch: Batch | None) -> Array:
    """Merge both directions of a layer; give `batch` for the last layer, whose outputs it picks."""
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
    # Nothing else that the kernels write into is part of it.
    if inside is None or not np.may_share_memory(inside, out):
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
    """Gradient of both directions' outputs, from the gradient of what `join` made of them.

    `both` is what the kernels gave, needed for `merge_mode` "mul" only.
    """
    pooled = batch is not None and batch.pick in POOLED
    if layer.merge_mode == "ave":
        dy = dy * np.asarray(0.5, dy.dtype)
    if both is not None:
        one, other = both if pooled else np.split(both, 2, axis=-1)
        dy = np.concatenate([dy * other, dy * one], axis=-1)
    elif layer.merge_mode not in SIDE_BY_SIDE:
        dy = np.concatenate([dy, dy], axis=-1)
    if not pooled or batch is None:
        return dy
    by_direction = np.stack(np.split(dy, layer.num_directions, axis=-1))
    if batch.segments is None:
        return by_direction
    found = np.zeros((len(by_direction), len(batch.segments.row), by_direction.shape[2]), dy.dtype)
    for d, at in enumerate(_picked(layer, batch)):
        found[d, at] = by_direction[d]
    return found
