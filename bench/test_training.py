"""Training (forward, then gradients of input and parameters): the grid, and a plain RNN."""

from __future__ import annotations

from collections.abc import Callable

from cases import GRID, RNN, Case, cases
from suite import measured

POINTS = GRID["training"]


@measured(cases("lstm", "training", POINTS) + cases("gru", "training", POINTS))
def test_grid(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)


@measured(RNN["training"])
def test_rnn(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)
