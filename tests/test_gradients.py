"""Every gradient of every option against finite differences and against the reference."""

import itertools

import numpy as np
import pytest
from helpers import (
    CELLS,
    LAYERS,
    assert_close,
    assert_gradients_close,
    assert_gradients_match_differences,
    assert_same_bits,
    joined,
    parts,
    problem,
    smooth_problem,
    tensors,
)
from hypothesis import given
from hypothesis import strategies as st

HIDDEN = itertools.cycle([5, 17, 35])
# layers, bidirectional, bias, lengths, steps, rows
OPTIONS = [
    (next(HIDDEN), *options)
    for options in itertools.product(
        [1, 2], [False, True], [True, False], [None, "random"], [1, 2, 7], [1, 3]
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell, options):
    hidden, layers, bidirectional, bias, lengths, steps, rows = options
    p = smooth_problem(
        cell, (4, hidden, layers), bidirectional=bidirectional, bias=bias,
        lengths=lengths, steps=steps, rows=rows,
    )  # fmt: skip
    gradients = p.gradients(p.forward()[2])
    assert list(gradients) == list(tensors(p))
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences_with_dropout(cell):
    def fresh(p):  # the same masks every time: a new layer of the same seed
        layer = LAYERS[cell](4, 17, 3, dropout=0.4, bidirectional=True, dtype="float64", rng=7)
        layer.assign(p.layer.flat_params)
        return p._replace(layer=layer)

    p = smooth_problem(cell, (4, 17, 3), dropout=0.4, bidirectional=True, lengths="random")
    q = fresh(p)
    gradients = q.gradients(q.forward()[2])
    if cell != "rnn_relu":  # whose kinks under the masks are not known here
        assert_gradients_match_differences(p, gradients, lambda q: fresh(q).forward()[:2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@given(
    rows=st.integers(1, 20),
    steps=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 3)),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    lengths=st.sampled_from([None, "random"]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_reference(
    cell, dtype, rows, steps, sizes, bidirectional, bias, lengths, threads, seed
):  # fmt: skip
    p = problem(
        cell, sizes, rows=rows, steps=steps, lengths=lengths, seed=seed, dtype=dtype,
        bidirectional=bidirectional, bias=bias,
    )  # fmt: skip
    if cell == "rnn_relu" and dtype == "float32":
        return  # a rounding may decide on which side of the kink a unit is
    actual = p.gradients(p.forward(num_threads=threads)[2], num_threads=threads)
    assert all(gradient.dtype == dtype for gradient in actual.values())
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    assert_gradients_close(actual, p.oracle_gradients(), tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_left_out_are_zero(cell):
    p = smooth_problem(cell, (3, 17, 2), bidirectional=True)
    tape = p.forward()[2]
    zeros = tuple(np.zeros_like(d) for d in p.dstate)
    cases = [(p.dy, zeros, p.dy, None), (np.zeros_like(p.dy), p.dstate, None, p.dstate)]
    if cell == "lstm":
        h_only, c_only = (p.dstate[0], zeros[1]), (zeros[0], p.dstate[1])
        cases += [(p.dy, h_only, p.dy, (p.dstate[0], None))]
        cases += [(p.dy, c_only, p.dy, (None, p.dstate[1]))]
        cases += [(p.dy, zeros, p.dy, (None, None))]
    for dy, dstate, dy_short, dstate_short in cases:
        full = p._replace(dy=dy, dstate=dstate)
        expected = full.gradients(tape)
        p.layer.zero_grad()
        dx, dstate = p.layer.backward(tape, dy_short, dstate_short and joined(dstate_short))
        assert_close(dx, expected["x"], 1e-14)
        for actual, name in zip(parts(dstate), ("h0", "c0"), strict=False):
            assert_close(actual, expected[name], 1e-14)
        for name, grad in p.layer.grads.items():
            assert_close(grad, expected[name], 1e-13)
    p.layer.zero_grad()
    dx, dstate = p.layer.backward(tape, None)
    assert not (np.any(dx) or np.any(parts(dstate)) or np.any(p.layer.flat_grads))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_accumulate_and_a_tape_serves_twice(cell):
    p = problem(cell, (3, 17, 2), bidirectional=True, lengths="random", dtype="float64")
    tape = p.forward()[2]
    once = p.gradients(tape)
    again = p.layer.backward(tape, p.dy, joined(p.dstate))
    assert_same_bits(again[0], once["x"])
    for name, grad in p.layer.grads.items():
        assert_close(grad, 2 * once[name], 1e-12)
    assert p.layer.grads["weight_hh_l1"].base is not None  # a view of flat_grads, still
    p.layer.zero_grad()
    assert not np.any(p.layer.flat_grads)
    assert not any(np.any(grad) for grad in p.layer.grads.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "case",
    [((3, 5, 1), 4, 2), ((40, 256, 1), 12, 1), ((33, 96, 2), 20, 17), ((16, 64, 1), 40, 70)],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_repetition_change_no_bit(cell, case, dtype):
    sizes, steps, rows = case
    p = problem(
        cell, sizes, steps=steps, rows=rows, lengths="random", bidirectional=True, dtype=dtype
    )
    expected = p.gradients(p.forward(num_threads=1)[2], num_threads=1)
    for threads in (1, 2, 3, 4, None):
        actual = p.gradients(p.forward(num_threads=threads)[2], num_threads=threads)
        assert_same_bits(tuple(actual.values()), tuple(expected.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_truncated_backpropagation_in_chunks_is_exact_when_chained(cell):
    p = problem(cell, (3, 17, 2), steps=9, dtype="float64")
    whole = p.gradients(p.forward()[2])
    p.layer.zero_grad()
    state, tapes = p.state, []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        _, state, tape = p.layer.forward(p.x[start:stop], joined(parts(state)))
        tapes.append((start, stop, tape))
    dstate, dx = joined(p.dstate), np.zeros_like(p.x)
    for start, stop, tape in reversed(tapes):
        dx[start:stop], dstate = p.layer.backward(tape, p.dy[start:stop], dstate)
    states = dict(zip(("h0", "c0"), parts(dstate), strict=False))
    for name, value in {"x": dx, **states, **p.layer.grads}.items():
        assert_close(value, whole[name], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_tape_survives_changes_of_every_array_but_x(cell):
    p = problem(cell, (17, 17, 2), lengths="random", dtype="float64")
    expected = p.gradients(p.forward()[2])
    state, lengths, out = tuple(s.copy() for s in p.state), p.lengths.copy(), np.empty_like(p.dy)
    _, final, tape = p.layer.forward(p.x, joined(state), lengths=lengths, out=out)
    for array in (*state, lengths, out, *parts(final)):
        array[...] = 1
    actual = p.gradients(tape)
    assert_same_bits(tuple(actual.values()), tuple(expected.values()))
