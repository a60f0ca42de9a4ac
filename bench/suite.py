"""How the suites measure: a worker process per thread count, replayed to pytest-benchmark.

Engines must alternate within a run and thread pools must find the affinity they are to use, which
pytest-benchmark cannot do. So a pinned worker measures all engines of a case together
(`timing.measure`), and each test hands its engine's rounds over through a clock that it sets.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from statistics import median
from typing import Any

import peers
import pytest
import worker
from cases import Case
from timing import limit_us

THREADS = [n for n in (1, 2) if n <= len(os.sched_getaffinity(0))]


class Clock:
    """A clock that stands still but for `advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds: list[float] = []

    def __call__(self) -> float:
        """Time of the clock."""
        return self.now

    def advance(self) -> None:
        """Let the next recorded duration pass."""
        self.now += self.seconds.pop(0)

    def replay(self, benchmark: Any, us: list[float]) -> None:
        """Give recorded durations to a `benchmark` fixture whose timer is this clock."""
        self.seconds = [1e-6 * v for v in us]
        benchmark.pedantic(self.advance, rounds=len(us))


CLOCK = Clock()
replayed = pytest.mark.benchmark(timer=CLOCK)


class Workers:
    """Measures cases, each once, in processes pinned to 1, 2, ... cores."""

    def __init__(self, names: list[str], rounds: int) -> None:
        self.names, self.rounds = names, rounds
        self.pools: dict[int, ProcessPoolExecutor] = {}
        self.futures: dict[tuple[Case, int], Future[dict[str, Any]]] = {}

    def measure(self, case: Case, threads: int) -> dict[str, Any]:
        """Result of `timing.measure` on the case."""
        key = case, threads
        if key not in self.futures:
            args = case, self.names, threads, self.rounds
            self.futures[key] = self._pool(threads).submit(worker.measure, *args)
        return self.futures[key].result()

    def measure_option(self, name: str, mode: str) -> dict[str, list[float]]:
        """Result of `options.measure` on one thread."""
        return self._pool(1).submit(worker.measure_option, name, mode, self.rounds).result()

    def probes(self, threads: int) -> dict[str, float]:
        """Limits of the machine for a number of threads."""
        return self._pool(threads).submit(worker.probes, threads).result()

    def _pool(self, threads: int) -> ProcessPoolExecutor:
        if threads not in self.pools:
            self.pools[threads] = ProcessPoolExecutor(
                1, get_context("spawn"), initializer=worker.pin, initargs=(threads,)
            )
        return self.pools[threads]

    def close(self) -> None:
        """End the processes."""
        for pool in self.pools.values():
            pool.shutdown()


def measured(cases: list[Case]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a test(record, case, threads, engine): every case, thread count and engine."""

    def name(case: Case) -> str:
        return case.id.replace(" ", "-").replace(",", "x")  # `-k` takes neither blank nor comma

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        test = pytest.mark.parametrize("case", cases, ids=name)(test)
        test = pytest.mark.parametrize("threads", THREADS)(test)
        test = pytest.mark.parametrize("engine", list(peers.MODULES))(test)
        return replayed(test)

    return decorate


def record(benchmark: Any, workers: Workers, case: Case, threads: int, engine: str) -> None:
    """Measure the case, or recall it, and hand one engine's rounds to pytest-benchmark."""
    if engine not in workers.names:
        pytest.skip(f"{engine} is not installed")
    result = workers.measure(case, threads)
    if engine not in result["us"]:
        pytest.skip(f"{engine} does not do this")
    us = result["us"][engine]
    peak, read = result["fma_gflops"], result["read_gbs"]
    gflops = case.flop() / median(us) / 1e3
    benchmark.group = f"{case.id}, {threads} threads"
    benchmark.extra_info |= asdict(case) | {
        "point": case.point,
        "threads": threads,
        "engine": engine,
        "version": result["versions"][engine],
        "us": [round(v, 3) for v in us],
        "gflops": gflops,
        "fma_gflops": peak,
        "read_gbs": read,
        "of_peak": gflops / peak,
        "of_limit": limit_us(case, peak, read) / median(us),
        "others": result["others"],
        "intensity": case.flop() / (case.recurrent_nbytes() * case.sweeps()),
    }
    CLOCK.replay(benchmark, us)
