"""What single terms of the equations promise beyond what a tolerance over whole layers shows."""

import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYERS,
    activation,
    assert_close,
    assert_gradients_close,
    assert_same_bits,
    problem,
)
from variants import CELL_VARIANTS, named

from cylstm.kernels.sequence import ACTIVATIONS

BOTH = pytest.mark.parametrize("dtype", DTYPES)


@BOTH
def test_a_thresholded_relu_is_0_at_its_threshold(dtype):
    at, zero, one = np.array([0.25, 0, 1], dtype)
    x = np.array([at, np.nextafter(at, one), np.nextafter(at, zero), -1], dtype)
    y = activation("thresholdedrelu", x, alpha=0.25)
    np.testing.assert_array_equal(y, [0, x[1], 0, 0])


@BOTH
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_nan_passes_every_activation(name, dtype):
    x = np.array([1, np.nan, -1, -np.nan], dtype)
    y = activation(name, x, alpha=0.5, beta=0.25)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


EXACT = {  # in long double
    "elu": lambda x: np.where(x < 0, np.expm1(x), x),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}


@BOTH
@pytest.mark.parametrize("name", EXACT)
def test_no_digits_cancel(name, dtype):
    """Small results have as many correct digits as large ones."""
    size = np.geomspace(1e-30, 80, 20_000)
    x = np.concatenate((size, -size)).astype(dtype)
    y, exact = activation(name, x, alpha=1.0), EXACT[name](x.astype(np.longdouble))
    assert np.all(np.abs(y - exact) <= 4 * np.spacing(np.abs(exact).astype(dtype)))


@BOTH
def test_zoneout_takes_nothing_of_what_it_drops(dtype):
    """Not even 0 times infinity, of the old value or of the new one."""
    layer = LAYERS["rnn_tanh"](1, 64, zoneout=0.5, dtype=dtype, rng=0)
    layer.assign({"weight_hh_l0": np.abs(layer.params["weight_hh_l0"])})
    old = np.full((1, 1, 64), np.inf)
    y, _, tape = layer.forward(np.ones((1, 1, 1)), old)
    stays = tape.masks[0]["zoneout"] == 1
    np.testing.assert_array_equal(y, np.where(stays, np.inf, 1))
    y, _, tape = layer.forward(np.full((1, 1, 1), np.nan), np.ones((1, 1, 64)))
    stays = tape.masks[0]["zoneout"] == 1
    np.testing.assert_array_equal(y, np.where(stays, 1, np.nan))


OF_EACH_KIND = {"lstm", "peepholes", "proj", "haste", "tflite-peepholes", "gru", "reset_before",
                "gru-haste", "rnn", "independent"}  # fmt: skip
EACH = pytest.mark.parametrize(
    ("cell", "options"), **named([v for v in CELL_VARIANTS if v[0] in OF_EACH_KIND])
)


@pytest.mark.parametrize("chosen", [{"lengths": "random"}, {"mask": "holes"}], ids=str)
@EACH
def test_several_chunks_of_time(cell, options, chosen):
    """Backward sums over 256 (step, row) pairs at a time; windows of a checkpointed tape are of
    whole such chunks, for the same bits."""
    steps, rows = 70, 12
    p = problem(cell, (3, 17), steps=steps, rows=rows, bidirectional=True, dtype="float64",
                **chosen, **options)  # fmt: skip
    y, state, tape = p.forward()
    gradients = p.gradients(tape)
    y_expected, state_expected, _ = p.oracle()
    assert_close((y, state), (y_expected, state_expected), 1e-11)
    assert_gradients_close(gradients, p.oracle_gradients(), 1e-10)
    whole = p.layer.workspace_nbytes(steps, rows, training=True)
    for checkpoint in (1, 30, "sqrt"):  # 4, 2 and 4 windows
        size = p.layer.workspace_nbytes(steps, rows, training=True, checkpoint=checkpoint)
        assert size < whole
        y_window, state_window, tape = p.forward(checkpoint=checkpoint)
        assert_same_bits((y_window, state_window), (y, state))
        assert_same_bits(tuple(p.gradients(tape).values()), tuple(gradients.values()))


@EACH
def test_threads_that_share_few_rows(cell, options):
    """They own blocks of units and meet within every step; a norm needs rows of its own."""
    p = problem(cell, (33, 96), steps=20, rows=5, dtype="float64", **options)
    y, state, tape = p.forward(num_threads=1)
    gradients = tuple(p.gradients(tape, num_threads=1).values())
    for _ in range(30):  # beside a busy process many calls find no second thread
        assert_same_bits(p.infer(num_threads=2), (y, state))
        y_two, state_two, tape = p.forward(num_threads=2)
        assert_same_bits((y_two, state_two), (y, state))
        assert_same_bits(tuple(p.gradients(tape, num_threads=2).values()), gradients)


@EACH
def test_more_rows_than_a_chunk_of_backward(cell, options):
    """A step of many rows is several chunks, cut where partial sums end: no bit changes."""
    dropout = 0.0 if "independent" in options else 0.3
    lengths = np.random.default_rng(1).integers(0, 4, 700)
    lengths[::2] = 3  # so that also the last step, where sums begin, is several chunks
    p = problem(cell, (3, 17), steps=3, rows=700, lengths=lengths, dtype="float64",
                recurrent_dropout=dropout, **options)  # fmt: skip
    y, state, tape = p.forward(rng=0)
    gradients = p.gradients(tape, num_threads=1)
    assert_close((y, state), p.oracle(tape.masks)[:2], 1e-11)
    assert_gradients_close(gradients, p.oracle_gradients(tape.masks), 1e-10)
    for num_threads in (2, 3):
        again = p.gradients(tape, num_threads=num_threads)
        assert_same_bits(tuple(again.values()), tuple(gradients.values()))
