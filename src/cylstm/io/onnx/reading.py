"""Models from files: within a size, with no data from outside their folder, and checked."""

from __future__ import annotations

import math
import os
from typing import Any

from cylstm import checks
from cylstm.io.onnx.errors import OnnxError, named, package

#: Operators whose output's size is what a constant says, not what its inputs' sizes are.
_SHAPED = {"ConstantOfShape": 0, "Expand": 1}


def read(source: Any, max_bytes: int) -> Any:
    """Read and check a model.

    Parameters
    ----------
    source : str, os.PathLike, bytes or onnx.ModelProto
    max_bytes : int
        Most bytes of the file and of the data beside it.

    Returns
    -------
    onnx.ModelProto
        With all data inside, and without functions of its own.

    Raises
    ------
    OnnxError
        It is damaged or too large, or its data is outside its folder.
    OSError
        The file cannot be read.
    TypeError
        `source` is nothing of this kind.
    """
    onnx = package()
    limit = max_bytes
    if not isinstance(limit, int) or limit < 2**31:
        limit = checks.size("max_bytes", max_bytes)
    folder = None
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
    elif isinstance(source, bytes):
        model = _parsed(source, limit)
    elif isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        _within(os.path.getsize(path), limit)
        with open(path, "rb") as file:
            model = _parsed(file.read(limit + 1), limit)
        folder = os.path.dirname(os.path.abspath(path))
    else:
        raise TypeError(
            f"model: expected a path, bytes or an onnx.ModelProto, got {type(source).__name__}"
        )
    _load_external(model, folder, limit)
    _check(model)
    if model.functions:
        with named("model: functions"):
            model = onnx.inliner.inline_local_functions(model)
    _refuse_huge(model.graph, limit)
    return model


def _within(size: int, limit: int) -> None:
    if size > limit:
        raise OnnxError(f"model: expected at most max_bytes={limit} bytes, got {size}")


def _parsed(data: bytes, limit: int) -> Any:
    _within(len(data), limit)
    with named("model: expected an ONNX file"):
        return package().load_model_from_string(data)


def _check(model: Any) -> None:
    """Run ONNX's own check, which wants a shape where a model may leave it open."""
    types = [v.type.tensor_type for v in (*model.graph.input, *model.graph.output)
             if v.type.HasField("tensor_type")]  # fmt: skip
    without = [kind for kind in types if kind.elem_type and not kind.HasField("shape")]
    for kind in without:
        kind.shape.SetInParent()
    with named("model"):
        package().checker.check_model(model)
    for kind in without:
        kind.ClearField("shape")


def tensors(graph: Any) -> list[Any]:
    """Every TensorProto of a graph: initialisers, and values of attributes, in subgraphs too."""
    found = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            for inner in subgraphs_of(attribute):
                found += tensors(inner)
    return found


def subgraphs_of(attribute: Any) -> list[Any]:
    """Graphs that an attribute holds."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _load_external(model: Any, folder: str | None, limit: int) -> None:
    """Read data that is in other files, which must be in the model's folder and small enough."""
    onnx = package()
    external = onnx.TensorProto.EXTERNAL
    outside = [t for t in tensors(model.graph) if t.data_location == external]
    total = model.ByteSize()
    for tensor in outside:
        if folder is None:
            raise OnnxError(f"model: tensor {tensor.name!r}: expected its data inside, got a file "
                            "beside it: give the model's path")  # fmt: skip
        with named(f"model: tensor {tensor.name!r}: external data"):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            path = os.path.realpath(os.path.join(folder, entries.get("location", "")))
            if os.path.commonpath([path, os.path.realpath(folder)]) != os.path.realpath(folder):
                raise OnnxError(
                    f"model: tensor {tensor.name!r}: expected a file inside the model's folder, "
                    f"got {entries.get('location')!r}"
                )
            total += int(entries.get("length", 0)) or os.path.getsize(path)
            _within(total, limit)
            onnx.external_data_helper.load_external_data_for_tensor(tensor, folder)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _refuse_huge(graph: Any, limit: int) -> None:
    """Refuse constants that make a runtime allocate more than the file can justify."""
    onnx = package()
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        values = [a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
        known |= dict(zip(node.output, values, strict=False))
        place = _SHAPED.get(node.op_type)
        name = f"model: {node.op_type} {node.name or node.output[0]!r}"
        if place is not None and len(node.input) > place and node.input[place] in known:
            with named(name):
                shape = onnx.numpy_helper.to_array(known[node.input[place]]).ravel()
                if math.prod(int(n) for n in shape) * 8 > limit:
                    raise OnnxError(
                        f"{name}: expected at most max_bytes={limit} bytes, got shape "
                        f"{shape.tolist()}"
                    )
        for attribute in node.attribute:
            for inner in subgraphs_of(attribute):
                _refuse_huge(inner, limit)
