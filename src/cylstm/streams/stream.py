"""One stream: rows that step together, whose state stays where the kernels work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.engine.batches import is_ragged
from cylstm.engine.states import State
from cylstm.kernels import sequence
from cylstm.module import Array
from cylstm.streams import snapshots, state_rows
from cylstm.streams.state_rows import StateStatistics

if TYPE_CHECKING:
    from cylstm.layers.recurrent import Recurrent


class Stream(sequence.StreamBase):
    """Rows that are fed frame by frame or in chunks and remember their state; see `layer.stream`.

    Any division into steps and chunks gives the bits of a call on the whole sequence. Weights
    are the layer's: many streams share one copy of them, and a change of them counts from the
    next step on, which goes on from the state as it is. A stream takes one call at a time;
    different streams may be used by different threads at once. Copies and pickles go on from the
    same state by themselves: a shallow copy shares the layer, a deep one and a pickle have their
    own.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Neither `bidirectional` nor `go_backwards`: what looks ahead cannot stream.
    batch_size : int, default 1
        B, the number of rows.
    num_threads : int, optional
        Most threads that a step may use; default `get_num_threads()`, asked at every step. Steps
        that take less than some 10 us stay on one thread, and keep the GIL.

    Attributes
    ----------
    layer, batch_size, num_threads
        As given; read-only.

    Raises
    ------
    ValueError, TypeError
        The layer looks ahead, or an argument is not as described.
    """

    def __init__(
        self, layer: Recurrent, batch_size: int = 1, *, num_threads: int | None = None
    ) -> None:
        state_rows.refuse_what_looks_ahead(layer)
        rows = checks.size("batch_size", batch_size)
        super().__init__(layer, rows, num_threads, runtime.number)
        self._all = np.arange(rows, dtype=np.intp)
        self._width = state_rows.width(layer)
        self.reset()

    def __repr__(self) -> str:
        """Show the layer and the number of rows."""
        return f"<stream of {self.layer!r}: batch_size={self.batch_size}>"

    def __reduce__(self) -> Any:
        """Say how to make another stream of the layer with the same state."""
        kind = type(self)
        return _restored, (kind, self.layer, self.batch_size, self.num_threads, self._read())

    def _read(self) -> Array:
        """Return the state of all rows, (B, S)."""
        found = np.empty((self.batch_size, self._width), self.layer.dtype)
        self._exclusively(self._store, self._all, found)
        return found

    def _write(self, rows: Array) -> None:
        """Set the state of all rows, (B, S)."""
        self._exclusively(self._load, self._all, rows)

    def push(self, chunk: Any, out: Array | None = None, attention: Any = None) -> Any:
        """Feed any number of steps at once, and go on to the state after them.

        Parameters
        ----------
        chunk : array-like of shape (T, B, I), or (T, I) if B = 1
            (B, T, I) if the layer has `batch_first`. Or a list of one array (T_i, I) for each row,
            each fed as many steps as it has.
        out : ndarray, optional
            Where to write the outputs. It may share memory with `chunk`.
        attention : array-like of shape (T, B), or (T,) if the chunk is (T, I)
            How much of the update gate is used at each step, 0 to 1; (B, T) if the layer has
            `batch_first`, a list for a list. Of an AUGRU, and only of one.

        Returns
        -------
        ndarray of shape (T, B, P), laid out as `chunk`
            The output of every step; a list for a list.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the state is as before.
        RuntimeError
            Another thread is at this stream.
        """
        more = {} if attention is None else {"attention": attention}
        return self._exclusively(self._push, self._checked_chunk(chunk), out, more)

    def _push(self, chunk: Any, out: Array | None, more: dict[str, Any]) -> Any:
        rows = np.empty((self.batch_size, self._width), self.layer.dtype)
        self._store(self._all, rows)
        batched = not isinstance(chunk, np.ndarray) or chunk.ndim == 3
        state = state_rows.outward(self.layer, rows, batched)
        y, state = self.layer(chunk, state, out=out, num_threads=self.num_threads, **more)
        self._load(self._all, state_rows.inward(self.layer, state, self.batch_size, batched))
        return y

    def _checked_chunk(self, chunk: Any) -> Any:
        """Check the shape of a chunk: the layer takes one row's state for any number of rows."""
        layer, rows = self.layer, self.batch_size
        if is_ragged(chunk):
            if len(chunk) != rows:
                raise ValueError(f"chunk: expected a list of {rows} arrays, got {len(chunk)}")
            return chunk
        found = checks.array("chunk", chunk, layer.dtype)
        expected: tuple[Any, ...] = ("T", rows, layer.input_size)
        if layer.batch_first:
            expected = (rows, "T", layer.input_size)
        if found.ndim == 2 and rows == 1:
            expected = ("T", layer.input_size)
        if found.ndim != len(expected) or any(
            n != size for n, size in zip(found.shape, expected, strict=True) if size != "T"
        ):
            raise ValueError(f"chunk: expected shape {_shape(expected)}, got {found.shape}")
        return found

    @property
    def state(self) -> State:
        """The state as the layer returns it, in arrays of its own.

        h of shape (num_layers, B, P), for an LSTM (h, c) with c of shape (num_layers, B, H);
        where layers differ in size, tuples of one (1, B, size) for each layer. Assigning to it sets
        the state, of one row for all if there is only one; None, also of h or c alone, is the
        initial state.
        """
        return state_rows.outward(self.layer, self._read())

    @state.setter
    def state(self, state: State) -> None:
        self._write(state_rows.inward(self.layer, state, self.batch_size))

    def reset(self, rows: Any = None) -> None:
        """Put rows back to the initial state: zeros, or what `learn_initial_state` has learned.

        Parameters
        ----------
        rows : int or sequence of int, optional
            Which rows; default all.

        Raises
        ------
        ValueError, TypeError
            There is no such row; the state is as before.
        """
        which = self._all if rows is None else self._rows(rows)
        self._exclusively(self._load, which, state_rows.initial(self.layer, len(which)))

    def statistics(self) -> StateStatistics:
        """Return numbers that tell how each row's state is; the state is left alone.

        Returns
        -------
        StateStatistics
            Norm, largest absolute value, fraction of saturated units, and whether all is finite.
        """
        return state_rows.statistics(self.layer, self._read())

    def snapshot(self) -> bytes:
        """Return the state as bytes, from which `restore` goes on with the same bits.

        It names its format's version, and the options and weights that it belongs to.

        Returns
        -------
        bytes
        """
        return snapshots.pack(self.layer, self._read())

    def restore(self, snapshot: bytes) -> None:
        """Set the state to that of a snapshot.

        Parameters
        ----------
        snapshot : bytes
            From `snapshot` of a stream of as many rows, or of a pool for one row, over a layer with
            the same options and weights.

        Raises
        ------
        ValueError
            It is damaged, cut short, of another version of the format, or of a layer with other
            sizes, options or weights. The state is as before.
        TypeError
            It is not bytes.
        """
        self._write(snapshots.unpack(self.layer, snapshot, self.batch_size, self._width))

    def _rows(self, rows: Any) -> Array:
        """Check numbers of rows."""
        found = np.atleast_1d(checks.read("rows", rows))
        if found.dtype.kind not in "iu" and not checks.empty_list(rows):
            raise TypeError(f"rows: expected integers, got dtype {found.dtype}")
        if found.ndim != 1 or np.any((found < 0) | (found >= self.batch_size)):
            raise ValueError(f"rows: expected some of 0 to {self.batch_size - 1}, got {rows!r}")
        return found.astype(np.intp)

    def _checked_frames(self, x: Any, rows: int) -> Array:
        """Check one frame for each row, and return it as the kernels read it."""
        layer = self.layer
        found = checks.array("x", x, layer.dtype)
        shapes = [(rows, layer.input_size)] + [(layer.input_size,)] * (rows == 1)
        if found.shape not in shapes:
            expected = " or ".join(map(str, reversed(shapes)))
            raise ValueError(f"x: expected shape {expected}, got {found.shape}")
        return np.ascontiguousarray(found)

    def _checked_attention(self, attention: Any, rows: int) -> Array:
        """Check attention, and return it as the kernels read it."""
        return state_rows.checked_attention(attention, rows, self.layer.dtype)

    def _checked_out(self, out: Any, shape: tuple[int, ...]) -> Array:
        """Check `out`, and return an array that the kernels can write."""
        return state_rows.writeable(out, shape, self.layer.dtype)


def _restored(
    kind: type[Stream], layer: Recurrent, batch_size: int, num_threads: int | None, rows: Array
) -> Stream:
    """Make a copied or pickled stream."""
    made = kind(layer, batch_size, num_threads=num_threads)
    made._write(np.ascontiguousarray(rows))
    return made


def _shape(sizes: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, sizes))})"
