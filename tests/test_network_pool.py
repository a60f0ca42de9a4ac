"""Pools of streams over networks: bits, states, ids, errors."""

import copy
import os
import pickle
import re

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits
from networks import leaves, normal

import cylstm
from cylstm.streams import PoolFullError


def network(dtype="float32", batch_first=False):
    net = cylstm.Sequential(
        cylstm.Conv1d(3, 4, 3, padding="causal", dtype=dtype, rng=0),
        cylstm.Residual(
            cylstm.LSTM(4, 4, learn_initial_state=True, dtype=dtype, batch_first=batch_first, rng=1)
        ),
        cylstm.Linear(4, 2, dtype=dtype, rng=2),
    )
    net.assign({name: value + 0.1 for name, value in net.params.items() if "initial" in name})
    return net


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_has_the_bits_it_has_alone(dtype, batch_first):
    net, x = network(dtype, batch_first), normal(12, 3, 3, dtype=dtype)
    pool, rng = net.pool(5), np.random.default_rng(0)
    ids = [pool.open() for _ in range(3)]
    fed, outputs = [0, 0, 0], [[], [], []]
    for _ in range(14):
        which = rng.permutation(3)[: rng.integers(0, 4)]
        which = [k for k in which if fed[k] < 12]
        frames = np.array([x[fed[k], k] for k in which]).reshape(-1, 3)
        out = np.empty((len(which), 2), dtype)
        chosen = [ids[k] for k in which]
        assert pool.step(chosen, frames, out, num_threads=2) is out
        for k, y in zip(which, out, strict=True):
            outputs[k].append(y.copy())
            fed[k] += 1
    for k in range(3):
        whole, final = net(x[: fed[k], k])
        assert fed[k] > 3
        assert_same_bits(np.array(outputs[k]), whole)
        for mine, other in zip(leaves(pool.state(ids[k])), leaves(final), strict=True):
            assert_same_bits(mine[:, 0], other)


def test_of_ids():
    net = cylstm.Sequential(cylstm.Embedding(9, 3, rng=0), cylstm.GRU(3, 2, rng=1))
    pool = net.pool(2)
    one, two = pool.open(), pool.open()
    assert_same_bits(pool.step([two, one], [3, 4]), net([[3, 4]])[0][0])
    with pytest.raises(ValueError, match="x: expected integers from 0 to 8, got 9"):
        pool.step([one], [9])


def test_slots_are_used_again_from_the_initial_state():
    net, x = network(), normal(1, 3, dtype="float32")
    pool = net.pool(2)
    first = pool.open()
    y = pool.step([first], x)
    pool.step([first], x)
    pool.close(first)
    second, third = pool.open(), pool.open()
    assert {first, second, third} == {first, first + 1, first + 2} and first not in pool
    assert list(pool) == [second, third] and len(pool) == 2 and np.int64(second) in pool
    for id in (second, third):
        assert_same_bits(pool.step([id], x), y)
    with pytest.raises(PoolFullError, match="capacity=2 open streams"):
        pool.open()
    pool.reset(second)
    assert_same_bits(pool.step([second], x), y)
    assert net.pool(1).open() > third


def test_states_and_snapshots():
    net, x = network(), normal(2, 3, dtype="float32")
    pool = net.pool(3)
    one, other = pool.open(), pool.open()
    pool.step([one, other], x)
    kept, blob = pool.state(one), pool.snapshot(one)
    y = pool.step([one], x[:1])
    pool.set_state(one, kept)
    assert_same_bits(pool.step([one], x[:1]), y)
    pool.restore(other, blob)
    assert_same_bits(pool.step([other], x[:1]), y)
    stream = net.stream()
    stream.restore(blob)
    assert_same_bits(stream.step(x[:1]), y)
    pool.restore(one, stream.snapshot())
    kept[0][...] = 9
    assert not (pool.state(one)[0] == 9).any()
    with pytest.raises(ValueError, match="damaged"):
        pool.restore(one, blob[:-1])


def test_idle_streams():
    now = [0.0]
    pool = network().pool(3, clock=lambda: now[0])
    one, two, three = pool.open(), pool.open(), pool.open()
    now[0] = 5.0
    pool.step([two], np.zeros((1, 3)))
    pool.set_state(three, None)
    assert pool.idle(one) == 5 and pool.idle(two) == pool.idle(three) == 0
    now[0] = 7.0
    assert pool.close_idle(3) == [one] and list(pool) == [two, three]


def test_pools_are_not_copied_and_work_in_a_child():
    pool = network().pool(1)
    id = pool.open()
    for make in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="a pool cannot be pickled or copied"):
            make(pool)
    with pool._lock:
        pid = os.fork()
        if not pid:
            pool.step([id], np.zeros((1, 3)))
            os._exit(17)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda p, i: p.step([i, i], np.zeros((2, 3))), ValueError, "ids: expected each stream"),
        (
            lambda p, i: p.step([i + 1], np.zeros((1, 3))),
            ValueError,
            "id: expected that of an open",
        ),
        (lambda p, i: p.step(["a"], np.zeros((1, 3))), TypeError, "ids: expected integers"),
        (lambda p, i: p.step(i, np.zeros((1, 3))), ValueError, "ids: expected shape (n,)"),
        (lambda p, i: p.step([i], np.zeros(3)), ValueError, "x: expected shape (1, 3), got (3,)"),
        (lambda p, i: p.step([i], np.zeros((1, 4))), ValueError, "x: expected shape (..., 3)"),
        (lambda p, i: p.step([i], np.zeros((1, 3)), 3), TypeError, "out: expected an ndarray"),
        (
            lambda p, i: p.step([i], np.zeros((1, 3)), np.zeros((1, 2))),
            TypeError,
            "out: expected dtype float32",
        ),
        (lambda p, i: p.step([i], np.zeros((1, 3)), num_threads=0), ValueError, "num_threads"),
        (lambda p, i: p.close(i + 1), ValueError, "id: expected that of an open stream"),
        (lambda p, i: p.state("a"), TypeError, "id: expected an integer"),
        (lambda p, i: p.set_state(i, 3), TypeError, "state: expected a tuple of 2, got int"),
        (lambda p, i: p.restore(i, 3), TypeError, "snapshot: expected bytes"),
        (lambda p, i: p.close_idle(-1), ValueError, "seconds"),
        (lambda p, i: network().pool(0), ValueError, "capacity"),
        (lambda p, i: network().pool(2**24 + 1), ValueError, "capacity: expected at most"),
        (lambda p, i: network().pool(1, clock=3), TypeError, "clock"),
        (
            lambda p, i: cylstm.Sequential(cylstm.Pool("max")).pool(1),
            ValueError,
            "0 (Pool): expected no Pool",
        ),
    ],
)
def test_errors_leave_streams_alone(act, error, message):
    pool = network().pool(3)
    id = pool.open()
    pool.step([id], np.ones((1, 3)))
    before = pool.state(id)
    with pytest.raises(error, match=re.escape(message)):
        act(pool, id)
    assert_same_bits(tuple(leaves(pool.state(id))), tuple(leaves(before)))
    assert list(pool) == [id]
