from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from cylstm.engine.cells import Cell, Extras
from cylstm.layers.recurrent import Recurrent

OPENMP: Final[bool]
ACTIVATIONS: Final[dict[str, int]]
PICKS: Final[dict[str, int]]

LEVELS: Final[tuple[str, ...]]

def cpu_levels() -> list[str]: ...
def openmp_max_threads() -> int: ...
def processors(quota: int, limit: int) -> int: ...

@final
class Arena: ...

@final
class Packed:
    @property
    def backward(self) -> bool: ...
    def __init__(
        self,
        table: object,
        cell: Cell,
        w_ih: npt.NDArray[Any],
        w_hh: npt.NDArray[Any] | None,
        bias: npt.NDArray[Any],
        backward: bool,
        w_hr: npt.NDArray[Any] | None = None,
        single: npt.NDArray[Any] | None = None,
    ) -> None: ...

@final
class Call:
    @property
    def x(self) -> npt.NDArray[Any]: ...
    def __init__(
        self,
        weights: list[Packed],
        x: npt.NDArray[Any],
        lengths: npt.NDArray[Any] | None,
        taped: bool,
        extras: Extras | None,
    ) -> None: ...
    def recorded(
        self, d: int
    ) -> tuple[
        npt.NDArray[Any],
        int,
        list[npt.NDArray[Any]],
        npt.NDArray[Any],
        npt.NDArray[Any],
    ]: ...

@final
class Request: ...

@final
class Plan: ...

@final
class Stack:
    @property
    def layers(self) -> list[list[Packed]]: ...
    @property
    def backward(self) -> bool: ...
    def __init__(
        self,
        layers: list[list[Packed]],
        number: Callable[[Any], int],
        plain: bool = True,
        batch_first: bool = False,
    ) -> None: ...
    def run(
        self,
        x: object,
        state: object,
        lengths: object,
        mask: object,
        reset: object,
        return_: object,
        out: object,
        state_out: object,
        num_threads: object,
    ) -> tuple[Any, Any] | None: ...
    def record(
        self,
        x: object,
        state: object,
        lengths: object,
        mask: object,
        return_: object,
        out: object,
        num_threads: object,
    ) -> tuple[Any, Any, list[Call], npt.NDArray[Any], npt.NDArray[np.int64] | None] | None: ...

@final
class StepPlan:
    def __init__(self, stack: Stack, rows: int, threads: int) -> None: ...

@final
class Stepper:
    @property
    def rows(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    def __init__(self, stream: StreamBase) -> None: ...
    def give_state(self, stream: StreamBase) -> None: ...

@disjoint_base
class StreamBase:
    @property
    def layer(self) -> Recurrent: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def num_threads(self) -> int | None: ...
    def __init__(
        self,
        layer: Recurrent,
        batch_size: int,
        num_threads: int | None,
        number: Callable[[Any], int],
    ) -> None: ...
    def step(
        self, x: object, out: npt.NDArray[Any] | None = None, attention: object = None
    ) -> npt.NDArray[Any]: ...
    def _exclusively(self, call: Callable[..., Any], *arguments: Any) -> Any: ...
    def _load(self, rows: npt.NDArray[Any], states: npt.NDArray[Any]) -> None: ...
    def _store(self, rows: npt.NDArray[Any], states: npt.NDArray[Any]) -> None: ...

@final
class PoolStep:
    def __init__(self, stack: Stack, capacity: int) -> None: ...

@disjoint_base
class PoolBase:
    @property
    def layer(self) -> Recurrent: ...
    @property
    def capacity(self) -> int: ...
    def __init__(
        self,
        layer: Recurrent,
        capacity: int,
        clock: Callable[[], float] | None,
        number: Callable[[Any], int],
    ) -> None: ...
    def __len__(self) -> int: ...
    def step(
        self,
        ids: object,
        x: object,
        out: npt.NDArray[Any] | None = None,
        *,
        attention: object = None,
        num_threads: int | None = None,
    ) -> npt.NDArray[Any]: ...
    def idle(self, id: int) -> float: ...
    def _open(self, initial: npt.NDArray[Any] | None) -> int: ...
    def _close(self, id: int) -> None: ...
    def _close_idle(self, seconds: float) -> list[int]: ...
    def _open_ids(self) -> list[int]: ...
    def _is_open(self, id: int) -> bool: ...
    def _touch(self, id: int) -> float: ...
    def _now(self) -> float: ...
    def _load(self, id: int, state: npt.NDArray[Any] | None) -> None: ...
    def _store(self, id: int, state: npt.NDArray[Any]) -> None: ...
    def _after_fork(self) -> None: ...

def forward(
    weights: list[Packed],
    x: npt.NDArray[Any],
    y: npt.NDArray[Any] | None,
    initial: tuple[npt.NDArray[Any] | None, ...],
    lengths: npt.NDArray[Any] | None,
    taped: bool,
    threads: int,
    extras: Extras | None = None,
) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...], Call]: ...
def backward(
    tape: Call,
    dy: npt.NDArray[Any] | None,
    dfinal: tuple[npt.NDArray[Any] | None, ...],
    dx: list[npt.NDArray[Any]],
    threads: int,
    clip_step: float = 0.0,
    d_attention: list[npt.NDArray[Any]] | None = None,
) -> tuple[tuple[npt.NDArray[Any], ...], Call]: ...
def add_gradients(
    calls: list[Call], gradients: list[list[tuple[npt.NDArray[Any] | None, ...]]]
) -> None: ...
def workspace(
    weights: list[Packed],
    steps: int,
    rows: int,
    taped: bool,
    threads: int,
    extras: Extras | None = None,
) -> tuple[int, int, int]: ...
def digest(arrays: list[npt.NDArray[Any]]) -> int: ...
def activation(
    table: object, kind: tuple[str, float, float], x: npt.NDArray[Any]
) -> npt.NDArray[Any]: ...

@final
class Storage:
    def __new__(cls, values: npt.NDArray[Any]) -> Storage: ...
    def snapshot(self) -> Snapshot: ...
    def write(self, changes: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> None: ...

@final
class Snapshot:
    def copy(self) -> npt.NDArray[Any]: ...
    def lookup(self, ids: npt.NDArray[np.intp], y: npt.NDArray[Any]) -> None: ...

def snapshot_of(values: npt.NDArray[Any]) -> Snapshot: ...
def linear(
    table: object,
    x: npt.NDArray[Any],
    weight: Snapshot,
    bias: Snapshot | None,
    bias_at: int,
    sums: npt.NDArray[Any],
    y: npt.NDArray[Any] | None,
    f: tuple[str, float, float] | None,
    threads: int,
) -> None: ...
def linear_dx(
    table: object, dy: npt.NDArray[Any], weight: Snapshot, dx: npt.NDArray[Any], threads: int
) -> None: ...
def linear_dw(
    table: object,
    dy: npt.NDArray[Any],
    x: npt.NDArray[Any],
    dw: npt.NDArray[Any],
    threads: int,
) -> None: ...
def d_activation(
    table: object, f: tuple[str, float, float], x: npt.NDArray[Any], dy: npt.NDArray[Any]
) -> npt.NDArray[Any]: ...
