"""States of streams: rows of numbers, all layers' end to end, and as layers take and give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.engine import states
from cylstm.engine.states import State
from cylstm.module import Array

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.layers.recurrent import Recurrent

#: From which |h| on a unit counts as saturated.
SATURATED = 0.99


class Rows(NamedTuple):
    """What `cylstm.states` has to know of rows that are not those of a call."""

    rows: int
    batched: bool = True
    segments: None = None

    def turned_hint(self, shape: tuple[int, ...]) -> str:
        """Add nothing to the message about a wrong shape."""
        return ""


class StateStatistics(NamedTuple):
    """Numbers that tell how the states of streams are, each an array with one element per stream.

    Attributes
    ----------
    norm : ndarray of float64
        Euclidean norm of the whole state, all layers' h and c.
    largest : ndarray of float64
        Largest absolute value in it.
    saturated : ndarray of float64
        Fraction of the hidden units of which abs(h) is at least 0.99.
    finite : ndarray of bool
        Whether there is neither NaN nor infinity in it.
    """

    norm: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float64]
    saturated: npt.NDArray[np.float64]
    finite: npt.NDArray[np.bool_]


def refuse_what_looks_ahead(layer: Recurrent) -> None:
    """Refuse layers whose output at a step depends on later ones."""
    for name in ("bidirectional", "go_backwards"):
        if getattr(layer, name):
            raise ValueError(
                f"{name}: expected False for a stream, got True: such a layer begins at the end "
                "of the sequence, which a stream does not have yet"
            )


def checked_attention(value: Any, rows: int, dtype: np.dtype[Any]) -> Array:
    """Return one number for each row as the kernels read them; of one row also a number."""
    if value is None:
        raise ValueError(f"attention: expected shape {(rows,)}, got None")
    found = checks.array("attention", value, dtype)
    if found.ndim == 0 and rows == 1:
        found = found.reshape(1)
    return np.ascontiguousarray(checks.shape("attention", found, (rows,)))


def sizes(layer: Recurrent) -> list[tuple[int, ...]]:
    """Numbers of each part of a row's state, by layer."""
    others = [layer.hidden_sizes] * (len(layer.states) - 1)
    return list(zip(layer.output_sizes, *others, strict=True))


def width(layer: Recurrent) -> int:
    """S, all numbers of a row's state."""
    return sum(map(sum, sizes(layer)))


def split(layer: Recurrent, rows: Array) -> list[states.Parts]:
    """View rows (n, S) as parts of layers, each of shape (1, n, size)."""
    found, at = [], 0
    for parts in sizes(layer):
        views = []
        for size in parts:
            views.append(rows[None, :, at : at + size])
            at += size
        found.append(tuple(views))
    return found


def outward(layer: Recurrent, rows: Array, batched: bool = True) -> State:
    """Rows (n, S) as the state that a call returns, in arrays of its own."""
    parts = [tuple(part.copy() for part in own) for own in split(layer, rows)]
    return states.outward(layer, parts, Rows(len(rows), batched))  # type: ignore[arg-type]


def inward(layer: Recurrent, state: State, count: int, batched: bool = True) -> Array:
    """Check a state as a call takes it, None the initial one; return rows of shape (count, S)."""
    batch: Any = Rows(count, batched)
    given = states.spread(layer, states.inward(layer, "state", state, batch), batch)
    rows = np.zeros((count, width(layer)), layer.dtype)
    for views, parts in zip(split(layer, rows), given, strict=True):
        for view, part in zip(views, parts, strict=True):
            if part is not None:
                view[...] = part
    return rows


def initial(layer: Recurrent, count: int = 1) -> Array:
    """Rows (count, S) of the initial state: zeros, or what has been learned."""
    if not layer.learn_initial_state:
        return inward(layer, None, count)
    with layer._lock:  # so that a change by another thread is seen whole or not at all
        return inward(layer, None, count)


def statistics(layer: Recurrent, rows: Array) -> StateStatistics:
    """Describe rows (n, S)."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = rows.astype(np.float64)
        norm = np.sqrt((exact * exact).sum(axis=1))
    hidden = np.concatenate([parts[0][0] for parts in split(layer, exact)], axis=1)
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(exact), axis=1)
    saturated = (np.abs(hidden) >= SATURATED).mean(axis=1)
    return StateStatistics(norm, np.abs(exact).max(axis=1), saturated, finite)


def writeable(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Check an array for results; return it, or one to copy from where the kernels cannot write."""
    found = checks.out(out, shape, dtype)
    if type(found) is np.ndarray and found.flags.num & checks.WRITEABLE == checks.WRITEABLE:
        return found
    return np.empty(shape, dtype)
