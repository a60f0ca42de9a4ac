"""`pytest bench/ --benchmark-json=bench/results/NAME.json`: everything, 1 and 2 threads.

`-k "grid and lstm-inference-1x100"`, `--rounds` and `--engines` take less. Nothing here asserts a
time; what is asserted is that all engines agree on a case before it is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
import suite


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--rounds", type=int, default=7, help="interleaved rounds per case")
    group.addoption("--engines", default=",".join(peers.installed()), help="comma-separated")


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave out what `extra_info` repeats: results are committed."""
    for entry in output_json["benchmarks"]:
        entry.pop("params")
        entry.pop("options")


@pytest.fixture(scope="session")
def engines(request: pytest.FixtureRequest) -> list[str]:
    wanted = request.config.getoption("--engines").split(",")
    return [name for name in peers.installed() if name in wanted]


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest, engines: list[str]) -> Iterator[suite.Workers]:
    workers = suite.Workers(engines, request.config.getoption("--rounds"))
    yield workers
    workers.close()


@pytest.fixture
def record(benchmark: Any, workers: suite.Workers) -> Callable[..., None]:
    return functools.partial(suite.record, benchmark, workers)
