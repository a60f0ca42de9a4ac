"""Optimisers and clipping: PyTorch's formulas, state, checkpoints, errors."""

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits

import cylstm
from cylstm import SGD, Adam, AdamW, Linear, clip_grad_norm, clip_grad_value
from cylstm.params import Parameters

STEPS = 12


def gradients(step, size):
    """Gradients of one step, some of them zero."""
    rng = np.random.default_rng(step)
    return rng.normal(size=size) * (rng.random(size) < 0.8)


def run(optimizer, steps=range(STEPS)):
    """Do steps with the same gradients at every call; return all parameters as one vector."""
    for step in steps:
        for module in optimizer.modules:
            module.flat_grads[...] = gradients(step, module.flat_grads.size)
        optimizer.step()
    return np.concatenate([module.flat_params for module in optimizer.modules])


CASES = [
    (SGD, "SGD", {"lr": 0.1}),
    (SGD, "SGD", {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    (Adam, "Adam", {}),
    (Adam, "Adam", {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.01}),
    (Adam, "Adam", {"lr": 0.1, "weight_decay": 0.3}),
    (Adam, "Adam", {"lr": 0.1, "betas": (0.0, 0.0), "eps": 0.01}),
    (AdamW, "AdamW", {}),
    (AdamW, "AdamW", {"lr": 0.1, "betas": (0.5, 0.8), "eps": 0.01, "weight_decay": 0.3}),
    (AdamW, "AdamW", {"lr": 0.1, "weight_decay": 0.0}),
]
OPTIMIZERS = [SGD, Adam, AdamW]


def test_first_steps_by_hand():
    module = Parameters({"w": (2,)}, np.dtype("float64"))
    module.assign(np.array([1.0, 2.0]))
    module.flat_grads[...] = [0.5, -4.0]
    SGD(module, 0.1).step()
    assert_close(module.flat_params, [0.95, 2.4], 1e-15)
    Adam(module, 0.1, eps=0).step()  # the first step of Adam is lr times the sign
    assert_close(module.flat_params, [0.85, 2.5], 1e-15)
    AdamW(module, 0.1, eps=0, weight_decay=0.5).step()
    assert_close(module.flat_params, [0.95 * 0.85 - 0.1, 0.95 * 2.5 + 0.1], 1e-15)


@pytest.mark.parametrize(("make", "name", "options"), CASES)
def test_float32_follows_float64(make, name, options):
    ends = []
    for dtype in DTYPES:
        layer = Linear(3, 5, dtype=dtype)
        layer.assign(Linear(3, 5, dtype="float32", rng=0).flat_params)
        optimizer = make(layer, **options)
        ends.append(run(optimizer))
        for state in optimizer.state:
            assert all(value.dtype == dtype for value in state.values())
    assert ends[0].dtype == np.float32
    assert_close(ends[0], ends[1], 2e-6)


@pytest.mark.parametrize(("make", "name", "options"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_vectors_as_short_ones(dtype, make, name, options):
    size = 40_000  # more than two blocks
    long = Parameters({"w": (size,)}, np.dtype(dtype))
    parts = [Parameters({"w": (1_000,)}, np.dtype(dtype)) for _ in range(40)]
    start = np.random.default_rng(0).normal(size=size)
    long.assign(start)
    for part, values in zip(parts, start.reshape(40, -1), strict=True):
        part.assign(values)
    one, many = make(long, **options), make(parts, **options)
    for step in range(3):
        grads = gradients(step, size)
        long.flat_grads[...] = grads
        for part, values in zip(parts, grads.reshape(40, -1), strict=True):
            part.flat_grads[...] = values
        one.step()
        many.step()
    assert_same_bits(long.flat_params, np.concatenate([part.flat_params for part in parts]))
    for name, value in one.state[0].items():
        assert_same_bits(value, np.concatenate([state[name] for state in many.state]))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_learning_rate_of_any_float_type(make):
    ends = []
    for lr in (0.1, np.float64(0.1), np.array(0.1)):
        optimizer = make(Linear(3, 5, rng=0), 1.0)
        optimizer.lr = lr
        ends.append(run(optimizer))
    for end in ends[1:]:
        assert_same_bits(end, ends[0])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_modules(make):
    first, second = Linear(2, 3, rng=0), cylstm.Embedding(4, 2, rng=1)
    assert make(first, 0.1).modules == (first,)
    optimizer = make((module for module in [first, second]), 0.1)
    assert optimizer.modules == (first, second)
    before = [module.flat_params.copy() for module in optimizer.modules]
    run(optimizer, [0])
    for module, old in zip((first, second), before, strict=True):
        assert (module.flat_params != old).any()
    assert first.flat_grads.any() and second.flat_grads.any()
    optimizer.zero_grad()
    assert not first.flat_grads.any() and not second.flat_grads.any()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_modules_learn_that_they_changed(make):
    layer = Linear(2, 3, rng=0)
    y = layer(np.ones(2))
    layer.flat_grads[...] = 1
    make(layer, 0.1).step()
    assert (layer(np.ones(2)) != y).all()


def test_state():
    layer = Linear(2, 3, rng=0)
    assert SGD(layer, 0.1).state == [{}]
    assert list(SGD(layer, 0.1, momentum=0.5).state[0]) == ["momentum_buffer"]
    optimizer = Adam(layer)
    assert list(optimizer.state[0]) == ["exp_avg", "exp_avg_sq"]
    for vector in optimizer.state[0].values():
        assert vector.shape == layer.flat_params.shape and not vector.any()
    run(optimizer, [0])
    by_name = layer.split(optimizer.state[0]["exp_avg"])
    assert_close(by_name["bias"], 0.1 * layer.grads["bias"], 1e-6)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize(("make", "name", "options"), CASES)
def test_a_run_goes_on_from_a_checkpoint(make, name, options, how):
    layer = Linear(3, 5, rng=0)
    optimizer = make(layer, **options)
    run(optimizer, range(5))
    both = layer, optimizer
    saved = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    expected = run(optimizer, range(5, STEPS))
    layer2, optimizer2 = saved
    assert optimizer2.modules == (layer2,) and layer2 is not layer
    assert_same_bits(run(optimizer2, range(5, STEPS)), expected)
    assert_same_bits(layer2.flat_params, expected)


def test_checkpoints_hold_no_buffers():
    layer = Linear(100, 100)
    assert len(pickle.dumps(SGD(layer, 0.1))) < 2.1 * layer.flat_params.nbytes


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_minimises(make):
    layer = Linear(4, 1, dtype="float64", rng=0)
    x = np.random.default_rng(0).normal(size=(50, 4))
    target = x @ [[1.0], [-2.0], [0.5], [3.0]] + 0.7
    optimizer = make(layer, 0.1, weight_decay=0.0)
    for _ in range(500):
        y, tape = layer.forward(x)
        loss, dy = cylstm.mse_loss(y, target)
        optimizer.zero_grad()
        layer.backward(tape, dy)
        optimizer.step()
    assert loss < 1e-6
    assert_close(layer.flat_params, [1, -2, 0.5, 3, 0.7], 1e-2)


BAD_NUMBERS = [
    (-0.1, ValueError), (math.nan, ValueError), ("0.1", TypeError), (None, TypeError),
    (1j, TypeError), (True, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("value", "error"), BAD_NUMBERS, ids=repr)
def test_bad_numbers(value, error):
    layer = Linear(2, 3)
    for make in OPTIMIZERS:
        with pytest.raises(error, match=r"^lr: expected a number.*, got"):
            make(layer, value)
        with pytest.raises(error, match=r"^weight_decay: expected a number.*, got"):
            make(layer, 0.1, weight_decay=value)
    with pytest.raises(error, match=r"^momentum: expected a number.*, got"):
        SGD(layer, 0.1, momentum=value)
    for make in (Adam, AdamW):
        with pytest.raises(error, match=r"^eps: expected a number.*, got"):
            make(layer, eps=value)
        for betas in [(value, 0.9), (0.9, value)]:
            with pytest.raises(error, match=r"^betas: expected a number.*, got"):
                make(layer, betas=betas)


def test_bad_options():
    layer = Linear(2, 3)
    with pytest.raises(TypeError, match=r"^nesterov: expected True or False, got 1"):
        SGD(layer, 0.1, momentum=0.9, nesterov=1)
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum"):
        SGD(layer, 0.1, nesterov=True)
    for make in (Adam, AdamW):
        for betas in [(1.0, 0.9), (0.9, 1), (0.9, 1.5)]:
            with pytest.raises(ValueError, match=r"^betas: expected .*number.*, got"):
                make(layer, betas=betas)
        for betas in [0.9, (0.9,), (0.9, 0.9, 0.9), None]:
            with pytest.raises(TypeError, match=r"^betas: expected two numbers, got"):
                make(layer, betas=betas)
    calls = [partial(make, lr=0.1) for make in OPTIMIZERS]
    calls += [partial(clip_grad_norm, max_norm=1), partial(clip_grad_value, max_value=1)]
    for call in calls:
        with pytest.raises(ValueError, match=r"^modules: expected at least one, got none"):
            call([])
        with pytest.raises(ValueError, match=r"^modules: expected each module once, got one twice"):
            call([layer, Linear(2, 3), layer])
        for wrong in (layer.flat_params, [layer, "layer"], None, 3):
            with pytest.raises(TypeError, match=r"^modules: expected cylstm modules, got"):
                call(wrong)


def test_small_gradients_keep_their_bits():
    layer = Linear(3, 5)
    layer.flat_grads[...] = gradients(0, layer.flat_grads.size)
    before = layer.flat_grads.copy()
    norm = clip_grad_norm(layer, 100)
    assert_same_bits(layer.flat_grads, before)
    clip_grad_norm(layer, norm / 2)
    assert np.linalg.norm(layer.flat_grads) == pytest.approx(norm / 2, rel=1e-5)


def test_norm_is_computed_in_float64():
    module = Parameters({"w": (100_000,)}, np.dtype("float32"))
    module.flat_grads[...] = 1e25
    assert clip_grad_norm(module, 1.0) == pytest.approx(1e25 * 100_000**0.5, rel=1e-7)
    assert_close(module.flat_grads, np.full(100_000, 100_000**-0.5), 1e-6)
    module.zero_grad()
    assert clip_grad_norm(module, 1.0) == 0


def test_clipping_refuses():
    layer = Linear(2, 3)
    layer.flat_grads[...] = 1
    for value, error in BAD_NUMBERS:
        with pytest.raises(error, match=r"^max_norm: expected a number.*, got"):
            clip_grad_norm(layer, value)
        with pytest.raises(error, match=r"^max_value: expected a number.*, got"):
            clip_grad_value(layer, value)
    with pytest.raises(TypeError, match=r"^modules: "):
        clip_grad_value([layer, None], 0.5)
    assert (layer.flat_grads == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_values(dtype):
    layers = Linear(1, 2, dtype=dtype), Linear(2, 2, bias=False, dtype=dtype)
    layers[0].flat_grads[...] = [0.5, -0.5, 0.75, -3]
    layers[1].flat_grads[...] = [math.inf, -math.inf, math.nan, -0.0]
    assert clip_grad_value(layers, 0.5) is None
    np.testing.assert_array_equal(layers[0].flat_grads, [0.5, -0.5, 0.5, -0.5])
    np.testing.assert_array_equal(layers[1].flat_grads, [0.5, -0.5, math.nan, 0])
    clip_grad_value(layers[0], 0)
    assert not layers[0].flat_grads.any() and layers[1].flat_grads.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most", [math.inf, 1e300, 7.0])
def test_clipping_values_above_them_changes_no_bit(dtype, most):
    layer = Linear(3, 5, dtype=dtype)
    layer.flat_grads[...] = gradients(0, layer.flat_grads.size)
    before = layer.flat_grads.copy()
    clip_grad_value(layer, most)
    assert_same_bits(layer.flat_grads, before)
