from typing import Any, Final, final

import numpy.typing as npt

OPENMP: Final[bool]
CELLS: Final[dict[str, int]]

def cpu_levels() -> list[str]: ...
def openmp_max_threads() -> int: ...

@final
class Arena: ...

@final
class Packed:
    @property
    def backward(self) -> bool: ...
    def __init__(
        self,
        table: object,
        cell: str,
        w_ih: npt.NDArray[Any],
        w_hh: npt.NDArray[Any],
        bias: npt.NDArray[Any],
        backward: bool,
    ) -> None: ...

@final
class Call:
    @property
    def x(self) -> npt.NDArray[Any]: ...
    def __init__(
        self,
        weights: list[Packed],
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        lengths: npt.NDArray[Any] | None,
        taped: bool,
    ) -> None: ...
    def recorded(
        self, d: int
    ) -> tuple[
        npt.NDArray[Any],
        npt.NDArray[Any] | None,
        npt.NDArray[Any],
        npt.NDArray[Any],
        npt.NDArray[Any],
    ]: ...

def forward(
    weights: list[Packed],
    x: npt.NDArray[Any],
    y: npt.NDArray[Any] | None,
    initial: tuple[npt.NDArray[Any] | None, ...],
    lengths: npt.NDArray[Any] | None,
    taped: bool,
    threads: int,
) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...], Call]: ...
def backward(
    tape: Call,
    dy: npt.NDArray[Any] | None,
    dfinal: tuple[npt.NDArray[Any] | None, ...],
    dx: list[npt.NDArray[Any]],
    gradients: list[tuple[npt.NDArray[Any] | None, ...]],
    threads: int,
) -> tuple[npt.NDArray[Any], ...]: ...
def workspace(
    weights: list[Packed], steps: int, rows: int, taped: bool, threads: int
) -> tuple[int, int]: ...
def activation(table: object, is_tanh: bool, x: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
