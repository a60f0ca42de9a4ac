"""What takes too long for every day, on a plain build: crashes, hangs, late answers and wrong bits.

    python tests/chaos/soak.py [rounds=10000] [interrupts=20] [exits=200] [forks=100] [spinning=0]

- `rounds` calls with checkpoints on one processor, by 2 to 7 threads, in memory that is freed and
  filled between them; every 20th with its gradients;
- `interrupts` of calls with checkpoints, answered within 0.3 s, all calls after them right;
- `exits` while daemon threads are in calls;
- `forks` in a signal handler in the middle of a call, which parent and child finish.

`spinning` processes run beside it, which makes 0.3 s a matter of luck. 10,000 rounds take a minute
or two alone, and as many times longer as there are spinning processes on that processor. A hang
ends in an error after ten minutes. Exit status 1 if anything is wrong.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import time

import numpy as np

import cylstm


def same(found, right):
    return all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))


def flat(y, state):
    return (y, *state)


def rounds(number):
    """The snippet that crashed within 0.2 s."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    layer = cylstm.LSTM(40, 100, rng=0)
    x = np.random.default_rng(0).normal(size=(400, 7, 40)).astype("f")

    def training(threads):
        layer.zero_grad()
        y, state, tape = layer.forward(x, checkpoint="sqrt", num_threads=threads)
        dx, dstate = layer.backward(tape, y, num_threads=threads)
        return (*flat(y, state), *flat(dx, dstate), layer.flat_grads.copy())

    right, wrong = training(1), 0
    for i in range(number):
        faulthandler.dump_traceback_later(600, exit=True)
        threads = 2 + i % 6
        if i % 20:
            y, state, tape = layer.forward(x, checkpoint="sqrt", num_threads=threads)
            del tape
            found = flat(y, state)
            wrong += not same(found, right[: len(found)])
        else:
            wrong += not same(training(threads), right)
        held = [np.full(k, np.nan, "f") for k in (100, 1000, 10_000, 100_000)]
        del held
    os.sched_setaffinity(0, allowed)
    return wrong


def interrupts(number):
    """Seconds to the answer, the longest; wrong calls."""
    layer = cylstm.LSTM(64, 256, rng=0)
    x = np.random.default_rng(0).normal(size=(30_000, 7, 64)).astype("f")
    short = x[:100].copy()
    right, wrong, longest, sent = flat(*layer(short, num_threads=1)), 0, 0.0, 0.0

    def handler(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handler)
    for i in range(number):
        faulthandler.dump_traceback_later(600, exit=True)
        layer(short, num_threads=2)  # may leave a thread behind
        after = 0.03 + 0.02 * (i % 5)
        signal.setitimer(signal.ITIMER_REAL, after)
        sent = time.monotonic() + after
        try:
            layer.forward(x, checkpoint="sqrt", num_threads=2 + i % 3)
            wrong += 1
        except KeyboardInterrupt:
            longest = max(longest, time.monotonic() - sent)
        for _ in range(50):
            wrong += not same(flat(*layer(short, num_threads=2)), right)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print(f"  the longest answer to an interrupt took {longest:.3f} s", flush=True)
    return wrong + (longest > 0.3)


DAEMONS = """
import random, sys, threading, time
import numpy as np
import cylstm

layer = cylstm.LSTM(40, 100, rng=0)
x = np.ones((400, 7, 40), "f")

def calls():
    while True:
        layer(x, num_threads=2)
        layer.forward(x, checkpoint="sqrt", num_threads=2)

for _ in range(2):
    threading.Thread(target=calls, daemon=True).start()
time.sleep(0.1 + 0.1 * random.Random(int(sys.argv[1])).random())
"""


def exits(number):
    """How many ended otherwise than with status 0."""
    wrong = 0
    for i in range(number):
        faulthandler.dump_traceback_later(600, exit=True)
        options = ["-X", "faulthandler"] if i % 2 else []
        done = subprocess.run(
            [sys.executable, *options, "-c", DAEMONS, str(i)], timeout=300, check=False
        )
        wrong += done.returncode != 0
    return wrong


def forks(number):
    """How many children, or calls, were wrong; a child that hangs is killed after a minute."""
    layer = cylstm.LSTM(8, 256, rng=0)
    x = np.random.default_rng(0).normal(size=(20_000, 3, 8)).astype("f")
    right, children, wrong = flat(*layer(x, num_threads=1)), [], 0

    def handler(*_):
        children.append(os.fork())
        if not children[-1]:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)

    signal.signal(signal.SIGALRM, handler)
    for i in range(1, number + 1):
        faulthandler.dump_traceback_later(600, exit=True)
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        found = layer(x, num_threads=2 + i % 3)
        if children and not children[-1]:
            os._exit(not same(flat(*found), right))
        wrong += not same(flat(*found), right)
        while len(children) < i:
            time.sleep(0.001)
        wrong += os.waitpid(children[-1], 0)[1] != 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return wrong


SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def main(words):
    counts = {"rounds": 10_000, "interrupts": 20, "exits": 200, "forks": 100, "spinning": 0}
    for word in words:
        name, _, count = word.partition("=")
        if name not in counts or not count.isdigit():
            raise SystemExit(__doc__)
        counts[name] = int(count)
    spinning = [
        subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(counts.pop("spinning"))
    ]
    failed = 0
    try:
        for check in (rounds, interrupts, exits, forks):
            if count := counts[check.__name__]:
                started = time.monotonic()
                wrong = check(count)
                seconds = time.monotonic() - started
                print(f"{count} {check.__name__}: {wrong} wrong, {seconds:.0f} s", flush=True)
                failed += wrong
    finally:
        for other in spinning:
            other.kill()
            other.wait()
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
