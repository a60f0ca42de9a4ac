"""Recurrent nodes of ONNX as layers: every attribute and input, or a refusal that names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm.io.onnx.errors import OnnxError, failure, named, package
from cylstm.layers.activations import KNOWN, PARAMETERS
from cylstm.layers.gru import GRU
from cylstm.layers.lstm import LSTM
from cylstm.layers.rnn import RNN
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.layers.recurrent import Recurrent


class Kind(NamedTuple):
    """What ONNX calls by an operator's name."""

    layer: type[Recurrent]
    #: For each of the layer's gates, the block of ONNX's weights that is its.
    order: tuple[int, ...]
    #: Blocks in ONNX's weights.
    blocks: int
    #: Activations of one direction where none are named.
    activations: tuple[str, ...]
    attributes: tuple[str, ...]


_SHARED = ("activation_alpha", "activation_beta", "activations", "clip", "direction",
           "hidden_size", "layout", "output_sequence")  # fmt: skip
KINDS = {
    "LSTM": Kind(LSTM, (0, 2, 3, 1), 4, ("Sigmoid", "Tanh", "Tanh"), ("input_forget",)),
    "GRU": Kind(GRU, (1, 0, 2), 3, ("Sigmoid", "Tanh"), ("linear_before_reset",)),
    "RNN": Kind(RNN, (0,), 1, ("Tanh",), ()),
}
#: Of i, g, o: ONNX's forget gate has weights, too, which are not read.
COUPLED = (0, 3, 1)
PEEPHOLES, COUPLED_PEEPHOLES = (0, 2, 1), (0, 1)
#: ONNX Runtime's LSTM with weights of 8 bits, read as the floats that they stand for.
QUANTISED = "DynamicQuantizeLSTM"
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P",
           "W_scale", "W_zero_point", "R_scale", "R_zero_point")  # fmt: skip
_WEIGHTS = ("W", "R", "B", "P", *_INPUTS[8:])


def is_recurrent(node: Any) -> bool:
    """Whether a NodeProto is one of those that become layers."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type in KINDS
    return bool(node.domain == "com.microsoft" and node.op_type == QUANTISED)


def label(node: Any) -> str:
    """Name a NodeProto in messages: operator, and its name or its first output."""
    outputs = [name for name in node.output if name]
    return f"{node.op_type} {node.name or (outputs[0] if outputs else 'without outputs')!r}"


class Part(NamedTuple):
    """A layer, and which of the node's directions it is."""

    layer: Recurrent
    directions: slice


class Recurrence:
    """One recurrent node: layers made of its weights, called with a node's inputs by name.

    Parameters
    ----------
    node : onnx.NodeProto
    constant : callable
        Gives the value of a name that does not depend on the graph's inputs, or None.

    Raises
    ------
    OnnxError
        An attribute or a weight is wrong, or says what no layer does.
    """

    def __init__(self, node: Any, constant: Callable[[str], Array | None]) -> None:
        self.label = label(node)
        self.quantised = node.op_type == QUANTISED
        self.kind = KINDS["LSTM" if self.quantised else node.op_type]
        inputs = [n for n in _INPUTS if n not in ("initial_c", "P") or self.kind.layer is LSTM]
        if len(node.input) > (len(inputs) if self.quantised else min(len(inputs), 8)):
            raise OnnxError(f"{self.label}: expected at most {len(inputs)} inputs, got "
                            f"{len(node.input)}")  # fmt: skip
        #: Names in the graph by the operator's names.
        self.inputs = {ours: n for ours, n in zip(inputs, node.input, strict=False) if n}
        self.outputs = list(node.output)
        if missing := [name for name in ("X", "W", "R") if name not in self.inputs]:
            raise OnnxError(f"{self.label}: expected inputs X, W and R, got none for {missing}")
        self._read_attributes(node)
        weights = {n: constant(self.inputs[n]) for n in _WEIGHTS if n in self.inputs}
        #: Layers, if the weights are in the file; otherwise they are made in every call.
        self.parts: list[Part] | None = None
        if not any(value is None for value in weights.values()):
            self.parts = self._made({n: v for n, v in weights.items() if v is not None})
            self.inputs = {n: name for n, name in self.inputs.items() if n not in weights}
        #: Names in the graph that a call reads.
        self.needs = set(self.inputs.values())

    def _read_attributes(self, node: Any) -> None:
        found = _attributes(node, self.label, (*_SHARED, *self.kind.attributes))
        self.direction = found.get("direction", "forward")
        if self.direction not in ("forward", "reverse", "bidirectional"):
            raise self._wrong("direction", "forward, reverse or bidirectional", self.direction)
        self.ways = 2 if self.direction == "bidirectional" else 1
        for name in ("layout", *self.kind.attributes):
            if found.get(name, 0) not in (0, 1):
                raise self._wrong(name, "0 or 1", found[name])
        self.batch_first = found.get("layout", 0) == 1
        self.hidden_size = found.get("hidden_size")
        self.options: dict[str, Any] = {}
        if not found.get("clip", np.inf) >= 1e30:  # the largest float stands for none
            self.options["clip"] = found["clip"]
        if found.get("input_forget"):
            self.options["coupled"] = True
        if self.kind.layer is GRU:
            self.options["reset_after"] = found.get("linear_before_reset", 0) == 1
        self.activations = self._activations(found)

    def _activations(self, found: Mapping[str, Any]) -> list[list[Any]]:
        """Read the activations of each direction, with the numbers that each consumes."""
        names = found.get("activations", list(self.kind.activations) * self.ways)
        places = len(self.kind.activations)
        if len(names) != places * self.ways:
            raise self._wrong("activations", f"{places * self.ways} names", names)
        numbers = [list(found.get(f"activation_{n}", [])) for n in ("alpha", "beta")]
        read: list[Any] = []
        for name in names:
            known = name.lower()
            if known not in KNOWN or "keras" in known:
                raise self._wrong("activations", "names of ONNX", name)
            given: list[Any] = []
            for place, queue in enumerate(numbers[: PARAMETERS.get(known, 0)]):
                given.append(queue.pop(0) if queue else KNOWN[known][1 + place])
            read.append((known, *given) if given else known)
        for letter, left in zip(("alpha", "beta"), numbers, strict=True):
            if left:
                raise self._wrong(f"activation_{letter}", "a number for each activation that has "
                                  "one", f"{len(left)} more")  # fmt: skip
        return [read[d * places : (d + 1) * places] for d in range(self.ways)]

    def _wrong(self, attribute: str, expected: str, got: Any) -> OnnxError:
        return OnnxError(f"{self.label}: attribute {attribute}: expected {expected}, got {got!r}")

    def _made(self, given: Mapping[str, Array]) -> list[Part]:
        """Make layers of weights: one, or one for each direction if their activations differ."""
        weights = self._dequantised(given) if self.quantised else dict(given)
        self._check(weights)
        together = self.ways == 1 or self.activations[0] == self.activations[1]
        ranges = [slice(0, self.ways)] if together else [slice(0, 1), slice(1, 2)]
        return [self._part(weights, where) for where in ranges]

    def _part(self, weights: Mapping[str, Array], where: slice) -> Part:
        state = self._state({name: value[where] for name, value in weights.items()})
        options = dict(self.options)
        activations = self.activations[where.start]
        if self.kind.layer is RNN:
            options["nonlinearity"] = activations[0]
        else:
            options["activations"] = tuple(activations)
        if where.start == 1 or self.direction == "reverse":
            options["go_backwards"] = True
        with named(self.label):
            return Part(self.kind.layer.from_state_dict(state, **options), where)

    def _state(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Put gates into the layer's order, under its names."""
        coupled = self.options.get("coupled", False)
        order = COUPLED if coupled else self.kind.order
        state: dict[str, Array] = {}
        for d in range(len(weights["W"])):
            suffix = ("_l0", "_l0_reverse")[d]
            parts = {"weight_ih": weights["W"][d], "weight_hh": weights["R"][d]}
            if "B" in weights:
                parts["bias_ih"], parts["bias_hh"] = np.split(weights["B"][d], 2)
            for name, value in parts.items():
                state[name + suffix] = _arranged(value, order, self.kind.blocks)
            if "P" in weights:
                kept = COUPLED_PEEPHOLES if coupled else PEEPHOLES
                state["weight_peephole" + suffix] = _arranged(weights["P"][d], kept, 3)
        return state

    def _check(self, weights: Mapping[str, Array]) -> None:
        """Check the shapes of weights against each other."""
        w, r = weights["W"], weights["R"]
        for name, value in weights.items():
            if value.dtype.kind != "f" and not value.dtype.name.startswith("bfloat16"):
                raise OnnxError(f"{self.label}: input {name}: expected floating-point numbers, "
                                f"got {value.dtype}")  # fmt: skip
        if w.ndim != 3 or r.ndim != 3:
            raise OnnxError(f"{self.label}: inputs W and R: expected 3 axes each, got shapes "
                            f"{w.shape} and {r.shape}")  # fmt: skip
        hidden = r.shape[2]
        if self.hidden_size is not None and self.hidden_size != hidden:
            raise self._wrong("hidden_size", f"{hidden}, as R of shape {r.shape} says",
                              self.hidden_size)  # fmt: skip
        rows = self.kind.blocks * hidden
        expected = {"W": (self.ways, rows, w.shape[2]), "R": (self.ways, rows, hidden),
                    "B": (self.ways, 2 * rows), "P": (self.ways, 3 * hidden)}  # fmt: skip
        for name, value in weights.items():
            if value.shape != expected[name] or 0 in value.shape:
                raise OnnxError(
                    f"{self.label}: input {name}: expected shape {expected[name]} with nothing "
                    f"empty, got {value.shape}"
                )

    def _dequantised(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Turn weights (D, inputs, 4 H) of 8 bits into floats (D, 4 H, inputs)."""
        kept = {name: given[name] for name in ("B", "P") if name in given}
        for name in ("W", "R"):
            value = given[name]
            scale, zero = given.get(f"{name}_scale"), given.get(f"{name}_zero_point")
            if scale is None or zero is None:
                raise OnnxError(f"{self.label}: expected inputs {name}_scale and "
                                f"{name}_zero_point, got none")  # fmt: skip
            shapes = (value.shape[:1], (*value.shape[:1], *value.shape[2:]))
            if value.ndim != 3 or scale.shape not in shapes or zero.shape != scale.shape:
                raise OnnxError(
                    f"{self.label}: inputs {name}, {name}_scale and {name}_zero_point: expected "
                    f"shapes (D, inputs, 4 H) and (D,) or (D, 4 H) twice, got {value.shape}, "
                    f"{scale.shape} and {zero.shape}"
                )
            spread = (scale.shape[0], 1, -1)
            floats = value.astype(np.float32) - zero.astype(np.float32).reshape(spread)
            floats *= scale.astype(np.float32).reshape(spread)
            kept[name] = floats.transpose(0, 2, 1)
        return kept

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Run the node.

        Parameters
        ----------
        values : mapping of str to ndarray
            By the graph's names; those of the node's inputs are read.

        Returns
        -------
        dict of str to ndarray
            The node's outputs, by the graph's names.

        Raises
        ------
        OnnxError
            An input does not fit the weights.
        """
        given = {ours: values[name] for ours, name in self.inputs.items()}
        parts = self.parts
        if parts is None:
            parts = self._made({n: v for n, v in given.items() if n in _WEIGHTS})
        x = given["X"]
        if x.ndim != 3:
            raise OnnxError(f"{self.label}: input X: expected 3 axes, got shape {x.shape}")
        x = x.swapaxes(0, 1) if self.batch_first else x
        state = self._initial(given, x.shape[1], parts[0].layer.hidden_sizes[0])
        wanted = [bool(name) for name in self.outputs] + [False] * 3
        found = [self._run_part(part, x, given.get("sequence_lens"), state, wanted[0])
                 for part in parts]  # fmt: skip
        results = {}
        for name, pieces in zip(self.outputs, zip(*found, strict=True), strict=False):
            if name:
                axis = 1 if pieces[0].ndim == 4 else 0
                whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
                if self.batch_first:
                    whole = whole.transpose(2, 0, 1, 3) if whole.ndim == 4 else whole.swapaxes(0, 1)
                results[name] = np.ascontiguousarray(whole, given["X"].dtype)
        return results

    def _initial(self, given: Mapping[str, Array], rows: int, hidden: int) -> list[Array | None]:
        """Read the initial states, (D, B, H) each, or None."""
        state: list[Array | None] = []
        for name in ("initial_h", "initial_c")[: len(self.kind.layer.states)]:
            value = given.get(name)
            if value is not None:
                expected = (self.ways, rows, hidden)
                if self.batch_first:
                    expected = (rows, self.ways, hidden)
                if value.shape != expected:
                    raise OnnxError(f"{self.label}: input {name}: expected shape {expected}, "
                                    f"got {value.shape}")  # fmt: skip
                value = value.swapaxes(0, 1) if self.batch_first else value
            state.append(value)
        return state

    def _run_part(
        self, part: Part, x: Array, lengths: Array | None, state: Sequence[Any], wanted: bool
    ) -> list[Array]:
        """Run one layer: y (T, D, B, H) if wanted, and final states (D, B, H)."""
        mine = [None if value is None else value[part.directions] for value in state]
        start = mine[0] if len(mine) == 1 else tuple(mine)
        which = "all" if wanted else "final"
        try:
            y, final = part.layer(x, start, lengths=lengths, return_=which)
        except Exception as error:
            raise failure(self.label, error) from error
        finals = list(final) if isinstance(final, tuple) else [final]
        if wanted:
            y = y.reshape(*y.shape[:2], part.layer.num_directions, -1).transpose(0, 2, 1, 3)
        return [y, *finals]


def _arranged(value: Array, order: Sequence[int], blocks: int) -> Array:
    """Blocks of rows in another order."""
    parts = np.split(value, blocks)
    return np.concatenate([parts[k] for k in order])


def _shortest(value: float) -> float:
    """Read a float32 as the shortest number that rounds to it: 0.3, not 0.30000001192092896."""
    return float(str(np.float32(value)))


def _attributes(node: Any, name: str, known: Sequence[str]) -> dict[str, Any]:
    """Attributes of a node by name; unknown ones and those of another type are refused."""
    onnx = package()
    kinds = {"activation_alpha": "FLOATS", "activation_beta": "FLOATS", "activations": "STRINGS",
             "clip": "FLOAT", "direction": "STRING"}  # fmt: skip
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.name not in known:
            raise OnnxError(f"{name}: attribute {attribute.name}: expected one of "
                            f"{', '.join(known)}")  # fmt: skip
        kind = kinds.get(attribute.name, "INT")
        if attribute.type != getattr(onnx.AttributeProto, kind):
            raise OnnxError(f"{name}: attribute {attribute.name}: expected {kind}")
        value = onnx.helper.get_attribute_value(attribute)
        if kind == "FLOAT":
            value = _shortest(value)
        if kind == "FLOATS":
            value = [_shortest(v) for v in value]
        if kind.startswith("STRING"):
            value = [v.decode("utf-8", "replace") for v in ([value] if kind == "STRING" else value)]
            value = value[0] if kind == "STRING" else value
        found[attribute.name] = value
    return found
