"""A graph that is a line of modules, as a `Sequential`; otherwise the reason why it is none.

One value is followed from the graph's input to its output. Along with it goes what its axes are:
"time" and "rows" once a recurrent node has told them apart, until then 0 and 1, as in the input;
"ways" for the directions of a node's Y; "features".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.io.onnx.errors import OnnxError, named, package
from cylstm.io.onnx.nodes import Recurrence, label
from cylstm.layers.activation import Activation, LogSoftmax, Softmax
from cylstm.layers.activations import KNOWN, PARAMETERS
from cylstm.layers.embedding import Embedding
from cylstm.layers.linear import Linear
from cylstm.layers.norm import LayerNorm
from cylstm.layers.pool import Pool
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.sequential import Sequential
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.io.onnx.plan import Plan

#: Nodes that make zeros of zeros, and take a state apart or put it together.
_KEEPING = ("Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze",
            "Transpose", "Unsqueeze")  # fmt: skip
_MERGED = {"ReduceSum": "sum", "ReduceProd": "mul", "ReduceMean": "ave"}


class Line:
    """The way through a graph.

    Parameters
    ----------
    model : onnx.ModelProto
    plan : Plan
        Of its graph.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        self._scope = scope = plan.scope
        #: Recurrent nodes by the node's id.
        self._cuts = {k: cut for k, cut in plan.cuts.items() if isinstance(cut, Recurrence)}
        self._opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        graph = model.graph
        #: Axes of the input before its features.
        self._order = ["time", "rows"]
        self._makers = {name: node for node in scope.nodes for name in node.output if name}
        self._inputs = [v.name for v in graph.input if v.name not in scope.constants]
        self.outputs = [value.name for value in graph.output]
        self._types = {v.name: v.type.tensor_type for v in graph.input}
        self._modules: list[Any] = []
        self._lengths = False

    def module(self) -> Sequential:
        """Follow the line.

        Raises
        ------
        OnnxError
            It is none; the message names the first node that is in the way.
        """
        onnx = package()
        ending = [name for name in self.outputs if not self._is_state(name)]
        if len(ending) != 1:
            raise OnnxError(f"module: expected one output beside states, got {ending}")
        beginning = [name for name in self._inputs if name not in self._beside(ending[0])]
        if len(beginning) != 1:
            raise OnnxError(f"module: expected one input beside states, got {beginning}")
        needed = self._before(ending[0])
        name = beginning[0]
        kind = self._types[name]
        floats = kind.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
        rank = len(kind.shape.dim)
        self._axes: list[Any] = [*range(rank)]
        if floats:
            self._axes[-1:] = ["features"]
        while name != ending[0]:
            after = [n for n in self._scope.nodes if id(n) in needed and name in n.input]
            after = [n for n in after if n.op_type != "Shape"]
            if len(after) != 1:
                raise OnnxError(f"module: expected {name!r} to go to one node, got "
                                f"{[label(n) for n in after]}")  # fmt: skip
            name = self._through(after[0], name, needed)
        if "features" not in self._axes[-1:] or "ways" in self._axes:
            raise OnnxError(f"module: expected an output with features last, got {self._axes}")
        return self._sequential()

    def _sequential(self) -> Sequential:
        """Put modules in a row, with the axes as they came in."""
        order = [axis for axis in self._axes if axis != "features"]
        if len(order) == 2 and order not in (self._order, [0, 1]):
            raise OnnxError(f"module: expected axes as in the input, got {self._axes}")
        first = self._order[0] == "rows"
        made = [
            _remade(m, batch_first=first) if isinstance(m, Recurrent) else m for m in self._modules
        ]
        with named("module"):
            return Sequential(*made)

    # What is beside the line

    def _is_state(self, name: str) -> bool:
        """Whether a value is a final state, or put together from such."""
        node = self._makers.get(name)
        if node is None:
            return False
        if id(node) in self._cuts:
            return name in list(node.output)[1:] and len(self.outputs) > 1
        parts = [n for n in node.input if n and n not in self._scope.constants]
        return node.op_type in ("Concat", "Identity") and all(map(self._is_state, parts))

    def _beside(self, ending: str) -> set[str]:
        """Find the inputs of the graph that are initial states or lengths."""
        needed = self._before(ending)
        cuts = [cut for key, cut in self._cuts.items() if key in needed]
        lengths = {cut.inputs.get("sequence_lens", "") for cut in cuts}
        if len(lengths) > 1 or not lengths <= {"", *self._inputs}:
            raise OnnxError(f"module: expected the same lengths for all layers, an input of the "
                            f"graph, got {sorted(lengths)}")  # fmt: skip
        self._lengths = any(lengths)
        found = set(lengths)
        for cut in cuts:
            for state in ("initial_h", "initial_c"):
                root = self._root(cut.inputs.get(state, ""))
                if root is None:
                    raise OnnxError(f"module: {cut.label}: expected {state} of zeros, or an input "
                                    "of the graph")  # fmt: skip
                found.add(root)
        return found

    def _root(self, name: str) -> str | None:
        """Input of the graph that a state comes from; "" where it is zeros, None elsewhere."""
        if not name or name in self._inputs:
            return name
        if name in self._scope.constants:
            value = self._scope.value(name)
            return None if value is None or value.any() else ""
        node = self._makers.get(name)
        if node is None or node.domain:
            return None
        if node.op_type == "ConstantOfShape":
            values = [package().numpy_helper.to_array(a.t) for a in node.attribute]
            return None if any(v.any() for v in values) else ""
        if node.op_type not in _KEEPING:
            return None
        parts = node.input if node.op_type == "Concat" else node.input[:1]
        roots = {self._root(part) for part in parts}
        return roots.pop() if len(roots) == 1 else None

    def _before(self, name: str) -> set[int]:
        """Ids of all nodes that a value depends on."""
        found: set[int] = set()
        names = [name]
        while names:
            node = self._makers.get(names.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                names += node.input
        return found

    # One node after the other

    def _through(self, node: Any, name: str, needed: set[int]) -> str:
        """Go through a node; return the name of the value after it."""
        if id(node) in self._cuts:
            return self._recurrent(node, name, needed)
        if node.domain not in ("", "ai.onnx"):
            raise self._in_the_way(node)
        attributes = {a.name: package().helper.get_attribute_value(a) for a in node.attribute}
        steps: dict[str, Callable[[Any, str, dict[str, Any]], Any]] = {
            "Gather": self._gather, "Transpose": self._transpose, "Squeeze": self._squeeze,
            "Reshape": self._reshape, "MatMul": self._matmul, "Gemm": self._gemm,
            "Add": self._add, "Softmax": self._softmax, "LogSoftmax": self._softmax,
            "LayerNormalization": self._layer_norm, "ReduceMean": self._reduce,
            "ReduceMax": self._reduce, "ReduceSum": self._reduce, "ReduceProd": self._reduce,
        }  # fmt: skip
        lower = node.op_type.lower()
        if node.op_type in steps:
            steps[node.op_type](node, name, attributes)
        elif lower in KNOWN and "keras" not in lower:
            numbers = [attributes.get(n, KNOWN[lower][1 + k]) for k, n in
                       enumerate(("alpha", "beta")[: PARAMETERS.get(lower, 0)])]  # fmt: skip
            self._modules.append(Activation(lower, *(float(str(np.float32(n))) for n in numbers)))
        elif node.op_type not in ("Identity", "Dropout") or len(node.input) > 2:
            raise self._in_the_way(node)
        return str(node.output[0])

    def _in_the_way(self, node: Any, why: str = "what a module says") -> OnnxError:
        return OnnxError(f"module: {label(node)}: expected {why}, got axes {self._axes}")

    def _constant(self, node: Any, place: int) -> Array:
        """Read an input that is a constant."""
        value = self._scope.value(node.input[place]) if len(node.input) > place else None
        if value is None:
            raise self._in_the_way(node, f"a constant as input {place}")
        return value

    def _recurrent(self, node: Any, name: str, needed: set[int]) -> str:
        cut = self._cuts[id(node)]
        if cut.parts is None or len(cut.parts) > 1:
            raise self._in_the_way(node, "one layer, with weights in the file")
        if cut.inputs["X"] != name or len(self._axes) != 3 or self._axes[-1] != "features":
            raise self._in_the_way(node, "steps, rows and features")
        axes = self._axes[1::-1] if cut.batch_first else self._axes[:2]  # those of time and rows
        if "time" in axes and axes != ["time", "rows"]:
            raise self._in_the_way(node, "the axis of time where it was")
        if axes != ["time", "rows"]:
            self._order = ["time", "rows"] if axes == [0, 1] else ["rows", "time"]
        self._modules.append(cut.parts[0].layer)
        y, h = [*map(str, node.output), "", ""][:2]
        read = {n for other in self._scope.nodes if id(other) in needed for n in other.input}
        read |= {n for n in self.outputs if not self._is_state(n)}
        if y in read and h in read:
            raise self._in_the_way(node, "Y or Y_h to go on, not both")
        rest = ["rows", "features"]
        if y in read:
            self._axes = ["rows", "time", "ways", "features"] if cut.batch_first else [
                "time", "ways", *rest]  # fmt: skip
            return y
        if h not in read:
            raise self._in_the_way(node, "Y or Y_h to go on")
        self._modules.append(Pool("final"))
        self._axes = ["rows", "ways", "features"] if cut.batch_first else ["ways", *rest]
        return h

    def _gather(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        axis = attributes.get("axis", 0)
        if node.input[1] == name:
            table = self._constant(node, 0)
            if axis or table.ndim != 2 or "features" in self._axes:
                raise self._in_the_way(node, "rows of a table")
            ids, width = table.shape
            self._modules.append(
                _loaded(Embedding, {"weight": table}, num_embeddings=ids, embedding_dim=width)
            )
            self._axes.append("features")
            return
        which = self._constant(node, 1)
        if self._axes[axis] == "ways" and self._ways() == 1 and not which.ndim:
            del self._axes[axis]
            return
        if self._axes[axis] != "time" or which.ndim or which != -1 or self._lengths:
            raise self._in_the_way(node, "the last step of all")
        self._pool("last", axis)

    def _pool(self, mode: str, axis: int) -> None:
        self._modules.append(Pool(mode))
        del self._axes[axis]

    def _transpose(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        order = attributes.get("perm", list(range(len(self._axes)))[::-1])
        self._axes = [self._axes[k] for k in order]

    def _squeeze(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        axes = attributes["axes"] if "axes" in attributes else self._constant(node, 1).tolist()
        if len(axes) != 1 or self._axes[axes[0]] != "ways" or self._ways() != 1:
            raise self._in_the_way(node, "the axis of one direction")
        del self._axes[axes[0]]

    def _ways(self) -> int:
        return next(m.num_directions for m in self._modules[::-1] if isinstance(m, Recurrent))

    def _reshape(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        """Put both directions side by side."""
        shape = self._constant(node, 1).tolist()
        width = self._width()
        if (
            self._axes[-2:] != ["ways", "features"]
            or len(shape) != len(self._axes) - 1
            or shape[-1] not in (-1, width)
            or any(n != 0 for n in shape[:-1][1:])
            or attributes.get("allowzero", 0)
        ):
            raise self._in_the_way(node, "both directions to come side by side")
        self._axes = [*self._axes[:-2], "features"]

    def _width(self) -> int:
        layer = next(m for m in self._modules[::-1] if isinstance(m, Recurrent))
        return int(layer.output_sizes[-1] * layer.num_directions)

    def _reduce(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        """Read the mean or maximum over time, or the merging of directions."""
        axes = attributes["axes"] if "axes" in attributes else self._constant(node, 1).tolist()
        if len(axes) != 1 or attributes.get("keepdims", 1):
            raise self._in_the_way(node, "one axis to go")
        axis = int(axes[0])
        what = self._axes[axis]
        if what == "time" and node.op_type in ("ReduceMean", "ReduceMax") and not self._lengths:
            self._pool(node.op_type[6:].lower(), axis)
            return
        if what != "ways" or node.op_type not in _MERGED:
            raise self._in_the_way(node, "a mean or maximum over time")
        place = max(k for k, m in enumerate(self._modules) if isinstance(m, Recurrent))
        layer = self._modules[place]
        if layer.num_directions == 2:
            self._modules[place] = _remade(layer, merge_mode=_MERGED[node.op_type])
        del self._axes[axis]

    def _features_last(self, node: Any) -> None:
        if self._axes[-1] != "features":
            raise self._in_the_way(node, "features last")

    def _linear(self, weight: Array, bias: Array | None) -> None:
        state = {"weight": weight} | ({} if bias is None else {"bias": bias})
        rows, width = weight.shape
        self._modules.append(
            _loaded(Linear, state, in_features=width, out_features=rows, bias=bias is not None)
        )

    def _matmul(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        self._features_last(node)
        weight = self._constant(node, 1)
        if weight.ndim != 2:
            raise self._in_the_way(node, "a matrix")
        self._linear(weight.T, None)

    def _add(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        """Read the bias of the matrix product just before."""
        bias = self._constant(node, 1 if node.input[0] == name else 0)
        before = self._modules[-1] if self._modules else None
        if not isinstance(before, Linear) or before.bias or bias.shape != (before.out_features,):
            raise self._in_the_way(node, "a bias after a matrix product")
        self._modules.pop()
        self._linear(before.params["weight"], bias)

    def _gemm(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        self._features_last(node)
        plain = attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
        if not plain or attributes.get("transA", 0) or len(self._axes) != 2:
            raise self._in_the_way(node, "x W + b of rows")
        weight = self._constant(node, 1)
        bias = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else None
        weight = weight if attributes.get("transB", 0) else weight.T
        if bias is not None and bias.shape != weight.shape[:1]:
            raise self._in_the_way(node, "a bias for each feature")
        self._linear(weight, bias)

    def _softmax(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        self._features_last(node)
        axis = attributes.get("axis", -1 if self._opset >= 13 else 1)
        if axis not in (-1, len(self._axes) - 1):
            raise self._in_the_way(node, "the axis of features")
        self._modules.append(Softmax() if node.op_type == "Softmax" else LogSoftmax())

    def _layer_norm(self, node: Any, name: str, attributes: dict[str, Any]) -> None:
        self._features_last(node)
        if attributes.get("axis", -1) not in (-1, len(self._axes) - 1):
            raise self._in_the_way(node, "the axis of features")
        state = {"weight": self._constant(node, 1)}
        if len(node.input) > 2 and node.input[2]:
            state["bias"] = self._constant(node, 2)
        eps = float(str(np.float32(attributes.get("epsilon", 1e-5))))
        width, bias = state["weight"].size, "bias" in state
        self._modules.append(_loaded(LayerNorm, state, normalized_shape=width, eps=eps, bias=bias))


def _loaded(kind: Any, state: Mapping[str, Array], **options: Any) -> Any:
    """Make a module with these parameters, in their dtype; none are drawn."""
    double = all(value.dtype == np.float64 for value in state.values())
    with named("module"):
        module = kind._undrawn(dtype="float64" if double else "float32", **options)
        module.assign(dict(state))
        return module


def _remade(layer: Any, **changes: Any) -> Any:
    """Make the layer again with other options; itself if they are the same."""
    if all(getattr(layer, name) == value for name, value in changes.items()):
        return layer
    config = {name: value for name, value in layer.config.items() if name != "class"}
    made = type(layer)._undrawn(**(config | changes))
    made.assign(dict(layer.params))
    return made
