"""Streams: steps, chunks and snapshots have the bits of the whole sequence, whatever happens."""

import copy
import gc
import os
import pickle
import signal
import struct
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from helpers import DTYPES, LAYERS, assert_same_bits, joined, problem, refused
from hypothesis import given
from hypothesis import strategies as st
from variants import EVERY_VARIANT, named

import cylstm
from cylstm.kernels import sequence
from cylstm.streams import Stream, snapshots, state_rows

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
SIZES = [(3, 5), (3, 17, 2), (3, (9, 4))]
T, B = 6, 3


def from_start(p):
    """The whole sequence from the initial state."""
    return p._replace(state=(None,) * len(p.state)).infer()


def stepped(stream, x):
    return np.stack([stream.step(frame) for frame in x])


def assert_streams(p, rows):
    """Steps, and chunks with steps between them, give what the call on the whole sequence gives."""
    y, state = from_start(p)
    stream = p.layer.stream(rows)
    assert_same_bits(stepped(stream, p.x), y)
    assert_same_bits(p.parts(stream.state), state)
    stream.reset()
    found = [stream.push(p.x[:2]), stream.push(p.x[2:2]), stream.step(p.x[2])[None],
             stream.push(p.x[3:])]  # fmt: skip
    assert_same_bits((np.concatenate(found), p.parts(stream.state)), (y, state))


@pytest.mark.filterwarnings("ignore:dropout")
@pytest.mark.parametrize(
    ("cell", "options"), **named([v for v in EVERY_VARIANT if v[1] != "augru"])
)
def test_every_option(cell, options):
    p = problem(cell, (3, 17, 2), steps=4, rows=B, **options)
    assert_streams(p, B)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@EVERY
def test_sizes(cell, sizes, dtype, learned):
    for rows in (1, B, 70):
        assert_streams(problem(cell, sizes, steps=T, rows=rows, dtype=dtype,
                               learn_initial_state=learned), rows)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("hidden", "rows"), [(384, 1), (96, 9), (64, 150), ((384, 24), 2)])
@EVERY
def test_threads(cell, hidden, rows, threads):
    """Teams that share units, groups of rows, and a stack in which only one layer is large."""
    p = problem(cell, (24, hidden), steps=5, rows=rows)
    y, state = from_start(p)
    stream = p.layer.stream(rows, num_threads=threads)
    assert_same_bits(stepped(stream, p.x), y)
    assert_same_bits(p.parts(stream.state), state)


def test_the_number_of_threads_may_change():
    p = problem("lstm", (24, 384), steps=8, rows=1)
    stream, y = p.layer.stream(), from_start(p)[0]
    before = cylstm.get_num_threads()
    try:
        for t in range(8):
            cylstm.set_num_threads(1 + t % 3)
            assert_same_bits(stream.step(p.x[t]), y[t])
    finally:
        cylstm.set_num_threads(before)


@EVERY
def test_unbatched_frames_and_chunks(cell):
    p = problem(cell, (3, 5, 2), steps=T, rows=1)
    y, _ = from_start(p)
    stream = p.layer.stream()
    assert_same_bits(stream.step(p.x[0, 0]), y[0, 0])
    assert_same_bits(stream.step(p.x[1]), y[1])
    assert_same_bits(stream.push(p.x[2:4, 0]), y[2:4, 0])
    assert_same_bits(stream.push(p.x[4:]), y[4:])


@EVERY
def test_batch_first_and_lists(cell):
    layer = LAYERS[cell](3, 5, batch_first=True, rng=0)
    x = np.random.default_rng(0).normal(size=(B, T, 3)).astype("f")
    y, _ = layer(x)
    stream = layer.stream(B)
    assert_same_bits(stream.push(x[:, :4]), y[:, :4].copy())
    assert_same_bits(stream.step(x[:, 4]), y[:, 4].copy())
    stream.reset()
    found = stream.push([x[0, :2], x[1, :0], x[2]])
    assert_same_bits(tuple(found), (y[0, :2], y[1, :0], y[2]))
    assert_same_bits(stream.step(np.stack([x[0, 2], x[1, 0], x[2, 0]]))[:2],
                     np.stack([y[0, 2], y[1, 0]]))  # fmt: skip


def test_other_arrays():
    """Whatever a call takes; strided and overlapping results."""
    p = problem("lstm", (5, 5), steps=T, rows=B)
    y, _ = from_start(p)
    stream = p.layer.stream(B)
    wide = np.full((B, 9), np.nan, "f")
    for t, x in enumerate((p.x[0].tolist(), p.x[1].astype(float), np.asfortranarray(p.x[2]))):
        out = wide[:, 2:7] if t else None
        expected = from_start(p._replace(x=p.x[: t + 1]))[0][t]
        found = stream.step(x, out)
        assert out is None or found is out
        assert_same_bits(np.array(found), expected)
    assert np.isnan(wide[:, [0, 1, 7, 8]]).all()
    memory = np.zeros(40, "f")
    for t, at in ((3, 0), (4, 4), (5, 1)):  # over x, and beside it
        x = memory[at : at + 15].reshape(B, 5)
        x[...] = p.x[t]
        stream.step(x, memory[:15].reshape(B, 5))
        assert_same_bits(memory[:15].reshape(B, 5), y[t])


def test_overlap_in_groups_of_rows():
    """A group's outputs must not be another group's input."""
    p = problem("rnn_tanh", (4, 4), steps=2, rows=150)
    y, _ = from_start(p)
    stream = p.layer.stream(150)
    memory = np.zeros(150 * 4 + 40, "f")
    for t in range(2):
        x = memory[:600].reshape(150, 4)
        x[...] = p.x[t]
        out = memory[40:].reshape(150, 4)
        assert_same_bits(stream.step(x, out).copy(), y[t])


# Weights


@EVERY
def test_a_changed_weight_counts_from_the_next_step_on(cell):
    p = problem(cell, (3, 17, 2), steps=T, rows=B)
    stream, layer = p.layer.stream(B), p.layer
    stepped(stream, p.x[:3])
    state = stream.state
    layer.assign(layer.flat_params * 1.5)
    assert_same_bits(stream.state, state)
    y, final = layer(p.x[3:], state)
    assert_same_bits((stepped(stream, p.x[3:]), stream.state), (y, final))


def test_training_does_not_disturb_a_stream():
    p = problem("lstm", (3, 17), steps=T, rows=B)
    y, _ = from_start(p)
    stream = p.layer.stream(B)
    for t in range(T):
        assert_same_bits(stream.step(p.x[t]), y[t])
        p.layer.backward(p.layer.forward(p.x)[2], p.dy)


# State


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@EVERY
def test_state_goes_in_and_out(cell, sizes, learned):
    p = problem(cell, sizes, steps=T, rows=B, learn_initial_state=learned)
    stream = p.layer.stream(B)
    stream.state = joined(p.state)
    assert_same_bits(p.parts(stream.state), p.state)
    assert_same_bits((stepped(stream, p.x), p.parts(stream.state)), p.infer())
    own = stream.state
    for part in p.parts(own):
        for array in part if isinstance(part, tuple) else (part,):
            array[...] = 7  # a copy
    assert_same_bits(p.parts(stream.state), p.infer()[1])
    stream.state = None
    assert_same_bits(stepped(stream, p.x), from_start(p)[0])
    if cell == "lstm":
        stream.state = (p.state[0], None)
        assert_same_bits(stream.push(p.x), p.layer(p.x, (p.state[0], None))[0])


@pytest.mark.parametrize("learned", [False, True])
@EVERY
def test_reset_of_rows(cell, learned):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, learn_initial_state=learned)
    stream = p.layer.stream(B)
    x = p.x.copy()
    x[1, 1] = np.nan
    stepped(stream, x[:3])
    stream.reset([1])
    flags = np.zeros((T, B), bool)
    flags[3, 1] = True
    y, _ = p.layer(x, reset=flags)
    assert_same_bits(stepped(stream, x[3:]), y[3:])
    stream.reset(0)
    stream.reset([])
    y, _ = p.layer(p.x[:2, :1])
    assert_same_bits(stepped(stream, p.x[:2])[:, :1].copy(), y)
    stream.reset()
    assert_same_bits(stepped(stream, p.x), p.layer(p.x)[0])


def test_nan_stays_in_its_row():
    p = problem("lstm", (3, 17, 2), steps=T, rows=B)
    y, _ = from_start(p)
    stream, x = p.layer.stream(B), p.x.copy()
    x[2, 1] = np.nan
    found = stepped(stream, x)
    assert_same_bits(found[:, ::2].copy(), y[:, ::2].copy())
    assert np.isnan(found[2:, 1]).all()
    assert stream.statistics().finite.tolist() == [True, False, True]


def test_statistics():
    layer = cylstm.LSTM(3, 4, 2, rng=0)
    stream = layer.stream(2)
    h, c = np.zeros((2, 2, 4), "f"), np.zeros((2, 2, 4), "f")
    h[0, 1], h[1, 1, 0], c[1, 1, 2] = 0.995, -1, 300
    stream.state = (h, c)
    found = stream.statistics()
    np.testing.assert_allclose(found.norm, [0, np.sqrt(4 * 0.995**2 + 1 + 300**2)], rtol=1e-6)
    assert found.largest.tolist() == [0, 300] and found.saturated.tolist() == [0, 5 / 8]
    assert found.finite.all()
    assert_same_bits(stream.state, (h, c))


@given(st.lists(st.sampled_from(["step", "push", "reset", "snapshot", "copy", "weights"]),
                max_size=12), st.integers(0, 2**32 - 1))  # fmt: skip
def test_anything_in_any_order(actions, seed):
    """A stream beside a state that is carried by hand."""
    rng = np.random.default_rng(seed)
    cell = CELLS[seed % 3]
    layer = LAYERS[cell](3, (9, 5), rng=seed, learn_initial_state=bool(seed % 2))
    stream, state = layer.stream(2), None
    for action in actions:
        x = rng.normal(size=(rng.integers(4), 2, 3)).astype("f")
        if action == "step":
            y, state = layer(x := rng.normal(size=(1, 2, 3)).astype("f"), state)
            assert_same_bits(stream.step(x[0]), y[0])
        elif action == "push":
            y, state = layer(x, state)
            assert_same_bits(stream.push(x), y)
        elif action == "reset":
            state = stream.reset()
        elif action == "snapshot":
            blob, stream = stream.snapshot(), layer.stream(2)
            stream.restore(blob)
        elif action == "copy":
            stream = copy.copy(stream)
        else:
            state = stream.state
            layer.assign(layer.flat_params * np.float32(0.9))
        if state is not None:
            assert_same_bits(stream.state, state)


# Snapshots


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_a_snapshot_goes_on_in_another_process(cell, dtype):
    p = problem(cell, (3, (9, 4)), steps=T, rows=B, dtype=dtype)
    y, _ = from_start(p)
    stream = p.layer.stream(B)
    stepped(stream, p.x[:3])
    blob = stream.snapshot()
    stepped(stream, p.x[:1])
    other = pickle.loads(pickle.dumps(p.layer)).stream(B)
    for give in (bytes, bytearray, memoryview):
        other.restore(give(blob))
        assert_same_bits(stepped(other, p.x[3:]), y[3:])
    assert blob == snapshots.pack(p.layer, snapshots.unpack(p.layer, blob, B, other._width))


def test_what_is_wrong_with_a_snapshot_is_said():
    layer = cylstm.LSTM(3, 5, rng=0)
    stream = layer.stream(2)
    stream.step(np.ones((2, 3)))
    blob, state = stream.snapshot(), stream.state
    others = {
        "other weights": cylstm.LSTM(3, 5, rng=1).stream(2),
        "another class, size or option": cylstm.LSTM(3, 6, rng=0).stream(2),
        "of 4 bytes": cylstm.LSTM(3, 5, rng=0, dtype="float64").stream(2),
        "got 2": layer.stream(3),
    }
    for got, other in others.items():
        refused(ValueError, "snapshot", got, other.restore, blob)
    same_sizes = cylstm.LSTM(3, 5, rng=0, clip=3.0).stream(2)
    refused(ValueError, "snapshot", "option", same_sizes.restore, blob)
    refused(TypeError, "snapshot", "str", stream.restore, "x")
    refused(TypeError, "snapshot", "list", stream.restore, [1])
    newer = blob[:8] + struct.pack("<H", 2) + blob[10:]
    refused(ValueError, "snapshot", "got 2", stream.restore, newer)
    for end in range(len(blob)):
        refused(ValueError, "snapshot", "got", stream.restore, blob[:end])
    refused(ValueError, "snapshot", "damaged", stream.restore, blob + b"x")
    for at in range(len(blob)):
        damaged = bytearray(blob)
        damaged[at] ^= 1 << at % 8
        refused(ValueError, "snapshot", "got", stream.restore, damaged)
    assert_same_bits(stream.state, state)
    layer.assign(layer.flat_params * 2)
    refused(ValueError, "snapshot", "other weights", stream.restore, blob)
    layer.assign(layer.flat_params / 2)
    stream.restore(blob)


def test_what_inference_does_not_depend_on_is_no_part_of_a_fingerprint():
    layer = cylstm.GRU(3, 5, 2, rng=0)
    blob = layer.stream().snapshot()
    other = cylstm.GRU(3, 5, 2, batch_first=True, dropout=0.5, recurrent_dropout=0.1,
                       dropconnect=0.2, variational=True)  # fmt: skip
    other.assign(layer.flat_params)
    other.stream().restore(blob)
    for options in ({"zoneout": 0.1}, {"reset_after": False}, {"activations": ("relu", "tanh")}):
        third = cylstm.GRU(3, 5, 2, **options)
        third.assign(layer.flat_params)
        refused(ValueError, "snapshot", "option", third.stream().restore, blob)


# Copies, threads, memory


@EVERY
def test_copies_go_on_by_themselves(cell):
    p = problem(cell, (3, 5, 2), steps=T, rows=B)
    y, _ = from_start(p)
    stream = p.layer.stream(B, num_threads=1)
    stepped(stream, p.x[:2])
    for other in (copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert type(other) is Stream and (other.num_threads, other.batch_size) == (1, B)
        assert_same_bits(stepped(other, p.x[2:]), y[2:])
    assert copy.copy(stream).layer is stream.layer is not copy.deepcopy(stream).layer
    assert_same_bits(stepped(stream, p.x[2:]), y[2:])


def test_streams_of_one_layer_in_several_threads():
    layer = cylstm.LSTM(8, 96, 2, rng=0)
    xs = np.random.default_rng(0).normal(size=(4, 200, 8)).astype("f")

    def run(x):
        return stepped(layer.stream(num_threads=2), x)

    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(xs, pool.map(run, xs), strict=True):
            assert_same_bits(y, layer(x)[0])


def test_two_threads_at_one_stream_are_refused_or_wait():
    """Each step is one step, or refused: the state is that of as many steps as have succeeded."""
    layer = cylstm.RNN(64, 512, rng=0)
    stream, x = layer.stream(8), np.random.default_rng(0).normal(size=(8, 64)).astype("f")
    done, start = [], threading.Barrier(3)

    def run():
        start.wait()
        for _ in range(100):
            try:
                stream.step(x)
                done.append(1)
            except RuntimeError as error:
                assert "one call at a time" in str(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = layer.stream(8)
    for _ in done:
        alone.step(x)
    assert_same_bits(stream.state, alone.state)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child():
    """A stream that another thread was stepping goes on from the state before that step."""
    layer = cylstm.LSTM(16, 384, rng=0)
    stream, x, over = layer.stream(num_threads=2), np.ones((1, 16), "f"), threading.Event()

    def step():
        while not over.is_set():
            stream.step(x)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(8):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a hang ends there
                state = stream.state
                y, state = layer(x[None], state)
                same = stream.step(x).tobytes() == y.tobytes()
                os._exit(0 if same and stream.state[1].tobytes() == state[1].tobytes() else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        thread.join()


def test_a_signal_in_the_middle_of_a_step_leaves_the_state():
    """Its handler runs before all layers have been stepped, and raises."""
    layer = cylstm.LSTM(128, 512, 2, rng=0)
    stream, x = layer.stream(9000, num_threads=1), np.ones((9000, 128), "f")
    before, handler = stream.state, signal.getsignal(signal.SIGALRM)

    def late(*_):
        raise InterruptedError

    signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(InterruptedError):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            stream.step(x)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert_same_bits(stream.state, before)
    assert_same_bits(stream.step(x[:9000])[:1], layer(x[None, :1])[0][0])


def test_weights_may_change_in_another_thread():
    """A step has all of the old weights or all of the new ones."""
    layer = cylstm.GRU(4, 64, rng=0)
    sets = [layer.flat_params.copy(), layer.flat_params * np.float32(0.5)]
    x, ends = np.ones((1, 4), "f"), threading.Event()

    def change():
        while not ends.is_set():
            for values in sets:
                layer.assign(values)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        found = set()
        for _ in range(300):
            found.add(layer.stream().step(x).tobytes())
    finally:
        ends.set()
        thread.join()
    expected = set()
    for values in sets:
        layer.assign(values)
        expected.add(layer(x[None])[0].tobytes())
    assert found <= expected


def test_a_stream_frees_what_it_had():
    layer = cylstm.LSTM(8, 64, rng=0)
    x = np.ones((1, 8), "f")
    layer.stream().step(x)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(50):
            layer.stream().step(x)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_a_million_steps():
    """As many steps as an endless stream has in hours: the bits of the whole sequence."""
    layer = cylstm.GRU(2, 8, rng=0)
    x = np.random.default_rng(0).normal(size=(10**6, 2)).astype("f")
    y, h = layer(x)
    stream, out = layer.stream(), np.empty_like(y)
    step = stream.step
    for frame, into in zip(x, out, strict=True):
        step(frame, into)
    assert_same_bits(out, y)
    assert_same_bits(stream.state[:, 0], h)


# Arguments


@EVERY
def test_what_looks_ahead_is_refused_by_name(cell):
    for option in ("bidirectional", "go_backwards"):
        layer = LAYERS[cell](3, 5, **{option: True})
        refused(ValueError, option, "True", layer.stream)
        refused(ValueError, option, "True", layer.pool, 4)


def test_bad_arguments():
    layer = cylstm.LSTM(3, 5, rng=0)
    for rows, error in ((0, ValueError), (1.5, TypeError), (True, TypeError), (2**31, ValueError)):
        refused(error, "batch_size", str(rows), layer.stream, rows)
    refused(ValueError, "num_threads", "0", layer.stream, num_threads=0)
    stream, one = layer.stream(2), layer.stream()
    good = np.ones((2, 3), "f")
    stream.step(good)
    state = stream.state
    for x in (np.ones(3), np.ones((2, 4)), np.ones((3, 3)), np.ones((1, 2, 3)), np.float64(1)):
        refused(ValueError, "x", str(x.shape), stream.step, x)
    refused(ValueError, "x", "(2, 3)", one.step, good)
    refused(TypeError, "x", "bool", stream.step, good > 0)
    for out in (np.ones((2, 4), "f"), np.ones(5, "f")):
        refused(ValueError, "out", str(out.shape), stream.step, good, out)
    refused(TypeError, "out", "f8", stream.step, good, np.ones((2, 5)))
    refused(TypeError, "out", "list", stream.step, good, [1])
    fixed = np.ones((2, 5), "f")
    fixed.flags.writeable = False
    refused(ValueError, "out", "not", stream.step, good, fixed)
    for chunk in (np.ones((4, 3)), np.ones((4, 1, 3)), np.ones((4, 2, 2)), np.ones(3)):
        refused(ValueError, "chunk", str(chunk.shape), stream.push, chunk)
    refused(ValueError, "chunk", "1", stream.push, [np.ones((4, 3))])
    refused(ValueError, "chunk", "(4, 2, 3)", one.push, np.ones((4, 2, 3)))
    for rows in (2, -1, [0, 5]):
        refused(ValueError, "rows", str(rows), stream.reset, rows)
    refused(TypeError, "rows", "float64", stream.reset, 1.0)
    refused(TypeError, "rows", "bool", stream.reset, [True, False])
    refused(
        ValueError, "state h", "(1, 3, 5)", setattr, stream, "state", (np.ones((1, 3, 5)), None)
    )
    refused(TypeError, "state", "ndarray", setattr, stream, "state", np.ones((1, 2, 5)))
    assert_same_bits(stream.state, state)
    for name in ("layer", "batch_size", "num_threads"):
        with pytest.raises(AttributeError):
            setattr(stream, name, 1)
    assert repr(stream) == f"<stream of {layer!r}: batch_size=2>"


def test_a_frame_that_calls_the_stream():
    """Reading x may run any code; the stream is at one step only."""
    stream = cylstm.RNN(3, 5, rng=0).stream()

    class Frame:
        def __array__(self, dtype=None, copy=None):
            return stream.step(np.ones(3))

    with pytest.raises(ValueError, match="one call at a time"):
        stream.step(Frame())
    stream.step(np.ones(3))


def test_the_native_entry_refuses_by_itself():
    bare = Stream.__new__(Stream)
    for call in (bare.step, lambda x: bare._load(x, x), lambda x: bare._store(x, x)):
        with pytest.raises(TypeError, match="expected"):
            call(np.ones(3, "f"))
    stream = cylstm.RNN(3, 5, rng=0).stream(2)
    with pytest.raises(TypeError, match="made once"):
        stream.__init__(stream.layer)
    rows = np.zeros((2, 5), "f")
    for which, values in (([0, 2], rows), ([-1, 0], rows), ([0], rows), ([0, 1], rows[:, :4]),
                          ([0, 1], rows.astype(float))):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            stream._load(np.array(which, np.intp), values)
    both = cylstm.RNN(3, 5, bidirectional=True)
    with pytest.raises(ValueError, match="one direction"):
        sequence.StreamBase(both, 1, 1, int)
    with pytest.raises(ValueError, match="at least one row"):
        sequence.StreamBase(stream.layer, 0, 1, int)

    class Careless(Stream):
        def _checked_frames(self, x, rows):
            return np.zeros((), "f")

        def _checked_attention(self, attention, rows):
            return None

    with pytest.raises(TypeError, match="as the kernels read them"):
        Careless(stream.layer, 2).step([1])
    with pytest.raises(TypeError, match=r"attention: .* as the kernels read them"):
        Careless(cylstm.AUGRU(3, 5), 1).step(np.zeros((1, 3), "f"))
    assert state_rows.sizes(stream.layer) == [(5,)]


@pytest.mark.parametrize(("size", "threads"), [(5, 1), (384, 3)])
def test_attention(size, threads):
    """A number for each row and step: by steps, chunks and in pools the bits of the whole call."""
    layer = cylstm.AUGRU(3, size, 2, rng=0)
    rng = np.random.default_rng(0)
    x, attention = rng.normal(size=(6, 4, 3)).astype("f"), rng.random((6, 4)).astype("f")
    expected, final = layer(x, attention=attention)
    stream, pool = layer.stream(4, num_threads=threads), layer.pool(4)
    ids = [pool.open() for _ in range(4)]
    order = [2, 0, 3, 1]
    out = attention[0].repeat(size).reshape(4, size)  # attention is read before it is written
    for t in range(3):
        assert_same_bits(stream.step(x[t], attention=attention[t]), expected[t])
        y = pool.step([ids[i] for i in order], x[t, order], attention=attention[t, order],
                      num_threads=threads)  # fmt: skip
        assert_same_bits(y, expected[t, order])
    assert_same_bits(stream.step(x[3], out, attention[3].astype(float)), expected[3])
    assert_same_bits(stream.push(x[4:], attention=attention[4:]), expected[4:])
    assert_same_bits(stream.state, final)
    one = layer.stream()
    assert_same_bits(one.step(x[0, 0], attention=attention[0, 0]), expected[0, 0])
    overlap = np.zeros(4, "f")
    alone = cylstm.AUGRU(3, 1, rng=0).stream(4)
    right = alone.step(x[0], attention=attention[0])
    alone.reset()
    overlap[:] = attention[0]
    assert_same_bits(alone.step(x[0], overlap.reshape(4, 1), overlap), right)


def test_attention_that_does_not_fit():
    layer = cylstm.AUGRU(3, 4, rng=0)
    stream, pool, plain = layer.stream(2), layer.pool(2), cylstm.GRU(3, 4, rng=0)
    ids, x = [pool.open(), pool.open()], np.zeros((2, 3), "f")
    for step in (partial(stream.step, x), partial(pool.step, ids, x)):
        for wrong, message in ((None, r"expected shape \(2,\), got None"),
                               ([0.5], r"expected shape \(2,\), got \(1,\)"),
                               (0.5, r"expected shape \(2,\), got \(\)")):  # fmt: skip
            with pytest.raises(ValueError, match=f"^attention: {message}"):
                step(attention=wrong)
    with pytest.raises(TypeError, match=r"^attention: expected none"):
        plain.stream(2).step(x, attention=[1, 1])
    with pytest.raises(TypeError, match=r"^submit: .* attention"):
        pool.submit(ids[0], x[0])
    with pytest.raises(TypeError, match="reads x alone, got attention"):
        sequence.Stepper(stream)
    assert not np.any(stream.state)


@EVERY
def test_a_stepper_has_the_state_of_its_stream(cell):
    """Steps are taken by the extension in examples/cython."""
    layer = LAYERS[cell](3, 5, 2, rng=0)
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype("f")
    stream, other = layer.stream(2), layer.stream(2)
    stream.push(x[:4])
    stepper = sequence.Stepper(stream)
    assert (stepper.rows, stepper.inputs, stepper.outputs, stepper.itemsize) == (2, 3, 5, 4)
    stream.push(x[4:])
    layer.assign(layer.flat_params / 2)
    stepper.give_state(other)  # whose weights are others by now
    layer.assign(layer.flat_params * 2)
    expected, _ = layer(x)
    assert_same_bits(other.push(x[4:]), expected[4:])
    for wrong in (layer.stream(3), LAYERS[cell](3, 4, rng=0).stream(2)):
        with pytest.raises(ValueError, match="same sizes"):
            stepper.give_state(wrong)
    for wrong in (None, layer):
        with pytest.raises(TypeError):
            sequence.Stepper(wrong)
        with pytest.raises(TypeError):
            stepper.give_state(wrong)
    with pytest.raises(TypeError, match="once"):
        stepper.__init__(stream)
    with pytest.raises(RuntimeError):
        sequence.Stepper.__new__(sequence.Stepper).give_state(stream)
