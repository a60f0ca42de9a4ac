"""Arrays of any leading shape, or lists of them, as one matrix; and results laid out likewise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.params import Array

Read = Callable[[str, Any], Array]


class Layout(NamedTuple):
    """Leading shapes of what the caller gave: of one array, or of each in a list."""

    shapes: tuple[tuple[int, ...], ...]
    is_list: bool

    def outward(self, rows: Array) -> Any:
        """Lay out a (rows, width) matrix as the caller did what he gave; views of it."""
        if not self.is_list:
            return rows.reshape(*self.shapes[0], -1) if len(rows) else self._empty(rows)
        ends = np.cumsum([_count(shape) for shape in self.shapes])
        return [
            rows[end - _count(shape) : end].reshape(*shape, rows.shape[1])
            for shape, end in zip(self.shapes, ends, strict=True)
        ]

    def _empty(self, rows: Array) -> Array:
        return rows.reshape(*self.shapes[0], rows.shape[1])

    def inward(self, name: str, value: Any, width: int, dtype: np.dtype[Any]) -> Array:
        """Check a gradient that is laid out so, and return it as a contiguous matrix."""
        if not self.is_list:
            found = checks.shape(name, checks.array(name, value, dtype), (*self.shapes[0], width))
            return np.ascontiguousarray(found.reshape(-1, width))
        if not isinstance(value, (list, tuple)) or len(value) != len(self.shapes):
            got = f"{len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__
            raise ValueError(f"{name}: expected a list of {len(self.shapes)} arrays, got {got}")
        parts = [
            checks.shape(part_name, checks.array(part_name, part, dtype), (*shape, width))
            for i, (part, shape) in enumerate(zip(value, self.shapes, strict=True))
            if (part_name := f"{name}[{i}]")
        ]
        return _joined([part.reshape(-1, width) for part in parts], (0, width), dtype)


def matrix(name: str, value: Any, width: int, dtype: np.dtype[Any]) -> tuple[Array, Layout]:
    """Read an array of shape (..., width), or a list of them, as a matrix of all rows.

    Raises
    ------
    TypeError
        Something is not made of real numbers.
    ValueError
        A last axis is not `width` long.
    """

    def read(name: str, value: Any) -> Array:
        found = checks.array(name, value, dtype)
        if found.shape == (0,) and name.endswith("]"):  # a sequence of no steps, in a list
            found = found.reshape(0, width)
        if found.ndim == 0 or found.shape[-1] != width:
            raise ValueError(f"{name}: expected shape (..., {width}), got {found.shape}")
        return found

    if not is_list(value, 2):
        found = read(name, value)
        return found.reshape(-1, width), Layout((found.shape[:-1],), False)
    parts = [read(f"{name}[{i}]", part) for i, part in enumerate(value)]
    rows = _joined([part.reshape(-1, width) for part in parts], (0, width), dtype)
    return rows, Layout(tuple(part.shape[:-1] for part in parts), True)


def vector(name: str, value: Any, read: Read) -> tuple[Array, Layout]:
    """Read an array of any shape, or a list of arrays, as a vector of all elements."""
    if not is_list(value, 1) or len(value) == 0:
        found = read(name, value)
        return found.reshape(-1), Layout((found.shape,), False)
    parts = [read(f"{name}[{i}]", part) for i, part in enumerate(value)]
    joined: Array = np.concatenate([part.reshape(-1) for part in parts])
    return joined, Layout(tuple(part.shape for part in parts), True)


def is_list(value: Any, axes: int) -> bool:
    """Whether it is a list of arrays with so many axes or more, or of nested lists that differ.

    Nested lists of numbers that make an array are one, as everywhere in NumPy.
    """
    if not isinstance(value, (list, tuple)):
        return False
    if any(np.ndim(part) >= axes for part in value if hasattr(part, "shape")):
        return True
    if not any(isinstance(part, (list, tuple)) for part in value):
        return len(value) == 0
    try:
        np.asarray(value)
    except ValueError:  # inhomogeneous
        return True
    except Exception:  # another library's, which the checks will name
        return False
    return False


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.intp))


def _joined(parts: list[Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    joined: Array = np.concatenate(parts or [np.empty(shape, dtype)])
    return joined
