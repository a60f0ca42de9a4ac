"""One batch of sequences: its layout, which steps are read, and which outputs are wanted.

Inside, arrays are (T, B, width). Ragged input is one array of all rows end to end, with B = 1 and
the place where each row starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.cells import Extras
from cylstm.params import Array

if TYPE_CHECKING:
    import numpy.typing as npt

POOLED = ("last", "mean", "max")


class Batch:
    """The sequences of one call.

    Attributes
    ----------
    x : ndarray of shape (T, B, I) or, ragged, (sum of T, 1, I)
    steps, rows : int
        T, or the longest; and the number of sequences.
    lengths : ndarray of int64 of shape (rows,) or None
    batched, batch_first, ragged, padded : bool
        Of the caller's layout; and whether there may be steps that are not read.
    """

    batched = True
    ragged = padded = False
    plain = True  # an array, read whole or by lengths, of which all outputs are wanted
    direct = False  # and laid out as inside
    lengths: npt.NDArray[np.int64] | None = None
    mask: Array | None = None
    starts: Array | None = None
    pick, every = "all", 1

    def __init__(
        self, x: Any, size: int, dtype: np.dtype[Any], batch_first: bool, lengths: Any, mask: Any,
        return_: Any,
    ) -> None:  # fmt: skip
        self.batch_first = batch_first
        if type(x) is not np.ndarray and self._is_ragged(x):
            self._read_ragged(x, size, dtype, lengths, mask)
        else:
            x = checks.array("x", x, dtype)
            if x.ndim != 3:
                self.batched = False
            if (self.batched is False and x.ndim != 2) or x.shape[-1] != size:
                raise ValueError(
                    f"x: expected shape {'(B, T, I)' if batch_first else '(T, B, I)'} or (T, I) "
                    f"with I = input_size = {size}, got {x.shape}"
                )
            self.direct = self.batched and not batch_first and return_ == "all" and mask is None
            self.x = x if self.direct else self.inward(x)
            self.steps, self.rows, _ = self.x.shape
            if lengths is not None or mask is not None:
                self._read_steps(lengths, mask)
        if return_ != "all":
            self._read_return(return_)

    @staticmethod
    def _is_ragged(x: Any) -> bool:
        """Whether it is a list of arrays, one for each row; nested lists are an array."""
        return isinstance(x, (list, tuple)) and (
            not x or any(isinstance(row, np.ndarray) and row.ndim == 2 for row in x)
        )

    def _read_steps(self, lengths: Any, mask: Any) -> None:
        """Which steps are read, if not all."""
        self.padded = True
        if mask is None:
            self.lengths = checks.lengths(lengths, self.rows, self.steps)
        elif lengths is None:
            self._read_mask(mask)
        else:
            raise ValueError("lengths, mask: expected at most one of them, got both")

    def _read_ragged(
        self, x: Any, size: int, dtype: np.dtype[Any], lengths: Any, mask: Any
    ) -> None:
        for name, value in (("lengths", lengths), ("mask", mask)):
            if value is not None:
                raise ValueError(f"{name}: expected None with a list as x, got {value!r}")
        rows = [checks.array(f"x[{i}]", row, dtype) for i, row in enumerate(x)]
        for i, row in enumerate(rows):
            if row.ndim != 2 or row.shape[1] != size:
                raise ValueError(f"x[{i}]: expected shape (T, {size}), got {row.shape}")
        self.ragged, self.plain = True, False
        self.x = np.concatenate(rows or [np.empty((0, size), dtype)])[:, None]
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self.starts = starts_of(self.lengths)
        self.rows, self.steps = len(rows), int(self.lengths.max(initial=0))

    def _read_mask(self, mask: Any) -> None:
        found = np.asarray(mask)
        if found.dtype != bool:
            raise TypeError(f"mask: expected booleans, got dtype {found.dtype}")
        shape: tuple[int, ...] = (self.steps,)
        if self.batched:
            shape = (self.rows, self.steps) if self.batch_first else (self.steps, self.rows)
        found = np.array(self.inward(checks.shape("mask", found, shape)), order="C")
        self.lengths = found.sum(axis=0, dtype=np.int64)  # of the copy: others may write the mask
        self.plain = False
        self.mask = found.view(np.uint8)

    def _read_return(self, return_: Any) -> None:
        self.plain = False
        if isinstance(return_, str):
            self.pick = checks.choice("return_", return_, ("all", *POOLED))
        else:
            self.pick, self.every = "every", checks.size("return_", return_)

    def inward(self, a: Array) -> Array:
        """From the caller's layout to (T, B, ...)."""
        if not self.batched:
            with_row: Array = a[:, None]
            return with_row
        return a.swapaxes(0, 1) if self.batch_first else a

    def outward(self, a: Array) -> Array:
        """From (T, B, ...) to the caller's layout."""
        if not self.batched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first and not self.ragged else a

    def empty(self, steps: int, width: int, dtype: np.dtype[Any], zero: bool = False) -> Array:
        """Make a (T, B, width) array, in memory order of the caller's layout."""
        make = np.zeros if zero else np.empty
        if self.batch_first and self.batched and not self.ragged:
            return make((self.rows, steps, width), dtype).swapaxes(0, 1)
        return make((steps, self.x.shape[1], width), dtype)

    def x_outward(self, dx: Array) -> Any:
        """Lay out a gradient of x as the caller did x."""
        if not self.ragged or self.lengths is None:
            return self.outward(dx)
        return split(dx, self.lengths)

    # Outputs

    @property
    def y_lengths(self) -> npt.NDArray[np.int64]:
        """Outputs of each ragged row."""
        lengths = np.empty(0, np.int64) if self.lengths is None else self.lengths
        found: npt.NDArray[np.int64] = lengths // self.every
        return found

    def y_shape(self, width: int) -> tuple[int, ...]:
        """Shape of y as the caller sees it; ragged: as inside."""
        if self.pick in POOLED:
            return (self.rows, width) if self.batched else (width,)
        if self.ragged:
            return (int(self.y_lengths.sum()), 1, width)
        steps = self.steps // self.every
        if not self.batched:
            return (steps, width)
        return (self.rows, steps, width) if self.batch_first else (steps, self.rows, width)

    def y_outward(self, y: Array) -> Any:
        """Turn merged outputs into what the caller gets."""
        if self.plain:
            return self.outward(y)
        if self.pick in POOLED:
            return y if self.batched else y[0]
        return split(y, self.y_lengths) if self.ragged else self.outward(y)

    def y_inward(self, name: str, y: Any, width: int, dtype: np.dtype[Any]) -> Array:
        """Do the reverse, with checks: for gradients."""
        if self.ragged and self.pick not in POOLED:
            if not isinstance(y, (list, tuple)) or len(y) != self.rows:
                raise ValueError(f"{name}: expected a list of {self.rows} arrays, got {type(y)}")
            parts = [
                checks.shape(f"{name}[{i}]", checks.array(f"{name}[{i}]", part, dtype), (n, width))
                for i, (part, n) in enumerate(zip(y, self.y_lengths, strict=True))
            ]
            joined: Array = np.concatenate(parts or [np.empty((0, width), dtype)])[:, None]
            return joined
        found = checks.shape(name, checks.array(name, y, dtype), self.y_shape(width))
        if self.pick in POOLED:
            return found.reshape(self.rows, width)
        return self.inward(found)

    def extras(self, last: bool, asked: dict[str, Any]) -> Extras:
        """Say what the kernels are to be told of one layer's call."""
        picks = last and self.pick != "all"
        y_starts = starts_of(self.y_lengths) if picks and self.ragged else None
        if picks:
            asked = asked | {"pick": self.pick, "every": self.every}
        return Extras(mask=self.mask, starts=self.starts, y_starts=y_starts, **asked)


def split(a: Array, lengths: npt.NDArray[np.int64]) -> list[Array]:
    """Cut rows laid end to end apart."""
    return np.split(a[:, 0], np.cumsum(lengths)[:-1]) if len(lengths) else []


def starts_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of the rows laid end to end starts."""
    starts: npt.NDArray[np.int64] = np.cumsum(lengths) - lengths
    return starts
