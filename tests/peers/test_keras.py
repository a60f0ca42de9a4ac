"""The same weights in Keras, run by PyTorch: masks, directions, merging, GRU's two forms, dropout.

Gate orders: Keras' LSTM has i, f, c, o as PyTorch, its GRU z, r, h. Kernels are transposed.
"""

import os

import numpy as np
import pytest
import torch
from helpers import assert_close, parts, problem

os.environ["KERAS_BACKEND"] = "torch"
import keras

STEPS, ROWS, INPUTS, HIDDEN = 7, 5, 6, 19
LAYERS = {"rnn": "SimpleRNN", "gru": "GRU", "lstm": "LSTM"}
ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}
CASES = {
    "rnn": ("rnn_tanh", {}, {}),
    "rnn_relu": ("rnn_relu", {}, {"activation": "relu"}),
    "gru": ("gru", {}, {}),
    "reset before": ("gru", {"reset_after": False}, {"reset_after": False}),
    "lstm": ("lstm", {}, {}),
    "no bias": ("lstm", {"bias": False}, {"use_bias": False}),
    "gru without bias": ("gru", {"bias": False}, {"use_bias": False}),
}
BY_NAME = pytest.mark.parametrize("name", CASES)


def kernels(p, suffix):
    """Keras' weights of one direction: kernel, recurrent kernel, bias."""
    cell = p.cell.partition("_")[0]

    def arranged(kind):
        blocks = np.split(p.layer.params[kind + suffix], len(ORDER[cell]))
        return np.concatenate([blocks[g] for g in ORDER[cell]]).T

    weights = [arranged("weight_ih"), arranged("weight_hh")]
    if p.layer.bias:
        both = np.stack([arranged("bias_ih"), arranged("bias_hh")])
        separate = cell == "gru" and p.layer.reset_after
        weights.append(both if separate else both.sum(axis=0))
    return weights


def keras_layer(p, **options):
    """The layer in Keras, with all outputs and the final state, or a Bidirectional of two."""
    bidirectional = options.pop("bidirectional", False)
    merge_mode = options.pop("merge_mode", "concat")
    make = getattr(keras.layers, LAYERS[p.cell.partition("_")[0]])
    defaults = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True}
    layer = make(HIDDEN, **defaults | options)
    weights = kernels(p, "_l0")
    if bidirectional:
        layer = keras.layers.Bidirectional(layer, merge_mode=merge_mode)
        weights = weights + kernels(p, "_l0_reverse")
    layer.build((ROWS, STEPS, INPUTS))
    layer.set_weights(weights)
    return layer


def keras_outputs(p, layer, mask=None, **options):
    """Outputs (T, B, .), or a tuple of them, and the final states by part as (D, B, H)."""
    x = np.ascontiguousarray(p.x.swapaxes(0, 1))
    initial = [part[d] for d in range(p.layer.num_directions) for part in p.state]
    mask = None if mask is None else np.ascontiguousarray(mask.T)
    results = layer(x, initial_state=initial, mask=mask, **options)
    arrays = [r.detach().numpy() for r in results]
    ys = tuple(y.swapaxes(0, 1) for y in arrays[: -len(initial)])
    finals = arrays[-len(initial) :]
    count = len(p.state)
    return ys if len(ys) > 1 else ys[0], tuple(np.stack(finals[k::count]) for k in range(count))


def problem_of(name, **options):
    cell, ours, theirs = CASES[name]
    p = problem(cell, (INPUTS, HIDDEN), steps=STEPS, rows=ROWS, **ours, **options)
    return p, dict(theirs)


def compare(p, layer, mask=None):
    expected, state_expected = keras_outputs(p, layer, mask)
    y, state = p.layer(p.x, p.state if len(p.state) == 2 else p.state[0], mask=mask)
    assert_close(y, expected, 2e-6)
    assert_close(parts(state), state_expected, 2e-6)


def masks():
    """(T, B): all valid, right and left padding, holes, one row with nothing valid."""
    rng = np.random.default_rng(3)
    t, lengths = np.arange(STEPS)[:, None], np.array([7, 3, 1, 5, 0])
    return {
        "none": None,
        "right": t < lengths,
        "left": t >= STEPS - lengths,
        "holes": rng.random((STEPS, ROWS)) < 0.6,
    }


MASKS = masks()
BY_MASK = pytest.mark.parametrize("mask", MASKS)


@BY_MASK
@BY_NAME
def test_masks(name, mask):
    p, options = problem_of(name)
    compare(p, keras_layer(p, **options), MASKS[mask])


@BY_NAME
def test_what_a_masked_step_gives_without_zero_output_for_mask(name):
    """Keras repeats the last valid output then; here it is 0. Valid steps are the same."""
    p, options = problem_of(name)
    mask = MASKS["holes"]
    layer = keras_layer(p, zero_output_for_mask=False, **options)
    expected, state = keras_outputs(p, layer, mask)
    y, state_actual = p.layer(p.x, p.state if len(p.state) == 2 else p.state[0], mask=mask)
    assert_close(y[mask], expected[mask], 2e-6)
    assert_close(parts(state_actual), state, 2e-6)
    assert not y[~mask].any() and expected[~mask].any()


@BY_MASK
@BY_NAME
def test_go_backwards(name, mask):
    """Keras gives outputs in the order of processing; here they are at their own steps."""
    p, options = problem_of(name, go_backwards=True)
    layer = keras_layer(p, go_backwards=True, **options)
    expected, state = keras_outputs(p, layer, MASKS[mask])
    initial = p.state if len(p.state) == 2 else p.state[0]
    y, state_actual = p.layer(p.x, initial, mask=MASKS[mask])
    assert_close(y[::-1], expected, 2e-6)
    assert_close(parts(state_actual), state, 2e-6)


@pytest.mark.parametrize("mask", ["none", "holes"])
@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", "separate"])
@BY_NAME
def test_merge_modes(name, merge_mode, mask):
    p, options = problem_of(name, bidirectional=True, merge_mode=merge_mode)
    theirs = None if merge_mode == "separate" else merge_mode
    compare(p, keras_layer(p, bidirectional=True, merge_mode=theirs, **options), MASKS[mask])


@pytest.mark.parametrize("name", ["lstm", "gru", "reset before"])
def test_hard_sigmoid(name):
    gates = {"lstm": ("input", "forget", "output")}.get(name, ("reset", "update"))
    ours = dict.fromkeys(gates, "hard_sigmoid_keras3")
    p, options = problem_of(name, activations=ours)
    p = p._replace(x=6 * p.x)  # so that both ends are reached
    compare(p, keras_layer(p, recurrent_activation="hard_sigmoid", **options))


def keras2_hard_sigmoid(x):
    """As Keras had it until version 2."""
    return keras.ops.clip(0.2 * x + 0.5, 0, 1)


def test_hard_sigmoid_of_keras_2():
    gates = ("input", "forget", "output")
    p, _ = problem_of("lstm", activations=dict.fromkeys(gates, "hard_sigmoid_keras2"))
    p = p._replace(x=6 * p.x)
    compare(p, keras_layer(p, recurrent_activation=keras2_hard_sigmoid))


@pytest.mark.parametrize("name", ["lstm", "gru", "reset before", "rnn"])
def test_recurrent_dropout(name):
    """One mask for all steps, inverted, on the h that enters the product and nowhere else.

    Keras draws one such mask per gate, here there is one for all gates.
    """
    p, options = problem_of(name, recurrent_dropout=0.4)
    layer = keras_layer(p, recurrent_dropout=0.4, **options)
    own = layer.cell
    own.reset_recurrent_dropout_mask()
    theirs = own.get_recurrent_dropout_mask(keras.ops.zeros((ROWS, HIDDEN)))
    theirs = theirs if isinstance(theirs, list) else [theirs]
    y, state, tape = p.forward()
    mask = tape.masks[0]["recurrent"]
    for one in theirs:
        assert mask.shape == (1, *one.shape)
        values = np.unique(one.detach().numpy())
        np.testing.assert_allclose(np.unique(mask), values, rtol=1e-6)
    given = keras.ops.convert_to_tensor(mask[0])
    gates = {"lstm": 4, "rnn": 1}.get(name, 3)
    own.get_recurrent_dropout_mask = lambda h: given if gates == 1 else [given] * gates
    expected, state_expected = keras_outputs(p, layer, training=True)
    assert_close(y, expected, 2e-6)
    assert_close(state, state_expected, 2e-6)


@BY_MASK
@pytest.mark.parametrize("name", ["lstm", "gru", "reset before", "rnn"])
def test_gradients(name, mask):
    """In float32, as all products in Keras."""
    p, options = problem_of(name)
    p = p._replace(mask=MASKS[mask])
    layer = keras_layer(p, **options)
    x = torch.tensor(p.x.swapaxes(0, 1).copy(), requires_grad=True)
    initial = [torch.tensor(part[0], requires_grad=True) for part in p.state]
    given = None if p.mask is None else p.mask.T.copy()
    results = layer(x, initial_state=initial, mask=given)
    dy = [p.dy.swapaxes(0, 1).copy(), *(d[0] for d in p.dstate)]
    torch.autograd.backward(results, [torch.tensor(d) for d in dy])
    dx, dstate = p.backward(p.forward()[2])
    assert_close(dx, x.grad.numpy().swapaxes(0, 1), 5e-6)
    assert_close(dstate, tuple(part.grad.numpy()[None] for part in initial), 5e-6)
    found = kernels(p._replace(layer=Gradients(p.layer)), "_l0")
    for variable, ours in zip(layer.trainable_variables, found, strict=True):
        theirs = variable.value.grad.numpy()
        both = 2 if theirs.ndim == 1 else 1  # one bias there, two of the same gradient here
        assert_close(ours / both, theirs, 2e-5)


class Gradients:
    """A layer's gradients in place of its parameters."""

    def __init__(self, layer):
        self.params, self.bias = layer.grads, layer.bias
        self.reset_after = getattr(layer, "reset_after", None)


@pytest.mark.parametrize(
    "chosen",
    [{}, {"bidirectional": True}, {"go_backwards": True},
     {"bidirectional": True, "merge_mode": "mul"}],
    ids=str,
)  # fmt: skip
@BY_MASK
@BY_NAME
def test_final_outputs(name, mask, chosen):
    """Keras' return_sequences=False."""
    p, options = problem_of(name, **chosen)
    final = {"return_sequences": False, "zero_output_for_mask": False}
    layer = keras_layer(p, **final, **options, **chosen)
    given = MASKS[mask]
    expected, _ = keras_outputs(p, layer, given)
    y, _ = p.layer(p.x, p.state if len(p.state) == 2 else p.state[0], mask=given, return_="final")
    rows = slice(None) if given is None else given.any(axis=0)
    assert_close(y[rows], expected.swapaxes(0, 1)[rows], 2e-6)
