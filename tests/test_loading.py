"""Weights from elsewhere: names, prefixes, number formats, inferred sizes, and the way back."""

import re
from collections import OrderedDict

import numpy as np
import pytest
from helpers import assert_same_bits, run_python

import cylstm


class Tensor:
    """What PyTorch's tensors do when NumPy asks for their numbers."""

    def __init__(self, values, dtype="torch.float32", *, requires_grad=False, error=None):
        self.values, self.dtype, self.requires_grad = np.asarray(values), dtype, requires_grad
        self.error, self.shape = error, self.values.shape

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.error:
            raise self.error
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values

    def detach(self):
        return Tensor(self.values, self.dtype, error=self.error)

    def float(self):
        return Tensor(self.values, error=self.error)


class Encoder(cylstm.LSTM):
    """A subclass that takes what it needs."""

    def __init__(self, input_size, hidden_size, *, name="encoder"):
        super().__init__(input_size, hidden_size, rng=0)
        self.name = name


LAYERS = [
    cylstm.LSTM(3, 5, rng=0),
    cylstm.LSTM(3, 5, 2, bidirectional=True, rng=0),
    cylstm.LSTM(3, 5, 2, bidirectional=True, proj_size=2, rng=0),
    cylstm.LSTM(3, (5, 6, 7), peepholes=True, bias=False, rng=0),
    cylstm.LSTM(3, (7, 6), proj_size=4, layer_norm="haste", bias="single", rng=0),
    cylstm.LSTM(3, 5, layer_norm="tflite", peepholes=True, dtype="float64", rng=0),
    cylstm.LSTM(1, 1, rng=0),
    cylstm.LSTM(3, 5, 2, bidirectional=True, proj_size=2, learn_initial_state=True, rng=0),
    cylstm.GRU(3, (5, 4), learn_initial_state=True, rng=0),
    cylstm.GRU(3, 5, 3, rng=0),
    cylstm.GRU(3, 5, bias="single", bidirectional=True, rng=0),
    cylstm.GRU(3, 5, 2, bias=False, layer_norm="haste", rng=0),
    cylstm.RNN(3, 5, 2, rng=0),
    cylstm.RNN(3, (5, 4), independent=True, bias="single", rng=0),
    cylstm.RNN(3, 5, bias=False, dtype="float64", rng=0),
]
EVERY = pytest.mark.parametrize("layer", LAYERS, ids=repr)


@EVERY
def test_everything_is_inferred(layer):
    twin = type(layer).from_state_dict(layer.state_dict(), rng=0)
    assert repr(twin) == repr(layer)
    assert list(twin.params) == list(layer.params)
    assert_same_bits(twin.flat_params, layer.flat_params)
    x = np.ones((4, 2, layer.input_size))
    assert_same_bits(twin(x)[0], layer(x)[0])


@EVERY
def test_order_prefix_and_container_do_not_matter(layer):
    items = list(layer.state_dict().items())[::-1]
    state = OrderedDict((f"a.b.{name}", value) for name, value in items)
    state |= {"a.weight": np.ones(3), "b.weight_ih_l0": np.ones((2, 2)), "step": 7}
    twin = type(layer).from_state_dict(state, "a.b.")
    assert_same_bits(twin.flat_params, layer.flat_params)
    other = type(layer).from_state_dict(layer.state_dict())
    other.assign(np.zeros_like(layer.flat_params))
    assert other.load_state_dict(state, prefix="a.b.") == ([], [])
    assert_same_bits(other.flat_params, layer.flat_params)


def test_what_weights_do_not_say_is_an_option():
    gru = cylstm.GRU(3, 5, 2, bidirectional=True, merge_mode="sum", reset_after=False, rng=0)
    options = {"merge_mode": "sum", "reset_after": False, "batch_first": True, "zoneout": 0.1}
    twin = cylstm.GRU.from_state_dict(gru.state_dict(), **options)
    assert (twin.merge_mode, twin.reset_after, twin.batch_first, twin.zoneout) == (
        "sum", False, True, 0.1)  # fmt: skip
    coupled = cylstm.LSTM(3, 5, coupled=True, peepholes=True, rng=0)
    assert repr(cylstm.LSTM.from_state_dict(coupled.state_dict(), coupled=True)) == repr(coupled)
    rnn = cylstm.RNN.from_state_dict(cylstm.RNN(3, 5).state_dict(), nonlinearity="relu")
    assert rnn.nonlinearity == "relu"


def test_what_weights_say_may_be_said_again_but_not_contradicted():
    state = cylstm.LSTM(3, 5, 2, rng=0).state_dict()
    same = {"input_size": 3, "hidden_size": [5, 5], "num_layers": 2, "bias": True,
            "bidirectional": False, "proj_size": 0, "peepholes": False,
            "layer_norm": None}  # fmt: skip
    assert repr(cylstm.LSTM.from_state_dict(state, **same)) == "LSTM(3, 5, num_layers=2)"
    wrong = {"input_size": 4, "hidden_size": (5, 6), "num_layers": 1, "bias": "single",
             "bidirectional": True, "proj_size": 2, "peepholes": True,
             "layer_norm": "haste"}  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected .*got {re.escape(repr(value))}"):
            cylstm.LSTM.from_state_dict(state, **{name: value})
    with pytest.raises(TypeError, match=r"LSTM.__init__\(\) got an unexpected keyword .*dropuot"):
        cylstm.LSTM.from_state_dict(state, dropuot=0.5)
    with pytest.raises(TypeError, match=r"GRU.__init__\(\) got an unexpected .*peepholes"):
        cylstm.GRU.from_state_dict(cylstm.GRU(3, 5).state_dict(), peepholes=False)
    with pytest.raises(ValueError, match="forget_bias: expected None"):
        cylstm.LSTM.from_state_dict(state, forget_bias=1.0)


def test_nothing_is_drawn():
    state = cylstm.LSTM(3, 5, rng=0).state_dict()
    rng = np.random.default_rng(3)
    cylstm.LSTM.from_state_dict(state, rng=rng)
    assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state


def test_subclasses():
    state = cylstm.LSTM(3, 5, rng=1).state_dict()
    encoder = Encoder.from_state_dict(state, name="mine")
    assert type(encoder) is Encoder and encoder.name == "mine"
    assert_same_bits(encoder.params["weight_hh_l0"], state["weight_hh_l0"])
    assert np.any(Encoder(3, 5).flat_params != encoder.flat_params)  # others are drawn as ever


def test_a_cell_of_another_kind_is_refused():
    layers = {"LSTM": 20, "GRU": 15, "RNN": 5}
    for name, other in [(a, b) for a in layers for b in layers if a != b]:
        state = getattr(cylstm, other)(3, 5).state_dict()
        with pytest.raises(ValueError, match=rf"weight_ih_l0: expected .*{name}.*{layers[other]}"):
            getattr(cylstm, name).from_state_dict(state)
    with pytest.raises(KeyError, match="peepholes"):
        cylstm.GRU.from_state_dict(
            cylstm.GRU(3, 5).state_dict() | {"weight_peephole_l0": np.ones(15)}
        )
    with pytest.raises(KeyError, match="independent"):
        cylstm.LSTM.from_state_dict(
            cylstm.LSTM(3, 1).state_dict() | {"weight_hh_l0": np.ones(1)}
        )  # fmt: skip


def test_names_and_shapes_that_fit_nothing():
    state = cylstm.LSTM(3, 5, 2, bidirectional=True, rng=0).state_dict()

    def without(*names):
        return {name: value for name, value in state.items() if name not in names}

    cases = [
        (KeyError, {}, "LSTM parameters"),
        (KeyError, without("weight_hh_l0"), r"missing \['weight_hh_l0'\]"),
        (KeyError, without("weight_ih_l1"), r"missing \['weight_ih_l1'\]"),
        (KeyError, without("bias_hh_l1_reverse"), r"missing \['bias_hh_l1_reverse'\]"),
        (KeyError, without("bias_ih_l0"), r"missing \['bias_ih_l0'\]"),
        (KeyError, state | {"weight_ho_l0": 1.0}, r"\['weight_ho_l0'\]"),
        (KeyError, state | {"fc.bias": np.ones(2)}, r"\['fc.bias'\]"),
        (KeyError, state | {"weight_ih_l9": np.ones((20, 3))}, "missing .*weight_ih_l2"),
        (ValueError, state | {"weight_hh_l1": np.ones((20, 6))}, "weight_ih_l1: expected .*24"),
        (ValueError, state | {"weight_ih_l1": np.ones((20, 9))}, r"weight_ih_l1: .*\(20, 10\)"),
        (ValueError, state | {"weight_ih_l1": np.ones((20, 5))}, "merge_mode"),
        (ValueError, state | {"bias_ih_l0": np.ones((20, 1))}, "bias_ih_l0: expected a vector"),
        (ValueError, state | {"weight_ih_l0": np.ones(60)}, "weight_ih_l0: expected a matrix"),
        (ValueError, state | {"weight_hh_l0": np.ones(())}, "weight_hh_l0: expected a matrix"),
    ]
    for error, wrong, message in cases:
        with pytest.raises(error, match=message):
            cylstm.LSTM.from_state_dict(wrong)


NO_STATE = [None, 3, "path", [np.ones(3)], [("weight_ih_l0", np.ones(3))], (), LAYERS[0]]


@pytest.mark.parametrize("wrong", NO_STATE, ids=lambda v: type(v).__name__)
def test_what_is_no_state_dict(wrong):
    layer = cylstm.LSTM(3, 5)
    for load in (layer.load_state_dict, cylstm.LSTM.from_state_dict):
        with pytest.raises(TypeError, match=f"^state: expected a mapping.*{type(wrong).__name__}"):
            load(wrong)
    for prefix in (3, b"lstm.", True):
        with pytest.raises(TypeError, match=r"^prefix: expected a str"):
            layer.load_state_dict(layer.state_dict(), prefix)
        with pytest.raises(TypeError, match=r"^prefix: expected a str"):
            cylstm.LSTM.from_state_dict(layer.state_dict(), prefix)
    with pytest.raises(TypeError, match=r"^strict: expected True or False"):
        layer.load_state_dict(layer.state_dict(), strict="yes")


def test_a_wrong_prefix_is_said():
    layer = cylstm.LSTM(3, 5, rng=0)
    state = {f"net.lstm.{name}": value for name, value in layer.state_dict().items()}
    state |= {"net.fc.weight": np.ones((2, 5)), "net.fc.bias": np.ones(2)}
    before = layer.flat_params.copy()
    message = re.escape("pass prefix='net.lstm.'")
    for prefix in (None, "", "net.", "net", "net.lstm", "lstm.", "net.fc."):
        for strict in (True, False):
            with pytest.raises(KeyError, match=message):
                layer.load_state_dict(state, prefix, strict)
        with pytest.raises(KeyError, match=message):
            cylstm.LSTM.from_state_dict(state, prefix or "")
    two = state | {f"decoder.{name}": value for name, value in layer.state_dict().items()}
    with pytest.raises(KeyError, match=r"prefix='net.lstm.' or prefix='decoder.'"):
        layer.load_state_dict(two)
    with pytest.raises(KeyError, match=r"net\.cell\."):
        layer.load_state_dict({"net.cell.weight_ih": np.ones((20, 3))})
    with pytest.raises(KeyError, match=r"prefix: expected .*'lstm.'"):
        layer.load_state_dict({"weights": np.ones(3)}, "lstm.")
    linear = cylstm.Linear(3, 2)
    with pytest.raises(KeyError, match=re.escape("prefix='fc.'")):
        linear.load_state_dict({"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)})
    assert_same_bits(layer.flat_params, before)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_names_of_a_single_cell(cell):
    layer = getattr(cylstm, cell)(3, 5, rng=0)
    state = {name.removesuffix("_l0"): value for name, value in layer.state_dict().items()}
    twin = type(layer).from_state_dict({f"cell.{n}": v for n, v in state.items()}, "cell.")
    assert_same_bits(twin.flat_params, layer.flat_params)
    other = type(layer)(3, 5, rng=1)
    other.load_state_dict(state)
    assert_same_bits(other.flat_params, layer.flat_params)
    with pytest.raises(KeyError, match=r"missing \['weight_ih_l1'"):
        type(layer)(3, 5, 2).load_state_dict(state)


def test_strict():
    layer = cylstm.LSTM(3, 5, rng=0)
    old = layer.state_dict()
    new = {name: value + 1 for name, value in old.items() if name != "bias_hh_l0"} | {"extra": 7}
    with pytest.raises(KeyError, match=r"missing \['bias_hh_l0'\], unexpected \['extra'\]"):
        layer.load_state_dict(new)
    assert_same_bits(layer.params["bias_ih_l0"], old["bias_ih_l0"])
    loaded = layer.load_state_dict(new, strict=False)
    assert loaded == (["bias_hh_l0"], ["extra"])
    assert loaded.missing_keys == ["bias_hh_l0"] and loaded.unexpected_keys == ["extra"]
    for name, value in old.items():
        assert_same_bits(layer.params[name], value + (name != "bias_hh_l0"))
    with pytest.raises(ValueError, match="bias_ih_l0: expected shape"):
        layer.load_state_dict({"bias_ih_l0": np.ones(3)}, strict=False)


FORMATS = {
    "float16": lambda a: a.astype("float16"),
    "float64": lambda a: a.astype("float64"),
    "big-endian": lambda a: a.astype(">f4"),
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "a parameter": lambda a: Tensor(a, requires_grad=True),
    "bfloat16": lambda a: Tensor(a, "torch.bfloat16"),
    "a bfloat16 parameter": lambda a: Tensor(a, "torch.bfloat16", requires_grad=True),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("how", FORMATS)
def test_formats(how):
    values = {n: np.round(v, 2).astype("f2").astype("f4")
              for n, v in cylstm.LSTM(3, 5, rng=0).state_dict().items()}  # fmt: skip
    state = {name: FORMATS[how](value) for name, value in values.items()}
    layer = cylstm.LSTM.from_state_dict(state)
    assert layer.dtype == ("float64" if how == "float64" else "float32")
    assert_same_bits(dict_of_bits(layer, "f4"), dict_of_bits(values, "f4"))
    for dtype in ("float32", "float64"):
        assert cylstm.LSTM.from_state_dict(state, dtype=dtype).dtype == dtype
        other = cylstm.LSTM(3, 5, dtype=dtype)
        other.load_state_dict(state)
        assert_same_bits(dict_of_bits(other, "f4"), dict_of_bits(values, "f4"))
        other = cylstm.LSTM(3, 5, dtype=dtype)
        other.assign(state)
        assert_same_bits(dict_of_bits(other, "f4"), dict_of_bits(values, "f4"))


def dict_of_bits(layer, dtype):
    values = layer if isinstance(layer, dict) else layer.params
    return np.concatenate([np.ravel(value).astype(dtype) for value in values.values()])


UNREADABLE = {
    "meta": Tensor(np.ones(20), error=NotImplementedError("Cannot copy out of meta tensor")),
    "gpu": Tensor(np.ones(20), error=TypeError("can't convert cuda:0 device type tensor to numpy")),
    "int8": np.ones(20, np.int8),
    "uint8": np.ones(20, np.uint8),
    "int64": np.ones(20, np.int64),
    "integer tensor": Tensor(np.ones(20, np.int8), "torch.int8"),
    "bool": np.ones(20, bool),
    "complex": np.ones(20, complex),
    "text": "ones",
    "object": np.array([None] * 20),
    "None": None,
    "ragged": [[1.0], [1.0, 2.0]],
}


@pytest.mark.parametrize("which", UNREADABLE)
def test_what_cannot_be_read_is_named(which):
    layer = cylstm.LSTM(3, 5, rng=0)
    before = layer.flat_params.copy()
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    state["bias_hh_l0"] = UNREADABLE[which]
    with pytest.raises((TypeError, ValueError), match=r"^bias_hh_l0: expected "):
        layer.load_state_dict(state)
    with pytest.raises((TypeError, ValueError), match=r"^bias_hh_l0: expected "):
        cylstm.LSTM.from_state_dict(state)
    assert_same_bits(layer.flat_params, before)


TORCH = """
import sys, types
import numpy as np
import cylstm
torch = types.ModuleType("torch")
torch.from_numpy = lambda array: ("tensor", array)
sys.modules["torch"] = torch
layer = cylstm.LSTM(3, 5, rng=0)
made = layer.state_dict(as_torch=True)
assert list(made) == list(layer.params)
for name, (kind, array) in made.items():
    assert kind == "tensor" and array.flags.writeable and np.array_equal(array, layer.params[name])
    array[...] = 0
assert layer.flat_params.any()
try:
    layer.state_dict(as_torch="yes")
except TypeError as error:
    assert str(error).startswith("as_torch: expected")
"""


def test_tensors_for_torch():
    run_python(TORCH)


MAPPED = """
import os, sys
import numpy as np
import cylstm

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

folder = sys.argv[1]
layer = cylstm.LSTM(4, 4)
cylstm.LSTM.from_state_dict(layer.state_dict())
before = peak()
state = {f[:-4]: np.load(os.path.join(folder, f), mmap_mode="r") for f in os.listdir(folder)}
mapped = sum(value.nbytes for value in state.values())
layer = cylstm.LSTM.from_state_dict(state)
assert layer.flat_params.nbytes == int(sys.argv[2]), layer
assert all(np.array_equal(layer.params[name], value) for name, value in state.items())
needed = peak() - before - mapped
assert needed < 1.1 * layer.flat_params.nbytes, needed / layer.flat_params.nbytes
"""


def test_loading_from_mapped_files_needs_little_more_than_the_weights(tmp_path):
    layer = cylstm.LSTM(512, 768, 2, rng=0)
    for name, value in layer.params.items():
        np.save(tmp_path / f"{name}.npy", value)
    run_python(MAPPED, tmp_path, layer.flat_params.nbytes)
