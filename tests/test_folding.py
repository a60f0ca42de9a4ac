"""`folded`: the same outputs without `BatchNorm`."""

import numpy as np
import pytest
from helpers import assert_same_bits
from networks import normal

import cylstm

NORMAL = {"dtype": "float64", "rng": 0}


def norm(width, **options):
    """A batch norm with random statistics."""
    module = cylstm.BatchNorm(width, dtype="float64", **options)
    module.assign(
        {name: 0.5 + np.abs(normal(width, seed=i)) for i, name in enumerate(module.params)}
    )
    return module


def kinds(net):
    return [type(module).__name__ for module in net._all().values()]


@pytest.mark.parametrize(
    ("modules", "left"),
    [
        ([cylstm.Linear(3, 4, **NORMAL), norm(4)], ["Linear"]),
        ([cylstm.Linear(3, 4, bias=False, **NORMAL), norm(4, affine=False)], ["Linear"]),
        ([cylstm.Conv1d(3, 4, 3, padding=1, **NORMAL), norm(4)], ["Conv1d"]),
        ([cylstm.Conv1d(3, 4, 2, bias=False, **NORMAL), norm(4), norm(4)], ["Conv1d"]),
        ([norm(3), cylstm.Linear(3, 4, activation="tanh", **NORMAL)], ["Linear"]),
        ([norm(3), cylstm.Conv1d(3, 4, 3, stride=2, **NORMAL)], ["Conv1d"]),
        ([norm(3), cylstm.Conv1d(3, 4, 3, padding="same", **NORMAL)], ["BatchNorm", "Conv1d"]),
        ([norm(3), cylstm.LSTM(3, 4, 2, bidirectional=True, **NORMAL)], ["LSTM"]),
        ([norm(3), cylstm.GRU(3, 4, bias="single", **NORMAL)], ["GRU"]),
        ([norm(3), cylstm.GRU(3, 4, reset_after=False, **NORMAL)], ["GRU"]),
        ([norm(3), cylstm.LSTM(3, 4, layer_norm="haste", **NORMAL)], ["BatchNorm", "LSTM"]),
        ([norm(3), cylstm.RNN(3, 4, bias=False, **NORMAL)], ["BatchNorm", "RNN"]),
        ([norm(3), cylstm.MinGRU(3, 4, **NORMAL)], ["MinGRU"]),
        ([norm(3), cylstm.SLSTM(3, 4, **NORMAL)], ["SLSTM"]),
        (
            [
                cylstm.Linear(3, 4, activation="relu", **NORMAL),
                norm(4),
                cylstm.Linear(4, 2, **NORMAL),
            ],
            ["Linear", "Linear"],
        ),
        (
            [cylstm.Linear(3, 4, activation="relu", **NORMAL), norm(4), cylstm.Activation("tanh")],
            ["Linear", "BatchNorm", "Activation"],
        ),
        (
            [
                cylstm.Residual(cylstm.Sequential(norm(3), cylstm.Linear(3, 3, **NORMAL))),
                cylstm.Concat(cylstm.Sequential(cylstm.Linear(3, 2, **NORMAL), norm(2)), norm(3)),
            ],
            ["Linear", "Linear", "BatchNorm"],
        ),
    ],
)
def test_same_outputs(modules, left):
    net = cylstm.Sequential(*modules)
    x, before = normal(7, 2, 3), net.flat_params
    small = net.folded()
    assert kinds(small) == left
    for call in ({}, {"lengths": [7, 4]}):
        np.testing.assert_allclose(small(x, **call)[0], net(x, **call)[0], rtol=1e-10, atol=1e-12)
    assert_same_bits(net.flat_params, before)
    if len(modules) > len(left):
        assert set(small._children) < set(net._children)


def test_shared_weights_are_left_alone():
    shared = cylstm.Linear(3, 3, **NORMAL)
    net = cylstm.Sequential(shared, norm(3), cylstm.Activation("tanh"), shared)
    assert kinds(net.folded()) == ["Linear", "BatchNorm", "Activation", "Linear"]
    embedding = cylstm.Embedding(9, 3, **NORMAL)
    tied = cylstm.Linear(3, 9, tied_to=embedding, dtype="float64")
    net = cylstm.Sequential(embedding, norm(3), tied, norm(9))
    again = net.folded()
    assert kinds(again) == ["Embedding", "BatchNorm", "Linear", "BatchNorm"]
    assert again[2].tied_to is again[0] is not embedding
    ids = np.arange(8).reshape(4, 2)
    assert_same_bits(again(ids)[0], net(ids)[0])
