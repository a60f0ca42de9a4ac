"""`Dropout`, `Activation`, `Softmax` and `LogSoftmax`, and what modules without a state share."""

import copy
import os
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, normal

import cylstm

SOFT = {"softmax": cylstm.Softmax, "log_softmax": cylstm.LogSoftmax}
ACTIVATIONS = [("sigmoid",), ("relu",), ("elu", 0.5), ("hardsigmoid", 0.3, 0.4), ("softplus",)]


def dropped(y, x):
    """Where an output is zero though the input is not."""
    assert x.all()
    return y == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p, dtype):
    module, x = cylstm.Dropout(p, rng=0), 1 + np.abs(normal(50, 20, 3, dtype=dtype))
    y, tape = module.forward(x)
    zero = dropped(y, x)
    assert abs(zero.mean() - p) < 0.03 and y.dtype == dtype
    np.testing.assert_allclose(y[~zero], x[~zero] / (1 - p or 1), rtol=1e-6)
    dy = normal(50, 20, 3, dtype=dtype, seed=1)
    np.testing.assert_allclose(module.backward(tape, dy), np.where(zero, 0, dy / (1 - p or 1)),
                               rtol=1e-6)  # fmt: skip
    assert_same_bits(module(x), x)
    assert not np.array_equal(module.forward(x)[0], y) or p in (0, 1)
    assert_same_bits(module.forward(x, rng=3)[0], module.forward(x, rng=3)[0])
    assert_same_bits(cylstm.Dropout(p, rng=0).forward(x)[0], y)


def test_variational_dropout():
    x = np.ones((30, 4, 5))
    zero = dropped(cylstm.Dropout(0.5, variational=True).forward(x, rng=0)[0], x)
    assert (zero == zero[0]).all() and not (zero == zero[:, :1]).all()
    turned = cylstm.Dropout(0.5, variational=True, batch_first=True)
    zero = dropped(turned.forward(x, rng=0)[0], x)
    assert (zero == zero[:, :1]).all() and not (zero == zero[:1]).all()
    y, tape = cylstm.Dropout(0.5, variational=True).forward([x[:, 0], x[:0, 0], x[:7, 1]], rng=0)
    assert all((part == part[:1]).all() for part in y) and not (y[0][:7] == y[2]).all()
    assert all((part == part[:1]).all() for part in tape.module.backward(tape, y))
    one = cylstm.Dropout(0.5, variational=True).forward(x[:, 0], rng=0)[0]
    assert (one == one[0]).all() and set(one[0]) == {0, 2}


@pytest.mark.parametrize("call", [{}, {"lengths": [5, 0, 2]}])
@pytest.mark.parametrize("variational", [False, True])
def test_dropout_gradients(variational, call):
    check_gradients(cylstm.Dropout(0.4, variational=variational), normal(5, 3, 4), rng=1, **call)


def test_copies_of_dropout_draw_masks_of_their_own():
    x = np.ones(100)
    for seed, same in ((0, True), (None, False)):
        module = cylstm.Dropout(0.5, rng=seed)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert np.array_equal(twin.forward(x)[0], copy.deepcopy(module).forward(x)[0]) == same
    module = cylstm.Dropout(0.5)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, module.forward(x)[0].tobytes())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() != module.forward(x)[0].tobytes()


@pytest.mark.parametrize("words", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation(dtype, words):
    module, x = cylstm.Activation(*words), normal(5, 3, 4, dtype=dtype)
    linear = cylstm.Linear(4, 4, bias=False, activation=words, dtype=dtype)
    linear.assign({"weight": np.eye(4)})
    assert_same_bits(module(x), linear(x))
    assert module(x).dtype == dtype and module(x.astype("int8")).dtype == "float32"
    assert eval(repr(module), vars(cylstm)).config == module.config
    assert cylstm.Module.from_config(module.config).config == module.config
    check_gradients(module, x.astype(float), step=1e-5, rtol=1e-5)
    check_rows(module, normal(9, 3, 5, dtype=dtype), [9, 0, 4])


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, name):
    module, x = SOFT[name](), 5 * normal(5, 3, 4, dtype=dtype)
    exps = np.exp(x.astype(float))
    expected = exps / exps.sum(axis=-1, keepdims=True)
    if name == "log_softmax":
        expected = np.log(expected)
    tolerance = {"rtol": 2e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12}
    np.testing.assert_allclose(module(x), expected, **tolerance)
    large = module(np.array([1e30, -1e30, 1e30], dtype))
    np.testing.assert_allclose(large[::2], [0.5, 0.5] if name == "softmax" else [-np.log(2)] * 2,
                               rtol=1e-6)  # fmt: skip
    check_gradients(module, normal(5, 3, 4), lengths=[5, 0, 2])
    check_gradients(module, normal(4))
    check_rows(module, normal(9, 3, 5, dtype=dtype), [9, 0, 4])
    check_rows(module, normal(40, 3, 33, dtype=dtype), [40, 1, 17])
    assert module(np.zeros((3, 0))).shape == (3, 0) and repr(module).endswith("ax()")


def test_reads_what_it_is_given():
    module = cylstm.Activation("tanh")
    x = normal(4, 3, dtype="float32")
    for given in (np.asfortranarray(x), x.astype(">f4"), x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(module(given), module(x))
    y, tape = module.forward(x)
    dx = module.backward(tape, y)
    assert_same_bits(module.backward(tape, y.tolist()), dx)
    assert not module.backward(tape, None).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cylstm.Dropout(1.5), ValueError, "p: expected a number from 0 to 1, got 1.5"),
        (lambda: cylstm.Dropout("a"), TypeError, "p: expected a number"),
        (lambda: cylstm.Dropout(variational=1), TypeError, "variational"),
        (lambda: cylstm.Dropout(batch_first=1), TypeError, "batch_first"),
        (lambda: cylstm.Dropout(rng="a"), TypeError, "rng"),
        (lambda: cylstm.Dropout().forward(np.ones(3), rng="a"), TypeError, "rng"),
        (lambda: cylstm.Activation("gelu"), ValueError, "name: expected one of sigmoid"),
        (lambda: cylstm.Activation("relu", 1.0), ValueError, "name: expected at most 0"),
        (lambda: cylstm.Activation("elu", "a"), TypeError, "name: expected a number"),
        (lambda: cylstm.Softmax()(["a"]), TypeError, "x: expected real numbers"),
        (lambda: cylstm.Softmax()(np.ones(3), num_threads=0), ValueError, "num_threads"),
        (lambda: cylstm.Softmax()(np.ones((3, 2)), lengths=[4]), ValueError, "values from 0 to 3"),
        (
            lambda: cylstm.Softmax()(np.ones((2, 3, 4, 5)), lengths=[1]),
            ValueError,
            "x: expected a time and a batch axis",
        ),
        (
            lambda: cylstm.Softmax()([np.ones((2, 3)), np.ones((2, 4))]),
            ValueError,
            "x: expected as many features in each, got [3, 4]",
        ),
        (lambda: cylstm.Softmax().backward(3, None), TypeError, "tape: expected what forward"),
        (
            lambda: cylstm.Softmax().backward(cylstm.Softmax().forward(np.ones(3))[1], None),
            ValueError,
            "tape: expected one of this module",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
