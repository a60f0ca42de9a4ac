"""The same weights as an ONNX model in ONNX Runtime: outputs and final states."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import CELLS, assert_close, problem

OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
# ONNX's gates in terms of the blocks of PyTorch's: i, o, f, c and z, r, h.
GATES = {"rnn_tanh": [0], "rnn_relu": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def onnx_weights(cell, layer):
    """W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) of the layer in ONNX's gate order."""
    suffixes = ["_l0", "_l0_reverse"][: layer.num_directions]

    def stacked(kind):
        blocks = [np.split(layer.params[kind + s], len(GATES[cell])) for s in suffixes]
        return np.stack([np.concatenate([b[g] for g in GATES[cell]]) for b in blocks])

    weights = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if layer.bias:
        weights["B"] = np.concatenate((stacked("bias_ih"), stacked("bias_hh")), axis=-1)
    return weights


def onnx_session(cell, layer):
    """A session of one operator with inputs X, sequence_lens and the initial states."""
    weights = onnx_weights(cell, layer)
    activation = {"rnn_tanh": ["Tanh"], "rnn_relu": ["Relu"]}.get(cell)
    attributes = {"activations": activation * layer.num_directions} if activation else {}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    states = ["initial_h", "initial_c"][: 1 + (cell == "lstm")]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    node = onnx.helper.make_node(
        OPERATORS[cell],
        ["X", "W", "R", "B" if layer.bias else "", "sequence_lens", *states],
        outputs,
        hidden_size=layer.hidden_size,
        direction="bidirectional" if layer.bidirectional else "forward",
        **attributes,
    )
    real, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32

    def values(names, kind):
        return [onnx.helper.make_tensor_value_info(name, kind, None) for name in names]

    graph = onnx.helper.make_graph(
        [node],
        "recurrent",
        values(["X"], real) + values(["sequence_lens"], integer) + values(states, real),
        values(outputs, real),
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 14)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("lengths", [(7, 7, 7, 7), (3, 7, 1, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(6, 19), (12, 64)])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_states(cell, sizes, bidirectional, bias, lengths):
    p = problem(cell, sizes, steps=7, rows=4, lengths=np.array(lengths, np.int32),
                bidirectional=bidirectional, bias=bias)  # fmt: skip
    session = onnx_session(cell, p.layer)
    feeds = {"X": p.x, "sequence_lens": p.lengths}
    feeds |= dict(zip(("initial_h", "initial_c"), p.state, strict=False))
    y, *state = session.run(None, feeds)  # y (T, D, B, H)
    y_actual, state_actual = p.infer()
    assert_close(y_actual, y.transpose(0, 2, 1, 3).reshape(y_actual.shape), 2e-6)
    for actual, expected in zip(state_actual, state, strict=True):
        assert_close(actual, expected, 2e-6)
