"""Every check of an argument, and its message: what was expected and what came."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.module import Array

if TYPE_CHECKING:
    import numpy.typing as npt

Hint = Callable[[tuple[int, ...]], str]  # what to add to the message about a wrong shape
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


def optional_number(name: str, value: Any, low: float, high: float) -> float | None:
    """Check a real number in [low, high], or None."""
    return None if value is None else number(name, value, low, high)


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
    """Refuse two incompatible arguments."""
    if given and there:
        raise ValueError(f"{name}: expected its default with {other}={value}, got {given!r}")


def generator(name: str, value: Any) -> np.random.Generator:
    """Return a random generator: the given one, or a new one of a seed."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
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


def bias(name: str, value: Any) -> bool | str:
    """Check True, False or "single"."""
    if isinstance(value, str) and value == "single":
        return "single"
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True, False or 'single', got {value!r}")
    return bool(value)


def optional_choice(name: str, value: Any, choices: Sequence[str]) -> str | None:
    """Check one of several words, or None."""
    return None if value is None else choice(name, value, choices)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check one of several words."""
    if not isinstance(value, str) or value not in choices:
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
    """Return as an ndarray, without a copy if possible, what NumPy or DLPack can read."""
    if type(value) is np.ndarray:
        return value
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        if hasattr(value, "filled") and np.any(value.mask):
            raise TypeError("masked values: pass its .filled(...), and mask= for steps")
        return np.asarray(value)
    except Exception as error:
        # Whatever another library raises; which element of a list it came from is found here.
        if isinstance(value, (list, tuple)):
            for i, element in enumerate(value):
                if not isinstance(element, (int, float)):
                    read(f"{name}[{i}]", element)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = _unreadable(value) or str(error).partition("\n")[0]
        raise kind(f"{name}: expected an array in this machine's memory, got {reason}") from None


def _unreadable(value: Any) -> str:
    """Why a tensor cannot be read, and what to do; empty if it is not known."""
    device = str(getattr(getattr(value, "device", None), "type", "cpu"))
    layout, dtype = str(getattr(value, "layout", "")), str(getattr(value, "dtype", ""))
    if device == "meta":
        return "a tensor on the meta device, which has no values"
    words: list[str] = []
    calls = ""
    if getattr(value, "requires_grad", False) is True:
        words, calls = [*words, "that requires grad"], calls + ".detach()"
    if device != "cpu":
        words, calls = [*words, f"on device {device}"], calls + ".cpu()"
    if "sparse" in layout or "mkldnn" in layout:
        words, calls = [*words, f"of layout {layout}"], calls + ".to_dense()"
    if "bfloat16" in dtype or "float8" in dtype:
        words, calls = [*words, f"of dtype {dtype}"], calls + ".float()"
    return f"a tensor {', '.join(words)}: pass its {calls}" if words else ""


def real(name: str, value: Any) -> Array:
    """Return an array of real numbers of whatever dtype they come in."""
    found = read(name, value)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {_what(value, found)}")
    return found


def _what(value: Any, found: Array) -> str:
    """Say what came where numbers of another kind were expected."""
    if found.dtype.name.startswith(("bfloat16", "float8")):
        return f"dtype {found.dtype}: pass its .astype('float32')"
    if found.dtype.kind == "O" and type(value) is not np.ndarray:
        return f"dtype object, from {type(value).__name__}"
    if found.dtype.kind == "O" and any(isinstance(part, np.ndarray) for part in found.flat):
        return "dtype object, an array of arrays: pass its .tolist()"
    return f"dtype {found.dtype}"


def array(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return real numbers as the kernels read them: cast, aligned, native, last axis contiguous."""
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.num & READY == READY:
        return value
    found = real(name, value)
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


def tensor(name: str, value: Any) -> Array:
    """Return weights as an ndarray: detached, bfloat16 and smaller floats as float32.

    Integers of 8 bits are refused: they are quantised weights, whose scale is elsewhere.
    """
    if getattr(value, "requires_grad", False) is True:
        value = value.detach()
    kind = str(getattr(value, "dtype", ""))
    if ("bfloat16" in kind or "float8" in kind) and hasattr(value, "float"):
        value = value.float()
    found = read(name, value)
    if found.dtype.name.startswith(("bfloat16", "float8")):
        found = found.astype(np.float32)
    if found.dtype.kind in "iu" and found.dtype.itemsize == 1:
        raise TypeError(
            f"{name}: expected real numbers, got dtype {found.dtype}: multiply quantised weights "
            "by their scale"
        )
    return real(name, found)


def shape(name: str, value: Array, expected: tuple[int, ...]) -> Array:
    """Check the shape of an array."""
    if value.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {value.shape}")
    return value


def out(value: Any, expected: tuple[int, ...], dtype: np.dtype[Any], name: str = "out") -> Array:
    """Check an array that a result is written into."""
    if type(value) is np.ndarray and value.dtype is dtype and value.shape == expected:
        if value.flags.num & WRITEABLE == WRITEABLE:
            return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(value).__name__}")
    shape(name, value, expected)
    if value.dtype != dtype or not value.dtype.isnative:
        raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype.str}")
    itemsize = dtype.itemsize
    if value.size and _overlaps_itself(value):
        raise ValueError(f"{name}: expected elements of its own, got strides {value.strides}")
    if not value.flags.writeable or not value.flags.aligned:
        raise ValueError(f"{name}: expected a writeable, aligned array, got one that is not")
    if value.size and (
        (value.shape[-1] > 1 and value.strides[-1] != itemsize)
        or any(stride % itemsize for stride in value.strides)
    ):
        raise ValueError(f"{name}: expected a contiguous last axis, got strides {value.strides}")
    return value


def _overlaps_itself(array: Array) -> bool:
    """Whether an axis steps over less than what the elements along the smaller ones take up."""
    reach = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if n > 1 and stride < reach:
            return True
        reach += (n - 1) * stride
    return False


def lengths(
    value: Any, rows: int | None, steps: int | None, hint: Hint = lambda shape: ""
) -> npt.NDArray[np.int64]:
    """Check the number of valid steps of each row and return a copy; None: any number."""
    # Copied before it is checked: another thread may be writing into it.
    found = np.array(read("lengths", value))
    if found.dtype.kind not in "iu" and not empty_list(value):
        raise TypeError(f"lengths: expected integers, got {_what(value, found)}")
    if found.ndim != 1 or (rows is not None and len(found) != rows):
        count = "(B,)" if rows is None else (rows,)
        raise ValueError(f"lengths: expected shape {count}, got {found.shape}{hint(found.shape)}")
    most = 2**63 - 1 if steps is None else steps
    if found.size and (found.min() < 0 or found.max() > most):
        raise ValueError(
            f"lengths: expected values from 0 to {most}, got {found.min()} to {found.max()}"
        )
    return found.astype(np.int64, copy=False)


def empty_list(value: Any) -> bool:
    """Whether it is an empty list, which NumPy makes an array of floats of."""
    return isinstance(value, (list, tuple)) and all(empty_list(part) for part in value)


def booleans(
    name: str,
    value: Any,
    expected: tuple[int, ...] | None,
    hint: Hint = lambda shape: "",
) -> npt.NDArray[np.bool_]:
    """Check booleans, or integers 0 and 1, of a shape if one is given, and return a copy."""
    found = np.array(read(name, value))  # copied first, as another thread may be writing into it
    if empty_list(value) and expected is not None and 0 in expected:
        return np.zeros(expected, bool)
    if expected is not None and found.shape != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {found.shape}{hint(found.shape)}")
    if found.dtype.kind in "iu":
        if found.size and not ((found == 0) | (found == 1)).all():
            raise ValueError(
                f"{name}: expected booleans or integers 0 and 1, got {found.min()} to {found.max()}"
            )
    elif found.dtype != bool:
        raise TypeError(f"{name}: expected booleans or integers 0 and 1, got {_what(value, found)}")
    return found.astype(bool, copy=False)


def shares_memory(a: Array, b: Array) -> bool:
    """Whether two arrays have an element in common, or it would take long to find out."""
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, 10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


#: What to say of a list of pairs by layer, as cells stacked by hand give.
PAIRS = "values; of pairs (h, c) by layer make h, c = map(np.stack, zip(*pairs))"


def parts(name: str, value: Any, expected: Sequence[str]) -> tuple[Any, ...]:
    """Check the number of parts of a state: the value itself, or a tuple of several."""
    if len(expected) == 1:
        return (value,)
    if type(value) is tuple and len(value) == len(expected):
        return value
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{name}: expected a tuple ({', '.join(expected)}), got {type(value).__name__}"
        )
    if len(value) != len(expected):
        pairs = all(isinstance(part, (tuple, list)) and len(part) == 2 for part in value)
        raise TypeError(
            f"{name}: expected a tuple ({', '.join(expected)}), got {len(value)} "
            + (PAIRS if pairs and value else "values")
        )
    return tuple(value)
