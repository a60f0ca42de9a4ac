"""What a call costs beyond its arithmetic (one step, imports, peak memory); the limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import Case, cases
from peers import MODULES
from suite import CLOCK, THREADS, Workers, measured, replayed

# Beside those of the grid.
STEPS = [(1, 1, 1), (1, 1, 16), (1, 1, 128), (4, 1, 64), (1, 10, 16)]
MEMORY = [(16, 100, 128), (32, 100, 256), (32, 1000, 128)]


@measured(cases("lstm", "inference", STEPS) + cases("gru", "inference", STEPS))
def test_step(record: Callable[..., None], case: Case, threads: int, engine: str) -> None:
    record(case, threads, engine)


@replayed
@pytest.mark.parametrize("threads", THREADS)
def test_probes(benchmark: Any, workers: Workers, threads: int) -> None:
    """FMA peak and bandwidth of every level; the time means nothing."""
    benchmark.group = "probes"
    benchmark.extra_info["probes"] = {"threads": threads} | workers.probes(threads)
    CLOCK.replay(benchmark, [1.0])


@replayed
@pytest.mark.parametrize("package", ["numpy", *(package for package, _ in MODULES.values())])
def test_import(benchmark: Any, engines: list[str], package: str) -> None:
    """Wall time of a fresh interpreter, minus that of one that imports nothing."""
    if package not in (*engines, "numpy"):
        pytest.skip(f"{package} is not installed")
    us = [max(0.0, _python(f"import {package}") - _python("pass")) for _ in range(5)]
    benchmark.group = "import"
    benchmark.extra_info |= {"package": package, "us": us}
    CLOCK.replay(benchmark, us)


def _python(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1e6


@replayed
@pytest.mark.parametrize("engine", list(MODULES))
@pytest.mark.parametrize("point", MEMORY, ids=str)
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_memory(
    benchmark: Any, engines: list[str], cell: str, mode: str, point: tuple[int, ...], engine: str
) -> None:
    """Peak memory beyond weights and data, against cylstm's formula; the time means nothing."""
    if engine not in engines or (mode == "training" and engine in ("onnxruntime", "openvino")):
        pytest.skip(f"{engine} does not do this")
    script = Path(__file__).with_name("memory.py")
    command = [sys.executable, script, engine, cell, mode, *map(str, point)]
    start = time.perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    case = Case(cell, mode, *point)
    benchmark.group = f"memory {case.id}"
    benchmark.extra_info |= {"memory": json.loads(run.stdout), "engine": engine, "cell": cell}
    benchmark.extra_info |= {"mode": mode, "point": case.point, "floats": case.T * case.B * case.H}
    CLOCK.replay(benchmark, [(time.perf_counter() - start) * 1e6])
