"""Heads, exponential gates and the states of an sLSTM, beside what all cells are tested for."""

import numpy as np
import pytest
from helpers import (
    assert_as_the_oracle,
    assert_close,
    assert_gradients_match_differences,
    assert_same_bits,
    problem,
    refused,
    replayed,
    smooth_problem,
)

import cylstm

# Of whole vectors in every instruction set, in some, and in none.
HEADS = [(64, 2), (32, 2), (48, 3), (48, 2), (96, 2), (64, 4), (24, 3), (10, 5)]
EACH = pytest.mark.parametrize(("hidden", "heads"), HEADS)


@EACH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_as_the_oracle(hidden, heads, dtype):
    for options in ({"recurrent_dropout": 0.3}, {"dropconnect": 0.3}, {"forget_gate": "exp"}):
        p = smooth_problem(
            "slstm", (3, hidden, 2), steps=4, rows=5, masks=replayed, bidirectional=True,
            num_heads=heads, dtype=dtype, least=1e-6, mask="holes", **options,
        )  # fmt: skip
        assert_as_the_oracle(p)


@EACH
def test_finite_differences_of_heads(hidden, heads):
    p = smooth_problem("slstm", (3, hidden), num_heads=heads, lengths="random", least=1e-5)
    gradients = p.gradients(p.forward()[2])
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@EACH
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
def test_bits_of_heads(hidden, heads, rows):
    p = problem("slstm", (5, hidden), steps=30, rows=rows, num_heads=heads)
    expected = p.forward(num_threads=1)
    gradients = tuple(p.gradients(expected[2], num_threads=1).values())
    for call in ({"num_threads": 2}, {"num_threads": 4}, {"checkpoint": 7}):
        y, state, tape = p.forward(**call)
        assert_same_bits((y, state), expected[:2])
        threads = call.get("num_threads", 2)
        assert_same_bits(p.infer(num_threads=threads), expected[:2])
        assert_same_bits(tuple(p.gradients(tape, num_threads=threads).values()), gradients)
    last = p._replace(x=p.x[:, -1:], state=tuple(s[:, -1:] for s in p.state)).infer()
    assert_same_bits((last[0], *last[1]), (expected[0][:, -1:], *(s[:, -1:] for s in expected[1])))


@EACH
def test_a_team_shares_heads(hidden, heads):
    """Few rows and much work, so that threads own blocks of units."""
    p = problem("slstm", (256, 16 * hidden), steps=5, rows=1, num_heads=heads)
    expected = p.forward(num_threads=1)
    gradients = tuple(p.gradients(expected[2], num_threads=1).values())
    for threads in (2, 3):
        y, state, tape = p.forward(num_threads=threads)
        assert_same_bits((y, state), expected[:2])
        assert_same_bits(tuple(p.gradients(tape, num_threads=threads).values()), gradients)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_nothing_overflows(forget_gate, dtype):
    """Inputs whose exponentials are out of any range; h is bounded by 1."""
    layer = cylstm.SLSTM(3, 16, forget_gate=forget_gate, dtype=dtype, rng=0)
    x = np.random.default_rng(0).normal(size=(50, 4, 3)) * 10.0 ** np.arange(4)[:, None]
    y, state, tape = layer.forward(x)
    assert np.isfinite(y).all() and np.abs(y).max() <= 1 + 1e-6
    assert all(np.isfinite(part).all() for part in state)
    dx, dstate = layer.backward(tape, np.ones_like(y))
    assert all(np.isfinite(a).all() for a in (dx, *dstate, *layer.grads.values()))


def test_the_stabiliser_makes_no_difference():
    """The same output from a state scaled by e^-5, whose stabiliser is 5 larger."""
    p = problem("slstm", (3, 16), dtype="float64")
    h, c, n, m = p.state
    scaled = (h, c * np.exp(-5), n * np.exp(-5), m + 5)
    assert_close(p._replace(state=scaled).infer()[0], p.infer()[0], 1e-13)


def test_the_first_step_forgets_what_there_is_not():
    """From n = 0 the gradients of c and n are those of the function, however small i is."""
    layer = cylstm.SLSTM(2, 3, dtype="float64", rng=0)
    layer.assign({"bias_ih_l0": layer.params["bias_ih_l0"] - 300 * (np.arange(12) < 3)})
    x, dy = np.ones((1, 1, 2)), np.ones((1, 1, 3))
    y, _, tape = layer.forward(x)
    assert np.isfinite(y).all() and np.abs(y).max() > 0
    _, (_, dc, _, dm) = layer.backward(tape, dy)
    assert np.isfinite(dc).all() and np.abs(dc).min() > 1e20  # e^-m of the true weight of c
    assert_close(dm, np.zeros_like(dm), 0)


def test_options_and_loading():
    refused(ValueError, "num_heads", "3", cylstm.SLSTM, 2, 16, num_heads=3)
    refused(ValueError, "num_heads", "2", cylstm.SLSTM, 2, (16, 5), num_heads=2)
    refused(ValueError, "num_heads", "0", cylstm.SLSTM, 2, 16, num_heads=0)
    refused(ValueError, "forget_gate", "tanh", cylstm.SLSTM, 2, 16, forget_gate="tanh")
    for name in ("proj_size", "layer_norm", "activations"):
        with pytest.raises(TypeError, match=name):
            cylstm.SLSTM(2, 16, **{name: None})
    layer = cylstm.SLSTM(2, (16, 8), num_heads=2, bidirectional=True, learn_initial_state=True)
    assert layer.params["weight_hh_l0"].shape == (64, 8)
    twin = cylstm.SLSTM.from_state_dict(layer.state_dict())
    assert repr(twin) == repr(layer) and twin.num_heads == 2
    x = np.ones((4, 2, 2))
    assert_same_bits(twin(x)[0], layer(x)[0])
    biased = cylstm.SLSTM(2, 4, forget_bias=2.0, rng=0).params["bias_ih_l0"]
    plain = cylstm.SLSTM(2, 4, rng=0).params["bias_ih_l0"]
    assert_close(biased - plain, np.where(np.arange(16) // 4 == 1, 2, 0), 1e-6)


def test_state_out_takes_all_four():
    p = problem("slstm", (3, 16), rows=2)
    expected = p.infer()[1]
    into = tuple(np.empty_like(part) for part in expected)
    state = p.layer(p.x, p.state, state_out=into)[1]
    assert state is into
    assert_same_bits(into, expected)
    masked = p.layer(p.x, p.state, state_out=into, mask=np.ones((5, 2), int))[1]
    assert_same_bits(masked, expected)
    bad = (*into[:3], np.empty((1, 2, 15), np.float32))
    with pytest.raises(ValueError, match="state_out m: expected"):
        p.layer(p.x, p.state, state_out=bad)
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h, c, n, m\), got 2"):
        p.layer(p.x, p.state[:2])


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_the_first_stabiliser_is_the_input_gates(forget_gate):
    """Whatever the forget gate is, for nothing is kept yet: so is its gradient."""
    layer = cylstm.SLSTM(3, 4, forget_gate=forget_gate, dtype="float64", rng=0)
    bias = np.concatenate([np.full(4, -5.0), np.full(4, 5.0), np.zeros(8)])
    layer.assign({"bias_ih_l0": bias})
    rng = np.random.default_rng(0)
    x, dm = rng.normal(size=(1, 2, 3)), rng.normal(size=(1, 2, 4))
    _, (h, c, n, m), tape = layer.forward(x)
    expected = x[0] @ layer.params["weight_ih_l0"][:4].T - 5 + layer.params["bias_hh_l0"][:4]
    np.testing.assert_allclose(m[0], expected)
    np.testing.assert_allclose(n, 1)
    layer.backward(tape, None, (np.zeros_like(h), np.zeros_like(c), np.zeros_like(n), dm))
    np.testing.assert_allclose(layer.grads["bias_ih_l0"][:4], dm.sum(axis=(0, 1)))
    assert not np.any(layer.grads["bias_ih_l0"][4:])
