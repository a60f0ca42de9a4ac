"""Truncated backpropagation through time against every window computed by itself."""

import copy
import itertools
import tracemalloc

import numpy as np
import pytest
from helpers import (
    CELLS,
    LAYERS,
    Problem,
    assert_close,
    assert_same_bits,
    joined,
    parts,
    problem,
)  # fmt: skip

import cylstm
from cylstm import truncated_bptt

INPUTS, H, T, B = 3, 10, 11, 4
LENGTHS = np.array([11, 0, 6, 3])
# k1, k2 with T = 11: equal, multiples, not multiples, less, all steps, longer than the sequence.
PAIRS = [(4, 4), (3, None), (2, 6), (4, 6), (3, 7), (5, 3), (4, 1), (1, 1), (1, 4), (11, 11),
         (4, 11), (20, 20), (20, 3), (4, 50)]  # fmt: skip


def windows_of(k1, k2):
    """Start, stop and reach of every window, by the definition."""
    k2 = k1 if k2 is None else k2
    stops = [min(start + k1, T) for start in range(0, T, k1)]
    return [(i * k1, stop, max(0, stop - k2)) for i, stop in enumerate(stops)]


def by_brute_force(p, start, stop, reach, mask=None):
    """Gradients of one window: forward from a detached state `reach` steps in, all of it taped."""
    layer = copy.deepcopy(p.layer)
    layer.zero_grad()
    axis = int(layer.batch_first)

    def steps(a, first, last):
        return a[:, first:last] if axis else a[first:last]

    def valid(first, last):
        if mask is not None:
            return {"mask": steps(mask, first, last)}
        lengths = p.lengths
        return {} if lengths is None else {"lengths": np.clip(lengths - first, 0, last - first)}

    _, state = layer(steps(p.x, 0, reach), joined(p.state), **valid(0, reach))
    _, _, tape = layer.forward(steps(p.x, reach, stop), state, **valid(reach, stop))
    dy = steps(p.dy, 0, stop).copy()
    steps(dy, 0, start)[...] = 0  # outputs before the window have no part in its loss
    dx, dstate = layer.backward(tape, steps(dy, reach, stop))
    return dx, parts(dstate), layer.flat_grads.copy()


def turned(p):
    """The same problem for a layer with batch_first."""
    return p._replace(x=p.x.swapaxes(0, 1).copy(), dy=p.dy.swapaxes(0, 1).copy())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(("k1", "k2"), PAIRS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_window_by_brute_force(cell, k1, k2, lengths, batch_first):
    p = problem(cell, (INPUTS, H, 2), steps=T, rows=B, lengths=lengths, dtype="float64",
                batch_first=batch_first)  # fmt: skip
    p = turned(p) if batch_first else p
    layer = p.layer
    whole, final = p.infer()
    outputs, expected = [], windows_of(k1, k2)
    windows = truncated_bptt(layer, p.x, k1, k2, state=joined(p.state), lengths=lengths)
    for window, (start, stop, reach) in itertools.zip_longest(windows, expected):
        assert (window.start, window.stop, window.reach) == (start, stop, reach)
        layer.zero_grad()
        dy = p.dy[:, start:stop] if batch_first else p.dy[start:stop]
        dx, dstate = window.backward(dy)
        dx_wanted, dstate_wanted, grads = by_brute_force(p, start, stop, reach)
        assert_close(dx, dx_wanted, 1e-12)
        assert_close(parts(dstate), dstate_wanted, 1e-12)
        assert_close(layer.flat_grads, grads, 1e-12)
        outputs.append(window.y)
    assert_same_bits(np.concatenate(outputs, axis=int(batch_first)), whole)
    assert_same_bits(parts(window.state), final)


@pytest.mark.parametrize("options", [
    {"proj_size": 4}, {"peepholes": True, "coupled": True}, {"layer_norm": "haste"},
    {"hidden_size": (6, 4)}, {"hidden_size": (6, 9), "proj_size": 3},
], ids=str)  # fmt: skip
def test_states_of_every_shape(options):
    layer = cylstm.LSTM(**{"input_size": INPUTS, "hidden_size": H, "dtype": "float64"} | options)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(T, B, INPUTS))
    whole, final = layer(x, lengths=LENGTHS)
    dy = rng.normal(size=whole.shape)
    p = Problem("lstm", layer, x, (None, None), LENGTHS, dy, (None, None))
    for k1, k2 in [(4, 6), (5, 3)]:
        windows = truncated_bptt(layer, x, k1, k2, lengths=LENGTHS)
        for window, expected in zip(windows, windows_of(k1, k2), strict=True):
            layer.zero_grad()
            dx, dstate = window.backward(dy[window.start : window.stop])
            dx_wanted, dstate_wanted, grads = by_brute_force(p, *expected)
            assert_close(dx, dx_wanted, 1e-12)
            assert_close(dstate, dstate_wanted, 1e-12)
            assert_close(layer.flat_grads, grads, 1e-11)
        assert_same_bits(window.state, final)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("cell", CELLS)
def test_one_window_is_plain_backpropagation(cell, lengths):
    p = problem(cell, (INPUTS, H, 2), steps=T, rows=B, lengths=lengths)
    y, state, tape = p.forward()
    layer = p.layer
    layer.zero_grad()
    dx, dstate = layer.backward(tape, p.dy)
    grads = layer.flat_grads.copy()
    layer.zero_grad()
    (window,) = truncated_bptt(layer, p.x, T, state=joined(p.state), lengths=lengths)
    assert_same_bits((window.y, *parts(window.state)), (y, *state))
    dx_window, dstate_window = window.backward(p.dy)
    assert_same_bits((dx_window, *parts(dstate_window)), (dx, *parts(dstate)))
    assert_same_bits(layer.flat_grads, grads)


@pytest.mark.parametrize("cell", CELLS)
def test_windows_that_cut_nothing_add_up_to_the_whole(cell):
    p = problem(cell, (INPUTS, H), steps=T, rows=B, dtype="float64")
    _, _, tape = p.forward()
    dx, dstate = p.layer.backward(tape, p.dy)
    grads = p.layer.flat_grads.copy()
    p.layer.zero_grad()
    dx_sum, dstate_sum = np.zeros_like(dx), 0
    for window in truncated_bptt(p.layer, p.x, 4, T, state=joined(p.state)):
        part, dinitial = window.backward(p.dy[window.start : window.stop])
        dx_sum[window.reach : window.stop] += part
        dstate_sum = dstate_sum + np.array(parts(dinitial))
    assert_close(dx_sum, dx, 1e-12)
    assert_close(dstate_sum, parts(dstate), 1e-12)
    assert_close(p.layer.flat_grads, grads, 1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(cell, batch_first):
    p = problem(cell, (INPUTS, H), steps=T, rows=1, dtype="float64")
    other = LAYERS[cell](INPUTS, H, dtype="float64", batch_first=batch_first)
    other.assign(p.layer.flat_params)
    alone = tuple(part[:, 0] for part in p.state)
    one = truncated_bptt(other, p.x[:, 0], 3, 5, state=joined(alone))
    for window, single in zip(
        truncated_bptt(p.layer, p.x, 3, 5, state=joined(p.state)), one, strict=True
    ):
        assert_same_bits(single.y, window.y[:, 0])
        dy = p.dy[window.start : window.stop]
        (dx, dstate), (dx1, dstate1) = window.backward(dy), single.backward(dy[:, 0])
        assert_same_bits((dx1, *parts(dstate1)), (dx[:, 0], *(s[:, 0] for s in parts(dstate))))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_mask_with_holes(cell, batch_first):
    p = problem(cell, (INPUTS, H), steps=T, rows=B, dtype="float64", batch_first=batch_first)
    mask = np.random.default_rng(5).random((T, B)) < 0.7
    if batch_first:
        p, mask = turned(p), mask.T
    whole, final = p.layer(p.x, joined(p.state), mask=mask)
    for window in truncated_bptt(p.layer, p.x, 4, 6, state=joined(p.state), mask=mask):
        span = (slice(None),) * batch_first + (slice(window.start, window.stop),)
        assert_same_bits(window.y, whole[span])
        p.layer.zero_grad()
        dx, dstate = window.backward(p.dy[span])
        wanted = by_brute_force(p, window.start, window.stop, window.reach, mask)
        for actual, expected in zip((dx, parts(dstate), p.layer.flat_grads), wanted, strict=True):
            assert_close(actual, expected, 1e-12)
    assert_same_bits(parts(window.state), parts(final))


def test_a_state_goes_on_from_the_last_window():
    p = problem("lstm", (INPUTS, H), steps=T, rows=B)
    *_, first = truncated_bptt(p.layer, p.x[:7], 3)
    *_, second = truncated_bptt(p.layer, p.x[7:], 3, state=first.state)
    *_, whole = truncated_bptt(p.layer, p.x, T)
    assert_same_bits(second.state, whole.state)


def test_weights_change_between_windows():
    """A window's own steps use the new weights; tapes of earlier steps remember theirs."""
    p = problem("gru", (INPUTS, H), steps=8, rows=B, dtype="float64")
    layer, old = p.layer, copy.deepcopy(p.layer)
    windows = truncated_bptt(layer, p.x, 4, 8)
    next(windows)
    layer.assign(layer.flat_params * 1.1)
    second = next(windows)
    _, state, old_tape = old.forward(p.x[:4])
    y, _, tape = layer.forward(p.x[4:], state)
    assert_same_bits(second.y, y)
    layer.zero_grad()
    dx, _ = second.backward(p.dy[4:])
    grads = layer.flat_grads.copy()
    layer.zero_grad()
    dx_late, dstate = layer.backward(tape, p.dy[4:])
    old.zero_grad()
    dx_early, _ = old.backward(old_tape, None, dstate)
    assert_close(dx, np.concatenate([dx_early, dx_late]), 1e-13)
    assert_close(grads, layer.flat_grads + old.flat_grads, 1e-13)


def test_windows_may_be_used_again_and_later():
    p = problem("lstm", (INPUTS, H), steps=T, rows=B, dtype="float64")
    windows = list(truncated_bptt(p.layer, p.x, 3, 5))
    p.layer.zero_grad()
    first = windows[1].backward(p.dy[3:6])[0]
    once = p.layer.flat_grads.copy()
    assert_same_bits(windows[1].backward(p.dy[3:6])[0], first)
    assert_close(p.layer.flat_grads, 2 * once, 1e-14)
    p.layer.zero_grad()
    dx, _ = windows[1].backward(None)
    assert not dx.any() and not p.layer.flat_grads.any()


def test_each_step_is_run_once():
    p = problem("gru", (INPUTS, H), steps=T, rows=B)
    layer, run = p.layer, []
    plain = layer.forward
    layer.forward = lambda x, *a, **k: run.append(len(x)) or plain(x, *a, **k)
    list(truncated_bptt(layer, p.x, 4, 6))
    assert run == [2, 2, 1, 3, 3]  # cut at 4 and 8, and 6 steps before 8 and 11: at 2 and 5
    run.clear()
    list(truncated_bptt(layer, p.x, 2, 4))
    assert run == [2, 2, 2, 1, 1, 2, 1]  # at multiples of 2, and 4 steps before 11: at 7


def test_memory_is_bounded_by_k1_plus_k2_steps():
    layer = cylstm.LSTM(INPUTS, 64, rng=0)
    rows, k1, k2 = 4, 8, 24
    x = np.zeros((2000, rows, INPUTS), layer.dtype)
    for window in truncated_bptt(layer, x, k1, k2):
        kept = window.pieces
        assert kept[0].start == window.reach and kept[-1].stop == window.stop
        assert all(a.stop == b.start for a, b in itertools.pairwise(kept))

    def peak(steps):
        tracemalloc.start()
        for _ in truncated_bptt(layer, x[:steps], k1, k2):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(2000) < 1.3 * peak(100)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.5},
        {"dropout": 0.5, "variational": True},
        {"recurrent_dropout": 0.5},
        {"dropconnect": 0.5},
    ],
    ids=str,
)
def test_masks_are_replayed_and_differ_by_window(options):
    layer = cylstm.LSTM(INPUTS, H, 2, rng=0, **options)
    x = np.random.default_rng(1).normal(size=(T, B, INPUTS))

    def outputs(**more):
        return np.concatenate([window.y for window in truncated_bptt(layer, x, 4, **more)])

    assert_same_bits(outputs(rng=3), outputs(rng=3))
    assert np.any(outputs(rng=3) != outputs(rng=4))
    assert np.any(outputs() != outputs())
    # The first window's masks are those of a call with the same source, the second has its own.
    first, second = truncated_bptt(layer, x[:8], 4, rng=3)
    y, state, tape = layer.forward(x[:4], rng=np.random.default_rng(3))
    assert_same_bits((first.y, *first.state), (y, *state))
    assert_same_bits(first.backward(y)[0], layer.backward(tape, y)[0])
    assert np.any(layer.forward(x[4:8], state, rng=np.random.default_rng(3))[0] != second.y)


def test_clipping_inside_the_recurrence():
    p = problem("lstm", (INPUTS, H), steps=T, rows=B, dtype="float64")
    layer = p.layer
    (window,) = truncated_bptt(layer, p.x, T)
    layer.zero_grad()
    dx, _ = window.backward(p.dy, clip_step=0.01)
    grads = layer.flat_grads.copy()
    layer.zero_grad()
    _, _, tape = layer.forward(p.x)
    assert_same_bits(layer.backward(tape, p.dy, clip_step=0.01)[0], dx)
    assert_same_bits(layer.flat_grads, grads)
    assert np.abs(window.backward(p.dy)[0] - dx).max() > 0.01


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    p = problem("lstm", (INPUTS, 48, 2), steps=40, rows=20)

    def gradients(**options):
        p.layer.zero_grad()
        found = []
        for window in truncated_bptt(p.layer, p.x, 8, 12, **options):
            found.append(window.backward(p.dy[window.start : window.stop], **options)[0])
        return (*found, p.layer.flat_grads.copy())

    assert_same_bits(gradients(num_threads=threads), gradients())


@pytest.mark.parametrize("cell", CELLS)
def test_edges(cell):
    layer = LAYERS[cell](INPUTS, H)
    assert list(truncated_bptt(layer, np.zeros((0, B, INPUTS)), 4)) == []
    for window in truncated_bptt(layer, np.zeros((T, 0, INPUTS)), 4, 6):
        dx, _ = window.backward(np.zeros_like(window.y))
        assert dx.shape == (window.stop - window.reach, 0, INPUTS)
    p = problem(cell, (INPUTS, H), steps=T, rows=2, lengths=np.zeros(2, int))
    for window in truncated_bptt(p.layer, p.x, 4, 6, state=joined(p.state), lengths=p.lengths):
        assert_same_bits(parts(window.state), p.state)
        assert not window.y.any() and not window.backward(window.y + 1)[0].any()
    assert not p.layer.flat_grads.any()


def test_refusals():
    layer = cylstm.LSTM(INPUTS, H)
    x = np.zeros((T, B, INPUTS))

    def refused(error, message, *arguments, **options):
        with pytest.raises(error, match=message):  # at once, not at the first window
            truncated_bptt(*arguments, **options)

    for wrong in (cylstm.Linear(INPUTS, H), None):
        refused(TypeError, r"^layer: expected an RNN, LSTM or GRU, got", wrong, x, 4)
    for name in ("bidirectional", "go_backwards"):
        backwards = cylstm.GRU(INPUTS, H, **{name: True})
        refused(ValueError, rf"^layer: expected .*forwards, got .*{name}=True", backwards, x, 4)
    for value, error in [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]:
        refused(error, r"^k1: expected an integer", layer, x, value)
        refused(error, r"^k2: expected an integer", layer, x, 4, value)
    refused(TypeError, r"^k1: expected an integer", layer, x, None)
    for shape in [(T, B, INPUTS + 1), (T,), (T, B, INPUTS, 1)]:
        refused(ValueError, r"^x: expected shape \(T, B, I\).*got", layer, np.zeros(shape), 4)
    refused(TypeError, r"^x: expected an array, got a list", layer, [x[:, 0], x[:3, 1]], 4)
    for lengths in ([T + 1] * B, [-1] * B, [1], np.ones((T, B), int)):
        refused(ValueError, r"^lengths: expected", layer, x, 4, lengths=lengths)
    refused(ValueError, r"^lengths: expected", layer, x[:, 0], 4, lengths=[T, T])
    refused(TypeError, r"^lengths: expected", layer, x, 4, lengths=[0.5] * B)
    ones = np.ones((T, B), bool)
    refused(ValueError, r"^mask: expected shape", layer, x, 4, mask=ones[:5])
    both = {"mask": ones, "lengths": LENGTHS}
    refused(ValueError, r"^mask: expected None with lengths", layer, x, 4, **both)
    with pytest.raises(ValueError, match=r"^state h: expected shape"):
        next(truncated_bptt(layer, x, 4, state=(np.zeros((1, 2, H)), None)))


def test_a_gradient_that_does_not_fit_changes_nothing():
    layer = cylstm.LSTM(INPUTS, H, rng=0)
    x = np.random.default_rng(0).normal(size=(T, B, INPUTS))
    for window in truncated_bptt(layer, x, 4, 6):
        for wrong in (np.ones((1, B, H)), np.ones((len(window.y), B, H + 1)), np.ones(())):
            with pytest.raises(ValueError, match=r"^dy: expected shape"):
                window.backward(wrong)
        with pytest.raises(TypeError, match=r"^dy: expected real numbers"):
            window.backward(window.y.astype(complex))
    assert not layer.flat_grads.any()


def test_learns_what_lies_beyond_the_window():
    """Name the number of 6 steps ago: windows of 4 steps learn it with k2 = 12, not with k2 = 4."""
    losses = {}
    for k2 in (4, 12):
        rng = np.random.default_rng(0)
        gru, head = cylstm.GRU(1, 24, rng=1), cylstm.Linear(24, 1, rng=2)
        optimizer = cylstm.Adam([gru, head], lr=0.01)
        x = rng.uniform(-1, 1, size=(1600, 16, 1))
        recent = []
        for window in truncated_bptt(gru, x, 4, k2):
            target = np.zeros_like(window.y[..., :1])
            known = np.arange(window.start, window.stop) >= 6
            target[known] = x[np.arange(window.start, window.stop)[known] - 6]
            out, tape = head.forward(window.y)
            loss, dout = cylstm.mse_loss(out, target)
            window.backward(head.backward(tape, dout))
            cylstm.clip_grad_norm([gru, head], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent.append(loss)
        losses[k2] = np.mean(recent[-50:])
    assert losses[12] < 0.5 * losses[4]


# Windows made when they are needed


def gradients_of(layer, windows, dy, axis=0):
    """Of each window its numbers, outputs, dx and dstate; and all gradients."""
    layer.zero_grad()
    found = []
    for window in windows:
        span = (slice(None),) * axis + (slice(window.start, window.stop),)
        dx, dstate = window.backward(dy[span])
        found.append((window.start, window.stop, window.reach, window.y, *parts(window.state), dx,
                      *parts(dstate)))  # fmt: skip
    return found, layer.flat_grads.copy()


def assert_same_windows(actual, expected):
    assert [w[:3] for w in actual[0]] == [w[:3] for w in expected[0]]
    for a, e in zip(actual[0], expected[0], strict=True):
        assert_same_bits(a[3:], e[3:])
    assert_same_bits(actual[1], expected[1])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(4, 6), (4, 4), (5, 3), (3, 11), (11, 2), (20, 5)])
@pytest.mark.parametrize("cell", CELLS)
def test_a_function_has_the_bits_of_the_array(cell, k1, k2, batch_first):
    p = problem(cell, (INPUTS, H, 2), steps=T, rows=B, batch_first=batch_first, mask="holes",
                reset=0.2)  # fmt: skip
    p = turned(p) if batch_first else p
    axis, calls = int(batch_first), []
    mask, reset = (a.T if batch_first else a for a in (p.mask, p.reset))

    def of(a):
        def part(start, stop):
            calls.append((start, stop))
            return a[:, start:stop] if batch_first else a[start:stop]

        return part

    given = {"state": joined(p.state)}
    plain = truncated_bptt(p.layer, p.x, k1, k2, mask=mask, reset=reset, **given)
    expected = gradients_of(p.layer, plain, p.dy, axis)
    for marks in ({"mask": mask, "reset": reset}, {"mask": of(mask), "reset": of(reset)}):
        calls.clear()
        windows = truncated_bptt(p.layer, of(p.x), k1, k2, steps=T, **given, **marks)
        assert calls == []
        window = next(windows)
        assert set(calls) == {(0, min(k1, T))}
        found = gradients_of(p.layer, itertools.chain([window], windows), p.dy, axis)
        assert_same_windows(found, expected)
    if T % k1 == 0 or k2 <= T % k1 or k1 > T or k2 == T:
        whole = of(p.x)
        stream = (whole(a, min(a + k1, T)) for a in range(0, T, k1))
        windows = truncated_bptt(p.layer, stream, k1, k2, mask=mask, reset=reset, **given)
        found, grads = gradients_of(p.layer, windows, p.dy, axis)
        # Where the end is not known time may be cut once more.
        assert_close(grads, expected[1], 1e-5)
        assert_same_windows((found, expected[1]), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_end_with_the_window_unless_said(cell):
    p = problem(cell, (INPUTS, H), steps=T, rows=B)
    sources = {
        "callable": (lambda start, stop: p.x[start:stop], {"steps": T}),
        "generator": ((p.x[a : a + 4] for a in range(0, T, 4)), {}),
    }
    for x, options in sources.values():
        reached = [(w.reach, w.start) for w in truncated_bptt(p.layer, x, 4, **options)]
        assert reached == [(0, 0), (4, 4), (8, 8)]


def test_the_end_of_an_iterable_reaches_back_to_cuts_there_are():
    p = problem("gru", (INPUTS, H), steps=11, rows=B)
    stream = [p.x[a : a + 4] for a in range(0, 11, 4)]
    reached = [w.reach for w in truncated_bptt(p.layer, iter(stream), 4, 6)]
    assert reached == [0, 2, 6]  # not 5: time was cut at 6, for a window that was to end at 12
    assert [w.reach for w in truncated_bptt(p.layer, iter(stream), 4, 6, steps=11)] == [0, 2, 5]
    (window,) = truncated_bptt(p.layer, iter(stream[2:]), 4, 2)
    assert (window.stop, window.reach) == (3, 1)
    assert list(truncated_bptt(p.layer, iter([]), 4)) == []
    assert [w.stop for w in truncated_bptt(p.layer, iter([stream[0], p.x[:0]]), 4)] == [4]


def test_an_embedding_is_trained_along():
    """The gradient of its table is that of an embedding of all steps at once, cut by hand."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 7, size=(10, 3))
    embedding = cylstm.Embedding(7, 4, dtype="float64", rng=0)
    layer = cylstm.LSTM(4, 5, dtype="float64", rng=1)
    dy = rng.normal(size=(10, 3, 5))
    tapes = {}

    def embedded(start, stop):
        x, tapes[start] = embedding.forward(ids[start:stop])
        return x

    def generated():
        for start in range(0, 10, 4):
            yield embedded(start, min(start + 4, 10))

    for x, options in ((embedded, {"steps": 10}), (generated(), {})):
        embedding.zero_grad()
        layer.zero_grad()
        for window in truncated_bptt(layer, x, 4, **options):
            dx, _ = window.backward(dy[window.start : window.stop])
            embedding.backward(tapes.pop(window.start), dx)
        actual = embedding.flat_grads.copy(), layer.flat_grads.copy()
        embedding.zero_grad()
        layer.zero_grad()
        state = None
        for start in range(0, 10, 4):
            x_part, tape = embedding.forward(ids[start : start + 4])
            _, state, run = layer.forward(x_part, state)
            embedding.backward(tape, layer.backward(run, dy[start : start + 4])[0])
        assert_same_bits(actual, (embedding.flat_grads, layer.flat_grads))


@pytest.mark.parametrize("cell", CELLS)
def test_resets(cell):
    p = problem(cell, (INPUTS, H, 2), steps=T, rows=B, reset=0.3, lengths=LENGTHS,
                learn_initial_state=True, dtype="float64")  # fmt: skip
    whole, final = p.infer()
    windows = truncated_bptt(p.layer, p.x, 4, T, state=joined(p.state), lengths=p.lengths,
                             reset=p.reset)  # fmt: skip
    dx_sum, dstate_sum, outputs = np.zeros_like(p.x), 0, []
    p.layer.zero_grad()
    for window in windows:
        dx, dstate = window.backward(p.dy[window.start : window.stop])
        dx_sum[window.reach : window.stop] += dx
        dstate_sum = dstate_sum + np.array(parts(dstate))
        outputs.append(window.y)
    assert_same_bits((np.concatenate(outputs), parts(window.state)), (whole, final))
    grads = p.layer.flat_grads.copy()
    p.layer.zero_grad()
    dx, dstate = p.layer.backward(p.forward()[2], p.dy)
    assert_close((dx_sum, grads), (dx, p.layer.flat_grads), 1e-12)
    assert_close(dstate_sum, np.array(parts(dstate)), 1e-12)


def test_refusals_of_windows():
    layer = cylstm.LSTM(INPUTS, H)
    x = np.zeros((T, B, INPUTS))

    def refused(error, message, x, *arguments, **options):
        with pytest.raises(error, match=message):
            list(truncated_bptt(layer, x, *arguments, **options))

    def at_once(error, message, x, *arguments, **options):
        with pytest.raises(error, match=message):
            truncated_bptt(layer, x, *arguments, **options)

    at_once(ValueError, r"^steps: expected T with a callable as x, got None", lambda a, b: x, 4)
    at_once(ValueError, r"^steps: expected None with an array as x, got 11", x, 4, steps=T)
    at_once(ValueError, r"^steps: expected an integer from 0", iter([x]), 4, steps=-1)
    at_once(TypeError, r"^x: expected an array, got a list; .*iter\(x\)", [x], 4)
    for state in ((np.zeros((1, 2, H)), None), (np.zeros((1, B, H + 1)), None)):
        at_once(ValueError, r"^state h: expected shape", x, 4, state=state)
    at_once(TypeError, r"^state: expected a tuple \(h, c\)", x, 4, state=np.zeros((1, B, H)))
    rows = (np.zeros((1, B, H)), None)
    at_once(ValueError, r"^state h: .* a step of B rows", x[0], 4, state=rows)
    at_once(TypeError, r"^num_threads: expected", x, 4, num_threads="2")
    at_once(TypeError, r"^rng: expected", x, 4, rng=True)
    at_once(ValueError, r"^lengths: expected values", iter([x]), 4, lengths=[-1])
    for name in ("mask", "reset"):
        at_once(ValueError, rf"^{name}: expected shape \(11, 4\), got \(4, 11\)", x, 4,
                **{name: np.ones((B, T), int)})  # fmt: skip
        at_once(TypeError, rf"^{name}: expected booleans", x, 4, **{name: np.ones((T, B))})
        at_once(ValueError, rf"^{name}: expected booleans", x, 4, **{name: np.full((T, B), 2)})
        given = {name: np.ones((T, B))}
        at_once(TypeError, rf"^{name}: expected booleans", iter([x]), 4, **given)
        refused(ValueError, rf"^{name}: expected shape \(4, 4\), got \(3, 4\)", x, 4,
                **{name: lambda start, stop: np.ones((3, B), bool)})  # fmt: skip
        refused(ValueError, rf"^{name}: expected shape \(4, 4\), got \(2, 4\)", iter([x[:4]]), 4,
                **{name: np.ones((2, B), bool)})  # fmt: skip
    made = {"steps": T}
    refused(TypeError, r"^x: expected real numbers, got dtype object, from NoneType",
            lambda start, stop: None, 4, **made)  # fmt: skip
    refused(ValueError, r"^x: expected 4 steps from step 0, got 3", lambda a, b: x[:3], 4, **made)
    refused(ValueError, r"^x: expected 4 steps from step 0, got 11", lambda a, b: x, 4, **made)
    refused(ValueError, r"^x: expected shape", lambda a, b: x[0, 0], 4, **made)
    refused(ValueError, r"^x: expected 4 steps from step 0, got 11", iter([x]), 4)
    refused(ValueError, r"^x: expected 11 steps, got windows of 4", iter([x[:4]]), 4, steps=T)
    refused(ValueError, r"^x: expected no step after 3", iter([x[:3], x[:4]]), 4)
    refused(TypeError, r"^x: expected real numbers, got dtype <U", iter(["word"]), 4)
    refused(ValueError, r"^lengths: expected shape \(4,\)", iter([x[:4]]), 4, lengths=[1, 2])
