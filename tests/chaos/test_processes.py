"""Forks and exits at the worst moment, each in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import SEEDS

HERE = Path(__file__).parent
ROUNDS = max(3, SEEDS // 250)

BEGIN = """
import os, random, signal, sys, threading, time
import numpy as np
from cases import CASES, assert_same_bits, check, expected, long_call, plain
from cylstm.kernels import sequence

rounds = int(sys.argv[1])
small = [case for case in CASES if case[0] is plain]

def ended_well(child):
    assert os.waitpid(child, 0)[1] == 0

def as_child(work):
    signal.alarm(600)  # only a hang takes longer
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)
"""

FORK_IN_A_HANDLER = """
layer, x, right = long_call(8000)
how = {
    "plain": lambda: layer(x, num_threads=3),
    "checkpointed": lambda: layer.forward(x, checkpoint="sqrt", num_threads=3)[:2],
}
forks = 0
for seed in range(1, 10_000):
    for name, call in how.items():
        check(seed, *small[seed % len(small)])
        sequence.chaos(seed)
        child = None
        def handler(*_):
            global child
            child = os.fork()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        found = call()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            def work():
                assert_same_bits(found, right)
                for case in small:
                    check(seed, *case)
            as_child(work)
        assert_same_bits(found, right)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if child:
            ended_well(child)
            forks += 1
    if forks >= rounds:
        break
assert forks >= rounds
"""

FORK_BESIDE_A_CALL = """
stop = False
for case in CASES:
    expected(*case)

def call():
    number = 0
    while not stop:
        number += 1
        check(number, *CASES[number % len(CASES)])

threads = [threading.Thread(target=call)]
def work():
    for case in small:
        check(seed, *case)
for case in small:
    expected(*case)
for thread in threads:
    thread.start()
try:
    for seed in range(1, 5 * rounds):
        time.sleep(0.005 * random.Random(seed).random())
        child = os.fork()
        if child == 0:
            as_child(work)
        check(seed, *small[seed % len(small)])
        ended_well(child)
finally:
    stop = True
"""

LEFT_BEHIND_AT_EXIT = """
for seed in range(rounds, 10_000):
    before = sequence.chaos(0)
    check(seed, *small[0])
    after = sequence.chaos(seed)
    if after["ABANDON"] - before["ABANDON"] > after["REAPED"] - before["REAPED"]:
        break
else:
    raise AssertionError("no thread was left behind")
"""

DAEMONS_AT_EXIT = """
layer, x, right = long_call(2000)
for case in CASES:
    expected(*case)

def call(number):
    while True:
        number += 1
        check(number, *CASES[number % len(CASES)])
        layer(x[:100 * (1 + number % 20)], num_threads=2)

sequence.chaos(rounds)
for number in range(3):
    threading.Thread(target=call, args=(7 * number,), daemon=True).start()
time.sleep(0.2 * random.Random(rounds).random())
"""


def run(code, number, *options):
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *options, "-c", BEGIN + code, str(number)],
        env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), f"{number}: {done}"


def test_a_handler_forks_in_a_long_call():
    """The child, which has no threads but its own, finishes the call."""
    run(FORK_IN_A_HANDLER, ROUNDS)


def test_fork_while_another_thread_is_in_a_call():
    run(FORK_BESIDE_A_CALL, ROUNDS)


@pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=str)
def test_exit_while_a_thread_is_left_behind(options):
    for number in range(1, ROUNDS + 1):
        run(LEFT_BEHIND_AT_EXIT, number, *options)


@pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=str)
def test_exit_while_daemon_threads_are_in_calls(options):
    for number in range(1, ROUNDS + 1):
        run(DAEMONS_AT_EXIT, number, *options)
