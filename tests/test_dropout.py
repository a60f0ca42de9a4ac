"""Dropout between layers: where it acts, how it scales, and how it is replayed."""

import copy
import pickle

import numpy as np
import pytest
import reference
from helpers import CELLS, LAYERS, TOLERANCE, assert_close, assert_same_bits, problem

STEPS, ROWS, INPUTS, HIDDEN = 7, 5, 3, 16


def layer_like(cell, *, dropout, rng, bidirectional=False, dtype="float64"):
    return LAYERS[cell](
        INPUTS, HIDDEN, 2, dropout=dropout, rng=rng, bidirectional=bidirectional, dtype=dtype
    )


def first_masks(cell, x, *, dropout, **options):
    """The mask of the first forward call on x, seen through a second layer that passes it on.

    The second layer of a layer with the same seed gets weights with which y = tanh(mask * h)
    (max(mask * h, 0) for ReLU) at every step: its output is 0 exactly where h was dropped.
    """
    layer = layer_like(cell, dropout=dropout, **options)
    width = layer.num_directions * HIDDEN
    for direction, suffix in enumerate(("_l1", "_l1_reverse")[: layer.num_directions]):
        own = np.eye(HIDDEN, width, direction * HIDDEN)
        none, on, off = 0 * own, np.full(HIDDEN, 1e3), np.full(HIDDEN, -1e3)
        zero = np.zeros(HIDDEN)
        blocks, biases = {
            "lstm": ([none, none, own, none], [on, off, zero, on]),
            "gru": ([none, none, own], [zero, off, zero]),
        }.get(cell, ([own], [zero]))
        layer.assign({
            "weight_ih" + suffix: np.concatenate(blocks),
            "weight_hh" + suffix: 0 * layer.params["weight_hh" + suffix],
            "bias_ih" + suffix: np.concatenate(biases),
            "bias_hh" + suffix: 0 * np.concatenate(biases),
        })  # fmt: skip
    if cell == "rnn_relu":  # positive outputs only, so that 0 means dropped
        for suffix in ("_l0", "_l0_reverse")[: layer.num_directions]:
            recurrent = 0 * layer.params["weight_hh" + suffix]
            layer.assign({"bias_ih" + suffix: np.full(HIDDEN, 5), "weight_hh" + suffix: recurrent})
    y, _, _ = layer.forward(x)
    return [{"dropout": (y != 0) / (1 - dropout)}, {}]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_and_backward_with_the_masks(cell, dtype, bidirectional):
    options = {"dropout": 0.3, "rng": 11, "bidirectional": bidirectional, "dtype": dtype}
    p = problem(cell, (INPUTS, HIDDEN, 2), steps=STEPS, rows=ROWS, bidirectional=bidirectional,
                dtype=dtype)  # fmt: skip
    p = p._replace(layer=layer_like(cell, **options))
    masks = first_masks(cell, p.x, **options)
    assert 0.6 < (masks[0]["dropout"] != 0).mean() < 0.8
    y, state, cache = p.oracle(masks)
    dx, dstate, grads = reference.backward(cache, p.dy, p.dstate)
    y_actual, state_actual, tape = p.forward()
    dx_actual, dstate_actual = p.backward(tape)
    tolerance = 20 * TOLERANCE[dtype]
    assert_close(y_actual, y, tolerance)
    assert_close(state_actual, state, tolerance)
    if cell != "rnn_relu" or dtype == "float64":  # else roundings choose sides of the kink
        assert_close(dx_actual, dx, tolerance)
        assert_close(dstate_actual, dstate, tolerance)
        for name, grad in p.layer.grads.items():
            assert_close(grad, grads[name], tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_masks_differ_by_step_row_unit_and_call(cell):
    x = np.random.default_rng(0).normal(size=(40, 30, INPUTS))
    masks = first_masks(cell, x, dropout=0.25, rng=3)
    kept = masks[0]["dropout"] != 0
    assert abs(kept.mean() - 0.75) < 0.01  # 19200 draws: standard deviation 0.003
    for axis in range(3):
        assert abs((kept == np.roll(kept, 1, axis)).mean() - 0.625) < 0.02  # 0.75**2 + 0.25**2
    layer = layer_like(cell, dropout=0.25, rng=3)
    assert np.any(layer.forward(x)[0] != layer.forward(x)[0])


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("cell", CELLS)
def test_same_seed_or_copy_replays(cell, duplicate):
    x = np.random.default_rng(0).normal(size=(STEPS, ROWS, INPUTS))
    layer, twin = (layer_like(cell, dropout=0.5, rng=5) for _ in range(2))
    assert_same_bits(layer.forward(x)[0], twin.forward(x)[0])
    twin = duplicate(layer)
    for _ in range(2):
        assert_same_bits(layer.forward(x)[0], twin.forward(x)[0])
    assert np.any(layer.forward(x)[0] != layer_like(cell, dropout=0.5, rng=6).forward(x)[0])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_masks_do_not_depend_on_threads(cell, threads):
    x = np.random.default_rng(0).normal(size=(50, 40, INPUTS))
    expected = layer_like(cell, dropout=0.5, rng=5).forward(x, num_threads=1)[0]
    layer = layer_like(cell, dropout=0.5, rng=5)
    assert_same_bits(layer.forward(x, num_threads=threads)[0], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_inference_and_single_layers_drop_nothing(cell):
    p = problem(cell, (INPUTS, HIDDEN, 2), dropout=0.9)
    q = problem(cell, (INPUTS, HIDDEN, 2))
    assert_same_bits(p.infer(), q.infer())
    single = problem(cell, (INPUTS, HIDDEN, 1), dropout=0.9)
    assert_same_bits(single.forward()[:2], single.infer())


@pytest.mark.parametrize("cell", CELLS)
def test_everything_dropped(cell):
    p = problem(cell, (INPUTS, HIDDEN, 2), dropout=1.0, dtype="float64")
    y, state, cache = p.oracle([{"dropout": np.zeros((5, 3, HIDDEN))}, {}])
    y_actual, state_actual, tape = p.forward()
    assert_close(y_actual, y, 1e-13)
    assert_close(state_actual, state, 1e-13)
    dx, _ = p.backward(tape)
    expected, _, grads = reference.backward(cache, p.dy, p.dstate)
    assert_close(dx, expected, 1e-13)
    assert_close(p.layer.grads["weight_hh_l0"], grads["weight_hh_l0"], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_does_not_change_valid_steps(cell):
    p = problem(cell, (INPUTS, HIDDEN, 2), lengths="random", dropout=0.5, rows=6)
    q = p._replace(layer=copy.deepcopy(p.layer), x=p.x.copy())
    q.x[np.arange(len(p.x))[:, None] >= p.lengths] = np.nan
    y, state, tape = p.forward()
    y_nan, state_nan, tape_nan = q.forward()
    assert_same_bits((y_nan, *state_nan), (y, *state))
    assert_same_bits(q.backward(tape_nan), p.backward(tape))
