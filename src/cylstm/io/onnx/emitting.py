"""Modules as nodes of ONNX: each one's, or a refusal that names the option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm.io.onnx.errors import OnnxError, package
from cylstm.io.onnx.nodes import COUPLED, COUPLED_PEEPHOLES, KINDS, PEEPHOLES
from cylstm.layers import activations as known
from cylstm.layers.activation import Activation as Function
from cylstm.layers.activation import LogSoftmax, Softmax
from cylstm.layers.augru import AUGRU
from cylstm.layers.dropout import Dropout
from cylstm.layers.embedding import Embedding
from cylstm.layers.linear import Linear
from cylstm.layers.norm import BatchNorm, LayerNorm
from cylstm.layers.pool import Pool
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.rnn import RNN
from cylstm.layers.sequential import Sequential
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.engine.cells import Activation

#: Options that change what a plain call computes, and that ONNX has no word for.
_UNSAID = ("layer_norm", "cell_clip", "proj_size", "independent", "zoneout", "zoneout_cell")
_NAMES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "affine": "Affine",
          "leakyrelu": "LeakyRelu", "thresholdedrelu": "ThresholdedRelu", "softsign": "Softsign",
          "scaledtanh": "ScaledTanh", "hardsigmoid": "HardSigmoid", "elu": "Elu",
          "softplus": "Softplus"}  # fmt: skip
_MERGED = {"sum": "ReduceSum", "mul": "ReduceProd", "ave": "ReduceMean"}


class Port(NamedTuple):
    """An input or output of the graph; sizes that may vary are words."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Writer:
    """Nodes and weights of a graph in the making.

    Parameters
    ----------
    dtype : numpy dtype
        Of weights and activations.
    state : bool
        Whether states are inputs and outputs.
    lengths : bool
        Whether lengths are an input.
    batch_first : bool
        Whether rows are the first axis, steps the second.
    """

    def __init__(self, dtype: Any, state: bool, lengths: bool, batch_first: bool) -> None:
        self.dtype, self.state, self.lengths = np.dtype(dtype), state, lengths
        self.batch_first = batch_first
        #: The recurrent layer that made the output so far, and its final h (D, B, H).
        self.last: tuple[Recurrent, str] | None = None
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        #: Names of the state inputs of each layer that has one; of a network, a list of them.
        self.states: list[Any] = []
        self._count = 0

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        self._count += 1
        output = f"{name or operator}_{self._count}"
        self.nodes.append(
            package().helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        )
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add an initialiser: weights in the graph's dtype, integers as they are."""
        found = np.asarray(value)
        if found.dtype.kind == "f":
            found = found.astype(self.dtype)
        name = f"{name}_{len(self.constants)}"
        self.constants.append(package().numpy_helper.from_array(np.array(found, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a vector of integers."""
        return self.constant("shape", np.array(values, np.int64))


def _refuse(name: str, module: Any, why: str) -> OnnxError:
    return OnnxError(f"{name}: {why}, got {module!r}")


def _of_recurrent(w: Writer, layer: Recurrent, name: str, x: str) -> str:
    """Add a recurrent layer: a node for each of its layers."""
    kind = next((k for k, v in KINDS.items() if isinstance(layer, v.layer)), None)
    if kind is None or isinstance(layer, AUGRU):
        raise _refuse(name, layer, "expected an LSTM, GRU or RNN, as ONNX has them")
    _check_options(w, layer, name)
    prefix = f"{name}." if name != "module" else ""
    ways, states = layer.num_directions, layer.states
    given: list[str] = []
    if w.state:
        sizes = (layer.num_layers * ways, "B", layer.hidden_sizes[0])
        given = [f"{prefix}{s}0" for s in states]
        w.inputs += [Port(n, w.dtype, sizes) for n in given]
    if w.batch_first:
        x = w.add("Transpose", x, perm=[1, 0, 2])
    finals: list[list[str]] = []
    for depth in range(layer.num_layers):
        initial = _initial(w, layer, depth, x, given)
        outputs = _node(w, layer, kind, f"{prefix}l{depth}", (x, *initial))
        finals.append(outputs[1:])
        x = _merged(w, layer, depth, outputs[0])
    if w.state:
        made = [f"{prefix}{s}n" for s in states]
        w.outputs += [Port(n, w.dtype, sizes) for n in made]
        w.states.append(tuple(given))
        for port, pieces in zip(made, zip(*finals, strict=True), strict=True):
            w.nodes.append(package().helper.make_node("Concat", list(pieces), [port], axis=0))
    w.last = layer, finals[-1][0]
    return w.add("Transpose", x, perm=[1, 0, 2]) if w.batch_first else x


def _check_options(w: Writer, layer: Recurrent, name: str) -> None:
    for option in _UNSAID:
        if getattr(layer, option, None):
            raise _refuse(name, layer, f"expected no {option}, which ONNX cannot say")
    if layer.merge_mode == "separate":
        raise _refuse(name, layer, "expected a merge_mode with one output")
    if w.state and len(set(layer.hidden_sizes)) > 1:
        raise _refuse(name, layer, "expected one hidden_size with state=True")


def _initial(w: Writer, layer: Recurrent, depth: int, x: str, given: Sequence[str]) -> list[str]:
    """Return one layer's initial states: slices of the inputs, what was learned, or none."""
    ways = layer.num_directions
    if given:
        where = w.integers(depth * ways), w.integers((depth + 1) * ways), w.integers(0)
        return [w.add("Slice", state, *where) for state in given]
    if not layer.learn_initial_state:
        return ["" for _ in layer.states]
    found = []
    for state in layer.states:
        names = [f"initial_{state}_l{depth}{d}" for d in ("", "_reverse")[:ways]]
        learned = np.stack([layer.params[n] for n in names])[:, None]
        rows = w.add("Shape", x, start=1, end=2)
        size = w.add("Concat", w.integers(ways), rows, w.integers(learned.shape[2]), axis=0)
        found.append(w.add("Expand", w.constant(names[0], learned), size))
    return found


def _node(w: Writer, layer: Recurrent, kind: str, name: str, inputs: Sequence[str]) -> list[str]:
    """Add one node of LSTM, GRU or RNN; return the names of its outputs."""
    depth = int(name.rpartition("l")[2])
    x, *initial = inputs
    weights = {n: w.constant(f"{name}.{n}", v) for n, v in node_weights(layer, kind, depth).items()}
    lengths = "lengths" if w.lengths else ""
    names = [x, weights["W"], weights["R"], weights.get("B", ""), lengths, *initial]
    names += [weights["P"]] if "P" in weights else []
    while not names[-1]:
        names.pop()
    outputs = [f"{name}.{out}" for out in ("Y", "Y_h", "Y_c")[: 1 + len(layer.states)]]
    attributes = node_attributes(layer, kind)
    attributes["hidden_size"] = layer.hidden_sizes[depth]
    w.nodes.append(package().helper.make_node(kind, names, outputs, name=name, **attributes))
    return outputs


def node_weights(layer: Recurrent, kind: str, depth: int) -> dict[str, Array]:
    """W, R, and B and P where the layer has them, of one of its layers, in ONNX's order."""
    coupled = getattr(layer, "coupled", False)
    order = COUPLED if coupled else KINDS[kind].order
    blocks, params = KINDS[kind].blocks, layer.params
    suffixes = [f"_l{depth}{d}" for d in ("", "_reverse")[: layer.num_directions]]

    def stacked(name: str) -> Array:
        return np.stack([_spread(params[name + s], order, blocks) for s in suffixes])

    found = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if layer.bias:
        first = stacked("bias_ih")
        second = np.zeros_like(first) if layer.bias == "single" else stacked("bias_hh")
        found["B"] = np.concatenate((first, second), 1)
    if f"weight_peephole_l{depth}" in params:
        kept = COUPLED_PEEPHOLES if coupled else PEEPHOLES
        parts = [_spread(params[f"weight_peephole{s}"], kept, 3) for s in suffixes]
        found["P"] = np.stack(parts)
    return found


def _spread(value: Array, order: Sequence[int], blocks: int) -> Array:
    """Blocks of rows in ONNX's order; zeros where there are none, which are not read."""
    parts = np.split(value, len(order))
    nothing = np.zeros_like(parts[0])
    return np.concatenate([parts[order.index(k)] if k in order else nothing for k in range(blocks)])


def node_attributes(layer: Recurrent, kind: str) -> dict[str, Any]:
    """Attributes of a layer's nodes, with every number written out."""
    found: dict[str, Any] = {"direction": "reverse" if layer.go_backwards else "forward"}
    if layer.bidirectional:
        found["direction"] = "bidirectional"
    if layer.clip:
        found["clip"] = layer.clip
    if getattr(layer, "coupled", False):
        found["input_forget"] = 1
    if kind == "GRU":
        found["linear_before_reset"] = int(getattr(layer, "reset_after", True))
    chosen = _activations(layer) * layer.num_directions
    found["activations"] = [_NAMES[a.name] for a in chosen]
    for place, name in enumerate(("activation_alpha", "activation_beta")):
        numbers = [float(a[1 + place]) for a in chosen if known.PARAMETERS.get(a.name, 0) > place]
        if numbers:
            found[name] = numbers
    return found


def _activations(layer: Any) -> list[Activation]:
    """Return the activations of ONNX's places: one for all sigmoid gates."""
    if isinstance(layer, RNN):
        return [known.parse("nonlinearity", layer.nonlinearity)]
    by_gate = {gate: known.parse(gate, value) for gate, value in layer.activations.items()}
    gates = {gate: a for gate, a in by_gate.items() if gate not in ("candidate", "cell")}
    if len(set(gates.values())) > 1:
        raise OnnxError(
            f"activations: expected the same for {', '.join(gates)}, as ONNX has one for all of "
            f"them, got {dict(layer.activations)}"
        )
    rest = [by_gate[name] for name in ("candidate", "cell") if name in by_gate]
    return [next(iter(gates.values())), *rest]


def _merged(w: Writer, layer: Recurrent, depth: int, y: str) -> str:
    """Y (T, D, B, H) as the layer's output (T, B, features)."""
    if layer.num_directions == 1:
        return w.add("Squeeze", y, w.integers(1))
    if layer.merge_mode in _MERGED:
        return w.add(_MERGED[layer.merge_mode], y, w.integers(1), keepdims=0)
    y = w.add("Transpose", y, perm=[0, 2, 1, 3])
    return w.add("Reshape", y, w.integers(0, 0, 2 * layer.hidden_sizes[depth]))


def _of_linear(w: Writer, layer: Linear, name: str, x: str) -> str:
    source: Any = layer if layer.tied_to is None else layer.tied_to
    y = w.add("MatMul", x, w.constant(f"{name}.weight", source.params["weight"].T))
    if layer.bias:
        y = w.add("Add", y, w.constant(f"{name}.bias", layer.params["bias"]))
    return y if layer.activation is None else _activated(w, layer.activation, y)


def _activated(w: Writer, value: Any, x: str) -> str:
    """Add an activation as nodes of its own."""
    a = known.parse("activation", value)
    alpha, beta = (w.constant(n, np.float64(v)) for n, v in (("alpha", a[1]), ("beta", a[2])))
    if a.name == "affine":
        return w.add("Add", w.add("Mul", x, alpha), beta)
    if a.name == "scaledtanh":
        return w.add("Mul", w.add("Tanh", w.add("Mul", x, beta)), alpha)
    names = ("alpha", "beta")[: known.PARAMETERS.get(a.name, 0)]
    numbers: dict[str, Any] = {n: float(v) for n, v in zip(names, a[1:], strict=False)}
    return w.add(_NAMES[a.name], x, **numbers)


def _of_embedding(w: Writer, layer: Embedding, name: str, ids: str) -> str:
    return w.add("Gather", w.constant(f"{name}.weight", layer.params["weight"]), ids)


def _of_pool(w: Writer, pool: Pool, name: str, x: str) -> str:
    time = int(w.batch_first)
    if pool.mode == "last":
        return w.add("Gather", x, w.constant("last", np.int64(-1)), axis=time)
    if pool.mode != "final":
        operator = {"mean": "ReduceMean", "max": "ReduceMax"}[pool.mode]
        return w.add(operator, x, w.integers(time), keepdims=0)
    if w.last is None:
        raise _refuse(name, pool, "expected a recurrent layer directly before")
    layer, final = w.last
    if layer.merge_mode in _MERGED:
        return w.add(_MERGED[layer.merge_mode], final, w.integers(0), keepdims=0)
    final = w.add("Transpose", final, perm=[1, 0, 2])
    return w.add("Reshape", final, w.integers(0, layer.num_directions * layer.output_sizes[-1]))


def _of_layer_norm(w: Writer, norm: LayerNorm, name: str, x: str) -> str:
    parts = [w.constant(f"{name}.{n}", norm.params[n]) for n in ("weight", "bias")[: 1 + norm.bias]]
    return w.add("LayerNormalization", x, *parts, axis=-1, epsilon=norm.eps)


def _of_batch_norm(w: Writer, norm: BatchNorm, name: str, x: str) -> str:
    scale, shift = norm.scale_and_shift()
    y = w.add("Mul", x, w.constant(f"{name}.scale", scale))
    return w.add("Add", y, w.constant(f"{name}.shift", shift))


def _of_sequential(w: Writer, network: Sequential, name: str, x: str) -> str:
    outer, w.states = w.states, []
    for child, module in network._children.items():
        last = w.last
        x = write(w, module, child if name == "module" else f"{name}.{child}", x)
        if w.last is last:
            w.last = None  # no longer directly before
    w.states = [*outer, w.states] if w.states else outer
    return x


_CASES: list[tuple[type, Callable[..., str]]] = [
    (Sequential, _of_sequential),
    (Recurrent, _of_recurrent),
    (Linear, _of_linear),
    (Embedding, _of_embedding),
    (Function, lambda w, f, name, x: _activated(w, (f.name, *f.numbers), x)),
    (Softmax, lambda w, f, name, x: w.add("Softmax", x, axis=-1)),
    (LogSoftmax, lambda w, f, name, x: w.add("LogSoftmax", x, axis=-1)),
    (Dropout, lambda w, f, name, x: x),
    (Pool, _of_pool),
    (LayerNorm, _of_layer_norm),
    (BatchNorm, _of_batch_norm),
]


def write(w: Writer, module: Any, name: str, x: str) -> str:
    """Add a module that reads x.

    Parameters
    ----------
    w : Writer
    module : Module
    name : str
        Where the module is in its network; "module" for the whole.
    x : str
        The input's name in the graph.

    Returns
    -------
    str
        The output's name.

    Raises
    ------
    OnnxError
        ONNX has no word for it, or for one of its options.
    """
    for kind, writing in _CASES:
        if isinstance(module, kind):
            return writing(w, module, name, x)
    raise _refuse(name, module, "expected a module that ONNX can say")
