"""Configurations: plain data from which a module can be made again."""

import json

import numpy as np
import pytest

import cylstm

MODULES = [
    cylstm.LSTM(3, 4), cylstm.GRU(3, 4, 2, bias=False), cylstm.RNN(3, 4, nonlinearity="relu"),
    cylstm.LSTM(3, (4, 5), bidirectional=True, peepholes=True, merge_mode="sum"),
    cylstm.LSTM(3, 4, 2, proj_size=2, dropout=0.5, forget_bias=1.0, bias="single"),
    cylstm.LSTM(3, 4, activations=["sigmoid", ("leakyrelu", 0.2), "tanh"], cell_clip=2.0),
    cylstm.GRU(3, 4, reset_after=False, zoneout=0.1, clip=1.0, dtype="float64"),
    cylstm.RNN(3, 4, independent=True, batch_first=True, go_backwards=True),
    cylstm.MinGRU(3, 4, 2), cylstm.MinLSTM(3, 4, bias=False), cylstm.AUGRU(3, 4),
    cylstm.SLSTM(3, 4, num_heads=2, forget_gate="exp"),
    cylstm.Linear(3, 4, activation=("leakyrelu", 0.1), bias=False),
    cylstm.Embedding(3, 4, padding_idx=-1),
]  # fmt: skip
EVERY = pytest.mark.parametrize("module", MODULES, ids=repr)


@EVERY
def test_a_module_made_again(module):
    config = module.config
    assert config["class"] == type(module).__name__
    with pytest.raises(TypeError):
        config["class"] = "GRU"
    for given in (config, dict(config), json.loads(json.dumps(dict(config)))):
        for kind in (type(module), cylstm.Module):
            made = kind.from_config(given, rng=0)
            assert type(made) is type(module)
            assert repr(made) == repr(module)
            assert made.config == config
            assert made.params.keys() == module.params.keys()
            again = kind.from_config(given, rng=0)
            np.testing.assert_array_equal(again.flat_params, made.flat_params)
            made.load_state_dict(module.state_dict())
            np.testing.assert_array_equal(made.flat_params, module.flat_params)


def test_the_same_seed_draws_the_same():
    for kind, sizes in ((cylstm.LSTM, (3, 4)), (cylstm.Linear, (3, 4)), (cylstm.Embedding, (3, 4))):
        module = kind(*sizes, rng=5)
        made = kind.from_config(module.config, rng=5)
        np.testing.assert_array_equal(made.flat_params, module.flat_params)


def test_what_is_not_said_is_the_default():
    made = cylstm.Module.from_config({"class": "LSTM", "input_size": 3, "hidden_size": 4})
    assert repr(made) == "LSTM(3, 4)"


def test_subclasses():
    class Encoder(cylstm.LSTM):
        """A subclass with the constructor of its class."""

    encoder = Encoder(3, 4)
    assert encoder.config["class"] == "Encoder"
    assert type(Encoder.from_config(encoder.config)) is Encoder
    with pytest.raises(ValueError, match=r"^config: expected 'class' 'LSTM', got 'Encoder'"):
        cylstm.LSTM.from_config(encoder.config)
    with pytest.raises(ValueError, match=r"^config: .*module of cylstm, got 'Encoder'"):
        cylstm.Module.from_config(encoder.config)


def test_tied_weights_are_not_data():
    embedding = cylstm.Embedding(5, 3)
    with pytest.raises(ValueError, match=r"^tied_to: expected None"):
        _ = cylstm.Linear(3, 5, tied_to=embedding).config


@pytest.mark.parametrize(
    ("error", "config", "words"),
    [
        (TypeError, None, "config: expected a mapping, got NoneType"),
        (TypeError, [("class", "LSTM")], "config: expected a mapping, got list"),
        (ValueError, {}, "config: .*got None"),
        (ValueError, {"class": "show_config"}, "config: .*'show_config'"),
        (ValueError, {"class": "__version__"}, "config: .*'__version__'"),
        (ValueError, {"class": ["LSTM"]}, "config: .*LSTM"),
        (ValueError, {"class": "Adam"}, "config: .*'Adam'"),
        (TypeError, {"class": "LSTM", "input_size": 3, "hidden_size": 4, "gates": 4},
         "config: expected arguments of LSTM, got .*gates"),
        (ValueError, {"class": "LSTM", "input_size": 0, "hidden_size": 4}, "input_size: .*0"),
        (TypeError, {"class": "LSTM", "input_size": 3}, ".*hidden_size"),
    ],
)  # fmt: skip
def test_wrong_configurations(error, config, words):
    with pytest.raises(error, match=f"^{words}"):
        cylstm.Module.from_config(config)
