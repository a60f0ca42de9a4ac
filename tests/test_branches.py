"""`Residual` and `Concat`: values, gradients, states, configurations, errors."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, leaves, normal

import cylstm

LENGTHS = [6, 0, 3]
CALLS = [{}, {"lengths": LENGTHS}, {"mask": np.random.default_rng(1).random((6, 3)) < 0.5}]


def network(dtype="float64", **options):
    """Everything that keeps steps, nested."""
    return cylstm.Sequential(
        cylstm.Linear(3, 4, dtype=dtype, rng=0),
        cylstm.Residual(
            cylstm.Sequential(
                cylstm.LayerNorm(4, dtype=dtype),
                cylstm.GRU(4, 4, dtype=dtype, rng=1, **options),
            )
        ),
        cylstm.Concat(
            cylstm.LSTM(4, 2, bidirectional=True, dtype=dtype, rng=2, **options),
            cylstm.Sequential(),
            cylstm.Conv1d(4, 3, 3, padding="same", activation="tanh", dtype=dtype, rng=3),
            cylstm.Residual(cylstm.RNN(4, 4, dtype=dtype, rng=4, **options)),
        ),
        cylstm.Concat({"m": cylstm.Pool("mean"), "l": cylstm.Pool("last")}),
        cylstm.Linear(30, 2, dtype=dtype, rng=5),
    )


def test_values():
    net, x = network(), normal(6, 3, 3)
    h = net[0](x)
    assert_same_bits(net[1](h)[0], h + net[1].module(h)[0])
    h = net[1](h)[0]
    lstm, _, conv, rnn = net[2].modules
    y, state = net[2](h)
    expected = np.concatenate([lstm(h)[0], h, conv(h), h + rnn.module(h)[0]], axis=-1)
    assert_same_bits(y, expected)
    assert_same_bits(tuple(leaves(state)), (*lstm(h)[1], rnn.module(h)[1]))
    assert_same_bits(net[3](y)[0], np.concatenate([y.mean(axis=0) * 0 + cylstm.Pool("mean")(y),
                                                   y[-1]], axis=-1))  # fmt: skip


@pytest.mark.parametrize("call", [*CALLS, "list"])
def test_gradients(call):
    net, x = network(), normal(6, 3, 3)
    if call == "list":
        x, call = [x[:n, i] for i, n in enumerate(LENGTHS)], {}
    check_gradients(net, x, net(x, **call)[1], **call)


def test_gradients_of_ids():
    net = cylstm.Concat(
        cylstm.Embedding(9, 2, dtype="float64", rng=0),
        cylstm.Sequential(
            cylstm.Embedding(9, 3, dtype="float64", rng=1), cylstm.GRU(3, 3, dtype="float64")
        ),
    )
    ids = np.random.default_rng(0).integers(0, 9, (6, 3))
    check_gradients(net, ids, net(ids)[1], lengths=LENGTHS)
    check_rows(net, ids, LENGTHS)
    with pytest.raises(ValueError, match="x: expected integers from 0 to 8, got 1"):
        net(ids + 9)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_they_have_alone(dtype, batch_first):
    net = network(dtype, batch_first=batch_first)
    check_rows(net, normal(9, 4, 3, dtype=dtype), [9, 0, 5, 1], batch_first=batch_first)
    check_rows(net[:3], normal(9, 4, 3, dtype=dtype), [9, 0, 5, 1], batch_first=batch_first)


def test_copies_and_configurations():
    net = network()
    assert list(net.params)[2:5] == [
        "1.module.0.weight", "1.module.0.bias", "1.module.1.weight_ih_l0",
    ]  # fmt: skip
    described = json.loads(json.dumps(dict(net.config)))
    again = cylstm.Module.from_config(described)
    again.load_state_dict(net.state_dict())
    x = normal(6, 3, 3)
    for twin in (again, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert repr(twin) == repr(net) and twin.config == net.config
        assert_same_bits(twin(x)[0], net(x)[0])
        assert twin[1].module is twin[1].modules[0]
    assert eval(repr(net), vars(cylstm)).config == net.config
    with pytest.raises(AttributeError, match="options are fixed"):
        net[1].module = net[0]
    with pytest.raises(TypeError, match="expected 'module' among the modules of Residual"):
        cylstm.Residual.from_config({"class": "Residual", "modules": {}})
    assert repr(cylstm.Residual.from_config(net[1].config)) == repr(net[1])


def test_wrong_gradients_of_states():
    net, x = network(), normal(6, 3, 3)
    y, final, tape = net.forward(x)
    wrong = (final[0], (final[1][0], np.zeros((1, 2, 4))))
    with pytest.raises(ValueError, match=re.escape("2.3 (Residual): dstate h")):
        net.backward(tape, y, wrong)
    assert not net.flat_grads.any()


SHORTER = cylstm.Conv1d(3, 3, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cylstm.Residual(3), TypeError, "expected a module of cylstm, got int"),
        (lambda: cylstm.Residual(cylstm.GRU(3, 4)), ValueError, "as in its input, 3, got 4"),
        (lambda: cylstm.Residual(cylstm.Embedding(3, 3)), ValueError, "one that reads numbers"),
        (lambda: cylstm.Residual(cylstm.Pool("max")), ValueError, "keeps the axis of time"),
        (
            lambda: cylstm.Residual(SHORTER)(normal(5, 2, 3)),
            ValueError,
            "module: expected an output of the shape of its input, (5, 2, 3), got (3, 2, 3)",
        ),
        (cylstm.Concat, ValueError, "modules: expected at least one, got none"),
        (lambda: cylstm.Concat(cylstm.Pool("final")), ValueError, "a recurrent layer directly"),
        (
            lambda: cylstm.Concat(cylstm.GRU(3, 4), cylstm.Linear(4, 4)),
            ValueError,
            "modules: expected that of '0', 3, in all modules, got 4 in '1'",
        ),
        (
            lambda: cylstm.Concat(cylstm.GRU(3, 4), cylstm.Pool("max")),
            ValueError,
            "all or none that end with a Pool",
        ),
        (
            lambda: cylstm.Concat(cylstm.GRU(3, 4), cylstm.Embedding(3, 4)),
            ValueError,
            "all or none that read ids",
        ),
        (
            lambda: cylstm.Concat(cylstm.GRU(3, 4), SHORTER)(normal(5, 2, 3)),
            ValueError,
            "modules['1']: expected an output of as many steps as that of '0'",
        ),
        (
            lambda: cylstm.Concat(cylstm.GRU(3, 4), cylstm.Linear(3, 4, dtype="float64")),
            ValueError,
            "dtype: expected that of '0'",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
