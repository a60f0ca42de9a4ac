"""Rows cut at resets: each piece is a row of its own to the kernels, in place in x and y."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]


class Segments(NamedTuple):
    """S segments of B rows, ordered by row and then by time; every row has at least one."""

    row: Indices  # (S,) which row each is part of
    starts: Indices  # (S,) where it starts along the first axis of x
    spans: Indices  # (S,) steps of time it spans
    lengths: Indices  # (S,) how many of them are read
    columns: Indices | None  # (S,) where along the second axis of x; None if that has one element
    first: Indices  # (B,) the segment that each row starts with
    last: Indices  # (B,) and ends with
    last_read: Indices  # (B,) and the last one with a step that is read, or the first one
    fresh: Flags  # (B,) whether there is a reset before the row's first step

    def entered(self, backwards: bool) -> tuple[Indices, Indices]:
        """Segments that start from the given state, and their rows."""
        if backwards:  # it is the state after the last step
            return self.last, np.arange(len(self.last))
        rows = np.flatnonzero(~self.fresh)
        return self.first[rows], rows

    def left(self, backwards: bool) -> Indices:
        """Segments after which each row's final state is found."""
        return self.first if backwards else self.last


def of_padded(reset: Flags, read: Flags | None, lengths: Indices | None) -> Segments:
    """Cut (T, B) sequences, of which only the steps in `read`, or the first ones, are read."""
    steps, rows = reset.shape
    if steps == 0:
        row, starts, fresh = np.arange(rows), np.zeros(rows, np.int64), np.zeros(rows, bool)
    else:
        cuts, fresh = reset.copy(), reset[0]
        cuts[0] = True
        row, starts = np.nonzero(cuts.T)
    spans = _ends(row, starts, np.full(rows, steps)) - starts
    counts = spans
    if read is not None:
        before = np.zeros((steps + 1, rows), np.int64)
        np.cumsum(read, axis=0, out=before[1:])
        counts = before[starts + spans, row] - before[starts, row]
    elif lengths is not None:
        counts = np.clip(lengths[row] - starts, 0, spans)
    return _segments(row, starts, spans, counts, fresh, side_by_side=True)


def of_joined(reset: Flags, lengths: Indices, first_steps: Indices) -> Segments:
    """Cut rows laid end to end, of which `reset` has one element per step."""
    some = np.flatnonzero(lengths)
    fresh = np.zeros(len(lengths), bool)
    fresh[some] = reset[first_steps[some]]
    cuts = reset.copy()
    cuts[first_steps[some]] = True
    starts = np.flatnonzero(cuts)
    row = np.repeat(np.arange(len(lengths)), lengths)[starts]
    none = np.flatnonzero(lengths == 0)
    row, starts = np.concatenate([row, none]), np.concatenate([starts, first_steps[none]])
    order = np.argsort(row, kind="stable")
    row, starts = row[order], starts[order]
    spans = _ends(row, starts, first_steps + lengths) - starts
    return _segments(row, starts, spans, spans, fresh, side_by_side=False)


def _ends(row: Indices, starts: Indices, ends: Indices) -> Indices:
    """Where each segment ends: at the next one of its row, or with it."""
    found: Indices = ends[row]
    within = np.flatnonzero(row[1:] == row[:-1])
    found[within] = starts[within + 1]
    return found


def _segments(
    row: Indices, starts: Indices, spans: Indices, lengths: Indices, fresh: Flags,
    side_by_side: bool,
) -> Segments:  # fmt: skip
    """Drop segments without a step that is read, but not the first and last ones of each row."""
    ends = np.ones(len(row) + 1, bool)
    ends[1:-1] = row[1:] != row[:-1]
    kept = (lengths > 0) | ends[1:] | ends[:-1]
    row, starts, spans, lengths = row[kept], starts[kept], spans[kept], lengths[kept]
    rows = np.arange(len(fresh))
    first, last = np.searchsorted(row, rows), np.searchsorted(row, rows, "right") - 1
    last_read = first
    if len(rows):
        read = np.where(lengths > 0, np.arange(len(row)), 0)
        last_read = np.maximum(np.maximum.reduceat(read, first), first)
    columns = row if side_by_side else None
    return Segments(row, starts, spans, lengths, columns, first, last, last_read, fresh)
