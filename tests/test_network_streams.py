"""Streams over networks: steps, chunks and whole sequences, states, snapshots, errors."""

import copy
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import leaves, normal

import cylstm


def network(dtype="float32", **options):
    """Everything that can stream."""
    return cylstm.Sequential(
        cylstm.Embedding(11, 4, dtype=dtype, rng=0),
        cylstm.BatchNorm(4, dtype=dtype),
        cylstm.Conv1d(4, 4, 3, padding="causal", dilation=2, activation="tanh", dtype=dtype, rng=1),
        cylstm.Residual(cylstm.GRU(4, 4, learn_initial_state=True, dtype=dtype, rng=2, **options)),
        cylstm.Concat(
            cylstm.Sequential(
                cylstm.LSTM(4, (3, 5), dtype=dtype, rng=3, **options), cylstm.Dropout(0.5)
            ),
            cylstm.Conv1d(4, 2, 1, dtype=dtype, rng=4),
            cylstm.Residual(cylstm.Linear(4, 4, dtype=dtype, rng=5)),
        ),
        cylstm.LayerNorm(11, dtype=dtype),
        cylstm.Softmax(),
    )


def made(dtype="float32", **options):
    net = network(dtype, **options)
    net.assign({name: value + 0.1 for name, value in net.params.items() if "initial" in name})
    return net, np.random.default_rng(0).integers(0, 11, (9, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_and_chunks_have_the_bits_of_the_whole(dtype):
    net, ids = made(dtype)
    whole, final = net(ids)
    stream = net.stream(3)
    parts = [stream.step(ids[0])[None], stream.push(ids[1:4]), stream.push(ids[4:4])]
    out = np.empty((11,) if 0 else (3, 11), dtype)
    assert stream.step(ids[4], out=out) is out
    outs = np.empty((3, 3, 11), dtype)
    assert stream.push(ids[5:8], out=outs) is outs
    parts += [out[None], outs, stream.step(ids[8])[None]]
    assert_same_bits(np.concatenate(parts), whole)
    assert_same_bits(tuple(leaves(stream.state)), tuple(leaves(final)))


def test_one_row():
    net, ids = made()
    whole, _ = net(ids[:, 0])
    stream = net.stream()
    parts = [stream.step(ids[0, 0])[None], stream.step(ids[1, :1]), stream.push(ids[2:5, 0])]
    parts += [stream.push(ids[5:8, :1])[:, 0]]
    out = np.empty(11, np.float32)
    parts.append(stream.step(ids[8, 0], out)[None])
    assert_same_bits(np.concatenate(parts), whole)
    outs = np.empty((4, 11), np.float32)
    stream.reset()
    assert_same_bits(stream.push(ids[:4, 0], outs), whole[:4])


def test_batch_first_and_lists():
    net, ids = made(batch_first=True)
    whole, final = net(ids.T)
    stream = net.stream(3)
    assert_same_bits(np.stack([stream.step(row) for row in ids[:2]], axis=1), whole[:, :2])
    assert_same_bits(stream.push(ids[2:5].T), whole[:, 2:5])
    parts = stream.push([ids[5:9, 0], ids[5:5, 1], ids[5:7, 2]])
    for part, row, n in zip(parts, whole, (4, 0, 2), strict=True):
        assert_same_bits(part, row[5 : 5 + n])
    rest = stream.push([ids[9:, 0], ids[5:, 1], ids[7:, 2]])
    assert_same_bits(rest[1], whole[1, 5:])
    assert_same_bits(tuple(leaves(stream.state)), tuple(leaves(final)))


def test_of_numbers():
    net = cylstm.Sequential(cylstm.Linear(3, 4, rng=0), cylstm.LSTM(4, 2, rng=1))
    x = normal(5, 2, 3, dtype="float32")
    stream = net.stream(2)
    assert_same_bits(np.stack([stream.step(frame) for frame in x]), net(x)[0])
    single = net.stream()
    assert_same_bits(np.stack([single.step(frame) for frame in x[:, 0]]), net(x[:, 0])[0])
    frame = normal(2, 3, dtype="float32")
    plain = cylstm.Sequential(cylstm.Dropout(0.5)).stream(2)
    assert not np.shares_memory(plain.step(frame), frame)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_convolutions(dilation, channels):
    net = cylstm.Sequential(
        cylstm.Conv1d(channels, 3, 4, padding="causal", dilation=dilation, rng=0)
    )
    x = normal(9, 2, channels, dtype="float32")
    stream = net.stream(2)
    assert_same_bits(np.stack([stream.step(frame) for frame in x]), net(x)[0])


def test_states_and_resets():
    net, ids = made()
    stream = net.stream(3)
    first = stream.state
    assert (first[1] != 0).any()  # the GRU's is learned
    stream.push(ids)
    later = stream.state
    later[0][...] = 0  # a copy
    assert stream.state[0].any()
    stream.reset([0, 2])
    for now, before, start in zip(
        leaves(stream.state), leaves(net(ids)[1]), leaves(first), strict=True
    ):
        assert_same_bits(now[:, ::2], start[:, ::2])
        assert_same_bits(now[:, 1], before[:, 1])
    stream.reset(1)
    assert_same_bits(tuple(leaves(stream.state)), tuple(leaves(first)))
    stream.state = net(ids)[1]
    assert_same_bits(stream.step(ids[0]), net(np.concatenate([ids, ids[:1]]))[0][-1])
    stream.state = None
    assert_same_bits(tuple(leaves(stream.state)), tuple(leaves(first)))
    one = net.stream(1)
    one.push(ids[:, :1])
    stream.state = (None, *one.state[1:])
    assert_same_bits(stream.state[1][:, 2], one.state[1][:, 0])
    assert not stream.state[0].any()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_copies_go_on_by_themselves(again):
    net, ids = made()
    stream = net.stream(3)
    stream.push(ids)
    twin = again(stream)
    y = stream.push(ids)
    assert_same_bits(twin.push(ids), y)
    assert (twin.network is net) == (again is copy.copy) and twin.batch_size == 3


def test_snapshots():
    net, ids = made()
    stream = net.stream(3)
    stream.push(ids[:5])
    blob = stream.snapshot()
    y = stream.push(ids[5:])
    other = copy.deepcopy(net).stream(3)
    other.restore(blob)
    assert_same_bits(other.push(ids[5:]), y)
    for wrong, message in [
        (blob[:-1], "damaged"),
        (net.stream(2).snapshot(), "expected 3 rows, got 2"),
        (net[1:3].stream(3).snapshot(), "expected one of such a layer"),
        (made("float64")[0].stream(3).snapshot(), "expected one of such a layer"),
        (network().stream(3).snapshot(), "other weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.restore(wrong)
    with pytest.raises(TypeError, match="snapshot: expected bytes"):
        stream.restore(3)
    changed = made()[0]
    changed.assign(net.flat_params + 1)
    with pytest.raises(ValueError, match="other weights"):
        changed.stream(3).restore(blob)


def test_weights_that_change_count_from_the_next_step_on():
    net, ids = made()
    stream = net.stream(3)
    stream.push(ids[:5])
    state = stream.state
    net.assign(net.flat_params * 1.5)
    assert_same_bits(stream.push(ids[5:]), net(ids[5:], state)[0])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (cylstm.GRU(4, 2, bidirectional=True), "1.0 (GRU): bidirectional: expected False"),
        (cylstm.RNN(4, 2, go_backwards=True), "1.0 (RNN): go_backwards: expected False"),
        (cylstm.Pool("max"), "1.0 (Pool): expected no Pool for a stream"),
        (cylstm.Conv1d(4, 2, 3, padding="same"), "1.0 (Conv1d): expected padding='causal'"),
        (cylstm.Conv1d(4, 2, 3), "1.0 (Conv1d): expected padding='causal' for a stream"),
        (cylstm.Conv1d(4, 2, 3, padding=2), "1.0 (Conv1d): expected padding='causal'"),
        (cylstm.Conv1d(4, 2, 3, padding="causal", stride=2), "1.0 (Conv1d): expected stride=1"),
    ],
)
def test_what_looks_ahead_is_refused_by_path(module, message):
    net = cylstm.Sequential(cylstm.Linear(3, 4), cylstm.Sequential(module))
    with pytest.raises(ValueError, match=re.escape(message)):
        net.stream()


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda s, x: s.step(x[0, :2]), ValueError, "x: expected shape (3,), got (2,)"),
        (lambda s, x: s.step(x), ValueError, "x: expected shape (3,), got (9, 3)"),
        (lambda s, x: s.step(x[0] + 11), ValueError, "x: expected integers from 0 to 10"),
        (lambda s, x: s.step(x[0], np.empty((3, 12), "f4")), ValueError, "out: expected shape"),
        (lambda s, x: s.push(x[:, :2]), ValueError, "chunk: expected shape (T, 3), got (9, 2)"),
        (lambda s, x: s.push(x[:, 0]), ValueError, "chunk: expected shape (T, 3), got (9,)"),
        (lambda s, x: s.push([x[:, 0]]), ValueError, "chunk: expected a list of 3 arrays, got 1"),
        (lambda s, x: s.push([x[:, 0]] * 3, np.empty(3)), ValueError, "out: expected None"),
        (lambda s, x: s.push(x, np.empty((9, 3, 11))), TypeError, "out: expected dtype float32"),
        (lambda s, x: s.reset(3), ValueError, "rows: expected some of 0 to 2, got 3"),
        (lambda s, x: s.reset("a"), TypeError, "rows: expected integers"),
        (lambda s, x: setattr(s, "state", 3), TypeError, "state: expected a tuple of 3, got int"),
        (
            lambda s, x: setattr(s, "state", (None, np.zeros((1, 2, 4)), None)),
            ValueError,
            "state[1]: expected shape (1, 3, 4), got (1, 2, 4)",
        ),
        (lambda s, x: setattr(s, "batch_size", 4), AttributeError, "batch_size"),
    ],
)
def test_errors_leave_the_state_alone(act, error, message):
    net, ids = made()
    stream = net.stream(3)
    stream.push(ids)
    before = stream.state
    with pytest.raises(error, match=re.escape(message)):
        act(stream, ids)
    assert_same_bits(tuple(leaves(stream.state)), tuple(leaves(before)))
    with pytest.raises(ValueError, match="batch_size"):
        net.stream(0)


def test_one_call_at_a_time():
    net, ids = made()
    stream = net.stream(3)
    with stream._lock, pytest.raises(RuntimeError, match="one call at a time"):
        stream.step(ids[0])
    stream.step(ids[0])
