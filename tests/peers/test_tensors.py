"""Tensors of PyTorch and JAX as arrays: everywhere, alone and in lists, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import LAYERS, assert_same_bits, joined, problem, refused

from cylstm import checks

jax.config.update("jax_enable_x64", True)
EVERY = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
LIBRARIES = pytest.mark.parametrize("tensor", [torch.tensor, jnp.asarray], ids=["torch", "jax"])


@LIBRARIES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EVERY
def test_everywhere(cell, dtype, tensor):
    p = problem(cell, (3, 5, 2), bidirectional=True, mask="holes", reset=0.3, dtype=dtype)
    y, state, tape = p.forward()
    expected = tuple(p.gradients(tape).values())
    x, mask, reset, dy = map(tensor, (p.x, p.mask, p.reset, p.dy))
    own, dstate = (joined(tuple(map(tensor, s))) for s in (p.state, p.dstate))
    y_other, state_other, tape = p.layer.forward(x, own, mask=mask, reset=reset)
    assert_same_bits((y_other, p.parts(state_other)), (y, state))
    p.layer.zero_grad()
    dx, dstate = p.layer.backward(tape, dy, dstate)
    assert_same_bits((dx, *p.parts(dstate), *p.layer.grads.values()), expected)
    lengths = np.array([5, 0, 3])
    for given in (tensor(lengths), [tensor(n) for n in lengths], tensor(lengths.astype("i4"))):
        assert_same_bits(p.layer(x, lengths=given)[0], p.layer(p.x, lengths=lengths)[0])
    as_int = tensor(p.mask.astype("u1"))
    assert_same_bits(p.layer(x, mask=as_int)[0], p.layer(p.x, mask=p.mask)[0])


@LIBRARIES
@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 2, 0), (1,)], ids=str)
@EVERY
def test_lists_are_rows(cell, lengths, tensor):
    layer, rng = LAYERS[cell](3, 5, rng=0), np.random.default_rng(0)
    rows = [rng.normal(size=(n, 3)).astype("f") for n in lengths]
    expected = tuple(layer(row)[0] for row in rows)
    for x in (rows, [row[:, None] for row in rows]):
        y, _, tape = layer.forward([tensor(row) for row in x])
        assert_same_bits(tuple(y), expected)
        dx, _ = layer.backward(tape, [tensor(row) for row in y])
        assert [d.shape for d in dx] == [row.shape for row in rows]
    vectors = [tensor(step) for step in np.ones((4, 3), "f")]
    assert_same_bits(layer(vectors)[0], layer(np.ones((4, 3), "f"))[0])
    nested = [[tensor(step) for step in row] for row in np.ones((4, 2, 3), "f")]
    assert_same_bits(layer(nested)[0], layer(np.ones((4, 2, 3), "f"))[0])


def unreadable():
    ones = torch.ones(2, 3)
    return [
        (torch.ones(2, 3, requires_grad=True), "pass its .detach()"),
        (torch.nn.Parameter(ones), "pass its .detach()"),
        (torch.ones(2, 3, requires_grad=True) * 2, "pass its .detach()"),
        (ones.bfloat16(), "of dtype torch.bfloat16: pass its .float()"),
        (ones.to(torch.float8_e4m3fn), "of dtype torch.float8_e4m3fn: pass its .float()"),
        (torch.nn.Parameter(ones.bfloat16()), "pass its .detach().float()"),
        (torch.ones(2, 3, device="meta"), "a tensor on the meta device, which has no values"),
        (ones.to_sparse(), "pass its .to_dense()"),
        (torch.complex(ones, ones), "dtype complex64"),
        (torch.complex(ones, ones).conj().imag, "resolve_neg()"),
        (jnp.ones((2, 3), "bfloat16"), "dtype bfloat16: pass its .astype('float32')"),
        (jnp.ones((2, 3), bool), "dtype bool"),
    ]


@pytest.mark.parametrize(("wrong", "words"), unreadable())
@EVERY
def test_what_cannot_be_read(cell, wrong, words):
    layer = LAYERS[cell](3, 5)
    error = (TypeError, ValueError)
    for call in (layer, layer.forward, layer.trace):
        refused(error, "x", words, call, wrong)
        refused(error, "x", words, call, [[wrong[0], wrong[1]]] * 2)
        refused(error, "state h", words, call, np.ones((4, 2, 3)),
                (wrong, None) if cell == "lstm" else wrong)  # fmt: skip
        if "bool" not in words:
            refused(error, "mask", words, call, np.ones((2, 3, 3)), mask=wrong)
        refused(error, "lengths", words, call, np.ones((2, 3, 3)), lengths=wrong)
        if call != layer.trace:
            refused(error, "x", words, call, [torch.ones(4, 3), wrong])
    tape = layer.forward(np.ones((2, 3)))[2]
    refused(error, "dy", words, layer.backward, tape, wrong)


def test_inside_a_traced_function():
    layer = LAYERS["gru"](3, 5)

    @jax.jit
    def traced(x):
        return layer(x)[0]

    refused(TypeError, "x", "traced array", traced, jnp.ones((2, 3)))


def test_weights():
    values = np.array([[1, 2.5], [-3, 0.125]], "f")
    tensors = [torch.tensor(values), torch.nn.Parameter(torch.tensor(values)),
               torch.tensor(values).bfloat16(), torch.tensor(values).half(),
               torch.nn.Parameter(torch.tensor(values).bfloat16()), jnp.asarray(values),
               jnp.asarray(values).astype("bfloat16"), torch.tensor(values, dtype=torch.float64),
               torch.tensor(values).T.contiguous().T]  # fmt: skip
    for tensor in tensors:
        found = checks.tensor("w", tensor)
        assert type(found) is np.ndarray and np.array_equal(found, values)
    quantised = torch.tensor(values).to(torch.int8)
    refused(TypeError, "w", "by their scale", checks.tensor, "w", quantised)
    refused(TypeError, "w", "meta", checks.tensor, "w", torch.ones(2, device="meta"))
