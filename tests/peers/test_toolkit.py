"""What training needs beside the layers gives PyTorch's results."""

import math

import numpy as np
import pytest
import torch
from helpers import DTYPES, assert_close, assert_same_bits
from test_linear import SHAPES, normal
from test_optim import CASES, STEPS, gradients

import cylstm
from cylstm import Linear, clip_grad_norm, clip_grad_value
from cylstm.module import Module


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(bias, shape):
    layer = cylstm.Linear(4, 6, bias=bias, dtype="float64", rng=0)
    twin = torch.nn.Linear(4, 6, bias=bias, dtype=torch.float64)
    assert list(twin.state_dict()) == list(layer.params)
    layer.load_state_dict(twin.state_dict())
    x, dy = normal(*shape, 4), normal(*shape, 6, seed=1)
    leaf = torch.from_numpy(x).requires_grad_()
    expected = twin(leaf)
    expected.backward(torch.from_numpy(dy))
    y, tape = layer.forward(x)
    assert_close(y, expected.detach(), 1e-12)
    assert_close(layer.backward(tape, dy), leaf.grad, 1e-12)
    for name, parameter in twin.named_parameters():
        assert_close(layer.grads[name], parameter.grad, 1e-12)


def test_embedding_is_pytorchs():
    layer = cylstm.Embedding(7, 4, dtype="float64")
    twin = torch.nn.Embedding(7, 4, dtype=torch.float64)
    layer.load_state_dict(twin.state_dict())
    ids, dy = np.random.default_rng(0).integers(0, 6, (5, 3)), normal(5, 3, 4)
    expected = twin(torch.from_numpy(ids))
    expected.backward(torch.from_numpy(dy))
    y, tape = layer.forward(ids)
    layer.backward(tape, dy)
    assert_same_bits(y, expected.detach().numpy())
    assert_close(layer.grads["weight"], twin.weight.grad, 1e-12)


@pytest.mark.parametrize("index", [None, 2, -1])
def test_tied_layers_are_pytorchs(index):
    embedding = cylstm.Embedding(7, 4, padding_idx=index, dtype="float64", rng=0)
    linear = cylstm.Linear(4, 7, tied_to=embedding, dtype="float64", rng=1)
    looked_up = torch.nn.Embedding(7, 4, padding_idx=index, dtype=torch.float64)
    assert embedding.padding_idx == looked_up.padding_idx
    twin = torch.nn.Linear(4, 7, dtype=torch.float64)
    looked_up.load_state_dict({"weight": torch.tensor(embedding.params["weight"].copy())})
    twin.weight = looked_up.weight
    with torch.no_grad():
        twin.bias.copy_(torch.tensor(linear.params["bias"].copy()))
    ids, dy = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (5, 3))), normal(5, 3, 7)
    expected = twin(looked_up(ids))
    expected.backward(torch.from_numpy(dy))
    vectors, tape = embedding.forward(ids)  # a tensor will do
    y, linear_tape = linear.forward(vectors)
    embedding.backward(tape, linear.backward(linear_tape, dy))
    assert_close(y, expected.detach(), 1e-12)
    assert_close(embedding.grads["weight"], twin.weight.grad, 1e-12)
    assert_close(linear.grads["bias"], twin.bias.grad, 1e-12)


@pytest.mark.parametrize(("make", "name", "options"), CASES)
def test_pytorchs_formulas(make, name, options):
    modules = Linear(3, 5, dtype="float64", rng=0), Linear(5, 2, dtype="float64", rng=1)
    twins = [torch.tensor(module.flat_params.copy(), requires_grad=True) for module in modules]
    optimizer = make(modules, **options)
    reference = getattr(torch.optim, name)(twins, **options)
    for step in range(STEPS):
        if step == STEPS // 2:
            optimizer.lr = reference.param_groups[0]["lr"] = 0.05
        for module, twin in zip(modules, twins, strict=True):
            grads = gradients(step, module.flat_grads.size)
            module.flat_grads[...] = grads
            twin.grad = torch.from_numpy(grads)
        optimizer.step()
        reference.step()
        for module, twin in zip(modules, twins, strict=True):
            np.testing.assert_allclose(module.flat_params, twin.detach(), rtol=1e-12, atol=1e-13)
            assert_same_bits(module.flat_grads, gradients(step, module.flat_grads.size))
    for twin, state in zip(twins, optimizer.state, strict=True):
        for key, value in state.items():
            assert_close(value, reference.state[twin][key], 1e-12)
    assert optimizer.steps == STEPS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 7.0, 7.1, 100.0, math.inf])
def test_clipping_is_pytorchs(dtype, max_norm):
    layers = Linear(3, 5, dtype=dtype), Linear(5, 2, dtype=dtype)
    for step, layer in enumerate(layers):
        layer.flat_grads[...] = gradients(step, layer.flat_grads.size)
    total = np.linalg.norm(np.concatenate([layer.flat_grads for layer in layers]))
    for layer in layers:
        layer.flat_grads *= 7 / total
    twins = [torch.zeros(layer.flat_grads.size, dtype=getattr(torch, dtype)) for layer in layers]
    for layer, twin in zip(layers, twins, strict=True):
        twin.grad = torch.from_numpy(layer.flat_grads.copy())
    expected = torch.nn.utils.clip_grad_norm_(twins, max_norm).item()
    norm = clip_grad_norm(layers, max_norm)
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
    assert type(norm) is float
    assert norm == pytest.approx(7, rel=1e-6)
    assert norm == pytest.approx(expected, rel=tolerance)
    for layer, twin in zip(layers, twins, strict=True):
        assert_close(layer.flat_grads, twin.grad, tolerance)


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_norm_that_is_not_finite(wrong):
    module = Module({"w": (2,)}, np.dtype("float64"))
    module.flat_grads[...] = [3.0, wrong]
    twin = torch.zeros(2, dtype=torch.float64)
    twin.grad = torch.from_numpy(module.flat_grads.copy())
    expected = torch.nn.utils.clip_grad_norm_(twin, 1.0).item()
    np.testing.assert_equal(clip_grad_norm(module, 1.0), expected)
    np.testing.assert_array_equal(module.flat_grads, twin.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_value", [0.0, 0.3, 100.0, math.inf])
def test_clipping_values_is_pytorchs(dtype, max_value):
    layer = Linear(3, 5, dtype=dtype)
    layer.flat_grads[...] = gradients(0, layer.flat_grads.size)
    layer.flat_grads[:3] = [math.inf, -math.inf, math.nan]
    twin = torch.zeros(layer.flat_grads.size, dtype=getattr(torch, dtype))
    twin.grad = torch.from_numpy(layer.flat_grads.copy())
    torch.nn.utils.clip_grad_value_(twin, max_value)
    clip_grad_value(layer, max_value)
    np.testing.assert_array_equal(layer.flat_grads, twin.grad)
