"""Peak memory of one engine on one case, in a process of its own.

    python bench/memory.py ENGINE CELL MODE B T H

Prints JSON: `peak`, what the process grew by over three calls beyond what it held once built
(weights and data included), and for cylstm what its formula says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import worker


def _status(key: str) -> int:
    """Bytes that /proc says this process holds (VmRSS) or has held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def peak(name: str, case: Any) -> dict[str, int]:
    """Build the engine, then watch three calls."""
    import peers
    from cases import problem

    data = problem(case)
    engine = peers.load([name])[name](case, data, 1)
    run = engine.infer if case.mode == "inference" else engine.train
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(3):
        kept = run()
    out = {"peak": _status("VmHWM") - before}
    del kept
    if name == "cylstm":
        training = case.mode == "training"
        out["formula"] = engine.layer.workspace_nbytes(case.T, case.B, training=training)
    return out


def main() -> None:
    """Read the command line."""
    worker.pin(1)
    from cases import Case

    name, cell, mode, *sizes = sys.argv[1:]
    print(json.dumps(peak(name, Case(cell, mode, *map(int, sizes)))))


if __name__ == "__main__":
    main()
