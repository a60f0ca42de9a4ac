"""`LayerNorm` and `BatchNorm`: values by the equations, gradients, running statistics."""

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import check_gradients, check_rows, normal

import cylstm

LENGTHS = [5, 0, 3, 1]
HOLES = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 1]], bool).T
READ = np.arange(5)[:, None] < np.array(LENGTHS)
CALLS = [{}, {"lengths": LENGTHS}, {"mask": HOLES}]


def read_by(call):
    return {"lengths": READ, "mask": HOLES}.get(next(iter(call), ""), np.ones((5, 4), bool))


def made(kind, dtype="float64", **options):
    """A norm with random parameters."""
    module = kind(3, dtype=dtype, **options)
    module.assign({name: 1 + np.abs(normal(3, seed=i)) for i, name in enumerate(module.params)})
    return module


def normalised(x, axis, eps):
    var = ((x - x.mean(axis=axis, keepdims=True)) ** 2).mean(axis=axis, keepdims=True)
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(var + eps)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype, bias, call):
    module = made(cylstm.LayerNorm, dtype, bias=bias, eps=0.1)
    x = 100 + normal(5, 4, 3, dtype=dtype)
    y = module(x, **call)
    expected = normalised(x.astype(float), 2, 0.1) * module.params["weight"]
    expected += module.params["bias"] if bias else 0
    expected[~read_by(call)] = 0
    np.testing.assert_allclose(y, expected, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-9)
    assert y.dtype == dtype and list(module.params) == ["weight", "bias"][: 1 + bias]
    assert_same_bits(module.forward(x, **call)[0], y)


def test_constant_features():
    for eps in (0.0, 1e-5):
        for module in (cylstm.LayerNorm(3, eps), cylstm.BatchNorm(3, eps)):
            y, tape = module.forward(np.full((4, 3), 7.0))
            assert not y.any() and np.isfinite(module.backward(tape, np.ones((4, 3)))).all()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [cylstm.LayerNorm, cylstm.BatchNorm])
def test_gradients(kind, call):
    module = made(kind, **({"momentum": 0} if kind is cylstm.BatchNorm else {}))
    check_gradients(module, normal(5, 4, 3), **call)
    if not call:
        check_gradients(module, normal(7, 3))
        check_gradients(module, [normal(5, 3), normal(0, 3), normal(2, 3)])


def test_gradients_without_parameters():
    check_gradients(cylstm.LayerNorm(3, bias=False, dtype="float64"), normal(4, 3))
    module = cylstm.BatchNorm(3, affine=False, momentum=0, dtype="float64")
    x, dy = normal(6, 3), normal(6, 3, seed=1)
    affine = cylstm.BatchNorm(3, momentum=0, dtype="float64")
    assert_same_bits(*[m.backward(m.forward(x)[1], dy) for m in (module, affine)])
    assert_same_bits(module(x), affine(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 40])
def test_rows_have_the_bits_they_have_alone(width, dtype):
    for module in (cylstm.LayerNorm(width, dtype=dtype), cylstm.BatchNorm(width, dtype=dtype)):
        module.assign({name: 1 + np.abs(normal(width)) for name in module.params})
        check_rows(module, normal(30, 4, width, dtype=dtype), [30, 0, 17, 1])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm(dtype, call):
    module = made(cylstm.BatchNorm, dtype, eps=0.1, momentum=0.3)
    before = {name: value.astype(float) for name, value in module.params.items()}
    x, read = 3 + 2 * normal(5, 4, 3, dtype=dtype), read_by(call)
    y, _ = module.forward(x, **call)
    tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-12, "atol": 1e-6}
    seen = x[read].astype(float)
    expected = normalised(seen, 0, 0.1) * before["weight"] + before["bias"]
    np.testing.assert_allclose(y[read], expected, **tolerance)
    assert not y[~read].any()
    for name, value in (("mean", seen.mean(axis=0)), ("var", seen.var(axis=0, ddof=1))):
        moved = 0.7 * before[f"running_{name}"] + 0.3 * value
        np.testing.assert_allclose(module.params[f"running_{name}"], moved, **tolerance)
    now = module.params
    expected = (x - now["running_mean"]) / np.sqrt(now["running_var"] + 0.1) * before["weight"]
    expected = np.where(read[..., None], expected + before["bias"], 0)
    np.testing.assert_allclose(module(x, **call), expected, **tolerance)
    turned = cylstm.BatchNorm.from_config({**module.config, "batch_first": True})
    turned.load_state_dict(module.state_dict())
    call = {name: value if name == "lengths" else value.T for name, value in call.items()}
    assert_same_bits(turned(x.swapaxes(0, 1), **call).swapaxes(0, 1), module(x, **CALLS[CALLS.index(
        next(c for c in CALLS if c.keys() == call.keys()))]))  # fmt: skip


def test_running_statistics_are_no_business_of_optimisers():
    module = made(cylstm.BatchNorm)
    assert module.frozen == {"running_mean", "running_var"}
    module.unfreeze()
    module.freeze("bias")
    module.flat_grads = np.ones(12)
    before = module.flat_params.copy()
    cylstm.SGD(module, lr=1.0, weight_decay=0.1).step()
    assert (module.flat_params[:3] != before[:3]).all()
    assert_same_bits(module.flat_params[3:], before[3:])
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same_bits(twin.flat_params, module.flat_params)
        assert twin.frozen == module.frozen == {"running_mean", "running_var", "bias"}


def test_tapes_remember_weights():
    for module in (made(cylstm.LayerNorm), made(cylstm.BatchNorm)):
        x, dy = normal(5, 3), normal(5, 3, seed=1)
        _, tape = module.forward(x)
        dx = module.backward(tape, dy)
        module.assign(np.zeros(module.flat_params.size))
        assert_same_bits(module.backward(tape, dy), dx)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3)])
def test_of_nothing(shape):
    for module in (made(cylstm.LayerNorm), made(cylstm.BatchNorm)):
        before = module.flat_params.copy()
        y, tape = module.forward(np.zeros(shape))
        assert y.shape == module(np.zeros(shape)).shape == module.backward(tape, y).shape == shape
        assert_same_bits(module.flat_params, before)
        assert not module.flat_grads.any()


def test_in_a_network():
    net = cylstm.Sequential(
        cylstm.Linear(4, 3, dtype="float64", rng=0),
        made(cylstm.BatchNorm, momentum=0),
        cylstm.GRU(3, 3, dtype="float64", rng=1),
        made(cylstm.LayerNorm),
    )
    x = normal(5, 4, 4)
    for call in CALLS:
        check_gradients(net, x, net(x)[1], **call)
    check_rows(net, x, LENGTHS)
    again = cylstm.Module.from_config(net.config)
    state = net.state_dict() | {"1.num_batches_tracked": np.array(3)}
    assert again.load_state_dict(state) == ([], [])
    assert repr(again) == repr(net)
    with pytest.raises(KeyError, match=r"2\.num_batches_tracked"):
        again.load_state_dict(state | {"2.num_batches_tracked": np.array(3)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cylstm.LayerNorm((3, 4)), ValueError, "normalized_shape: expected one axis"),
        (lambda: cylstm.LayerNorm(0), ValueError, "normalized_shape"),
        (lambda: cylstm.LayerNorm(3, -1.0), ValueError, "eps"),
        (lambda: cylstm.LayerNorm(3, bias=1), TypeError, "bias"),
        (lambda: cylstm.LayerNorm(3, dtype="int8"), ValueError, "dtype"),
        (lambda: cylstm.LayerNorm(3)(normal(4)), ValueError, "x: expected shape (..., 3), got"),
        (lambda: cylstm.BatchNorm(0), ValueError, "num_features"),
        (lambda: cylstm.BatchNorm(3, momentum=2), ValueError, "momentum"),
        (lambda: cylstm.BatchNorm(3, affine=0), TypeError, "affine"),
        (lambda: cylstm.BatchNorm(3).forward(normal(1, 3)), ValueError, "at least 2 steps"),
        (
            lambda: cylstm.Sequential(cylstm.GRU(3, 4), cylstm.LayerNorm(3)),
            ValueError,
            "reads 4 features",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
