"""Which instruction set runs: what was built, what this machine can do, what was asked for."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from cylstm.kernels import sequence

REALS = {"float32": "f32", "float64": "f64"}


@cache
def built() -> list[str]:
    """Instruction sets this build contains, best first."""
    from importlib.util import find_spec  # seldom needed, and slow to import

    return [isa for isa in sequence.LEVELS if find_spec(f"cylstm.kernels.level_{isa}_f32")]


@cache
def usable() -> list[str]:
    """Instruction sets that are built and that this machine and its operating system support."""
    return [isa for isa in built() if isa in sequence.cpu_levels()]


@cache
def in_use() -> str:
    """Return the instruction set all layers run on: the best usable one, or ``CYLSTM_ISA``.

    Raises
    ------
    ValueError
        ``CYLSTM_ISA`` is unknown, not built, or not supported by this machine.
    """
    asked = os.environ.get("CYLSTM_ISA")
    if not asked:
        # Asking the import system what is built takes longer than importing cylstm.
        for isa in sequence.cpu_levels():
            try:
                import_module(f"cylstm.kernels.level_{isa}_f32")
            except ModuleNotFoundError:
                continue
            return str(isa)
        raise ImportError(f"no kernels for this machine, which has {sequence.cpu_levels()}")
    if asked not in sequence.LEVELS:
        raise ValueError(f"CYLSTM_ISA: expected one of {sequence.LEVELS}, got {asked!r}")
    if asked not in built():
        raise ValueError(f"CYLSTM_ISA={asked}: cylstm was built without it, it has {built()}")
    if asked not in usable():
        raise ValueError(f"CYLSTM_ISA={asked}: this machine cannot run it, only {usable()}")
    return asked


@cache
def table(dtype: str, isa: str | None = None) -> Any:
    """Return the kernels of one dtype ("float32" or "float64"); by default those in use."""
    return import_module(f"cylstm.kernels.level_{isa or in_use()}_{REALS[dtype]}").table
