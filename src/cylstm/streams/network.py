"""Streams over networks: rows that step together, with a state for each module that has one."""

from __future__ import annotations

from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.layers import flow
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.module import Array
from cylstm.streams import snapshots, steppers
from cylstm.streams.snapshots import each

if TYPE_CHECKING:
    from cylstm.layers.network import Network

_BUSY = "stream: expected one call at a time, got one from another thread"


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
        self, network: Network, batch_size: int = 1, *, num_threads: int | None = None
    ) -> None:
        network._refuse_stream("")
        self._network: Any = network
        self._batch_size = checks.size("batch_size", batch_size)
        runtime.number(num_threads)
        self._threads = num_threads
        self._lock = allocate_lock()
        self._ids = network._reads_ids
        #: Dtype and shape of frames that need no more checks.
        self._dtype = network.dtype if network._typed and not self._ids else None
        self._frame = (self._batch_size, network._width)
        self._features = network._features(network._width)
        self._stepper = steppers.of(network, self._batch_size, num_threads)
        self._step = self._stepper.step
        self.reset()

    @property
    def network(self) -> Network:
        """The network that is fed."""
        found: Network = self._network
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
        found, axes = self._frames(x)
        into = None if out is None else self._checked_out(out, found.shape[:axes], found)
        given = found if axes else found[None]
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_BUSY)
        try:
            y = self._step(given)
        finally:
            self._lock.release()
        if np.may_share_memory(y, given):
            y = y.copy()
        return _written(into, y if axes else y[0])

    def _frames(self, x: Any) -> tuple[Array, int]:
        """Check one frame for each row; say whether there is an axis of rows."""
        net, rows = self._network, self._batch_size
        if type(x) is np.ndarray and x.dtype is self._dtype and x.flags.c_contiguous:
            if x.shape == self._frame:
                return x, 1
            if rows == 1 and x.shape == self._frame[1:]:
                return x, 0
        found = net._ids("x", x) if self._ids else flow.numbers(net, "x", x)
        axes = found.ndim - (not self._ids)
        if axes not in (0, 1) or (len(found) if axes else 1) != rows:
            last = () if self._ids else (found.shape[-1],)
            expected = _text((rows, *last)) + (f" or {_text(last)}" if rows == 1 else "")
            raise ValueError(f"x: expected shape {expected}, got {found.shape}")
        if self._ids:
            net._check_ids("x", found)
        return np.ascontiguousarray(found).reshape(found.shape), axes

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
        width = self._features
        if width is None:
            width = net._features(x.shape[-1])
        return checks.out(out, (*lead, width), net.dtype if net._typed else x.dtype)

    def _advance(self, x: Array, steps: Steps) -> Array:
        """Feed steps of all rows."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(_BUSY)
        try:
            run = Run(False, self._threads)
            passed: Passed = self._network._pass(x, self._stepper.state, steps, run)
            self._stepper.load(passed.state)
        finally:
            self._lock.release()
        return passed.y.copy() if np.may_share_memory(passed.y, x) else passed.y

    @property
    def state(self) -> Any:
        """The state as the network returns it, in arrays of its own.

        Assigning to it sets the state, of one row for all if there is only one; None, also for a
        module alone, is the initial state.
        """
        return self._stepper.state

    @state.setter
    def state(self, state: Any) -> None:
        initial = self._network._initial_state(self.batch_size)
        self._stepper.load(checked("state", state, initial))

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
            self._stepper.load(initial)
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

        self._stepper.load(each(chosen, initial, self._stepper.state))

    def snapshot(self) -> bytes:
        """Return the state as bytes, from which `restore` goes on with the same bits.

        It names its format's version, and the options and weights that it belongs to.

        Returns
        -------
        bytes
        """
        return snapshots.pack_state(self._network, self._stepper.state, self._batch_size)

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
        self._stepper.load(
            snapshots.unpack_state(self._network, snapshot, initial, self._batch_size)
        )


def _written(out: Array | None, y: Array) -> Array:
    if out is None:
        return y
    out[...] = y
    return out


def checked(name: str, state: Any, initial: Any) -> Any:
    """Check a state against the initial one, which stands for what is None."""
    if state is None:
        return initial
    if isinstance(initial, tuple):
        if not isinstance(state, (tuple, list)) or len(state) != len(initial):
            got = len(state) if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"{name}: expected a tuple of {len(initial)}, got {got}")
        return tuple(
            checked(f"{name}[{i}]", part, first)
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
