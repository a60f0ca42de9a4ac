"""The native entry refuses by itself what the Python face would never let through."""

import numpy as np
import pytest

import cylstm
from cylstm.engine.cells import Extras
from cylstm.kernels import dispatch, sequence

STEPS, ROWS, INPUTS, HIDDEN = 3, 2, 4, 5
X = np.zeros((STEPS, ROWS, INPUTS), np.float32)
NOTHING = (None, None)
LAYERS = {"lstm": cylstm.LSTM, "gru": cylstm.GRU, "rnn": cylstm.RNN}


def weights(backward=True):
    return cylstm.LSTM(INPUTS, HIDDEN, rng=0)._weights(backward).layers[0]


def forward(w=None, x=X, y=None, initial=NOTHING, lengths=None, taped=True):
    return sequence.forward(weights() if w is None else w, x, y, initial, lengths, taped, 1)


def gradients():
    return [[(np.zeros((1, 20, 4), "f"), np.zeros((1, 20, 5), "f"), None, None, None, None)]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"w": []},
        {"w": weights() * 3},
        {"w": [None]},
        {"w": [sequence.Packed.__new__(sequence.Packed)]},
        {"w": weights(backward=False)},
        {"x": X[0]},
        {"x": X[..., :3]},
        {"x": X.astype(float)},
        {"x": np.asfortranarray(X)},
        {"y": np.zeros((STEPS, ROWS, HIDDEN + 1), "f")},
        {"initial": ()},
        {"initial": (None,)},
        {"initial": (np.zeros((1, ROWS + 1, HIDDEN), "f"), None)},
        {"lengths": np.array([3])},
        {"lengths": np.array([3, 4])},
        {"lengths": np.array([3, -1])},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_forward_refuses(wrong):
    assert forward()[0].shape == (STEPS, ROWS, HIDDEN)
    with pytest.raises(ValueError, match=": expected"):
        forward(**wrong)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("lstm", {"kind": "lstm_coupled"}),
        ("lstm", {"kind": "lstm "}),
        ("lstm", {"states": 1}),
        ("lstm", {"states": 5}),
        ("lstm", {"x_slots": (0, 1, 2)}),
        ("lstm", {"h_slots": (1, 2, 3, 4)}),
        ("lstm", {"h_slots": (3, 2, 1, 0)}),
        ("lstm", {"products": 2}),
        ("lstm", {"products": -1}),
        ("lstm", {"activations": ()}),
        ("lstm", {"usual": ()}),
        ("gru", {"h_slots": (1, 2, 0)}),
        ("gru", {"products": 2}),
        ("gru", {"kind": "gru_reset_before"}),
        ("rnn", {"kind": "gru"}),
        ("rnn", {"products": 9}),
        ("lstm", {"heads": 2}),
        ("lstm", {"heads": 0}),
        ("lstm", {"heads": -1}),
    ],
    ids=str,
)
def test_a_cell_is_what_its_kernels_do(kind, wrong):
    layer = LAYERS[kind](INPUTS, HIDDEN)
    arrays = layer.params["weight_ih_l0"][None], layer.params["weight_hh_l0"][None]
    bias = np.zeros((1, 1, layer._cell.slots * HIDDEN), "f")
    table = dispatch.table("float32")
    sequence.Packed(table, layer._cell, *arrays, bias, True)
    with pytest.raises(ValueError, match=": expected"):
        sequence.Packed(table, layer._cell._replace(**wrong), *arrays, bias, True)


@pytest.mark.parametrize("name", ["weights", "x", "tape"])
def test_none_is_refused(name):
    with pytest.raises((TypeError, ValueError), match=name):
        if name == "weights":
            sequence.forward(None, X, None, NOTHING, None, False, 1)
        elif name == "x":
            forward(x=None)
        else:
            sequence.backward(None, None, NOTHING, [X.copy()], 1)


def test_backward_refuses():
    tape = forward()[2]
    good = {"dfinal": NOTHING, "dx": [np.zeros_like(X)]}
    call = sequence.backward(tape, None, *good.values(), 1)[1]
    for name in good:
        wrong = good | {name: type(good[name])()}
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sequence.backward(tape, None, *wrong.values(), 1)
    for tapeless in (forward(taped=False)[2], call, sequence.Call.__new__(sequence.Call)):
        with pytest.raises(ValueError, match="tape: expected"):
            sequence.backward(tapeless, None, *good.values(), 1)
        with pytest.raises(ValueError, match="d: expected"):
            tapeless.recorded(0)
    with pytest.raises(ValueError, match="d: expected"):
        tape.recorded(1)


def test_gradients_are_added_all_or_none():
    x = np.ones_like(X)
    tape = forward(x=x)[2]
    dy = np.ones((STEPS, ROWS, HIDDEN), "f")
    calls = [sequence.backward(tape, dy, NOTHING, [np.zeros_like(X)], 1)[1] for _ in range(2)]
    good, other = gradients(), gradients()
    sequence.add_gradients(calls, good + other)
    assert np.abs(good[0][0][0]).min() > 0
    np.testing.assert_array_equal(good[0][0][0], other[0][0][0])
    for wrong in ([], [[]], [[()]], [[(np.zeros((1, 20, 5), "f"), *good[0][0][1:])]]):
        first = gradients()
        with pytest.raises(ValueError, match=": expected"):
            sequence.add_gradients(calls, first + wrong)
        assert not first[0][0][0].any()
    for nothing in (tape, sequence.Call.__new__(sequence.Call), None):
        with pytest.raises(ValueError, match="calls: expected"):
            sequence.add_gradients([nothing], gradients())


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": [0, 4]},
        {"starts": [0, -1]},
        {"columns": [0, ROWS]},
        {"columns": [-1, 0]},
        {"spans": [1, STEPS]},
        {"spans": [0, 1]},
        {"starts": [0]},
    ],
    ids=str,
)
def test_segments_outside_of_x_are_refused(wrong):
    """More steps than rows, so that a bound of the other axis shows."""
    given = {"starts": [0, 1], "columns": [0, 1], "spans": [1, 1]}
    lengths, mask = np.array([1, 1]), np.ones((STEPS, ROWS), np.uint8)

    def run(**values):
        arrays = {name: np.array(value) for name, value in values.items()}
        extras = Extras(mask=mask, **arrays)
        return sequence.forward(weights(), X, None, NOTHING, lengths, False, 1, extras)

    assert len(run(**given)[1][0][0]) == 2
    with pytest.raises(ValueError, match="starts"):
        run(**given | wrong)
