"""The oracle itself: its gradients against finite differences of its outputs."""

import numpy as np
import pytest
import reference
from helpers import assert_close, assert_gradients_match_differences, problem, smooth_problem
from variants import (
    ACTIVATION_VARIANTS,
    CELL_VARIANTS,
    REGULARISED_VARIANTS,
    RETURNS,
    TOPOLOGIES,
    drawn,
    named,
)

CELLS = ("lstm", "gru", "rnn_tanh")


def check(cell, sizes, **options):
    def masks(p):
        steps, rows, _ = p.x.shape
        return drawn(p.network, options, steps, rows)

    p = smooth_problem(cell, sizes, bare=True, masks=masks, **options)
    assert_gradients_match_differences(
        p, p.oracle_gradients(masks(p)), lambda q: q.oracle(masks(p))[:2]
    )
    return p


@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS + REGULARISED_VARIANTS))
def test_every_option(cell, options):
    layers = 1 + ("dropout" in options)
    check(cell, (3, 5, layers), steps=4, mask="holes", bidirectional=layers == 1, **options)


@pytest.mark.parametrize(("cell", "options"), **named(ACTIVATION_VARIANTS))
def test_every_activation(cell, options):
    check(cell, (3, 5), steps=3, rows=2, **options)


@pytest.mark.parametrize("return_", RETURNS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_topologies_and_returns(topology, return_):
    cell = CELLS[(len(topology) + RETURNS.index(return_)) % 3]  # which takes no part in them
    check(cell, (3, 4, 2), steps=5, mask="holes", return_=return_, **TOPOLOGIES[topology])


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=["", "proj"])
def test_a_size_per_layer(options):
    p = check("lstm", (3, (4, 3, 6)), bidirectional=True, lengths="random", **options)
    assert [part.shape for part in p.state[1]] == [(2, 3, 4), (2, 3, 3), (2, 3, 6)]


@pytest.mark.parametrize("return_", ["all", "max"])
def test_separate_directions(return_):
    check("gru", (3, 4), bidirectional=True, merge_mode="separate", return_=return_, steps=4)


def test_expected_zoneout():
    p = smooth_problem("lstm", (3, 5, 2), bare=True, zoneout=0.3, zoneout_cell=0.2)
    assert_gradients_match_differences(p, p.oracle_gradients(), lambda q: q.oracle()[:2])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_clip_step_clamps_what_one_step_gives_the_biases(cell):
    """At T = B = 1 the gradient of b_ih is that of the pre-activations."""
    p = problem(cell, (3, 5), steps=1, rows=1, bare=True)
    whole, bound = p.oracle_gradients()["bias_ih_l0"], 0.1
    clipped = p.oracle_gradients(clip_step=bound)
    direct = slice(5, None) if cell == "gru" else slice(None)  # the reset gate sees the clipped
    assert 0 < (np.abs(whole) > bound).sum() < whole.size
    assert_close(clipped["bias_ih_l0"][direct], np.clip(whole, -bound, bound)[direct], 1e-15)
    assert_close(clipped["weight_ih_l0"], np.outer(clipped["bias_ih_l0"], p.x[0, 0]), 1e-15)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_bound_out_of_reach_clips_nothing(cell):
    p = problem(cell, (3, 5), bare=True)
    for name, value in p.oracle_gradients().items():
        assert_close(p.oracle_gradients(clip_step=1e6)[name], value, 1e-15)


def test_a_prefix_mask_is_a_length():
    p = problem("lstm", (3, 5, 2), bidirectional=True, lengths="random", bare=True)
    mask = np.arange(5)[:, None] < p.lengths
    q = p._replace(lengths=None, mask=mask)
    assert_close(q.oracle()[:2], p.oracle()[:2], 0)
    assert set(reference.trace(q.oracle()[2])) == {"l0", "l0_reverse", "l1", "l1_reverse"}
