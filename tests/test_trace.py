"""`trace`: what it shows obeys the equations and is what the output came from."""

import numpy as np
import pytest
import reference
from helpers import CELLS, LAYERS, assert_close, assert_same_bits, joined, problem
from variants import CELL_VARIANTS, REGULARISED_VARIANTS, TOPOLOGIES, named

INPUTS, H, T, B = 3, 18, 6, 4
LENGTHS = np.array([6, 0, 3, 1])


def traced(cell, **options):
    layer = LAYERS[cell](INPUTS, H, dtype="float64", rng=0, **options)
    x = np.random.default_rng(1).normal(size=(T, B, INPUTS))
    return layer, x, layer.trace(x, lengths=LENGTHS)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("cell", CELLS)
def test_hidden_is_the_output(cell):
    layer, x, trace = traced(cell, num_layers=2, bidirectional=True)
    y, _ = layer(x, lengths=LENGTHS)
    assert list(trace) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert_same_bits(np.concatenate([trace[k]["hidden"] for k in ("l1", "l1_reverse")], -1), y)


def previous(a):
    return np.concatenate([np.zeros_like(a[:1]), a[:-1]])


def pre_activations(layer, x, h):
    """Those of the input and of the recurrent part, (T, B, gates, H) each."""
    w, u, b, c = layer.params.values()
    shape = (T, B, -1, H)
    return (x @ w.T + b).reshape(shape), (previous(h) @ u.T + c).reshape(shape)


def test_gates_of_an_lstm():
    layer, x, trace = traced("lstm")
    t = trace["l0"]
    a = np.add(*pre_activations(layer, x, t["hidden"]))
    valid = np.arange(T)[:, None] < LENGTHS
    for k, name in enumerate(("input", "forget", "candidate", "output")):
        gate = np.tanh(a[:, :, k]) if name == "candidate" else sigmoid(a[:, :, k])
        assert_close(t[name], gate * valid[..., None], 1e-13)
    cell = t["forget"] * previous(t["cell"]) + t["input"] * t["candidate"]
    assert_close(t["cell"], cell, 1e-13)
    assert_close(t["hidden"], t["output"] * np.tanh(cell), 1e-13)


def test_gates_of_a_gru():
    layer, x, trace = traced("gru")
    t = trace["l0"]
    a, u = pre_activations(layer, x, t["hidden"])
    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]
    assert_close(t["reset"], sigmoid(a + u)[:, :, 0] * valid, 1e-13)
    assert_close(t["update"], sigmoid(a + u)[:, :, 1] * valid, 1e-13)
    assert_close(t["candidate"], np.tanh(a[:, :, 2] + t["reset"] * u[:, :, 2]) * valid, 1e-13)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "rows"), [(0, 2), (2, 0)])
def test_nothing_to_trace(cell, steps, rows):
    trace = LAYERS[cell](INPUTS, H).trace(np.zeros((steps, rows, INPUTS)))
    assert {a.shape for a in trace["l0"].values()} == {(steps, rows, H)}


@pytest.mark.parametrize("cell", CELLS)
def test_layouts(cell):
    layer = LAYERS[cell](INPUTS, H, batch_first=True, rng=0)
    x = np.random.default_rng(1).normal(size=(B, T, INPUTS)).astype(np.float32)
    assert layer.trace(x)["l0"]["hidden"].shape == (B, T, H)
    alone = layer.trace(x[0])["l0"]
    for name, values in layer.trace(x)["l0"].items():
        assert_same_bits(values[0], alone[name])


def assert_trace_is_the_oracles(p):
    actual = p.layer.trace(p.x, joined(p.state), **p.steps())
    expected = reference.trace(p.oracle()[2])
    assert list(actual) == list(expected)
    for where, gates in expected.items():
        assert sorted(actual[where]) == sorted(gates)
        for gate, values in gates.items():
            assert actual[where][gate].dtype == p.layer.dtype
            assert_close(actual[where][gate], values, 1e-4 if p.x.dtype == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS + REGULARISED_VARIANTS))
def test_every_variant(cell, options, dtype):
    assert_trace_is_the_oracles(
        problem(cell, (3, 17, 2), steps=6, rows=4, mask="holes", bidirectional=True, dtype=dtype,
                **options)
    )  # fmt: skip


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_every_topology(cell, topology):
    options = TOPOLOGIES[topology]
    assert_trace_is_the_oracles(problem(cell, (3, 17, 2), mask="holes", **options))
    assert_trace_is_the_oracles(problem(cell, (3, (5, 9)), mask="holes", **options))
