"""Errors after a thousand steps are no larger than PyTorch's on the same weights and input."""

import numpy as np
import pytest
import torch
from helpers import CELLS, joined, problem
from test_torch import torch_forward, torch_layer

STEPS, ROWS, HIDDEN = 1000, 4, 256


@pytest.mark.parametrize("cell", CELLS)
def test_thousand_steps(cell):
    p = problem(cell, (12, HIDDEN), steps=STEPS, rows=ROWS)
    y_exact, state_exact, _ = p.oracle()
    with torch.no_grad():
        state = tuple(map(torch.from_numpy, p.state))
        y_torch, state_torch = torch_forward(
            p, torch_layer(cell, p.layer), torch.from_numpy(p.x), state
        )
    y, state = p.infer()
    pairs = zip((y, *state), (y_torch, *state_torch), (y_exact, *state_exact), strict=True)
    for ours, torchs, exact in pairs:
        ours, torchs = np.abs(ours - exact), np.abs(torchs.numpy() - exact)
        assert np.sqrt((ours**2).mean()) <= 1.1 * np.sqrt((torchs**2).mean())
    ours, torchs = np.abs(y - y_exact), np.abs(y_torch.numpy() - y_exact)
    assert ours.max() <= 1.1 * torchs.max()
    assert ours[-100:].mean() <= 1.1 * torchs[-100:].mean()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_through_a_long_sequence(cell):
    p = problem(cell, (12, 64), steps=300, rows=ROWS)
    q = problem(cell, (12, 64), steps=300, rows=ROWS, dtype="float64")
    q = q._replace(x=p.x, state=p.state, dy=p.dy, dstate=p.dstate)
    q.layer.assign(p.layer.flat_params)
    q.backward(q.forward()[2])
    exact = q.layer.flat_grads
    other = torch_layer(cell, p.layer)
    y, state = torch_forward(p, other, torch.from_numpy(p.x), tuple(map(torch.from_numpy, p.state)))
    torch.autograd.backward((y, *state), [torch.from_numpy(d) for d in (p.dy, *p.dstate)])
    torchs = np.concatenate([v.grad.numpy().ravel() for v in other.parameters()])
    p.layer.zero_grad()
    p.layer.backward(p.forward()[2], p.dy, joined(p.dstate))
    ours = p.layer.flat_grads

    def error(gradient):
        return np.linalg.norm(gradient - exact) / np.linalg.norm(exact)

    assert error(ours) <= 4 * error(torchs)
