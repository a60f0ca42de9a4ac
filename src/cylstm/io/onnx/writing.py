"""`to_onnx`: a module as a model, compared with the module before anything is written."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from typing import Any

import numpy as np

from cylstm import checks
from cylstm.io.onnx import emitting, evaluators
from cylstm.io.onnx.emitting import Port, Writer
from cylstm.io.onnx.errors import OnnxError, package
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array, Module

#: The newest that onnx 1.16 and ONNX Runtime 1.17 know is 21; this one has all that is needed.
OPSET, IR_VERSION = 18, 8


def build(module: Any, dtype: Any, state: bool, lengths: bool) -> tuple[Any, Writer]:
    """Make the model of a module."""
    w = Writer(dtype, state, lengths, bool(getattr(module, "_batch_first", None)))
    x = _input(w, module)
    y = emitting.write(w, module, "module", x.name)
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
    axes = ("B", "T") if w.batch_first else ("T", "B")
    if getattr(module, "_reads_ids", False):
        return Port("ids", np.dtype(np.int64), axes)
    return Port("x", w.dtype, (*axes, module._width or "C"))


def _compare(module: Any, state: bool, lengths: bool) -> None:
    """Run a module and its model in ONNX Runtime, in float32, and compare."""
    model, w = build(module, np.float32, state, lengths)
    rng = np.random.default_rng(0)
    sizes = {"T": 5, "B": 3, "C": 4}
    feeds: dict[str, Array] = {}
    for name, dtype, shape in w.inputs:
        whole = [n if isinstance(n, int) else sizes[n] for n in shape]
        feeds[name] = rng.normal(size=whole).astype(dtype)
    if lengths:
        feeds["lengths"] = np.array([5, 2, 3], np.int32)
    if "ids" in feeds:
        feeds["ids"] = rng.integers(_vocabulary(module), size=feeds["ids"].shape)
    outputs = ["y", *(p.name for p in w.outputs)]
    run = evaluators.prepare("onnxruntime", model, outputs)
    expected = _expected(module, w, feeds)
    for name, actual, wanted in zip(outputs, run(feeds), expected, strict=True):
        if actual.shape != wanted.shape:
            raise OnnxError(f"check: expected output {name} of shape {wanted.shape}, got "
                            f"{actual.shape}")  # fmt: skip
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        difference = float(np.abs(actual - wanted).max(initial=0)) / scale
        if not difference <= 1e-4:
            raise OnnxError(
                f"check: expected output {name} as the module's, got a difference of "
                f"{difference:.2g}: give check=False to write it all the same"
            )


def _vocabulary(module: Any) -> int:
    """Ids that the embedding at the beginning of a network knows."""
    while not hasattr(module, "num_embeddings"):
        module = next(iter(module))
    return int(module.num_embeddings)


def _expected(module: Any, w: Writer, feeds: dict[str, Array]) -> list[Array]:
    """Return a module's own outputs: y, and the states where the model has them."""
    options: dict[str, Any] = {"lengths": feeds["lengths"]} if w.lengths else {}
    x = next(iter(feeds.values()))
    if not module._has_state:
        return [module(x, **options)]
    state = _state(w.states[0], feeds) if w.states else None
    y, finals = module(x, state, **options)
    return [y, *_flat(finals)] if w.states else [y]


def _state(names: Any, feeds: dict[str, Array]) -> Any:
    """Arrays of a state, as a layer or a network takes them."""
    if isinstance(names, list):
        return tuple(_state(part, feeds) for part in names)
    return feeds[names[0]] if len(names) == 1 else tuple(feeds[n] for n in names)


def _flat(value: Any) -> list[Array]:
    return [a for part in value for a in _flat(part)] if isinstance(value, tuple) else [value]


def to_onnx(
    module: Module,
    path: str | os.PathLike[str],
    *,
    state: bool = False,
    lengths: bool = False,
    check: bool | None = None,
) -> None:
    """Write a module as a model of ONNX that runs at any number of steps and rows.

    Its input is "x" (T, B, I), (B, T, I) with `batch_first`, or "ids" where an `Embedding` comes
    first, its output "y". What only `forward` does, as dropout, is left out. Weights go over bit by
    bit; a float64 module makes a model of doubles, whose recurrent nodes not every runtime has.

    Needs the `onnx` package: ``pip install "cylstm[onnx]"``.

    Parameters
    ----------
    module : Module
        `RNN`, `LSTM`, `GRU`, `Linear`, `Embedding`, `Activation`, `Softmax`, `LogSoftmax`,
        `LayerNorm`, `BatchNorm`, `Pool`, `Dropout`, or a `Sequential` of them.
    path : str or path
        File to write. It appears whole or not at all.
    state : bool, default False
        Whether states are inputs, "h0" and for an LSTM "c0", and outputs, "hn" and "cn", of shape
        (num_layers * num_directions, B, H). In a network their names begin with the module's, as
        in "1.h0".
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
    if checks.flag("lengths", lengths) and not isinstance(module, Recurrent):
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
