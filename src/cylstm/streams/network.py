"""Streams over networks: rows that step together, with a state for each module that has one."""

from __future__ import annotations

from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.layers import flow
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.module import Array
from cylstm.streams import snapshots

if TYPE_CHECKING:
    from cylstm.layers.container import Container


class NetworkStream:
    """Rows fed to a network frame by frame or in chunks; see `Sequential.stream`.

    Any division into steps and chunks gives the bits of a call on the whole sequence. Weights are
    the network's: many streams share one copy of them, and a change counts from the next step on. A
    stream takes one call at a time; different streams may be used by different threads at once.
    Copies and pickles go on from the same state by themselves: a shallow copy shares the network, a
    deep one and a pickle have their own.

    Parameters
    ----------
    network : Sequential, Residual or Concat
        Of modules of which none looks ahead.
    batch_size : int, default 1
        B, the number of rows.
    num_threads : int, optional
        Most threads that a step may use; default `get_num_threads()`, asked at every step.

    Attributes
    ----------
    network, batch_size, num_threads
        As given; read-only.

    Raises
    ------
    ValueError, TypeError
        A module looks ahead, or an argument is not as described.
    """

    def __init__(
        self, network: Container, batch_size: int = 1, *, num_threads: int | None = None
    ) -> None:
        network._refuse_stream("")
        self._network: Any = network
        self._batch_size = checks.size("batch_size", batch_size)
        runtime.number(num_threads)
        self._threads = num_threads
        self._lock = allocate_lock()
        self._state: Any = None
        self.reset()

    @property
    def network(self) -> Container:
        """The network that is fed."""
        found: Container = self._network
        return found

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self._batch_size

    @property
    def num_threads(self) -> int | None:
        """Most threads that a step may use."""
        return self._threads

    def __repr__(self) -> str:
        """Show the network and the number of rows."""
        return f"<stream of {self._network!r}: batch_size={self.batch_size}>"

    def __reduce__(self) -> Any:
        """Say how to make another stream of the network with the same state."""
        return _restored, (self._network, self.batch_size, self.num_threads, self.state)

    def step(self, x: Any, out: Array | None = None) -> Array:
        """Feed one frame of each row, and go on to the state after it.

        Parameters
        ----------
        x : array-like of shape (B, C), or (C,) if B = 1
            Real numbers; where the network begins with an `Embedding` ids of shape (B,) or ().
        out : ndarray, optional
            Where to write the output. It may share memory with `x`.

        Returns
        -------
        ndarray of shape (B, F) or (F,)

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the state is as before.
        RuntimeError
            Another thread is at this stream.
        """
        net, rows = self._network, self.batch_size
        found, _ = flow.enter(_AnyLead(net), "x", x, None, None)
        axes = found.ndim - (not net._reads_ids)
        if axes not in (0, 1) or (found.shape[0] if axes else 1) != rows:
            last = () if net._reads_ids else (found.shape[-1],)
            expected = _text((rows, *last)) + (f" or {_text(last)}" if rows == 1 else "")
            raise ValueError(f"x: expected shape {expected}, got {found.shape}")
        into = None if out is None else self._checked_out(out, found.shape[:axes], found)
        given = found if axes else found[None]
        steps = Steps(net._time_second)
        y = self._advance(given[:, None] if net._time_second else given[None], steps)
        y = y.squeeze(steps.time)
        return _written(into, y if axes else y[0])

    def push(self, chunk: Any, out: Array | None = None) -> Any:
        """Feed any number of steps at once, and go on to the state after them.

        Parameters
        ----------
        chunk : array-like of shape (T, B, C), or (T, C) if B = 1
            (B, T, C) if the network has `batch_first`; without the axis C where it begins with an
            `Embedding`. Or a list of one array (T_i, C) for each row, each fed as many steps as it
            has.
        out : ndarray, optional
            Where to write the outputs. It may share memory with `chunk`.

        Returns
        -------
        ndarray of shape (T, B, F), laid out as `chunk`
            The output of every step; a list for a list.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the state is as before.
        RuntimeError
            Another thread is at this stream.
        """
        net, rows = self._network, self.batch_size
        found, steps = flow.enter(net, "chunk", chunk, None, None)
        if steps.ragged:
            assert steps.lengths is not None
            if len(steps.lengths) != rows:
                raise ValueError(
                    f"chunk: expected a list of {rows} arrays, got {len(steps.lengths)}"
                )
            if out is not None:
                raise ValueError("out: expected None with a list as chunk, got an array")
            return flow.parts_of(self._advance(found, steps), steps)
        axes = found.ndim - (not net._reads_ids)
        count = found.shape[1 - steps.time] if axes == 2 else 1
        if axes not in (1, 2) or count != rows:
            last = () if net._reads_ids else (found.shape[-1],)
            lead = (rows, "T") if net._time_second else ("T", rows)
            expected = _text((*lead, *last)) + (f" or {_text(('T', *last))}" if rows == 1 else "")
            raise ValueError(f"chunk: expected shape {expected}, got {found.shape}")
        into = None if out is None else self._checked_out(out, found.shape[:axes], found)
        steps = Steps(net._time_second)
        if axes == 2:
            return _written(into, self._advance(found, steps))
        y = self._advance(steps.from_rows(found[None]), steps)
        return _written(into, steps.by_row(y)[0])

    def _checked_out(self, out: Array, lead: tuple[int, ...], x: Array) -> Array:
        """Check an array for outputs of such a leading shape."""
        net = self._network
        width = net._features(None if net._reads_ids else x.shape[-1])
        return checks.out(out, (*lead, width), net.dtype if net._typed else x.dtype)

    def _advance(self, x: Array, steps: Steps) -> Array:
        """Feed steps of all rows."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("stream: expected one call at a time, got one from another thread")
        try:
            run = Run(False, self._threads)
            passed: Passed = self._network._pass(x, self._state, steps, run)
            self._state = passed.state
        finally:
            self._lock.release()
        return passed.y.copy() if np.may_share_memory(passed.y, x) else passed.y

    @property
    def state(self) -> Any:
        """The state as the network returns it, in arrays of its own.

        Assigning to it sets the state, of one row for all if there is only one; None, also for a
        module alone, is the initial state.
        """
        return _each(np.array, self._state)

    @state.setter
    def state(self, state: Any) -> None:
        initial = self._network._initial_state(self.batch_size)
        self._state = _checked("state", state, initial)

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
        initial = self._network._initial_state(self.batch_size)
        if rows is None:
            self._state = initial
            return
        found = np.atleast_1d(checks.read("rows", rows))
        if found.dtype.kind not in "iu" and not checks.empty_list(rows):
            raise TypeError(f"rows: expected integers, got dtype {found.dtype}")
        if found.ndim != 1 or np.any((found < 0) | (found >= self.batch_size)):
            raise ValueError(f"rows: expected some of 0 to {self.batch_size - 1}, got {rows!r}")
        which = np.zeros(self.batch_size, bool)
        which[found.astype(np.intp)] = True

        def chosen(first: Array, now: Array) -> Array:
            return np.where(which[:, None], first, now)

        self._state = _each(chosen, initial, self._state)

    def snapshot(self) -> bytes:
        """Return the state as bytes, from which `restore` goes on with the same bits.

        It names its format's version, and the options and weights that it belongs to.

        Returns
        -------
        bytes
        """
        parts = [a.swapaxes(0, 1).reshape(self.batch_size, -1) for a in _arrays(self._state)]
        rows = np.concatenate([np.empty((self.batch_size, 0), self._network.dtype), *parts], axis=1)
        return snapshots.pack(self._network, rows)

    def restore(self, snapshot: bytes) -> None:
        """Set the state to that of a snapshot.

        Parameters
        ----------
        snapshot : bytes
            From `snapshot` of a stream of as many rows over a network with the same options and
            weights.

        Raises
        ------
        ValueError
            It is damaged, cut short, of another version of the format, or of a network with other
            sizes, options or weights. The state is as before.
        TypeError
            It is not bytes.
        """
        initial = self._network._initial_state(self.batch_size)
        widths = [a.shape[0] * a.shape[2] for a in _arrays(initial)]
        rows = snapshots.unpack(self._network, snapshot, self.batch_size, sum(widths))
        parts = iter(np.split(rows, np.cumsum(widths)[:-1], axis=1)) if widths else iter(())

        def filled(first: Array) -> Array:
            by_row = next(parts).reshape(self.batch_size, first.shape[0], first.shape[2])
            return np.ascontiguousarray(by_row.swapaxes(0, 1))

        self._state = _each(filled, initial)


class _AnyLead:
    """A network as `flow.enter` sees it, of whose input one step has no axis of time."""

    _looks_along_time = False

    def __init__(self, network: Any) -> None:
        self._of = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def _written(out: Array | None, y: Array) -> Array:
    if out is None:
        return y
    out[...] = y
    return out


def _each(make: Any, *trees: Any) -> Any:
    """Nested tuples of what is made of the arrays at each place."""
    if isinstance(trees[0], tuple):
        return tuple(_each(make, *parts) for parts in zip(*trees, strict=True))
    return make(*trees)


def _arrays(tree: Any) -> list[Array]:
    return [a for part in tree for a in _arrays(part)] if isinstance(tree, tuple) else [tree]


def _checked(name: str, state: Any, initial: Any) -> Any:
    """Check a state against the initial one, which stands for what is None."""
    if state is None:
        return initial
    if isinstance(initial, tuple):
        if not isinstance(state, (tuple, list)) or len(state) != len(initial):
            got = len(state) if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"{name}: expected a tuple of {len(initial)}, got {got}")
        return tuple(
            _checked(f"{name}[{i}]", part, first)
            for i, (part, first) in enumerate(zip(state, initial, strict=True))
        )
    found = checks.array(name, state, initial.dtype)
    one = (initial.shape[0], 1, initial.shape[2])
    checks.shape(name, found, one if found.shape == one else initial.shape)
    return np.array(np.broadcast_to(found, initial.shape))


def _restored(network: Any, batch_size: int, num_threads: int | None, state: Any) -> NetworkStream:
    """Make a copied or pickled stream."""
    made = NetworkStream(network, batch_size, num_threads=num_threads)
    made.state = state
    return made


def _text(sizes: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
