"""Every check of an argument, and its message: what was expected and what came."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.params import Array

if TYPE_CHECKING:
    import numpy.typing as npt

READY = 0x101  # NumPy's C_CONTIGUOUS | ALIGNED
WRITEABLE = READY | 0x400


def size(name: str, value: Any, least: int = 1) -> int:
    """Check an integer of at least `least`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if not least <= n < 2**31:
        raise ValueError(f"{name}: expected an integer from {least} to 2**31 - 1, got {n}")
    return n


def number(name: str, value: Any, low: float, high: float) -> float:
    """Check a real number in [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    x = float(value)
    if not low <= x <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return x


def probability(name: str, value: Any) -> float:
    """Check a probability below 1."""
    p = number(name, value, 0, 1)
    if p == 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, got {value!r}")
    return p


def bound(name: str, value: Any) -> float | None:
    """Check a positive number, or None for no bound."""
    if value is None:
        return None
    x = number(name, value, 0, 1e30)
    if x == 0:
        raise ValueError(f"{name}: expected a number above 0, or None, got {value!r}")
    return x


def excludes(name: str, given: Any, other: str, there: bool, value: Any) -> None:
    """Refuse two arguments that make no sense together."""
    if given and there:
        raise ValueError(f"{name}: expected its default with {other}={value}, got {given!r}")


def generator(name: str, value: Any) -> np.random.Generator:
    """Return a random generator: the given one, or a new one of a seed."""
    try:
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name}: expected None, an integer or a numpy.random.Generator, got {value!r}"
        ) from None


def flag(name: str, value: Any) -> bool:
    """Check True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check one of several words."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def dtype(value: Any) -> np.dtype[Any]:
    """Check a floating dtype that the kernels have."""
    try:
        found = np.dtype(value if value is not None else "object")
    except TypeError:
        raise TypeError(f"dtype: expected 'float32' or 'float64', got {value!r}") from None
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected 'float32' or 'float64', got {value!r}")
    return np.dtype(np.float32 if found == np.float32 else np.float64)


def read(name: str, value: Any) -> Array:
    """Return as an ndarray what NumPy can read."""
    try:
        return np.asarray(value)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected an array, got {error}") from None


def array(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return real numbers as the kernels read them: cast, aligned, native, last axis contiguous."""
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.num & READY == READY:
        return value
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of real numbers: {error}") from None
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {found.dtype}")
    itemsize = dtype.itemsize
    if (
        found.dtype is dtype
        and found.flags.aligned
        and found.ndim > 0
        and (found.shape[-1] <= 1 or found.strides[-1] == itemsize)
        and not any(stride % itemsize for stride in found.strides)
    ):
        return found
    return np.array(found, dtype, order="C", ndmin=found.ndim)


def shape(name: str, value: Array, expected: tuple[int, ...]) -> Array:
    """Check the shape of an array."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {value.shape}")
    return value


def out(value: Any, expected: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Check an array that a result is written into."""
    if type(value) is np.ndarray and value.dtype is dtype and value.shape == expected:
        if value.flags.num & WRITEABLE == WRITEABLE:
            return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"out: expected an ndarray, got {type(value).__name__}")
    shape("out", value, expected)
    if value.dtype != dtype or not value.dtype.isnative:
        raise TypeError(f"out: expected dtype {dtype}, got {value.dtype.str}")
    itemsize = dtype.itemsize
    if not value.flags.writeable or not value.flags.aligned:
        raise ValueError("out: expected a writeable, aligned array, got one that is not")
    if value.size and (
        (value.shape[-1] > 1 and value.strides[-1] != itemsize)
        or any(stride % itemsize for stride in value.strides)
    ):
        raise ValueError(f"out: expected a contiguous last axis, got strides {value.strides}")
    return value


def lengths(value: Any, rows: int, steps: int) -> npt.NDArray[np.int64]:
    """Check the number of valid steps of each row; return a copy."""
    found = read("lengths", value).copy()
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got dtype {found.dtype}")
    shape("lengths", found, (rows,))
    if found.size and (found.min() < 0 or found.max() > steps):
        raise ValueError(
            f"lengths: expected values from 0 to {steps}, got {found.min()} to {found.max()}"
        )
    return np.ascontiguousarray(found, np.int64)


def parts(name: str, value: Any, expected: Sequence[str]) -> tuple[Any, ...]:
    """Check the number of parts of a state: the value itself, or a tuple of several."""
    if len(expected) == 1:
        return (value,)
    if type(value) is tuple and len(value) == len(expected):
        return value
    if not isinstance(value, (tuple, list)) or len(value) != len(expected):
        raise TypeError(
            f"{name}: expected a tuple ({', '.join(expected)}), got "
            + (f"{len(value)} values" if isinstance(value, (tuple, list)) else repr(type(value)))
        )
    return tuple(value)
