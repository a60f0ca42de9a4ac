"""Parameters, copies, threads, forks, and the floating-point mode: layers as objects."""

import copy
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import CELLS, DTYPES, LAYERS, assert_same_bits, joined, parts, problem, run_python

import cylstm
from cylstm.kernels import sequence

EVERY = pytest.mark.parametrize("cell", CELLS)
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@EVERY
def test_names_and_shapes(cell, bidirectional, bias):
    layer = LAYERS[cell](4, 5, 2, bias=bias, bidirectional=bidirectional)
    rows, directions = GATES[cell] * 5, 1 + bidirectional
    expected = []
    for depth, suffix in itertools.product(range(2), ["", "_reverse"][:directions]):
        expected.append((f"weight_ih_l{depth}{suffix}", (rows, directions * 5 if depth else 4)))
        expected.append((f"weight_hh_l{depth}{suffix}", (rows, 5)))
        if bias:
            expected.append((f"bias_ih_l{depth}{suffix}", (rows,)))
            expected.append((f"bias_hh_l{depth}{suffix}", (rows,)))
    for arrays in (layer.params, layer.grads, layer.state_dict()):
        assert [(name, a.shape) for name, a in arrays.items()] == expected
    for arrays, flat in ((layer.params, layer.flat_params), (layer.grads, layer.flat_grads)):
        assert_same_bits(np.concatenate([a.ravel() for a in arrays.values()]), flat)
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (4, 5, 2)
    assert (layer.num_directions, layer.bidirectional) == (directions, bidirectional)
    assert layer.bias == bias
    assert (layer.batch_first, layer.dropout, layer.dtype) == (False, 0.0, np.dtype("float32"))


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_initial_values(cell, dtype):
    layer = LAYERS[cell](30, 64, 2, dtype=dtype, rng=0)
    bound = 1 / np.sqrt(64)
    for value in layer.params.values():
        assert value.dtype == dtype
        assert np.abs(value).max() <= bound
        assert abs(value.mean()) < 0.35 * bound  # of 64 numbers at least: 5 standard deviations
        assert abs(value.std() - bound / np.sqrt(3)) < 0.2 * bound
    assert abs(layer.flat_params.mean()) < 0.05 * bound
    assert len(np.unique(layer.flat_params)) > 0.99 * layer.flat_params.size
    assert not np.any(layer.flat_grads)
    assert_same_bits(LAYERS[cell](30, 64, 2, dtype=dtype, rng=0).flat_params, layer.flat_params)
    rng = np.random.default_rng(0)
    first, second = (LAYERS[cell](30, 64, 2, dtype=dtype, rng=rng) for _ in range(2))
    assert_same_bits(first.flat_params, layer.flat_params)
    for other in (second, *(LAYERS[cell](30, 64, 2, dtype=dtype) for _ in range(2))):
        assert np.mean(other.flat_params != layer.flat_params) > 0.99  # float32 may draw one twice


def test_forget_bias_is_added_to_the_forget_gate():
    plain = cylstm.LSTM(3, 5, 2, bidirectional=True, dtype="float64", rng=0)
    layer = cylstm.LSTM(3, 5, 2, bidirectional=True, dtype="float64", rng=0, forget_bias=1.5)
    for name in plain.params:
        if name.startswith("weight"):
            assert_same_bits(layer.params[name], plain.params[name])
        elif name.startswith("bias_ih"):
            pair = (name, name.replace("_ih", "_hh"))
            added = sum(layer.params[n] - plain.params[n] for n in pair)
            np.testing.assert_allclose(added, [0] * 5 + [1.5] * 5 + [0] * 10, atol=1e-15)


@EVERY
def test_a_changed_weight_is_never_ignored(cell):
    p = problem(cell, (3, 18, 2), bidirectional=True)
    rng = np.random.default_rng(1)

    def fresh():  # what a layer that never had other weights computes
        layer = LAYERS[cell](3, 18, 2, bidirectional=True)
        layer.assign(p.layer.flat_params)
        return p._replace(layer=layer)

    def outcome(p):
        y, state, tape = p.forward()
        return (*p.infer(), y, state, *p.backward(tape), p.layer.flat_grads.copy())

    changes = [
        lambda: p.layer.assign(rng.normal(size=p.layer.flat_params.size)),
        lambda: p.layer.assign({"weight_hh_l0": p.layer.params["weight_hh_l0"] * 2}),
        lambda: p.layer.assign({"bias_hh_l1_reverse": rng.normal(size=GATES[cell] * 18)}),
        lambda: p.layer.assign({"weight_ih_l1": p.layer.params["weight_ih_l1"][::-1]}),
        lambda: p.layer.load_state_dict(LAYERS[cell](3, 18, 2, bidirectional=True).state_dict()),
        lambda: p.layer.__setstate__(LAYERS[cell](3, 18, 2, bidirectional=True).__getstate__()),
    ]
    before = outcome(p)
    for change in changes:
        change()
        after = outcome(p)
        assert np.any(after[0] != before[0])
        assert_same_bits(after, outcome(fresh()))
        before = after


@EVERY
def test_parameters_cannot_be_written_behind_its_back(cell):
    layer = LAYERS[cell](3, 5)
    for array in (layer.flat_params, *layer.params.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.flags.writeable = True
    with pytest.raises((AttributeError, TypeError)):
        layer.params["weight_hh_l0"] = np.zeros((5, 5))
    with pytest.raises(AttributeError):
        layer.flat_params = np.zeros_like(layer.flat_params)
    state = layer.state_dict()
    y = layer(np.ones((2, 1, 3)))[0]
    for value in state.values():
        value[...] = 0  # a copy
    assert_same_bits(layer(np.ones((2, 1, 3)))[0], y)


@EVERY
def test_a_tape_remembers_its_weights(cell):
    p = problem(cell, (3, 18, 2))
    tape = p.forward()[2]
    expected = (*p.backward(tape), p.layer.flat_grads.copy())
    p.layer.assign(p.layer.flat_params * 2)
    assert_same_bits((*p.backward(tape), p.layer.flat_grads), expected)


@EVERY
def test_gradients_are_one_vector_and_named_views(cell):
    p = problem(cell, (3, 5))
    p.backward(p.forward()[2])
    p.layer.flat_grads *= 2
    doubled = p.layer.flat_grads.copy()
    p.backward(p.forward()[2])
    assert_same_bits(2 * p.layer.flat_grads, doubled)
    p.layer.flat_grads[...] = 3
    assert all(np.all(grad == 3) for grad in p.layer.grads.values())


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_copies_are_equal_and_independent(cell, dtype, duplicate):
    p = problem(cell, (3, 18, 2), bidirectional=True, dtype=dtype)
    y, state, tape = p.forward()
    dx, _ = p.backward(tape)
    q = p._replace(layer=duplicate(p.layer))
    assert type(q.layer) is type(p.layer)
    assert_same_bits(q.layer.flat_params, p.layer.flat_params)
    assert repr(q.layer) == repr(p.layer)
    assert not q.layer.flat_grads.any()
    assert_same_bits(q.forward()[:2], (y, state))
    assert_same_bits(q.backward(q.forward()[2])[0], dx)
    assert_same_bits(q.layer.flat_grads, p.layer.flat_grads)
    q.layer.assign(q.layer.flat_params * 2)
    q.layer.zero_grad()
    assert np.any(p.layer.flat_grads)
    assert_same_bits(p.infer(), (y, state))
    assert np.any(q.infer()[0] != y)


@EVERY
def test_state_dict_round_trip(cell):
    first, second = (problem(cell, (3, 18, 2), seed=seed) for seed in (0, 1))
    first.layer.load_state_dict(second.layer.state_dict())
    second = second._replace(x=first.x, state=first.state)
    assert_same_bits(first.infer(), second.infer())


# enough rows and units for a call to use several threads by itself
BUSY = {"steps": 20, "rows": 24, "lengths": "random", "bidirectional": True}


@EVERY
def test_concurrent_calls_on_one_layer(cell):
    problems = [problem(cell, (33, 64, 2), seed=seed, **BUSY) for seed in range(8)]
    problems = [p._replace(layer=problems[0].layer) for p in problems]
    tapes = [p.forward()[2] for p in problems]

    def infer(i):
        return problems[i].infer(num_threads=1 + i % 3)

    def train(i):
        p = problems[i]
        y, state, tape = p.forward(num_threads=1 + i % 3)
        dx, dstate = p.layer.backward(tape, p.dy, joined(p.dstate), num_threads=1 + i % 3)
        return y, state, dx, parts(dstate)

    expected = [(infer(i), train(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            futures = [(pool.submit(infer, i), pool.submit(train, i)) for i in range(8)]
            for (inferred, trained), wanted in zip(futures, expected, strict=True):
                assert_same_bits((inferred.result(), trained.result()), wanted)
        # The same gradient eight times: the sum has the same bits in any order.
        p = problems[0]
        p.layer.zero_grad()
        for _ in range(8):
            p.layer.backward(tapes[0], p.dy)
        wanted = p.layer.flat_grads.copy()
        p.layer.zero_grad()
        list(pool.map(lambda _: p.layer.backward(tapes[0], p.dy), range(8)))
        assert_same_bits(p.layer.flat_grads, wanted)


@EVERY
def test_calls_while_the_weights_change_see_old_or_new_ones(cell):
    p = problem(cell, (33, 64, 2), **BUSY)
    weights = [p.layer.flat_params.copy(), p.layer.flat_params * 2]
    allowed = []
    for values in weights:
        p.layer.assign(values)
        allowed.append(p.infer()[0].tobytes())
    with ThreadPoolExecutor(4) as pool:
        outputs = [pool.submit(p.infer) for _ in range(200)]
        for i in range(800):
            p.layer.assign(weights[i % 2])
        assert {done.result()[0].tobytes() for done in outputs} <= set(allowed)


def test_default_number_of_threads():
    before = cylstm.get_num_threads()
    cylstm.set_num_threads(np.int64(1))
    assert cylstm.get_num_threads() == 1
    cylstm.set_num_threads(None)
    assert cylstm.get_num_threads() == before >= 1


FORK = """
import os, sys, threading, time
import numpy as np
from helpers import CELLS, joined, problem

problems = [problem(cell, (33, 64, 2), steps=20, rows=24, bidirectional=True) for cell in CELLS]

def outcome():
    results = []
    for p in problems:
        y, state, tape = p.forward(num_threads=2)
        dx, dstate = p.backward(tape, num_threads=2)
        results += [p.infer(num_threads=2)[0], y, *state, dx, *dstate, p.layer.flat_grads.copy()]
    return b"".join(r.tobytes() for r in results)

def in_thread(work):
    done = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join(60)
    return done[0]

def wait(child):
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False

def forked(work):
    child = os.fork()
    if child:
        return wait(child)
    try:
        os._exit(0 if work() else 1)
    finally:
        os._exit(2)

same = lambda: outcome() == expected
expected = outcome()
assert forked(same), "child"
assert forked(lambda: in_thread(same)), "thread of the child"
assert forked(lambda: same() and forked(same)), "grandchild"
assert in_thread(lambda: forked(same)), "child of a thread"
assert in_thread(lambda: forked(lambda: in_thread(same))), "thread of the child of a thread"
stop = threading.Event()
def busy():
    others = [p._replace(layer=p.layer) for p in problems]
    while not stop.is_set():
        others[0].infer(num_threads=2)
        others[3].forward(num_threads=2)
threads = [threading.Thread(target=busy) for _ in range(2)]
[thread.start() for thread in threads]
for _ in range(5):
    assert forked(same), "child while other threads are inside forward"
stop.set()
[thread.join() for thread in threads]
assert same(), "parent afterwards"
"""


def test_fork():
    run_python(FORK, PYTHONWARNINGS="ignore::DeprecationWarning")


def subnormals_survive():
    small, tiny = np.float32([1e-40, 1e-38]), np.float64([1e-310, 1e-308])
    results = (small * np.float32(0.5), tiny * 0.5, small + np.float32(0), tiny + 0)
    return all(np.all(r != 0) for r in results)


@pytest.mark.parametrize("threads", [1, 2])
@EVERY
def test_floating_point_mode_is_left_alone(cell, threads):
    assert subnormals_survive()
    for dtype in DTYPES:
        p = problem(cell, (33, 64, 2), dtype=dtype, **BUSY)
        _, _, tape = p.forward(num_threads=threads)
        assert subnormals_survive()
        p.backward(tape, num_threads=threads)
        assert subnormals_survive()
        p.infer(num_threads=threads)
        assert subnormals_survive()
        with pytest.raises(ValueError, match="x: "):
            p.layer(p.x[..., 1:])
        assert subnormals_survive()


FLOATING_POINT_ENVIRONMENT = """
import ctypes, numpy as np
from helpers import CELLS, problem
libm = ctypes.CDLL("libm.so.6")
UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}[__import__("platform").machine()]
for cell in CELLS:
    p = problem(cell, (33, 64), steps=9, rows=24)
    for mode in (0, UPWARD):
        assert libm.fesetround(mode) == 0
        _, _, tape = p.forward(num_threads=2)
        p.backward(tape, num_threads=2)
        assert libm.fegetround() == mode, cell
"""


def test_rounding_mode_of_the_caller_is_left_alone():
    run_python(FLOATING_POINT_ENVIRONMENT)


INTERRUPT = """
import signal
import numpy as np
import cylstm
layer = cylstm.LSTM(1, 512, rng=0)
x = np.zeros((30_000, 1, 1), np.float32)
out = np.empty((30_000, 1, 512), np.float32)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for call in (layer.__call__, lambda *a, **o: layer.forward(*a, checkpoint="sqrt", **o)):
    for threads in (1, 2):
        out[...] = np.nan
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            call(x, out=out, num_threads=threads)
        except KeyboardInterrupt:
            assert np.isnan(out[-1]).all(), "only at its end"
        else:
            raise AssertionError("not interrupted")
        y = layer(x[:10], num_threads=2)[0]
        assert np.array_equal(y, cylstm.LSTM(1, 512, rng=0)(x[:10], num_threads=1)[0])
"""


def test_a_long_call_answers_an_interrupt():
    run_python(INTERRUPT)


INTERRUPT_A_TEAM = """
import signal
import numpy as np
import cylstm
layer = cylstm.LSTM(8, 128, bidirectional=True, rng=0)
x = np.zeros((1_000_000, 6, 8), np.float32)
signal.signal(signal.SIGALRM, signal.default_int_handler)
for attempt in range(20):
    signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.003 * attempt)
    try:
        layer(x, num_threads=4, return_="last")
    except KeyboardInterrupt:
        continue
    raise AssertionError("not interrupted")
assert np.array_equal(layer(x[:99], num_threads=4)[0], layer(x[:99], num_threads=1)[0])
"""


def test_an_interrupt_stops_all_threads():
    run_python(INTERRUPT_A_TEAM)


@EVERY
def test_unchanged_weights_are_not_packed_again(cell, monkeypatch):
    packed, pack = [], sequence.Packed
    monkeypatch.setattr(sequence, "Packed", lambda *a: packed.append(a) or pack(*a))
    layer, x = LAYERS[cell](3, 5, rng=0), np.zeros((2, 1, 3))
    for _ in range(2):
        layer.forward(x)
        layer(x)
    assert len(packed) == 1  # that for training serves inference, too
    layer.assign(layer.flat_params + 1)
    layer(x)
    assert len(packed) == 2


MAKING = """
import numpy as np
import cylstm

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

make = {
    "lstm": lambda: cylstm.LSTM(1024, 1024, 3, bidirectional=True),
    "uniform": lambda: cylstm.init.uniform(layer),
    "glorot": lambda: cylstm.init.glorot_uniform(layer, ["weight_ih", "weight_hh"]),
    "zeros": lambda: cylstm.init.zeros(layer, ["weight_ih", "weight_hh"]),
}
layer = cylstm.LSTM(4, 4, forget_bias=1.0)
cylstm.init.uniform(layer)
before = peak()
layer = make["lstm"]()
assert layer.flat_params.nbytes > 200 * 2**20
for name, work in make.items():
    if name != "lstm":
        work()
    needed = (peak() - before) / layer.flat_params.nbytes
    assert needed < 1.2, (name, needed)
"""


def test_a_layer_is_made_in_little_more_memory_than_its_weights():
    run_python(MAKING)


FORKED_MASKS = """
import copy, os, pickle, sys
import numpy as np
import cylstm

def masks(layer):
    y = layer.forward(np.ones((5, 2, 3)))[0]
    return y.tobytes()

def in_children(layer, n=3):
    seen = []
    for _ in range(n):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, masks(layer))
            os._exit(0)
        os.waitpid(child, 0)
        seen.append(os.read(reading, 100_000))
    return seen

options = {"dropout": 0.5, "zoneout": 0.5}
unseeded = cylstm.LSTM(3, 5, 2, **options)
assert len({*in_children(unseeded), masks(unseeded)}) == 4, "unseeded"
seeded = cylstm.LSTM(3, 5, 2, rng=3, **options)
assert len({*in_children(seeded), masks(seeded)}) == 1, "seeded"
for again in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
    assert len({masks(again(unseeded)) for _ in range(3)} | {masks(unseeded)}) == 4, "copies"
    assert len({masks(again(seeded)) for _ in range(3)}) == 1, "seeded copies"
# A thread that is drawing while its process forks leaves the generator's lock held in the child.
held = cylstm.LSTM(3, 5, 2, rng=3, **options)
twin = copy.deepcopy(held)
import threading
ready, done = threading.Event(), threading.Event()
def draw():
    with held._rng.bit_generator.lock:
        ready.set()
        done.wait()
thread = threading.Thread(target=draw)
thread.start()
ready.wait()
import signal
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(masks(held) != masks(twin))
done.set()
thread.join()
assert os.waitpid(child, 0)[1] == 0, "a lock that was held"
"""


def test_masks_after_a_fork():
    run_python(FORKED_MASKS, PYTHONWARNINGS="ignore::DeprecationWarning")
