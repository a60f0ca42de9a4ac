"""Small models of ONNX for tests."""

import numpy as np
import onnx
import onnx_oracle
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

KIND = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float64): TensorProto.DOUBLE,
        np.dtype(np.int32): TensorProto.INT32, np.dtype(np.int64): TensorProto.INT64}  # fmt: skip
BLOCKS = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": ("initial_h", "initial_c"), "GRU": ("initial_h",), "RNN": ("initial_h",)}
ORDER = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
#: Steps, rows, features of input and of the state.
T, B, N, H = 6, 4, 3, 5


def made(nodes, inputs, outputs, constants, opset=16, domains=()):
    """A model of nodes; inputs and constants are arrays by name, sizes of inputs are left open."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, KIND[v.dtype], [None] * v.ndim) for n, v in
         inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def arrays(operator, ways=1, *, bias=True, peepholes=False, lengths=None, states=False, layout=0,
           dtype=np.float32, seed=0):  # fmt: skip
    """Inputs of a node by ONNX's names, other random weights for each gate."""
    rng = np.random.default_rng(seed)
    rows = BLOCKS[operator] * H

    def normal(*shape):
        return (0.5 * rng.normal(size=shape)).astype(dtype)

    found = {"X": normal(T, B, N), "W": normal(ways, rows, N), "R": normal(ways, rows, H)}
    if bias:
        found["B"] = normal(ways, 2 * rows)
    if lengths is not None:
        found["sequence_lens"] = np.array(lengths, np.int32)
    if states:
        found |= {name: normal(ways, B, H) for name in STATES[operator]}
    if peepholes:
        found["P"] = normal(ways, 3 * H)
    if layout:
        for name in {"X", *STATES[operator]} & set(found):
            found[name] = np.ascontiguousarray(found[name].swapaxes(0, 1))
    return found


def node(operator, found, outputs=("Y", "Y_h", "Y_c"), **attributes):
    """A node with those of the inputs that there are."""
    names = [name if name in found else "" for name in ORDER]
    while not names[-1]:
        names.pop()
    outputs = [o for o in outputs if o != "Y_c" or operator == "LSTM"]
    return helper.make_node(operator, names, outputs, name="node", **attributes)


def model(operator, found, outputs=("Y", "Y_h", "Y_c"), opset=14, **attributes):
    """A model of one node, with its weights inside, and what is to be fed to it."""
    made_by = node(operator, found, outputs, **attributes)
    feeds = {n: v for n, v in found.items() if n not in ("W", "R", "B", "P")}
    constants = {n: v for n, v in found.items() if n not in feeds}
    return made([made_by], feeds, [o for o in made_by.output if o], constants, opset), feeds


def onnxruntime_session(proto):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_onnxruntime(proto, feeds):
    """Outputs by name."""
    outputs = [value.name for value in proto.graph.output]
    return dict(zip(outputs, onnxruntime_session(proto).run(outputs, feeds), strict=True))


def expected(operator, found, **attributes):
    """Outputs by name, from the oracle."""
    names = ("Y", "Y_h", "Y_c")
    return dict(zip(names, onnx_oracle.run(operator, found, **attributes), strict=False))


def weights(proto):
    """Constants of a model by name."""
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def saved(proto, path):
    onnx.save(proto, path)
    return path
