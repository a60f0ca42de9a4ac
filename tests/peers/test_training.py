"""Losses and optimisers give PyTorch's results, with every option."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import DTYPES, assert_close
from test_losses import (
    CROSSED,
    INVALID,
    LENGTHS,
    MASK,
    binary_cross_entropy_with_logits,
    case,
    classes,
    cross_entropy,
    mse_loss,
    name_of,
    normal,
    pinball,
    ragged,
)
from test_optim import CASES, freeze, gradients

import cylstm

TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def torch_loss(loss, z, target, counts, *, lengths, mask, **options):
    """PyTorch's loss of what counts, as a graph."""
    for name, value in options.items():
        if name in ("weight", "pos_weight") and value is not None:
            value = torch.as_tensor(np.asarray(value), dtype=z.dtype)
            if loss is binary_cross_entropy_with_logits:
                value = value.broadcast_to(z.shape)[counts]
            options[name] = value
    if loss is not pinball:
        return getattr(torch.nn.functional, name_of(loss))(z[counts], target[counts], **options)
    q = torch.tensor(pinball.keywords["quantiles"], dtype=z.dtype)
    d = target[counts][..., None] - z[counts]
    return getattr(torch.maximum(q * d, (q - 1) * d), options["reduction"])()


@pytest.mark.parametrize(("loss", "options"), CROSSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses(dtype, loss, options):
    z, target = case(loss, (4, 3), dtype)
    counts = np.ones((4, 3), bool) if options["mask"] is None else MASK.copy()
    if options["lengths"] is not None:
        counts &= ~INVALID
    leaf = torch.tensor(z, requires_grad=True)
    expected = torch_loss(loss, leaf, torch.tensor(target), torch.tensor(counts), **options)
    expected.backward()
    got, dz = loss(z, target, **options)
    assert got == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    assert_close(dz, leaf.grad.numpy(), TOLERANCE[dtype])


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 0.0, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_ignored_targets_are_minus_100(weight, smoothing):
    z, target = normal(4, 5), classes(4)
    target[1] = -100
    options = {"weight": weight, "label_smoothing": smoothing}
    leaf = torch.tensor(z, requires_grad=True)
    if weight is not None:
        options["weight"] = torch.tensor(weight, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(leaf, torch.tensor(target), **options)
    expected.backward()
    got, dz = cross_entropy(z, target, weight=weight, label_smoothing=smoothing)
    assert got == pytest.approx(expected.item(), rel=1e-12)
    assert_close(dz, leaf.grad.numpy(), 1e-12)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy_with_logits, mse_loss])
def test_tensors_are_arrays(loss):
    z, target = case(loss, (4, 3), "float32")
    expected = loss(z, target, lengths=LENGTHS, mask=MASK)
    tensors = partial(map, torch.tensor)
    got = loss(*tensors((z, target)), lengths=torch.tensor(LENGTHS), mask=torch.tensor(MASK))
    assert got[0] == expected[0] and type(got[1]) is np.ndarray
    assert_close(got[1], expected[1], 1e-7)
    rows = loss(*(list(tensors(ragged(a))) for a in (z, target)))
    assert rows[0] == loss(ragged(z), ragged(target))[0]
    with pytest.raises((TypeError, ValueError), match=r"^(logits|prediction): .*"):
        loss(torch.tensor(z, requires_grad=True), target)


@pytest.mark.parametrize(("make", "name", "options"), [c for c in CASES if c[1] != "SGD"])
def test_parameters_frozen_for_a_while(make, name, options):
    """As where a parameter of PyTorch has no gradient: it counts its own steps."""
    module = cylstm.Linear(3, 5, dtype="float64", rng=0)
    twins = {k: torch.tensor(v, requires_grad=True) for k, v in module.state_dict().items()}
    optimizer = make(module, **options)
    reference = getattr(torch.optim, name)(twins.values(), **options)
    for step in range(20):
        freeze(module, *(["weight"] if step < 5 else ["bias"] if step < 8 else []))
        module.flat_grads[...] = gradients(step, module.flat_grads.size)
        for key, twin in twins.items():
            grad = torch.tensor(module.grads[key])
            twin.grad = None if key in module.frozen else grad
        optimizer.step()
        reference.step()
        for key, twin in twins.items():
            np.testing.assert_allclose(module.params[key], twin.detach(), rtol=1e-12, atol=1e-13)
