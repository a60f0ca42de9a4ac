"""Twins of torch.nn's recurrent layers do what those do, and are used in their place."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import cylstm
import cylstm.torch
from cylstm.torch import engine as engines

KINDS = {
    "LSTM": {},
    "LSTM projected": {"proj_size": 5},
    "GRU": {},
    "RNN": {"nonlinearity": "tanh"},
    "RNN relu": {"nonlinearity": "relu"},
}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-10}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def pair(kind, **options):
    """A layer of torch's, and a twin with the same weights."""
    name = kind.split()[0]
    made = []
    for module in (torch.nn, cylstm.torch):
        torch.manual_seed(0)
        made.append(getattr(module, name)(6, 9, **KINDS[kind], **options))
    return made


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def results(module, x, state=None, lengths=None, seed=1):
    """Outputs, final states, and the gradients of everything for random gradients of those."""
    leaves = [t.clone().requires_grad_() for t in (x, *(state or ()))]
    given = leaves[0]
    if lengths is not None:
        given = pack_padded_sequence(given, lengths, module.batch_first, enforce_sorted=False)
    hx = None if state is None else tuple(leaves[1:])
    hx = hx[0] if hx is not None and module.mode != "LSTM" else hx
    y, final = module(given, hx)
    if lengths is not None:
        y, _ = pad_packed_sequence(y, module.batch_first)
    found = [y, *parts(final)]
    draw = torch.Generator().manual_seed(seed)
    torch.autograd.backward(
        found, [torch.randn(a.shape, dtype=a.dtype, generator=draw) for a in found]
    )
    leaves += module.parameters()
    return [a.detach() for a in found] + [leaf.grad for leaf in leaves]


def assert_alike(actual, expected, dtype):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        tolerance = TOLERANCE[dtype]
        scale = max(1.0, e.abs().max().item() if e.numel() else 0)
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * scale)


def random_state(module, rows, dtype):
    n = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(n, *rows, module.proj_size or module.hidden_size, dtype=dtype)
    if module.mode != "LSTM":
        return (h,)
    return h, torch.randn(n, *rows, module.hidden_size, dtype=dtype)


LAYOUTS = ["plain", "batch_first", "unbatched", "packed", "packed batch_first"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients(kind, layout, dtype):
    for layers, bidirectional, bias, with_state in [
        (1, False, True, True), (2, True, True, False), (2, False, False, True),
        (1, True, False, False), (3, True, True, True),
    ]:  # fmt: skip
        first = layout.endswith("batch_first")
        other, twin = pair(
            kind, num_layers=layers, bidirectional=bidirectional, bias=bias, batch_first=first,
            dtype=dtype,
        )  # fmt: skip
        x = torch.randn((7, 6) if layout == "unbatched" else (4, 7, 6) if first else (7, 4, 6),
                        dtype=dtype)  # fmt: skip
        rows = () if layout == "unbatched" else (4,)
        state = random_state(twin, rows, dtype) if with_state else None
        lengths = [3, 7, 1, 5] if layout.startswith("packed") else None
        expected = results(other, x, state, lengths)
        assert_alike(results(twin, x, state, lengths), expected, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    _, twin = pair(kind, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in twin.named_parameters()]
    values = [p.detach().requires_grad_() for p in twin.parameters()]
    state = [s.requires_grad_() for s in random_state(twin, (2,), torch.float64)]

    def run(x, *others):
        hx = tuple(others[: len(state)])
        weights = dict(zip(names, others[len(state) :], strict=True))
        y, final = torch.func.functional_call(twin, weights, (x, hx if len(hx) > 1 else hx[0]))
        return y, *parts(final)

    assert torch.autograd.gradcheck(run, (x, *state, *values), fast_mode=True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_losses_over_100_steps(kind):
    torch.manual_seed(0)
    x, goal = torch.randn(10, 8, 6), torch.randn(8, 9)
    losses = []
    for module in pair(kind):
        optimizer, found = torch.optim.Adam(module.parameters(), lr=0.01), []
        for _ in range(100):
            optimizer.zero_grad()
            loss = ((module(x)[0][-1] - goal) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)
    assert losses[0][-1] < 0.7 * losses[0][0]


# Weights


def halved_data(twin):
    twin.weight_hh_l0.data.mul_(0.5)


def other_data(twin):
    twin.weight_hh_l0.data = twin.weight_hh_l0.detach() * 0.5


def transposed_data(twin):
    twin.weight_hh_l0.data = twin.weight_hh_l0.detach().T.contiguous().T * 0.5
    assert not twin.weight_hh_l0.is_contiguous()


def through_numpy(twin):
    twin.weight_hh_l0.detach().numpy()[...] *= 0.5


def another_parameter(twin):
    twin.weight_hh_l0 = torch.nn.Parameter(twin.weight_hh_l0.detach() * 0.5)


def loaded(twin):
    state = twin.state_dict()
    twin.load_state_dict(state | {"weight_hh_l0": state["weight_hh_l0"] * 0.5})


def initialised(twin):
    torch.manual_seed(5)
    twin.reset_parameters()


def optimised(twin):
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    twin(torch.ones(3, 2, 6))[0].sum().backward()
    optimizer.step()


CHANGES = [halved_data, other_data, transposed_data, through_numpy, another_parameter, loaded,
           initialised, optimised]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_changed_weights_are_seen(change, mode):
    other, twin = pair("LSTM")
    x = torch.randn(4, 3, 6)
    with mode():
        before = twin(x)[0]
    change(twin)
    with mode():
        after = twin(x)[0]
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(after, other(x)[0], rtol=0, atol=2e-6)
    assert not torch.equal(before, after)


def test_a_square_parameter_turned_where_it_lies_is_seen():
    other, twin = pair("RNN")
    x = torch.randn(4, 3, 6)
    twin(x)
    twin.weight_hh_l0.data = twin.weight_hh_l0.data.t()
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(x)[0], other(x)[0], rtol=0, atol=2e-6)


def test_weights_made_in_inference_mode_are_seen():
    with torch.inference_mode():
        other, twin = pair("GRU")
        twin(torch.randn(4, 3, 6))
        twin.weight_ih_l0.mul_(2)
        other.load_state_dict(twin.state_dict())
        x = torch.randn(4, 3, 6)
        torch.testing.assert_close(twin(x)[0], other(x)[0], rtol=0, atol=2e-6)


def test_unchanged_weights_are_packed_once():
    _, twin = pair("LSTM")
    with torch.no_grad():
        twin(torch.randn(4, 3, 6))
        packed = twin._engine.layer._packed
        assert packed is not None
        for module in (twin, twin.eval(), twin.train()):
            module(torch.randn(2, 5, 6))
        assert twin._engine.layer._packed is packed


def test_a_parameter_of_another_shape_is_refused():
    _, twin = pair("GRU")
    twin.weight_hh_l0.data = torch.zeros(27, 8)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0: expected .*27, 9.*, got .*27, 8"):
        twin(torch.randn(4, 3, 6))


def test_options_may_be_changed():
    other, twin = pair("GRU", num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 6)
    twin(x)
    for module in (other, twin):
        module.dropout, module.batch_first = 0.0, True
    torch.testing.assert_close(twin(x)[0], other(x)[0], rtol=0, atol=2e-6)


# As a module


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_torch_has(kind):
    other, twin = pair(kind, num_layers=2, bidirectional=True)
    assert isinstance(twin, type(other))
    assert repr(twin) == repr(other)
    assert list(twin.state_dict()) == list(other.state_dict())
    for (name, a), (other_name, b) in zip(
        twin.named_parameters(), other.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(a, b)  # of the same seed


def saved(twin):
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved]
)  # fmt: skip
def test_copies(copied):
    _, twin = pair("LSTM", num_layers=2)
    x = torch.randn(4, 3, 6)
    expected = twin(x)[0]
    other = copied(twin)
    assert type(other) is cylstm.torch.LSTM
    assert torch.equal(other(x)[0], expected)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert torch.equal(twin(x)[0], expected)
    assert not torch.equal(other(x)[0], expected)


def test_hooks_and_other_dtypes():
    other, twin = pair("GRU")
    calls = []
    twin.register_forward_hook(lambda module, given, found: calls.append(found[0].shape))
    for module in (other, twin):
        module.to(torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(twin(x)[0], other(x)[0], rtol=0, atol=1e-13)
    twin.float()
    assert twin(x.float())[0].dtype == torch.float32
    assert calls == [(4, 3, 9), (4, 3, 9)]


def test_functional_call_and_parametrize():
    other, twin = pair("LSTM", dtype=torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    doubled = {name: (2 * p.detach()).requires_grad_() for name, p in twin.named_parameters()}
    found = []
    for module in (other, twin):
        y = torch.func.functional_call(module, doubled, (x,))[0]
        found.append((y, *torch.autograd.grad(y.sum(), list(doubled.values()))))
    assert_alike(found[1], found[0], torch.float64)

    class Halved(torch.nn.Module):
        def forward(self, weight):
            return weight / 2

    for module in (other, twin):
        parametrize.register_parametrization(module, "weight_hh_l0", Halved())
    ys = [module(x)[0] for module in (other, twin)]
    grads = [
        torch.autograd.grad(y.sum(), module.parametrizations.weight_hh_l0.original)[0]
        for y, module in zip(ys, (other, twin), strict=True)
    ]
    assert_alike([ys[1], grads[1]], [ys[0], grads[0]], torch.float64)


# Autograd


def test_a_second_derivative_is_refused():
    _, twin = pair("LSTM")
    x = torch.randn(4, 3, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(twin(x)[0].sum(), x, create_graph=True)
    penalty = gradient.norm() + twin(x)[0].sum()
    with pytest.raises(RuntimeError, match=r"cylstm\.torch: expected a first derivative"):
        penalty.backward()


def test_an_input_changed_in_place_is_refused():
    _, twin = pair("GRU")
    x = torch.randn(4, 3, 6)
    y, _ = twin(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_outputs_and_states_may_be_changed_in_place():
    other, twin = pair("LSTM", dtype=torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    y, _ = twin(x)
    y.mul_(2)
    y.sum().backward()
    (2 * other(x)[0]).sum().backward()
    for a, b in zip(twin.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


def test_a_tape_lives_as_long_as_autograd_needs_it():
    _, twin = pair("LSTM")
    gc.collect()
    before = len(engines._kept)
    x = torch.randn(4, 3, 6, requires_grad=True)
    y, _ = twin(x)
    assert len(engines._kept) == before + 1
    loss = y.sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * first)
    assert len(engines._kept) == before  # though the loss is still there
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    del y, loss, _
    with torch.no_grad():
        twin(x)
    assert len(engines._kept) == before


def test_only_gradients_that_are_needed():
    _, twin = pair("GRU")
    twin.weight_hh_l0.requires_grad_(False)
    x = torch.randn(4, 3, 6)
    twin(x)[0].sum().backward()
    assert twin.weight_hh_l0.grad is None
    assert twin.weight_ih_l0.grad is not None
    twin.requires_grad_(False)
    assert not twin(x)[0].requires_grad
    assert twin(x.requires_grad_())[0].requires_grad


def test_gradients_of_the_state_alone():
    other, twin = pair("LSTM", dtype=torch.float64)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    found = []
    for module in (other, twin):
        _, (_, c) = module(x)
        found.append(torch.autograd.grad(c.sum(), list(module.parameters())))
    assert_alike(found[1], found[0], torch.float64)


def test_checkpointing():
    _, twin = pair("GRU")
    x = torch.randn(4, 3, 6, requires_grad=True)
    expected = torch.autograd.grad(twin(x)[0].sum(), x)[0]
    y = torch.utils.checkpoint.checkpoint(lambda x: twin(x)[0], x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_copied_tapes_are_refused():
    _, twin = pair("GRU")
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        y, _ = twin(torch.randn(4, 3, 6))
    with pytest.raises(RuntimeError, match="saved_tensors_hooks that copy"):
        y.sum().backward()


# Dropout


def test_dropout_is_seeded_by_torch():
    _, twin = pair("GRU", num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 6)
    torch.manual_seed(7)
    first, second = twin(x)[0], twin(x)[0]
    torch.manual_seed(7)
    with torch.no_grad():  # it is training all the same
        again = twin(x)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_dropout_off():
    other, twin = pair("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 6)
    expected = results(other.eval(), x)
    assert_alike(results(twin.eval(), x), expected, torch.float32)


def test_dropout_scales_what_it_keeps():
    _, twin = pair("RNN relu", num_layers=2, dropout=0.75, bias=False)
    with torch.no_grad():
        for layer in (0, 1):
            getattr(twin, f"weight_ih_l{layer}").copy_(torch.eye(9)[:, : 6 if layer == 0 else 9])
            getattr(twin, f"weight_hh_l{layer}").zero_()
    y, _ = twin(torch.ones(1, 2000, 6))
    dropped = y[0, :, :6]
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert abs(dropped.mean().item() - 1) < 0.05


def test_gradients_through_dropout():
    _, twin = pair("GRU", num_layers=3, dropout=0.4, dtype=torch.float64)

    def run(x):
        torch.manual_seed(3)
        return twin(x)[0]

    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, x, fast_mode=True)


# Inference and sizes


def test_inference_keeps_nothing_and_copies_nothing(monkeypatch):
    _, twin = pair("LSTM")
    x = torch.randn(4, 3, 6)
    seen = []
    run = engines.Engine.run

    def watched(engine, *given):
        seen.append(given)
        return run(engine, *given)

    monkeypatch.setattr(engines.Engine, "run", watched)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, _ = twin(x)
        assert not y.requires_grad
    for given in seen:
        assert given[0].ctypes.data == x.data_ptr()
        assert not given[3]


def test_packed_sequences_cost_their_steps():
    _, twin = pair("GRU", num_layers=2)
    rows = [torch.randn(n, 6) for n in (2, 50, 3)]
    y, _ = twin(pack_sequence(rows, enforce_sorted=False))
    owner = engines._kept[max(engines._kept)]
    assert owner.tape.batch.x.shape == (55, 1, 6)
    assert [call.x.shape[:2] for call in owner.tape.calls] == [(55, 1)] * 2
    for i, row in enumerate(rows):
        alone = twin(row)[0]
        assert torch.equal(pad_packed_sequence(y)[0][: len(row), i], alone)  # bits of its own


def test_threads_are_torchs(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert engines.threads() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    assert engines.threads() == cylstm.get_num_threads()


@pytest.mark.parametrize("strange", ["expanded", "transposed", "strided", "negated"])
def test_any_memory_layout(strange):
    other, twin = pair("GRU")
    x = {
        "expanded": torch.randn(1, 1, 6).expand(4, 3, 6),
        "transposed": torch.randn(3, 4, 6).transpose(0, 1),
        "strided": torch.randn(4, 3, 12)[..., ::2],
        "negated": torch.randn(4, 3, 6, dtype=torch.complex64).conj().imag,
    }[strange]
    h = torch.randn(3, 1, 9).transpose(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(twin(x, h)[0], other(x, h)[0], rtol=0, atol=2e-6)
    assert_alike(results(twin, x, (h,)), results(other, x, (h,)), torch.float32)


WRONG = {
    "size": (torch.zeros(4, 3, 5), None),
    "axes": (torch.zeros(4, 3, 6, 1), None),
    "dtype": (torch.zeros(4, 3, 6, dtype=torch.float64), None),
    "state's size": (torch.zeros(4, 3, 6), torch.zeros(1, 3, 8)),
    "state's rows": (torch.zeros(4, 3, 6), torch.zeros(1, 2, 9)),
    "state's axes": (torch.zeros(4, 3, 6), torch.zeros(1, 9)),
    "unbatched": (torch.zeros(4, 6), torch.zeros(1, 3, 9)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_torchs_errors(wrong):
    other, twin = pair("GRU")
    with pytest.raises((RuntimeError, ValueError)) as expected:
        other(*WRONG[wrong])
    with pytest.raises(expected.type) as actual:
        twin(*WRONG[wrong])
    if "axes" not in wrong and wrong != "unbatched":  # worded by the class
        assert str(actual.value) == str(expected.value)
    with pytest.raises(RuntimeError, match=r"expected torch\.float32 on cpu .* got torch\.float64"):
        twin(torch.zeros(4, 3, 6), torch.zeros(1, 3, 9, dtype=torch.float64))


def test_a_state_of_too_many_parts():
    _, twin = pair("LSTM")
    with pytest.raises(ValueError, match="hx: expected 2 tensors, got 3"):
        twin(torch.zeros(4, 3, 6), (torch.zeros(1, 3, 9),) * 3)


# What is left to torch


def test_what_is_not_ours_is_left_to_torch():
    other, twin = pair("GRU")
    x = torch.randn(4, 3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert twin(x)[0].dtype == other(x)[0].dtype
    weights = {name: p.detach() for name, p in twin.named_parameters()}
    found = [
        torch.func.grad(lambda w, m=m: torch.func.functional_call(m, w, (x,))[0].sum())(weights)
        for m in (other, twin)
    ]
    assert torch.equal(found[0]["weight_hh_l0"], found[1]["weight_hh_l0"])
    for module in (other, twin):
        module.bfloat16()
    assert torch.equal(twin(x.bfloat16())[0], other(x.bfloat16())[0])
    assert twin.to("meta")(x.bfloat16().to("meta"))[0].shape == (4, 3, 9)


def test_traces_hold_more_than_the_values_of_one_call():
    from torch.fx.experimental.proxy_tensor import make_fx

    _, twin = pair("GRU")
    x, other = torch.randn(2, 4, 3, 6)
    with torch.no_grad():
        traced = make_fx(lambda x: twin(x)[0])(x)
        torch.testing.assert_close(traced(other), twin(other)[0], rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own
def test_exported_programs_need_no_operator_of_ours():
    _, twin = pair("GRU")
    x = torch.randn(4, 3, 6)
    program = torch.export.export(twin, (x,))
    assert "cylstm" not in str(program.graph)
    torch.testing.assert_close(program.module()(x)[0], twin(x)[0], rtol=0, atol=2e-6)


# Whole networks


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.ModuleDict({"deep": torch.nn.LSTM(6, 9, batch_first=True)})
        self.second = torch.nn.GRU(9, 4, batch_first=True)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(self.encoder["deep"](x)[0])[0])


def test_accelerate_and_restore():
    net = Tagger()
    x = torch.randn(3, 5, 6)
    expected, parameters = net(x), list(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert cylstm.torch.accelerate(net) is net
    assert type(net.encoder["deep"]) is cylstm.torch.LSTM
    assert type(net.second) is cylstm.torch.GRU
    torch.testing.assert_close(net(x), expected, rtol=0, atol=2e-6)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net(x).sum().backward()
    optimizer.step()
    trained = net(x)
    assert not torch.allclose(trained, expected, atol=1e-3)
    assert cylstm.torch.accelerate(net) is net  # again: nothing more to do
    assert cylstm.torch.restore(net) is net
    assert type(net.encoder["deep"]) is torch.nn.LSTM
    assert type(net.second) is torch.nn.GRU
    assert not any(name in vars(net.second) for name in ("_engine", "_number"))
    torch.testing.assert_close(net(x), trained, rtol=0, atol=2e-6)
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_accelerate_one_layer_but_none_of_another_class():
    class Mine(torch.nn.GRU):
        pass

    assert type(cylstm.torch.accelerate(torch.nn.RNN(6, 9))) is cylstm.torch.RNN
    assert type(cylstm.torch.accelerate(Mine(6, 9))) is Mine
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int"):
        cylstm.torch.accelerate(3)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.filterwarnings("ignore")  # of PyTorch's own
def test_compile_without_a_break(kind):
    from torch._dynamo import config

    with config.patch(allow_rnn=True):
        other, twin = pair(kind, num_layers=2, bidirectional=True, batch_first=True)
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        x = torch.randn(3, 4, 6)
        state = random_state(twin, (3,), torch.float32)
        compiled.mode, compiled.batch_first = twin.mode, True
        assert_alike(results(compiled, x, state), results(other, x, state), torch.float32)
        with torch.no_grad():
            twin.weight_hh_l0.mul_(1.5)
            assert torch.equal(compiled(x)[0], twin(x)[0])


def test_operators():
    from cylstm.torch import function

    _, twin = pair("LSTM", num_layers=2)
    x = torch.randn(4, 3, 6, requires_grad=True)
    states = [s.requires_grad_() for s in random_state(twin, (3,), torch.float32)]
    given = (twin._number, x, None, states, list(twin.parameters()), None, True)
    # Not "test_aot_dispatch", which would compare the tensors that number tapes.
    torch.library.opcheck(
        function.recurrence, given,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


# Layers of this library


@pytest.mark.parametrize("layer", [cylstm.LSTM(6, 9), cylstm.GRU(6, 9, batch_first=True)])
def test_a_packed_sequence_as_input_of_another_layer(layer):
    packed = pack_sequence([torch.zeros(3, 6), torch.zeros(2, 6)])
    for call in (layer, layer.forward, layer.trace):
        with pytest.raises(TypeError, match=r"x: .* got a PackedSequence: .*cylstm\.torch"):
            call(packed)
