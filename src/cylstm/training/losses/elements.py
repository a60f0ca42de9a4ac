"""What all losses share: which elements count, lists of sequences, and the reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.module import Array

if TYPE_CHECKING:
    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]


class Steps(NamedTuple):
    """Arguments that all losses have, as the caller gave them."""

    lengths: Any
    mask: Any
    batch_first: Any
    reduction: Any


class Elements:
    """The elements of a prediction and its target that count, one after the other.

    They may still be the caller's own: not to be written into, and to be copied before a check,
    since another thread may be writing into them.

    Parameters
    ----------
    names : pair of str
        What the caller calls the prediction and the target.
    prediction, target : Any
        Two arrays, or two lists with an array of shape (T_i, ...) for each sequence.
    steps : Steps
    kinds : str
        Kinds of dtypes that a target may have.
    last : pair of str and int, optional
        Name of the axis that only the prediction has, and its size if the list is empty.
    ignore_index : int, optional
        Target that does not count.

    Attributes
    ----------
    prediction : ndarray of shape (n,) or, with `last`, (n, size of the last axis)
        float32 or float64.
    target : ndarray of shape (n,)
    """

    def __init__(
        self,
        names: tuple[str, str],
        prediction: Any,
        target: Any,
        steps: Steps,
        *,
        kinds: str = "fiu",
        last: tuple[str, int] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        self._names, self._kinds, self._last = names, kinds, last
        self._reduction = checks.choice("reduction", steps.reduction, ("mean", "sum"))
        batch_first = checks.flag("batch_first", steps.batch_first)
        self._rows: list[tuple[int, np.dtype[Any]]] | None = None
        sequences = _sequences(prediction, 1 if last is None else 2)
        if sequences is None:
            prediction, target, mask = self._read("", prediction, target, steps.mask)
        else:
            prediction, target, mask = self._read_list(sequences, target, steps)
        self._valid: Mask | None = None
        if steps.lengths is not None:
            self._narrow(_within(names[1], steps.lengths, target.shape, batch_first))
        if mask is not None:
            self._narrow(mask)
        if ignore_index is not None:
            self._narrow(target != ignore_index)
        self._shape, self._dtype = prediction.shape, prediction.dtype
        self.target = self._counting(target).ravel()
        last_axis = () if last is None else self._shape[-1:]
        self.prediction = self._counting(prediction).reshape(self.target.size, *last_axis)

    def _read(
        self, at: str, prediction: Any, target: Any, mask: Any
    ) -> tuple[Array, Array, Mask | None]:
        """Check two arrays and their mask."""
        name = self._names[0] + at
        found = _floats(name, prediction)
        shape = found.shape
        if self._last is not None:
            axis = self._last[0]
            if found.ndim < 2 or shape[-1] == 0:
                raise ValueError(
                    f"{name}: expected shape (..., {axis}) with {axis} > 0, got {shape}"
                )
            shape = shape[:-1]
        targets = checks.read(self._names[1] + at, target)
        checks.shape(self._names[1] + at, targets, shape)
        if targets.size and targets.dtype.kind not in self._kinds:
            expected = "integers" if self._kinds == "iu" else "real numbers"
            raise TypeError(f"{self._names[1]}{at}: expected {expected}, got dtype {targets.dtype}")
        # The dtype of an empty sequence says nothing: it must not become the dtype of all.
        if not targets.size:
            targets = np.zeros(shape, bool)
        return found, targets, None if mask is None else _mask("mask" + at, mask, shape)

    def _read_list(
        self, sequences: tuple[Any, ...], target: Any, steps: Steps
    ) -> tuple[Array, Array, Mask | None]:
        """Sequences laid end to end."""
        if steps.lengths is not None:
            raise ValueError(
                f"lengths: expected None with a list as {self._names[0]}, got {steps.lengths!r}"
            )
        count = len(sequences)
        targets = _as_many(self._names[1], target, count)
        masks = [None] * count if steps.mask is None else _as_many("mask", steps.mask, count)
        read = [
            self._read(f"[{i}]", *given)
            for i, given in enumerate(zip(sequences, targets, masks, strict=True))
        ]
        for i, (row, _, _) in enumerate(read):
            if row.ndim == 0:
                raise ValueError(f"{self._names[0]}[{i}]: expected shape (T, ...), got ()")
            checks.shape(f"{self._names[0]}[{i}]", row, row.shape[:1] + read[0][0].shape[1:])
        self._rows = [(len(row), row.dtype) for row, _, _ in read]
        if not read:
            last = () if self._last is None else self._last[1:]
            return np.zeros((0, *last)), np.zeros(0, bool), None
        wide = [
            np.ones(t.shape, bool) if m is None else np.broadcast_to(_with_axes(m, t.ndim), t.shape)
            for _, t, m in read
        ]
        rows, row_targets, _ = zip(*read, strict=True)
        return np.concatenate(rows), np.concatenate(row_targets), np.concatenate(wide)

    def _narrow(self, mask: Mask) -> None:
        """Leave out what is not in the mask of leading axes of the targets."""
        if self._valid is not None:
            axes = max(self._valid.ndim, mask.ndim)
            mask = _with_axes(self._valid, axes) & _with_axes(mask, axes)
        self._valid = None if mask.all() else mask

    def _counting(self, a: Array) -> Array:
        chosen: Array = a if self._valid is None else a[self._valid]
        return chosen

    def along(self, name: str, value: Any) -> Array | float:
        """Return what is to be multiplied with the elements, such as weights; None is 1."""
        if value is None:
            return 1.0
        found = numbers(name, value)
        shape = self._shape if self._rows is None else self._shape[1:]
        try:
            np.broadcast_to(found, shape)
        except ValueError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {shape}, got {found.shape}"
            ) from None
        return self._counting(np.broadcast_to(found, self._shape)).ravel()

    def reduce(
        self, losses: Array, slopes: Array, divisor: float | None = None
    ) -> tuple[float, Any]:
        """Return the loss, and its gradient laid out as the prediction was.

        Parameters
        ----------
        losses : ndarray
            Loss of each element.
        slopes : ndarray of the shape of `prediction`
            Derivative of each element's loss. Will be changed.
        divisor : float, optional
            What a mean is divided by; the number of losses by default.
        """
        if self._reduction == "sum":
            divisor = 1.0
        elif divisor is None:
            divisor = losses.size
        if not divisor:
            return 0.0, self._laid_out(np.zeros_like(slopes))
        slopes /= divisor
        return float(losses.sum(dtype=np.float64) / divisor), self._laid_out(slopes)

    def _laid_out(self, slopes: Array) -> Any:
        """Lay out the elements that count as the caller did, with 0 elsewhere."""
        gradient: Array
        if self._valid is None:
            gradient = slopes.astype(self._dtype, copy=False).reshape(self._shape)
        else:
            gradient = np.zeros(self._shape, self._dtype)
            count = np.count_nonzero(self._valid)
            gradient[self._valid] = slopes.reshape(count, *self._shape[self._valid.ndim :])
        if self._rows is None:
            return gradient
        ends = np.cumsum([length for length, _ in self._rows], dtype=int)
        return [
            gradient[end - length : end].astype(dtype, copy=False)
            for end, (length, dtype) in zip(ends, self._rows, strict=True)
        ]


def _sequences(value: Any, axes: int) -> tuple[Any, ...] | None:
    """Return what a list holds if it is an array for each sequence; None if it is one array.

    Lists of numbers are one array where they have the shape of one.
    """
    if not isinstance(value, (list, tuple)):
        return None
    entries = tuple(value)
    if not entries or any(len(getattr(entry, "shape", ())) >= axes for entry in entries):
        return entries
    try:
        np.asarray(entries)
    except ValueError:  # lists of several lengths
        return entries
    except (RuntimeError, TypeError):  # `checks.read` will say why
        return None
    return None


def _as_many(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """Check a list with as many arrays as there are sequences; an empty array is an empty list."""
    if not isinstance(value, (list, tuple)) and not (count == 0 and np.size(value) == 0):
        raise TypeError(f"{name}: expected a list of {count} arrays, got {type(value).__name__}")
    if len(value) != count:
        raise ValueError(f"{name}: expected a list of {count} arrays, got {len(value)}")
    return tuple(value)


def _within(name: str, lengths: Any, shape: tuple[int, ...], batch_first: bool) -> Mask:
    """Mask of the first two axes of a shape: the steps within the lengths."""
    if len(shape) < 2:
        raise ValueError(f"{name}: with lengths, expected at least 2 axes, got shape {shape}")
    rows, steps = shape[:2] if batch_first else shape[1::-1]
    mask: Mask = np.arange(steps) < checks.lengths(lengths, rows, steps)[:, np.newaxis]
    return mask if batch_first else mask.T


def _mask(name: str, value: Any, shape: tuple[int, ...]) -> Mask:
    """Check booleans, or 0 and 1, of the leading axes of a shape; return a copy."""
    found = checks.read(name, value).copy()
    if found.ndim == 0 or found.shape != shape[: found.ndim]:
        raise ValueError(f"{name}: expected leading axes of the shape {shape}, got {found.shape}")
    if found.size and found.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected booleans or integers 0 and 1, got dtype {found.dtype}")
    mask: Mask = found == 1
    wrong = found[~mask & (found != 0)]
    if wrong.size:
        raise ValueError(f"{name}: expected booleans or integers 0 and 1, got {wrong[0]}")
    return mask


def _with_axes(mask: Mask, axes: int) -> Mask:
    """Return a mask of leading axes with axes of 1 after them."""
    return mask.reshape(mask.shape + (1,) * (axes - mask.ndim))


def _floats(name: str, value: Any) -> Array:
    """Return an array of float32 or float64."""
    found = checks.read(name, value)
    native = found.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {found.dtype}")
    return found.astype(native, copy=False)


def numbers(name: str, value: Any) -> Array:
    """Return a copy of an array of real numbers, as float64."""
    found = checks.read(name, value)
    if found.size and found.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {found.dtype}")
    return np.array(found, np.float64, order="C")
