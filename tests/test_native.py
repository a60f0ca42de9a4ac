"""The native entry refuses by itself what the Python face would never let through."""

import numpy as np
import pytest

import cylstm
from cylstm.kernels import sequence

STEPS, ROWS, INPUTS, HIDDEN = 3, 2, 4, 5
X = np.zeros((STEPS, ROWS, INPUTS), np.float32)
NOTHING = (None, None)


def weights(backward=True):
    return cylstm.LSTM(INPUTS, HIDDEN, rng=0)._weights(backward)[0]


def forward(w=None, x=X, y=None, initial=NOTHING, lengths=None, taped=True):
    return sequence.forward(weights() if w is None else w, x, y, initial, lengths, taped, 1)


def gradients():
    return [(np.zeros((1, 20, 4), "f"), np.zeros((1, 20, 5), "f"), None, None, None, None)]


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


@pytest.mark.parametrize("name", ["weights", "x", "tape"])
def test_none_is_refused(name):
    with pytest.raises((TypeError, ValueError), match=name):
        if name == "weights":
            sequence.forward(None, X, None, NOTHING, None, False, 1)
        elif name == "x":
            forward(x=None)
        else:
            sequence.backward(None, None, NOTHING, [X.copy()], gradients(), 1)


def test_backward_refuses():
    tape = forward()[2]
    good = {"dfinal": NOTHING, "dx": [np.zeros_like(X)], "gradients": gradients()}
    sequence.backward(tape, None, *good.values(), 1)
    for name in good:
        wrong = good | {name: type(good[name])()}
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sequence.backward(tape, None, *wrong.values(), 1)
    for tapeless in (forward(taped=False)[2], sequence.Call.__new__(sequence.Call)):
        with pytest.raises(ValueError, match="tape: expected"):
            sequence.backward(tapeless, None, *good.values(), 1)
        with pytest.raises(ValueError, match="d: expected"):
            tapeless.recorded(0)
    with pytest.raises(ValueError, match="d: expected"):
        tape.recorded(1)
