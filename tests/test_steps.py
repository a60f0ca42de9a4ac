"""Which steps are read and which outputs are kept: masks, `return_`, lists, checkpoints."""

import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYERS,
    assert_as_the_oracle,
    assert_close,
    assert_gradients_match_differences,
    assert_same_bits,
    bits,
    joined,
    problem,
    refused,
    smooth_problem,
)
from variants import RETURNS

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
BOTH = pytest.mark.parametrize("bidirectional", [False, True])
T, B = 7, 5


def outcome(p, **options):
    """Everything a training step gives, in order: outputs, state, all gradients."""
    y, state, tape = p.forward(**options)
    return y, state, tuple(p.gradients(tape).values())


# Masks


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["holes", "left"])
@EVERY
def test_masked_steps_are_as_if_they_were_not_there(cell, mask, dtype, bidirectional):
    """Each row has the bits of its valid steps alone, and its gradients those of a shorter x."""
    p = problem(cell, (3, 17, 2), steps=T, rows=B, mask=mask, dtype=dtype,
                bidirectional=bidirectional)  # fmt: skip
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    assert_same_bits(p.infer(), (y, state))
    for row in range(B):
        valid = p.mask[:, row]
        alone = p._replace(
            x=p.x[valid, row : row + 1], dy=p.dy[valid, row : row + 1], mask=None,
            state=tuple(s[:, row : row + 1] for s in p.state),
            dstate=tuple(s[:, row : row + 1] for s in p.dstate),
        )  # fmt: skip
        y_row, state_row, tape = alone.forward()
        dx_row, dstate_row = alone.backward(tape)
        assert_same_bits((y[valid, row], dx[valid, row]), (y_row[:, 0], dx_row[:, 0]))
        assert_same_bits(tuple(s[:, row] for s in (*state, *dstate)),
                         tuple(s[:, 0] for s in (*state_row, *dstate_row)))  # fmt: skip
        assert not np.any(bits(y[~valid, row])) and not np.any(dx[~valid, row])


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@EVERY
def test_a_prefix_mask_has_the_bits_of_lengths(cell, dtype, bidirectional):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, lengths="random", dtype=dtype,
                bidirectional=bidirectional)  # fmt: skip
    q = p._replace(lengths=None, mask=np.arange(T)[:, None] < p.lengths)
    assert_same_bits(outcome(q), outcome(p))
    assert_same_bits(q.infer(), p.infer())
    full = p._replace(lengths=None)
    assert_same_bits(outcome(full._replace(mask=np.ones((T, B), bool))), outcome(full))


@BOTH
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@EVERY
def test_masked_steps_are_never_read(cell, garbage, bidirectional):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, mask="holes", bidirectional=bidirectional)
    q = p._replace(x=p.x.copy(), dy=p.dy.copy())
    q.x[~p.mask] = garbage
    q.dy[~p.mask] = garbage
    assert_same_bits(outcome(q), outcome(p))
    assert_same_bits(q.infer(), p.infer())


@EVERY
def test_a_mask_of_nothing_passes_state_and_gradient_through(cell):
    mask = np.zeros((T, B), bool)
    p = problem(cell, (3, 17, 2), steps=T, rows=B, mask=mask, bidirectional=True)
    y, state, tape = p.forward()
    assert not np.any(y)
    assert_same_bits(state, p.state)
    dx, dstate = p.backward(tape)
    assert not np.any(dx) and not np.any(p.layer.flat_grads)
    assert_same_bits(dstate, p.dstate)


@EVERY
def test_layouts_of_a_mask(cell):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, mask="holes")
    y, state = p.infer()
    first = LAYERS[cell](3, 17, 2, batch_first=True)
    first.assign(p.layer.flat_params)
    for mask in (p.mask.T, p.mask.T.copy(), np.asfortranarray(p.mask.T), p.mask.T.tolist()):
        y_first, state_first = first(p.x.swapaxes(0, 1), joined(p.state), mask=mask)
        assert_same_bits((y_first.swapaxes(0, 1), p.parts(state_first)), (y, state))
    row = tuple(s[:, 1] for s in p.state)
    y_row, state_row = p.layer(p.x[:, 1], joined(row), mask=p.mask[:, 1])
    assert_same_bits((y_row, p.parts(state_row)), (y[:, 1], tuple(s[:, 1] for s in state)))


# Outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("return_", RETURNS)
@pytest.mark.parametrize("chosen", [{}, {"lengths": "random"}, {"mask": "holes"}], ids=str)
@EVERY
def test_returned_outputs(cell, chosen, return_, dtype):
    for options in ({"bidirectional": True}, {"go_backwards": True},
                    {"bidirectional": True, "merge_mode": "mul"}):  # fmt: skip
        for steps in (0, 1, T):
            p = smooth_problem(cell, (3, 17, 2), steps=steps, rows=B, return_=return_,
                               dtype=dtype, **chosen, **options)  # fmt: skip
            assert_as_the_oracle(p)


@pytest.mark.parametrize("return_", RETURNS)
@EVERY
def test_returned_outputs_by_finite_differences(cell, return_):
    p = smooth_problem(cell, (3, 5, 2), steps=T, mask="holes", bidirectional=True, return_=return_)
    gradients = p.gradients(p.forward()[2])
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [{}, {"lengths": "random"}, {"mask": "holes"}], ids=str)
@EVERY
def test_returned_outputs_are_those_of_all_steps(cell, chosen, dtype):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, bidirectional=True, dtype=dtype, **chosen)
    y, state = p.infer()
    valid = np.ones((T, B), bool) if p.mask is None else p.mask
    if p.lengths is not None:
        valid = np.arange(T)[:, None] < p.lengths
    last = np.where(valid, np.arange(T)[:, None], -1).max(0)
    expected = {k: y[k - 1 :: k] for k in (1, 2, 3, T, T + 1)}
    expected["last"] = np.where(last[:, None] >= 0, y[last, range(B)], 0).astype(dtype)
    expected["max"] = np.where(valid[..., None], y, -np.inf).max(0)
    expected["max"][~valid.any(0)] = 0
    for return_, wanted in expected.items():
        q = p._replace(return_=return_)
        for got in (q.infer(), q.forward()[:2]):
            assert_same_bits(got, (np.ascontiguousarray(wanted), state))
    means = [p._replace(return_="mean").infer(), p._replace(return_="mean").forward()[:2]]
    assert_same_bits(*means)
    mean = (y.astype("float64").sum(0) / np.maximum(valid.sum(0), 1)[:, None]).astype(dtype)
    assert_close(means[0][0], mean, 1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("backwards", [False, True])
def test_of_equal_maxima_the_one_read_last_gets_the_gradient(backwards):
    """A zero input weight makes every output 0."""
    layer = LAYERS["rnn_relu"](2, 3, go_backwards=backwards, dtype="float64")
    layer.assign({"weight_ih_l0": np.ones((3, 2)), "weight_hh_l0": np.zeros((3, 3)),
                  "bias_ih_l0": np.ones(3), "bias_hh_l0": np.zeros(3)})  # fmt: skip
    mask = np.array([False, True, True, False, True, False])
    tape = layer.forward(np.ones((6, 2)), mask=mask, return_="max")[2]
    dx, _ = layer.backward(tape, np.array([1.0, 10, 100]))
    expected = np.zeros((6, 2))
    expected[1 if backwards else 4] = 111
    assert_close(dx, expected, 0)


@pytest.mark.parametrize("steps", [10**5, 10**6])
@EVERY
def test_means_over_any_length_are_accurate(cell, steps):
    """A naive float32 sum is off by 1e-3 and more; and each row has the bits of its own."""
    layer = LAYERS[cell](1, 1, bidirectional=True, rng=1)
    x = np.full((steps, 2, 1), 0.7, np.float32)
    x[:, 1] = np.random.default_rng(0).normal(0.5, 1, (steps, 1))
    y, _ = layer(x)
    mean, _ = layer(x, return_="mean")
    expected = y.mean(axis=0, dtype=np.float64)
    assert_close(mean, expected, 1e-6 * np.abs(expected).min())
    for row in (0, 1):
        assert_same_bits(layer(x[:, row], return_="mean")[0], mean[row])


@pytest.mark.parametrize("tape", [False, True])
@pytest.mark.parametrize("return_", RETURNS)
@EVERY
def test_out_of_returned_outputs(cell, return_, tape):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, return_=return_, lengths="random",
                bidirectional=True)  # fmt: skip
    y, state = p.infer()
    out = np.full_like(y, np.nan)
    got = (p.forward if tape else p.infer)(out=out)
    assert got[0] is out
    assert_same_bits(got[:2], (y, state))


@pytest.mark.parametrize("return_", RETURNS)
@EVERY
def test_layouts_of_returned_outputs(cell, return_):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, return_=return_, bidirectional=True)
    first = LAYERS[cell](3, 17, 2, bidirectional=True, batch_first=True)
    first.assign(p.layer.flat_params)

    def turned(a):
        return a.swapaxes(0, 1) if a.ndim == 3 else a

    expected = outcome(p)
    y, state, tape = first.forward(turned(p.x), joined(p.state), return_=return_)
    dx, dstate = first.backward(tape, turned(p.dy), joined(p.dstate))
    actual = (turned(y), p.parts(state), (turned(dx), *p.parts(dstate), *first.grads.values()))
    assert_same_bits(actual, expected)
    row = tuple(s[:, 1] for s in p.state)
    y_row, state_row = p.layer(p.x[:, 1], joined(row), return_=return_)
    whole = p.infer()
    wanted = whole[0][:, 1] if isinstance(return_, int) or return_ == "all" else whole[0][1]
    assert_same_bits((y_row, p.parts(state_row)), (wanted, tuple(s[:, 1] for s in whole[1])))


@BOTH
@pytest.mark.parametrize("return_", RETURNS)
@EVERY
def test_garbage_beyond_the_valid_steps_and_in_gradients_ignored(cell, return_, bidirectional):
    p = problem(cell, (3, 17), steps=T, rows=B, mask="holes", return_=return_,
                bidirectional=bidirectional)  # fmt: skip
    p.mask[:, 2] = return_ == "final"  # whose gradient is that of the state, read or not
    q = p._replace(x=np.where(p.mask[..., None], p.x, np.float32(np.nan)), dy=p.dy.copy())
    if return_ in ("last", "mean", "max"):
        q.dy[2] = np.nan
    elif return_ != "final":
        k = 1 if return_ == "all" else return_
        q.dy[~p.mask[k - 1 :: k]] = np.nan
    assert_same_bits(outcome(q), outcome(p))


# Lists of sequences


def as_list(p, array):
    """The valid steps of each row of a (T, B, .) array."""
    return [array[:n, row].copy() for row, n in enumerate(p.lengths)]


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@EVERY
def test_a_list_has_the_bits_of_lengths(cell, batch_first, dtype, bidirectional):
    p = problem(cell, (3, 17, 2), steps=T, rows=B, lengths="random", dtype=dtype,
                bidirectional=bidirectional)  # fmt: skip
    layer = LAYERS[cell](3, 17, 2, bidirectional=bidirectional, batch_first=batch_first,
                         dtype=dtype)  # fmt: skip
    layer.assign(p.layer.flat_params)
    y, state, gradients = outcome(p)
    dx, *others = gradients
    for make in (list, tuple):
        x = make(as_list(p, p.x))
        y_plain, state_plain = layer(x, joined(p.state))
        y_list, state_list, tape = layer.forward(x, joined(p.state))
        assert type(y_list) is type(y_plain) is list
        assert_same_bits((*y_list,), (*as_list(p, y),))
        assert_same_bits((*y_plain,), (*y_list,))
        assert_same_bits((p.parts(state_list), p.parts(state_plain)), (state, state))
        layer.zero_grad()
        dx_list, dstate = layer.backward(tape, make(as_list(p, p.dy)), joined(p.dstate))
        assert type(dx_list) is list
        assert_same_bits((*dx_list,), (*as_list(p, dx),))
        assert_same_bits((*p.parts(dstate), *layer.grads.values()), (*others,))


@pytest.mark.parametrize("return_", RETURNS)
@EVERY
def test_returned_outputs_of_a_list_and_of_a_row_alone(cell, return_):
    """The same bits as with lengths, gradients too."""
    p = problem(cell, (3, 17), steps=T, rows=B, lengths="random", return_=return_,
                bidirectional=True)  # fmt: skip
    y, state, gradients = outcome(p)
    every = 1 if return_ == "all" else return_

    def as_y(a):
        pooled = not isinstance(every, int)
        return a if pooled else [a[: n // every, row].copy() for row, n in enumerate(p.lengths)]

    y_list, state_list, tape = p.layer.forward(
        as_list(p, p.x), joined(p.state), return_=return_, num_threads=3
    )
    p.layer.zero_grad()
    dx, dstate = p.layer.backward(tape, as_y(p.dy), joined(p.dstate))
    assert_same_bits(tuple(y_list), tuple(as_y(y)))
    assert_same_bits((*dx,), (*as_list(p, gradients[0]),))
    others = (p.parts(state_list), *p.parts(dstate), *p.layer.grads.values())
    assert_same_bits(others, (state, *gradients[1:]))
    for row in range(B):
        alone = p._replace(x=p.x[:, row : row + 1], lengths=p.lengths[row : row + 1],
                           state=tuple(s[:, row : row + 1] for s in p.state))  # fmt: skip
        y_row = y[row : row + 1] if y.ndim == 2 else y[:, row : row + 1]
        assert_same_bits(alone.infer()[0], y_row)


@EVERY
def test_lists_of_little(cell):
    layer = LAYERS[cell](3, 17, 2, bidirectional=True)
    for lengths in ([], [0], [1], [0, 0], [3, 0]):
        x = [np.ones((n, 3), np.float32) for n in lengths]
        y, _, tape = layer.forward(x)
        assert [part.shape for part in y] == [(n, 34) for n in lengths]
        dx, _ = layer.backward(tape, y)
        assert [part.shape for part in dx] == [(n, 3) for n in lengths]


# Checkpoints


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [{}, {"lengths": "random"}, {"mask": "holes"}], ids=str)
@EVERY
def test_a_checkpointed_tape_gives_the_same_bits(cell, chosen, dtype):
    for options in ({"bidirectional": True, "return_": 3}, {"go_backwards": True},
                    {"bidirectional": True, "merge_mode": "mul", "return_": "max"}):  # fmt: skip
        # Chunks of 51 steps: several windows for the shorter of the intervals.
        for steps, rows in ((0, 2), (1, 1), (130, 5)):
            p = problem(cell, (3, 17, 2), steps=steps, rows=rows, dtype=dtype, **chosen, **options)
            expected = outcome(p)
            for checkpoint in (1, 8, 33, 1000, "sqrt"):
                for threads in (1, 2):
                    y, state, tape = p.forward(checkpoint=checkpoint, num_threads=threads)
                    gradients = tuple(p.gradients(tape, num_threads=threads).values())
                    assert_same_bits((y, state, gradients), expected)
                    assert_same_bits(tuple(p.gradients(tape).values()), gradients)


@EVERY
def test_a_checkpoint_and_clipped_steps(cell):
    p = problem(cell, (3, 17, 2), steps=60, rows=20, bidirectional=True, lengths="random")
    plain, checkpointed = (p.forward(checkpoint=n)[2] for n in (None, 8))
    clipped = p.gradients(plain, clip_step=0.1)
    assert_same_bits(tuple(p.gradients(checkpointed, clip_step=0.1).values()),
                     tuple(clipped.values()))  # fmt: skip
    assert np.any(clipped["x"] != p.gradients(plain)["x"])


@pytest.mark.parametrize("checkpoint", [None, 8])
@EVERY
def test_a_tape_outlives_changes_of_weights_and_mask(cell, checkpoint):
    p = problem(cell, (3, 17, 2), steps=30, rows=B, mask="holes", dropconnect=0.3, zoneout=0.2,
                recurrent_dropout=0.2, dropout=0.3, bidirectional=True)  # fmt: skip
    weights, state = p.layer.flat_params.copy(), tuple(s.copy() for s in p.state)
    mask = p.mask.copy()
    expected = tuple(p.gradients(p.forward(rng=1)[2]).values())
    _, _, tape = p._replace(mask=mask, state=state).forward(rng=1, checkpoint=checkpoint)
    p.layer.assign(weights + 1)
    mask[...] = ~mask
    for part in state:
        part[...] = 7
    p.layer(p.x)  # other weights are packed by now
    assert_same_bits(tuple(p.gradients(tape).values()), expected)


@EVERY
def test_out_is_one_array_or_none(cell):
    p = problem(cell, (3, 5), bidirectional=True, merge_mode="separate")
    out = np.empty((5, 3, 10), np.float32)
    for call in (p.layer, p.layer.forward):
        refused(ValueError, "out", "", call, p.x, out=out)
        refused(ValueError, "out", "", call, p.x, out=(out[..., :5], out[..., 5:]))
    plain = LAYERS[cell](3, 5)
    for call in (plain, plain.forward):
        refused(ValueError, "out", "", call, [p.x[:, 0]], out=out[:, :1, :5])
