"""Networks put together at random: bits, gradients, streams, copies of each."""

import json

import numpy as np
import pytest
from helpers import assert_same_bits
from networks import check_gradients, check_rows, leaves, normal

import cylstm

LENGTHS = [7, 0, 4]


class Generator:
    """Draws modules that read a number of features, and says how many they make."""

    def __init__(self, seed, dtype):
        self.rng = np.random.default_rng(seed)
        self.batch_first = bool(self.rng.integers(2))
        self.common = {"dtype": dtype, "rng": seed}

    def choice(self, values):
        return values[self.rng.integers(len(values))]

    def sequential(self, width, depth, keep=False):
        modules, now = [], width
        for _ in range(self.rng.integers(1, 4)):
            module, now = self.module(now, depth)
            modules.append(module)
        if keep and now != width:
            modules.append(cylstm.Linear(now, width, **self.common))
            now = width
        return cylstm.Sequential(*modules), now

    def module(self, width, depth):
        kinds = [self.linear, self.elementwise, self.norm, self.recurrent, self.recurrent,
                 self.convolution, self.convolution]  # fmt: skip
        return self.choice(kinds + [self.branches] * (2 * (depth > 0)))(width, depth)

    def linear(self, width, depth):
        size = int(self.rng.integers(1, 6))
        activation = self.choice([None, "tanh", "softplus"])
        return cylstm.Linear(width, size, activation=activation, **self.common), size

    def elementwise(self, width, depth):
        module = self.choice([
            cylstm.Activation("sigmoid"), cylstm.Dropout(0.3), cylstm.Softmax(),
            cylstm.Dropout(0.3, variational=True),
        ])  # fmt: skip
        return module, width

    def norm(self, width, depth):
        dtype = self.common["dtype"]
        module = self.choice([
            cylstm.LayerNorm(width, 0.1, dtype=dtype),
            cylstm.BatchNorm(width, 0.1, momentum=0, dtype=dtype),
        ])  # fmt: skip
        module.assign({name: 0.5 + np.abs(normal(width)) for name in module.params})
        return module, width

    def recurrent(self, width, depth):
        size, kind = int(self.rng.integers(1, 6)), self.choice([cylstm.LSTM, cylstm.GRU])
        both = bool(self.rng.integers(2))
        layer = kind(
            width, size, bidirectional=both, batch_first=self.batch_first, **self.common
        )  # fmt: skip
        return layer, size * (1 + both)

    def convolution(self, width, depth):
        size = int(self.rng.integers(1, 6))
        module = cylstm.Conv1d(
            width, size, int(self.rng.integers(1, 5)), padding=self.choice(["same", "causal"]),
            dilation=int(self.rng.integers(1, 3)), **self.common,
        )  # fmt: skip
        return module, size

    def branches(self, width, depth):
        if self.rng.integers(2):
            return cylstm.Residual(self.sequential(width, depth - 1, keep=True)[0]), width
        (one, a), (other, b) = (self.sequential(width, depth - 1) for _ in range(2))
        return cylstm.Concat(one, other), a + b


def made(seed, dtype):
    generator = Generator(seed, dtype)
    net, width = generator.sequential(3, 2)
    if seed % 3 == 0:
        net = cylstm.Sequential(
            *net, cylstm.Pool(generator.choice(["last", "mean"])),
            cylstm.Linear(width, 2, **generator.common),
        )  # fmt: skip
    return net, bool(net._time_second)


@pytest.mark.parametrize("seed", range(24))
def test_rows_and_streams_have_the_bits_of_the_whole(seed):
    net, turned = made(seed, "float32")
    x = normal(7, 3, 3, dtype="float32", seed=seed)
    check_rows(net, x, LENGTHS, batch_first=turned)
    try:
        stream = net.stream(3)
    except ValueError:
        return
    whole, final = net(x.swapaxes(0, 1) if turned else x)
    middle = stream.push(x[:4].swapaxes(0, 1) if turned else x[:4])
    parts = [middle.swapaxes(0, 1) if turned else middle]
    parts += [stream.step(frame)[None] for frame in x[4:]]
    assert_same_bits(np.concatenate(parts), whole.swapaxes(0, 1) if turned else whole)
    for mine, other in zip(leaves(stream.state), leaves(final), strict=True):
        assert_same_bits(mine, other)


@pytest.mark.parametrize("seed", range(24))
def test_gradients(seed):
    net, turned = made(seed, "float64")
    x = normal(7, 3, 3, seed=seed)
    x = x.swapaxes(0, 1).copy() if turned else x
    call = [{}, {"lengths": LENGTHS}, {"mask": normal(*x.shape[:2], seed=seed + 1) < 0.5}][seed % 3]
    check_gradients(net, x, net(x)[1], rng=7, step=1e-4, rtol=2e-5, **call)


@pytest.mark.parametrize("seed", range(24))
def test_descriptions(seed):
    net, turned = made(seed, "float64")
    x = normal(3, 7, 3) if turned else normal(7, 3, 3)
    again = cylstm.Module.from_config(json.loads(json.dumps(dict(net.config))))
    again.load_state_dict(net.state_dict())
    y = net(x)[0]
    assert_same_bits(again(x)[0], y)
    assert eval(repr(net), vars(cylstm)).config == net.config
    assert net.summary(x.shape).output_shape == y.shape
    small = net.folded()(x, lengths=LENGTHS)[0]
    np.testing.assert_allclose(small, net(x, lengths=LENGTHS)[0], rtol=1e-9, atol=1e-11)
