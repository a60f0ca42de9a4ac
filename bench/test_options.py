"""Every option beside the plain cell: ratios of time, and of the multiply-adds they take."""

from __future__ import annotations

from typing import Any

import pytest
from options import OPTIONS, modes_of
from suite import CLOCK, Workers, replayed

CASES = [(name, mode) for name in OPTIONS for mode in modes_of(name)]


@replayed
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_option(benchmark: Any, workers: Workers, name: str, mode: str) -> None:
    us = workers.measure_option(name, mode)
    benchmark.group = f"{name}, {mode}"
    benchmark.extra_info |= {
        "option": name,
        "mode": mode,
        "us": [round(v, 1) for v in us["option"]],
        "plain_us": [round(v, 1) for v in us["plain"]],
        "work": OPTIONS[name][3],
    }
    CLOCK.replay(benchmark, us["option"])
