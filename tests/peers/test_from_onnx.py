"""`from_onnx`: nodes with every attribute, graphs around them, streams; what is refused."""

import itertools
import random
import warnings

import numpy as np
import onnx
import onnx_models as models
import pytest
from helpers import assert_close
from onnx import helper
from test_pairs import covering

import cylstm
from cylstm.io.onnx import OnnxError

TOLERANCE = 2e-6
LENGTHS = (6, 2, 5, 1)


def node_cases():
    """The cases of LSTM, GRU and RNN that ship with onnx."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import gru, lstm, rnn  # noqa: F401
    return {case.name: case for case in node._NodeTestCases
            if case.model.graph.node[0].op_type in models.BLOCKS}  # fmt: skip


NODE_CASES = node_cases()


@pytest.mark.parametrize("name", NODE_CASES)
def test_cases_of_onnx_itself(name):
    case = NODE_CASES[name]
    network = cylstm.from_onnx(case.model)
    for inputs, outputs in case.data_sets:
        names = [value.name for value in case.model.graph.input]
        found = network(dict(zip(names, inputs, strict=True)))
        for value, wanted in zip(found.values(), outputs, strict=True):
            assert value.dtype == wanted.dtype and value.shape == wanted.shape
            assert_close(value, wanted, TOLERANCE)


def test_there_are_cases_of_each():
    assert len(NODE_CASES) >= 18
    assert {c.model.graph.node[0].op_type for c in NODE_CASES.values()} == set(models.BLOCKS)


def check(operator, found, outputs=("Y", "Y_h", "Y_c"), *, runtime=True, opset=14, **attributes):
    """Compare a node with the oracle, and with ONNX Runtime where that has it."""
    attributes["hidden_size"] = models.H
    proto, feeds = models.model(operator, found, outputs, opset, **attributes)
    network = cylstm.from_onnx(proto)
    actual = network(feeds)
    wanted = models.expected(operator, found, **attributes)
    tolerance = TOLERANCE if found["X"].dtype == np.float32 else 1e-12
    assert list(actual) == [o for o in outputs if o and o in wanted]
    for name, value in actual.items():
        assert value.dtype == found["X"].dtype and value.shape == wanted[name].shape
        scale = max(1.0, np.abs(wanted[name]).max())
        assert_close(value / scale, wanted[name] / scale, tolerance)
    if runtime:
        for name, value in models.run_onnxruntime(proto, feeds).items():
            scale = max(1.0, np.abs(value).max())
            assert_close(actual[name] / scale, value / scale, TOLERANCE)
    return network


FACTORS = {
    "direction": ["forward", "reverse", "bidirectional"],
    "given": ["X", "B", "states", "lengths", "all"],
    "clip": [None, 0.4],
    "outputs": [("Y", "Y_h", "Y_c"), ("Y",), ("", "Y_h"), ("", "", "Y_c")],
    "functions": ["default", "same", "different", "shouting"],
    "opset": [7, 14, 22],
}
OWN = {
    "LSTM": {"input_forget": [None, 0, 1], "peepholes": [False, True]},
    "GRU": {"linear_before_reset": [None, 0, 1]},
    "RNN": {},
}
# Numbers as ONNX has them: for those functions that take any, in order.
SAME = {
    "LSTM": (["HardSigmoid", "Elu", "ScaledTanh"], [0.3, 0.6, 1.3], [0.4, 0.7]),
    "GRU": (["HardSigmoid", "LeakyRelu"], [0.3, 0.2], [0.4]),
    "RNN": (["Affine"], [0.7], [0.2]),
}
OTHER = {
    "LSTM": (["Sigmoid", "Softsign", "LeakyRelu"], [0.2], []),
    "GRU": (["Sigmoid", "Affine"], [0.5], [0.1]),
    "RNN": (["Elu"], [0.4], []),
}
CASES = [
    (operator, case, seed)
    for operator, own in OWN.items()
    for seed, case in enumerate(covering(FACTORS | own))
    if operator == "LSTM" or case["outputs"] != ("", "", "Y_c")
]


@pytest.mark.parametrize(("operator", "case", "seed"), CASES, ids=lambda v: str(v)[:60])
def test_every_attribute(operator, case, seed):
    case = dict(case)
    ways = 1 + (case["direction"] == "bidirectional")
    given, functions = case.pop("given"), case.pop("functions")
    if functions != "default":
        second = OTHER if functions == "different" else SAME
        chosen = [SAME[operator], second[operator]][:ways]
        names, alphas, betas = (
            list(itertools.chain(*parts)) for parts in zip(*chosen, strict=True)
        )
        case["activations"] = [n.upper() for n in names] if functions == "shouting" else names
        case |= {"activation_alpha": alphas, "activation_beta": betas} if betas else {}
    lengths = LENGTHS if given in ("lengths", "all") else None
    found = models.arrays(
        operator, ways, bias=given in ("B", "all"), peepholes=case.pop("peepholes", False),
        states=given in ("states", "all"), lengths=lengths, seed=seed,
    )  # fmt: skip
    outputs, opset = case.pop("outputs"), case.pop("opset")
    attributes = {name: value for name, value in case.items() if value is not None}
    # ONNX Runtime's RNN takes names in ONNX's own letters only.
    runtime = not (operator == "RNN" and functions == "shouting")
    check(operator, found, outputs, runtime=runtime, opset=opset, **attributes)


@pytest.mark.parametrize("operator", models.BLOCKS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout(operator, direction):
    """Rows first, which ONNX Runtime refuses."""
    ways = 1 + (direction == "bidirectional")
    found = models.arrays(operator, ways, lengths=LENGTHS, states=True, layout=1)
    check(operator, found, runtime=False, layout=1, direction=direction)


@pytest.mark.parametrize("operator", models.BLOCKS)
def test_float64(operator):
    found = models.arrays(operator, 2, states=True, dtype=np.float64)
    numbers = {"activations": ["Elu"] * 2, "activation_alpha": [0.3, 0.3]}
    check(operator, found, runtime=False, direction="bidirectional",
          **(numbers if operator == "RNN" else {}))  # fmt: skip


@pytest.mark.parametrize("numbers", [{}, {"activation_alpha": [0.5]}])
@pytest.mark.parametrize("name", ["Affine", "ScaledTanh", "ThresholdedRelu", "Softplus"])
def test_defaults_are_the_specifications(name, numbers):
    """ONNX Runtime takes 0 where numbers are missing, and its Softplus overflows."""
    found = models.arrays("RNN")
    if name == "Softplus":
        found["X"] *= 1e3
        numbers = {}
    check("RNN", found, runtime=False, activations=[name], **numbers)


def test_a_row_of_length_0_passes_its_state():
    found = models.arrays("LSTM", lengths=(6, 0, 5, 1), states=True)
    check("LSTM", found, runtime=False)


def test_one_direction_of_two_with_other_functions_is_two_layers():
    found = models.arrays("RNN", 2)
    network = check("RNN", found, direction="bidirectional", activations=["Tanh", "Relu"])
    forward, reverse = network.layers["node"]
    assert (forward.nonlinearity, reverse.nonlinearity) == ("tanh", "relu")
    assert reverse.go_backwards and not forward.go_backwards


def test_weights_that_come_with_the_call():
    """As in the cases of onnx: other weights in each call."""
    for seed in (0, 1):
        found = models.arrays("GRU", seed=seed)
        outputs = ["Y", "Y_h"]
        proto = models.made([models.node("GRU", found)], found, outputs, {})
        actual = cylstm.from_onnx(proto)(found)
        for name, wanted in models.expected("GRU", found).items():
            assert_close(actual[name], wanted, TOLERANCE)


@pytest.mark.parametrize("kind", ["float16", "output_sequence"])
def test_older_and_smaller(kind):
    found = models.arrays("LSTM")
    if kind == "output_sequence":
        proto, feeds = models.model("LSTM", found, opset=1, output_sequence=1)
        assert_close(cylstm.from_onnx(proto)(feeds)["Y"], models.expected("LSTM", found)["Y"],
                     TOLERANCE)  # fmt: skip
        return
    half = {name: value.astype(np.float16) for name, value in found.items()}
    graph = models.made([models.node("LSTM", half)], {}, ["Y"], half)
    graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    y = cylstm.from_onnx(graph)({})["Y"]
    assert y.dtype == np.float16
    assert_close(y, models.expected("LSTM", half)["Y"], 1e-3)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_quantised_lstm(signed, per_channel):
    """Its weights as floats: as a float LSTM with these weights; ONNX Runtime's own is coarser."""
    rng = np.random.default_rng(0)
    ways, kind = 2, np.int8 if signed else np.uint8
    found = models.arrays("LSTM", ways, states=True, peepholes=True)
    constants = {"B": found["B"], "P": found["P"]}
    for name in ("W", "R"):
        shape = (ways, found[name].shape[2], 4 * models.H)
        whole = rng.integers(*((-128, 128) if signed else (0, 256)), size=shape).astype(kind)
        spread = (ways, 4 * models.H) if per_channel else (ways,)
        scale = rng.uniform(0.004, 0.008, spread).astype(np.float32)
        zero = rng.integers(*((-9, 9) if signed else (119, 137)), size=spread).astype(kind)
        if per_channel:  # ONNX Runtime's only zero points there
            zero[...] = 0 if signed else 128
        constants |= {name: whole, f"{name}_scale": scale, f"{name}_zero_point": zero}
        values = (whole.astype(float) - zero.reshape(ways, 1, -1)) * scale.reshape(ways, 1, -1)
        found[name] = values.swapaxes(1, 2)
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c", "P", "W_scale", "W_zero_point",
             "R_scale", "R_zero_point"]  # fmt: skip
    node = helper.make_node("DynamicQuantizeLSTM", names, ["Y", "Y_h", "Y_c"],
                            domain="com.microsoft", direction="bidirectional",
                            hidden_size=models.H)  # fmt: skip
    feeds = {name: found[name] for name in ("X", "initial_h", "initial_c")}
    proto = models.made([node], feeds, node.output, constants, domains=["com.microsoft"])
    actual = cylstm.from_onnx(proto)(feeds)
    wanted = models.expected("LSTM", found, direction="bidirectional")
    for name, value in models.run_onnxruntime(proto, feeds).items():
        assert_close(actual[name], wanted[name], TOLERANCE)
        assert np.abs(actual[name] - value).max() < 0.1


# What cannot be said

REFUSED = [
    ("direction", {"direction": "sideways"}),
    ("layout", {"layout": 2}),
    ("hidden_size", {"hidden_size": 4}),
    ("clip", {"clip": -1.0}),
    ("clip", {"clip": float("nan")}),
    ("activations", {"activations": ["Sigmoid", "Tanh"]}),
    ("activations", {"activations": ["Sigmoid", "Tanh", "Sine"]}),
    ("activations", {"activations": ["Sigmoid", "hard_sigmoid_keras3", "Tanh"]}),
    ("activation_alpha", {"activation_alpha": [0.5]}),
    ("activation_beta", {"activations": ["HardSigmoid", "Tanh", "Elu"],
                         "activation_beta": [0.5, 0.5]}),
    ("input_forget", {"input_forget": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attributes"), REFUSED, ids=str)
def test_attributes_that_are_refused(name, attributes):
    proto, _ = models.model("LSTM", models.arrays("LSTM"), **attributes)
    with pytest.raises(OnnxError, match=f"LSTM 'node': .*{name}"):
        cylstm.from_onnx(proto)


@pytest.mark.parametrize("name", ["W", "R", "B", "P"])
def test_weights_of_another_shape_are_refused(name):
    found = models.arrays("LSTM", peepholes=True)
    found[name] = found[name][:, :-1].copy()
    with pytest.raises(OnnxError, match="'node'"):
        cylstm.from_onnx(models.model("LSTM", found)[0])


@pytest.mark.parametrize("name", ["X", "initial_h", "initial_c", "sequence_lens"])
def test_inputs_of_another_shape_are_refused(name):
    found = models.arrays("LSTM", lengths=LENGTHS, states=True)
    proto, feeds = models.model("LSTM", found)
    network = cylstm.from_onnx(proto)
    feeds[name] = feeds[name][..., :-1] if name == "X" else feeds[name].repeat(2, -1)
    with pytest.raises(OnnxError, match="LSTM 'node'"):
        network(feeds)


def test_feeds():
    proto, feeds = models.model("LSTM", models.arrays("LSTM", states=True))
    network = cylstm.from_onnx(proto)
    assert list(network.inputs) == list(feeds)
    same = network({name: value.astype(np.float64) for name, value in feeds.items()})
    assert all(np.array_equal(same[n], v) for n, v in network(feeds).items())
    for wrong in ({}, feeds | {"more": feeds["X"]}):
        with pytest.raises(OnnxError, match="feeds: expected"):
            network(wrong)
    with pytest.raises(TypeError, match="X: expected dtype float32, got int64"):
        network(feeds | {"X": feeds["X"].astype(int)})
    with pytest.raises(OnnxError, match="X: expected shape"):
        network(feeds | {"X": feeds["X"][0]})


# Graphs


def tagger(rng):
    """A BiLSTM and a GRU side by side, and what stands around such layers."""
    found, other = models.arrays("LSTM", 2, seed=1), models.arrays("GRU", seed=2)
    constants = {n: found[n] for n in "WRB"} | {f"{n}2": other[n] for n in "WRB"}
    constants |= {
        "shape": np.array([0, 0, -1], np.int64),
        "axis": np.array([1], np.int64),
        "dense": rng.normal(size=(3 * models.H, 4)).astype(np.float32),
        "offset": rng.normal(size=4).astype(np.float32),
        "rows": np.array([-1, 3 * models.H], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["X"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y", "", "c"], name="lstm",
                         direction="bidirectional", hidden_size=models.H),
        helper.make_node("Transpose", ["Y"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "shape"], ["y"]),
        helper.make_node("GRU", ["X", "W2", "R2", "B2"], ["Y2"], hidden_size=models.H),
        helper.make_node("Squeeze", ["Y2", "axis"], ["y2"]),
        helper.make_node("Concat", ["y", "y2"], ["both"], axis=2),
        helper.make_node("Reshape", ["both", "rows"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "offset"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
    ]  # fmt: skip
    feeds = {"x": rng.normal(size=(4, 6, models.N)).astype(np.float32)}
    return models.made(nodes, feeds, ["p", "c"], constants), feeds


@pytest.mark.parametrize("evaluator", ["onnxruntime", "reference"])
def test_a_graph_with_things_around(evaluator):
    proto, feeds = tagger(np.random.default_rng(0))
    network = cylstm.from_onnx(proto, evaluator=evaluator)
    assert [list(map(type, found)) for found in network.layers.values()] == [
        [cylstm.LSTM], [cylstm.GRU],
    ]  # fmt: skip
    assert list(network.layers) == ["lstm", "Y2"]
    actual = network(feeds)
    for name, wanted in models.run_onnxruntime(proto, feeds).items():
        assert_close(actual[name], wanted, TOLERANCE)


def test_weights_computed_from_constants():
    """As PyTorch exports them: slices, put together again."""
    found = models.arrays("RNN")
    parts = {f"part{k}": found["R"][0, k : k + 1] for k in range(models.H)}
    axes = np.array([0], np.int64)
    nodes = [
        helper.make_node("Concat", list(parts), ["whole"], axis=0),
        helper.make_node("Unsqueeze", ["whole", "axes"], ["R"]),
        helper.make_node("Constant", [], ["W"],
                         value=onnx.numpy_helper.from_array(found["W"], "other")),
        models.node("RNN", found),
    ]  # fmt: skip
    constants = {**parts, "axes": axes, "B": found["B"]}
    proto = models.made(nodes, {"X": found["X"]}, ["Y", "Y_h"], constants)
    network = cylstm.from_onnx(proto)
    assert len(network.layers["node"]) == 1
    assert_close(network({"X": found["X"]})["Y"], models.expected("RNN", found)["Y"], TOLERANCE)


def branching():
    """An LSTM in one branch of an If, which reads weights from outside, another in the other."""
    found = models.arrays("LSTM", states=True)
    other = models.arrays("LSTM", seed=7)

    def branch(prefix, nodes, constants):
        value = helper.make_tensor_value_info(f"{prefix}y", onnx.TensorProto.FLOAT, None)
        kept = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
        return helper.make_graph(nodes, prefix, [], [value], kept)

    then = branch("a", [
        helper.make_node("Mul", ["X", "two"], ["twice"]),
        helper.make_node("LSTM", ["twice", "W", "R", "B"], ["ay"], hidden_size=models.H),
    ], {"two": np.array(2, np.float32)})  # fmt: skip
    otherwise = branch("b", [
        helper.make_node("LSTM", ["X", "V", "S"], ["Y"], hidden_size=models.H),
        helper.make_node("Neg", ["Y"], ["by"]),
    ], {"V": other["W"], "S": other["R"]})  # fmt: skip
    nodes = [
        helper.make_node("Neg", ["x"], ["X"]),  # which only the branches read
        helper.make_node("Equal", ["rate", "fast"], ["condition"]),
        helper.make_node("If", ["condition"], ["chosen"], then_branch=then, else_branch=otherwise),
        helper.make_node("Abs", ["chosen"], ["y"]),
    ]
    constants = {n: found[n] for n in "WRB"} | {"fast": np.array(16000, np.int64)}
    feeds = {"x": found["X"], "rate": np.array(16000, np.int64)}
    return models.made(nodes, feeds, ["y"], constants), feeds


@pytest.mark.parametrize("evaluator", ["onnxruntime", "reference"])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_layers_in_branches(rate, evaluator):
    proto, feeds = branching()
    feeds["rate"] = np.array(rate)
    wanted = models.run_onnxruntime(proto, feeds)["y"]
    actual = cylstm.from_onnx(proto, evaluator=evaluator)(feeds | {"rate": rate})["y"]
    assert np.abs(wanted).max() > 0.1
    assert_close(actual, wanted, TOLERANCE)


def test_layers_in_loops_are_refused():
    found = models.arrays("RNN")
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]),
         helper.make_node("RNN", ["X", "W", "R"], ["Y"], name="inner", hidden_size=models.H)],
        "body",
        [value("i", onnx.TensorProto.INT64, []), value("go", onnx.TensorProto.BOOL, [])],
        [value("on", onnx.TensorProto.BOOL, []), value("Y", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["n", ""], ["ys"], body=body, name="again")]
    constants = {n: found[n] for n in "WR"} | {"n": np.array(3, np.int64)}
    proto = models.made(nodes, {"X": found["X"]}, ["ys"], constants)
    with pytest.raises(OnnxError, match="Loop 'again'"):
        cylstm.from_onnx(proto)


# Streams


def declare(proto, **shapes):
    """Set the shapes of inputs and outputs."""
    for value in (*proto.graph.input, *proto.graph.output):
        kind = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shapes[value.name])
        value.type.CopyFrom(kind)


def stateful(**attributes):
    """A GRU with its state going in and out, between other nodes."""
    found = models.arrays("GRU", states=True)
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["X"]),
        helper.make_node("GRU", ["X", "W", "R", "B", "", "h"], ["Y", "hn"], **attributes),
        helper.make_node("Neg", ["Y"], ["y"]),
    ]
    constants = {n: found[n] for n in "WRB"} | {"bias": np.array([0.5], np.float32)}
    feeds = {"x": found["X"], "h": found["initial_h"]}
    proto = models.made(nodes, feeds, ["y", "hn"], constants)
    state = (1, "B", models.H)
    declare(proto, x=("T", "B", models.N), h=state, hn=state, y=("T", 1, "B", models.H))
    return proto, feeds


def test_streaming():
    proto, feeds = stateful()
    network = cylstm.from_onnx(proto)
    stream = cylstm.from_onnx(proto, streaming={"h": "hn"})
    assert stream.state is None
    whole = network(feeds | {"h": np.zeros_like(feeds["h"])})
    for _ in range(2):  # rows are seen by the name of their axis
        parts = [stream.step({"x": feeds["x"][t : t + 2]})["y"] for t in (0, 2, 4)]
        assert np.array_equal(np.concatenate(parts), whole["y"])
        assert np.array_equal(stream.state["h"], whole["hn"])
        stream.reset()
    stream.state = {"h": feeds["h"]}
    given = stream.step({"x": feeds["x"]})
    assert list(given) == ["y"] and np.array_equal(given["y"], network(feeds)["y"])


def test_a_refused_step_leaves_the_state():
    proto, feeds = stateful()
    stream = cylstm.from_onnx(proto, streaming={"h": "hn"})
    stream.step({"x": feeds["x"]})
    before = stream.state["h"]
    for wrong in ({"x": feeds["x"][:, :2]}, {}, {"x": feeds["x"], "h": before}):
        with pytest.raises(OnnxError):
            stream.step(wrong)
    with pytest.raises(OnnxError, match="state: expected"):
        stream.state = {"hn": before}
    assert np.array_equal(stream.state["h"], before)


@pytest.mark.parametrize("pairs", [{"h": "y"}, {"x": "hn"}, {"h": "none"}, {"none": "hn"}])
def test_wrong_pairs_are_refused(pairs):
    proto, _ = stateful()
    with pytest.raises(OnnxError, match=r"these would fit: \{'h': \['hn'\]\}"):
        cylstm.from_onnx(proto, streaming=pairs)
    with pytest.raises(TypeError, match="streaming: expected a mapping"):
        cylstm.from_onnx(proto, streaming="h")


def test_one_output_for_two_states_is_refused():
    found = models.arrays("LSTM", states=True)
    proto, _ = models.model("LSTM", found)
    stream = cylstm.from_onnx(proto, streaming={"initial_h": "Y_h", "initial_c": "Y_c"})
    stream.reset(batch_size=models.B)
    wanted = models.expected("LSTM", {n: v for n, v in found.items() if "init" not in n})
    with pytest.raises(OnnxError, match="initial_h"):  # sizes that the file leaves open: (1, B, H)
        stream.step({"X": found["X"]})
    stream.state = {n: np.zeros((1, models.B, models.H)) for n in ("initial_h", "initial_c")}
    assert_close(stream.step({"X": found["X"]})["Y"], wanted["Y"], TOLERANCE)
    with pytest.raises(OnnxError, match="an output for each"):
        cylstm.from_onnx(proto, streaming={"initial_h": "Y_h", "initial_c": "Y_h"})


def test_wrong_pairs_of_one_shape_fail_a_comparison():
    found = models.arrays("LSTM", states=True)
    nodes = [models.node("LSTM", found, hidden_size=models.H),
             helper.make_node("Squeeze", ["Y_h", "axis"], ["last"])]  # fmt: skip
    constants = {n: found[n] for n in "WRB"} | {"axis": np.array([0], np.int64)}
    feeds = {n: v for n, v in found.items() if n not in constants}
    proto = models.made(nodes, feeds, ["Y", "last", "Y_h", "Y_c"], constants)
    state, x = (1, "B", models.H), ("T", "B", models.N)
    declare(proto, X=x, Y=("T", 1, "B", models.H), last=("B", models.H), initial_h=state,
            initial_c=state, Y_h=state, Y_c=state)  # fmt: skip
    right = cylstm.from_onnx(proto, streaming={"initial_h": "Y_h", "initial_c": "Y_c"})
    wrong = cylstm.from_onnx(proto, streaming={"initial_h": "Y_c", "initial_c": "Y_h"})
    right.step({"X": found["X"]})
    before = right.state
    right.check({"X": found["X"]})
    assert all(np.array_equal(right.state[n], v) for n, v in before.items())
    with pytest.raises(OnnxError, match="'Y' step by step"):
        wrong.check({"X": found["X"]})
    with pytest.raises(OnnxError, match="at least 2 steps"):
        right.check({"X": found["X"][:1]})


# Files


def test_sources(tmp_path):
    proto, feeds = models.model("GRU", models.arrays("GRU"))
    path = models.saved(proto, tmp_path / "m.onnx")
    wanted = cylstm.from_onnx(proto)(feeds)["Y"]
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(cylstm.from_onnx(source)(feeds)["Y"], wanted)
    with pytest.raises(TypeError, match="model: expected a path"):
        cylstm.from_onnx(3)
    with pytest.raises(FileNotFoundError):
        cylstm.from_onnx(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="evaluator: expected"):
        cylstm.from_onnx(path, evaluator="tensorrt")
    for source in (path, path.read_bytes()):
        with pytest.raises(OnnxError, match="max_bytes=100"):
            cylstm.from_onnx(source, max_bytes=100)


def external(tmp_path, location=None):
    """A model with data in a file beside it."""
    proto, feeds = models.model("RNN", models.arrays("RNN"))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="data.bin",
              size_threshold=0)  # fmt: skip
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if location and entry.key == "location":
                entry.value = location
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder, feeds


def test_data_beside_the_file(tmp_path):
    folder, feeds = external(tmp_path)
    assert cylstm.from_onnx(folder / "m.onnx")(feeds)["Y"].any()
    size = (folder / "m.onnx").stat().st_size
    with pytest.raises(OnnxError, match="max_bytes"):
        cylstm.from_onnx(folder / "m.onnx", max_bytes=size + 50)
    with pytest.raises(OnnxError, match="give the model's path"):
        cylstm.from_onnx((folder / "m.onnx").read_bytes())


@pytest.mark.parametrize("location", ["../data.bin", "absolute", "link.bin", "none.bin"])
def test_data_outside_the_folder_is_refused(tmp_path, location):
    outside = tmp_path / "data.bin"
    folder, _ = external(tmp_path, str(outside) if location == "absolute" else location)
    outside.write_bytes((folder / "data.bin").read_bytes())
    (folder / "link.bin").symlink_to(outside)
    with pytest.raises(OnnxError, match=r"tensor '\w'"):
        cylstm.from_onnx(folder / "m.onnx")


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand"])
def test_shapes_that_no_file_justifies(operator):
    found = models.arrays("RNN")
    huge = np.array([10**6, 10**6], np.int64)
    inputs = ["huge"] if operator == "ConstantOfShape" else ["one", "huge"]
    nodes = [helper.make_node(operator, inputs, ["z"]), models.node("RNN", found, ["Y"])]
    constants = {n: found[n] for n in "WRB"} | {"huge": huge, "one": np.ones(1, np.float32)}
    proto = models.made(nodes, {"X": found["X"]}, ["Y", "z"], constants)
    with pytest.raises(OnnxError, match=f"{operator} 'z'.*max_bytes"):
        cylstm.from_onnx(proto)


def test_weights_that_double_again_and_again():
    found = models.arrays("RNN")
    nodes = [helper.make_node("Concat", [f"w{k}"] * 2, [f"w{k + 1}"], axis=0) for k in range(18)]
    nodes.append(helper.make_node("RNN", ["X", "w18", "R"], ["Y"], hidden_size=models.H))
    proto = models.made(nodes, {"X": found["X"]}, ["Y"], {"w0": found["W"], "R": found["R"]})
    with pytest.raises(OnnxError, match=r"Concat 'w.*max_bytes"):
        cylstm.from_onnx(proto, max_bytes=2**20)


def damaged(data, generator):
    """A few bytes changed, left out or repeated."""
    found = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(found))
        kind = generator.random()
        if kind < 0.7:
            found[at] = generator.randrange(256)
        elif kind < 0.85:
            del found[at : at + generator.randint(1, 9)]
        else:
            found[at:at] = found[at : at + generator.randint(1, 9)]
    return bytes(found)


def test_damaged_files_give_named_errors():
    """Or a model that runs, or refuses its feeds; nothing else."""
    sources = [
        models.model("LSTM", models.arrays("LSTM", 2, peepholes=True, states=True),
                     direction="bidirectional", clip=0.5),
        tagger(np.random.default_rng(0)),
        branching(),
    ]  # fmt: skip
    generator, refused = random.Random(0), 0
    for proto, feeds in sources * 60:
        data = damaged(proto.SerializeToString(), generator)
        try:
            network = cylstm.from_onnx(data, evaluator="onnxruntime", max_bytes=2**20)
            network({name: feeds.get(name, np.zeros(1)) for name in network.inputs})
        except (OnnxError, TypeError):
            refused += 1
    assert 60 < refused < 180
