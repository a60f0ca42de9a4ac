"""Outputs and states of every option against the float64 reference."""

import numpy as np
import pytest
import reference
from helpers import (
    CELLS,
    DTYPES,
    LAYERS,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    joined,
    parts,
    problem,
)

SIZES = [(1, 1), (3, 5), (17, 16), (12, 35), (64, 64), (7, 100)]


@pytest.mark.parametrize("lengths", [None, "random"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_option(cell, dtype, layers, bidirectional, bias, lengths):
    for seed, sizes in enumerate(SIZES):
        p = problem(
            cell, (*sizes, layers), lengths=lengths, rows=5, seed=seed,
            dtype=dtype, bias=bias, bidirectional=bidirectional,
        )  # fmt: skip
        y, state, _ = p.oracle()
        for got in (p.infer(), p.forward()[:2]):
            assert got[0].dtype == dtype
            assert_close(got[0], y, TOLERANCE[dtype])
            for actual, expected in zip(got[1], state, strict=True):
                assert actual.dtype == dtype
                assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_large_inputs_saturate(cell, dtype):
    p = problem(cell, (6, 20), steps=4, dtype=dtype)
    p = p._replace(x=p.x * 100)
    y, _, _ = p.oracle()
    assert_close(p.infer()[0], y, 1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_no_state_is_a_zero_state(cell):
    p = problem(cell, (3, 18, 2), bidirectional=True)
    zeros = tuple(np.zeros_like(part) for part in p.state)
    y, state = p.layer(p.x)
    y_zero, state_zero = p.layer(p.x, joined(zeros))
    assert_same_bits((y, *parts(state)), (y_zero, *parts(state_zero)))


@pytest.mark.parametrize("lengths", [None, "random"])
@pytest.mark.parametrize("cell", CELLS)
def test_batch_first_changes_the_layout_and_not_a_bit(cell, lengths):
    p = problem(cell, (3, 18, 2), lengths=lengths, bidirectional=True)
    other = LAYERS[cell](3, 18, 2, bidirectional=True, batch_first=True)
    other.assign(p.layer.flat_params)
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    x, dy = p.x.swapaxes(0, 1), p.dy.swapaxes(0, 1)
    y_other, state_other, tape = other.forward(x, joined(p.state), lengths=p.lengths)
    dx_other, dstate_other = other.backward(tape, dy, joined(p.dstate))
    assert_same_bits(other(x, joined(p.state), lengths=p.lengths)[0].swapaxes(0, 1), y)
    assert_same_bits(y_other.swapaxes(0, 1), y)
    assert_same_bits(dx_other.swapaxes(0, 1), dx)
    assert_same_bits((parts(state_other), parts(dstate_other)), (state, dstate))
    assert_same_bits(other.flat_grads, p.layer.flat_grads)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_is_a_batch_of_one(cell, batch_first):
    p = problem(cell, (3, 18, 2), rows=1, bidirectional=True)
    other = LAYERS[cell](3, 18, 2, bidirectional=True, batch_first=batch_first)
    other.assign(p.layer.flat_params)
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)

    def row(arrays):
        return tuple(a[:, 0] for a in arrays)

    y_other, state_other, tape = other.forward(p.x[:, 0], joined(row(p.state)))
    dx_other, dstate_other = other.backward(tape, p.dy[:, 0], joined(row(p.dstate)))
    assert_same_bits(other(p.x[:, 0], joined(row(p.state)))[0], y[:, 0])
    assert_same_bits((y_other, dx_other), row((y, dx)))
    assert_same_bits((parts(state_other), parts(dstate_other)), (row(state), row(dstate)))
    assert_same_bits(other.flat_grads, p.layer.flat_grads)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_trace_names_every_gate(cell, dtype, bidirectional):
    p = problem(cell, (3, 18, 2), lengths="random", dtype=dtype, bidirectional=bidirectional)
    expected = reference.trace(p.oracle()[2])
    actual = p.layer.trace(p.x, joined(p.state), lengths=p.lengths)
    assert list(actual) == list(expected)
    valid = np.arange(len(p.x))[:, None] < p.lengths
    for name, gates in expected.items():
        assert sorted(actual[name]) == sorted(gates)
        for gate, values in gates.items():
            assert actual[name][gate].shape == values.shape
            assert_close(actual[name][gate][valid], values[valid], TOLERANCE[dtype])
