"""`Pool`: one output of each sequence, by itself and by the recurrent layer before it."""

import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, normal

import cylstm

MODES = ["last", "mean", "max"]
LENGTHS = [5, 0, 3, 1]
HOLES = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 1]], bool).T


def by_hand(mode, rows):
    """Output of each of some (T, C) arrays."""
    of = {"last": lambda a: a[-1], "mean": lambda a: a.mean(axis=0), "max": lambda a: a.max(axis=0)}
    return np.stack([of[mode](a) if len(a) else np.zeros(a.shape[1]) for a in rows])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype, mode):
    x, pool = normal(5, 4, 3, dtype=dtype), cylstm.Pool(mode)
    tolerance = 1e-6 if dtype == "float32" else 1e-14

    def close(y, rows):
        assert y.dtype == dtype
        np.testing.assert_allclose(y, by_hand(mode, rows), rtol=tolerance, atol=tolerance)

    close(pool(x), list(x.swapaxes(0, 1)))
    valid = [x[:n, i] for i, n in enumerate(LENGTHS)]
    close(pool(x, lengths=LENGTHS), valid)
    close(pool(valid), valid)
    close(pool(x, mask=HOLES), [x[HOLES[:, i], i] for i in range(4)])
    close(pool(x[:, 0])[None], [x[:, 0]])
    turned = cylstm.Pool(mode, batch_first=True)
    close(turned(x.swapaxes(0, 1), lengths=LENGTHS), valid)
    close(turned(x.swapaxes(0, 1), mask=HOLES.T), [x[HOLES[:, i], i] for i in range(4)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [{}, {"lengths": LENGTHS}, {"mask": HOLES}, "list", "unbatched"])
def test_gradients(call, mode):
    x, options = normal(5, 4, 3), {}
    if call == "list":
        x, call = [x[:n, i] for i, n in enumerate(LENGTHS)], {}
    elif call == "unbatched":
        x, call = x[:, 0], {}
    check_gradients(cylstm.Pool(mode, **options), x, step=1e-5, rtol=1e-5, **call)
    if isinstance(x, np.ndarray) and x.ndim == 3 and "mask" not in call:
        check_gradients(cylstm.Pool(mode, batch_first=True), x.swapaxes(0, 1), step=1e-5, **call)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_they_have_alone(dtype, mode):
    for width in (1, 3):
        check_rows(cylstm.Pool(mode), normal(70, 4, width, dtype=dtype), [70, 0, 33, 1])


def test_the_last_of_equal_steps_gets_the_gradient():
    x = np.array([[1.0], [3.0], [3.0], [2.0]])
    _, tape = (pool := cylstm.Pool("max")).forward(x)
    assert pool.backward(tape, [5.0]).ravel().tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (0, 2)])
@pytest.mark.parametrize("mode", MODES)
def test_of_nothing(mode, shape):
    y, tape = (pool := cylstm.Pool(mode)).forward(np.zeros(shape))
    assert y.shape == shape[1:] and not y.any()
    assert pool.backward(tape, y).shape == shape


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul"])
@pytest.mark.parametrize("mode", [*MODES, "final"])
def test_by_the_layer_before(mode, merge_mode):
    layer = cylstm.LSTM(
        3, 4, bidirectional=True, merge_mode=merge_mode, dtype="float64", rng=0
    )  # fmt: skip
    head = cylstm.Linear(8 if merge_mode == "concat" else 4, 2, dtype="float64", rng=1)
    net = cylstm.Sequential(layer, cylstm.Pool(mode), head)
    x = normal(5, 4, 3)
    y = net[:2](x, lengths=LENGTHS)[0]
    if merge_mode == "concat" or mode in ("final", "last"):
        assert_same_bits(y, layer(x, lengths=LENGTHS, return_=mode)[0])
    else:  # of what the layer has merged
        expected = cylstm.Pool(mode)(layer(x, lengths=LENGTHS)[0], lengths=LENGTHS)
        np.testing.assert_allclose(y, expected, rtol=1e-13)
    for given, call in [(x, {"lengths": LENGTHS}), ([x[:n, i] for i, n in enumerate(LENGTHS)], {}),
                        (x, {"mask": HOLES})]:  # fmt: skip
        check_gradients(net, given, net(given, **call)[1], step=1e-5, **call)
    check_rows(net, x, LENGTHS)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_layer_with_a_module_between(mode):
    net = cylstm.Sequential(
        cylstm.GRU(3, 4, dtype="float64", rng=0, batch_first=True),
        cylstm.Linear(4, 3, dtype="float64", rng=1),
        cylstm.Pool(mode),
        cylstm.Sequential(cylstm.Activation("sigmoid")),
    )
    x = normal(4, 5, 3)
    check_gradients(net, x, net(x)[1], step=1e-5, lengths=LENGTHS)
    check_rows(net, normal(6, 3, 3), [6, 2, 0], batch_first=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cylstm.Pool("first"), ValueError, "mode: expected one of 'last'"),
        (lambda: cylstm.Pool("last", batch_first=1), TypeError, "batch_first"),
        (lambda: cylstm.Pool("final")(normal(3, 2, 4)), ValueError, "mode: expected 'last'"),
        (lambda: cylstm.Pool("mean")(normal(4)), ValueError, "x: expected"),
        (lambda: cylstm.Pool("mean")(normal(2, 3, 4, 5)), ValueError, "x: expected"),
        (
            lambda: cylstm.Sequential(cylstm.Linear(3, 4), cylstm.Pool("final")),
            ValueError,
            "modules['1']: expected a recurrent layer directly before",
        ),
        (
            lambda: cylstm.Sequential(cylstm.GRU(3, 4), cylstm.Pool("max"), cylstm.GRU(4, 4)),
            ValueError,
            "modules['2']: expected a module that needs no axis of time after a Pool",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
