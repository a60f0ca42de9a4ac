"""States of all layers: one array of each for the caller, one tuple per layer inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.engine.batches import Batch
    from cylstm.layers.recurrent import Recurrent

State = Any  # an array, or for LSTM a tuple (h, c) of arrays
Parts = tuple[Any, ...]  # of one layer: (h,) or (h, c), each (D, B, size) or None
Given = list[tuple[int | None, ...]]  # rows that each part was given with; None if it was not


def uniform(layer: Recurrent) -> bool:
    """Whether all layers have the same size, so that their states make one array."""
    return len(set(layer.hidden_sizes)) == 1


def inward(layer: Recurrent, name: str, state: State, batch: Batch) -> list[Parts]:
    """Check a state, or a gradient of one, and part it by layers."""
    if state is None:
        return layer._no_state
    parts = checks.parts(name, state, layer.states)
    found = [
        _by_layer(layer, name, f" {state}", part, widths, batch)
        for state, part, widths in zip(layer.states, parts, _widths(layer), strict=True)
    ]
    return list(zip(*found, strict=True))


def _widths(layer: Recurrent) -> list[tuple[int, ...]]:
    """Of each state its size in each layer."""
    return [layer.output_sizes, *[layer.hidden_sizes] * (len(layer.states) - 1)]


def _by_layer(
    layer: Recurrent, name: str, what: str, value: Any, widths: Sequence[int], batch: Batch
) -> Sequence[Array | None]:
    """One part of a state, h or c, as (D, B, size) arrays."""
    n, d, rows = layer.num_layers, layer.num_directions, batch.rows
    if value is None:
        return (None,) * n
    if n == 1 or uniform(layer):
        shape = (n * d, rows, widths[0])
        # A state as the last call returned it needs no checks: steps of a stream give it back.
        if (
            type(value) is np.ndarray
            and value.dtype is layer.dtype
            and value.shape == shape
            and batch.batched
            and value.flags.num & checks.READY == checks.READY
        ):
            whole = value
        else:
            if len(layer.states) > 1:
                _refuse_pairs(name + what, value)
            whole = _checked(layer, name, what, value, shape, batch)
        return (whole,) if n == 1 else [whole[i : i + d] for i in range(0, n * d, d)]
    names = [f"{name}{what}[{i}]" for i in range(n)]
    return [
        None if part is None
        else _checked(layer, name, f"{what}[{i}]", part, (d, rows, widths[i]), batch)
        for i, part in enumerate(checks.parts(name + what, value, names))
    ]  # fmt: skip


def _refuse_pairs(name: str, value: Any) -> None:
    """Refuse a list of pairs (h, c) by layer in place of h, or of c, of all layers."""
    if isinstance(value, (list, tuple)) and any(
        isinstance(part, tuple) or hasattr(part, "shape") for part in value
    ):
        raise TypeError(
            f"{name}: expected one array of all layers, got a {type(value).__name__} of "
            f"{len(value)} {checks.PAIRS}"
        )


def _checked(
    layer: Recurrent, name: str, what: str, value: Any, shape: tuple[int, int, int], batch: Batch
) -> Array:
    """Check one array of a state; an initial one may have one row for all."""
    whole = checks.array(name + what, value, layer.dtype)
    if not batch.batched and whole.shape == (shape[0], shape[2]):
        return whole.reshape(shape)
    if batch.batched and (
        whole.shape == shape or (name == "state" and whole.shape == (shape[0], 1, shape[2]))
    ):
        return whole
    expected = shape if batch.batched else (shape[0], shape[2])
    hint = _hint(layer, whole.shape, shape, batch)
    raise ValueError(f"{name}{what}: expected shape {expected}, got {whole.shape}{hint}")


def _hint(
    layer: Recurrent, found: tuple[int, ...], shape: tuple[int, int, int], batch: Batch
) -> str:
    """Explain a wrong shape that tells of a misunderstanding."""
    if len(found) != 3:
        return ""
    if not batch.batched:
        step = "(B, 1, I)" if layer.batch_first else "(1, B, I)"
        return f"; x of shape (T, I) is T steps of one row: a step of B rows has shape {step}"
    if found == (shape[1], shape[0], shape[2]):
        return "; the rows of a state are its second axis, also with batch_first"
    return batch.turned_hint(found[1:2])


def spread(layer: Recurrent, given: list[Parts], batch: Batch) -> list[Parts]:
    """Make initial states of all rows of the kernels' calls from what the caller has given."""
    if given is layer._no_state and not layer.learn_initial_state:
        return given
    return [
        tuple([_start(layer, depth, k, part, batch) for k, part in enumerate(parts)])
        for depth, parts in enumerate(given)
    ]


def _start(layer: Recurrent, depth: int, k: int, given: Any, batch: Batch) -> Array | None:
    """Make the initial h or c (`k` 0 or 1) of one layer; None for zeros."""
    cut = batch.segments
    if cut is None and given is not None and given.shape[1] == batch.rows:
        whole: Array = given
        return whole
    rows = batch.rows if cut is None else len(cut.row)
    size = (layer.hidden_sizes if k else layer.output_sizes)[depth]
    shape, learned = (layer.num_directions, rows, size), None
    if layer.learn_initial_state:
        names = _names(layer, depth, k)
        learned = np.broadcast_to(np.stack([layer.params[n] for n in names])[:, None], shape)
    if given is None:
        return learned
    if cut is None:
        return np.broadcast_to(given, shape)
    found = np.zeros(shape, layer.dtype) if learned is None else learned.copy()
    given = np.broadcast_to(given, (shape[0], batch.rows, size))
    for d, backwards in enumerate(layer._backwards):
        entered, of = cut.entered(backwards)
        found[d, entered] = given[d, of]
    return found


def _names(layer: Recurrent, depth: int, k: int) -> list[str]:
    """Names of the parameters that hold the learned h or c (`k` 0 or 1) of one layer."""
    return [f"initial_{layer.states[k]}_l{depth}{way}" for way in layer._directions()]


def rows_given(layer: Recurrent, given: list[Parts]) -> Given:
    """Return what `d_spread` has to know of the caller's state."""
    if given is layer._no_state:
        return layer._no_state
    return [tuple(None if part is None else part.shape[1] for part in parts) for parts in given]


def d_spread(
    layer: Recurrent, found: list[Parts], given: Given, batch: Batch
) -> tuple[list[Parts], dict[str, Array]]:
    """Gradients of the caller's state and of the learned one, from those of the kernels' states."""
    learned: dict[str, Array] = {}
    outer: list[Parts] = []
    for depth, parts in enumerate(found):
        own = []
        for k, d in enumerate(parts):
            rows, rest = given[depth][k], d
            if batch.segments is not None:
                d, rest = _d_start(layer, d, rows, batch)
            if layer.learn_initial_state and (rows is None or batch.segments is not None):
                sums = rest.sum(axis=1, dtype=np.float64)
                learned |= dict(zip(_names(layer, depth, k), sums, strict=True))
            if rows is not None and rows != batch.rows:  # one row stands for all
                d = d.sum(axis=1, keepdims=True, dtype=np.float64).astype(layer.dtype)
            own.append(d)
        outer.append(tuple(own))
    return outer, learned


def _d_start(layer: Recurrent, d: Array, rows: int | None, batch: Batch) -> tuple[Array, Array]:
    """Gradients of the states given for rows, and of the initial states of all other segments."""
    cut = batch.segments
    assert cut is not None
    to_given = np.zeros((d.shape[0], batch.rows, d.shape[2]), d.dtype)
    rest = d.copy()
    for way, backwards in enumerate(layer._backwards):
        entered, of = cut.entered(backwards)
        to_given[way, of] = d[way, entered]
        if rows is not None:
            rest[way, entered] = 0
    return to_given, rest


def of_rows(layer: Recurrent, layers: list[Parts], batch: Batch) -> list[Parts]:
    """Take each row's final state from the final states of all segments."""
    cut = batch.segments
    if cut is None:
        return layers
    left = [cut.left(backwards) for backwards in layer._backwards]
    return [
        tuple([np.stack([a[d, at] for d, at in enumerate(left)]) for a in parts])
        for parts in layers
    ]


def of_segments(layer: Recurrent, layers: list[Parts], batch: Batch) -> list[Parts]:
    """Gradients of all segments' final states: of each row's last one, zero elsewhere."""
    cut = batch.segments
    if cut is None:
        return layers
    return [
        tuple([None if a is None else _scattered(layer, a, cut) for a in parts]) for parts in layers
    ]


def _scattered(layer: Recurrent, a: Array, cut: Any) -> Array:
    found = np.zeros((a.shape[0], len(cut.row), a.shape[2]), a.dtype)
    for d, backwards in enumerate(layer._backwards):
        found[d, cut.left(backwards)] = a[d]
    return found


def look_out(layer: Recurrent, state_out: State, batch: Batch, out: Array | None) -> None:
    """Check arrays that the final state is to be written into."""
    d = layer.num_directions
    found: list[tuple[str, Array]] = []
    for part, what, widths in zip(
        checks.parts("state_out", state_out, layer.states), layer.states, _widths(layer),
        strict=True,
    ):  # fmt: skip
        name, of_all = f"state_out {what}", uniform(layer)
        names = [name if of_all else f"{name}[{i}]" for i in range(1 if of_all else len(widths))]
        arrays = (part,) if of_all else checks.parts(name, part, names)
        layers = layer.num_layers if of_all else 1
        for full, array, width in zip(names, arrays, widths, strict=False):
            rows = (batch.rows,) if batch.batched else ()
            checks.out(array, (layers * d, *rows, width), layer.dtype, full)
            found.append((full, array))
    if out is not None:
        found.append(("out", out))
    for i, (one, array) in enumerate(found):
        for other, behind in found[i + 1 :]:
            if checks.shares_memory(array, behind):
                raise ValueError(f"{one}: expected memory of its own, got some of {other}")


def copied(final: State, state_out: State) -> State:
    """Write a state into the caller's arrays."""
    if isinstance(state_out, np.ndarray):
        state_out[...] = final
    else:
        for part, into in zip(final, state_out, strict=True):
            copied(part, into)
    return state_out


def outward(layer: Recurrent, layers: list[Parts], batch: Batch) -> State:
    """Join the states of all layers."""
    if not batch.batched:
        layers = [tuple([part[:, 0] for part in parts]) for parts in layers]
    states: Sequence[Any] = layers[0]
    if len(layers) > 1:
        join: Any = np.concatenate if uniform(layer) else tuple
        states = [join(parts) for parts in zip(*layers, strict=True)]
    return states[0] if len(states) == 1 else tuple(states)
