"""Weights of one direction of one layer: names and shapes, to the kernels, and gradients back.

Names and order are PyTorch's; what it does not have comes after. Weights of single units (layer
norms, peepholes, an IndRNN's recurrent ones) go to the kernels as one array in a fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.kernels import dispatch, sequence
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.layers.structure import Structure

BIASES = ("bias_ih", "bias_hh")
Places = tuple[Array | None, ...]


def shapes(layer: Structure, depth: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of one direction, without its suffix."""
    hidden, outputs = layer.hidden_sizes[depth], layer.output_sizes[depth]
    rows = len(layer.gates) * hidden
    found: dict[str, tuple[int, ...]] = {"weight_ih": (rows, layer.input_sizes[depth])}
    if layer._recurrent:
        columns = outputs // layer._heads
        found["weight_hh"] = (hidden,) if layer._cell.independent else (rows, columns)
    if layer.bias:
        one = layer.bias == "single" or not layer._recurrent
        found |= dict.fromkeys(BIASES[:1] if one else BIASES, (rows,))
    if outputs != hidden:
        found["weight_hr"] = (outputs, hidden)
    if layer._cell.peepholes:
        found["weight_peephole"] = ((len(layer.gates) - 1) * hidden,)
    if layer._cell.norm == "haste":
        found |= dict.fromkeys(("weight_ln_ih", "weight_ln_hh"), (rows,))
        if "c" in layer.states:
            found |= dict.fromkeys(("weight_ln_c", "bias_ln_c"), (hidden,))
    elif layer._cell.norm == "tflite":
        found["weight_ln"] = (rows,)
    if layer.learn_initial_state:
        h, *others = layer.states
        found |= {f"initial_{h}": (outputs,)}
        found |= {f"initial_{state}": (hidden,) for state in others}
    return found


def initial(name: str) -> float | None:
    """Value that a parameter starts from; None for a random one."""
    if name.startswith("weight_ln"):
        return 1.0
    return 0.0 if name.startswith(("bias_ln", "initial_")) else None


def pack(
    layer: Structure, suffix: str, backward: bool, dropconnect: Array | None = None
) -> sequence.Packed:
    """Pack the weights of one direction for the kernels."""
    params = of_direction(layer, layer.params, suffix)
    bias = slot_bias(layer, params)
    w_hh, single = params.get("weight_hh"), None
    if sizes := layer._single_sizes[depth_of(suffix)]:
        values = params | {"bias": bias}
        if layer._cell.norm == "haste":
            values["weight_ln_ih"] = _turned(layer, values["weight_ln_ih"], layer._cell.turn)
        single = np.concatenate([values[name] for name in sizes])[None, None]
    return sequence.Packed(
        dispatch.table(layer.dtype.name),
        layer._cell_of(suffix),
        params["weight_ih"][None],
        _product(layer, w_hh if dropconnect is None or w_hh is None else w_hh * dropconnect),
        bias[None, None],
        backward,
        params["weight_hr"][None] if "weight_hr" in params else None,
        single,
    )


def _product(layer: Structure, w_hh: Array | None) -> Array | None:
    """Give the kernels the recurrent weights if they make a product, with all zeros they need."""
    if w_hh is None or w_hh.ndim == 1:
        return None
    return (_with_zeros(layer, w_hh) if _spread(layer) else w_hh)[None]


def _spread(layer: Structure) -> bool:
    """Whether diagonal blocks are given to the kernels as a whole matrix."""
    return layer._cell.heads != layer._heads


def _with_zeros(layer: Structure, blocks: Array) -> Array:
    """Make the matrix (G * H, H) whose diagonal blocks are those of (G * H, H / heads)."""
    heads, size = layer._heads, blocks.shape[1]
    found = np.zeros((len(layer.gates), heads, size, heads, size), blocks.dtype)
    for k, block in enumerate(np.moveaxis(blocks.reshape(-1, heads, size, size), 1, 0)):
        found[:, k, :, k] = block
    return found.reshape(len(blocks), heads * size)


def _blocks_of(layer: Structure, matrix: Array) -> Array:
    """Take the diagonal blocks out again."""
    heads, size = layer._heads, matrix.shape[1] // layer._heads
    parts = matrix.reshape(-1, heads, size, heads, size)
    found = np.stack([parts[:, k, :, k] for k in range(heads)], axis=1)
    return found.reshape(len(matrix), size)


def of_direction(layer: Structure, named: Mapping[str, Array], suffix: str) -> dict[str, Array]:
    """Parameters, or their gradients, of one direction, without the suffix."""
    return {name: named[full] for name, full in layer._names[suffix].items()}


def depth_of(suffix: str) -> int:
    """Which layer a suffix like "l1_reverse" belongs to."""
    return int(suffix.removesuffix("_reverse")[1:])


def slot_bias(layer: Structure, params: Mapping[str, Array]) -> Array:
    """Biases in slot order; two that the cell only ever adds are one here, their sum."""
    cell, gates = layer._cell, len(layer.gates)
    found: list[Any] = [None] * cell.slots
    for name, slots in zip(BIASES, (cell.x_slots, cell.h_slots), strict=True):
        given = params.get(name, np.zeros(params["weight_ih"].shape[0], layer.dtype))
        for slot, bias in zip(slots, np.split(given, gates), strict=True):
            found[slot] = bias if found[slot] is None else found[slot] + bias
    return np.concatenate(found)


def _turned(layer: Structure, by_gate: Array, gates: int) -> Array:
    """Move each gate's elements so many places towards the front, those in front to the end."""
    return np.roll(by_gate, -gates * (len(by_gate) // len(layer.gates)))


def single_sizes(layer: Structure, depth: int) -> dict[str, int]:
    """Weights of single units, in the order of `Packed.place_singles`; "bias" is slot_bias."""
    sizes = {name: shape[0] for name, shape in shapes(layer, depth).items()}
    names = [n for n in sizes if n == "weight_peephole" or "_ln" in n]
    found = {name: sizes[name] for name in names}
    if layer._cell.norm:
        found["bias"] = sizes["weight_ih"] // len(layer.gates) * layer._cell.slots
    if layer._cell.independent:
        found["weight_hh"] = sizes["weight_hh"]
    return found


def add_gradients(
    layer: Structure,
    calls: list[sequence.Call],
    dropconnect: list[list[Array] | None],
    views: Mapping[str, Array],
) -> None:
    """Add what `sequence.backward` has found in each layer; DropConnect's masks by layer.

    `views` are the gradients to add to, by name: the layer's own, or others of their shapes.
    """
    d = layer.num_directions
    masks: list[Array | None] = []
    for of_layer in dropconnect:
        masks += of_layer or [None] * d
    plain = not any(dropconnect) and not any(layer._single_sizes) and not _spread(layer)
    own = plain and views is layer._grad_views
    into = layer._places if own else places(layer, masks, views)
    with layer._lock:
        sequence.add_gradients(calls, [into[i : i + d] for i in range(0, len(into), d)])
        if not plain:
            for which in zip(layer._suffixes(), into, masks, strict=True):
                _add_rest(layer, views, *which)


def places(
    layer: Structure, masks: Sequence[Array | None], views: Mapping[str, Array]
) -> list[Places]:
    """Arrays that `sequence.add_gradients` adds the weight gradients of each direction to."""
    return [_places(layer, views, *which) for which in zip(layer._suffixes(), masks, strict=True)]


def _places(
    layer: Structure, views: Mapping[str, Array], suffix: str, dropconnect: Array | None
) -> Places:
    """Arrays for the weight gradients of one direction, some of them views of the caller's.

    `_add_rest` takes the others from where they are added here to where they belong.
    """
    into = of_direction(layer, views, suffix)
    w_hh = into.get("weight_hh")
    if w_hh is not None and (dropconnect is not None or _spread(layer)):
        w_hh = np.zeros_like(w_hh)
    biases = [None if layer._cell.norm else into.get(name) for name in BIASES]
    ones = sum(layer._single_sizes[depth_of(suffix)].values())
    return (
        into["weight_ih"][None],
        _product(layer, w_hh),
        *(None if b is None else b[None, None] for b in biases),
        into["weight_hr"][None] if "weight_hr" in into else None,
        np.zeros((1, 1, ones), layer.dtype) if ones else None,
    )


def _add_rest(
    layer: Structure,
    views: Mapping[str, Array],
    suffix: str,
    found: Places,
    dropconnect: Array | None,
) -> None:
    """Add what `sequence.add_gradients` could not add in place."""
    _, dw_hh, _, _, _, single = found
    if dw_hh is not None and (dropconnect is not None or _spread(layer)):
        d = _blocks_of(layer, dw_hh[0]) if _spread(layer) else dw_hh[0]
        views[f"weight_hh_{suffix}"] += d if dropconnect is None else d * dropconnect
    if single is None:
        return
    into, sizes = of_direction(layer, views, suffix), layer._single_sizes[depth_of(suffix)]
    parts = np.split(single[0, 0], np.cumsum(list(sizes.values()))[:-1])
    for name, part in zip(sizes, parts, strict=True):
        if name == "weight_ln_ih":
            into[name] += _turned(layer, part, -layer._cell.turn)
        elif name != "bias":
            into[name] += part
        else:
            _add_biases(layer, into, part)


def _add_biases(layer: Structure, into: Mapping[str, Array], by_slot: Array) -> None:
    """Add to the biases, of which there may be none, one or two."""
    parts = np.split(by_slot, layer._cell.slots)
    for name, slots in zip(BIASES, (layer._cell.x_slots, layer._cell.h_slots), strict=True):
        if name in into:
            into[name] += np.concatenate([parts[slot] for slot in slots])
