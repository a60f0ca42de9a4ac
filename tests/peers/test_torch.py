"""The same weights in PyTorch: outputs, states and gradients, and state dicts both ways."""

import itertools

import numpy as np
import pytest
import reference
import torch
from helpers import CELLS, DTYPES, assert_close, assert_same_bits, problem
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

TORCH = {"rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN, "gru": torch.nn.GRU}
TORCH["lstm"] = torch.nn.LSTM
OPTIONS = list(itertools.product([1, 2], [False, True], [True, False], [None, (3, 7, 1, 5)]))


def torch_layer(cell, layer):
    """The torch layer of the same options with the same weights."""
    options = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    if cell == "lstm":
        options["proj_size"] = layer.proj_size
    other = TORCH[cell](
        layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias,
        bidirectional=layer.bidirectional, dtype=getattr(torch, layer.dtype.name), **options,
    )  # fmt: skip
    other.load_state_dict({name: torch.from_numpy(v) for name, v in layer.state_dict().items()})
    return other


def torch_forward(p, other, x, state):
    """Output and final state as a tuple, of torch tensors."""
    if p.lengths is not None:
        x = pack_padded_sequence(x, p.lengths, enforce_sorted=False)
    y, final = other(x, state if p.cell == "lstm" else state[0])
    if p.lengths is not None:
        y, _ = pad_packed_sequence(y, total_length=len(p.x))
    return y, final if p.cell == "lstm" else (final,)


def torch_gradients(p, other):
    """Output, final state, dx, dstate and the parameters' gradients, as arrays."""
    x = torch.tensor(p.x, requires_grad=True)
    state = tuple(torch.tensor(part, requires_grad=True) for part in p.state)
    y, final = torch_forward(p, other, x, state)
    torch.autograd.backward((y, *final), [torch.tensor(d) for d in (p.dy, *p.dstate)])
    results = (y, *final, x.grad, *(part.grad for part in state))
    return [r.detach().numpy() for r in results] + [v.grad.numpy() for v in other.parameters()]


def close_to_torch(actual, expected, tolerance):
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("layers", "bidirectional", "bias", "lengths"), OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients(cell, dtype, layers, bidirectional, bias, lengths):
    check(cell, layers, bidirectional, bias, lengths, dtype)


@pytest.mark.parametrize(("layers", "bidirectional", "bias", "lengths"), OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("proj_size", [1, 7, 18])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections(proj_size, dtype, layers, bidirectional, bias, lengths):
    check("lstm", layers, bidirectional, bias, lengths, dtype, proj_size=proj_size)


def check(cell, layers, bidirectional, bias, lengths, dtype, **options):
    p = problem(
        cell, (6, 19, layers), steps=7, rows=4, lengths=lengths, dtype=dtype,
        bidirectional=bidirectional, bias=bias, **options,
    )  # fmt: skip
    expected = torch_gradients(p, torch_layer(cell, p.layer))
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    outputs = (y, *state)
    for actual, wanted in zip(outputs, expected, strict=False):
        assert_close(actual, wanted, 2e-6 if dtype == "float32" else 1e-13)
    for actual, wanted in zip(p.infer()[:1], expected, strict=False):
        assert_close(actual, wanted, 2e-6 if dtype == "float32" else 1e-13)
    gradients = (dx, *dstate, *p.layer.grads.values())
    for actual, wanted in zip(gradients, expected[len(outputs) :], strict=True):
        close_to_torch(actual, wanted, 2e-5 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize(("layers", "bidirectional", "bias", "lengths"), OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_itself(cell, layers, bidirectional, bias, lengths):
    p = problem(
        cell, (6, 19, layers), steps=7, rows=4, lengths=lengths, dtype="float64",
        bidirectional=bidirectional, bias=bias,
    )  # fmt: skip
    expected = torch_gradients(p, torch_layer(cell, p.layer))
    y, state, cache = p.oracle()
    dx, dstate, grads = reference.backward(cache, p.dy, p.dstate)
    for actual, wanted in zip((y, *state, dx, *dstate, *grads.values()), expected, strict=True):
        close_to_torch(actual, wanted, 1e-13)


STATE_DICTS = [(cell, {"bias": bias}) for cell in CELLS for bias in (True, False)]
STATE_DICTS.append(("lstm", {"proj_size": 7}))


@pytest.mark.parametrize(("cell", "options"), STATE_DICTS)
def test_state_dicts_go_both_ways_without_loss(cell, options):
    p, q = (problem(cell, (6, 19, 2), seed=s, bidirectional=True, **options) for s in (0, 1))
    other = torch_layer(cell, p.layer)
    assert list(other.state_dict()) == list(p.layer.params)
    q.layer.load_state_dict(other.state_dict())
    assert_same_bits(q.layer.flat_params, p.layer.flat_params)
    for name, value in other.state_dict().items():
        assert_same_bits(value.numpy(), p.layer.params[name])


@pytest.mark.parametrize("cell", CELLS)
def test_initial_values_have_torchs_distribution(cell):
    layer = problem(cell, (30, 100)).layer
    torch.manual_seed(0)
    options = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    for name, value in TORCH[cell](30, 100, **options).state_dict().items():
        quantiles = np.linspace(0, 1, 11)
        actual, expected = (np.quantile(a, quantiles) for a in (layer.params[name], value.numpy()))
        np.testing.assert_allclose(actual, expected, atol=0.03)
