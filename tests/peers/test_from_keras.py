"""Networks saved by Keras 3, and files as older versions wrote them, read without Keras.

Keras 1 and 2 cannot be installed beside: their files are written here by hand. Weights are random,
another for each gate.
"""

import importlib
import json
import os
import random
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from helpers import assert_close, run_python

from cylstm.io.keras import KerasError, from_keras

os.environ["KERAS_BACKEND"] = "torch"
import keras
from keras import layers as kl

ROWS, STEPS, INPUTS = 3, 9, 4
X = np.random.default_rng(7).normal(size=(ROWS, STEPS, INPUTS)).astype(np.float32)
IDS = np.random.default_rng(8).integers(1, 10, (ROWS, STEPS))
READ = np.arange(STEPS) < np.array([[9], [4], [6]])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def randomised(model, scale=0.5):
    """The model with random weights; variances are positive."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        value = scale * rng.normal(size=weight.shape)
        weight.assign(abs(value) + 0.1 if "variance" in weight.name else value)
    return model


def line(*layers, x=X):
    return randomised(keras.Sequential([keras.Input(x.shape[1:]), *layers]))


def expected(model, x=X, **options):
    return keras.ops.convert_to_numpy(model(x, training=False, **options))


def called(net, x=X, **options):
    found = net(x, **options)
    return found[0] if isinstance(found, tuple) else found


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return from_keras(*arguments, **options)


SAVED = {
    "lstm": lambda: [kl.LSTM(5, return_sequences=True)],
    "lstm, its last": lambda: [kl.LSTM(5)],
    "lstm without bias": lambda: [kl.LSTM(5, use_bias=False)],
    "gru": lambda: [kl.GRU(5, return_sequences=True)],
    "gru, reset before": lambda: [kl.GRU(5, reset_after=False)],
    "gru without bias": lambda: [kl.GRU(5, use_bias=False)],
    "rnn": lambda: [kl.SimpleRNN(5, activation="relu")],
    "hard gates": lambda: [
        kl.LSTM(5, recurrent_activation="hard_sigmoid", activation="softsign"),
    ],
    "hard gates of a gru": lambda: [
        kl.GRU(5, recurrent_activation="hard_sigmoid", activation="elu", return_sequences=True),
    ],
    "linear": lambda: [kl.SimpleRNN(5, activation="linear"), kl.Dense(3, "softmax")],
    "backwards, twice": lambda: [
        kl.GRU(5, go_backwards=True, return_sequences=True),
        kl.LSTM(4, return_sequences=True, unroll=True),
        kl.Dense(3),
        kl.SimpleRNN(4, go_backwards=True, return_sequences=True),
    ],
    "backwards": lambda: [kl.LSTM(5, go_backwards=True, return_sequences=True), kl.GRU(3)],
    "both": lambda: [
        kl.Bidirectional(kl.LSTM(5, return_sequences=True)),
        kl.Bidirectional(kl.GRU(3, return_sequences=True), merge_mode="sum"),
        kl.Bidirectional(kl.SimpleRNN(4), merge_mode="mul"),
    ],
    "own backward layer": lambda: [
        kl.Bidirectional(kl.LSTM(5), backward_layer=kl.LSTM(5, go_backwards=True)),
    ],
    "average of cells": lambda: [
        kl.Bidirectional(kl.RNN(kl.LSTMCell(5), return_sequences=True), merge_mode="ave"),
        kl.GlobalMaxPooling1D(),
    ],
    "stack of cells": lambda: [
        kl.RNN([kl.LSTMCell(5), kl.LSTMCell(4), kl.GRUCell(3, reset_after=False),
                kl.SimpleRNNCell(2)], return_sequences=True),
        kl.RNN(kl.GRUCell(3)),
    ],
    "tagger": lambda: [
        kl.Dropout(0.3), kl.SpatialDropout1D(0.2), kl.GaussianNoise(0.1),
        kl.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu"),
        kl.BatchNormalization(), kl.Bidirectional(kl.LSTM(5, return_sequences=True)),
        kl.LayerNormalization(), kl.TimeDistributed(kl.Dense(4, "selu")),
        kl.TimeDistributed(kl.LayerNormalization(scale=False)), kl.Activation("softmax"),
    ],
    "convolutions": lambda: [
        kl.Conv1D(6, 4, padding="same", use_bias=False), kl.LeakyReLU(0.1),
        kl.BatchNormalization(scale=False, epsilon=0.01), kl.ReLU(),
        kl.Conv1D(5, 3, strides=2, activation="hard_sigmoid"), kl.ELU(0.7),
        kl.BatchNormalization(center=False), kl.GlobalAveragePooling1D(), kl.Flatten(),
        kl.Dense(3, use_bias=False), kl.LayerNormalization(center=False), kl.Softmax(),
    ],
    "activations": lambda: [
        kl.Dense(4, activation) for activation in (
            "relu6", "leaky_relu", "hard_tanh", "softplus", "tanh", "sigmoid", "log_softmax")
    ],
    "models inside": lambda: [
        keras.Sequential([kl.LSTM(5, return_sequences=True), kl.BatchNormalization()]),
        keras.Sequential([kl.BatchNormalization(), keras.Sequential([kl.GRU(4), kl.Dense(3)])]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_every_kind_of_file(name, tmp_path):
    model = line(*SAVED[name]())
    paths = [tmp_path / f"m{end}" for end in (".keras", ".h5", ".weights.h5")]
    model.save(paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(paths[1])
    model.save_weights(paths[2])
    nets = [from_keras(path) for path in paths[:2]]
    nets += [from_keras(paths[2], config=model.to_json(), version=3), from_keras(model)]
    for net in nets:
        assert_close(called(net), expected(model), 2e-6)
        assert repr(net) == repr(nets[0])
        for one, other in zip(net.params.values(), nets[0].params.values(), strict=True):
            assert np.array_equal(one, other)


def test_a_graph_with_a_mask(tmp_path):
    """Keras 3 writes the mask as nodes of the graph; states that nobody reads may be returned."""
    ids = keras.Input((None,), name="ids")
    x = kl.Embedding(10, 4, mask_zero=True)(ids)
    x = kl.Bidirectional(kl.LSTM(3, return_sequences=True))(x)
    x, _, _ = kl.LSTM(4, return_sequences=True, return_state=True)(x)
    x = kl.TimeDistributed(kl.Dense(3))(x)
    x = kl.GlobalAveragePooling1D()(x)
    model = randomised(keras.Model(ids, kl.BatchNormalization()(x)))
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"bidirectional\w* \(Bidirectional\).*mask=ids != 0"):
        net = from_keras(tmp_path / "m.keras")
    given = np.where(READ, IDS, 0)
    assert_close(called(net, given, mask=given != 0), expected(model, given), 2e-6)
    assert_close(called(net, given, lengths=READ.sum(axis=1)), expected(model, given), 2e-6)
    assert repr(quietly(model)) == repr(net)


def test_masking(tmp_path):
    model = line(kl.Masking(-1.0), kl.LSTM(5, return_sequences=True), kl.GRU(3))
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match=r"lstm\w* \(LSTM\).*mask=\(x != -1\).any"):
        net = from_keras(tmp_path / "m.keras")
    x = np.where(READ[..., None], X, np.float32(-1))
    assert_close(called(net, x, mask=(x != -1).any(axis=-1)), expected(model, x), 2e-6)


@pytest.mark.filterwarnings("ignore:Layer 'conv1d")
def test_a_mask_that_nobody_reads_is_not_asked_for():
    """Keras drops it where it meets a convolution."""
    ids = keras.Input((STEPS,))
    x = kl.Embedding(10, 4, mask_zero=True)(ids)
    model = randomised(keras.Model(ids, kl.LSTM(5)(kl.Conv1D(5, 3)(x))))
    given = np.where(READ, IDS, 0)
    assert_close(called(from_keras(model), given), expected(model, given), 2e-6)


def test_float64(tmp_path):
    keras.config.set_dtype_policy("float64")
    try:
        model = line(kl.LSTM(5, return_sequences=True), kl.Dense(3, "tanh"))
        model.save(tmp_path / "m.keras")
        net = from_keras(tmp_path / "m.keras")
        assert net.dtype == np.float64
        assert np.array_equal(net.params[f"{model.layers[0].name}.weight_ih_l0"],
                              model.get_weights()[0].T)  # fmt: skip
        assert_close(called(net), expected(model), 1e-6)  # Keras multiplies in float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_neither_keras_nor_tensorflow_is_imported(tmp_path):
    model = line(kl.LSTM(5), kl.Dense(3))
    model.save(tmp_path / "m.keras")
    run_python(f"""
import sys
import cylstm
assert "h5py" not in sys.modules
cylstm.from_keras({str(tmp_path / "m.keras")!r})
assert not {{"keras", "tensorflow", "torch", "h5py"}} & set(sys.modules)
""")


# Tests that ship with Keras


def through_cylstm(cls, monkeypatch):
    """Have a layer's call computed here, with Keras' states, and its outputs at masked steps."""
    original = cls.__call__

    def call(self, x, initial_state=None, mask=None, **options):
        if isinstance(x, keras.KerasTensor) or self.return_state:
            return original(self, x, initial_state=initial_state, mask=mask, **options)
        if not self.built:
            self.build(np.shape(x))
        pair = getattr(self, "merge_mode", "concat") is None
        if pair:  # two outputs, which a network cannot have: put side by side, and cut
            self.merge_mode = "concat"
        layer = next(iter(from_keras(self)))
        if pair:
            self.merge_mode = None
        x, mask = np.asarray(x, np.float32), None if mask is None else np.asarray(mask)
        state = getattr(self, "_kept", None)
        if initial_state is not None:
            given = initial_state if isinstance(initial_state, list) else [initial_state]
            state = [np.asarray(part, np.float32) for part in given]
            count = len(state) // layer.num_directions
            parts = [np.stack(state[k::count]) for k in range(count)]
            state = tuple(parts) if count > 1 else parts[0]
        kind = "all" if self.return_sequences else "final"
        y, final = layer(x, state, mask=mask, return_=kind)
        self._kept = final if self.stateful else None
        inner = getattr(self, "forward_layer", self)
        if mask is not None and kind == "all" and not inner.zero_output_for_mask:
            for t in range(1, x.shape[1]):
                y[:, t] = np.where(mask[:, t, None], y[:, t], y[:, t - 1])
        return np.split(y, 2, axis=-1) if pair else y

    def reset(self):
        self._kept = None

    monkeypatch.setattr(cls, "__call__", call)
    monkeypatch.setattr(cls, "reset_state", reset)
    monkeypatch.setattr(cls, "reset_states", reset, raising=False)


BOTH = ("correctness0", "correctness1")  # of both implementations
WHEEL = {
    "lstm": ("LSTM", "LSTMTest", BOTH),
    "gru": ("GRU", "GRUTest", BOTH),
    "simple_rnn": ("SimpleRNN", "SimpleRNNTest", ["correctness"]),
    "bidirectional": ("Bidirectional", "SimpleRNNTest", ["correctness"]),
}


@pytest.mark.parametrize("module", WHEEL)
def test_of_the_wheel(module, monkeypatch):
    name, case, tests = WHEEL[module]
    found = importlib.import_module(f"keras.src.layers.rnn.{module}_test")
    through_cylstm(getattr(kl, name), monkeypatch)
    for test in (*tests, "statefulness", "pass_initial_state", "masking"):
        getattr(getattr(found, case)(f"test_{test}"), f"test_{test}")()


# Files as older versions wrote them


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32) / 2


def written(path, layers, weights, version="2.4.0", **more):
    """A file of Keras 2: the configuration and, for each layer, a list of named arrays."""
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": layers, **more}}
    if version < "2.2.4":
        config["config"] = layers
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights")
        if version > "1.2":
            file.attrs["keras_version"] = group.attrs["keras_version"] = version.encode()
        group.attrs["layer_names"] = np.array([name.encode() for name in weights])
        for name, arrays in weights.items():
            inner = group.create_group(name)
            names = [f"{name}/{i}:0" for i in range(len(arrays))]
            inner.attrs["weight_names"] = np.array([n.encode() for n in names], "S")
            for n, array in zip(names, arrays, strict=True):
                inner[n] = array
    return path


def lstm(name="lstm", units=5, **options):
    return {
        "class_name": "LSTM",
        "config": {
            "name": name, "trainable": True, "batch_input_shape": [None, STEPS, INPUTS],
            "dtype": "float32", "return_sequences": True, "return_state": False,
            "go_backwards": False, "stateful": False, "unroll": False, "time_major": False,
            "units": units, "activation": "tanh", "recurrent_activation": "hard_sigmoid",
            "use_bias": True, "unit_forget_bias": True, "kernel_regularizer": None,
            "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
            "dropout": 0.2, "recurrent_dropout": 0.0, "implementation": 1, **options,
        },
    }  # fmt: skip


def of_keras_2(x):
    return keras.ops.clip(0.2 * x + 0.5, 0, 1)


def in_keras(layer, arrays, x=X):
    layer.build(x.shape)
    layer.set_weights(arrays)
    return keras.ops.convert_to_numpy(layer(x))


@pytest.mark.parametrize("version", ["2.4.0", "2.1.6"])
def test_keras_2(version, tmp_path):
    arrays = [values(INPUTS, 20), values(5, 20), values(20)]
    path = written(tmp_path / "m.h5", [lstm()], {"lstm": arrays}, version)
    layer = kl.LSTM(5, return_sequences=True, recurrent_activation=of_keras_2)
    assert_close(called(from_keras(path), 3 * X), in_keras(layer, arrays, 3 * X), 2e-6)
    three = kl.LSTM(5, return_sequences=True, recurrent_activation="hard_sigmoid")
    newer = from_keras(path, version=3)
    assert_close(called(newer, 3 * X), in_keras(three, arrays, 3 * X), 2e-6)


def test_weights_without_a_version(tmp_path):
    model = line(kl.LSTM(5, recurrent_activation="hard_sigmoid"))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(KerasError, match=r"lstm\w* \(LSTM\).*expected version= to be given"):
        from_keras(tmp_path / "m.weights.h5", config=model.to_json())
    with pytest.raises(KerasError, match="has weights alone: pass config="):
        from_keras(tmp_path / "m.weights.h5")


def test_names_with_a_slash(tmp_path):
    arrays = [values(INPUTS, 20), values(5, 20), values(20)]
    path = written(tmp_path / "m.h5", [lstm("words/lstm")], {"words/lstm": arrays})
    assert np.array_equal(from_keras(path)["words/lstm"].params["weight_hh_l0"], arrays[1].T)


def test_weights_of_keras_2_13(tmp_path):
    """The groups of layers were under another name."""
    inner = keras.Sequential([kl.Dense(4), kl.LSTM(5, return_sequences=True)])
    model = line(inner, kl.LSTM(3))
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file.move("layers/sequential/layers", "layers/sequential/_layer_checkpoint_dependencies")
        file.move("layers", "_layer_checkpoint_dependencies")
    net = from_keras(path, config=model.to_json(), version=2)
    assert_close(called(net), expected(model), 2e-6)


def test_gru_of_keras_2_resets_before(tmp_path):
    """reset_after came with 2.1.5, and false was the default."""
    arrays = [values(INPUTS, 15), values(5, 15), values(15)]
    described = lstm("gru", return_sequences=False) | {"class_name": "GRU"}
    path = written(tmp_path / "m.h5", [described], {"gru": arrays})
    layer = kl.GRU(5, reset_after=False, recurrent_activation=of_keras_2)
    assert_close(called(from_keras(path)), in_keras(layer, arrays), 2e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_cudnn(kind, tmp_path):
    """Kernels are those of cuDNN, (H, inputs) for each gate, under the shape of Keras'."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    kernel, recurrent = values(INPUTS, 5 * gates), values(5, 5 * gates)
    bias = values(2, 5 * gates)
    stored = [
        np.hstack([part.T.reshape(part.shape) for part in np.hsplit(matrix, gates)])
        for matrix in (kernel, recurrent)
    ]
    described = lstm("c", activation="tanh") | {"class_name": f"CuDNN{kind}"}
    for name in ("recurrent_activation", "use_bias", "activation", "time_major", "unroll"):
        described["config"].pop(name)
    path = written(tmp_path / "m.h5", [described], {"c": [*stored, bias.ravel()]})
    layer = getattr(kl, kind)(5, return_sequences=True)
    arrays = [kernel, recurrent, bias.sum(axis=0) if kind == "LSTM" else bias]
    assert_close(called(from_keras(path)), in_keras(layer, arrays), 2e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_keras_1(kind, tmp_path):
    """Arrays for each gate, i, c, f, o or z, r, h, under other names of the options."""
    gates = {"LSTM": "icfo", "GRU": "zrh"}[kind]
    parts = {g: [values(INPUTS, 5, seed=i), values(5, 5, seed=i + 10), values(5, seed=i)]
             for i, g in enumerate(gates)}  # fmt: skip
    described = {
        "class_name": kind,
        "config": {
            "name": "one", "output_dim": 5, "input_dim": INPUTS, "init": "glorot_uniform",
            "inner_init": "orthogonal", "forget_bias_init": "one", "activation": "tanh",
            "inner_activation": "hard_sigmoid", "W_regularizer": None, "dropout_W": 0.1,
            "return_sequences": False, "go_backwards": False, "stateful": False, "unroll": False,
            "consume_less": "cpu", "input_length": STEPS, "trainable": True,
        },
    }  # fmt: skip
    plain = {"name": "d", "output_dim": 2, "bias": True, "activation": "linear", "input_dim": None}
    dense = {"class_name": "Dense", "config": plain}
    drop = {"class_name": "Dropout", "config": {"name": "p", "p": 0.5}}
    last = [values(5, 2), values(2)]
    arrays = {"one": [a for g in gates for a in parts[g]], "p": [], "d": last}
    path = written(tmp_path / "m.h5", [described, drop, dense], arrays, "1.1.0")
    order = {"LSTM": "ifco", "GRU": "zrh"}[kind]
    joined = [np.concatenate([parts[g][i] for g in order], axis=-1) for i in range(3)]
    more = {} if kind == "LSTM" else {"reset_after": False}
    layer = getattr(kl, kind)(5, recurrent_activation=of_keras_2, **more)
    net = from_keras(path)
    assert_close(called(net), in_keras(layer, joined) @ last[0] + last[1], 2e-6)


def test_a_graph_of_keras_2(tmp_path):
    def node(name, *arguments):
        return [[[name, 0, 0, *(arguments or [{}])]]]

    both = {
        "class_name": "Bidirectional", "name": "b", "inbound_nodes": node("ids"),
        "config": {"name": "b", "trainable": False, "merge_mode": "concat",
                   "layer": lstm("inner", recurrent_activation="sigmoid")},
    }  # fmt: skip
    dense = {
        "class_name": "TimeDistributed", "name": "t", "inbound_nodes": node("b"),
        "config": {"name": "t", "layer": {"class_name": "Dense", "config": {
            "name": "d", "units": 3, "activation": "softmax", "use_bias": True}}},
    }  # fmt: skip
    first = {"class_name": "InputLayer", "name": "ids", "inbound_nodes": [],
             "config": {"name": "ids", "batch_input_shape": [None, None, INPUTS]}}  # fmt: skip
    arrays = [values(INPUTS, 20), values(5, 20), values(20),
              values(INPUTS, 20, seed=1), values(5, 20, seed=1), values(20, seed=1)]  # fmt: skip
    weights = {"ids": [], "b": arrays, "t": [values(10, 3), values(3)]}
    path = written(tmp_path / "m.h5", [], weights)
    with h5py.File(path, "r+") as file:
        graph = {"name": "g", "layers": [first, both, dense],
                 "input_layers": [["ids", 0, 0]], "output_layers": [["t", 0, 0]]}  # fmt: skip
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": graph})
    inner = kl.LSTM(5, return_sequences=True)
    scores = in_keras(kl.Bidirectional(inner), arrays) @ values(10, 3) + values(3)
    e = np.exp(scores)
    assert_close(called(from_keras(path)), e / e.sum(axis=-1, keepdims=True), 2e-6)


def test_frozen_layers_inside_come_in_another_order(tmp_path):
    """Arrays of a model inside are sorted by whether they are trained."""
    first = kl.LSTM(5, return_sequences=True)
    inner = keras.Sequential([first, kl.BatchNormalization(), kl.GRU(5)])
    model = line(inner, kl.Dense(2))
    inner.layers[0].trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    assert_close(called(from_keras(tmp_path / "m.h5")), expected(model), 2e-6)


# Refusals


def graph(make):
    x = keras.Input((STEPS, INPUTS))
    return keras.Model(x, make(x))


REFUSED = {
    "lambda": (lambda: line(kl.Lambda(lambda x: x, name="l")), r"l \(Lambda\): expected one of"),
    "two ends": (lambda: graph(lambda x: [kl.LSTM(3)(x), kl.GRU(3)(x)]), "one entry in output_l"),
    "branches": (lambda: graph(lambda x: kl.Add(name="a")([kl.LSTM(3)(x), kl.GRU(3)(x)])),
                 "'a' that reads 2 others"),
    "beside": (lambda: graph(lambda x: kl.LSTM(3, name="a")(x, initial_state=[
        kl.GRU(3, name="b")(x), kl.GRU(3)(x)])), "'a' that (also )?reads"),
    "second output": (lambda: graph(lambda x: kl.GRU(3, return_state=True)(x)[1]), "got output 1"),
    "flipped end": (lambda: line(kl.GRU(3, go_backwards=True, return_sequences=True)),
                    r"output.*steps in their own order"),
    "flipped": (lambda: line(kl.GRU(3, go_backwards=True, return_sequences=True),
                             kl.Conv1D(3, 2, name="c")), r"c \(Conv1D\)"),
    "two outputs": (lambda: line(kl.Bidirectional(kl.GRU(3), merge_mode=None, name="b")),
                    r"b \(Bidirectional\): merge_mode.*got 'None'"),
    "other units": (lambda: line(kl.Bidirectional(
        kl.GRU(3), backward_layer=kl.GRU(4, go_backwards=True))), "options of the forward layer"),
    "stack both ways": (lambda: line(kl.Bidirectional(
        kl.RNN([kl.GRUCell(3), kl.GRUCell(3)]))), "a stack"),
    "activation": (lambda: line(kl.GRU(3, activation="gelu", name="g")), r"g \(GRU\): activation"),
    "own activation": (lambda: line(kl.Dense(3, of_keras_2, name="d")), r"d \(Dense\): activation"),
    "softmax in a gate": (lambda: line(kl.GRU(3, "softmax")), "that gates have"),
    "groups": (lambda: line(kl.Conv1D(4, 2, groups=2)), "groups"),
    "same with strides": (lambda: line(kl.Conv1D(4, 2, strides=2, padding="same")), "strides"),
    "norm over time": (lambda: line(kl.BatchNormalization(axis=1)), "axis"),
    "flatten": (lambda: line(kl.Flatten(name="f")), r"f \(Flatten\)"),
    "masked convolution": (lambda: line(kl.Masking(-1.0), kl.Conv1D(3, 2)), "no mask"),
    "late mask": (lambda: line(kl.Dense(3), kl.Masking()), "before all other layers"),
    "time distributed": (lambda: line(kl.TimeDistributed(kl.Flatten())), "layer.*Flatten"),
    "max": (lambda: line(kl.Masking(), kl.Bidirectional(kl.GRU(3, return_sequences=True)),
                         kl.GlobalMaxPooling1D()), "zeros at masked"),
    "relu with an end": (lambda: line(kl.ReLU(max_value=3.0)), "max_value"),
    "not built": (lambda: keras.Sequential([kl.LSTM(3)]), "build the model first"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(KerasError, match=message):
        from_keras(make())


class LSTM(kl.LSTM):
    """Somebody's own, under a name that Keras has."""


def test_custom_classes_and_options(tmp_path):
    with pytest.raises(KerasError, match="expected a layer of Keras, got LSTM"):
        from_keras(line(LSTM(3)))
    path = written(tmp_path / "m.h5", [lstm(time_major=True)], {"lstm": []})
    with pytest.raises(KerasError, match=r"lstm \(LSTM\): time_major: expected nothing"):
        from_keras(path)
    with pytest.raises(TypeError, match="model: expected a path"):
        from_keras(3)
    with pytest.raises(ValueError, match="version: expected 1, 2 or 3"):
        from_keras(path, version=4)
    with pytest.raises(ValueError, match="max_bytes: expected an integer"):
        from_keras(path, max_bytes=-1)
    with pytest.raises(FileNotFoundError):
        from_keras(tmp_path / "none.h5")


# Files that mean harm


def saved(tmp_path, *layers):
    model = line(*(layers or (kl.LSTM(3), kl.Dense(2))))
    model.save(tmp_path / "m.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
    return tmp_path / "m.keras", tmp_path / "m.h5"


def packed(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(name, data)
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def test_archives(tmp_path):
    path, _ = saved(tmp_path)
    own = members(path)
    assert called(from_keras(packed(tmp_path / "deflated.keras", own, zipfile.ZIP_DEFLATED))).any()
    for name, changed, message in [
        ("twice", [*own, own[1]], "one member 'config.json', got 2"),
        ("none", own[:2], "one member 'model.weights.h5', got 0"),
        ("other method", None, "expected stored or deflated"),
        ("text", [(n, b"{" if n == "config.json" else d) for n, d in own], "configuration"),
        ("version", [(n, b'{"keras_version": "4"}' if "meta" in n else d) for n, d in own], "4"),
        ("weights", [(n, b"no" if "h5" in n else d) for n, d in own], "got a file of 2"),
        ("deep", [(n, b"[" * 10**5 if n == "config.json" else d) for n, d in own], "configuration"),
        ("climbs", [("../" + n, d) for n, d in own], "one member 'config.json', got 0"),
    ]:  # fmt: skip
        if changed is None:
            packed(path, own, zipfile.ZIP_BZIP2)
        else:
            packed(path, changed)
        with pytest.raises(KerasError, match=message):
            from_keras(path)
        assert not (tmp_path.parent / "config.json").exists(), name


def test_bombs(tmp_path):
    """Nothing is read that the cap does not allow: neither members nor arrays."""
    path, legacy = saved(tmp_path)
    own = members(path)
    bomb = [(n, bytes(10**7) if "h5" in n else d) for n, d in own]
    packed(path, bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(KerasError, match="max_bytes=1000000 bytes"):
        from_keras(path, max_bytes=10**6)
    huge = [lstm(units=2**14)]
    written(tmp_path / "huge.h5", huge, {"lstm": []})
    with h5py.File(tmp_path / "huge.h5", "r+") as file:
        group = file["model_weights/lstm"]
        shapes = [(INPUTS, 2**16), (2**14, 2**16), (2**16,)]
        group.attrs["weight_names"] = [f"w{i}" for i in range(3)]
        for i, shape in enumerate(shapes):  # 4 GiB in a file of a few KiB
            group.create_dataset(f"w{i}", shape, "f4", chunks=True, compression="gzip")
        group["w0"][...] = 0
    assert os.path.getsize(tmp_path / "huge.h5") < 10**6
    with pytest.raises(KerasError, match=r"w1: expected at most max_bytes=2147483648 bytes"):
        from_keras(tmp_path / "huge.h5")
    total = 4 * (4 * 12 + 3 * 12 + 12 + 3 * 2 + 2)  # all arrays together
    assert from_keras(legacy, max_bytes=total).dtype == np.float32
    with pytest.raises(KerasError, match=f"max_bytes={total - 1} bytes"):
        from_keras(legacy, max_bytes=total - 1)


def change(path, name, make):
    """Put something else in the place of a dataset; make gets the file and the array."""
    with h5py.File(path, "r+") as file:
        old = file[name][()]
        del file[name]
        make(file, old)


def partly(file, at, old):
    file.create_dataset(at, (12,), "f4", chunks=(3,))[:3] = old[:3]


def test_datasets(tmp_path):
    _, path = saved(tmp_path, kl.LSTM(3, name="a"))
    data = path.read_bytes()
    with h5py.File(path) as file:
        (name,) = [n for n in file["model_weights/a"].attrs["weight_names"] if n.endswith("/bias")]
    at = f"model_weights/a/{name}"
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = values(12)
    secret = tmp_path / "secret"
    secret.write_bytes(values(12).tobytes())
    layout = h5py.VirtualLayout((12,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (12,))
    link = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    for make, message in [
        (lambda f, old: f.__setitem__(at, link), "in the file itself, got a link"),
        (lambda f, old: f.__setitem__(at, h5py.SoftLink("/model_weights")),
         "in the file itself, got a link"),
        (lambda f, old: f.create_virtual_dataset(at, layout), "in the file itself"),
        (lambda f, old: f.create_dataset(at, (12,), "f4", external=[(str(secret), 0, 48)]),
         "in the file itself"),
        (lambda f, old: f.__setitem__(at, old[:-1]), r"expected shape \(12,\), got \(11,\)"),
        (lambda f, old: f.__setitem__(at, old.astype("i1")), "floating-point"),
        (lambda f, old: f.create_group(at), "expected an array, got a group"),
        (lambda f, old: f.create_dataset(at, data=old, compression="lzf"), "no filter but gzip"),
        (lambda f, old: f.create_dataset(at, (12,), "f4"), "12|48 bytes"),
        (lambda f, old: f.create_dataset(at, (12,), "f4", chunks=(3,)), "expected chunks"),
        (lambda f, old: partly(f, at, old), "expected all chunks"),
        (lambda f, old: None, "nothing of that name"),
    ]:  # fmt: skip
        path.write_bytes(data)
        change(path, at, make)
        with pytest.raises(KerasError, match=message):
            from_keras(path)


def compact(file, at, old):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(old.shape)
    h5py.h5d.create(file.id, at.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=made)
    file[at][...] = old


LAYOUTS = {
    "chunks": lambda f, at, old: f.create_dataset(at, data=old, chunks=(2, 5)),
    "one chunk": lambda f, at, old: f.create_dataset(at, data=old, chunks=old.shape),
    "gzip": lambda f, at, old: f.create_dataset(
        at, data=old, chunks=(3, 7), compression="gzip", shuffle=True, fletcher32=True),
    "checksum": lambda f, at, old: f.create_dataset(at, data=old, chunks=True, fletcher32=True),
    "compact": compact,
    "big endian": lambda f, at, old: f.create_dataset(at, data=old.astype(">f4")),
    "float64": lambda f, at, old: f.create_dataset(at, data=old.astype("f8")),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_arrays(name, tmp_path):
    """However HDF5 keeps the numbers, they are the same."""
    arrays = [values(INPUTS, 20), values(5, 20), values(20)]
    path = written(tmp_path / "m.h5", [lstm()], {"lstm": arrays})
    before = from_keras(path)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/lstm/lstm"]
        for i in range(2):
            old = group[f"{i}:0"][()]
            del group[f"{i}:0"]
            LAYOUTS[name](file, f"model_weights/lstm/lstm/{i}:0", old)
    after = from_keras(path)
    for one, other in zip(after.params.values(), before.params.values(), strict=True):
        assert np.array_equal(one, other)


def test_names_in_pieces_and_of_any_type(tmp_path):
    """Headers of objects end at 64 KiB: Keras cuts long lists of names."""
    arrays = [values(INPUTS, 20), values(5, 20), values(20)]
    path = written(tmp_path / "m.h5", [lstm()], {"lstm": arrays})
    with h5py.File(path, "r+") as file:
        attributes = file["model_weights/lstm"].attrs
        names = list(attributes.pop("weight_names"))
        attributes["weight_names0"] = np.array(names[:2])
        attributes["weight_names1"] = [name.decode() for name in names[2:]]
        file.attrs["model_config"] = np.bytes_(file.attrs["model_config"])
        for i in range(20):
            file.attrs[f"more {i}"] = i
    assert from_keras(path)["lstm"].hidden_size == 5


@pytest.mark.parametrize("name", ["latest", "many links"])
def test_other_forms_of_hdf5_are_named(name, tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver="latest" if name == "latest" else None) as file:
        if name == "many links":
            file = file.create_group("model_weights", track_order=True)
            for i in range(100):
                file.create_group(f"g{i}")
    with pytest.raises(KerasError, match="h5py can write it again"):
        from_keras(path, config="{}")


def damaged(data, seed):
    """Some bytes changed, a piece removed or moved, or the end cut off."""
    rng = random.Random(seed)
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i, n = rng.randrange(len(found)), rng.randrange(1, 9)
        kind = rng.random()
        if kind < 0.6:
            found[i] = rng.choice((0, 1, 127, 128, 255, found[i] ^ (1 << rng.randrange(8))))
        elif kind < 0.8:
            found[i : i + n] = rng.choice((b"\xff" * n, bytes(n), rng.randbytes(n)))
        elif kind < 0.9:
            j = rng.randrange(len(found))
            found[i : i + n] = found[j : j + n]
        else:
            del found[max(i, 100) :]
    return bytes(found)


SEEDS = int(os.environ.get("CYLSTM_SEEDS", 150))


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_damage_has_a_name(kind, tmp_path):
    """Whatever is damaged: a network, or our error; never another, and no crash."""
    path = dict(zip(("keras", "h5"), saved(tmp_path), strict=True))[kind]
    data, refused = path.read_bytes(), 0
    for seed in range(SEEDS):
        path.write_bytes(damaged(data, seed))
        try:
            quietly(path, max_bytes=10**6)
        except KerasError:
            refused += 1
    assert refused > SEEDS // 10
