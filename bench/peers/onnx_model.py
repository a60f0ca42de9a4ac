"""The case as an ONNX model, for the engines that read one."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import Array, Case, Problem
from onnx import TensorProto, checker, helper, numpy_helper

# Gate blocks in ONNX's order (i,o,f,c and z,r,h), as indices into PyTorch's.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def feeds(problem: Problem) -> dict[str, Array]:
    """Inputs of the model."""
    if problem.lengths is None:
        return {"X": problem.x}
    return {"X": problem.x, "lengths": problem.lengths.astype(np.int32)}


def results(case: Case, y: Array, states: list[Array]) -> list[Array]:
    """Y (T, D, B, H) and states per layer (D, B, H) as PyTorch's y, h_n and c_n."""
    t, d, b, h = y.shape
    out = [y.transpose(0, 2, 1, 3).reshape(t, b, d * h)]
    kinds = 2 if case.cell == "lstm" else 1
    return out + [np.concatenate(states[kind::kinds]) for kind in range(kinds)]


def model(case: Case, problem: Problem) -> bytes:
    """Serialised model: inputs X and lengths, outputs Y of the last layer and all final states."""
    nodes, initializers, states = [], [], []
    x = "X"
    for layer in range(case.layers):
        for key, value in _weights(case, problem, layer).items():
            initializers.append(numpy_helper.from_array(value, f"{key}{layer}"))
        kinds = [f"Y_h{layer}", f"Y_c{layer}"][: 2 if case.cell == "lstm" else 1]
        states += kinds
        attributes: dict[str, object] = {"hidden_size": case.H}
        if case.bidirectional:
            attributes["direction"] = "bidirectional"
        if case.cell == "gru":
            attributes["linear_before_reset"] = 1
        lengths = "" if problem.lengths is None else "lengths"
        inputs = [x, f"W{layer}", f"R{layer}", f"B{layer}", lengths]
        outputs = [f"Y{layer}", *kinds]
        nodes.append(helper.make_node(case.cell.upper(), inputs, outputs, **attributes))
        if layer < case.layers - 1:  # (T, D, B, H) -> (T, B, D * H)
            x = f"X{layer + 1}"
            nodes.append(
                helper.make_node("Transpose", [f"Y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3])
            )
            nodes.append(helper.make_node("Reshape", [f"t{layer}", "shape"], [x]))
    if case.layers > 1:
        shape = np.array([case.T, case.B, case.directions * case.H])
        initializers.append(numpy_helper.from_array(shape, "shape"))
    return _serialise(case, problem, nodes, initializers, states)


def _weights(case: Case, problem: Problem, layer: int) -> dict[str, Array]:
    def get(name: str, suffix: str) -> Array:
        value = problem.weights[f"{name}_l{layer}{suffix}"]
        blocks = np.split(value, len(ORDER[case.cell]))
        return np.concatenate([blocks[i] for i in ORDER[case.cell]])

    suffixes = ("", "_reverse")[: case.directions]
    biases = [np.concatenate([get("bias_ih", s), get("bias_hh", s)]) for s in suffixes]
    return {
        "W": np.stack([get("weight_ih", s) for s in suffixes]),
        "R": np.stack([get("weight_hh", s) for s in suffixes]),
        "B": np.stack(biases),
    }


def _serialise(
    case: Case, problem: Problem, nodes: list[Any], initializers: list[Any], states: list[str]
) -> bytes:
    def info(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [info("X", problem.x.shape)]
    if problem.lengths is not None:
        inputs.append(info("lengths", (case.B,), TensorProto.INT32))
    outputs = [info(f"Y{case.layers - 1}", (case.T, case.directions, case.B, case.H))]
    outputs += [info(s, (case.directions, case.B, case.H)) for s in states]
    graph = helper.make_graph(nodes, "bench", inputs, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(proto)
    return proto.SerializeToString()
