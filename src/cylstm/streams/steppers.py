"""One frame at a time through each kind of module, with the state where the next step finds it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cylstm import runtime
from cylstm.kernels import sequence
from cylstm.layers.branches import Concat, Residual
from cylstm.layers.conv import Conv1d
from cylstm.layers.flow import Run, Steps
from cylstm.layers.linear import Linear
from cylstm.layers.network import Network
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array
from cylstm.streams.stream import Stream

#: Frames of rows are arrays without an axis of time.
_FRAME = Steps(batched=False, timed=False)


class Stepper(Protocol):
    """What feeds frames to one module."""

    def step(self, x: Array) -> Array:
        """Return the output for a frame (B, C), and go on to the state after it."""

    @property
    def state(self) -> Any:
        """The state, as the module's calls return it, in arrays of its own."""

    def load(self, state: Any) -> None:
        """Set the state."""


def of(module: Any, rows: int, threads: int | None) -> Stepper:
    """Make what feeds a module, in the initial state."""
    if isinstance(module, Recurrent):
        return LayerStepper(module, rows, threads)
    if isinstance(module, Conv1d):
        return ConvStepper(module, rows, threads)
    if isinstance(module, Network):
        return NetworkStepper(module, rows, threads)
    return PlainStepper(module, threads)


class PlainStepper:
    """Feeds a module without a state."""

    state: Any = None

    def __init__(self, module: Any, threads: int | None) -> None:
        self._module, self._run = module, Run(False, threads)
        self.step = self._linear if isinstance(module, Linear) else self._any  # type: ignore[method-assign]

    def step(self, x: Array) -> Array:
        """Return the output for a frame (B, C)."""
        raise NotImplementedError

    def _any(self, x: Array) -> Array:
        y: Array = self._module._pass(x, None, _FRAME, self._run).y
        return y

    def _linear(self, x: Array) -> Array:
        """Skip what `Linear` makes of other shapes."""
        y: Array = self._module._rows(x, self._run.threads)
        return y

    def load(self, state: Any) -> None:
        """Do nothing: there is no state."""


class LayerStepper:
    """Feeds a recurrent layer by a stream of its own."""

    def __init__(self, layer: Recurrent, rows: int, threads: int | None) -> None:
        self._stream = Stream(layer, rows, num_threads=threads)
        self.step = self._stream.step  # type: ignore[method-assign]

    def step(self, x: Array) -> Array:
        """Return the output for a frame (B, C), and go on to the state after it."""
        raise NotImplementedError

    @property
    def state(self) -> Any:
        """The layer's state."""
        return self._stream.state

    def load(self, state: Any) -> None:
        """Set the state."""
        self._stream.state = state


class ConvStepper:
    """Feeds a causal convolution, of whose input it keeps what the next window needs."""

    def __init__(self, module: Conv1d, rows: int, threads: int | None) -> None:
        self._module, self._threads = module, threads
        self._kept = np.zeros((rows, module._reach + 1, module.in_channels), module.dtype)

    def step(self, x: Array) -> Array:
        """Return the output for a frame (B, C), and go on to the state after it."""
        module, kept = self._module, self._kept
        kept[:, :-1] = kept[:, 1:]
        kept[:, -1] = x
        windows = np.ascontiguousarray(kept[:, :: module._spread]).reshape(len(kept), -1)
        y = np.empty((len(kept), module.out_channels), module.dtype)
        weight, size = module._snapshot(), module.out_channels * windows.shape[1]
        sequence.linear(
            module._table, windows, weight, weight if module.bias else None, size, y, y, module._f,
            runtime.number(self._threads),
        )  # fmt: skip
        return y

    @property
    def state(self) -> Array:
        """The last steps of the input, (steps, B, C)."""
        return self._kept[:, 1:].swapaxes(0, 1).copy()

    def load(self, state: Any) -> None:
        """Set the last steps of the input."""
        if self._module._has_state:
            self._kept[:, 1:] = state.swapaxes(0, 1)


class NetworkStepper:
    """Feeds the modules of a network."""

    def __init__(self, module: Network, rows: int, threads: int | None) -> None:
        self._module = module
        self._parts = {name: of(c, rows, threads) for name, c in module._children.items()}
        self._steps = [part.step for part in self._parts.values()]
        kinds = {Residual: self._residual, Concat: self._concat}
        made = next((f for kind, f in kinds.items() if isinstance(module, kind)), self._sequential)
        self.step = made  # type: ignore[method-assign]

    def step(self, x: Array) -> Array:
        """Return the output for a frame (B, C), and go on to the state after it."""
        raise NotImplementedError

    def _sequential(self, x: Array) -> Array:
        for step in self._steps:
            x = step(x)
        return x

    def _residual(self, x: Array) -> Array:
        return x + self._steps[0](x)

    def _concat(self, x: Array) -> Array:
        return np.concatenate([step(x) for step in self._steps], axis=-1)

    @property
    def state(self) -> Any:
        """The network's state: an entry for each module that has one."""
        found = tuple(self._parts[name].state for name in self._module._stateful())
        return found[0] if found and isinstance(self._module, Residual) else found

    def load(self, state: Any) -> None:
        """Set the states of all modules."""
        names = self._module._stateful()
        given = (state,) if isinstance(self._module, Residual) and names else state
        for name, own in zip(names, given, strict=True):
            self._parts[name].load(own)
