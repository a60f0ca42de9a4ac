"""`reset`: the bits of separate calls on the segments, and gradients that stop there."""

import copy
import itertools

import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    LAYERS,
    assert_as_the_oracle,
    assert_close,
    assert_gradients_close,
    assert_gradients_match_differences,
    assert_same_bits,
    joined,
    problem,
    refused,
    smooth_problem,
)

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
T, B = 11, 5
READ = [{}, {"lengths": "random"}, {"mask": "holes"}]
WAYS = [{}, {"bidirectional": True}, {"go_backwards": True},
        {"bidirectional": True, "merge_mode": "mul"}]  # fmt: skip


def read_steps(p):
    """Which steps (T, B) are read."""
    steps, rows = p.x.shape[:2]
    if p.lengths is not None:
        return np.arange(steps)[:, None] < p.lengths
    return np.ones((steps, rows), bool) if p.mask is None else p.mask


def segments(p):
    """Per row its segments' read steps, and whether it begins with a reset."""
    steps, rows = p.x.shape[:2]
    read = read_steps(p)
    for row in range(rows):
        cuts = [0, *(t for t in range(1, steps) if p.reset[t, row]), steps]
        parts = [
            [t for t in range(start, stop) if read[t, row]]
            for start, stop in itertools.pairwise(cuts)
        ]
        yield row, parts, bool(p.reset[0, row])


def by_separate_calls(p):
    """Output, final state, dx and dstate of one layer and one direction, row by row."""
    layer, backwards = copy.deepcopy(p.layer), p.layer.go_backwards
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    y, dx = np.zeros_like(y), np.zeros_like(dx)
    final, dstate = (tuple(np.zeros_like(a) for a in part) for part in (state, dstate))
    for row, parts, fresh in segments(p):
        enters, leaves = (-1, 0) if backwards else (0, -1)
        for i, times in enumerate(parts):
            at_start, at_end = (i == k % len(parts) for k in (enters, leaves))
            given = tuple(s[:, row : row + 1] for s in p.state)
            if not at_start or (fresh and not backwards):
                given = None
            dgiven = tuple(d[:, row : row + 1] for d in p.dstate) if at_end else None
            y_part, new, tape = layer.forward(p.x[times, row : row + 1], given and joined(given))
            dx_part, dnew = layer.backward(
                tape, p.dy[times, row : row + 1], dgiven and joined(dgiven)
            )
            y[times, row], dx[times, row] = y_part[:, 0], dx_part[:, 0]
            for k in range(len(final)):
                if at_end:
                    final[k][:, row] = p.parts(new)[k][:, 0]
                if given:
                    dstate[k][:, row] = p.parts(dnew)[k][:, 0]
    return y, final, dx, dstate, layer.flat_grads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", READ, ids=str)
@pytest.mark.parametrize("options", [WAYS[0], WAYS[2]], ids=str)
@EVERY
def test_the_bits_of_separate_calls_on_the_segments(cell, options, chosen, dtype):
    for reset in (0.0, 0.3, 1.0):
        p = problem(cell, (3, 17), steps=T, rows=B, reset=reset, dtype=dtype, **chosen, **options)
        y, final, dx, dstate, grads = by_separate_calls(p)
        assert_same_bits(p.infer(), (y, final))
        got_y, got_final, tape = p.forward()
        assert_same_bits((got_y, got_final), (y, final))
        got = p.gradients(tape)
        assert_same_bits(got["x"], dx)
        assert_same_bits(tuple(got[n] for n in ("h0", "c0")[: len(dstate)]), dstate)
        assert_close(p.layer.flat_grads, grads, 2e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_both_directions_and_layers_are_those_of_each(cell, chosen):
    """Of two directions and two layers: each row's segments in calls of their own."""
    p = problem(cell, (3, 17, 2), steps=T, rows=B, reset=0.3, bidirectional=True, **chosen)
    y, state = p.layer(p.x, **p.steps())
    expected = np.zeros_like(y)
    for row, parts, _ in segments(p):
        for i, times in enumerate(parts):
            y_part, new = p.layer(p.x[times, row : row + 1])
            expected[times, row] = y_part[:, 0]
            for whole, own in zip(p.parts(state), p.parts(new), strict=True):
                if i == len(parts) - 1:
                    assert_same_bits(whole[::2, row], own[::2, 0])
                if i == 0:
                    assert_same_bits(whole[1::2, row], own[1::2, 0])
    assert_same_bits(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("return_", ["all", "last", "final"])
@pytest.mark.parametrize("chosen", READ, ids=str)
@pytest.mark.parametrize("options", WAYS, ids=str)
@EVERY
def test_as_the_oracle(cell, options, chosen, return_, dtype):
    for steps, reset in ((0, 0.5), (1, 1.0), (T, 0.3)):
        p = problem(cell, (3, 17, 2), steps=steps, rows=B, reset=reset, return_=return_,
                    dtype=dtype, learn_initial_state=True, **chosen, **options)  # fmt: skip
        assert_as_the_oracle(p)


@pytest.mark.parametrize("regularised", [
    {"dropout": 0.4, "variational": True}, {"recurrent_dropout": 0.3}, {"zoneout": 0.3},
    {"dropconnect": 0.3}, {"dropout": 0.3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_masks_of_a_row_hold_over_its_segments(cell, chosen, regularised):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, reset=0.3, bidirectional=True,
                learn_initial_state=True, **chosen, **regularised)  # fmt: skip
    assert_as_the_oracle(p)


@pytest.mark.parametrize("options", [
    {"proj_size": 3, "peepholes": True}, {"layer_norm": "haste"}, {"zoneout_cell": 0.3},
    {"coupled": True, "cell_clip": 0.3},
], ids=str)  # fmt: skip
def test_variants(options):
    p = problem("lstm", (3, 17, 2), steps=T, rows=B, reset=0.3, mask="holes", bidirectional=True,
                learn_initial_state=True, **options)  # fmt: skip
    assert_as_the_oracle(p)


@pytest.mark.parametrize("sizes", [(3, 5, 2), (3, (5, 4))], ids=str)
@EVERY
def test_finite_differences(cell, sizes):
    for options in ({"bidirectional": True, "mask": "holes"}, {"go_backwards": True}):
        for return_ in ("all", "last", "final"):
            p = smooth_problem(cell, sizes, steps=6, reset=0.4, return_=return_,
                               learn_initial_state=True, **options)  # fmt: skip
            gradients = p.gradients(p.forward()[2])
            assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@EVERY
def test_gradients_stop(cell):
    """What comes after a reset says nothing of what was before."""
    reset = np.zeros((T, B), bool)
    reset[4], reset[0, 2] = True, True
    p = problem(cell, (3, 17), steps=T, rows=B, reset=reset)
    p.dy[:4] = 0
    dx, dstate = p.backward(p.forward()[2])
    assert not dx[:4].any() and dx[4:].all() and not any(np.any(d) for d in dstate)
    p = p._replace(dy=np.ones_like(p.dy), reset=reset & (np.arange(T)[:, None] == 0))
    for d in p.backward(p.forward()[2])[1]:
        assert not d[:, 2].any() and d[:, [0, 1, 3, 4]].all()


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_checkpoints_and_threads_change_no_bit(cell, chosen):
    for rows, steps in ((2, 130), (20, 30)):
        p = problem(cell, (3, 17, 2), steps=steps, rows=rows, reset=0.05, bidirectional=True,
                    learn_initial_state=True, **chosen)  # fmt: skip
        y, state, tape = p.forward()
        expected = tuple(p.gradients(tape).values())
        for options in ({"checkpoint": 8}, {"checkpoint": "sqrt"}, {"num_threads": 3},
                        {"num_threads": 1}):  # fmt: skip
            y_other, state_other, tape = p.forward(**options)
            assert_same_bits((y_other, state_other), (y, state))
            threads = {"num_threads": options.get("num_threads")}
            assert_same_bits(tuple(p.gradients(tape, **threads).values()), expected)


@EVERY
def test_layouts(cell):
    p = problem(cell, (3, 17), steps=T, rows=B, reset=0.3, bidirectional=True, mask="holes")
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    grads = p.layer.flat_grads.copy()
    first = LAYERS[cell](3, 17, bidirectional=True, batch_first=True)
    first.assign(p.layer.flat_params)
    for kind in (bool, int, np.uint8):
        y_first, state_first, tape = first.forward(
            p.x.swapaxes(0, 1), joined(p.state), mask=p.mask.T, reset=p.reset.T.astype(kind)
        )
        first.zero_grad()
        dx_first, dstate_first = first.backward(tape, p.dy.swapaxes(0, 1), joined(p.dstate))
        assert_same_bits((y_first.swapaxes(0, 1), dx_first.swapaxes(0, 1)), (y, dx))
        assert_same_bits((p.parts(state_first), p.parts(dstate_first)), (state, dstate))
        assert_same_bits(first.flat_grads, grads)
    for return_ in ("all", "last", "final"):
        whole = p._replace(return_=return_).infer()[0]
        alone = p.layer(p.x[:, 1], joined(tuple(s[:, 1] for s in p.state)), mask=p.mask[:, 1],
                        reset=p.reset[:, 1], return_=return_)[0]  # fmt: skip
        assert_same_bits(alone, whole[:, 1] if return_ == "all" else whole[1])


@pytest.mark.parametrize("chosen", [{}, {"mask": "holes"}], ids=str)
@EVERY
def test_chunks_of_time(cell, chosen):
    """Also where a reset is at a step that is not read, the last of a chunk."""
    p = problem(cell, (3, 17, 2), steps=T, rows=B, reset=0.3, learn_initial_state=True, **chosen)
    y, final = p.infer()
    for size in (1, 2, 4):
        state, outputs = joined(p.state), []
        for t in range(0, T, size):
            now = slice(t, t + size)
            given = {} if p.mask is None else {"mask": p.mask[now]}
            y_now, state = p.layer(p.x[now], state, reset=p.reset[now], **given)
            outputs.append(y_now)
        assert_same_bits((np.concatenate(outputs), p.parts(state)), (y, final))


@EVERY
def test_many_resets_where_nothing_is_read_cost_nothing(cell):
    p = problem(cell, (3, 5), steps=50, rows=2, lengths=[3, 50], reset=1.0)
    batch = p.forward()[2].batch
    assert len(batch.segments.row) == 3 + 1 + 50


@pytest.mark.parametrize("return_", ["all", "last", "final"])
@EVERY
def test_a_list(cell, return_):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, reset=0.3, bidirectional=True,
                lengths="random", return_=return_, learn_initial_state=True)  # fmt: skip

    p = p._replace(reset=p.reset & read_steps(p))

    def rows_of(a):
        return [a[:n, row].copy() for row, n in enumerate(p.lengths)]

    y, state, tape = p.forward()
    gradients = p.gradients(tape)
    y_list, state_list, tape = p.layer.forward(
        rows_of(p.x), joined(p.state), reset=rows_of(p.reset), return_=return_
    )
    p.layer.zero_grad()
    dy = rows_of(p.dy) if return_ == "all" else p.dy
    dx, dstate = p.layer.backward(tape, dy, joined(p.dstate))
    assert_same_bits(tuple(y_list), tuple(rows_of(y) if return_ == "all" else y))
    assert_same_bits(p.parts(state_list), state)
    found = {"x": gradients["x"]} | dict(zip(("h0", "c0"), p.parts(dstate), strict=False))
    found |= p.layer.grads
    assert_same_bits(tuple(dx), tuple(rows_of(gradients["x"])))
    assert_gradients_close(found, gradients, 0)


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_out_and_what_is_not_read(cell, chosen):
    for options in WAYS:
        p = problem(cell, (3, 17), steps=T, rows=B, reset=0.3, **chosen, **options)
        y, state = p.infer()
        q = p._replace(x=np.where(read_steps(p)[..., None], p.x, np.float32(np.nan)))
        for call in (q.infer, q.forward):
            out = np.full_like(y, np.nan)
            got = call(out=out)
            assert got[0] is out
            assert_same_bits(got[:2], (y, state))


@pytest.mark.parametrize("chosen", [{}, {"mask": "holes"}], ids=str)
@EVERY
def test_trace(cell, chosen):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, reset=0.3, bidirectional=True,
                dtype="float64", **chosen)  # fmt: skip
    actual = p.layer.trace(p.x, joined(p.state), **p.steps())
    expected = reference.trace(p.oracle()[2])
    for where, gates in expected.items():
        for gate, values in gates.items():
            assert_close(actual[where][gate], values, 1e-12)


@EVERY
def test_what_the_caller_changes_later(cell):
    p = problem(cell, (3, 17), steps=T, rows=B, reset=0.3)
    expected = p.gradients(p.forward()[2])
    reset = p.reset.copy()
    tape = p._replace(reset=reset).forward()[2]
    reset[...] = ~reset
    assert_gradients_close(p.gradients(tape), expected, 0)


@EVERY
def test_nothing_to_do(cell):
    for steps, rows in ((0, 3), (4, 0), (0, 0)):
        p = problem(cell, (3, 5, 2), steps=steps, rows=rows, reset=1.0, bidirectional=True)
        y, state, tape = p.forward()
        zeros = np.zeros_like(p.dy)
        assert_same_bits((y, state), (zeros, p.state))
        assert_same_bits(p.backward(tape), (np.zeros_like(p.x), p.dstate))


@EVERY
def test_refusals(cell):
    p = problem(cell, (3, 5), steps=T, rows=B)
    right = np.zeros((T, B), bool)
    cases = [
        (right.T, ValueError, "(5, 11); with batch_first=False x has 11 steps of 5 rows"),
        (right[:, 0], ValueError, "(11,)"),
        (right + 2, ValueError, "2 to 2"),
        (right.astype("f"), TypeError, "float32"),
        (right.astype(object), TypeError, "object"),
        (True, ValueError, "()"),
    ]
    for call in (p.layer, p.layer.forward, p.layer.trace):
        for wrong, error, got in cases:
            refused(error, "reset", got, call, p.x, reset=wrong)
    for call in (p.layer, p.layer.forward):
        for return_ in ("mean", "max", 3):
            refused(ValueError, "return_", repr(return_), call, p.x, reset=right, return_=return_)
        rows = [p.x[:3, 0], p.x[:5, 1]]
        refused(ValueError, "reset", "ndarray", call, rows, reset=right)
        refused(ValueError, "reset", "got 1", call, rows, reset=[right[:3, 0]])
        refused(ValueError, "reset", "(4,)", call, rows, reset=[right[:3, 0], right[:4, 0]])
