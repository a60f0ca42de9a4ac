"""Pools: any number of independent streams over one copy of the weights, stepped together."""

from __future__ import annotations

import os
import weakref
from _thread import RLock  # importing threading takes longer than the package
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.engine.states import State
from cylstm.kernels import sequence
from cylstm.module import Array
from cylstm.streams import snapshots, state_rows
from cylstm.streams.state_rows import StateStatistics

if TYPE_CHECKING:
    from cylstm.layers.recurrent import Recurrent

MOST_STREAMS = 2**24

_alive: weakref.WeakSet[StreamPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in _alive:
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class PoolFullError(RuntimeError):
    """A pool has as many open streams as its capacity."""


class StreamPool(sequence.PoolBase):
    """Independent streams that share a layer's weights, any of which are stepped together.

    A stream is known by its id, an integer that no other stream of the process ever gets, so that
    the id of a closed one is refused for ever. Its outputs and state have the bits that it would
    have alone, whoever steps with it. Opening and closing take constant time; a new stream begins
    with the initial state, whatever its slot has held before. A change of the layer's weights
    counts from the next step on, which goes on from the states as they are.

    Methods may be called by different threads at once; threads that step different streams do so
    in parallel. A pool cannot be pickled or copied: its ids are known to clients of this process.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Neither `bidirectional` nor `go_backwards`: what looks ahead cannot stream.
    capacity : int
        Most streams that can be open at once, up to 2**24. A stream takes the bytes of its state
        and 28 more; memory of slots that are never used is not touched.
    latency : float, default 0
        Seconds that a frame given to `submit` may wait for others before `due` asks for a `flush`.
    clock : callable, optional
        Returns seconds as a float, for idle times and latency. Default `time.monotonic`.

    Attributes
    ----------
    layer, capacity, latency
        As given; read-only.

    Raises
    ------
    ValueError, TypeError
        The layer looks ahead, or an argument is not as described.
    """

    def __init__(
        self,
        layer: Recurrent,
        capacity: int,
        *,
        latency: float = 0.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        state_rows.refuse_what_looks_ahead(layer)
        slots = checks.size("capacity", capacity)
        if slots > MOST_STREAMS:
            raise ValueError(f"capacity: expected at most {MOST_STREAMS}, got {slots}")
        if clock is not None and not callable(clock):
            raise TypeError(f"clock: expected a callable or None, got {clock!r}")
        self._latency = checks.number("latency", latency, 0, float("inf"))
        super().__init__(layer, slots, clock, runtime.number)
        self._width = state_rows.width(layer)
        self._waiting: dict[int, deque[Array]] = {}
        self._outputs: dict[int, list[Array]] = {}  # of frames fed, not returned yet
        self._since: float | None = None  # when the oldest of the waiting frames came
        self._make_locks()
        _alive.add(self)

    def _make_locks(self) -> None:
        self._flushing = RLock()  # held for the whole of a flush, and to close streams
        self._queueing = RLock()  # held for a moment, to change what is waiting; taken second

    def _after_fork(self) -> None:
        """In a child: other threads, and what they hold, are no more."""
        super()._after_fork()
        self._make_locks()

    @property
    def latency(self) -> float:
        """Seconds that a frame given to `submit` may wait for others."""
        return self._latency

    def __repr__(self) -> str:
        """Show the layer and how many streams are open."""
        return f"<pool of {self.layer!r}: {len(self)} of {self.capacity} streams open>"

    def __iter__(self) -> Iterator[int]:
        """Ids of the streams that are open now."""
        return iter(self._open_ids())

    def __contains__(self, id: object) -> bool:
        """Whether a stream of this id is open."""
        return isinstance(id, (int, np.integer)) and self._is_open(int(id))

    def __reduce__(self) -> Any:
        """Say why a pool cannot be pickled or copied."""
        raise TypeError(
            "a pool cannot be pickled or copied: its ids are known to clients of this process; "
            "move its streams one by one, by snapshot and restore"
        )

    def open(self) -> int:
        """Open a stream in the initial state: zeros, or what `learn_initial_state` has learned.

        Returns
        -------
        int
            Its id.

        Raises
        ------
        PoolFullError
            As many streams as `capacity` are open; it is a RuntimeError.
        """
        found = self._open(self._initial())
        if found < 0:
            raise PoolFullError(
                f"open: expected fewer than capacity={self.capacity} open streams, got "
                f"{len(self)}: close some, or those of clients gone away by close_idle"
            )
        return int(found)

    def _initial(self) -> Array | None:
        return state_rows.initial(self.layer) if self.layer.learn_initial_state else None

    def close(self, id: int) -> None:
        """Close a stream; frames of it that are waiting are dropped. Waits for a flush to end.

        Parameters
        ----------
        id : int
            From `open`. From now on it is refused.

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        RuntimeError
            Another thread is stepping the stream.
        """
        with self._flushing, self._queueing:
            self._close(id)
            self._waiting.pop(int(id), None)

    def close_idle(self, seconds: float) -> list[int]:
        """Close streams that have not been used for some time, as those of clients gone away.

        Opening a stream, feeding it and setting its state are uses. Streams that another thread
        is stepping are not idle. Frames that are waiting are dropped.

        Parameters
        ----------
        seconds : float
            Streams that have been idle for as long, or longer, are closed.

        Returns
        -------
        list of int
            Their ids.
        """
        limit = checks.number("seconds", seconds, 0, float("inf"))
        with self._flushing, self._queueing:
            closed: list[int] = self._close_idle(limit)
            for id in closed:
                self._waiting.pop(id, None)
        return closed

    def reset(self, id: int) -> None:
        """Put a stream back to the initial state.

        Parameters
        ----------
        id : int

        Raises
        ------
        ValueError, TypeError, RuntimeError
            It is not that of an open stream, or another thread is stepping it.
        """
        self._load(id, self._initial())

    def state(self, id: int) -> State:
        """Return the state of a stream as the layer does for one unbatched row, in new arrays.

        Parameters
        ----------
        id : int

        Returns
        -------
        ndarray of shape (num_layers, P), or for an LSTM tuple (h, c), c of shape (num_layers, H)
            Where layers differ in size, tuples of one (1, size) for each layer.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            It is not that of an open stream, or another thread is stepping it.
        """
        return state_rows.outward(self.layer, self._read(id), batched=False)

    def set_state(self, id: int, state: State) -> None:
        """Set the state of a stream.

        Parameters
        ----------
        id : int
        state : array or tuple (h, c) for LSTM, or None
            As `state` returns it; None, also of h or c alone, is the initial state.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            It is not that of an open stream, another thread is stepping it, or the state does not
            fit; the stream is as before.
        """
        self._load(id, state_rows.inward(self.layer, state, 1, batched=False))

    def _read(self, *ids: int) -> Array:
        rows = np.empty((len(ids), self._width), self.layer.dtype)
        for k, id in enumerate(ids):
            self._store(id, rows[k : k + 1])
        return rows

    def statistics(self, ids: Any = None) -> StateStatistics:
        """Return numbers that tell how the states of streams are; they are left alone.

        Parameters
        ----------
        ids : sequence of int, optional
            Default all open streams, in the order of iteration.

        Returns
        -------
        StateStatistics
            Norm, largest absolute value, fraction of saturated units, and whether all is finite.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            An id is not that of an open stream, or another thread is stepping it.
        """
        return state_rows.statistics(self.layer, self._read(*(self if ids is None else ids)))

    def snapshot(self, id: int) -> bytes:
        """Return the state of a stream as bytes, from which `restore` goes on with the same bits.

        Parameters
        ----------
        id : int

        Returns
        -------
        bytes
            A snapshot of one row, which a `Stream` of batch_size 1 takes as well.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            It is not that of an open stream, or another thread is stepping it.
        """
        return snapshots.pack(self.layer, self._read(id))

    def restore(self, id: int, snapshot: bytes) -> None:
        """Set the state of a stream to that of a snapshot.

        Parameters
        ----------
        id : int
            Of an open stream, of this process or of one that has been restarted.
        snapshot : bytes
            From `snapshot` of a pool, or of a stream of one row, over a layer with the same options
            and weights.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            The id is not that of an open stream, or another thread is stepping it. The snapshot is
            damaged, cut short, of another version of the format, or of a layer with other sizes,
            options or weights. The stream is as before.
        """
        self._load(id, snapshots.unpack(self.layer, snapshot, 1, self._width))

    # Frames that wait for one another

    def submit(self, id: int, x: Any) -> None:
        """Have a frame wait for the next `flush`; a stream may have several waiting.

        Parameters
        ----------
        id : int
            Of an open stream.
        x : array-like of shape (I,)
            Copied.

        Raises
        ------
        ValueError, TypeError
            The id is not that of an open stream, or the frame does not fit: what one client sends
            cannot spoil the others' flush. Or the layer reads attention, which only `step` takes.
        """
        if not self.layer._reads_x_only:
            raise TypeError("submit: expected a layer that reads x alone, got one of attention")
        found = checks.array("x", x, self.layer.dtype)
        frame = checks.shape("x", found, (self.layer.input_size,)).copy()
        with self._queueing:
            now = self._touch(id)
            if self._since is None:
                self._since = now
            self._waiting.setdefault(int(id), deque()).append(frame)

    def due(self) -> float | None:
        """Return in how many seconds to call `flush`.

        Returns
        -------
        float or None
            What is left of `latency` for the frame that has been waiting longest; 0 where it has
            been used up, or where each open stream has a frame, so that nothing more can be gained
            by waiting. None if no frame is waiting.
        """
        with self._queueing:
            if not self._waiting or self._since is None:
                return None
            if len(self._waiting) >= len(self):
                return 0.0
            left: float = self._since + self._latency - self._now()
            return max(0.0, left)

    def flush(self, *, num_threads: int | None = None) -> dict[int, Array]:
        """Feed all frames that are waiting, each stream's in their order, and return the outputs.

        One step for all streams' first frames, one for their second ones, and so on. Frames
        submitted meanwhile wait for the next flush. A second thread's flush waits for the first.

        Parameters
        ----------
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        dict of int to ndarray of shape (k, P)
            By id, the outputs of the k frames that a stream had waiting; empty if there were none.
            Those of streams that had one frame are parts of one array.

        Raises
        ------
        RuntimeError
            Another thread is stepping one of the streams by `step`. Frames that have not been fed
            go on waiting, and the outputs of those that have are returned by the next flush.
        """
        with self._flushing:
            with self._queueing:
                waiting, self._waiting, since = self._waiting, {}, self._since
                self._since = None
            try:
                while waiting:
                    self._feed_first(waiting, num_threads)
            finally:
                if waiting:
                    self._wait_again(waiting, since)
            outputs, self._outputs = self._outputs, {}
        return {id: np.concatenate(y) if len(y) > 1 else y[0] for id, y in outputs.items()}

    def _feed_first(self, waiting: dict[int, deque[Array]], num_threads: int | None) -> None:
        """Feed each stream's first frame, and take it away."""
        ids = list(waiting)
        x = np.concatenate([waiting[id][0] for id in ids]).reshape(len(ids), -1)
        y = self.step(np.array(ids), x, num_threads=num_threads)
        for k, id in enumerate(ids):
            self._outputs.setdefault(id, []).append(y[k : k + 1])
            waiting[id].popleft()
            if not waiting[id]:
                del waiting[id]

    def _wait_again(self, frames: dict[int, deque[Array]], since: float | None) -> None:
        """Put frames back before those that have come since."""
        with self._queueing:
            for id, later in self._waiting.items():
                frames.setdefault(id, deque()).extend(later)
            self._waiting, self._since = frames, since

    # What does not come as the kernels read it

    def _checked_ids(self, ids: Any) -> Array:
        found = checks.read("ids", ids)
        if checks.empty_list(ids):
            return np.empty(0, np.int64)
        if found.dtype.kind not in "iu":
            raise TypeError(f"ids: expected integers, got dtype {found.dtype}")
        if found.ndim != 1:
            raise ValueError(f"ids: expected shape (n,), got {found.shape}")
        return np.array(found, np.int64)

    def _checked_frames(self, x: Any, n: int) -> Array:
        found = checks.array("x", x, self.layer.dtype)
        return np.ascontiguousarray(checks.shape("x", found, (n, self.layer.input_size)))

    def _checked_attention(self, attention: Any, rows: int) -> Array:
        """Check attention, and return it as the kernels read it."""
        return state_rows.checked_attention(attention, rows, self.layer.dtype)

    def _checked_out(self, out: Any, shape: tuple[int, ...]) -> Array:
        return state_rows.writeable(out, shape, self.layer.dtype)
