"""Off the grid: odd sizes, options, lengths, denormals, a busy core; and sweeps for the plots."""

from __future__ import annotations

from collections.abc import Callable

from cases import SHAPES, SWEEPS, Case, cases
from suite import measured

BUSY = [Case("lstm", "inference", *point, busy=True) for point in ((32, 100, 256), (1, 100, 256))]


@measured(SHAPES["inference"] + SHAPES["training"])
def test_shapes(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)


@measured(BUSY)
def test_busy(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)


@measured(cases("lstm", "inference", SWEEPS) + cases("lstm", "training", SWEEPS))
def test_sweeps(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)
