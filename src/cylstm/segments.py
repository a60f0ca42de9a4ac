"""Rows cut at resets: each piece is a row of its own to the kernels, in place in x and y."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cylstm.params import Array

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]


class Segments(NamedTuple):
    """S segments of B rows, ordered by row and then by time; every row has at least one.

    Only a reset between two steps that are read makes a cut. One before the first step that is
    read cuts off the given state instead, and one after the last does nothing.
    """

    row: Indices  # (S,) which row each is part of
    starts: Indices  # (S,) where it starts along the first axis of x
    spans: Indices  # (S,) steps of time it spans
    lengths: Indices  # (S,) how many of them are read
    columns: Indices | None  # (S,) where along the second axis of x; None if that has one element
    first: Indices  # (B,) the segment that each row starts with
    last: Indices  # (B,) and ends with
    fresh: Flags  # (B,) whether there is a reset before the first step that a row reads

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
    if read is not None:
        cuts, fresh = _before_read_steps(reset, read)
        ends = np.full(rows, steps)
    else:
        ends = np.full(rows, steps) if lengths is None else lengths
        cuts = reset & (np.arange(steps)[:, None] < ends)
        fresh = cuts[0].copy() if steps else np.zeros(rows, bool)
    cuts[:1] = True
    row, starts = np.nonzero(cuts.T) if steps else (np.arange(rows), np.zeros(rows, np.int64))
    spans = _ends(row, starts, ends) - starts
    counts = spans
    if read is not None:
        before = np.zeros((steps + 1, rows), np.int64)
        np.cumsum(read, axis=0, out=before[1:])
        counts = before[starts + spans, row] - before[starts, row]
    return _segments(row, starts, spans, counts, row, fresh)


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
    return _segments(row, starts, spans, spans, None, fresh)


def _before_read_steps(reset: Flags, read: Flags) -> tuple[Flags, Flags]:
    """Read steps between which and the one read before there is a reset, and rows' first ones."""
    count = np.cumsum(reset, axis=0)
    known = np.zeros_like(count)  # resets up to the step read before
    if len(count):
        np.maximum.accumulate(np.where(read, count, 0)[:-1], axis=0, out=known[1:])
    after_reset = read & (count > known)
    begun = np.zeros_like(read)
    if len(count):
        np.logical_or.accumulate(read[:-1], axis=0, out=begun[1:])
    return after_reset & begun, (after_reset & ~begun).any(axis=0)


def _ends(row: Indices, starts: Indices, ends: Indices) -> Indices:
    """Where each segment ends: at the next one of its row, or with it."""
    found: Indices = ends[row]
    within = np.flatnonzero(row[1:] == row[:-1])
    found[within] = starts[within + 1]
    return found


def _segments(
    row: Indices, starts: Indices, spans: Indices, lengths: Indices, columns: Indices | None,
    fresh: Flags,
) -> Segments:  # fmt: skip
    rows = np.arange(len(fresh))
    first, last = np.searchsorted(row, rows), np.searchsorted(row, rows, "right") - 1
    return Segments(row, starts, spans, lengths, columns, first, last, fresh)

