"""How many threads a call uses, and what the library reports about itself."""

from __future__ import annotations

import operator
import os
import sys
from functools import cache
from typing import Any

from cylstm.kernels import dispatch, sequence

_chosen: int | None = None
_omp_num_threads = "OMP_NUM_THREADS" in os.environ  # which OpenMP reads once as well
_omp_limit = sequence.openmp_max_threads()


def checked(num_threads: Any) -> int:
    """Check a number of threads: an integer of at least 1."""
    n = num_threads
    if type(n) is not int:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"num_threads: expected an integer, got {n!r}")
        n = operator.index(n)
    if n < 1:
        raise ValueError(f"num_threads: expected at least 1, got {n}")
    return n if n < 1024 else 1024  # min() allocates


def number(num_threads: Any) -> int:
    """How many threads a call may use: what it says, or the default."""
    return get_num_threads() if num_threads is None else checked(num_threads)


def set_num_threads(num_threads: int | None) -> None:
    """Set how many threads calls use by default, for the whole process.

    Parameters
    ----------
    num_threads : int or None
        At least 1; None returns to ``OMP_NUM_THREADS`` or the number of available CPUs. A limit
        that ``threadpoolctl.threadpool_limits`` sets on the OpenMP runtime still applies.

    Raises
    ------
    TypeError, ValueError
        Not an integer, or less than 1.
    """
    global _chosen
    _chosen = None if num_threads is None else checked(num_threads)


def get_num_threads() -> int:
    """Return how many threads a call uses unless it says ``num_threads=``."""
    limit: int = sequence.openmp_max_threads()
    if _chosen is not None:
        # A limit lowered since the start is threadpoolctl's, or the caller's own.
        return _chosen if limit >= _omp_limit else min(_chosen, limit)
    if _omp_num_threads:
        return limit
    return sequence.processors(_cgroup_quota() or limit, limit)


def available_cpus() -> int:
    """CPUs this thread may use: its affinity now, cut by the cgroup's quota (v2 or v1)."""
    cpus = os.cpu_count() or 1
    return sequence.processors(_cgroup_quota() or cpus, cpus)


def _read(name: str) -> str:
    with open(f"/sys/fs/cgroup/{name}") as file:
        return file.read()


@cache
def _cgroup_quota() -> int | None:
    """Whole CPUs the cgroup's bandwidth limit allows, rounded up; None without a limit."""
    try:
        quota, period = _read("cpu.max").split()
    except (OSError, ValueError):
        try:
            quota, period = _read("cpu/cpu.cfs_quota_us"), _read("cpu/cpu.cfs_period_us")
        except OSError:
            return None
    try:
        return -(-int(quota) // int(period)) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # "max": no limit


def config() -> dict[str, Any]:
    """Return what `show_config` prints, as a dictionary.

    Returns
    -------
    dict
        ``version``, ``isa`` (in use), ``isa_built``, ``isa_usable``, ``num_threads``,
        ``available_cpus``, ``openmp`` (bool) and the versions of Python and NumPy.
    """
    import numpy as np

    import cylstm

    return {
        "version": cylstm.__version__,
        "isa": dispatch.in_use(),
        "isa_built": list(dispatch.built()),
        "isa_usable": list(dispatch.usable()),
        "num_threads": get_num_threads(),
        "available_cpus": available_cpus(),
        "openmp": sequence.OPENMP,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
    }


def show_config() -> None:
    """Print version, instruction sets built, usable and in use, threads and OpenMP."""
    c = config()
    openmp = "yes" if c["openmp"] else "no: this is a serial build, every call runs on one thread"
    lines = {
        "cylstm": c["version"],
        "instruction set": c["isa"],
        "  built": ", ".join(c["isa_built"]),
        "  usable here": ", ".join(c["isa_usable"]),
        "threads": f"{c['num_threads']} (of {c['available_cpus']} available CPUs)",
        "OpenMP": openmp,
        "Python": c["python"],
        "NumPy": c["numpy"],
    }
    for name, value in lines.items():
        print(f"{name:16} {value}")
