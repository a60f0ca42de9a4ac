"""What is measured: cases, their weights and data, their FLOP, the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GATES = {"lstm": 4, "gru": 3, "rnn": 1}

# (B, T, I = H)
GRID = {
    "inference": [
        (1, 1, 64), (1, 1, 256), (1, 100, 64), (1, 100, 256), (1, 100, 512),
        (4, 100, 128), (16, 100, 128), (32, 100, 256), (64, 50, 512), (128, 50, 128),
    ],
    "training": [
        (1, 100, 64), (8, 100, 64), (16, 100, 128), (32, 100, 256), (64, 50, 512), (128, 50, 128),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One point of the bench: a cell, a mode and its sizes."""

    cell: str
    mode: str
    B: int
    T: int
    H: int
    I: int = 0  # noqa: E741  0 means H
    layers: int = 1
    bidirectional: bool = False
    real_steps: float = 1.0  # share of the B * T steps that the rows' lengths keep
    last_only: bool = False  # training: the loss looks at the last step only
    busy: bool = False  # another process keeps one of the cores busy

    def __post_init__(self) -> None:
        """Fill in I = H, so that equal cases compare equal."""
        object.__setattr__(self, "I", self.I or self.H)

    @property
    def directions(self) -> int:
        """Directions of every layer."""
        return 2 if self.bidirectional else 1

    @property
    def point(self) -> str:
        """Name of the case among those of its cell and mode."""
        name = f"{self.B},{self.T},{self.H}"
        name += f",I={self.I}" if self.I != self.H else ""
        name += f",{self.layers} layers" if self.layers > 1 else ""
        name += ",bidirectional" if self.bidirectional else ""
        name += f",{self.real_steps:.0%} real" if self.real_steps < 1 else ""
        name += ",last step's loss" if self.last_only else ""
        return name + (",busy core" if self.busy else "")

    @property
    def id(self) -> str:
        """Name of the case among all."""
        return f"{self.cell} {self.mode} {self.point}"

    def widths(self) -> list[int]:
        """Input width of each layer."""
        return [self.I] + [self.directions * self.H] * (self.layers - 1)

    def flop(self) -> float:
        """Multiply-adds of the products, times 2; training is three times inference."""
        columns = GATES[self.cell] * self.H
        per_step = sum(2 * columns * (width + self.H) for width in self.widths())
        steps = self.T * self.B * self.real_steps
        return per_step * self.directions * steps * (3 if self.mode == "training" else 1)

    def recurrent_nbytes(self) -> int:
        """Bytes of recurrent weights read at every step, all layers and directions."""
        return 4 * GATES[self.cell] * self.H**2 * self.layers * self.directions

    def sweeps(self) -> int:
        """How many times per call the recurrent weights are read at least."""
        return self.T * (2 if self.mode == "training" else 1)


def cases(cell: str, mode: str, points: Sequence[tuple[int, ...]]) -> list[Case]:
    """Cases of one cell and mode at points (B, T, H) or (B, T, H, I)."""
    return [Case(cell, mode, *point) for point in points]


def _shapes(mode: str) -> list[Case]:
    base = Case("lstm", mode, 16, 100, 128)
    denormal = Case("lstm", mode, 16, 400, 128)
    out = [
        replace(base, H=100, I=100),
        replace(base, H=250, I=250),
        replace(base, I=1),
        replace(base, I=16),
        Case("lstm", mode, 8, 20, 1024),
        replace(base, bidirectional=True),
        replace(base, layers=2),
        replace(base, real_steps=0.6),
        Case("lstm", mode, 32, 100, 256, real_steps=0.6),
    ]
    if mode == "training":
        out += [denormal, replace(denormal, last_only=True)]
    return out + [replace(c, cell="gru") for c in out]


SHAPES = {mode: _shapes(mode) for mode in ("inference", "training")}
RNN = {
    "inference": cases("rnn", "inference", [(1, 100, 256), (32, 100, 256)]),
    "training": cases("rnn", "training", [(32, 100, 256)]),
}
# Time against H, B and T, one at a time.
SWEEPS = [
    *((16, 50, h) for h in (32, 64, 128, 256, 512)),
    *((b, 50, 128) for b in (1, 4, 64, 256)),
    *((16, t, 128) for t in (1, 10, 200, 500)),
]


@dataclass(frozen=True)
class Problem:
    """Identical weights (PyTorch's names and layouts) and data for every engine."""

    weights: dict[str, Array]
    x: Array  # (T, B, I)
    dy: Array  # (T, B, D * H)
    lengths: Array | None  # (B,) int64


def problem(case: Case) -> Problem:
    """Draw the weights and data of a case, the same at every call."""
    rng = np.random.default_rng(0)
    bound = 1 / np.sqrt(case.H)
    rows = GATES[case.cell] * case.H
    weights = {}
    for layer, width in enumerate(case.widths()):
        for suffix in ("", "_reverse")[: case.directions]:
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, case.H)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                value = rng.uniform(-bound, bound, shape).astype(np.float32)
                weights[f"{name}_l{layer}{suffix}"] = value
    x = rng.standard_normal((case.T, case.B, case.I), np.float32)
    dy = rng.standard_normal((case.T, case.B, case.directions * case.H), np.float32)
    if case.last_only:
        dy[:-1] = 0
    return Problem(weights, x, dy, _lengths(case))


def _lengths(case: Case) -> Array | None:
    if case.real_steps == 1:
        return None
    # Evenly spread around the mean, one row at full length, in no order.
    low = 2 * case.real_steps - 1
    lengths = np.linspace(low, 1, case.B) * case.T
    return np.random.default_rng(1).permutation(np.rint(lengths).astype(np.int64))
