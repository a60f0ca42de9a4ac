"""Lengths, empty sequences and batches, rows of NaN, memory layouts, and the output buffer."""

import numpy as np
import pytest
import reference
from helpers import (
    CELLS,
    DTYPES,
    LAYERS,
    assert_close,
    assert_same_bits,
    bits,
    joined,
    parts,
    problem,
)

BOTH = pytest.mark.parametrize("bidirectional", [False, True])
EVERY = pytest.mark.parametrize("cell", CELLS)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("steps", "rows", "lengths"),
    [(0, 3, None), (0, 3, [0, 0, 0]), (4, 0, None), (0, 0, None), (4, 3, [0, 0, 0])],
)
@EVERY
def test_nothing_to_do(cell, dtype, steps, rows, lengths, bidirectional):
    p = problem(cell, (3, 18, 2), steps=steps, rows=rows, lengths=lengths, dtype=dtype,
                bidirectional=bidirectional)  # fmt: skip
    y, state, tape = p.forward()
    zeros = np.zeros_like(p.dy)
    assert_same_bits((y, state), (zeros, p.state))
    assert_same_bits(p.infer(), (zeros, p.state))
    assert_same_bits(p.backward(tape), (np.zeros_like(p.x), p.dstate))
    assert not np.any(p.layer.flat_grads)


@EVERY
def test_steps_that_no_row_has_add_nothing(cell):
    """Not even where backward's last chunks of time are empty, whatever memory held before."""
    p = problem(cell, (40, 64), steps=70, rows=12, lengths=np.arange(12), dtype="float64")
    p.backward(p.forward()[2])
    few = p._replace(x=p.x[:11], dy=p.dy[:11])
    gradients = []
    for q in (p, few):
        q.layer.zero_grad()
        q.backward(q.forward()[2])
        gradients.append(q.layer.flat_grads.copy())
    assert_same_bits(*gradients)


@EVERY
def test_no_step_no_gradient(cell):
    """Whatever the memory of earlier calls holds."""
    p = problem(cell, (40, 64), steps=5, rows=3, lengths=[5, 3, 4])
    _, _, tape = p.forward()
    p.backward(tape)
    assert np.any(p.layer.flat_grads)
    before = p.layer.flat_grads.copy()
    _, _, tape = p.layer.forward(p.x, lengths=[0, 0, 0])
    p.layer.backward(tape, p.dy)
    assert_same_bits(p.layer.flat_grads, before)


@EVERY
def test_nothing_to_do_unbatched(cell):
    p = problem(cell, (3, 18, 2), rows=1)
    y, state = p.layer(p.x[:0, 0], joined(tuple(s[:, 0] for s in p.state)))
    assert y.shape == (0, 18)
    assert_same_bits(parts(state), tuple(s[:, 0] for s in p.state))


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_length_zero_passes_the_state_and_its_gradient_through(cell, dtype, bidirectional):
    lengths = np.array([3, 0, 5, 0])
    p = problem(cell, (3, 18, 2), rows=4, lengths=lengths, dtype=dtype, bidirectional=bidirectional)
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    empty = lengths == 0
    assert not np.any(bits(y[:, empty])) and not np.any(dx[:, empty])
    for actual, expected in ((state, p.state), (dstate, p.dstate)):
        assert_same_bits(tuple(a[:, empty] for a in actual), tuple(e[:, empty] for e in expected))
    grads = p.layer.flat_grads.copy()
    some = p._replace(
        x=p.x[:, ~empty], lengths=lengths[~empty], dy=p.dy[:, ~empty],
        state=tuple(s[:, ~empty] for s in p.state), dstate=tuple(s[:, ~empty] for s in p.dstate),
    )  # fmt: skip
    some.backward(some.forward()[2])
    assert_close(p.layer.flat_grads, grads, 2e-5 if dtype == "float32" else 1e-13)


@BOTH
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_padding_is_never_read(cell, dtype, garbage, bidirectional):
    lengths = np.array([4, 0, 6, 1, 6])
    p = problem(cell, (3, 18, 2), steps=6, rows=5, lengths=lengths, dtype=dtype,
                bidirectional=bidirectional)  # fmt: skip
    beyond = np.arange(6)[:, None] >= lengths
    q = p._replace(x=p.x.copy(), dy=p.dy.copy())
    q.x[beyond] = garbage
    q.dy[beyond] = garbage
    y, state, tape = p.forward()
    expected = (*p.backward(tape), p.layer.flat_grads.copy())
    assert not np.any(bits(y[beyond])) and not np.any(expected[0][beyond])
    assert_same_bits(q.infer(), (y, state))
    y_garbage, state_garbage, tape = q.forward()
    assert_same_bits((y_garbage, state_garbage), (y, state))
    assert_same_bits((*q.backward(tape), q.layer.flat_grads), expected)


@BOTH
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "state", "dy", "dstate"])
@pytest.mark.parametrize("rows", [2, 5, 40])
@EVERY
def test_rows_never_touch_each_other(cell, rows, where, poison, bidirectional):
    p = problem(cell, (3, 18, 2), rows=rows, lengths="random", bidirectional=bidirectional)
    bad = int(np.argmax(p.lengths))
    others = np.arange(rows) != bad

    def outcome(p):
        y, state, tape = p.forward()
        dx, dstate = p.backward(tape)
        inferred = p.infer()
        return tuple(a[:, others] for a in (y, *state, dx, *dstate, inferred[0], *inferred[1]))

    expected = outcome(p)
    q = p._replace(x=p.x.copy(), dy=p.dy.copy(), state=tuple(s.copy() for s in p.state),
                   dstate=tuple(s.copy() for s in p.dstate))  # fmt: skip
    for array in {"x": (q.x,), "dy": (q.dy,)}.get(where) or getattr(q, where):
        array[:, bad] = poison
    assert_same_bits(outcome(q), expected)
    if poison is np.nan and where in ("x", "state"):
        assert np.all(np.isnan(q.infer()[0][0, bad]))


@EVERY
def test_nan_reaches_its_own_later_steps_only(cell):
    p = problem(cell, (3, 18))
    x = p.x.copy()
    x[2, 1, 0] = np.nan
    y = p._replace(x=x).infer()[0]
    assert_same_bits(y[:2], p.infer()[0][:2])
    assert np.all(np.isnan(y[2:, 1]))


@pytest.mark.parametrize("hidden", [16, 18])
@EVERY
def test_infinite_input_spreads_as_far_as_the_equations_say(cell, hidden):
    p = problem(cell, (3, hidden, 2), rows=4, dtype="float64", bidirectional=True)
    p.x[2, 1, 0] = np.inf
    with np.errstate(invalid="ignore"):
        y, state, cache = p.oracle()
        dx, dstate, grads = reference.backward(cache, p.dy, p.dstate)
    y_actual, state_actual, tape = p.forward()
    dx_actual, dstate_actual = p.backward(tape)
    assert_close(y_actual, y, 1e-13)
    assert_close(dx_actual, dx, 1e-13)
    assert_close((*state_actual, *dstate_actual), (*state, *dstate), 1e-13)
    for name, grad in p.layer.grads.items():
        assert_close(grad, grads[name], 1e-12)


@EVERY
def test_reverse_direction_starts_at_the_rows_own_last_step(cell):
    p = problem(cell, (3, 18), rows=2, lengths=np.array([3, 5]), bidirectional=True)
    reverse = LAYERS[cell](3, 18)
    names = [name for name in p.layer.params if name.endswith("_reverse")]
    reverse.assign({name.removesuffix("_reverse"): p.layer.params[name] for name in names})
    y, state = p.infer()
    for row, length in enumerate(p.lengths):
        backwards = p.x[:length, row][::-1]
        y_row, state_row = reverse(backwards, joined(tuple(s[1, row][None] for s in p.state)))
        assert_same_bits(y[:length, row, 18:][::-1], y_row)
        assert_same_bits(tuple(s[1, row] for s in state), tuple(s[0] for s in parts(state_row)))


@pytest.mark.parametrize(
    "lengths",
    [np.array([4, 0, 5], t) for t in ("int8", "uint8", ">i4", "int64", "uint64")]
    + [[4, 0, 5], np.array([4, 9, 0, 9, 5])[::2]],
    ids=lambda v: type(v).__name__ + str(getattr(v, "dtype", "")),
)  # fmt: skip
@EVERY
def test_any_integer_lengths(cell, lengths):
    p = problem(cell, (3, 18), lengths=np.array([4, 0, 5]))
    assert_same_bits(p._replace(lengths=lengths).infer(), p.infer())


def fortran(a):
    return np.asfortranarray(a)


def strided(a):
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1] + 1), np.nan, a.dtype)
    wide[..., 1::2] = a
    return wide[..., 1::2]


def padded_rows(a):  # the last axis is contiguous, the others are not
    wide = np.full((a.shape[0], a.shape[1] + 2, a.shape[2] + 3), np.nan, a.dtype)
    wide[:, 1:-1, 1:-2] = a
    return wide[:, 1:-1, 1:-2]


def reversed_(a):
    return a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    return raw


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def broadcast(a):
    return np.broadcast_to(a[:1], a.shape)


def nested_lists(a):
    return a.tolist()


LAYOUTS = [
    fortran, strided, padded_rows, reversed_, swapped, misaligned, read_only, broadcast,
    nested_lists,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@EVERY
def test_any_memory_layout(cell, layout, dtype):
    for batch_first in (False, True):
        p = problem(cell, (6, 18), steps=4, rows=4, lengths="random", dtype=dtype,
                    bidirectional=True, batch_first=batch_first)  # fmt: skip

        def laid_out(a):
            return layout(a)

        def plain(a):
            return np.array(layout(a), dtype)

        outcomes = []
        for change in (laid_out, plain):
            q = p._replace(x=change(p.x), dy=change(p.dy), state=tuple(map(change, p.state)),
                           dstate=tuple(map(change, p.dstate)))  # fmt: skip
            inferred = q.infer()
            y, state, tape = q.forward()
            outcomes.append((*inferred, y, state, *q.backward(tape), p.layer.flat_grads.copy()))
        assert_same_bits(*outcomes)


@pytest.mark.parametrize("given", ["float64", "float32", "float16", "int64", "uint8", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_real_numbers_are_cast(cell, dtype, given):
    p = problem(cell, (6, 18), dtype=dtype)

    def cast(a):
        return np.abs(4 * a).astype(given)

    def change(p, f):
        return p._replace(x=f(p.x), dy=f(p.dy), state=tuple(map(f, p.state)),
                          dstate=tuple(map(f, p.dstate)))  # fmt: skip

    outcomes = []
    for q in (change(p, cast), change(p, lambda a: cast(a).astype(dtype))):
        y, state, tape = q.forward()
        outcomes.append((y, state, *q.backward(tape), p.layer.flat_grads.copy()))
    assert_same_bits(*outcomes)


@EVERY
def test_arguments_are_left_alone_and_results_are_fresh(cell):
    p = problem(cell, (18, 18), lengths=np.array([0, 5, 2]))
    arrays = (p.x, p.dy, *p.state, *p.dstate, p.lengths)
    before = tuple(a.copy() for a in arrays)
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    inferred = p.infer()
    assert_same_bits(arrays, before)
    for result in (y, *state, dx, *dstate, inferred[0], *inferred[1]):
        assert result.flags.writeable and result.flags.c_contiguous
        assert not any(np.shares_memory(result, a) for a in arrays)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("tape", [False, True])
@EVERY
def test_out_is_filled_and_returned(cell, tape, batch_first):
    p = problem(cell, (3, 18, 2), steps=4, rows=4, lengths="random", bidirectional=True,
                batch_first=batch_first)  # fmt: skip
    expected, state = p.infer()
    out = np.full_like(expected, np.nan)
    result = (p.forward if tape else p.infer)(out=out)
    assert result[0] is out
    assert_same_bits((out, result[1]), (expected, state))


@pytest.mark.parametrize("layout", [fortran, strided, padded_rows, reversed_, swapped, misaligned],
                         ids=lambda f: f.__name__)  # fmt: skip
@EVERY
def test_out_of_any_layout_is_filled_or_refused(cell, layout):
    p = problem(cell, (3, 18, 2), lengths="random")
    expected = p.infer()[0]
    out = layout(np.full_like(expected, np.nan))
    try:
        y = p.infer(out=out)[0]
    except (TypeError, ValueError) as error:
        assert str(error).startswith("out: expected")
        assert np.all(np.isnan(out))
    else:
        assert y is out
        np.testing.assert_array_equal(out, expected)


@EVERY
def test_out_that_overlaps_an_argument_is_right_or_refused(cell):
    p = problem(cell, (18, 18))
    p = p._replace(x=p.x / 4)
    expected = p.infer()
    shared = p.x.copy()
    try:
        y, state = p._replace(x=shared).infer(out=shared)
    except ValueError as error:
        assert str(error).startswith("out: expected")
        assert_same_bits(shared, p.x)
    else:
        assert_same_bits((y, state), expected)
