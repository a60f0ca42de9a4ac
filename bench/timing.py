"""The interleaving clock: in every round, every engine in turn, and the probes beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import peers
import probe
from cases import Case, problem
from worker import busy_core, cpu_seconds

FILL = 0.03  # seconds one engine is timed for in one round, or one call if that is longer
SETTLE = 0.01  # seconds: idle threads of the engine before stop spinning


def measure(case: Case, names: list[str], threads: int, rounds: int = 7) -> dict[str, Any]:
    """Time engines on one case, interleaved, after checking that their results are equal.

    Parameters
    ----------
    case : Case
    names : list of str
        Engines; those that are not installed or cannot run the case are left out.
    threads : int
        Thread count of every engine; the process must have been pinned (`worker.pin`).
    rounds : int

    Returns
    -------
    dict
        `us`: per engine the microseconds per call in each round; `fma_gflops` and `read_gbs`:
        the probes, at their best round; `others`: cores that other processes kept busy;
        `versions`.
    """
    data = problem(case)
    classes = {n: c for n, c in peers.load(names).items() if c.supports(case)}
    engines = {n: c(case, data, threads) for n, c in classes.items()}
    check_equal({n: e.results() for n, e in engines.items()})
    method = {"inference": "infer", "training": "train"}[case.mode]
    runs = {n: getattr(e, method) for n, e in engines.items()}
    calls = {n: _calibrate(run) for n, run in runs.items()}
    us: dict[str, list[float]] = {n: [] for n in runs}
    fma, read = [], []
    with busy_core() if case.busy else nullcontext(), _others() as others:
        for i in range(rounds):
            # Alternate the order, so that nobody always comes after the same neighbour.
            for n in list(runs)[:: 1 if i % 2 else -1]:
                us[n].append(_time(runs[n], calls[n]))
            time.sleep(SETTLE)
            fma.append(probe.fma_gflops(threads))
            read.append(probe.read_gbs(case.recurrent_nbytes() // threads, threads))
    versions = {n: c.version() for n, c in classes.items()}
    return {
        "us": us,
        "fma_gflops": max(fma),
        "read_gbs": max(read),
        "others": others[0],
        "versions": versions,
    }


@contextmanager
def _others() -> Iterator[list[float]]:
    """Cores that other processes kept busy meanwhile: a figure is worth what the quiet was."""
    out = [0.0]
    start, (all_before, own_before) = time.perf_counter(), cpu_seconds()
    yield out
    all_after, own_after = cpu_seconds()
    seconds = time.perf_counter() - start
    out[0] = max(0.0, all_after - all_before - (own_after - own_before)) / seconds


def _calibrate(run: Callable[[], Any]) -> int:
    """How many calls fill a round."""
    run()
    best = np.inf
    stop = time.perf_counter() + FILL / 2
    while time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return max(1, round(FILL / best))


def _time(run: Callable[[], Any], calls: int) -> float:
    """Microseconds per call."""
    time.sleep(SETTLE)
    for _ in range(1 + calls // 10):  # caches and clocks as in steady use
        run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls * 1e6


def check_equal(results: dict[str, list[Any]]) -> None:
    """Assert that all engines agree on every array, relative to its largest entry."""
    (first, expected), *others = results.items()
    for name, got in others:
        assert len(got) == len(expected), f"{name}: {len(got)} arrays, {first}: {len(expected)}"
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert a.shape == b.shape, f"{name}: result {i} has shape {a.shape}, {first} {b.shape}"
            scale = np.abs(b).max() or 1.0  # one step from a zero state: no recurrent gradient
            error = float(np.abs(a - b).max() / scale)
            assert error < 1e-4, f"{name}: result {i} differs from {first}'s by {error:.1e}"


def limit_us(case: Case, fma_gflops: float, read_gbs: float) -> float:
    """Least microseconds of a call: arithmetic, or reading the recurrent weights at every step."""
    arithmetic = case.flop() / (fma_gflops * 1e3)
    reading = case.recurrent_nbytes() * case.sweeps() / (read_gbs * 1e3)
    return max(arithmetic, reading)
