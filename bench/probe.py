"""FMA peak and read bandwidth of this machine, measured beside every point."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier

import numpy as np

SECONDS = 0.004  # of one probe
LEVELS = {"L1": 32 << 10, "L2": 512 << 10, "L3": 8 << 20, "memory": 256 << 20}  # bytes per thread


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("probe.c")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, source, "-o", path], check=True)
        lib = ctypes.CDLL(str(path))
    size = ctypes.c_ssize_t
    lib.fma_gflops.argtypes, lib.fma_gflops.restype = [size, ctypes.c_float], ctypes.c_double
    lib.read_gbs.argtypes = [ctypes.c_void_p, size, size]
    lib.read_gbs.restype = ctypes.c_double
    return lib


def fma_gflops(threads: int) -> float:
    """GFLOP/s of all threads together, 10 independent chains of the widest FMA on each."""
    steps = round(SECONDS * 2e8)
    call = _library().fma_gflops
    return sum(_together([lambda: call(steps, 0.5)] * threads))


def read_gbs(nbytes: int, threads: int) -> float:
    """GB/s of all threads together, each reading its own `nbytes` again and again."""
    parts = [_buffer(nbytes, i) for i in range(threads)]
    sweeps = max(1, round(SECONDS * 60e9 / parts[0].nbytes))
    call = _library().read_gbs
    return sum(_together([lambda p=p: call(p.ctypes.data, p.size, sweeps) for p in parts]))


@cache
def _buffer(nbytes: int, _index: int) -> np.ndarray:
    """Zeroed floats on a 64-byte boundary, whole rounds of the C loop."""
    size = -(-nbytes // 512) * 128
    raw = np.ones(size + 16, np.float32)
    start = -raw.ctypes.data // 4 % 16
    return raw[start : start + size]


def _together(calls: list[Callable[[], float]]) -> list[float]:
    """Run each call in a thread of its own, all starting at once; ctypes releases the GIL."""
    if len(calls) == 1:
        return [calls[0]()]
    barrier = Barrier(len(calls))

    def run(call: Callable[[], float]) -> float:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
