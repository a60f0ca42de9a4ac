"""Initialisers: the distributions of their formulas, what they leave alone, what they refuse."""

import copy
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from helpers import CELLS, LAYERS, assert_close, assert_same_bits

import cylstm
from cylstm import init

INPUTS, H = 30, 40
VARIANTS = {
    "rnn": partial(cylstm.RNN, INPUTS, H),
    "gru": partial(cylstm.GRU, INPUTS, H),
    "lstm": partial(cylstm.LSTM, INPUTS, H),
    "deep": partial(cylstm.LSTM, INPUTS, H, 3, bidirectional=True),
    "no bias": partial(cylstm.GRU, INPUTS, H, bias=False),
    "single": partial(cylstm.LSTM, INPUTS, H, 2, bias="single"),
    "single gru": partial(cylstm.GRU, INPUTS, H, bias="single"),
    "sizes": partial(cylstm.LSTM, INPUTS, (H, 25, 50)),
    "projection": partial(cylstm.LSTM, INPUTS, H, 2, proj_size=15, bidirectional=True),
    "peepholes": partial(cylstm.LSTM, INPUTS, H, peepholes=True),
    "coupled": partial(cylstm.LSTM, INPUTS, H, coupled=True, peepholes=True),
    "haste lstm": partial(cylstm.LSTM, INPUTS, H, layer_norm="haste"),
    "tflite": partial(cylstm.LSTM, INPUTS, H, layer_norm="tflite", proj_size=15),
    "haste gru": partial(cylstm.GRU, INPUTS, H, layer_norm="haste"),
    "reset before": partial(cylstm.GRU, INPUTS, H, reset_after=False),
    "merged": partial(cylstm.GRU, INPUTS, H, 2, bidirectional=True, merge_mode="sum"),
    "indrnn": partial(cylstm.RNN, INPUTS, H, 2, independent=True, bidirectional=True),
}
GATES = {"rnn": 1, "merged": 3, "indrnn": 1, "no bias": 3, "reset before": 3, "coupled": 3}


def gates(variant):
    """How many gates are stacked, known independently of the layer's own list."""
    return GATES.get(variant, 3 if "gru" in variant else 4)


def kind(name):
    """A parameter's name without layer and direction."""
    return name.removesuffix("_reverse").rpartition("_l")[0]


def hidden(layer, name):
    """Hidden size of the layer that a parameter belongs to."""
    sizes = layer.hidden_size
    depth = int(name.removesuffix("_reverse").rpartition("_l")[2])
    return sizes[depth] if isinstance(sizes, tuple) else sizes


def changed(layer, function, *arguments, **options):
    """Call an initialiser; names of the parameters whose bits it changed."""
    before = layer.state_dict()
    assert function(layer, *arguments, **options) is None
    return {n for n, v in layer.params.items() if v.tobytes() != before[n].tobytes()}


def assert_uniform(values, low, high):
    """Values within the bounds, and as close to uniform as so many draws come."""
    values = np.ravel(values)
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    quantiles = np.sort((values - low) / (high - low))
    distance = np.abs(quantiles - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance < 1.95 / math.sqrt(values.size)  # Kolmogorov and Smirnov's at 0.1 %


@pytest.mark.parametrize("variant", VARIANTS)
def test_uniform(variant):
    layer = VARIANTS[variant](rng=0)
    names = {n for n in layer.params if "_ln_" not in n}
    assert changed(layer, init.uniform, rng=1) == names
    for name in names:
        b = 1 / math.sqrt(hidden(layer, name))
        assert_uniform(layer.params[name], -b, b)
    assert changed(layer, init.uniform, "weight_hh", bound=3, rng=1) == {
        n for n in names if kind(n) == "weight_hh"
    }
    for name in names:
        if kind(name) == "weight_hh":
            assert_uniform(layer.params[name], -3, 3)


@pytest.mark.parametrize("per_gate", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_glorot_uniform(variant, per_gate):
    layer = VARIANTS[variant](rng=0)
    kinds = {kind(n) for n in layer.params} & {"weight_ih", "weight_hh", "weight_hr"}
    kinds -= {"weight_hh"} if variant == "indrnn" else set()
    names = {n for n in layer.params if kind(n) in kinds}
    assert changed(layer, init.glorot_uniform, kinds, per_gate=per_gate, rng=1) == names
    for name in names:
        rows, columns = layer.params[name].shape
        stacked = gates(variant) if per_gate and kind(name) != "weight_hr" else 1
        b = math.sqrt(6 / (rows / stacked + columns))
        assert_uniform(layer.params[name], -b, b)


def test_glorot_uniform_by_hand():
    lstm = cylstm.LSTM(20, 10, rng=0)
    init.glorot_uniform(lstm, rng=1)  # sqrt(6 / (20 + 10))
    assert_uniform(lstm.params["weight_ih_l0"], -math.sqrt(0.2), math.sqrt(0.2))
    init.glorot_uniform(lstm, per_gate=False, rng=1)  # sqrt(6 / (20 + 40))
    assert_uniform(lstm.params["weight_ih_l0"], -math.sqrt(0.1), math.sqrt(0.1))


@pytest.mark.parametrize("per_gate", [True, False])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "indrnn"])
def test_orthogonal(variant, per_gate):
    layer = VARIANTS[variant](rng=0, dtype="float64")
    kinds = {kind(n) for n in layer.params} & {"weight_hh", "weight_hr"}
    names = {n for n in layer.params if kind(n) in kinds}
    options = {"per_gate": per_gate, "gain": 1.5, "rng": 1}
    assert changed(layer, init.orthogonal, kinds, **options) == names
    for name in names:
        stacked = gates(variant) if per_gate and kind(name) != "weight_hr" else 1
        blocks = np.split(layer.params[name], stacked)
        for block in blocks:
            small = block @ block.T if block.shape[0] < block.shape[1] else block.T @ block
            assert_close(small, 1.5**2 * np.eye(len(small)), 1e-12)
        assert all(np.abs(a - b).max() > 0.01 for a, b in pairwise(blocks))


def test_orthogonal_matrices_are_uniformly_distributed():
    rnn = cylstm.RNN(1, 2, dtype="float64", rng=0)
    drawn = []
    for _ in range(2000):
        init.orthogonal(rnn)
        drawn.append(rnn.params["weight_hh_l0"].copy())
    drawn = np.array(drawn)
    assert np.abs(drawn.mean(axis=0)).max() < 0.06  # standard deviation 0.016
    assert abs(np.linalg.det(drawn).mean()) < 0.1
    for column in range(2):
        angles = np.arctan2(drawn[:, 1, column], drawn[:, 0, column])
        assert_uniform(angles, -math.pi, math.pi)


def test_orthogonal_keeps_the_norm_of_h():
    h = np.random.default_rng(0).normal(size=H)
    lstm = cylstm.LSTM(INPUTS, H, dtype="float64", rng=0)
    init.orthogonal(lstm)
    for gate in np.split(lstm.params["weight_hh_l0"], 4):
        assert np.linalg.norm(gate @ h) == pytest.approx(np.linalg.norm(h))
    init.orthogonal(lstm, per_gate=False)
    assert np.linalg.norm(lstm.params["weight_hh_l0"] @ h) == pytest.approx(np.linalg.norm(h))


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros(variant):
    layer = VARIANTS[variant](rng=0)
    if layer.bias:
        names = {n for n in layer.params if kind(n) in ("bias_ih", "bias_hh")}
        assert changed(layer, init.zeros) == names
        assert not any(layer.params[name].any() for name in names)
    assert changed(layer, init.zeros, ["weight_ih", "weight_hh"]) == {
        n for n in layer.params if kind(n) in ("weight_ih", "weight_hh")
    }
    assert not layer.params["weight_ih_l0"].any()


def total_biases(layer):
    """Sums of both biases by suffix, as (gates, H)."""
    found = {}
    for name, value in layer.params.items():
        if kind(name) == "bias_ih":
            total = value + layer.params[name.replace("_ih", "_hh")]
            found[name.removeprefix("bias_ih")] = total.reshape(-1, hidden(layer, name))
    return found


def bias_names(layer):
    return {n for n in layer.params if kind(n) in ("bias_ih", "bias_hh")}


LSTMS = ["lstm", "deep", "sizes", "projection", "peepholes", "haste lstm", "tflite"]
GRUS = ["gru", "haste gru", "reset before", "merged"]


@pytest.mark.parametrize("variant", LSTMS)
def test_forget_bias(variant):
    layer = VARIANTS[variant](rng=0)
    before = total_biases(layer)
    assert changed(layer, init.forget_bias, 2.5) == bias_names(layer)
    for suffix, bias in total_biases(layer).items():
        assert (bias[1] == 2.5).all()
        assert_same_bits(bias[[0, 2, 3]], before[suffix][[0, 2, 3]])
    init.forget_bias(layer)
    assert all((bias[1] == 1).all() for bias in total_biases(layer).values())


@pytest.mark.parametrize("variant", LSTMS)
def test_chrono_of_an_lstm(variant):
    layer = VARIANTS[variant](rng=0)
    before = total_biases(layer)
    assert changed(layer, init.chrono, 200, rng=1) == bias_names(layer)
    for suffix, bias in total_biases(layer).items():
        assert_uniform(np.exp(bias[1]), 1, 199)
        assert_same_bits(bias[0], -bias[1])
        assert_same_bits(bias[2:], before[suffix][2:])


@pytest.mark.parametrize("variant", GRUS)
def test_chrono_of_a_gru(variant):
    layer = VARIANTS[variant](rng=0)
    before = total_biases(layer)
    assert changed(layer, init.chrono, 200, rng=1) == bias_names(layer)
    for suffix, bias in total_biases(layer).items():
        assert_uniform(np.exp(bias[1]), 1, 199)
        assert_same_bits(bias[[0, 2]], before[suffix][[0, 2]])


def test_coupled_gates_get_the_input_gates_bias():
    layer = VARIANTS["coupled"](rng=0)  # gates i, g, o
    before = total_biases(layer)["_l0"]
    init.forget_bias(layer, 2.0)
    bias = total_biases(layer)["_l0"]
    assert (bias[0] == -2).all()
    init.chrono(layer, 200, rng=1)
    bias = total_biases(layer)["_l0"]
    assert_uniform(np.exp(-bias[0]), 1, 199)
    assert_same_bits(bias[1:], before[1:])


def kept(layer):
    """What share of its state each unit keeps over one step, with no input and no weights."""
    layer.assign({n: 0 * v for n, v in layer.params.items() if n.startswith("weight_")})
    one = np.ones((1, 1, H))
    x = np.zeros((1, 1, INPUTS))
    if isinstance(layer, cylstm.GRU):
        return layer(x, one)[1].ravel()
    return layer(x, (0 * one, one))[1][1].ravel()


@pytest.mark.parametrize("variant", ["lstm", "coupled", "gru", "reset before"])
def test_time_scales(variant):
    layer = VARIANTS[variant](rng=0, dtype="float64")
    init.zeros(layer)
    init.chrono(layer, 200, rng=1)
    share = kept(layer)  # u / (u + 1), u uniform from 1 to 199
    assert_uniform(share / (1 - share), 1, 199)
    if variant in ("lstm", "coupled"):
        init.forget_bias(layer, 1.5)
        assert_close(kept(layer), np.full(H, 1 / (1 + math.exp(-1.5))), 1e-12)


def test_time_scales_at_the_least_max_time():
    layer = VARIANTS["lstm"](rng=0)
    init.chrono(layer, 2)
    assert not total_biases(layer)["_l0"][:2].any()


def test_recurrent_weights_of_an_indrnn():
    layer = VARIANTS["indrnn"](rng=0)
    names = {n for n in layer.params if kind(n) == "weight_hh"}
    assert changed(layer, init.indrnn, 4, rng=1) == names
    for name in names:
        low = 2**-0.25 if "_l1" in name else 0
        assert_uniform(layer.params[name], low, 2**0.25)
    eleven = cylstm.RNN(2, H, 11, independent=True)
    init.indrnn(eleven, 1, rng=1)
    assert_uniform(eleven.params["weight_hh_l1"], 0, 2)  # whose name begins that of the last
    assert_uniform(eleven.params["weight_hh_l10"], 0.5, 2)


CALLS = {
    "uniform": init.uniform,
    "glorot_uniform": init.glorot_uniform,
    "orthogonal": init.orthogonal,
    "chrono": partial(init.chrono, max_time=50),
}


@pytest.mark.parametrize("function", CALLS)
def test_same_seed_same_bits(function):
    a, b = (VARIANTS["deep"](rng=seed) for seed in (0, 0))
    CALLS[function](a, rng=7)
    CALLS[function](b, rng=np.random.default_rng(7))
    assert_same_bits(a.flat_params, b.flat_params)
    CALLS[function](b, rng=8)
    assert np.any(a.flat_params != b.flat_params)
    a, b = (VARIANTS["deep"](rng=seed) for seed in (0, 0))
    CALLS[function](a)  # the layer's own source
    CALLS[function](b)
    assert_same_bits(a.flat_params, b.flat_params)
    CALLS[function](b)
    assert np.any(a.flat_params != b.flat_params)


@pytest.mark.parametrize("function", CALLS)
def test_directions_layers_and_gates_differ(function):
    layer = VARIANTS["deep"](rng=0)
    for name in changed(layer, CALLS[function], rng=1):
        other = name.replace("_l1", "_l2")
        if other != name:
            assert np.any(layer.params[name] != layer.params[other]), name
        if name + "_reverse" in layer.params:
            forward, reverse = layer.params[name], layer.params[name + "_reverse"]
            assert kind(name) == "bias_hh" or np.any(forward != reverse), name
    gates = np.split(layer.params["weight_hh_l0"], 4)
    assert all(np.any(gates[0] != gate) for gate in gates[1:])


@pytest.mark.parametrize("function", CALLS)
def test_float32_holds_float64_rounded(function):
    single, double = (VARIANTS["lstm"](dtype=dtype, rng=0) for dtype in ("float32", "float64"))
    CALLS[function](single, rng=1)
    CALLS[function](double, rng=1)
    for name in changed(copy.deepcopy(double), CALLS[function], rng=2):
        assert_same_bits(single.params[name], double.params[name].astype("float32"))


def test_a_layer_learns_that_it_changed():
    layer = cylstm.LSTM(3, 4, rng=0)
    x = np.ones((2, 1, 3))
    y, _ = layer(x)
    init.orthogonal(layer)
    assert np.any(layer(x)[0] != y)


def refused(error, message, function, layer, *arguments, **options):
    before = layer.state_dict() if hasattr(layer, "state_dict") else {}
    with pytest.raises(error, match=message):
        function(layer, *arguments, **options)
    for name, value in before.items():
        assert_same_bits(layer.params[name], value)


@pytest.mark.parametrize("cell", CELLS)
def test_words_that_name_nothing(cell):
    layer = LAYERS[cell](2, 3)
    for function in (init.uniform, init.zeros, init.glorot_uniform, init.orthogonal):
        for word in ("kernel", "weight_hr", "weight_ih_l0", "weight", ""):
            expected = rf"^which: expected some of this layer's 'weight_ih', .*got '{word}'$"
            refused(ValueError, expected, function, layer, word)
            refused(ValueError, expected, function, layer, ["weight_ih", word])
    for function in (init.uniform, init.zeros):
        bare = LAYERS[cell](2, 3, bias=False)
        refused(ValueError, r"^which: .*got 'bias'$", function, bare, "bias")
    for function in (init.glorot_uniform, init.orthogonal):
        for word in ("bias", "bias_hh"):
            refused(ValueError, r"^which: expected matrices, got 'bias_", function, layer, word)


def test_what_has_no_meaning():
    rnn, gru, lstm = (VARIANTS[v]() for v in ("rnn", "gru", "lstm"))
    bare, independent = cylstm.LSTM(2, 3, bias=False), VARIANTS["indrnn"]()
    refused(ValueError, r"^chrono: expected .*LSTM or GRU, got RNN", init.chrono, rnn, 9)
    refused(ValueError, r"^forget_bias: expected .*LSTM, got RNN", init.forget_bias, rnn)
    refused(ValueError, r"^forget_bias: expected .*LSTM, got GRU", init.forget_bias, gru)
    refused(ValueError, r"^forget_bias: expected .*biases, got", init.forget_bias, bare)
    refused(ValueError, r"^chrono: expected .*biases, got", init.chrono, bare, 9)
    refused(ValueError, r"^indrnn: expected .*independent=True, got RNN", init.indrnn, rnn, 9)
    refused(ValueError, r"^indrnn: expected .*independent=True, got LSTM", init.indrnn, lstm, 9)
    for function in (init.orthogonal, partial(init.glorot_uniform, which="weight_hh")):
        message = r"^which: expected matrices, got 'weight_hh'.*independent=True"
        refused(ValueError, message, function, independent)


def test_bad_arguments():
    lstm = cylstm.LSTM(2, 3, rng=0)
    calls = [*CALLS.values(), init.zeros, init.forget_bias, partial(init.indrnn, max_time=2)]
    for function in calls:
        for wrong in (cylstm.Linear(2, 3), None, "lstm"):
            refused(TypeError, r"^layer: expected an RNN, LSTM or GRU, got", function, wrong)
    for value in (math.nan, 1.9, -5, math.inf):
        refused(ValueError, r"^max_time: expected", init.chrono, lstm, value)
    refused(TypeError, r"^max_time: expected a number, got '9'", init.chrono, lstm, "9")
    refused(ValueError, r"^max_time: expected", init.indrnn, VARIANTS["indrnn"](), 0.5)
    refused(ValueError, r"^bound: expected", init.uniform, lstm, bound=-1)
    refused(ValueError, r"^gain: expected", init.orthogonal, lstm, gain=math.nan)
    refused(ValueError, r"^value: expected", init.forget_bias, lstm, math.inf)
    for function in (init.orthogonal, init.glorot_uniform):
        refused(TypeError, r"^per_gate: expected True or False", function, lstm, per_gate=1)


def test_the_only_bias():
    lstm = cylstm.LSTM(3, 5, bias="single", dtype="float64", rng=0)
    before = lstm.params["bias_ih_l0"].copy()
    init.forget_bias(lstm, 2.0)
    assert lstm.params["bias_ih_l0"][5:10].tolist() == [2.0] * 5
    assert_same_bits(lstm.params["bias_ih_l0"][10:], before[10:])
    init.chrono(lstm, 9, rng=0)
    forget, remember = lstm.params["bias_ih_l0"][5:10], lstm.params["bias_ih_l0"][:5]
    assert_same_bits(forget, -remember)
    assert np.all((forget >= 0) & (forget <= math.log(8)))
    with pytest.raises(ValueError, match=r"^which: expected .*'bias_ih', got 'bias_hh'"):
        init.zeros(lstm, "bias_hh")
    init.zeros(lstm)
    assert not lstm.params["bias_ih_l0"].any()
