"""Every hand-over between threads, delayed by seeds: the bits of one thread, however late."""

import random
import signal
import time
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import CASES, SEEDS, check, expected, long_call, plain, refill
from helpers import assert_same_bits, problem

import cylstm
from cylstm.kernels import sequence

GENEROUS = 900  # seconds; only a hang takes longer
LEAST = SEEDS // 50  # how often what seldom happens must have happened; not in a very short run


def happened(before=None):
    """How often each point has been passed, since `before` if given."""
    now = sequence.chaos(0)
    return {name: now[name] - (before or {}).get(name, 0) for name in now}


def seeds_until(least, count=SEEDS):
    """Seeds: so many, and more until each event of `least` has happened so often."""
    before, until = happened(), time.monotonic() + GENEROUS
    seed = 0
    while True:
        seed += 1
        yield seed
        if seed < count:
            continue
        counts = happened(before)
        if all(counts[name] >= n for name, n in least.items()):
            return
        assert time.monotonic() < until, f"too few of {least}: {counts}"


def test_bits():
    """Calls of all kinds by turns, in memory that others have just freed."""
    least = dict.fromkeys(sequence.chaos(0), LEAST) | {"ALONE": 0}
    for way, name in CASES:
        expected(way, name)
    for seed in seeds_until(least):
        draw, rng = random.Random(seed), np.random.default_rng(seed)
        given = [check(seed, *case) for case in draw.sample(CASES, 3)]
        held = refill(rng)
        for way, name in draw.sample(CASES, 2):
            check(seed, way, name)
        assert all(np.all(a == 7) for arrays in given for a in arrays), f"seed {seed}"
        del held


def test_pauses():
    """After one the leader goes on with other helpers, or alone with one of them left behind."""
    layer, x, right = long_call(2_000)
    for seed in seeds_until({"PAUSE": LEAST, "ALONE": min(3, LEAST)}, SEEDS // 50):
        sequence.chaos(seed)
        assert_same_bits(layer(x, num_threads=2 + seed % 2), right)


def test_streams_and_pools():
    """Steps go on from the state, also after one that has left a thread behind; units of rows."""
    layer = cylstm.LSTM(40, 320, 2, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 90, 40)).astype("f")
    right = layer(x, num_threads=1)[0]
    for seed in seeds_until({"GIVEN_UP": min(3, LEAST), "CANCELLED": LEAST}, SEEDS // 10):
        sequence.chaos(seed)
        stream, pool = layer.stream(2, num_threads=2 + seed % 3), layer.pool(90)
        ids = [pool.open() for _ in range(90)]
        for t in range(6):
            frame = x[t, :2].copy()
            assert_same_bits(stream.step(frame), right[t, :2].copy())
            frame[...] = np.nan  # which a thread left behind may still read
            assert_same_bits(pool.step(ids, x[t], num_threads=2 + seed % 3), right[t])
        del stream, pool
        refill(np.random.default_rng(seed))


def test_few_rows_with_checkpoints():
    """Windows hire again for the memory of the last one."""
    layer = cylstm.LSTM(40, 100, rng=0)
    x = np.random.default_rng(0).normal(size=(400, 7, 40)).astype("f")
    right = layer.forward(x, checkpoint="sqrt", num_threads=1)[:2]
    for seed in seeds_until({"ENTER": 10 * LEAST, "CANCELLED": LEAST}, SEEDS // 5):
        sequence.chaos(seed)
        y, state, tape = layer.forward(x, checkpoint="sqrt", num_threads=2 + seed % 6)
        assert_same_bits((y, state), right)
        del tape
        refill(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("cell", "options"),
    [("lstm", {"lengths": "random"}), ("lstm", {"proj_size": 70}), ("gru", {}),
     ("gru", {"reset_after": False, "lengths": "random"})],
    ids=str,
)  # fmt: skip
def test_a_thread_that_loses_its_processor_is_left_behind(cell, options):
    """And does no harm when it comes, during the call or when the caller has its outputs."""
    problems = [problem(cell, (70, 200), steps=t, rows=3, **options) for t in (300, 60, 60)]
    right = [p.infer(num_threads=1) for p in problems]
    outputs = deque(maxlen=20)
    for seed in seeds_until({"ABANDON": LEAST}, SEEDS // 50):
        sequence.chaos(seed)
        for p, result in zip(problems, right, strict=True):
            y, state = p.infer(num_threads=2)
            assert_same_bits((y, state), result)
            y[...] = 7
            outputs.append(y)
            assert all(np.all(y == 7) for y in outputs)


def values(layer, steps, seed):
    rng, n = np.random.default_rng(seed), layer.num_layers
    x = rng.normal(size=(steps, 1, layer.input_size)).astype("f")
    state = [rng.normal(size=(n, 1, layer.hidden_size)).astype("f") for _ in layer.states]
    return x, tuple(state) if len(state) == 2 else state[0]


@pytest.mark.parametrize("cell", [cylstm.LSTM, cylstm.GRU])
def test_plans_are_used_again(cell):
    """The memory of a plan is not given to the next one before all threads have gone."""
    layer = cell(200, 256, 2, rng=0)
    given = [values(layer, 2, seed) for seed in range(4)]
    right = [layer(*one, num_threads=1) for one in given]
    for seed in seeds_until({"ABANDON": LEAST}, SEEDS // 5):
        sequence.chaos(seed)
        for one, result in zip(given, right, strict=True):
            assert_same_bits(layer(*one, num_threads=2), result)


def test_x_lives_as_long_as_a_thread_that_is_left_behind_may_read_it():
    layer = cylstm.LSTM(70, 200, rng=0)
    alive = 0
    for seed in range(1, 100_000):
        x, state = values(layer, 16, seed)
        layer(x, state, num_threads=2)
        before, reference = happened(), weakref.ref(x)
        sequence.chaos(seed)
        layer(x, state, num_threads=2)
        counts = happened(before)
        del x
        if counts["ABANDON"] > counts["REAPED"]:
            assert reference() is not None
            alive += 1
        if alive == 5:
            return
    raise AssertionError("no thread was left behind")


def test_python_threads_share_layers_and_tapes():
    few, groups = problem("lstm", (40, 100), steps=60, rows=7), problem("gru", (33, 64), rows=40)
    tapes = [p.forward(num_threads=1)[2] for p in (few, groups)]
    plains = [p.infer(num_threads=1) for p in (few, groups)]
    backs = [few.layer.backward(tapes[0], few.dy, num_threads=1),
             groups.layer.backward(tapes[1], groups.dy, num_threads=1)]  # fmt: skip

    def work(number):
        for k in range(5):
            p, tape, result, back = (
                (few, tapes[0], plains[0], backs[0]) if (number + k) % 2 else
                (groups, tapes[1], plains[1], backs[1])
            )  # fmt: skip
            assert_same_bits(p.infer(num_threads=2 + k % 3), result)
            assert_same_bits(p.layer.backward(tape, p.dy, num_threads=2 + k % 3), back)

    with ThreadPoolExecutor(4) as pool:
        for seed in seeds_until({"ENTER": LEAST, "ABANDON": LEAST // 2}, SEEDS // 40):
            sequence.chaos(seed)
            list(pool.map(work, range(4)))


def test_a_finalizer_calls_a_layer():
    """When an abandoned call is let go of, in the middle of another one."""
    layer = cylstm.LSTM(40, 100, rng=0)
    x = np.ones((30, 7, 40), "f")
    right = layer(x, num_threads=1)
    inside, running = [], False

    def finalize():
        inside.append(running)
        assert_same_bits(layer(x, num_threads=2), right)

    for seed in range(1, 100_000):
        sequence.chaos(seed)
        mine = x.copy()
        weakref.finalize(mine, finalize)
        assert_same_bits(layer(mine, num_threads=2), right)
        del mine
        running = True
        assert_same_bits(layer(x, num_threads=2), right)
        running = False
        if sum(inside) >= 10:
            return
    raise AssertionError("no abandoned call has been let go of in another one")


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("how", ["plain", "checkpointed", "backward"])
def test_a_handler_raises_in_a_long_call(how):
    """With a thread left behind, in a plain call; all calls after it are right."""
    layer, x, right = long_call(40_000 if how == "plain" else 15_000)
    small = [case for case in CASES if case[0] is plain]
    tape = layer.forward(x, checkpoint="sqrt", num_threads=1)[2] if how == "backward" else None
    dy = np.zeros_like(right[0]) if how == "backward" else None
    calls = {
        "plain": lambda: layer(x, num_threads=2),
        "checkpointed": lambda: layer.forward(x, checkpoint="sqrt", num_threads=2),
        "backward": lambda: layer.backward(tape, dy, num_threads=2),
    }

    def handler(*_):
        raise Interrupted

    before, interrupted, abandoned = happened(), 0, 0
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for seed in range(1, 10_000):
            check(seed, *small[seed % len(small)])  # may leave one behind
            sequence.chaos(seed)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                calls[how]()
                time.sleep(10)  # the whole call took less than 20 ms more than the pause does
            except Interrupted:
                interrupted += 1
            for number in range(10):
                check(seed, *small[(seed + number) % len(small)])
            abandoned = happened(before)["ABANDON"]
            if interrupted >= 5 and abandoned >= 5:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    sequence.chaos(0)
    assert_same_bits(layer(x, num_threads=2), right)


def test_a_handler_calls_the_layer():
    layer, x, right = long_call(8_000)
    small = x[:30].copy()
    small_right = layer(small, num_threads=1)
    results = []

    def handler(*_):
        results.append(layer(small, num_threads=3))

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for seed in range(1, 1000):
            sequence.chaos(seed)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
            assert_same_bits(layer(x, num_threads=2), right)
            if len(results) >= 5:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(results) >= 5
    for result in results:
        assert_same_bits(result, small_right)
