"""Inference: the grid, and plain RNNs at a few points."""

from __future__ import annotations

from collections.abc import Callable

from cases import GRID, RNN, Case, cases
from suite import measured

POINTS = GRID["inference"]


@measured(cases("lstm", "inference", POINTS) + cases("gru", "inference", POINTS))
def test_grid(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)


@measured(RNN["inference"])
def test_rnn(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)
