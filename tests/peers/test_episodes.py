"""Episodes as PyTorch programs write them: a loop over time that takes the hidden state back."""

import numpy as np
import pytest
import torch
from helpers import CELLS, assert_close, problem
from test_torch import close_to_torch, torch_layer

READ = [{}, {"lengths": "random"}, {"mask": "holes"}]


def read_steps(p):
    steps, rows = p.x.shape[:2]
    if p.lengths is not None:
        return np.arange(steps)[:, None] < p.lengths
    return np.ones((steps, rows), bool) if p.mask is None else p.mask


def loop(p, other, x, state, initial):
    """Output and final state: before each reset the state is `initial`, kept where not read."""
    read, outputs = torch.tensor(read_steps(p))[..., None], []
    reset = torch.tensor(p.reset)[..., None]
    for t in range(len(x)):
        state = tuple(torch.where(reset[t], i, s) for i, s in zip(initial, state, strict=True))
        y, new = other(x[t : t + 1], state if p.cell == "lstm" else state[0])
        new = new if p.cell == "lstm" else (new,)
        state = tuple(torch.where(read[t], n, s) for n, s in zip(new, state, strict=True))
        outputs.append(torch.where(read[t], y[0], 0))
    return torch.stack(outputs), state


@pytest.mark.parametrize("chosen", READ, ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_and_learned_states(cell, learned, chosen):
    """With the state given, and with the initial one from the start."""
    for given in (True, False):
        p = problem(cell, (6, 19, 2), steps=9, rows=4, reset=0.3, learn_initial_state=learned,
                    dtype="float64", **chosen)  # fmt: skip
        other = torch_layer_of(p)
        names = [[f"initial_{part}_l{k}" for k in (0, 1)] for part in "hc"[: len(p.state)]]
        values = [np.stack([p.layer.params[n] for n in part]) if learned else np.zeros((2, 19))
                  for part in names]  # fmt: skip
        own = [torch.tensor(value, requires_grad=True) for value in values]
        initial = tuple(part[:, None].expand(2, 4, 19) for part in own)
        x = torch.tensor(p.x, requires_grad=True)
        state = tuple(torch.tensor(part, requires_grad=True) for part in p.state)
        y, final = loop(p, other, x, state if given else initial, initial)
        torch.autograd.backward((y, *final), [torch.tensor(d) for d in (p.dy, *p.dstate)])
        q = p if given else p._replace(state=(None,) * len(p.state))
        y_ours, final_ours, tape = q.forward()
        assert_close((y_ours, *final_ours), tuple(a.detach().numpy() for a in (y, *final)), 1e-13)
        gradients = q.gradients(tape)
        expected = {"x": x.grad}
        if given:
            expected |= dict(zip(("h0", "c0"), (s.grad for s in state), strict=False))
        expected |= {name: v.grad for name, v in other.named_parameters()}
        if learned:
            expected |= {n: part.grad[k] for part, n_of in zip(own, names, strict=True)
                         for k, n in enumerate(n_of)}  # fmt: skip
        for name, wanted in expected.items():
            close_to_torch(gradients[name], wanted.numpy(), 1e-12)


def torch_layer_of(p):
    """The torch layer with the layer's weights, of which torch knows all but the initial state."""
    plain = problem(p.cell, (6, 19, 2), dtype="float64").layer
    plain.assign({name: p.layer.params[name] for name in plain.params})
    return torch_layer(p.cell, plain)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_row_of_state_and_final_outputs(cell, bidirectional):
    """torch's h_n of the last layer, side by side, from an expanded state."""
    p = problem(cell, (6, 19, 2), rows=4, bidirectional=bidirectional, dtype="float64",
                return_="final")  # fmt: skip
    ways = 1 + bidirectional
    own = tuple(torch.tensor(s[:, :1], requires_grad=True) for s in p.state)
    x = torch.tensor(p.x, requires_grad=True)
    state = tuple(s.expand(2 * ways, 4, 19) for s in own)
    _, final = torch_layer(cell, p.layer)(x, state if cell == "lstm" else state[0])
    h = (final[0] if cell == "lstm" else final)[-ways:]
    y = torch.cat(list(h), -1)
    y.backward(torch.tensor(p.dy))
    q = p._replace(state=tuple(s[:, :1] for s in p.state),
                   dstate=tuple(np.zeros_like(d) for d in p.dstate))  # fmt: skip
    y_ours, _, tape = q.forward()
    assert_close(y_ours, y.detach().numpy(), 1e-13)
    gradients = q.gradients(tape)
    for name, wanted in zip(("x", "h0", "c0"), (x, *own), strict=False):
        close_to_torch(gradients[name], wanted.grad.numpy(), 1e-12)
