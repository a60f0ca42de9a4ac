"""Masks of dropout, zoneout and DropConnect: what they are, when they act, how they replay."""

import copy
import pickle

import numpy as np
import pytest
from helpers import (
    LAYERS,
    assert_close,
    assert_gradients_close,
    assert_same_bits,
    joined,
    problem,
)
from variants import REGULARISED_VARIANTS, named

EVERY = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
EACH = pytest.mark.parametrize(("cell", "options"), **named(REGULARISED_VARIANTS))
ALL = {"dropout": 0.5, "recurrent_dropout": 0.25, "zoneout": 0.125, "dropconnect": 0.375}


def regularised(cell, sizes=(3, 16, 2), *, rng=5, **options):
    """A layer with every regularisation that its cell has."""
    own = ALL | ({"zoneout_cell": 0.625} if cell == "lstm" else {}) | options
    return LAYERS[cell](*sizes, rng=rng, **own)


def assert_same_masks(actual, expected):
    assert len(actual) == len(expected)
    for own, others in zip(actual, expected, strict=True):
        assert list(own) == list(others)
        for name, value in own.items():
            for a, b in zip(value, others[name], strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY
def test_shapes_and_values(cell, dtype):
    layer = regularised(cell, bidirectional=True, dtype=dtype)
    tape = layer.forward(np.ones((40, 30, 3)))[2]
    cells = {"zoneout_cell": (40, 30, 32)} if cell == "lstm" else {}
    shapes = {"recurrent": (2, 30, 16), "zoneout": (40, 30, 32), **cells}
    lower, upper = tape.masks
    assert {n: m.shape for n, m in lower.items() if n != "dropconnect"} == shapes | {
        "dropout": (40, 30, 32)
    }
    assert {n: m.shape for n, m in upper.items() if n != "dropconnect"} == shapes
    values = {"dropout": (0, 2), "recurrent": (0, 4 / 3), "dropconnect": (0, 8 / 5)}
    for own in tape.masks:
        assert [m.shape for m in own["dropconnect"]] == [layer.params["weight_hh_l0"].shape] * 2
        for name, mask in own.items():
            for array in mask:
                assert array.dtype == dtype
                np.testing.assert_allclose(np.unique(array), values.get(name, (0, 1)), rtol=1e-6)


@EVERY
def test_probabilities(cell):
    """Of being dropped, or for zoneout of staying as before, within five standard deviations."""
    layer = regularised(cell, (3, 128, 2), bidirectional=True)
    probability = {"recurrent": ALL["recurrent_dropout"], "zoneout_cell": 0.625} | ALL
    for own in layer.forward(np.ones((20, 40, 3)))[2].masks:
        for name, mask in own.items():
            mask = np.stack(mask)
            p, acted = probability[name], mask != 0 if name.startswith("zoneout") else mask == 0
            assert abs(acted.mean() - p) < 5 * np.sqrt(p * (1 - p) / mask.size)
            for axis in range(mask.ndim):  # neighbours are independent
                same = (acted == np.roll(acted, 1, axis)).mean()
                if mask.shape[axis] > 2:
                    assert abs(same - p * p - (1 - p) ** 2) < 5 / np.sqrt(mask.size)


@EVERY
def test_masks_of_layers_and_directions_differ(cell):
    layer = regularised(cell, bidirectional=True)
    lower, upper = layer.forward(np.ones((9, 8, 3)))[2].masks
    for name in lower.keys() & upper.keys():
        a, b = np.stack(lower[name]), np.stack(upper[name])
        assert np.any(a != b)
        if name in ("recurrent", "dropconnect"):
            assert np.any(a[0] != a[1])
        else:
            assert np.any(np.split(a, 2, -1)[0] != np.split(a, 2, -1)[1])


@EVERY
def test_variational_dropout_is_one_mask_for_all_steps(cell):
    for bidirectional, mode, width in ((False, "concat", 16), (True, "concat", 32),
                                       (True, "sum", 16)):  # fmt: skip
        layer = LAYERS[cell](3, 16, 3, dropout=0.5, variational=True, rng=1,
                             bidirectional=bidirectional, merge_mode=mode)  # fmt: skip
        masks = layer.forward(np.ones((9, 8, 3)))[2].masks
        assert [{n: m.shape for n, m in own.items()} for own in masks] == [
            {"dropout": (1, 8, width)}, {"dropout": (1, 8, width)}, {}]  # fmt: skip


@EVERY
def test_nothing_is_drawn_without_an_option(cell):
    layer = LAYERS[cell](3, 16, 2, rng=1)
    before = layer._rng.bit_generator.state
    assert layer.forward(np.ones((9, 8, 3)))[2].masks == [{}, {}]
    assert layer._rng.bit_generator.state == before


@EACH
def test_a_seed_replays(cell, options):
    p = problem(cell, (3, 17, 2), steps=9, bidirectional=True, **options)
    first = p.forward(rng=3)
    for rng in (3, np.random.default_rng(3)):
        again = p.forward(rng=rng)
        assert_same_masks(again[2].masks, first[2].masks)
        assert_same_bits(again[:2], first[:2])
        assert_same_bits(p.backward(again[2]), p.backward(first[2]))
    assert np.any(p.forward(rng=4)[0] != first[0])
    generator = np.random.default_rng(3)
    assert np.any(p.forward(rng=generator)[0] != p.forward(rng=generator)[0])


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@EACH
def test_a_seed_given_to_one_call_or_a_plain_call_leaves_the_layers_own_alone(
    cell, options, duplicate
):
    p = problem(cell, (3, 17, 2), **options)
    twin = p._replace(layer=duplicate(p.layer))
    for _ in range(2):
        p.forward(rng=3)
        p.infer()
        p.layer.trace(p.x, **p.steps())
        ours, theirs = p.forward(), twin.forward()
        assert_same_masks(ours[2].masks, theirs[2].masks)
        assert_same_bits(ours[:2], theirs[:2])


@EACH
def test_masks_depend_on_the_shape_of_the_input_alone(cell, options):
    """Not on threads, checkpoints, the steps that are valid, outputs, or values."""
    p = problem(cell, (3, 17, 2), steps=12, rows=6, **options)
    y, state, tape = p.forward(rng=3)
    gradients = tuple(p.gradients(tape).values())
    for call in ({"num_threads": 4}, {"num_threads": 1}, {"checkpoint": 2}, {"checkpoint": "sqrt"}):
        other = p.forward(rng=3, **call)
        assert_same_masks(other[2].masks, tape.masks)
        assert_same_bits((*other[:2], tuple(p.gradients(other[2]).values())), (y, state, gradients))
    holes = np.random.default_rng(0).random((12, 6)) < 0.5
    for call in ({"lengths": [12, 0, 3, 7, 1, 5]}, {"mask": holes}, {"return_": "last"}):
        other = p._replace(x=2 * p.x).forward(rng=3, **call)
        assert_same_masks(other[2].masks, tape.masks)


@EACH
def test_layouts(cell, options):
    p = problem(cell, (3, 17, 2), steps=6, rows=4, bidirectional=True, **options)
    first = LAYERS[cell](3, 17, 2, batch_first=True, bidirectional=True, **options)
    first.assign(p.layer.flat_params)
    y, state, tape = p.forward(rng=3)
    more = {} if p.attention is None else {"attention": p.attention.T}
    y_first, state_first, tape_first = first.forward(
        p.x.swapaxes(0, 1), joined(p.state), rng=3, **more
    )
    assert_same_masks(tape_first.masks, tape.masks)
    assert_same_bits((y_first.swapaxes(0, 1), p.parts(state_first)), (y, state))
    row = {} if p.attention is None else {"attention": p.attention[:, :1]}
    alone = p._replace(x=p.x[:, :1], state=tuple(s[:, :1] for s in p.state), **row).forward(rng=3)
    more = {name: a[:, 0] for name, a in row.items()}
    state = joined(tuple(s[:, 0] for s in p.state))
    y_row, _, tape_row = p.layer.forward(p.x[:, 0], state, rng=3, **more)
    assert_same_masks(tape_row.masks, alone[2].masks)
    assert_same_bits(y_row, alone[0][:, 0])


@EACH
def test_no_steps(cell, options):
    p = problem(cell, (3, 17, 2), steps=0, rows=4, **options)
    y, state, _ = p.forward(rng=3)
    assert y.shape == (0, 4, p.network.widths[-1])
    assert_same_bits(state, p.state)


@EVERY
def test_zoneout_keeps_the_old_value(cell):
    more = {"zoneout_cell": 0.5} if cell == "lstm" else {}
    layer = LAYERS[cell](3, 16, zoneout=0.5, rng=1, **more)
    y, _, tape = layer.forward(np.ones((9, 8, 3)))
    stays = tape.masks[0]["zoneout"] == 1
    before = np.concatenate((np.zeros_like(y[:1]), y[:-1]))
    assert_close(y[stays], before[stays], 1e-7)  # the new value plus its difference to the old
    assert np.all(y[~stays] != before[~stays])


@EVERY
def test_dropconnect_is_another_weight(cell):
    layer = LAYERS[cell](3, 16, dropconnect=0.5, rng=1)
    plain = LAYERS[cell](3, 16)
    x = np.random.default_rng(0).normal(size=(9, 4, 3))
    y, _, tape = layer.forward(x)
    weight = layer.params["weight_hh_l0"] * tape.masks[0]["dropconnect"][0]
    plain.assign(layer.params | {"weight_hh_l0": weight})
    assert_same_bits(plain(x)[0], y)
    assert np.any(layer(x)[0] != y)


@EVERY
def test_a_dropped_weight_gets_no_gradient(cell):
    layer = LAYERS[cell](3, 16, dropconnect=0.5, rng=1)
    y, _, tape = layer.forward(np.ones((9, 4, 3)))
    layer.backward(tape, y)
    dropped = tape.masks[0]["dropconnect"][0] == 0
    grad = layer.grads["weight_hh_l0"]
    assert not np.any(grad[dropped]) and np.all(grad[~dropped] != 0)


@EVERY
def test_plain_calls_drop_nothing_but_mix_by_zoneout(cell):
    p = problem(cell, (3, 16, 2), dropout=0.5, recurrent_dropout=0.25, dropconnect=0.375)
    q = problem(cell, (3, 16, 2))
    assert_same_bits(p.infer(), q.infer())
    zoned = problem(cell, (3, 16, 2), zoneout=0.25, dtype="float64")
    assert_close(zoned.infer()[0], zoned.oracle()[0], 1e-13)


@EVERY
def test_zoneout_of_a_step_that_is_not_read(cell):
    """A masked step passes the state on whatever its mask of zoneout says."""
    p = problem(cell, (3, 17, 2), steps=7, mask="holes", zoneout=0.5, dtype="float64")
    y, state, tape = p.forward(rng=3)
    y_expected, state_expected, _ = p.oracle(tape.masks)
    assert_close((y, state), (y_expected, state_expected), 1e-13)
    assert_gradients_close(p.gradients(tape), p.oracle_gradients(tape.masks), 1e-12)
