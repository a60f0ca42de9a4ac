"""Weights to and from PyTorch: every module and format, and what a layer then computes."""

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same_bits

import cylstm

MODULES = {
    "lstm": lambda: torch.nn.LSTM(3, 5, 2, bidirectional=True),
    "projection": lambda: torch.nn.LSTM(3, 5, 2, proj_size=2),
    "no bias": lambda: torch.nn.LSTM(3, 5, bias=False),
    "gru": lambda: torch.nn.GRU(3, 5, 3, bidirectional=True),
    "rnn": lambda: torch.nn.RNN(3, 5),
    "lstm cell": lambda: torch.nn.LSTMCell(3, 5),
    "gru cell": lambda: torch.nn.GRUCell(3, 5),
    "rnn cell": lambda: torch.nn.RNNCell(3, 5, bias=False),
}
EVERY = pytest.mark.parametrize("which", MODULES)


def kind(module):
    return getattr(cylstm, type(module).__name__.removesuffix("Cell"))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@EVERY
def test_every_module_and_the_way_back(which):
    module = MODULES[which]()
    layer = kind(module).from_state_dict(module.state_dict())
    x = torch.randn(1 if "cell" in which else 6, 2, 3)
    expected = module(x[0] if "cell" in which else x)
    y = layer(x)[0]
    first = expected if isinstance(expected, torch.Tensor) else expected[0]
    assert_close(y, first.detach().numpy().reshape(y.shape), 2e-6)
    twin = MODULES[which]()
    if "cell" not in which:
        twin.load_state_dict(layer.state_dict(as_torch=True))
        assert all(torch.equal(a, b) for a, b in
                   zip(twin.parameters(), module.parameters(), strict=True))  # fmt: skip
        # What is loaded is a copy.
        before = layer.flat_params.copy()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert_same_bits(layer.flat_params, before)


FORMATS = {
    "parameters": (lambda m: dict(m.named_parameters()), 0),
    "float16": (lambda m: m.half().state_dict(), 1e-3),
    "bfloat16": (lambda m: m.bfloat16().state_dict(), 1e-2),
    "bfloat16 parameters": (lambda m: dict(m.bfloat16().named_parameters()), 1e-2),
    "float64": (lambda m: m.double().state_dict(), 0),
    "a view": (lambda m: {n: v.t().contiguous().t() for n, v in m.state_dict().items()}, 0),
}


@pytest.mark.parametrize("how", FORMATS)
@EVERY
def test_formats(which, how):
    module = MODULES[which]()
    exact = kind(module).from_state_dict(module.state_dict())
    read, tolerance = FORMATS[how]
    layer = kind(module).from_state_dict(read(module))
    assert layer.dtype == ("float64" if how == "float64" else "float32")
    assert_close(layer.flat_params, exact.flat_params, tolerance)
    other = kind(module)(layer.input_size, layer.hidden_size, layer.num_layers, bias=layer.bias,
                         bidirectional=layer.bidirectional, rng=1,
                         **({"proj_size": 2} if which == "projection" else {}))  # fmt: skip
    other.load_state_dict(read(module))
    assert_close(other.flat_params, exact.flat_params, tolerance)
    if "cell" not in which:
        other.assign(np.zeros_like(other.flat_params))
        other.assign(read(module))
        assert_close(other.flat_params, exact.flat_params, tolerance)


UNREADABLE = {
    "meta": lambda: torch.ones(20, device="meta"),
    "sparse": lambda: torch.ones(20).to_sparse(),
    "int8": lambda: torch.ones(20, dtype=torch.int8),
    "int64": lambda: torch.ones(20, dtype=torch.int64),
    "bool": lambda: torch.ones(20) > 0,
    "complex": lambda: torch.ones(20, dtype=torch.complex64),
}


@pytest.mark.parametrize("which", UNREADABLE)
def test_what_cannot_be_read_is_named(which):
    module = torch.nn.LSTM(3, 5)
    state = module.state_dict() | {"bias_hh_l0": UNREADABLE[which]()}
    layer = cylstm.LSTM(3, 5, rng=0)
    before = layer.flat_params.copy()
    for load in (layer.load_state_dict, cylstm.LSTM.from_state_dict, layer.assign):
        if which == "int64" and load == layer.assign:
            continue
        with pytest.raises((TypeError, ValueError), match=r"^bias_hh_l0: expected "):
            load(state)
    assert_same_bits(layer.flat_params, before)
    with pytest.raises(TypeError, match=r"pass its state_dict\(\)"):
        layer.load_state_dict(module)


def test_numbers_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer = cylstm.GRU(3, 5, rng=0)
    state = {name: value.astype(ml_dtypes.bfloat16) for name, value in layer.state_dict().items()}
    for loaded in (cylstm.GRU.from_state_dict(state), cylstm.GRU(3, 5)):
        loaded.load_state_dict(state)
        assert_close(loaded.flat_params, layer.flat_params, 1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_same_warning(layers, dropout, recwarn):
    torch.nn.LSTM(3, 5, layers, dropout=dropout)
    theirs = [w.category for w in recwarn.list]
    recwarn.clear()
    cylstm.LSTM(3, 5, layers, dropout=dropout)
    assert [w.category for w in recwarn.list] == theirs
