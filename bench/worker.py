"""Pin a process before any engine is imported: thread pools are sized by the affinity they find."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def pin(threads: int) -> None:
    """Keep this process, and every pool it will start, to the first `threads` cores."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise ValueError(f"threads: expected at most {len(cores)} here, got {threads}")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one of this process's cores busy from another process."""
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    burner = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def cpu_seconds() -> tuple[float, float]:
    """CPU seconds the whole machine has spent so far, and this process with its threads."""
    with open("/proc/stat") as file:
        ticks = [int(v) for v in file.readline().split()[1:]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def probes(threads: int) -> dict[str, float]:
    """FMA peak (GFLOP/s) and read bandwidth per level (GB/s), the best of five."""
    import probe

    levels = {f"{level} GB/s": n for level, n in probe.LEVELS.items()}
    out = {"FMA GFLOP/s": max(probe.fma_gflops(threads) for _ in range(5))}
    return out | {k: max(probe.read_gbs(n, threads) for _ in range(5)) for k, n in levels.items()}


def measure(*args: Any) -> dict[str, Any]:
    """Run `timing.measure` in a process that `pin` has prepared."""
    import timing

    return timing.measure(*args)


def measure_option(name: str, mode: str, rounds: int) -> dict[str, list[float]]:
    """Run `options.measure` on one thread."""
    import options

    return options.measure(name, mode, 1, rounds)
