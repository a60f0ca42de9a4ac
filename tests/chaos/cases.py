"""Calls of every kind that threads share, small enough for thousands of them."""

import os
from functools import cache

import numpy as np
from helpers import assert_same_bits, bits, problem

import cylstm
from cylstm.kernels import sequence

SEEDS = int(os.environ.get("CYLSTM_SEEDS", "1500"))
FEW, MANY = {"rows": 3, "steps": 30}, {"rows": 40, "steps": 20}
#: name: (cell, sizes, options), each run as a plain call, for training, and with checkpoints
KINDS = {
    "few": ("lstm", (40, 100), {"rows": 7, "steps": 100}),
    "few with lengths": ("lstm", (70, 200), FEW | {"lengths": "random"}),
    "few with a mask": ("gru", (70, 200), FEW | {"mask": "holes"}),
    "few, two phases": ("lstm", (70, 200), FEW | {"proj_size": 70}),
    "few, reset before": ("gru", (70, 200), FEW | {"reset_after": False, "lengths": "random"}),
    "few, no gates": ("rnn_tanh", (90, 200), FEW | {"rows": 4}),
    "few in both directions": ("lstm", (40, 160), FEW | {"bidirectional": True}),
    "few, the last": ("gru", (70, 200), FEW | {"return_": "last"}),
    "groups": ("lstm", (33, 64), MANY),
    "groups with lengths": ("gru", (33, 64), MANY | {"lengths": "random", "bidirectional": True}),
    "groups with a mask": ("lstm", (33, 64), MANY | {"mask": "left"}),
    "groups of normed": ("gru", (33, 64), MANY | {"layer_norm": "haste", "rows": 6}),
    "groups, reset before": ("gru", (33, 64), MANY | {"reset_after": False}),
}


@cache
def problem_of(name):
    cell, sizes, options = KINDS[name]
    return problem(cell, sizes, **options)


def plain(name, threads):
    y, state = problem_of(name).infer(num_threads=threads)
    return (y, *state)


def training(name, threads, **options):
    p = problem_of(name)
    y, state, tape = p.forward(num_threads=threads, **options)
    return (y, *state, *p.gradients(tape, num_threads=threads).values())


def checkpointed(name, threads):
    return training(name, threads, checkpoint="sqrt")


CASES = [(way, name) for name in KINDS for way in (plain, training, checkpointed)]


@cache
def expected(way, name):
    """What one thread gives."""
    sequence.chaos(0)
    return way(name, 1)


def check(seed, way, name):
    """One call by a team, whose results overwrite what it may still be reading."""
    right = expected(way, name)
    sequence.chaos(seed)
    threads = 2 + seed % 4
    found = way(name, threads)
    where = f"seed {seed}, {way.__name__}, {name}, {threads} threads"
    for a, b in zip(found, right, strict=True):
        assert np.array_equal(bits(a), bits(b)), where
        a[...] = 7  # nothing that was given away is read or written again
    return found


def refill(rng):
    """Take memory that calls have freed, as the next allocations would, and spoil it."""
    return [np.full(k, np.nan, "f") for k in rng.integers(100, 100_000, 4)]


def long_call(steps=20_000):
    """A layer, an input and what one thread makes of them; on any machine for 0.3 s and more."""
    layer = cylstm.LSTM(8, 256, rng=0)
    x = np.random.default_rng(0).normal(size=(steps, 3, 8)).astype("f")
    return layer, x, layer(x, num_threads=1)


__all__ = [
    "CASES",
    "SEEDS",
    "assert_same_bits",
    "check",
    "expected",
    "long_call",
    "plain",
    "refill",
]
