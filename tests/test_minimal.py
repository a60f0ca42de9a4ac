"""Layers whose gates see the input alone, beside what all cells are tested for."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, refused

import cylstm

BOTH = pytest.mark.parametrize("kind", [cylstm.MinGRU, cylstm.MinLSTM])


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_from_state_dict(kind, bias):
    layer = kind(3, (5, 9), bidirectional=True, bias=bias, learn_initial_state=True, rng=0)
    assert not any("weight_hh" in name or "bias_hh" in name for name in layer.params)
    twin = kind.from_state_dict(layer.state_dict())
    assert repr(twin) == repr(layer)
    x = np.random.default_rng(0).normal(size=(6, 2, 3))
    assert_same_bits(twin(x)[0], layer(x)[0])
    with pytest.raises(KeyError, match="weight_hh"):
        kind.from_state_dict(layer.state_dict() | {"weight_hh_l0": np.zeros((10, 5))})
    with pytest.raises(ValueError, match=f"expected {len(kind.gates)} rows for each"):
        kind.from_state_dict({"weight_ih_l0": np.zeros((7, 3))})


@BOTH
def test_options_that_need_recurrent_weights_are_not_there(kind):
    for name in ("recurrent_dropout", "dropconnect"):
        with pytest.raises(TypeError, match=name):
            kind(3, 5, **{name: 0.5})
        assert not hasattr(kind(3, 5), name)
    refused(TypeError, "bias", "single", kind, 3, 5, bias="single")


def test_forget_bias_of_a_minlstm():
    plain, biased = (cylstm.MinLSTM(3, 5, rng=0, forget_bias=value) for value in (None, 1.5))
    expected = plain.params["bias_ih_l0"].copy()
    expected[5:10] += np.float32(1.5)
    assert_same_bits(biased.params["bias_ih_l0"], expected)
    refused(ValueError, "forget_bias", "1.0", cylstm.MinLSTM, 3, 5, bias=False, forget_bias=1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gates_that_have_vanished(dtype):
    """Both gates of a minLSTM are 0 to rounding: the candidate is what is left."""
    layer = cylstm.MinLSTM(1, 1, bias=False, dtype=dtype)
    layer.assign({"weight_ih_l0": [[-5000.0], [-5000.0], [1.0]]})
    y, _, tape = layer.forward(np.ones((3, 1, 1)))
    assert_close(y, np.ones((3, 1, 1)), 0)
    dx, dstate = layer.backward(tape, np.ones((3, 1, 1)))
    assert_close(dx, np.ones((3, 1, 1)), 0)
    assert_close(dstate, np.zeros((1, 1, 1)), 0)
