"""Arrays of any leading shape, or lists of them, as one matrix; and results as the input was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.module import Array


class Layout(NamedTuple):
    """Leading shape of the array that the caller gave, or of each one in a list."""

    shapes: tuple[tuple[int, ...], ...]
    is_list: bool

    def outward(self, rows: Array) -> Any:
        """Lay out a (rows, width) matrix as the input was, as views of it."""
        width = rows.shape[1]
        if not self.is_list:
            return rows.reshape(*self.shapes[0], width)
        parts, end = [], 0
        for shape in self.shapes:
            start, end = end, end + math.prod(shape)
            parts.append(rows[start:end].reshape(*shape, width))
        return parts

    def inward(self, name: str, value: Any, width: int, dtype: np.dtype[Any]) -> Array:
        """Check a gradient laid out as the input was, and return it as a contiguous matrix."""

        def read(name: str, value: Any, shape: tuple[int, ...]) -> Array:
            found = checks.shape(name, checks.array(name, value, dtype), (*shape, width))
            return found.reshape(-1, width)

        if not self.is_list:
            return np.ascontiguousarray(read(name, value, self.shapes[0]))
        if not isinstance(value, (list, tuple)) or len(value) != len(self.shapes):
            got = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
            raise ValueError(f"{name}: expected a list of {len(self.shapes)} arrays, got {got}")
        parts = [read(f"{name}[{i}]", value[i], shape) for i, shape in enumerate(self.shapes)]
        return _joined(parts, width, dtype)


def matrix(name: str, value: Any, width: int, dtype: np.dtype[Any]) -> tuple[Array, Layout]:
    """Read an array of shape (..., width), or a list of them, as a matrix of all rows.

    Raises
    ------
    TypeError
        Something is not made of real numbers.
    ValueError
        A last axis is not `width` long.
    """
    if not is_list(value, 2):
        found = _last_axis(name, checks.array(name, value, dtype), width)
        return found.reshape(-1, width), Layout((found.shape[:-1],), False)
    parts = []
    for i, part in enumerate(value):
        found = checks.array(f"{name}[{i}]", part, dtype)
        if found.shape == (0,):  # a sequence of no steps
            found = found.reshape(0, width)
        parts.append(_last_axis(f"{name}[{i}]", found, width))
    rows = _joined([part.reshape(-1, width) for part in parts], width, dtype)
    return rows, Layout(tuple(part.shape[:-1] for part in parts), True)


def vector(name: str, value: Any, read: Callable[[str, Any], Array]) -> tuple[Array, Layout]:
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
    except ValueError:  # of different lengths
        return True
    except Exception:  # another library's, which the checks will name
        return False
    return False


def _last_axis(name: str, found: Array, width: int) -> Array:
    if found.ndim == 0 or found.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., {width}), got {found.shape}")
    return found


def _joined(parts: list[Array], width: int, dtype: np.dtype[Any]) -> Array:
    joined: Array = np.concatenate(parts or [np.empty((0, width), dtype)])
    return joined
