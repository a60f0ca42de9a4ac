"""`to_onnx` against ONNX Runtime, there and back; `module` of graphs that are a line."""

import numpy as np
import onnx
import onnx_models as models
import pytest
from helpers import assert_close
from onnx import helper
from variants import ACTIVATIONS, name_of

import cylstm
from cylstm.__main__ import main
from cylstm.io.onnx import OnnxError

TOLERANCE = 2e-6
LAYERS = {"LSTM": cylstm.LSTM, "GRU": cylstm.GRU, "RNN": cylstm.RNN}


def filled(module, seed=0):
    """Random numbers for every parameter, those that are 0 at first as well."""
    rng = np.random.default_rng(seed)
    values = {n: 0.4 * rng.normal(size=v.shape) for n, v in module.params.items()}
    module.assign({n: np.abs(v) + 0.5 if n.endswith("_var") else v for n, v in values.items()})
    return module


def flat(value):
    return [a for part in value for a in flat(part)] if isinstance(value, tuple) else [value]


def state_of(module, rows, rng):
    """A state as the module takes it, and its parts in order."""
    _, final = module(np.zeros((2, rows, module.input_size)))
    parts = [rng.normal(size=a.shape).astype(np.float32) for a in flat(final)]
    return (tuple(parts) if isinstance(final, tuple) else parts[0]), parts


OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"go_backwards": True, "bias": False},
    {"bidirectional": True, "merge_mode": "sum", "bias": "single"},
    {"num_layers": 2, "bidirectional": True, "merge_mode": "mul"},
    {"bidirectional": True, "merge_mode": "ave", "clip": 0.3},
    {"hidden_size": (4, 6), "learn_initial_state": True},
    {"learn_initial_state": True, "bidirectional": True},
]
OWN = [
    ("LSTM", {"peepholes": True}),
    ("LSTM", {"coupled": True}),
    ("LSTM", {"coupled": True, "peepholes": True, "bidirectional": True}),
    ("LSTM", {"activations": ("HardSigmoid", ("Elu", 0.5), ("ScaledTanh", 0.9, 1.2))}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "bias": "single"}),
    ("GRU", {"activations": (("HardSigmoid", 0.3, 0.4), "Softsign"), "bidirectional": True}),
    ("RNN", {"nonlinearity": ("LeakyRelu", 0.1), "num_layers": 2}),
]
CASES = [(name, options) for name in LAYERS for options in OPTIONS] + OWN


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_layers(tmp_path, name, options, lengths):
    """Outputs in ONNX Runtime at sizes that the check had not; states go in and out."""
    options = {"hidden_size": 5} | options
    layer = filled(LAYERS[name](3, **options))
    path, rng = tmp_path / "m.onnx", np.random.default_rng(1)
    state = not options.get("learn_initial_state")
    cylstm.to_onnx(layer, path, state=state, lengths=lengths)
    feeds = {"x": rng.normal(size=(7, 2, 3)).astype(np.float32)}
    calls = {}
    if lengths:
        calls["lengths"] = feeds["lengths"] = np.array([3, 7], np.int32)
    if state:
        calls["state"], parts = state_of(layer, 2, rng)
        feeds |= dict(zip(("h0", "c0"), parts, strict=False))
    y, final = layer(feeds["x"], **calls)
    found = models.run_onnxruntime(onnx.load(path), feeds)
    names = ["y", "hn", "cn"][: len(found)]
    assert list(found) == names and len(found) == (1 + len(flat(final)) if state else 1)
    for key, wanted in zip(names, [y, *flat(final)], strict=False):
        assert_close(found[key], wanted, TOLERANCE)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_there_and_back(tmp_path, name, options):
    """The same weights by bit, the same options; from ONNX as well, from where they came."""
    options = {"hidden_size": 5} | options
    layer = filled(LAYERS[name](3, **options))
    path = tmp_path / "m.onnx"
    cylstm.to_onnx(layer, path, check=False)
    found = list(cylstm.from_onnx(path).layers.values())
    for depth, (back,) in enumerate(found):
        for suffix in ("", "_reverse")[: back.num_directions]:
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"):
                theirs = back.params.get(f"{kind}_l0{suffix}")
                ours = layer.params.get(f"{kind}_l{depth}{suffix}")
                if ours is None and theirs is not None:
                    assert kind == "bias_hh" and layer.bias == "single" and not theirs.any()
                else:
                    assert (ours is None) == (theirs is None)
                    assert ours is None or np.array_equal(ours, theirs)
        for option in ("clip", "go_backwards", "coupled", "reset_after", "activations",
                       "nonlinearity", "bidirectional"):  # fmt: skip
            assert getattr(back, option, None) == getattr(layer, option, None)


@pytest.mark.parametrize("operator", LAYERS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_from_onnx_and_back(tmp_path, operator, direction):
    """W, R, B and P come out as they went in."""
    ways = 1 + (direction == "bidirectional")
    found = models.arrays(operator, ways, peepholes=operator == "LSTM")
    proto, _ = models.model(operator, found, direction=direction, hidden_size=models.H)
    (layer,) = cylstm.from_onnx(proto).layers["node"]
    cylstm.to_onnx(layer, tmp_path / "m.onnx", check=False)
    written = onnx.load(tmp_path / "m.onnx")
    node = next(n for n in written.graph.node if n.op_type == operator)
    values = models.weights(written)
    names = dict(zip(models.ORDER, node.input, strict=False))
    for name in "WRBP" if operator == "LSTM" else "WRB":
        assert np.array_equal(values[names[name]], found[name])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name_of)
def test_activations(tmp_path, activation):
    parts = (activation,) if isinstance(activation, str) else activation
    net = cylstm.Sequential(cylstm.Linear(3, 4, activation=activation, rng=0),
                            cylstm.RNN(4, 5, nonlinearity=activation, rng=1),
                            cylstm.Activation(*parts))  # fmt: skip
    cylstm.to_onnx(net, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    y = models.run_onnxruntime(onnx.load(tmp_path / "m.onnx"), {"x": x})["y"]
    assert_close(y, net(x)[0], TOLERANCE)


def networks():
    """Networks, whether `module` gives them back, and the modules that it gives."""
    c = cylstm
    yield [c.Embedding(20, 6, rng=0), c.Dropout(0.2), c.LSTM(6, 5, 2, bidirectional=True, rng=1),
           c.LayerNorm(10), c.Linear(10, 4, rng=2), c.LogSoftmax()]  # fmt: skip
    yield [c.GRU(6, 5, batch_first=True, bidirectional=True, rng=1), c.Pool("final"),
           c.Activation("elu", 0.4), c.Linear(10, 4, bias=False, rng=2), c.Softmax()]  # fmt: skip
    yield [c.Embedding(20, 6, rng=0), c.RNN(6, 5, batch_first=True, rng=1), c.Pool("last"),
           c.LayerNorm(5, bias=False)]  # fmt: skip
    yield [c.Sequential(c.LSTM(6, 5, rng=0), c.RNN(5, 4, go_backwards=True, rng=0)),
           c.GRU(4, 3, rng=1)]  # fmt: skip
    yield [c.LSTM(6, 5, 2, bidirectional=True, rng=1), c.Pool("final")]
    for mode in ("last", "mean", "max", "final"):
        for merge in ("concat", "sum", "mul", "ave"):
            yield [c.GRU(6, 5, bidirectional=True, merge_mode=merge, rng=1), c.Pool(mode)]


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    "modules", list(networks()), ids=lambda m: "-".join(type(x).__name__ for x in m)
)
def test_networks(tmp_path, modules, state):
    """In ONNX Runtime, and as a network again."""
    net = cylstm.Sequential(*modules)
    for module in modules:
        if not isinstance(module, cylstm.Sequential):
            filled(module)
    path, rng = tmp_path / "m.onnx", np.random.default_rng(0)
    cylstm.to_onnx(net, path, state=state)
    x = rng.normal(size=(7, 2, 6)).astype(np.float32)
    if isinstance(modules[0], cylstm.Embedding):
        x = rng.integers(20, size=(7, 2))
    wanted, final = net(x)
    network = cylstm.from_onnx(path)
    feeds = {name: x for name in list(network.inputs)[:1]}
    if state:
        parts = [np.zeros_like(a) for a in flat(final)]
        feeds |= dict(zip(list(network.inputs)[1:], parts, strict=True))
    found = models.run_onnxruntime(onnx.load(path), feeds)
    for value, ours in zip(found.values(), [wanted, *flat(final)], strict=False):
        assert_close(value, ours, TOLERANCE)
    again, _ = network.module(x)
    assert_close(again, wanted, TOLERANCE)


def test_batch_norm_is_a_scale_and_a_shift(tmp_path):
    net = cylstm.Sequential(cylstm.GRU(3, 5, rng=0), filled(cylstm.BatchNorm(5)))
    cylstm.to_onnx(net, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    y = models.run_onnxruntime(onnx.load(tmp_path / "m.onnx"), {"x": x})["y"]
    assert_close(y, net(x)[0], TOLERANCE)


def test_float64(tmp_path):
    layer = filled(cylstm.GRU(3, 5, 2, dtype="float64"))
    cylstm.to_onnx(layer, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    network = cylstm.from_onnx(tmp_path / "m.onnx", evaluator="reference")
    assert network.inputs["x"].dtype == np.float64
    assert np.array_equal(network({"x": x})["y"], layer(x)[0])


@pytest.mark.parametrize(("module", "name"), [
    (cylstm.LSTM(3, 5, layer_norm="haste"), "layer_norm"),
    (cylstm.LSTM(3, 5, cell_clip=1.0), "cell_clip"),
    (cylstm.LSTM(3, 5, proj_size=2), "proj_size"),
    (cylstm.LSTM(3, 5, zoneout_cell=0.1), "zoneout_cell"),
    (cylstm.GRU(3, 5, zoneout=0.1), "zoneout"),
    (cylstm.RNN(3, 5, independent=True), "independent"),
    (cylstm.RNN(3, 5, bidirectional=True, merge_mode="separate"), "merge_mode"),
    (cylstm.LSTM(3, 5, activations={"input": "relu"}), "activations"),
    (cylstm.GRU(3, 5, activations={"reset": "hardsigmoid"}), "activations"),
    (cylstm.AUGRU(3, 5), "AUGRU"),
    (cylstm.MinGRU(3, 5), "MinGRU"),
    (cylstm.SLSTM(3, 5), "SLSTM"),
    (cylstm.Sequential(cylstm.GRU(3, 5), cylstm.LSTM(5, 5, proj_size=2)), "1: .*proj_size"),
], ids=lambda v: v if isinstance(v, str) else type(v).__name__)  # fmt: skip
def test_what_onnx_cannot_say(tmp_path, module, name):
    with pytest.raises(OnnxError, match=name):
        cylstm.to_onnx(module, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_arguments(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(TypeError, match="module: expected a module"):
        cylstm.to_onnx("LSTM", path)
    with pytest.raises(OnnxError, match="lengths: expected False"):
        cylstm.to_onnx(cylstm.Linear(3, 4), path, lengths=True)
    with pytest.raises(OnnxError, match="one hidden_size with state=True"):
        cylstm.to_onnx(cylstm.GRU(3, (4, 5)), path, state=True)
    with pytest.raises(FileNotFoundError):
        cylstm.to_onnx(cylstm.GRU(3, 4), tmp_path / "none" / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_the_check_finds_a_difference(tmp_path, monkeypatch):
    from cylstm.io.onnx import emitting

    weights = emitting.node_weights
    monkeypatch.setattr(emitting, "node_weights", lambda *arguments: {
        name: -value if name == "R" else value for name, value in weights(*arguments).items()
    })  # fmt: skip
    with pytest.raises(OnnxError, match="check: expected output y"):
        cylstm.to_onnx(cylstm.GRU(3, 4, rng=0), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    cylstm.to_onnx(cylstm.GRU(3, 4, rng=0), tmp_path / "m.onnx", check=False)


# What is no line


def line(nodes, constants=None, outputs=("y",), found=None, more=()):
    """`module` of a GRU, X to Y (T, 1, B, H), with nodes after it."""
    found = models.arrays("GRU") if found is None else found
    nodes = [models.node("GRU", found, ["Y", "Y_h"]), *nodes]
    constants = {n: found[n] for n in "WRB"} | (constants or {})
    feeds = {n: v for n, v in found.items() if n not in constants} | dict(more)
    return cylstm.from_onnx(models.made(nodes, feeds, outputs, constants)).module


AXIS = {"axis": np.array([1], np.int64)}
SQUEEZED = [helper.make_node("Squeeze", ["Y", "axis"], ["s"])]
NO_LINES = {
    "Abs 'y'": ([*SQUEEZED, helper.make_node("Abs", ["s"], ["y"])], AXIS),
    "Mul 'y'": ([*SQUEEZED, helper.make_node("Mul", ["s", "s"], ["y"])], AXIS),
    "to one node": (
        [*SQUEEZED, helper.make_node("Relu", ["s"], ["a"]), helper.make_node("Tanh", ["s"], ["b"]),
         helper.make_node("Add", ["a", "b"], ["y"])], AXIS),
    "Softmax 'y'": ([*SQUEEZED, helper.make_node("Softmax", ["s"], ["y"], axis=0)], AXIS),
    "Add 'y'": (
        [*SQUEEZED, helper.make_node("Add", ["s", "b"], ["y"])],
        AXIS | {"b": np.ones(models.H, np.float32)}),
    "MatMul 'y'": (
        [*SQUEEZED, helper.make_node("MatMul", ["w", "s"], ["y"])],
        AXIS | {"w": np.ones((models.B, models.B), np.float32)}),
    "Reshape 'y'": (
        [helper.make_node("Reshape", ["Y", "shape"], ["y"])],
        {"shape": np.array([-1, models.B, models.H], np.int64)}),
    "axes as in": ([*SQUEEZED, helper.make_node("Transpose", ["s"], ["y"], perm=[1, 0, 2])], AXIS),
    "features last": ([helper.make_node("Transpose", ["Y"], ["y"], perm=[0, 2, 3, 1])], {}),
    "Gather 'y'": (
        [*SQUEEZED, helper.make_node("Gather", ["s", "k"], ["y"], axis=0)],
        AXIS | {"k": np.array(0, np.int64)}),
    "ReduceSum 'y'": (
        [*SQUEEZED, helper.make_node("ReduceSum", ["s", "k"], ["y"], keepdims=0)],
        AXIS | {"k": np.array([0], np.int64)}),
    "Y or Y_h": (
        [*SQUEEZED, helper.make_node("Add", ["s", "Y_h"], ["y"])], AXIS),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LINES)
def test_graphs_that_are_no_line(name):
    nodes, constants = NO_LINES[name]
    with pytest.raises(OnnxError, match=f"module: .*{name}"):
        line(nodes, constants)


def test_states_and_lengths_of_a_line():
    found = models.arrays("GRU", lengths=(6, 2, 5, 1))
    module = line([helper.make_node("Squeeze", ["Y", "axis"], ["y"])], AXIS, ["y", "Y_h"], found)
    wanted = models.expected("GRU", found)
    y, state = module(found["X"], lengths=found["sequence_lens"])
    assert_close(y, wanted["Y"][:, 0], TOLERANCE)
    assert_close(state[0], wanted["Y_h"], TOLERANCE)
    last = [helper.make_node("Gather", ["s", "k"], ["y"], axis=0)]
    with pytest.raises(OnnxError, match="Gather 'y'"):  # the last step of the padding
        line(SQUEEZED + last, AXIS | {"k": np.array(-1, np.int64)}, found=found)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_initial_states_that_are_constants(value):
    found = models.arrays("GRU", states=True)
    start = {"initial_h": np.full_like(found["initial_h"], value)}
    nodes = [helper.make_node("Squeeze", ["Y", "axis"], ["y"])]
    if value:
        with pytest.raises(OnnxError, match="initial_h of zeros"):
            line(nodes, AXIS | start, found=found)
    else:
        wanted = models.expected("GRU", found | start)["Y"][:, 0]
        y, _ = line(nodes, AXIS | start, found=found)(found["X"])
        assert_close(y, wanted, TOLERANCE)


def test_layers_of_other_lengths_are_no_line():
    found, other = models.arrays("GRU", lengths=(6, 2, 5, 1)), models.arrays("GRU", seed=3)
    other["W"] = np.resize(other["W"], (1, 3 * models.H, models.H))
    nodes = [*SQUEEZED, helper.make_node("GRU", ["s", "W2", "R2"], ["Y2"], hidden_size=models.H),
             helper.make_node("Squeeze", ["Y2", "axis"], ["y"])]  # fmt: skip
    with pytest.raises(OnnxError, match="the same lengths"):
        line(nodes, AXIS | {"W2": other["W"], "R2": other["R"]}, found=found)


def test_the_command_line_converts(tmp_path, capsys):
    net = cylstm.Sequential(cylstm.GRU(3, 5, rng=0), cylstm.Linear(5, 2, rng=1))
    source, graph, back = (tmp_path / name for name in ("a.safetensors", "b.onnx", "c.safetensors"))
    sample = tmp_path / "sample.npz"
    np.savez(sample, x=np.random.default_rng(0).normal(size=(6, 2, 3)))
    net.save(source)
    assert main(["convert", str(source), str(graph), "--check", str(sample)]) == 0
    assert float(capsys.readouterr().out.partition(":")[2]) < 1e-6
    assert main(["convert", str(graph), str(back)]) == 0
    assert cylstm.load(back).flat_params.tobytes() == net.flat_params.tobytes()
