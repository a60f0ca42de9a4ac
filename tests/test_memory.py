"""`workspace_nbytes` of networks: what is allocated is not more, and not much less."""

import gc
import tracemalloc

import numpy as np
import pytest

import cylstm

T, B, C = 200, 8, 24

MODULES = {
    "linear": lambda: [cylstm.Linear(C, 32, activation="tanh")],
    "activation": lambda: [cylstm.Activation("tanh")],
    "softmax": lambda: [cylstm.Softmax()],
    "log softmax": lambda: [cylstm.LogSoftmax()],
    "dropout": lambda: [cylstm.Dropout(0.5)],
    "layer norm": lambda: [cylstm.LayerNorm(C)],
    "batch norm": lambda: [cylstm.BatchNorm(C)],
    "convolution": lambda: [cylstm.Conv1d(C, 32, 3, activation="relu")],
    "stride": lambda: [cylstm.Conv1d(C, 32, 5, padding=2, stride=3)],
    "dilation": lambda: [cylstm.Conv1d(C, 32, 3, padding="causal", dilation=5)],
    "both": lambda: [cylstm.Conv1d(C, 8, 3, stride=2, dilation=2)],
    "pool": lambda: [cylstm.Linear(C, C), cylstm.Pool("max")],
    "mean": lambda: [cylstm.Linear(C, C), cylstm.Pool("mean")],
    "residual": lambda: [cylstm.Residual(cylstm.Linear(C, C))],
    "concat": lambda: [cylstm.Concat(cylstm.Linear(C, 32), cylstm.Activation("relu"))],
    "several": lambda: [
        cylstm.Conv1d(C, 32, 3, padding=1), cylstm.BatchNorm(32), cylstm.Activation("relu"),
        cylstm.Dropout(0.2), cylstm.Residual(cylstm.Linear(32, 32)), cylstm.LayerNorm(32),
        cylstm.Linear(32, 5), cylstm.Softmax(),
    ],
}  # fmt: skip
RECURRENT = {
    "lstm": lambda: [cylstm.LSTM(C, 16, bidirectional=True), cylstm.Pool("mean")],
    "gru": lambda: [cylstm.GRU(C, 16, 2), cylstm.Linear(16, 3)],
}


def peak(call):
    """Most bytes of NumPy's and Python's that there are at once, beside those before."""
    call()
    gc.collect()
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def training(net, x):
    dy = np.ones_like(net(x)[0])

    def call():
        _, _, tape = net.forward(x)
        net.backward(tape, dy)

    return call


@pytest.mark.parametrize("name", [*MODULES, *RECURRENT])
@pytest.mark.parametrize("train", [False, True])
def test_bound(name, train):
    net = cylstm.Sequential(*(MODULES | RECURRENT)[name]())
    x = np.random.default_rng(0).normal(size=(T, B, C)).astype(np.float32)
    bound = net.workspace_nbytes(x.shape, training=train)
    found = peak(training(net, x) if train else lambda: net(x))
    assert found <= bound
    if name in MODULES:  # the kernels' own memory of recurrent layers is not NumPy's
        assert bound <= 5 * found


def test_embedding():
    net = cylstm.Sequential(cylstm.Embedding(50, C), cylstm.GRU(C, 8))
    ids = np.random.default_rng(0).integers(0, 50, (T, B))
    for train in (False, True):
        found = peak(training(net, ids) if train else lambda: net(ids))
        assert found <= net.workspace_nbytes(ids.shape, training=train) <= 8 * found


def test_grows_with_the_work():
    net = cylstm.Sequential(cylstm.LSTM(3, 4), cylstm.Linear(4, 2))
    small, large = (net.workspace_nbytes((t, 2, 3), training=True) for t in (1000, 2000))
    assert 1.6 < large / small < 2.2
    assert net.workspace_nbytes((1000, 2, 3)) < small
    with pytest.raises(ValueError, match="shape: expected"):
        net.workspace_nbytes((3, 2, 4))
    with pytest.raises(TypeError, match="training"):
        net.workspace_nbytes((3, 2, 3), training=1)
