"""Networks and modules against PyTorch's, by its own state dicts."""

import numpy as np
import pytest
import torch
from torch import nn

import cylstm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def close(a, b, tolerance=2e-6):
    b = b.detach().numpy() if isinstance(b, torch.Tensor) else b
    np.testing.assert_allclose(a, b, rtol=tolerance * 10, atol=tolerance * 5)


def compare(ours, theirs, x, turned=False):
    """Outputs and gradients; `turned` where PyTorch has features before time."""
    ours.load_state_dict(theirs.state_dict())
    given = torch.tensor(x, requires_grad=True)
    y, tape = ours.forward(x)
    turn = (lambda a: a.permute(1, 2, 0)) if turned else (lambda a: a)
    back = (lambda a: a.permute(2, 0, 1)) if turned else (lambda a: a)
    expected = back(theirs(turn(given)))
    close(y, expected)
    dy = normal(*y.shape, seed=1)
    expected.backward(torch.tensor(dy))
    close(ours.backward(tape, dy), given.grad, 1e-5)
    for name, value in theirs.named_parameters():
        close(ours.grads[name], value.grad, 2e-5)
    return y


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 0, 1), (3, 1, 1, 1), (4, 1, "same", 1), (4, 1, "same", 3), (3, 2, 2, 1), (2, 3, 1, 2),
     (1, 1, 0, 1), (5, 4, 3, 1)],
)  # fmt: skip
def test_conv1d(kernel, stride, padding, dilation, bias):
    torch.manual_seed(0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
    compare(
        cylstm.Conv1d(5, 7, kernel, **options),
        nn.Conv1d(5, 7, kernel, **options),
        normal(20, 3, 5),
        turned=True,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    theirs = nn.LayerNorm(6, bias=bias)
    with torch.no_grad():
        for value in theirs.parameters():
            value.normal_()
    compare(cylstm.LayerNorm(6, bias=bias), theirs, normal(9, 3, 6))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(affine):
    theirs = nn.BatchNorm1d(6, affine=affine, momentum=0.3)
    ours = cylstm.BatchNorm(6, affine=affine, momentum=0.3)
    with torch.no_grad():
        for value in theirs.parameters():
            value.normal_()
    compare(ours, theirs, normal(9, 3, 6), turned=True)
    state = theirs.state_dict()
    for name in ("running_mean", "running_var"):
        close(ours.params[name], state[name])
    x = normal(5, 2, 6, seed=3)
    close(ours(x), theirs.eval()(torch.tensor(x).permute(1, 2, 0)).permute(2, 0, 1))
    theirs.load_state_dict(ours.state_dict(as_torch=True))


def test_batch_norm_of_rows_of_different_lengths():
    """PyTorch has no masks: it gets the steps that are read, as one long row."""
    theirs, ours = nn.BatchNorm1d(4), cylstm.BatchNorm(4)
    x, lengths = normal(9, 3, 4), [9, 2, 5]
    y, tape = ours.forward(x, lengths=lengths)
    read = np.arange(9)[:, None] < np.array(lengths)
    steps = torch.tensor(x[read], requires_grad=True)
    expected = theirs(steps)
    close(y[read], expected)
    dy = normal(*y.shape, seed=1)
    expected.backward(torch.tensor(dy[read]))
    dx = ours.backward(tape, dy)
    close(dx[read], steps.grad, 1e-5)
    assert not dx[~read].any() and not y[~read].any()
    close(ours.params["running_var"], theirs.running_var)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (cylstm.Activation("relu"), nn.ReLU()),
        (cylstm.Activation("leakyrelu", 0.2), nn.LeakyReLU(0.2)),
        (cylstm.Activation("softplus"), nn.Softplus()),
        (cylstm.Softmax(), nn.Softmax(-1)),
        (cylstm.LogSoftmax(), nn.LogSoftmax(-1)),
    ],
)
def test_activations(ours, theirs):
    compare(ours, theirs, normal(9, 3, 6))


class Tagger(nn.Module):
    """What `Sequential` is in PyTorch, where LSTMs return tuples."""

    def __init__(self):
        super().__init__()
        children = [
            nn.Embedding(50, 8), nn.LSTM(8, 6, 2, bidirectional=True), nn.LayerNorm(12),
            nn.Conv1d(12, 10, 3, padding="same"), nn.ReLU(), nn.Linear(10, 4),
        ]  # fmt: skip
        for i, child in enumerate(children):
            self.add_module(str(i), child)

    def forward(self, h):
        for child in self.children():
            if isinstance(child, nn.Conv1d):
                h = child(h.permute(1, 2, 0)).permute(2, 0, 1)
            else:
                h = child(h)
            h = h[0] if isinstance(h, tuple) else h
        return h


def test_a_tagger():
    torch.manual_seed(0)
    theirs = Tagger()
    ours = cylstm.Sequential(
        cylstm.Embedding(50, 8),
        cylstm.LSTM(8, 6, 2, bidirectional=True),
        cylstm.LayerNorm(12),
        cylstm.Conv1d(12, 10, 3, padding="same"),
        cylstm.Activation("relu"),
        cylstm.Linear(10, 4),
    )
    assert list(ours.params) == [name for name, _ in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    ids = np.random.default_rng(0).integers(0, 50, (11, 3))
    y, _, tape = ours.forward(ids)
    expected = theirs(torch.tensor(ids))
    close(y, expected)
    dy = normal(*y.shape, seed=1)
    ours.backward(tape, dy)
    expected.backward(torch.tensor(dy))
    for name, value in theirs.named_parameters():
        close(ours.grads[name], value.grad, 2e-5)
    # Padded rows, as PyTorch sees each alone.
    lengths = [11, 4, 7]
    y, _ = ours(torch.tensor(ids), lengths=lengths)
    for i, n in enumerate(lengths):
        close(y[:n, i], theirs(torch.tensor(ids[:n, i : i + 1]))[:, 0])
    theirs.load_state_dict(ours.state_dict(as_torch=True))
