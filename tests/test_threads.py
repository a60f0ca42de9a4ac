"""Work large enough for a team: any number of threads, more than there are processors included."""

import os

import numpy as np
import pytest
import threadpoolctl
from helpers import CELLS, LAYERS, assert_same_bits, parts, run_python

import cylstm

HIDDEN, INPUTS, STEPS = 200, 70, 40


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 17, 130])
@pytest.mark.parametrize("cell", CELLS)
def test_a_team_changes_no_bit(cell, rows, bidirectional, padded):
    rng = np.random.default_rng(rows)
    layer = LAYERS[cell](INPUTS, HIDDEN, bidirectional=bidirectional, rng=1)
    x = rng.normal(size=(STEPS, rows, INPUTS)).astype(np.float32)
    lengths = rng.permutation(np.linspace(0, STEPS, rows).astype(int)) if padded else None
    results = []
    for num_threads in (1, 2, 3, 8):
        layer.zero_grad()
        options = {"lengths": lengths, "num_threads": num_threads}
        y, state, tape = layer.forward(x, **options)
        assert_same_bits(layer(x, **options), (y, state))
        dx, dstate = layer.backward(tape, np.cos(y), num_threads=num_threads)
        results.append((y, *parts(state), dx, *parts(dstate), layer.flat_grads.copy()))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_the_default_number_of_threads():
    before = cylstm.get_num_threads()
    assert before >= 1
    try:
        cylstm.set_num_threads(3)
        assert cylstm.get_num_threads() == 3
        cylstm.set_num_threads(None)
        assert cylstm.get_num_threads() == before
    finally:
        cylstm.set_num_threads(None)
    for bad, error in [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="num_threads: expected"):
            cylstm.set_num_threads(bad)
    assert cylstm.get_num_threads() == before


def test_threadpoolctl_is_honoured():
    with threadpoolctl.threadpool_limits(1):
        assert cylstm.get_num_threads() == 1


HELPERS_OF_A_CHILD = """
import os
from helpers import problem

p = problem("lstm", (200, 200), steps=20, rows=32)
threads = lambda: len(os.listdir("/proc/self/task"))
p.infer(num_threads=2)
assert threads() >= 2
child = os.fork()
if not child:
    alone = threads()  # 1, or with one of an emulator 2
    p.infer(num_threads=2)
    os._exit(0 if threads() == alone + 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux does")
def test_a_forked_child_gets_threads_of_its_own():
    run_python(HELPERS_OF_A_CHILD, PYTHONWARNINGS="ignore::DeprecationWarning")


IDLE = """
import time
from helpers import problem

p = problem("lstm", (200, 200), steps=20, rows=32)
for _ in range(5):
    p.infer(num_threads=2)
time.sleep(0.05)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


def test_no_processor_is_used_after_a_call():
    assert float(run_python(IDLE)) < 0.01
