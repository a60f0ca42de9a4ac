"""Merging of directions, a size per layer, and reading backwards."""

import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYERS,
    assert_as_the_oracle,
    assert_close,
    assert_gradients_match_differences,
    assert_same_bits,
    joined,
    problem,
    smooth_problem,
)

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
MERGES = ("concat", "sum", "mul", "ave")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [{}, {"lengths": "random"}, {"mask": "holes"}], ids=str)
@pytest.mark.parametrize("mode", [*MERGES, "separate"])
@EVERY
def test_merging(cell, mode, chosen, dtype):
    layers = 1 if mode == "separate" else 2
    p = problem(cell, (3, 17, layers), rows=4, bidirectional=True, merge_mode=mode, dtype=dtype,
                **chosen)  # fmt: skip
    assert {n: v.shape for n, v in p.layer.params.items()} == p.network.shapes()
    assert_as_the_oracle(p)


@pytest.mark.parametrize("mode", [*MERGES[1:], "separate"])
@EVERY
def test_merging_by_finite_differences(cell, mode):
    layers = 1 if mode == "separate" else 2
    p = problem(cell, (3, 5, layers), bidirectional=True, merge_mode=mode, mask="holes",
                dtype="float64")  # fmt: skip
    gradients = p.gradients(p.forward()[2])
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@EVERY
def test_merged_outputs_come_from_the_separate_ones(cell):
    p = problem(cell, (3, 17), bidirectional=True, merge_mode="separate", lengths="random")
    (a, b), state = p.infer()
    two = np.float32(2)
    expected = {"concat": np.concatenate((a, b), -1), "sum": a + b, "mul": a * b,
                "ave": (a + b) / two}  # fmt: skip
    for mode, y in expected.items():
        other = LAYERS[cell](3, 17, bidirectional=True, merge_mode=mode)
        other.assign(p.layer.flat_params)
        y_other, state_other = p._replace(layer=other).infer()
        assert_close(y_other, y, 1e-7)
        assert_same_bits(state_other, state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5, 17), (17, 5, 33), (1, 4), (6, 6)], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@EVERY
def test_a_size_per_layer(cell, sizes, bidirectional, dtype):
    for merge_mode in ("concat", "sum")[: 1 + bidirectional]:
        p = problem(cell, (3, sizes), lengths="random", rows=4, bidirectional=bidirectional,
                    merge_mode=merge_mode, dtype=dtype)  # fmt: skip
        assert p.layer.num_layers == len(sizes)
        assert {n: v.shape for n, v in p.layer.params.items()} == p.network.shapes()
        bounds = {str(k): size**-0.5 for k, size in enumerate(sizes)}
        for name, value in p.layer.params.items():
            bound = bounds[name.removesuffix("_reverse")[-1]]
            assert np.all(np.abs(value) <= bound * (1 + 1e-6))
        assert_as_the_oracle(p)


@EVERY
def test_sizes_by_finite_differences(cell):
    p = problem(cell, (3, (5, 4, 7)), bidirectional=True, mask="holes", dtype="float64")
    gradients = p.gradients(p.forward()[2])
    assert {"h0_l0", "h0_l1", "h0_l2"} < gradients.keys()
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@EVERY
def test_one_size_given_in_any_way_is_one_layer(cell):
    expected = problem(cell, (3, 6, 2), bidirectional=True)
    for sizes in [(3, (6, 6)), (3, (6, 6), 2), (3, [6, 6])]:
        layer = LAYERS[cell](*sizes, bidirectional=True)
        layer.assign(expected.layer.flat_params)
        assert_same_bits(expected._replace(layer=layer).infer(), expected.infer())


def test_sizes_with_a_projection():
    p = problem("lstm", (3, (9, 6)), proj_size=4, bidirectional=True, dtype="float64")
    assert_as_the_oracle(p)


@EVERY
def test_no_state_is_zeros_for_a_size_per_layer(cell):
    p = problem(cell, (3, (5, 7)), bidirectional=True)
    zeros = p.network.state_of(lambda *shape: np.zeros(shape, np.float32), 3)
    assert_same_bits(p.layer(p.x)[0], p._replace(state=zeros).infer()[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [{}, {"lengths": "random"}, {"mask": "holes"}], ids=str)
@EVERY
def test_going_backwards(cell, chosen, dtype):
    p = problem(cell, (3, 17, 2), rows=4, go_backwards=True, dtype=dtype, **chosen)
    assert not any(name.endswith("_reverse") for name in p.layer.params)
    assert_as_the_oracle(p)


@EVERY
def test_going_backwards_is_the_reverse_direction(cell):
    """Both of a layer that reads the reversed input, and of one with two directions."""
    p = problem(cell, (3, 17), go_backwards=True)
    y, state = p.infer()
    forwards = LAYERS[cell](3, 17)
    forwards.assign(p.layer.flat_params)
    y_forwards, state_forwards = p._replace(layer=forwards, x=p.x[::-1].copy()).infer()
    assert_same_bits((y_forwards[::-1], state_forwards), (y, state))
    both = LAYERS[cell](3, 17, bidirectional=True)
    both.assign({f"{n}_reverse": v for n, v in p.layer.params.items()})
    start = tuple(np.concatenate((s, s)) for s in p.state)
    assert_same_bits(both(p.x, joined(start))[0][..., 17:], y)


@EVERY
def test_going_backwards_by_finite_differences(cell):
    p = smooth_problem(cell, (3, 5, 2), go_backwards=True, mask="holes")
    gradients = p.gradients(p.forward()[2])
    assert_gradients_match_differences(p, gradients, lambda q: q.infer())


@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("mode", [*MERGES, "separate"])
@EVERY
def test_empty_and_least(cell, mode, steps, rows):
    p = problem(cell, (3, 5), steps=steps, rows=rows, bidirectional=True, merge_mode=mode,
                dtype="float64")  # fmt: skip
    assert_as_the_oracle(p)


@pytest.mark.parametrize("mode", [*MERGES, "separate"])
@EVERY
def test_layouts_of_merged_outputs(cell, mode):
    """Batch first and unbatched change no bit."""
    p = problem(cell, (3, 5), rows=1, bidirectional=True, merge_mode=mode)
    y, state, tape = p.forward()
    dx, dstate = p.backward(tape)
    grads = p.layer.flat_grads.copy()

    def tupled(a):
        return a if isinstance(a, tuple) else (a,)

    def row(a, axis=1):
        return tuple(part.take(0, axis) for part in tupled(a))

    first = LAYERS[cell](3, 5, bidirectional=True, merge_mode=mode, batch_first=True)
    first.assign(p.layer.flat_params)
    y_first, state_first, tape = first.forward(p.x.swapaxes(0, 1), joined(p.state))
    assert_same_bits(tuple(a.swapaxes(0, 1) for a in tupled(y_first)), tupled(y))
    dy = tuple(a.swapaxes(0, 1) for a in tupled(p.dy))
    dx_first, dstate_first = first.backward(
        tape, dy if mode == "separate" else dy[0], joined(p.dstate)
    )
    assert_same_bits(dx_first.swapaxes(0, 1), dx)
    assert_same_bits((p.parts(state_first), p.parts(dstate_first)), (state, dstate))
    assert_same_bits(first.flat_grads, grads)
    p.layer.zero_grad()
    y_row, state_row, tape = p.layer.forward(p.x[:, 0], joined(row(p.state)))
    assert_same_bits(tupled(y_row), row(y))
    dy = row(p.dy)
    dx_row, dstate_row = p.layer.backward(
        tape, dy if mode == "separate" else dy[0], joined(row(p.dstate))
    )
    assert_same_bits(dx_row, dx[:, 0])
    assert_same_bits((p.parts(state_row), p.parts(dstate_row)), (row(state), row(dstate)))
    assert_same_bits(p.layer.flat_grads, grads)
