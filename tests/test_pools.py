"""Pools: each stream has the bits it has alone, whoever comes, goes, fails or is asleep."""

import copy
import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import DTYPES, LAYERS, assert_same_bits, refused, run_python
from hypothesis import given
from hypothesis import strategies as st
from test_streams import CELLS, EVERY, SIZES
from variants import CELL_VARIANTS, named

import cylstm
from cylstm.kernels import sequence
from cylstm.streams import PoolFullError, StreamPool


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def frames(layer, *shape, seed=0):
    """Random numbers for so many streams."""
    size = (*shape, layer.input_size)
    return np.random.default_rng(seed).normal(size=size).astype(layer.dtype)


def learned(layer):
    """Give a learned initial state numbers that are not 0."""
    drawn = np.random.default_rng(9)
    layer.assign({n: drawn.normal(size=v.shape) for n, v in layer.params.items() if "initial" in n})
    return layer


def opened(pool, count):
    return [pool.open() for _ in range(count)]


@pytest.mark.parametrize(
    ("cell", "options"), **named([v for v in CELL_VARIANTS if v[1] != "augru"])
)
def test_every_option(cell, options):
    layer = LAYERS[cell](3, 17, 2, rng=0, **options)
    pool, x = layer.pool(5), frames(layer, 4, 5)
    ids = opened(pool, 5)
    y = np.stack([pool.step(ids, frame) for frame in x])
    assert_same_bits(y, layer(x)[0])


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@EVERY
def test_sizes(cell, sizes, dtype, initial):
    layer = learned(LAYERS[cell](*sizes, rng=0, dtype=dtype, learn_initial_state=initial))
    pool, x = layer.pool(7), frames(layer, 4, 7)
    ids = opened(pool, 7)
    y, _ = layer(x)
    for t, order in enumerate((range(7), (6, 2, 0, 5, 1, 3, 4), range(7), (3, 4, 5, 6, 0, 1, 2))):
        found = pool.step([ids[k] for k in order], x[t, list(order)])
        assert_same_bits(found, y[t, list(order)])
    for k in range(7):
        assert_same_bits(pool.state(ids[k]), layer(x[:, k])[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 64, 65, 300])
@EVERY
def test_units_and_threads(cell, count, threads):
    layer = LAYERS[cell](8, 96, rng=0)
    pool, x = layer.pool(300), frames(layer, 3, 300)
    y, order = layer(x)[0], np.random.default_rng(0).permutation(300)[:count]
    ids = np.array(opened(pool, 300))
    for t in range(3):
        found = pool.step(ids[order], x[t, order], num_threads=threads)
        assert_same_bits(found, y[t, order])


@given(st.integers(0, 2**32 - 1))
def test_streams_come_and_go(seed):
    """Beside layer calls that carry each stream's state by hand."""
    rng = np.random.default_rng(seed)
    layer = LAYERS[CELLS[seed % 3]](3, (9, 5), rng=seed, learn_initial_state=bool(seed % 2))
    pool, state = learned(layer).pool(6), {}
    closed = []
    for _ in range(25):
        action = rng.choice(["open", "close", "step", "step", "set", "reset", "move"])
        if action == "open" and len(state) < 6:
            state[pool.open()] = None
        elif action == "step":
            ids = [i for i in rng.permutation(list(state)).tolist() if rng.random() < 0.7]
            x = rng.normal(size=(len(ids), 3)).astype("f")
            x[rng.random(len(ids)) < 0.1] = np.nan
            y = pool.step(ids, x)
            for k, i in enumerate(ids):
                alone, state[i] = layer(x[k : k + 1], state[i])
                assert_same_bits(y[k : k + 1], alone)
        elif state:
            i = int(rng.choice(list(state)))
            if action == "close":
                pool.close(i)
                closed.append(i)
                del state[i]
            elif action == "set":
                pool.set_state(i, state[i])
            elif action == "reset":
                pool.reset(i)
                state[i] = None
            elif action == "move":
                blob = pool.snapshot(i)
                pool.reset(i)
                pool.restore(i, blob)
        assert sorted(pool) == sorted(state) and len(pool) == len(state)
        assert all(i in pool for i in state) and not any(i in pool for i in closed)
    for i in state:
        if state[i] is not None:
            assert_same_bits(pool.state(i), state[i])


# Ids


def test_wrong_ids_are_named_and_change_nothing():
    layer = cylstm.LSTM(3, 5, rng=0)
    pool, x = layer.pool(4), frames(layer, 3)
    a, b, c = opened(pool, 3)
    other = layer.pool(4).open()
    pool.close(b)
    d = pool.open()
    assert d != b and b not in pool
    pool.step([a, c, d], x)
    states = [pool.state(i) for i in (a, c, d)]
    for wrong in (b, other, -1, d + 1, 2**62, 2**40):
        refused(ValueError, "ids", str(wrong), pool.step, [a, wrong, d], x)
    refused(ValueError, "ids", f"{b}, {other}", pool.step, [a, b, c, other], frames(layer, 4))
    refused(ValueError, "ids", f"{c} more than once", pool.step, [a, c, d, c], frames(layer, 4))
    refused(ValueError, "ids", "more", pool.step, list(range(50)), frames(layer, 50))
    refused(ValueError, "ids", "closed", pool.step, np.array([2**63 + 1], np.uint64), x[:1])
    for wrong in (1.5, None, "1", True):
        refused(TypeError, "id", repr(wrong), pool.close, wrong)
    for wrong in (b, -1, 2**64, -(2**64)):
        for call in (pool.close, pool.state, pool.snapshot, pool.idle, pool.reset):
            refused(ValueError, "id", str(wrong), call, wrong)
        refused(ValueError, "id", str(wrong), pool.submit, wrong, x[0])
        refused(ValueError, "id", str(wrong), pool.set_state, wrong, None)
        refused(ValueError, "id", str(wrong), pool.restore, wrong, pool.snapshot(a))
        assert wrong not in pool
    assert 1.0 not in pool and "a" not in pool
    assert 0 not in layer.pool(10**5)  # whose memory may be zeros
    assert_same_bits(tuple(pool.state(i) for i in (a, c, d)), tuple(states))
    assert_same_bits(pool.step(np.array([d, a], np.uint64), x[:2]), layer(
        x[None, :2], tuple(np.stack([s[k] for s in (states[2], states[0])], 1) for k in (0, 1))
    )[0][0])  # fmt: skip


def test_ids_never_come_again():
    layer = cylstm.RNN(3, 5, rng=0)
    pools, seen = [layer.pool(3), layer.pool(2)], set()
    for k in range(1000):
        pool = pools[k % 2]
        if len(pool) == pool.capacity:
            pool.close(next(iter(pool)))
        i = pool.open()
        assert type(i) is int and i not in seen
        seen.add(i)


@pytest.mark.parametrize("initial", [False, True])
@EVERY
def test_a_slot_used_again_starts_from_the_initial_state(cell, initial):
    layer = learned(LAYERS[cell](3, 17, 2, rng=0, learn_initial_state=initial))
    pool, x = layer.pool(2), frames(layer, 5)
    nan = np.full((1, 3), np.nan, "f")
    for _ in range(3):
        i, j = pool.open(), pool.open()
        pool.step([j, i], np.concatenate([nan, x[:1]]))
        pool.step([j], nan)
        assert pool.statistics([i, j]).finite.tolist() == [True, False]
        pool.close(j)
        j = pool.open()
        y = np.concatenate([pool.step([j], x[t : t + 1]) for t in range(5)])
        assert_same_bits(y, layer(x)[0])
        pool.close(i)
        pool.close(j)


def test_what_is_learned_may_change():
    layer = learned(cylstm.GRU(3, 5, rng=0, learn_initial_state=True))
    pool = layer.pool(2)
    i = pool.open()
    layer.assign({"initial_h_l0": np.arange(5)})
    assert pool.state(i)[0, 4] != 4
    j = pool.open()
    pool.reset(i)
    for k in (i, j):
        assert pool.state(k).tolist() == [[0, 1, 2, 3, 4]]


def test_a_full_pool():
    pool = cylstm.RNN(3, 5, rng=0).pool(2)
    ids = opened(pool, 2)
    with pytest.raises(PoolFullError, match=r"^open: expected .*capacity=2.*got 2"):
        pool.open()
    assert issubclass(PoolFullError, RuntimeError) and sorted(pool) == sorted(ids)
    pool.close(ids[0])
    pool.open()


def test_idle_streams():
    clock = Clock()
    layer = cylstm.RNN(3, 5, rng=0)
    pool = layer.pool(5, clock=clock)
    ids, x = opened(pool, 5), frames(layer, 1)
    clock.now = 10.0
    pool.step(ids[:1], x)
    pool.submit(ids[1], x[0])
    pool.reset(ids[2])
    clock.now = 12.0
    pool.state(ids[3])  # looking is no use
    assert [pool.idle(i) for i in ids] == [2, 2, 2, 12, 12]
    assert pool.close_idle(12.5) == []
    assert sorted(pool.close_idle(12)) == sorted(ids[3:]) and len(pool) == 3
    clock.now = 13.0
    assert sorted(pool.close_idle(2)) == sorted(ids[:3])
    assert pool.flush() == {} and len(pool) == 0 and opened(pool, 5)
    for wrong, error in ((-1, ValueError), ("1", TypeError), (float("nan"), ValueError)):
        refused(error, "seconds", str(wrong), pool.close_idle, wrong)
    real = layer.pool(1)
    assert 0 <= real.idle(real.open()) < 60


# Frames that wait


def test_submit_and_flush():
    clock = Clock()
    layer = cylstm.LSTM(3, 5, rng=0)
    pool, x = layer.pool(4, latency=0.5, clock=clock), frames(layer, 3, 3)
    a, b, c = opened(pool, 3)
    y = layer(x)[0]
    assert pool.due() is None and pool.flush() == {}
    kept = x[0, 0].copy()
    pool.submit(a, kept)
    kept[:] = np.nan  # it is a copy
    assert pool.due() == 0.5
    clock.now = 0.2
    pool.submit(b, x[0, 1].tolist())
    pool.submit(a, x[1, 0])
    pool.submit(a, x[2, 0])
    assert pool.due() == pytest.approx(0.3)
    clock.now = 0.7
    assert pool.due() == 0
    found = pool.flush()
    assert list(found) == [a, b]
    assert_same_bits((found[a], found[b]), (y[:, 0].copy(), y[:1, 1].copy()))
    assert pool.due() is None and pool.flush() == {}
    for i in (a, b, c):
        pool.submit(i, x[0, 0])
    assert pool.due() == 0  # nobody else can come
    pool.close(b)
    assert list(pool.flush(num_threads=2)) == [a, c]
    assert pool.latency == 0.5
    refused(ValueError, "x", "(4,)", pool.submit, a, np.ones(4))
    refused(TypeError, "x", "bool", pool.submit, a, np.ones(3, bool))
    assert pool.due() is None


def test_a_flush_that_fails_loses_nothing():
    layer = cylstm.GRU(3, 5, rng=0)
    x, rounds = frames(layer, 3, 2), []
    y = layer(x)[0]

    class Failing(StreamPool):
        def step(self, *arguments, **options):
            rounds.append(1)
            if len(rounds) == 2:
                pool.submit(b, x[2, 1])
                raise MemoryError
            return super().step(*arguments, **options)

    pool = Failing(layer, 2)
    a, b = opened(pool, 2)
    for t in range(3):
        pool.submit(a, x[t, 0])
    pool.submit(b, x[0, 1])
    pool.submit(b, x[1, 1])
    with pytest.raises(MemoryError):
        pool.flush()
    found = pool.flush()
    assert_same_bits((found[a], found[b]), (y[:, 0].copy(), y[:, 1].copy()))


def test_a_server_of_several_threads():
    """Clients submit, close and come again while one thread flushes when it is due."""
    layer = cylstm.LSTM(4, 32, rng=0)
    pool = layer.pool(8, latency=0.0005)
    heard, over = {}, threading.Event()

    def serve():
        while not over.is_set() or pool.due() is not None:
            if pool.due() == 0:
                for i, y in pool.flush().items():
                    heard.setdefault(i, []).append(y)

    def client(seed):
        said = {}
        for k in range(6):
            x = frames(layer, 20, seed=10 * seed + k)
            i = pool.open()
            for frame in x:
                pool.submit(i, frame)
            while sum(map(len, heard.get(i, []))) < 20:
                over.wait(0.0005)
            pool.close(i)
            said[i] = x
        return said

    server = threading.Thread(target=serve)
    server.start()
    try:
        with ThreadPoolExecutor(4) as clients:
            said = {i: x for part in clients.map(client, range(4)) for i, x in part.items()}
    finally:
        over.set()
        server.join()
    for i, x in said.items():
        assert_same_bits(np.concatenate(heard[i]), layer(x)[0])


# States


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@EVERY
def test_states_and_snapshots(cell, sizes):
    layer = LAYERS[cell](*sizes, rng=0)
    pool, x = layer.pool(3), frames(layer, 6)
    i, j = opened(pool, 2)
    y, final = layer(x)
    for t in range(3):
        pool.step([i], x[t : t + 1])
    state = layer(x[:3])[1]
    assert_same_bits(pool.state(i), state)
    pool.set_state(j, state)
    blob = pool.snapshot(i)
    k = pool.open()
    pool.restore(k, blob)
    stream = layer.stream()
    stream.restore(blob)
    for t in range(3, 6):
        assert_same_bits(pool.step([j, k], x[[t, t]]), np.stack([y[t], y[t]]))
        assert_same_bits(stream.step(x[t]), y[t])
    assert_same_bits((pool.state(j), pool.state(k)), (final, final))
    pool.restore(j, stream.snapshot())
    assert_same_bits(pool.state(j), final)
    refused(ValueError, "snapshot", "damaged", pool.restore, j, blob[:-1])
    bad = np.ones((9, 9))
    with pytest.raises((ValueError, TypeError), match=r"^state.*: expected"):
        pool.set_state(j, (bad, None) if cell == "lstm" else bad)
    assert_same_bits(pool.state(j), final)


def test_statistics_are_those_of_streams():
    layer = cylstm.LSTM(3, 17, 2, rng=0)
    pool, x = layer.pool(3), frames(layer, 3) * 30
    ids = opened(pool, 3)
    pool.step(ids, x)
    stream = layer.stream(3)
    stream.step(x)
    expected = stream.statistics()
    for found in (pool.statistics(ids), pool.statistics()):
        assert all(np.array_equal(*both) for both in zip(found, expected, strict=True))
    assert pool.statistics([]).norm.shape == (0,)
    refused(ValueError, "id", "5", pool.statistics, [5])


@EVERY
def test_a_changed_weight_counts_from_the_next_step_on(cell):
    layer = LAYERS[cell](3, 17, rng=0)
    pool, x = layer.pool(2), frames(layer, 4, 2)
    ids = opened(pool, 2)
    pool.step(ids, x[0])
    state = layer(x[:1])[1]
    layer.assign(layer.flat_params * 1.5)
    y, _ = layer(x[1:], state)
    assert_same_bits(np.stack([pool.step(ids, frame) for frame in x[1:]]), y)


# Threads, processes, memory


def test_threads_step_disjoint_streams():
    layer = cylstm.LSTM(8, 64, rng=0)
    count, steps = 60, 40
    pool, x = layer.pool(4 * count), frames(layer, steps, 4 * count)
    ids, y = np.array(opened(pool, 4 * count)), layer(x)[0]

    def run(k):
        mine = slice(k * count, (k + 1) * count)
        return [pool.step(ids[mine], x[t, mine], num_threads=1 + k % 2) for t in range(steps)]

    with ThreadPoolExecutor(4) as threads:
        for k, found in enumerate(threads.map(run, range(4))):
            assert_same_bits(np.stack(found), y[:, k * count : (k + 1) * count].copy())


def test_threads_at_the_same_streams_are_refused_or_wait():
    """Each step is a step of all of its streams, or of none."""
    layer = cylstm.GRU(8, 128, rng=0)
    pool, x = layer.pool(64), frames(layer, 64)
    ids, start, done = np.array(opened(pool, 64)), threading.Barrier(3), []

    def run(k):
        mine = ids if k == 0 else ids[32 * (k - 1) : 32 * k].copy()
        start.wait()
        for _ in range(100):
            try:
                pool.step(mine, x[ids.searchsorted(mine)])
            except RuntimeError as error:
                assert "no other thread" in str(error)
                assert int(str(error).rpartition("got ")[2].split(",")[0]) in ids
            else:
                done.append(k)

    runners = [threading.Thread(target=run, args=(k,)) for k in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    for half in (0, 1):
        count = done.count(0) + done.count(half + 1)
        rows = slice(32 * half, 32 * half + 32)
        h = layer(np.broadcast_to(x[rows], (count, 32, 8)).copy())[1]
        for k, i in enumerate(ids[rows]):
            assert_same_bits(pool.state(i), h[:, k].copy())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child():
    """Streams that another thread was stepping are closed there; the others go on."""
    layer = cylstm.LSTM(16, 256, rng=0)
    pool, x = layer.pool(400), frames(layer, 2, 400)
    ids, y = np.array(opened(pool, 400)), layer(x)[0]
    busy, calm = ids[:390].copy(), ids[390:].copy()
    pool.step(calm, x[0, 390:])
    over = threading.Event()

    def step():
        while not over.is_set():
            pool.step(busy, x[0, :390])

    thread = threading.Thread(target=step)
    thread.start()
    try:
        children = []
        for _ in range(5):
            child = os.fork()
            if child == 0:
                found = pool.step(calm, x[1, 390:], num_threads=2)
                good = found.tobytes() == y[1, 390:].tobytes() and len(pool) in (10, 400)
                pool.close_idle(0)
                more = layer.pool(2)
                more.step([more.open()], x[0, :1])
                os._exit(0 if good and len(pool) == 0 and pool.open() else 1)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    finally:
        over.set()
        thread.join()


def test_memory_of_a_pool():
    """At most twice the states, and little that does not grow with the streams."""
    code = """
import resource, sys
import numpy as np, cylstm
layer = cylstm.LSTM(64, 64, rng=0)
layer(np.ones((1, 64, 64), "f"), num_threads=1)

def step(count):
    pool = layer.pool(count)
    ids = np.array([pool.open() for _ in range(count)])
    x = np.ones((count, 64), "f")
    pool.step(ids, x, out=x, num_threads=1)
    return pool

def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

small = step(10)
before = now()
large = step(20_000)
print((now() - before) / (20_000 * 512))
"""
    assert 1 <= float(run_python(code)) <= 2


def test_other_arrays():
    layer = cylstm.GRU(5, 5, rng=0)
    pool, x = layer.pool(3), frames(layer, 5, 3)
    ids, y = opened(pool, 3), layer(x)[0]
    assert_same_bits(pool.step(tuple(ids), x[0].tolist()), y[0])
    out = np.full((3, 9), np.nan, "f")
    assert_same_bits(pool.step(ids, np.asfortranarray(x[1]), out[:, 2:7]), y[1])
    assert np.isnan(out[:, [0, 1, 7, 8]]).all()
    over = x[2].copy()
    assert pool.step(ids, over, over) is over
    assert_same_bits(over, y[2])
    assert pool.step([], np.zeros((0, 5))).shape == (0, 5)
    for wrong in (x[3, :2], x[3, :, :4], x[3, 0], np.float32(1)):
        refused(ValueError, "x", str(wrong.shape), pool.step, ids, wrong)
    refused(TypeError, "ids", "float64", pool.step, [1.0], x[3, :1])
    refused(TypeError, "ids", "bool", pool.step, [True], x[3, :1])
    refused(ValueError, "ids", "(1, 3)", pool.step, [ids], x[3])
    refused(ValueError, "ids", "()", pool.step, ids[0], x[3])
    refused(ValueError, "out", "(2, 5)", pool.step, ids, x[3], np.ones((2, 5), "f"))
    refused(ValueError, "num_threads", "0", pool.step, ids, x[3], num_threads=0)
    assert_same_bits(pool.step(np.array(ids)[::-1], x[3, ::-1]), y[3, ::-1].copy())


def test_overlap_of_units():
    """A unit's outputs must not be another unit's input."""
    layer = cylstm.RNN(4, 4, rng=0)
    pool, x = layer.pool(150), frames(layer, 2, 150)
    ids, y = opened(pool, 150), layer(x)[0]
    memory = np.zeros(150 * 4 + 40, "f")
    for t in range(2):
        memory[:600].reshape(150, 4)[...] = x[t]
        found = pool.step(ids, memory[:600].reshape(150, 4), memory[40:].reshape(150, 4))
        assert_same_bits(found.copy(), y[t])


def test_bad_arguments():
    layer = cylstm.LSTM(3, 5, rng=0)
    for capacity, error in ((0, ValueError), (2**24 + 1, ValueError), (1.5, TypeError)):
        refused(error, "capacity", str(capacity), layer.pool, capacity)
    refused(TypeError, "clock", "5", layer.pool, 1, clock=5)
    refused(ValueError, "latency", "-1", layer.pool, 1, latency=-1)
    pool = layer.pool(3)
    pool.open()
    assert repr(pool) == f"<pool of {layer!r}: 1 of 3 streams open>"
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a pool cannot be pickled or copied"):
            copied(pool)
    for name in ("layer", "capacity", "latency"):
        with pytest.raises(AttributeError):
            setattr(pool, name, 1)


def test_a_clock_that_fails_changes_nothing():
    layer = cylstm.RNN(3, 5, rng=0)
    clock = Clock()
    pool = layer.pool(2, clock=clock)
    i = pool.open()
    clock.now = "late"
    for call in (pool.open, lambda: pool.step([i], np.ones((1, 3))), lambda: pool.reset(i),
                 lambda: pool.submit(i, np.ones(3)), lambda: pool.close_idle(1)):  # fmt: skip
        with pytest.raises(TypeError):
            call()
    clock.now = 1.0
    assert len(pool) == 1 and not pool.state(i).any() and pool.due() is None
    pool.step([i], np.ones((1, 3)))


def test_the_native_entry_refuses_by_itself():
    layer = cylstm.RNN(3, 5, rng=0)
    bare = StreamPool.__new__(StreamPool)
    assert len(bare) == 0
    for call in (bare._open_ids, lambda: bare._load(1, None), lambda: bare._close(1),
                 lambda: sequence.PoolBase.step(bare, np.zeros(1, int), np.zeros((1, 0), "f")),
                 lambda: bare._open(None)):  # fmt: skip
        try:
            assert call() in ([], -1)
        except (TypeError, ValueError, AttributeError) as error:
            assert str(error)
    pool = layer.pool(2)
    i = pool.open()
    with pytest.raises(ValueError, match="capacity"):
        pool.__init__(layer, 2)
    for state in (np.zeros((1, 4), "f"), np.zeros((1, 5)), np.zeros((2, 5), "f"), 7):
        with pytest.raises(ValueError, match="state: expected"):
            pool._load(i, state)
        with pytest.raises(ValueError, match="state: expected"):
            pool._store(i, state)
        with pytest.raises(ValueError, match="state: expected"):
            pool._open(state)
    for capacity in (0, 2**24 + 1):
        with pytest.raises(ValueError, match="capacity"):
            sequence.PoolBase(layer, capacity, None, int)
    gc.collect()
