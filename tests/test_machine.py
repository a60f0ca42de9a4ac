"""Helper threads and memory as the operating system sees them; needs Linux' /proc."""

import tracemalloc

import numpy as np
from helpers import run_python

import cylstm

SIGNALS = """
import os, signal
from helpers import problem

before = set(os.listdir("/proc/self/task"))
problem("lstm", (200, 200), steps=20, rows=32).infer(num_threads=2)
helpers = set(os.listdir("/proc/self/task")) - before
assert helpers
for helper in helpers:
    with open(f"/proc/self/task/{helper}/status") as file:
        blocked = int(next(line for line in file if line.startswith("SigBlk")).split()[1], 16)
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
        assert not blocked >> number - 1 & 1, number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        assert blocked >> number - 1 & 1, number
"""


def test_helpers_block_all_signals_but_those_of_their_own_faults():
    """So faulthandler speaks up for a crash in a helper, and handlers run in Python's threads."""
    run_python(SIGNALS)


AFFINITY = """
import os
from helpers import problem
import cylstm

p = problem("lstm", (200, 200), steps=20, rows=32)
before = set(os.listdir("/proc/self/task"))
p.infer(num_threads=2)
helpers = [int(helper) for helper in set(os.listdir("/proc/self/task")) - before]
one = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {one})
assert cylstm.get_num_threads() == 1
while any(os.sched_getaffinity(helper) != {one} for helper in helpers):
    p.infer(num_threads=2)  # asks for the affinity every 10 ms
"""


def test_an_affinity_set_later_is_followed():
    run_python(AFFINITY)


def test_counting_memory_allocates_nothing():
    layer = cylstm.LSTM(40, 100, num_layers=2, rng=0)
    layer.workspace_nbytes(1, training=True)  # packs the weights
    tracemalloc.start()
    try:
        for options in ({}, {"training": True}, {"training": True, "checkpoint": "sqrt"}):
            sizes = [layer.workspace_nbytes(10**k, 100, **options) for k in (6, 9)]
            assert sizes[1] > 900 * sizes[0] or "checkpoint" in options
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_a_tape_of_many_megabytes():
    """Large blocks are allocated in a way of their own."""
    layer = cylstm.RNN(4, 64, rng=0)
    x = np.random.default_rng(0).normal(size=(400, 64, 4)).astype("f")
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert np.isfinite(dx).all() and np.isfinite(y).all()
