"""`Pool`: one vector of features for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from cylstm import checks
from cylstm.engine.batches import POOLED
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stateless import Stateless
from cylstm.module import Array, Module


class Pool(Stateless):
    """Make one output of each sequence, from the steps that are read.

    Directly after a recurrent layer it costs nothing: the layer is asked for that output alone
    (`return_`), and does not make the others.

    Parameters
    ----------
    mode : {"last", "final", "mean", "max"}
        Output at the last step that is read; final hidden state of each direction of the recurrent
        layer before, side by side or merged by its `merge_mode`; mean or maximum over the steps
        that are read. Of a row without any it is 0, and "final" the initial h. The gradient of a
        maximum goes to the step that reached it, the last one if there were several.
    batch_first : bool, optional
        Whether x is (B, T, C). Default as the other modules of a network, and otherwise False.

    Attributes
    ----------
    mode : str
    batch_first : bool or None

    Raises
    ------
    ValueError
        There is no such mode. `Sequential` refuses "final" without a recurrent layer before it.
    TypeError
        `batch_first` is not a bool.
    """

    _typed = False
    _looks_along_time = _ends_time = True

    def __init__(self, mode: str, *, batch_first: bool | None = None) -> None:
        self.mode = checks.choice("mode", mode, POOLED)
        self.batch_first = None if batch_first is None else checks.flag("batch_first", batch_first)
        Module.__init__(self, {}, np.dtype(np.float32))

    @property
    def _batch_first(self) -> bool | None:  # type: ignore[override]
        return self.batch_first

    def _refuse_stream(self, path: str) -> None:
        raise ValueError(
            f"{path} (Pool): expected no Pool for a stream, as it reads the whole sequence, got "
            f"mode={self.mode!r}"
        )

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        if self.mode == "final":
            raise ValueError(
                "mode: expected 'last', 'mean' or 'max' without a recurrent layer directly before, "
                "got 'final'"
            )
        rows, read = steps.rows(x)
        if read is None:
            read = np.ones(rows.shape[:2], bool)
        pooled = {"last": self._last, "mean": self._mean, "max": self._max}[self.mode]
        y, at = pooled(rows, read)
        after = steps._replace(timed=False)
        tape = (read, at, steps)
        return Passed(y if steps.batched or steps.ragged else y[0], after, tape=tape)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        read, at, steps = tape
        dy = dy.reshape(len(read), dy.shape[-1])
        dx = np.zeros((*read.shape, dy.shape[-1]), dy.dtype)
        if self.mode == "mean":
            counts = np.maximum(read.sum(axis=1), 1).astype(dy.dtype)
            dx[...] = np.where(read[..., None], (dy / counts[:, None])[:, None], 0)
        elif read.shape[1]:
            some = read.any(axis=1)[:, None]
            np.put_along_axis(dx, at[:, None], np.where(some, dy, 0)[:, None], axis=1)
        return steps.of_rows(dx), None

    @staticmethod
    def _last(rows: Array, read: Array) -> tuple[Array, Array]:
        """Take the last step that is read."""
        steps = read.shape[1]
        at = np.zeros((len(rows), rows.shape[2]), np.intp)
        if steps:
            at += steps - 1 - np.argmax(read[:, ::-1], axis=1)[:, None]
        return _taken(rows, read, at), at

    @staticmethod
    def _mean(rows: Array, read: Array) -> tuple[Array, None]:
        """Add up in order, so that nothing depends on how many steps are not read."""
        zero = rows.dtype.type(0)
        sums = np.zeros((len(rows), rows.shape[2]), rows.dtype)
        if rows.shape[1]:
            sums += np.add.accumulate(np.where(read[..., None], rows, zero), axis=1)[:, -1]
        sums /= np.maximum(read.sum(axis=1), 1).astype(rows.dtype)[:, None]
        return sums, None

    @staticmethod
    def _max(rows: Array, read: Array) -> tuple[Array, Array]:
        """Find the largest of each feature, and the last step that has it."""
        if not rows.shape[1]:
            return np.zeros((len(rows), rows.shape[2]), rows.dtype), np.zeros(0)
        seen = np.where(read[..., None], rows, -np.inf)[:, ::-1]
        at = rows.shape[1] - 1 - np.argmax(seen, axis=1)
        return _taken(rows, read, at), at


def _taken(rows: Array, read: Array, at: Array) -> Array:
    """Features (B, C) at steps (B, C); zeros where no step is read."""
    if not rows.shape[1]:
        return np.zeros((len(rows), rows.shape[2]), rows.dtype)
    found: Array = np.take_along_axis(rows, at[:, None], axis=1)[:, 0]
    some = np.logical_or.reduce(read, axis=1)
    found[~some] = 0
    return found
