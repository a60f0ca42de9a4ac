"""`Conv1d`: values by the definition, gradients, lengths, states, bits."""

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, normal

import cylstm

#: kernel_size, stride, padding, dilation
KINDS = [
    (1, 1, 0, 1), (3, 1, 0, 1), (3, 1, 1, 1), (2, 1, "same", 1), (4, 1, "same", 3),
    (3, 1, "causal", 1), (3, 1, "causal", 2), (3, 2, 0, 1), (4, 3, 2, 1), (2, 3, 1, 1),
    (3, 2, 1, 2), (3, 2, "causal", 3), (1, 2, 0, 4), (3, 1, 5, 2),
]  # fmt: skip
LENGTHS = [9, 0, 4, 1]


def made(kind, dtype="float64", **options):
    k, stride, padding, dilation = kind
    return cylstm.Conv1d(
        3, 4, k, stride=stride, padding=padding, dilation=dilation, dtype=dtype, rng=0, **options
    )


def around(module, x):
    """One row (T, C) with its padding."""
    reach = module.dilation * (module.kernel_size - 1)
    before, after = {"same": (reach // 2, reach - reach // 2), "causal": (reach, 0)}.get(
        module.padding, (module.padding, module.padding)
    )
    return np.pad(x, ((before, after), (0, 0)))


def by_hand(module, x, context=None):
    """Output of one row (T, C) by the definition, in float64."""
    padded = around(module, x.astype(float))
    if context is not None:
        padded[: len(context)] = context
    reach = module.dilation * (module.kernel_size - 1)
    starts = range(0, len(padded) - reach, module.stride) if len(x) else ()
    weight, bias = module.params["weight"].astype(float), module.params.get("bias", 0.0)
    rows = [
        bias + np.einsum("kc,ock->o", padded[t : t + reach + 1 : module.dilation], weight)
        for t in starts
    ]
    return np.array(rows).reshape(-1, module.out_channels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype, kind):
    module, x = made(kind, dtype), normal(9, 4, 3, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12}

    def close(y, rows):
        assert y.dtype == dtype
        for i, row in enumerate(rows):
            expected = by_hand(module, row)
            np.testing.assert_allclose(y[: len(expected), i], expected, **tolerance)
            assert not y[len(expected) :, i].any()

    close(module(x), list(x.swapaxes(0, 1)))
    valid = [x[:n, i] for i, n in enumerate(LENGTHS)]
    y = module(x, lengths=LENGTHS)
    close(y, valid)
    assert module.out_lengths(LENGTHS).tolist() == [len(by_hand(module, row)) for row in valid]
    for row, part in zip(valid, module(valid), strict=True):
        np.testing.assert_allclose(part, by_hand(module, row), **tolerance)
    np.testing.assert_allclose(module(x[:, 0]), by_hand(module, x[:, 0]), **tolerance)
    turned = made(kind, dtype, batch_first=True)
    assert_same_bits(turned(x.swapaxes(0, 1).copy(), lengths=LENGTHS).swapaxes(0, 1), y)
    assert_same_bits(module.forward(x, lengths=LENGTHS)[0], y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [{}, {"lengths": LENGTHS}, "list", "unbatched", "batch first"])
def test_gradients(call, kind):
    module, x = made(kind), normal(9, 4, 3)
    if call == "list":
        x, call = [x[:n, i] for i, n in enumerate(LENGTHS)], {}
    elif call == "unbatched":
        x, call = x[:, 0], {}
    elif call == "batch first":
        module, x, call = made(kind, batch_first=True), x.swapaxes(0, 1).copy(), {}
    check_gradients(module, x, **call)


@pytest.mark.parametrize("activation", ["relu", ("elu", 0.3), "softplus"])
def test_activation(activation):
    for kind in ((3, 2, 1, 1), (3, 1, "same", 2)):
        module, plain = made(kind, activation=activation), made(kind)
        x = normal(9, 2, 3)
        name, *numbers = [activation] if isinstance(activation, str) else activation
        assert_same_bits(module(x), cylstm.Activation(name, *numbers)(plain(x)))
        check_gradients(module, x, step=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_they_have_alone(dtype, kind):
    check_rows(made(kind, dtype), normal(9, 4, 3, dtype=dtype), LENGTHS)
    wide = cylstm.Conv1d(16, 24, kind[0], stride=kind[1], padding=kind[2], dilation=kind[3],
                         dtype=dtype, rng=0)  # fmt: skip
    check_rows(wide, normal(70, 3, 16, dtype=dtype), [70, 20, 64])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[2] in ("same", "causal")])
def test_masks(kind):
    if kind[1] > 1:
        return
    mask = np.random.default_rng(1).random((9, 4)) < 0.5
    module, x = made(kind), normal(9, 4, 3)
    expected = np.where(mask[..., None], module(np.where(mask[..., None], x, 0)), 0)
    assert_same_bits(module(np.where(mask[..., None], x, np.nan), mask=mask), expected)
    check_gradients(module, x, mask=mask)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[2] == "causal"])
@pytest.mark.parametrize("call", [{}, {"lengths": LENGTHS}, "list", "unbatched"])
def test_states(kind, call):
    net = cylstm.Sequential(made(kind))
    x, reach = normal(9, 4, 3), (kind[0] - 1) * kind[3]
    state = (normal(reach, 4, 3, seed=5),)
    if call == "list":
        x, call = [x[:n, i] for i, n in enumerate(LENGTHS)], {}
    elif call == "unbatched":
        x, call, state = x[:, 0], {}, (state[0][:, 0],)
    y, final = net(x, state, **call)
    check_gradients(net, x, state, **call)
    if isinstance(x, list):
        expected, context = x[2], state[0][:, 2]
        np.testing.assert_allclose(y[2], by_hand(net[0], expected, context), rtol=1e-12)
        assert_same_bits(final[0][:, 2], np.concatenate([context, expected])[-reach:])
    elif x.ndim == 2:
        np.testing.assert_allclose(y, by_hand(net[0], x, state[0]), rtol=1e-12)
        assert_same_bits(final[0], np.concatenate([state[0], x])[-reach:])
    else:
        n = call["lengths"][2] if call else 9
        before = np.concatenate([state[0], x[:n]])[:, 2]
        assert_same_bits(final[0][:, 2], before[-reach:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_have_the_bits_of_the_whole(dtype):
    net = cylstm.Sequential(
        made((3, 1, "causal", 2), dtype),
        cylstm.LSTM(4, 4, dtype=dtype, rng=1),
        cylstm.Conv1d(4, 3, 2, padding="causal", activation="relu", dtype=dtype, rng=2),
    )
    x = normal(12, 2, 3, dtype=dtype)
    whole, final = net(x)
    state, parts = None, []
    for start, stop in [(0, 1), (1, 2), (2, 7), (7, 7), (7, 12)]:
        y, state = net(x[start:stop], state)
        parts.append(y)
    assert_same_bits(np.concatenate(parts), whole)
    assert_same_bits((state[0], *state[1], state[2]), (final[0], *final[1], final[2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (0, 3)])
def test_of_nothing(shape, kind):
    module = made(kind)
    y, tape = module.forward(np.zeros(shape))
    assert y.shape[-1] == 4 and y.shape[1:-1] == shape[1:-1] and y.dtype == "float64"
    assert y.shape[0] == (0 if shape[0] == 0 else module.out_lengths([5])[0])
    assert module.backward(tape, y).shape == shape and not module.flat_grads.any()
    short = made((4, 1, 0, 1))
    y, tape = short.forward(np.ones((3, 2, 3)))
    assert y.shape == (0, 2, 4) and not short.backward(tape, y).any()


def test_any_number_of_threads():
    module, x = cylstm.Conv1d(32, 64, 5, padding="same", rng=0), normal(300, 4, 32, dtype="float32")
    outcomes = []
    for threads in (1, 2, 3):
        module.zero_grad()
        y, tape = module.forward(x, num_threads=threads)
        dx = module.backward(tape, y, num_threads=threads)
        outcomes.append((y, dx, module.flat_grads.copy()))
    assert_same_bits(outcomes[0], outcomes[1])
    assert_same_bits(outcomes[0], outcomes[2])


def test_rows_never_touch_each_other():
    for kind in KINDS:
        module, x = made(kind), normal(9, 3, 3)
        clean = module(x)
        x[:, 1] = np.inf
        y, tape = module.forward(x)
        assert_same_bits(y[:, ::2], clean[:, ::2])
        dx = module.backward(tape, np.ones_like(y))
        assert np.isfinite(dx[:, ::2]).all()


def test_windows_are_not_copied():
    module = cylstm.Conv1d(3, 4, 3, batch_first=True)
    x = normal(2, 9, 3, dtype="float32")
    assert np.shares_memory(module.forward(x)[1].inner.windows, x)
    for kind in KINDS:
        inner = made(kind).forward(normal(9, 2, 3))[1].inner
        in_place = kind[0] == 1 or kind[3] == 1
        assert in_place == np.shares_memory(inner.windows, inner.padded)


def test_weights_that_change():
    module, x = made((3, 1, 1, 1)), normal(9, 2, 3)
    y, tape = module.forward(x)
    dx = module.backward(tape, y)
    once = module.flat_grads.copy()
    module.assign(normal(module.flat_params.size))
    assert not np.allclose(module(x), y)
    module.zero_grad()
    assert_same_bits(module.backward(tape, y), dx)
    assert_same_bits(module.flat_grads, once)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
                 cylstm.Conv1d.from_config(module.config)):  # fmt: skip
        twin.load_state_dict(module.state_dict())
        assert_same_bits(twin(x), module(x))


def test_initial_values():
    module = cylstm.Conv1d(4, 50, 9, rng=0)
    assert 0.95 / 6 < np.abs(module.flat_params).max() <= 1 / 6
    assert made((3, 1, 0, 1), bias=False).params.keys() == {"weight"}
    check_gradients(made((3, 2, 1, 1), bias=False), normal(9, 2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cylstm.Conv1d(0, 3, 3), ValueError, "in_channels"),
        (lambda: cylstm.Conv1d(3, 3, 0), ValueError, "kernel_size"),
        (lambda: cylstm.Conv1d(3, 3, 3, stride=0), ValueError, "stride"),
        (lambda: cylstm.Conv1d(3, 3, 3, dilation=0), ValueError, "dilation"),
        (lambda: cylstm.Conv1d(3, 3, 3, padding=-1), ValueError, "padding"),
        (lambda: cylstm.Conv1d(3, 3, 3, padding="valid"), ValueError, "padding: expected one of"),
        (lambda: cylstm.Conv1d(3, 3, 3, padding=1.5), TypeError, "padding"),
        (
            lambda: cylstm.Conv1d(3, 3, 3, padding="same", stride=2),
            ValueError,
            "padding: expected an int or 'causal' with stride=2",
        ),
        (lambda: cylstm.Conv1d(3, 3, 3, activation="x"), ValueError, "activation"),
        (lambda: cylstm.Conv1d(3, 3, 3)(normal(5, 2, 4)), ValueError, "x: expected shape (..., 3)"),
        (lambda: cylstm.Conv1d(3, 3, 3)(normal(3)), ValueError, "x: expected shape (T, B, C)"),
        (
            lambda: cylstm.Conv1d(3, 3, 3)(normal(5, 2, 3), mask=np.ones((5, 2), bool)),
            ValueError,
            "mask: expected lengths instead",
        ),
        (
            lambda: cylstm.Sequential(cylstm.Conv1d(3, 3, 3, padding="causal"))(
                normal(5, 2, 3), (normal(2, 3),)
            ),
            ValueError,
            "0 (Conv1d): state: expected shape (2, 2, 3), got (2, 3)",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
