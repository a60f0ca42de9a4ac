"""One batch of sequences: its layout, which steps are read, and which outputs are wanted.

Inside, arrays are (T, B, width). Ragged input is one array of all rows end to end, with B = 1 and
the place where each row starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.engine.cells import Extras
from cylstm.module import Array

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.engine.segments import Segments

POOLED = ("last", "final", "mean", "max")


class Batch:
    """The sequences of one call.

    Attributes
    ----------
    x : ndarray of shape (T, B, I) or, ragged, (sum of T, 1, I)
    steps, rows : int
        T, or the longest; and the number of sequences.
    lengths : ndarray of int64 of shape (rows,) or None
    segments : Segments or None
        What the rows are cut into by resets.
    batched, batch_first, ragged, padded : bool
        Of the caller's layout; and whether there may be steps that are not read.
    """

    batched = True
    ragged = padded = False
    plain = True  # an array, read whole or by lengths, of which all outputs are wanted
    direct = False  # and laid out as inside
    lengths: npt.NDArray[np.int64] | None = None
    mask: Array | None = None
    attention: Array | None = None
    starts: Array | None = None
    segments: Segments | None = None
    pick, every = "all", 1

    def __init__(
        self, x: Any, size: int, dtype: np.dtype[Any], batch_first: bool, lengths: Any, mask: Any,
        return_: Any, reset: Any = None, attention: Any = None,
    ) -> None:  # fmt: skip
        self.batch_first = batch_first
        if type(x) is not np.ndarray and is_ragged(x):  # a list, or a deque and the like
            self._read_ragged(x, size, dtype, lengths, mask)
        else:
            x = self._checked(x, size, dtype)
            self.direct = self.batched and not batch_first and return_ == "all" and mask is None
            self.x = x if self.direct else self.inward(x)
            self.steps, self.rows, _ = self.x.shape
            if lengths is not None or mask is not None:
                self._read_steps(lengths, mask)
        if return_ != "all":
            self._read_return(return_)
        if reset is not None:
            self._read_reset(reset)
        if attention is not None:
            self._read_attention(attention, dtype)

    @classmethod
    def of_read(
        cls, x: Array, lengths: npt.NDArray[np.int64] | None, masked: bool, return_: str | int,
        batch_first: bool,
    ) -> Batch:  # fmt: skip
        """Make one of what the kernels have read, as they found it right."""
        batch = cls.__new__(cls)
        batch.batch_first, batch.batched = batch_first, x.ndim == 3
        batch.x = x if batch.batched and not batch_first else batch.inward(x)
        batch.steps, batch.rows, _ = batch.x.shape
        if lengths is not None:
            batch.padded, batch.lengths = True, lengths
        if masked or return_ != "all":
            batch.plain = False
        if isinstance(return_, str):
            batch.pick = return_
        else:
            batch.pick, batch.every = "every", return_
        return batch

    def _checked(self, x: Any, size: int, dtype: np.dtype[Any]) -> Array:
        """Return x, which is not ragged, as an array; find out whether it has a batch axis."""
        found = checks.array("x", x, dtype)
        if found.ndim != 3:
            self.batched = False
        if (self.batched is False and found.ndim != 2) or found.shape[-1] != size:
            hint = ""
            if found.ndim == 2 and checks.real("x", x).dtype.kind in "iu":
                hint = "; integers that name things go through an Embedding first"
            raise ValueError(
                f"x: expected shape {'(B, T, I)' if self.batch_first else '(T, B, I)'} or (T, I) "
                f"with I = input_size = {size}, got {found.shape}{hint}"
            )
        return found

    def _read_steps(self, lengths: Any, mask: Any) -> None:
        """Which steps are read, if not all."""
        self.padded = True
        if mask is None:
            self.lengths = checks.lengths(lengths, self.rows, self.steps, self.turned_hint)
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
        rows = [self._row(f"x[{i}]", row, size, dtype) for i, row in enumerate(x)]
        self.ragged, self.plain = True, False
        self.x = np.concatenate(rows or [np.empty((0, size), dtype)])[:, None]
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self.starts = starts_of(self.lengths)
        self.rows, self.steps = len(rows), int(self.lengths.max(initial=0))

    def _row(self, name: str, value: Any, size: int, dtype: np.dtype[Any]) -> Array:
        """One row of a list, as (T, I); a batch axis of one element is taken off."""
        row = checks.array(name, value, dtype)
        if row.shape == (0,):
            return np.empty((0, size), dtype)
        batch_axis = 0 if self.batch_first else 1
        if row.ndim == 3 and row.shape[batch_axis] == 1:
            row = row.squeeze(batch_axis)
        if row.ndim != 2 or row.shape[1] != size:
            raise ValueError(f"{name}: expected shape (T, {size}), got {row.shape}")
        return row

    def _read_mask(self, mask: Any) -> None:
        found = self._flags("mask", mask)
        self.lengths = found.sum(axis=0, dtype=np.int64)
        self.plain = False
        self.mask = found.view(np.uint8)

    def _flags(self, name: str, value: Any) -> npt.NDArray[np.bool_]:
        """Check one boolean for each step and row and lay them out as inside."""
        shape: tuple[int, ...] = (self.steps,)
        if self.batched:
            shape = (self.rows, self.steps) if self.batch_first else (self.steps, self.rows)
        found = checks.booleans(name, value, shape, self.turned_hint)
        return np.ascontiguousarray(self.inward(found))

    def _read_return(self, return_: Any) -> None:
        self.plain = False
        if isinstance(return_, str):
            self.pick = checks.choice("return_", return_, ("all", *POOLED))
        else:
            self.pick, self.every = "every", checks.size("return_", return_)

    def _read_reset(self, reset: Any) -> None:
        if self.pick not in ("all", "last", "final"):
            given = self.every if self.pick == "every" else self.pick
            raise ValueError(
                f"return_: expected 'all', 'last' or 'final' with reset, got {given!r}"
            )
        from cylstm.engine import segments  # seldom needed, and slow to import

        self.plain = self.direct = False
        if not self.ragged or self.lengths is None or self.starts is None:
            read = None if self.mask is None else self.mask.view(bool)
            self.segments = segments.of_padded(self._flags("reset", reset), read, self.lengths)
            return
        if not isinstance(reset, (list, tuple)) or len(reset) != self.rows:
            got = len(reset) if isinstance(reset, (list, tuple)) else type(reset).__name__
            raise ValueError(f"reset: expected a list of {self.rows} arrays, got {got}")
        flags = [
            checks.booleans(f"reset[{i}]", part, (int(n),))
            for i, (part, n) in enumerate(zip(reset, self.lengths, strict=True))
        ]
        joined = np.concatenate(flags or [np.zeros(0, bool)])
        self.segments = segments.of_joined(joined, self.lengths, self.starts)

    def _read_attention(self, value: Any, dtype: np.dtype[Any]) -> None:
        """Read one number for each step and row, laid out as x without its last axis."""
        self.plain = False
        if self.ragged and self.lengths is not None:
            if not isinstance(value, (list, tuple)) or len(value) != self.rows:
                got = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
                raise ValueError(f"attention: expected a list of {self.rows} arrays, got {got}")
            rows = [
                checks.shape(
                    f"attention[{i}]", checks.array(f"attention[{i}]", part, dtype), (int(n),)
                )
                for i, (part, n) in enumerate(zip(value, self.lengths, strict=True))
            ]
            self.attention = np.concatenate(rows or [np.empty(0, dtype)])[:, None, None]
            return
        shape: tuple[int, ...] = (self.steps,)
        if self.batched:
            shape = (self.rows, self.steps) if self.batch_first else (self.steps, self.rows)
        found = checks.array("attention", value, dtype)
        if found.shape != shape:
            hint = self.turned_hint(found.shape)
            raise ValueError(f"attention: expected shape {shape}, got {found.shape}{hint}")
        self.attention = self.inward(found.copy())[..., None]

    def attention_outward(self, d: Array) -> Any:
        """Lay out a gradient of the attention (T, B, 1) as the caller did that."""
        if self.ragged and self.lengths is not None:
            return split(d[..., 0], self.lengths)
        return self.outward(d[..., 0])

    def turned_hint(self, shape: tuple[int, ...]) -> str:
        """Say of a shape that it would fit if the first two axes of x were the other ones."""
        turned = [(self.steps,), (self.rows, self.steps), (self.steps, self.rows)]
        if not self.batched or shape not in turned:
            return ""
        return f"; with batch_first={self.batch_first} x has {self.steps} steps of {self.rows} rows"

    @property
    def counts(self) -> npt.NDArray[np.int64] | None:
        """Steps read in each row of the kernels' calls."""
        return self.lengths if self.segments is None else self.segments.lengths

    def inward(self, a: Array) -> Array:
        """Turn an array in the caller's layout into (T, B, ...)."""
        if not self.batched:
            with_row: Array = a[:, None]
            return with_row
        return a.swapaxes(0, 1) if self.batch_first else a

    def outward(self, a: Array) -> Array:
        """Turn a (T, B, ...) array into the caller's layout."""
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
        """Shape of y in the caller's layout, of ragged input in the inner one."""
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
        """Check a gradient of the output, laid out as y, and lay it out as inside."""
        if self.ragged and self.pick not in POOLED:
            if not isinstance(y, (list, tuple)) or len(y) != self.rows:
                got = len(y) if isinstance(y, (list, tuple)) else type(y).__name__
                raise ValueError(f"{name}: expected a list of {self.rows} arrays, got {got}")
            parts = [
                checks.shape(
                    f"{name}[{i}]", checks.array(f"{name}[{i}]", part, dtype), (int(n), width)
                )
                for i, (part, n) in enumerate(zip(y, self.y_lengths, strict=True))
            ]
            joined: Array = np.concatenate(parts or [np.empty((0, width), dtype)])[:, None]
            return joined
        found = checks.shape(name, checks.array(name, y, dtype), self.y_shape(width))
        if self.pick in POOLED:
            return found.reshape(self.rows, width)
        return self.inward(found)

    def extras(self, last: bool, asked: dict[str, Any]) -> Extras:
        """Collect what the kernels have to know of one layer's call."""
        picks = last and self.pick != "all"
        y_starts = starts_of(self.y_lengths) if picks and self.ragged else None
        if picks:
            asked = asked | {"pick": self.pick, "every": self.every}
        if self.attention is not None:
            asked = asked | {"attention": self.attention}
        cut = self.segments
        if cut is None:
            return Extras(mask=self.mask, starts=self.starts, y_starts=y_starts, **asked)
        if "recurrent" in asked:  # a row's mask holds for all of its segments
            asked = asked | {"recurrent": asked["recurrent"][:, cut.row]}
        spans = None if self.mask is None else cut.spans
        return Extras(
            mask=self.mask, starts=cut.starts, columns=None if self.ragged else cut.columns,
            spans=spans, **asked,
        )  # fmt: skip


class PackedBatch(Batch):
    """Rows in the order of PyTorch's PackedSequence: of each step those that are that long.

    Parameters
    ----------
    data : ndarray of shape (sum of batch_sizes, I)
        Step after step, the longest row first in each.
    batch_sizes : ndarray of int64 of shape (T,)
        Rows of each step: at least 1, never growing.

    Outputs and gradients are laid out as `data`. The kernels are given rows end to end.
    """

    ragged, plain = True, False

    def __init__(self, data: Array, batch_sizes: npt.NDArray[np.int64]) -> None:
        self.batch_first = False
        self.steps, self.rows = len(batch_sizes), int(batch_sizes[0])
        at_least = np.cumsum(np.bincount(batch_sizes, minlength=self.rows + 1)[::-1])[::-1]
        self.lengths = at_least[1:].astype(np.int64)
        self.starts = starts_of(self.lengths)
        row = np.repeat(np.arange(self.rows), self.lengths)
        step = np.arange(len(data)) - self.starts[row]
        #: Where each step of the rows end to end is in `data`.
        self._places = starts_of(batch_sizes)[step] + row
        self.x = data[self._places][:, None]

    def _packed(self, a: Array) -> Array:
        found = np.empty((len(a), a.shape[2]), a.dtype)
        found[self._places] = a[:, 0]
        return found

    def x_outward(self, dx: Array) -> Array:
        """Lay out a gradient of x as `data`."""
        return self._packed(dx)

    def y_outward(self, y: Array) -> Array:
        """Lay out outputs as `data`."""
        return self._packed(y)

    def y_inward(self, name: str, y: Any, width: int, dtype: np.dtype[Any]) -> Array:
        """Lay out a gradient of outputs, checked by its maker, end to end."""
        found: Array = y[self._places][:, None]
        return found


def is_ragged(x: Any) -> bool:
    """Whether x is a list of rows: of matrices, or of nested lists that differ in length.

    Nested lists of numbers that make an array are one, as everywhere in NumPy.
    """
    if not isinstance(x, Sequence) or isinstance(x, (str, bytes)) or hasattr(x, "shape"):
        return False
    if hasattr(x, "batch_sizes"):
        raise TypeError(
            "x: expected an array or a list of one for each row, got a PackedSequence: pass it to "
            "cylstm.torch's layers, or its pad_packed_sequence with lengths=, or its "
            "unpack_sequence"
        )
    if checks.empty_list(x):
        return True
    axes = [_ndim(row) for row in x]
    if any(n >= 2 for row, n in zip(x, axes, strict=True) if not isinstance(row, (list, tuple))):
        return True
    if max(axes) < 2:
        return False
    try:
        np.asarray(x)
    except ValueError:
        return True
    except Exception:  # another library's, which the checks will name
        return False
    return False


def _ndim(value: Any) -> int:
    """Dimensions of an array-like, by its first elements."""
    depth = 0
    while isinstance(value, (list, tuple)) and value:
        depth, value = depth + 1, value[0]
    if isinstance(value, (list, tuple)):
        return depth + 1
    return depth + len(getattr(value, "shape", ()))


def split(a: Array, lengths: npt.NDArray[np.int64]) -> list[Array]:
    """Cut rows laid end to end apart."""
    return np.split(a[:, 0], np.cumsum(lengths)[:-1]) if len(lengths) else []


def starts_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of the rows laid end to end starts."""
    starts: npt.NDArray[np.int64] = np.cumsum(lengths) - lengths
    return starts
