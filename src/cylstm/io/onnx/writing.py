"""`to_onnx`: modules as nodes of ONNX, compared with the modules before anything is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.io.onnx import evaluators
from cylstm.io.onnx.errors import OnnxError, package
from cylstm.io.onnx.nodes import COUPLED, COUPLED_PEEPHOLES, KINDS, PEEPHOLES
from cylstm.layers import activations as known
from cylstm.layers.augru import AUGRU
from cylstm.layers.embedding import Embedding
from cylstm.layers.linear import Linear
from cylstm.layers.rnn import RNN
from cylstm.module import Array, Module

if TYPE_CHECKING:
    from cylstm.engine.cells import Activation
    from cylstm.layers.recurrent import Recurrent

#: The newest that onnx 1.16 and ONNX Runtime 1.17 know is 21; this one has all that is needed.
OPSET, IR_VERSION = 18, 8
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
    """

    def __init__(self, dtype: Any, state: bool, lengths: bool) -> None:
        self.dtype, self.state, self.lengths = np.dtype(dtype), state, lengths
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        #: Names of the states of each layer that has one: inputs and outputs.
        self.states: list[tuple[list[str], list[str]]] = []
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
        self.constants.append(package().numpy_helper.from_array(np.ascontiguousarray(found), name))
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
    if layer.batch_first:
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
        w.states.append((given, made))
        for port, pieces in zip(made, zip(*finals, strict=True), strict=True):
            w.nodes.append(package().helper.make_node("Concat", list(pieces), [port], axis=0))
    return w.add("Transpose", x, perm=[1, 0, 2]) if layer.batch_first else x


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


def _write(w: Writer, module: Module, name: str, x: str) -> str:
    """Add a module that reads x; return the name of its output."""
    from cylstm.layers.recurrent import Recurrent

    cases: list[tuple[type, Callable[..., str]]] = [
        (Recurrent, _of_recurrent), (Linear, _of_linear), (Embedding, _of_embedding),
    ]  # fmt: skip
    for kind, write in cases:
        if isinstance(module, kind):
            return write(w, module, name, x)
    raise _refuse(name, module, "expected recurrent layers, Linear and Embedding")


def build(module: Any, dtype: Any, state: bool, lengths: bool) -> tuple[Any, Writer]:
    """Make the model of a module."""
    w = Writer(dtype, state, lengths)
    x = _input(w, module)
    y = _write(w, module, "module", x.name)
    helper = package().helper
    w.nodes.append(helper.make_node("Identity", [y], ["y"]))
    w.inputs.insert(0, x)
    if lengths:
        w.inputs.append(Port("lengths", np.dtype(np.int32), ("B",)))
    kind = helper.np_dtype_to_tensor_dtype
    outputs = [helper.make_tensor_value_info("y", kind(w.dtype), None)]
    outputs += [helper.make_tensor_value_info(p.name, kind(p.dtype), p.shape) for p in w.outputs]
    inputs = [helper.make_tensor_value_info(p.name, kind(p.dtype), p.shape) for p in w.inputs]
    graph = helper.make_graph(w.nodes, "cylstm", inputs, outputs, w.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        graph, producer_name="cylstm", opset_imports=opsets, ir_version=IR_VERSION
    )
    inferred = package().shape_inference.infer_shapes(model)  # which finds the shape of y
    del inferred.graph.value_info[:]
    return inferred, w


def _input(w: Writer, module: Any) -> Port:
    """Return the input of a module: (T, B, features), or (B, T, features), or ids."""
    axes = ("B", "T") if getattr(module, "batch_first", False) else ("T", "B")
    if isinstance(module, Embedding):
        return Port("ids", np.dtype(np.int64), axes)
    width = module.in_features if isinstance(module, Linear) else module.input_size
    return Port("x", w.dtype, (*axes, width))


def _compare(module: Any, state: bool, lengths: bool) -> None:
    """Run a module and its model in ONNX Runtime, in float32, and compare."""
    model, w = build(module, np.float32, state, lengths)
    rng = np.random.default_rng(0)
    sizes = {"T": 5, "B": 3}
    feeds: dict[str, Array] = {}
    for name, dtype, shape in w.inputs:
        whole = [n if isinstance(n, int) else sizes[n] for n in shape]
        feeds[name] = rng.normal(size=whole).astype(dtype)
    if lengths:
        feeds["lengths"] = np.array([5, 2, 3], np.int32)
    if "ids" in feeds:
        feeds["ids"] = rng.integers(module.num_embeddings, size=feeds["ids"].shape)
    outputs = ["y", *(p.name for p in w.outputs)]
    run = evaluators.prepare("onnxruntime", model, outputs)
    expected = _expected(module, w, feeds)
    for name, actual, wanted in zip(outputs, run(feeds), expected, strict=True):
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        difference = float(np.abs(actual - wanted).max(initial=0)) / scale
        if actual.shape != wanted.shape or not difference <= 1e-4:
            raise OnnxError(
                f"check: expected output {name} as the module's, got a difference of "
                f"{difference:.2g}: give check=False to write it all the same"
            )


def _expected(module: Any, w: Writer, feeds: dict[str, Array]) -> list[Array]:
    """Return a module's own outputs: y, and the states where the model has them."""
    options: dict[str, Any] = {"lengths": feeds["lengths"]} if w.lengths else {}
    given = [tuple(feeds[n] for n in names) for names, _ in w.states]
    states = [parts if len(parts) > 1 else parts[0] for parts in given]
    x = next(iter(feeds.values()))
    if isinstance(module, (Linear, Embedding)):
        return [module(x)]
    y, final = module(x, states[0] if states else None, **options)
    if not states:
        return [y]
    return [y, *(final if isinstance(final, tuple) else (final,))]


def to_onnx(
    module: Module,
    path: str | os.PathLike[str],
    *,
    state: bool = False,
    lengths: bool = False,
    check: bool | None = None,
) -> None:
    """Write a module as a model of ONNX that runs at any number of steps and rows.

    Its input is "x" (T, B, I), (B, T, I) with `batch_first`, or "ids" for an `Embedding`, its
    output "y". What only `forward` does, as dropout, is left out. Weights go over bit by bit; a
    float64 module makes a model of doubles, whose recurrent nodes not every runtime has.

    Needs the `onnx` package: ``pip install "cylstm[onnx]"``.

    Parameters
    ----------
    module : RNN, LSTM, GRU, Linear or Embedding
        What to write.
    path : str or path
        File to write. It appears whole or not at all.
    state : bool, default False
        Whether states are inputs, "h0" and for an LSTM "c0", and outputs, "hn" and "cn", of shape
        (num_layers * num_directions, B, H).
    lengths : bool, default False
        Whether "lengths" (B,), int32, is an input of a recurrent layer. For rows of length 0 ONNX
        Runtime gives states of 0, where the layer's pass through.
    check : bool, optional
        Whether to run the model in ONNX Runtime and compare its outputs with the module's before
        the file is written, in float32. Default: where ONNX Runtime is installed.

    Raises
    ------
    OnnxError
        A ValueError: ONNX has no word for the module or for one of its options, which the message
        names; or `check` found a difference.
    ImportError
        The `onnx` package is not installed, or with `check=True` ONNX Runtime.
    OSError
        The file cannot be written.
    TypeError
        `module` is not a module of this library.
    """
    package()
    if not isinstance(module, Module):
        raise TypeError(f"module: expected a module of cylstm, got {type(module).__name__}")
    checks.flag("state", state)
    if checks.flag("lengths", lengths) and not hasattr(module, "num_directions"):
        raise OnnxError(f"lengths: expected False but for a recurrent layer, got {module!r}")
    model, _ = build(module, module.dtype, state, lengths)
    if check is None:
        check = find_spec("onnxruntime") is not None
    if checks.flag("check", check):
        _compare(module, state, lengths)
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
        try:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, os.path.join(folder, name))
        except BaseException:
            os.unlink(file.name)
            raise
