"""Networks of PyTorch's made ours and back: the same outputs, and the same weights bit by bit."""

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from torch import nn

import cylstm
import cylstm.torch


def drawn(module, seed=0):
    """Give all parameters and statistics values of their own, variances positive ones."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(std=0.5)
    return module.eval()


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def parts(value):
    """Output and states as a flat tuple of arrays."""
    if isinstance(value, tuple):
        return [array for part in value for array in parts(part)]
    return [np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)]


def assert_close(actual, expected):
    actual, expected = parts(actual), parts(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 if a.dtype == np.float32 else 1e-12)


def assert_same_weights(ours, theirs):
    found = ours.state_dict()
    expected = {k: v for k, v in theirs.state_dict().items() if not k.endswith("batches_tracked")}
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_same_bits(found[name], value.numpy())


def there_and_back(ours, theirs):
    """Weights there and back; the torch module made of ours."""
    assert_same_weights(ours, theirs)
    back = cylstm.to_torch(ours)
    assert list(back.state_dict()) == list(theirs.state_dict())
    assert_same_weights(ours, back)
    return back.eval()


LAYERS = {
    "LSTM": lambda: nn.LSTM(5, 7, 2, bidirectional=True, dropout=0.3),
    "LSTM projected": lambda: nn.LSTM(5, 7, bias=False, proj_size=3, batch_first=True),
    "LSTM float64": lambda: nn.LSTM(5, 7, dtype=torch.float64),
    "GRU": lambda: nn.GRU(5, 7, 2, batch_first=True),
    "RNN": lambda: nn.RNN(5, 7),
    "RNN relu": lambda: nn.RNN(5, 7, nonlinearity="relu", bidirectional=True),
    "twin": lambda: cylstm.torch.GRU(5, 7),
    "Linear": lambda: nn.Linear(5, 7),
    "Linear without bias": lambda: nn.Linear(5, 7, bias=False),
    "LayerNorm": lambda: nn.LayerNorm(5, eps=1e-3),
    "LayerNorm without bias": lambda: nn.LayerNorm(5, bias=False),
    "Dropout": lambda: nn.Dropout(0.3),
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "ELU": lambda: nn.ELU(0.7),
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "Hardsigmoid": nn.Hardsigmoid,
    "Softmax": lambda: nn.Softmax(-1),
    "LogSoftmax": lambda: nn.LogSoftmax(-1),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_layers(kind):
    theirs = drawn(LAYERS[kind]())
    x = normal(4, 3, 5).double() if kind == "LSTM float64" else normal(4, 3, 5)
    ours = cylstm.from_torch(theirs)
    assert_close(ours(x), theirs(x))
    back = there_and_back(ours, theirs)
    assert_close(back(x), theirs(x))
    original = kind.split()[0] if kind != "twin" else "GRU"
    assert type(back) is getattr(nn, original)
    if kind != "twin":
        assert repr(back) == repr(theirs)


def test_identity():
    x = normal(4, 3, 5)
    assert_close(cylstm.from_torch(nn.Identity())(x), x)
    y, _ = cylstm.from_torch(nn.Identity()).forward(x)
    assert_close(y, x)


def test_embedding():
    theirs = drawn(nn.Embedding(9, 4, padding_idx=-2))
    ids = torch.tensor([[1, 2, 7], [0, 8, 8]])
    ours = cylstm.from_torch(theirs)
    assert ours.padding_idx == 7
    assert_close(ours(ids.numpy()), theirs(ids))
    assert there_and_back(ours, theirs).padding_idx == 7


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(affine):
    theirs = drawn(nn.BatchNorm1d(5, eps=1e-3, momentum=0.3, affine=affine))
    x = normal(8, 5)
    ours = cylstm.from_torch(theirs)
    assert_close(ours(x), theirs(x))
    assert_close(there_and_back(ours, theirs)(x), theirs(x))
    assert_close(ours.forward(x)[0], theirs.train()(x))
    assert_close(ours(x), theirs.eval()(x))  # moved by the same


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "bias": False},
                                     {"padding": "same", "dilation": 2},
                                     {"padding": "valid"}])  # fmt: skip
def test_conv(options):
    theirs = drawn(nn.Sequential(nn.Conv1d(5, 6, 3, **options), nn.ReLU(), nn.Softmax(1)))
    x = normal(2, 5, 11)
    ours = cylstm.from_torch(theirs)
    assert_close(ours(x.permute(2, 0, 1))[0].transpose(1, 2, 0), theirs(x))
    assert_same_weights(ours, theirs)
    assert_close(cylstm.to_torch(ours[:2])(x), theirs[:2](x))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "RNN relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind, bias):
    options = {"nonlinearity": "relu"} if kind == "RNN relu" else {}
    theirs = drawn(getattr(nn, f"{kind.split()[0]}Cell")(5, 7, bias=bias, **options))
    x, states = normal(6, 3, 5), None
    for step in x:
        states = theirs(step, states)
    h = states[0] if kind == "LSTM" else states
    ours = cylstm.from_torch(theirs)
    assert_close(ours(x)[0][-1], h)
    for name, value in theirs.state_dict().items():
        assert_same_bits(ours.params[f"{name}_l0"], value.numpy())


# Networks


def test_a_sequential():
    theirs = drawn(nn.Sequential(
        nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh()), nn.Dropout(0.5),
        nn.Linear(8, 3), nn.LogSoftmax(-1),
    ))  # fmt: skip
    ours = cylstm.from_torch(theirs)
    assert_close(ours(normal(4, 3, 5)), theirs(normal(4, 3, 5)))
    back = there_and_back(ours, theirs)
    assert repr(back) == repr(theirs)
    assert_close(back(normal(4, 3, 5)), theirs(normal(4, 3, 5)))


def test_a_sequential_with_recurrent_layers():
    theirs = drawn(nn.Sequential(
        nn.Embedding(20, 5), nn.LSTM(5, 6, bidirectional=True, batch_first=True),
        nn.GRU(12, 4, batch_first=True), nn.Linear(4, 3),
    ))  # fmt: skip
    ids = torch.arange(15).reshape(3, 5)
    expected = ids
    for part in theirs:
        expected = part(expected)
        expected = expected[0] if isinstance(expected, tuple) else expected
    ours = cylstm.from_torch(theirs)
    assert_close(ours(ids.numpy())[0], expected)
    there_and_back(ours, theirs)


class Line(nn.Module):
    """Children one after the other, with axes turned on the way."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.conv = nn.Sequential(nn.Conv1d(5, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.encoders = nn.ModuleList([nn.LSTM(n, 4, batch_first=True) for n in (6, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, ids):
        x = self.conv(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        for encoder in self.encoders:
            x, _ = encoder(x)
        return self.head(x)


IDS = torch.arange(15).reshape(3, 5)


def test_children_one_after_the_other():
    theirs = drawn(Line()).train()
    ours = cylstm.from_torch(theirs, example=IDS)
    assert theirs.training and theirs.conv[1].training
    assert_close(ours(IDS.numpy())[0], theirs.eval()(IDS))
    assert_same_weights(ours, theirs)
    assert list(ours.state_dict())[1] == "conv.0.weight"


def test_a_forward_of_its_own_needs_an_example():
    with pytest.raises(TypeError, match=r"module: expected .*or example=.*, got .*\.Line"):
        cylstm.from_torch(drawn(Line()))


def test_a_softmax_that_the_example_shows_to_be_of_features():
    theirs = drawn(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)))
    x = normal(4, 5)
    assert_close(cylstm.from_torch(theirs, example=x)(x)[0], theirs(x))
    with pytest.raises(ValueError, match=r"example: .* differs by"):
        cylstm.from_torch(theirs, example=normal(4, 3, 5))


class Doubled(Line):
    def forward(self, ids):
        return 2 * super().forward(ids)


class Shortened(Line):
    def forward(self, ids):
        return super().forward(ids)[:, -1]


@pytest.mark.parametrize(("kind", "how"), [(Doubled, "differs by"), (Shortened, r"\(3, 5, 3\)")])
def test_children_that_are_not_all(kind, how):
    with pytest.raises(ValueError, match=f"example: .*{how}"):
        cylstm.from_torch(drawn(kind()), example=IDS)


def test_tied_weights():
    theirs = nn.Sequential(nn.Embedding(20, 5), nn.LSTM(5, 5), nn.Linear(5, 20))
    theirs[2].weight = theirs[0].weight
    drawn(theirs)
    ours = cylstm.from_torch(theirs)
    assert ours[2].tied_to is ours[0]
    expected = theirs[2](theirs[1](theirs[0](IDS))[0])
    assert_close(ours(IDS.numpy())[0], expected)
    back = cylstm.to_torch(ours)
    assert back[2].weight is back[0].weight
    assert torch.equal(back[2].bias, theirs[2].bias)


def test_other_shared_weights_are_refused():
    theirs = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    theirs[1].weight = theirs[0].weight
    with pytest.raises(ValueError, match=r"\['1'\]: .* weight of its own, got that of '0.weight'"):
        cylstm.from_torch(theirs)


def test_a_module_that_is_there_twice():
    layer = drawn(nn.Linear(5, 5))
    theirs = nn.Sequential(layer, nn.Tanh(), layer)
    ours = cylstm.from_torch(theirs)
    assert ours[0] is ours[2]
    assert_close(ours(normal(4, 3, 5)), theirs(normal(4, 3, 5)))
    back = cylstm.to_torch(ours)
    assert back[0] is back[2]


def test_frozen_parameters():
    theirs = nn.Sequential(nn.LSTMCell(5, 4), nn.Linear(4, 3))
    theirs[0].weight_hh.requires_grad_(False)
    theirs[1].bias.requires_grad_(False)
    ours = cylstm.from_torch(theirs)
    assert ours[0].frozen == {"weight_hh_l0"} and ours[1].frozen == {"bias"}
    back = cylstm.to_torch(ours)
    frozen = {name for name, p in back.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight_hh_l0", "1.bias"}


def test_half_precision_becomes_float32():
    theirs = nn.GRU(5, 7).bfloat16()
    ours = cylstm.from_torch(theirs)
    assert ours.dtype == np.float32
    assert_same_bits(ours.params["weight_ih_l0"], theirs.weight_ih_l0.detach().float().numpy())


# What is refused


def hooked():
    module = nn.Linear(5, 5)
    module.register_forward_hook(lambda *given: None)
    return module


class Scaled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 5))
        self.scale = nn.Parameter(torch.ones(5))


REFUSED = {
    "no module": (lambda: 3, "module: expected a torch.nn.Module, got int"),
    "unknown": (lambda: nn.Sequential(nn.Linear(5, 5), nn.GELU()), r"module\['1'\].*GELU"),
    "deep": (lambda: nn.Sequential(nn.Sequential(nn.Bilinear(5, 5, 5))), r"\['0\.0'\].*Bilinear"),
    "derived": (lambda: type("Mine", (nn.LSTM,), {})(5, 7), "Mine"),
    "hook": (lambda: nn.Sequential(hooked()), r"\['0'\]: expected a module without forward hooks"),
    "groups": (lambda: nn.Conv1d(4, 4, 3, groups=2), "Conv1d with groups=1, got 2"),
    "padding": (lambda: nn.Conv1d(4, 4, 3, padding_mode="circular"), "padding_mode='zeros'"),
    "max_norm": (lambda: nn.Embedding(5, 4, max_norm=1.0), "max_norm=None, got 1.0"),
    "frequencies": (lambda: nn.Embedding(5, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
    "no statistics": (lambda: nn.BatchNorm1d(5, track_running_stats=False), "track_running_stats"),
    "momentum": (lambda: nn.BatchNorm1d(5, momentum=None), "a number as momentum, got None"),
    "no weights": (lambda: nn.LayerNorm(5, elementwise_affine=False), "elementwise_affine=True"),
    "two axes": (lambda: nn.LayerNorm((4, 5)), "normalized_shape"),
    "beta": (lambda: nn.Softplus(2), "Softplus with beta=1, got 2"),
    "over time": (lambda: nn.Sequential(nn.Softmax(1)), "Softmax of features, dim=-1, .*dim=1"),
    "one axis": (lambda: nn.Softmax(1), "dim=-1, .* got dim=1"),
    "of channels": (lambda: nn.Sequential(nn.Conv1d(5, 5, 1), nn.Softmax(-1)), "dim=1, .* dim=-1"),
    "any axis": (lambda: nn.Softmax(None), "dim=-1, .* got dim=None"),
    "axes": (lambda: nn.Sequential(nn.Conv1d(5, 5, 3), nn.Linear(5, 5)), "Conv1d.*and Linear"),
    "bidirectional": (lambda: nn.Sequential(nn.LSTM(5, 6, bidirectional=True), nn.Linear(6, 2)),
                      "12"),
    "device": (lambda: nn.Linear(5, 5, device="meta"), "meta device"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    make, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=message):
        cylstm.from_torch(make())


def test_parameters_beside_the_children_are_refused():
    with pytest.raises(ValueError, match=r"known modules only, got \['scale'\]"):
        cylstm.from_torch(Scaled(), example=normal(3, 5))


NOT_IN_TORCH = {
    "no module": (lambda: 3, "module: expected a module of cylstm, got int"),
    "class": (lambda: cylstm.Sequential(cylstm.MinGRU(5, 7)), r"module\['0'\].*MinGRU"),
    "peepholes": (lambda: cylstm.LSTM(5, 7, peepholes=True), "peepholes=False, .* got True"),
    "merge": (lambda: cylstm.GRU(5, 7, bidirectional=True, merge_mode="sum"), "merge_mode"),
    "reset_after": (lambda: cylstm.GRU(5, 7, reset_after=False), "reset_after=True"),
    "activations": (lambda: cylstm.LSTM(5, 7, activations={"cell": "relu"}), "activations"),
    "sizes": (lambda: cylstm.LSTM(5, (7, 8)), "hidden_size"),
    "bias": (lambda: cylstm.LSTM(5, 7, bias="single"), "bias"),
    "activation": (lambda: cylstm.Linear(5, 7, activation="tanh"), "activation=None"),
    "causal": (lambda: cylstm.Conv1d(5, 7, 3, padding="causal"), "causal"),
    "variational": (lambda: cylstm.Dropout(0.1, variational=True), "variational=False"),
    "affine": (lambda: cylstm.Activation("affine", 2, 1), "Activation"),
    "hard": (lambda: cylstm.Activation("hardsigmoid", 0.2, 0.5), "Activation"),
}


@pytest.mark.parametrize("what", NOT_IN_TORCH)
def test_what_torch_does_not_have(what):
    make, message = NOT_IN_TORCH[what]
    with pytest.raises((TypeError, ValueError), match=message):
        cylstm.to_torch(make())
