"""Optimisers and clipping: PyTorch's formulas, state, checkpoints, errors."""

import copy
import math
import pickle
import sys
from functools import partial

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits

import cylstm
from cylstm import SGD, Adam, AdamW, Linear, clip_grad_norm, clip_grad_value
from cylstm.module import Module

STEPS = 50


def freeze(module, *names):
    """Freeze these parameters and no others."""
    module.unfreeze()
    if names:
        module.freeze(*names)


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
    module = Module({"w": (2,)}, np.dtype("float64"))
    module.assign(np.array([1.0, 2.0]))
    module.flat_grads[...] = [0.5, -4.0]
    SGD(module, 0.1).step()
    assert_close(module.flat_params, [0.95, 2.4], 1e-15)
    Adam(module, 0.1, eps=0).step()  # the first step of Adam is lr times the sign
    assert_close(module.flat_params, [0.85, 2.5], 1e-15)
    AdamW(module, 0.1, eps=0, weight_decay=0.5).step()
    assert_close(module.flat_params, [0.95 * 0.85 - 0.1, 0.95 * 2.5 + 0.1], 1e-15)


def updated(make, options, p, g, state, t):
    """New parameters by the formulas of the docstrings; `state` is changed."""
    o = {"lr": 1e-3, "momentum": 0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0} | options
    lr, decay = o["lr"], o["weight_decay"]
    if make is SGD:
        g = g + decay * p
        v = state["v"] = o["momentum"] * state.get("v", 0) + g
        return p - lr * (g + o["momentum"] * v if "nesterov" in o else v)
    if make is AdamW:
        p = p - lr * options.get("weight_decay", 0.01) * p
    else:
        g = g + decay * p
    b1, b2 = o["betas"]
    m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o["eps"])


@pytest.mark.parametrize(("make", "name", "options"), CASES)
def test_formulas(make, name, options):
    """Of parameters side by side, of which some are frozen for a while and then go on."""
    module = Module({"a": (3,), "b": (5,), "c": (2,)}, np.dtype("float64"))
    module.assign(np.random.default_rng(0).normal(size=10))
    expected, states = module.state_dict(), {"a": {}, "b": {}, "c": {}}
    counts = dict.fromkeys(expected, 0)
    optimizer = make(module, **options)
    for step, frozen in enumerate([(), ("b",), ("a", "b"), (), ("c",), ()]):
        freeze(module, *frozen)
        module.flat_grads[...] = gradients(step, 10)
        optimizer.step()
        for key in expected.keys() - {*frozen}:
            counts[key] += 1
            g = module.grads[key]
            expected[key] = updated(make, options, expected[key], g, states[key], counts[key])
        for key, value in expected.items():
            np.testing.assert_allclose(module.params[key], value, rtol=1e-12)


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
    long = Module({"w": (size,)}, np.dtype(dtype))
    parts = [Module({"w": (1_000,)}, np.dtype(dtype)) for _ in range(40)]
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
    optimizer.lr *= 0.5
    both = layer, optimizer
    saved = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    expected = run(optimizer, range(5, STEPS))
    layer2, optimizer2 = saved
    assert optimizer2.modules == (layer2,) and layer2 is not layer
    assert_same_bits(run(optimizer2, range(5, STEPS)), expected)
    assert_same_bits(layer2.flat_params, expected)


@pytest.mark.parametrize("through", ["dict", "file"])
@pytest.mark.parametrize(("make", "name", "options"), CASES)
def test_a_run_goes_on_from_a_state_dict(make, name, options, through, tmp_path):
    modules = Linear(3, 5, rng=0), cylstm.Embedding(4, 3, dtype="float64", rng=1)
    optimizer = make(modules, **options)
    run(optimizer, range(3))
    freeze(modules[0], "bias")
    run(optimizer, range(3, 5))
    freeze(modules[0])
    optimizer.lr *= 0.5
    saved, weights = optimizer.state_dict(), [module.state_dict() for module in modules]
    kept = copy.deepcopy(saved)
    expected = run(optimizer, range(5, 12))
    assert str(saved) == str(kept)  # copies
    if through == "file":
        np.savez(tmp_path / "optimizer.npz", **saved)
        with np.load(tmp_path / "optimizer.npz") as file:
            saved = dict(file)
    others = Linear(3, 5, rng=7), cylstm.Embedding(4, 3, dtype="float64", rng=8)
    another = make(others, **{"lr": 0.7} | ({"momentum": 0.3} if make is SGD else {"eps": 0.5}))
    run(another, range(2))
    another.load_state_dict(saved)
    for module, state in zip(others, weights, strict=True):
        module.load_state_dict(state)
    assert another.steps == 5 and another.lr == optimizer.lr
    assert_same_bits(run(another, range(5, 12)), expected)
    assert another._options == optimizer._options
    if through == "dict":
        assert str(saved) == str(kept)  # copied when it was loaded


def test_what_is_in_a_state_dict():
    layer = Linear(2, 3, rng=0)
    optimizer = AdamW([layer, cylstm.Embedding(4, 2)], 0.1)
    run(optimizer, range(3))
    state = optimizer.state_dict()
    assert {k: v for k, v in state.items() if "." not in k} == {
        "steps": 3, "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01,
    }  # fmt: skip
    assert [k for k in state if "." in k] == [
        f"{kind}.{parameter}" for kind in ("step", "exp_avg", "exp_avg_sq")
        for parameter in ("0.weight", "0.bias", "1.weight")
    ]  # fmt: skip
    assert state["step.0.bias"] == 3
    moments = layer.split(optimizer.state[0]["exp_avg"])
    assert_same_bits(state["exp_avg.0.weight"], moments["weight"])
    assert list(SGD(layer, 0.1).state_dict()) == [
        "steps", "lr", "momentum", "nesterov", "weight_decay", "step.0.weight", "step.0.bias",
    ]  # fmt: skip


def test_state_dicts_refused():
    layer = Linear(2, 3, rng=0)
    optimizer = Adam(layer)
    run(optimizer, range(3))
    good = optimizer.state_dict()
    moment = good["exp_avg.0.weight"]
    cases = [
        ({"exp_avg.0.weight": moment.T}, ValueError, r"exp_avg.0.weight: expected shape \(3, 2\)"),
        ({"exp_avg.0.weight": np.float64(moment)}, TypeError,
         "exp_avg.0.weight: expected dtype float32, got float64"),
        ({"exp_avg_sq.0.bias": np.zeros(3, int)}, TypeError, "exp_avg_sq.0.bias: expected dtype"),
        ({"steps": -1}, ValueError, "steps: expected an integer"),
        ({"steps": 1.5}, TypeError, "steps: expected an integer"),
        ({"step.0.bias": -1}, ValueError, "step.0.bias: expected an integer"),
        ({"lr": "x"}, TypeError, "lr: expected a number"),
        ({"lr": math.nan}, ValueError, "lr: expected a number"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected"),
        ({"momentum": 0.1}, KeyError, r".state: missing \[\], unexpected \['momentum'\]"),
        ({"exp_avg.1.weight": moment}, KeyError, ".state: .* unexpected .*exp_avg.1.weight"),
        ({3: moment}, KeyError, r".state: .* unexpected \[3\]"),
    ]  # fmt: skip
    wrong = [(good | change, error, message) for change, error, message in cases]
    for key in ("steps", "lr", "step.0.bias", "exp_avg_sq.0.weight"):
        without = {k: v for k, v in good.items() if k != key}
        wrong.append((without, KeyError, rf".state: missing \['{key}'\], unexpected \[\]"))
    wrong += [
        (state, TypeError, f"state: expected a mapping, .* got {type(state).__name__}")
        for state in (None, [moment], 3)
    ]
    run(optimizer, [3])
    before, options = copy.deepcopy(optimizer.state), repr(optimizer)
    for state, error, message in wrong:
        with pytest.raises(error, match=f"^{message}"):
            optimizer.load_state_dict(state)
        assert optimizer.steps == 4 and repr(optimizer) == options
        assert optimizer.state_dict()["step.0.bias"] == 4
        for got, old in zip(optimizer.state, before, strict=True):
            assert_same_bits(tuple(got.values()), tuple(old.values()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_state_dict_brings_its_momentum(momentum):
    layer = Linear(2, 3, rng=0)
    saved = SGD(layer, 0.1, momentum=momentum, nesterov=momentum > 0).state_dict()
    optimizer = SGD(layer, 0.2, momentum=0.9 - momentum)
    optimizer.load_state_dict(saved)
    assert (optimizer.momentum, optimizer.nesterov) == (momentum, momentum > 0)
    assert list(optimizer.state[0]) == ["momentum_buffer"] * (momentum > 0)
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum"):
        optimizer.load_state_dict(saved | {"momentum": 0.0, "nesterov": True})


# Frozen parameters

WIDE = {"a": (3,), "b": (40_000,), "c": (2, 2)}


@pytest.mark.parametrize("frozen", [(), ("a",), ("b",), ("c",), ("a", "c"), ("a", "b", "c")])
@pytest.mark.parametrize(("make", "name", "options"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_parameters_are_left_alone(dtype, make, name, options, frozen):
    """The others have the bits that they have alone."""
    module = Module(WIDE, np.dtype(dtype))
    module.assign(np.random.default_rng(0).normal(size=module.flat_params.size))
    rest = Module({k: v for k, v in WIDE.items() if k not in frozen}, np.dtype(dtype))
    rest.assign({k: module.params[k] for k in rest.params})
    freeze(module, *frozen)
    before = module.state_dict()
    one, other = make(module, **options), make(rest, **options)
    for step in range(3):
        module.flat_grads[...] = gradients(step, module.flat_grads.size)
        for key in rest.params:
            rest.grads[key][...] = module.grads[key]
        for key in frozen:
            module.grads[key][0] = math.nan
        one.step()
        other.step()
    for key in module.params:
        expected = before[key] if key in frozen else rest.params[key]
        assert_same_bits(module.params[key], expected)
    for key, vector in one.state[0].items():
        moments, alone = module.split(vector), rest.split(other.state[0][key])
        for parameter in module.params:
            if parameter in frozen:
                assert not moments[parameter].any()
            else:
                assert_same_bits(moments[parameter], alone[parameter])


def test_a_module_frozen_whole_does_not_change():
    module = Linear(2, 3, rng=0)
    freeze(module, "weight", "bias")
    version = module._version
    optimizer = AdamW(module, 0.1)
    run(optimizer, range(3))
    assert module._version == version and optimizer.steps == 3
    assert clip_grad_norm(module, 0.0) == 0.0


def test_clipping_leaves_frozen_gradients_alone():
    layers = Linear(2, 2), Linear(2, 3)
    freeze(layers[0], "weight")
    freeze(layers[1], "bias")
    for layer in layers:
        layer.flat_grads[...] = 3.0
        for name in layer.frozen:
            layer.grads[name][...] = math.inf
    assert clip_grad_norm(layers, 1.0, error_if_nonfinite=True) == pytest.approx(3 * 8**0.5)
    for layer in layers:
        for name, grad in layer.grads.items():
            expected = math.inf if name in layer.frozen else 8**-0.5
            np.testing.assert_allclose(grad, expected, rtol=1e-5)
    clip_grad_value(layers, 0.1)
    for layer in layers:
        for name, grad in layer.grads.items():
            assert (grad == (math.inf if name in layer.frozen else grad.dtype.type(0.1))).all()


# Attributes


def test_repr():
    layer, other = Linear(2, 3), Linear(3, 1)
    assert repr(SGD(layer, 0.1, momentum=0.5)) == (
        f"SGD({layer!r}, lr=0.1, momentum=0.5, nesterov=False, weight_decay=0.0)"
    )
    optimizer = Adam([layer, other])
    assert repr(optimizer) == (
        f"Adam([{layer!r}, {other!r}], lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"
    )
    optimizer.lr, optimizer.betas = 1, [0.5, np.float64(0.25)]
    assert "lr=1.0, betas=(0.5, 0.25), eps" in repr(optimizer)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_unknown_attributes_are_refused(make):
    optimizer = make(Linear(2, 3), 0.1)
    for name in ("learning_rate", "LR", "state_dicts", "param_groups"):
        with pytest.raises(AttributeError, match=rf"^{name}: .* options of {make.__name__} \(lr, "):
            setattr(optimizer, name, 5)
        assert not hasattr(optimizer, name)
    for name in ("steps", "state", "modules"):
        with pytest.raises(AttributeError, match=name):
            setattr(optimizer, name, 5)


def test_a_subclass_may_have_attributes():
    class Slow(Adam):
        warm_up = 0

        def __init__(self, modules):
            self.warm_up = 3
            super().__init__(modules, 0.1)

    optimizer = Slow(Linear(2, 3))
    assert (optimizer.warm_up, optimizer.lr) == (3, 0.1)
    assert repr(optimizer).startswith("Slow(") and copy.deepcopy(optimizer).warm_up == 3
    with pytest.raises(AttributeError, match=r"^warmup: "):
        optimizer.warmup = 4


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_options_are_checked_when_assigned(make):
    optimizer = make(Linear(2, 3), 0.1, weight_decay=0.2)
    names = ["lr", "weight_decay", "momentum" if make is SGD else "eps"]
    for name in names:
        for value, error in [*BAD_NUMBERS, (math.inf, ValueError)]:
            before = repr(optimizer)
            with pytest.raises(error, match=rf"^{name}: expected a number"):
                setattr(optimizer, name, value)
            assert repr(optimizer) == before
        setattr(optimizer, name, 0.25)
        assert getattr(optimizer, name) == 0.25
    wrong = {"nesterov": 1} if make is SGD else {"betas": 0.9}
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=rf"^{name}: expected"):
            setattr(optimizer, name, value)


def test_assigned_options_have_effect():
    for make, name, options in CASES:
        first, second = Linear(3, 5, rng=0), Linear(3, 5, rng=0)
        one, other = make(first, **options), make(second, 0.5)
        for key, value in options.items():
            setattr(other, key, value)
        other.lr = one.lr
        assert repr(one) == repr(other).replace(repr(second), repr(first)), name
        assert_same_bits(run(other, range(5)), run(one, range(5)))


def test_momentum_comes_and_goes():
    layer = Linear(3, 5, rng=0)
    optimizer = SGD(layer, 0.1)
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum"):
        optimizer.nesterov = True
    assert optimizer.nesterov is False
    optimizer.momentum = 0.9
    assert list(optimizer.state[0]) == ["momentum_buffer"]
    run(optimizer, range(2))
    vector = optimizer.state[0]["momentum_buffer"]
    optimizer.momentum = 0.5
    assert optimizer.state[0]["momentum_buffer"] is vector and vector.any()
    optimizer.nesterov = True
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum"):
        optimizer.momentum = 0.0
    optimizer.nesterov = False
    optimizer.momentum = 0.0
    assert optimizer.state == [{}]


@pytest.mark.parametrize("given", ["params", "flat_params", "values", "state_dict", "names"])
def test_parameters_are_no_modules(given):
    layer = Linear(2, 3)
    modules = {
        "params": layer.params, "flat_params": layer.flat_params, "names": "layer",
        "values": layer.params.values(), "state_dict": layer.state_dict(),
    }[given]  # fmt: skip
    message = r"^modules: expected cylstm modules, got \w+; pass the layer itself, not its param"
    for call in (Adam, partial(clip_grad_norm, max_norm=1)):
        with pytest.raises(TypeError, match=message):
            call(modules)


@pytest.mark.parametrize("grad", [1e-25, 1e-45, 1e25, math.inf, math.nan])
@pytest.mark.parametrize(("make", "name", "options"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_raise_nothing(dtype, make, name, options, grad):
    ends = []
    for how in ("raise", "ignore"):
        layer = Linear(3, 5, dtype=dtype, rng=0)
        layer.flat_grads[...] = grad
        with np.errstate(all=how):
            optimizer = make(layer, **options)
            for _ in range(3):
                optimizer.step()
            clip_grad_value(layer, 1e300)
            clip_grad_norm(layer, 1e-20)
        assert optimizer.steps == 3
        ends.append((layer.flat_params, layer.flat_grads, *optimizer.state[0].values()))
    assert_same_bits(*ends)


def test_a_step_that_fails_is_not_counted():
    class Broken(Module):
        def assign(self, values):
            raise RuntimeError

    module = Broken({"w": (2,)}, np.dtype("float64"))
    optimizer = Adam(module)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert optimizer.steps == 0 and optimizer.state_dict()["step.0.w"] == 0


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
    module = Module({"w": (100_000,)}, np.dtype("float32"))
    module.flat_grads[...] = 1e25
    assert clip_grad_norm(module, 1.0) == pytest.approx(1e25 * 100_000**0.5, rel=1e-7)
    assert_close(module.flat_grads, np.full(100_000, 100_000**-0.5), 1e-6)
    module.zero_grad()
    assert clip_grad_norm(module, 1.0) == 0


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-320])
def test_norm_of_float64_whose_squares_overflow(size):
    module = Module({"w": (100_000,)}, np.dtype("float64"))
    module.flat_grads[...] = size
    assert clip_grad_norm(module, 1.0, error_if_nonfinite=True) == pytest.approx(
        size * 100_000**0.5, rel=1e-3 if size == 1e-320 else 1e-12
    )
    expected = 100_000**-0.5 if size > 1 else size
    assert_close(module.flat_grads / expected, np.ones(100_000), 1e-12)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_an_error_if_the_norm_is_not_finite(wrong):
    layers = Linear(2, 3), Linear(3, 1)
    for layer in layers:
        layer.flat_grads[...] = gradients(0, layer.flat_grads.size)
    layers[1].grads["bias"][0] = wrong
    before = tuple(layer.flat_grads.copy() for layer in layers)
    message = rf"^modules\[1\].grads\['bias'\]: expected finite .* Linear, got {wrong}$"
    with pytest.raises(ValueError, match=message):
        clip_grad_norm(layers, 1.0, error_if_nonfinite=True)
    assert_same_bits(tuple(layer.flat_grads for layer in layers), before)
    layers[1].flat_grads[...] = 1
    assert clip_grad_norm(layers, 1.0, error_if_nonfinite=True) > 1
    with pytest.raises(TypeError, match=r"^error_if_nonfinite: expected True or False, got 1"):
        clip_grad_norm(layers, 1.0, error_if_nonfinite=1)


def test_an_infinite_norm_of_finite_gradients():
    module = Module({"w": (4,)}, np.dtype("float64"))
    module.flat_grads[...] = 1.7e308
    with pytest.raises(ValueError, match=r"^modules: expected gradients with a finite norm"):
        clip_grad_norm(module, 1.0, error_if_nonfinite=True)


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


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupted_at(opcode, call):
    """Call, with an interrupt before so many opcodes of the library; whether there was one."""
    left = opcode

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith("cylstm"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize(
    "make",
    [
        lambda modules: cylstm.Adam(modules, lr=0.1),
        lambda modules: cylstm.SGD(modules, lr=0.1, momentum=0.9),
    ],
)
def test_an_interrupted_step_is_made_or_not(make, monkeypatch):
    monkeypatch.setattr("cylstm.training.optim.optimizer._BLOCK", 16)  # several for each module
    modules = [cylstm.Linear(5, 4, rng=0), cylstm.LSTM(2, 1, rng=1)]
    modules[1].freeze("bias_hh_l0")
    optimizer = make(modules)
    for module in modules:
        module.flat_grads[...] = np.random.default_rng(2).normal(size=module.flat_grads.shape)
    optimizer.step()

    def everything():
        state = optimizer.state_dict()
        return [m.flat_params.copy() for m in modules], state

    def same(a, b):
        assert a[1].keys() == b[1].keys()
        return all(map(np.array_equal, a[0], b[0])) and all(
            np.array_equal(a[1][name], b[1][name]) for name in a[1]
        )

    x = np.ones((3, 2), np.float32)
    modules[1](x)
    (old, saved), outcomes, opcode = everything(), [], 0
    while True:
        interrupted = interrupted_at(opcode, optimizer.step)
        found, y = everything(), modules[1](x)[0]
        twin = cylstm.LSTM(2, 1)
        twin.assign(modules[1].flat_params)
        assert_same_bits(y, twin(x)[0])  # no packed weights of before the step
        outcomes.append(found)
        if not interrupted:
            break
        for module, params in zip(modules, old, strict=True):
            module.assign(params)
        optimizer.load_state_dict(saved)
        opcode += 1
    assert opcode > 500
    nothing, all_of_it = (old, saved), outcomes[-1]
    made = [same(found, all_of_it) for found in outcomes]
    assert all(m or same(f, nothing) for m, f in zip(made, outcomes, strict=True))
    assert made == sorted(made) and not made[0] and made.count(True) > 100
