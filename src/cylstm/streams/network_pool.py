"""Pools of independent streams over one network."""

from __future__ import annotations

import os
import time
import weakref
from _thread import RLock
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.layers import flow
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.module import Array
from cylstm.streams import snapshots
from cylstm.streams.network import checked
from cylstm.streams.pool import MOST_STREAMS, PoolFullError
from cylstm.streams.snapshots import arrays, each

if TYPE_CHECKING:
    from cylstm.layers.network import Network

_alive: weakref.WeakSet[NetworkPool] = weakref.WeakSet()
_ids = count()


def _after_fork() -> None:
    for pool in _alive:
        pool._lock = RLock()  # another thread's, which is no more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class NetworkPool:
    """Independent streams that share a network's weights, any of which are stepped together.

    A stream is known by its id, an integer that no other stream over a network ever gets, so that
    the id of a closed one is refused for ever. Its outputs and state have the bits that it would
    have alone, whoever steps with it. Opening and closing take constant time. A change of the
    network's weights counts from the next step on.

    Methods may be called by different threads, of which one at a time works. A pool cannot be
    pickled or copied: its ids are known to clients of this process.

    Parameters
    ----------
    network : Sequential, Residual or Concat
        Of modules of which none looks ahead.
    capacity : int
        Most streams that can be open at once, up to 2**24. Memory of slots that are never used is
        not touched.
    clock : callable, optional
        Returns seconds as a float, for idle times. Default `time.monotonic`.

    Attributes
    ----------
    network, capacity
        As given; read-only.

    Raises
    ------
    ValueError, TypeError
        A module looks ahead, or an argument is not as described.
    """

    def __init__(
        self, network: Network, capacity: int, *, clock: Callable[[], float] | None = None
    ) -> None:
        network._refuse_stream("")
        slots = checks.size("capacity", capacity)
        if slots > MOST_STREAMS:
            raise ValueError(f"capacity: expected at most {MOST_STREAMS}, got {slots}")
        if clock is not None and not callable(clock):
            raise TypeError(f"clock: expected a callable or None, got {clock!r}")
        self._network: Any = network
        self._capacity, self._clock = slots, clock or time.monotonic
        self._slots: dict[int, int] = {}
        self._used: dict[int, float] = {}
        self._free: list[int] = []
        self._fresh = 0  # slots from here on have never been used
        self._states = each(
            lambda a: np.zeros((a.shape[0], slots, a.shape[2]), a.dtype), self._initial()
        )
        self._lock = RLock()
        _alive.add(self)

    @property
    def network(self) -> Network:
        """The network that is fed."""
        found: Network = self._network
        return found

    @property
    def capacity(self) -> int:
        """Most streams that can be open at once."""
        return self._capacity

    def __repr__(self) -> str:
        """Show the network and how many streams are open."""
        return f"<pool of {self._network!r}: {len(self)} of {self.capacity} streams open>"

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[int]:
        """Ids of the streams that are open now."""
        return iter(list(self._slots))

    def __contains__(self, id: object) -> bool:
        """Whether a stream of this id is open."""
        return isinstance(id, (int, np.integer)) and int(id) in self._slots

    def __reduce__(self) -> Any:
        """Say why a pool cannot be pickled or copied."""
        raise TypeError(
            "a pool cannot be pickled or copied: its ids are known to clients of this process; "
            "move its streams one by one, by snapshot and restore"
        )

    def _initial(self) -> Any:
        return self._network._initial_state(1)

    def _slot(self, id: Any) -> int:
        """Find an open stream."""
        number = checks.size("id", id, 0)
        if number not in self._slots:
            raise ValueError(f"id: expected that of an open stream, got {number}")
        return self._slots[number]

    def _load(self, slot: int, state: Any) -> None:
        for mine, given in zip(arrays(self._states), arrays(state), strict=True):
            mine[:, slot] = given[:, 0]

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
        with self._lock:
            if len(self) == self.capacity:
                raise PoolFullError(
                    f"open: expected fewer than capacity={self.capacity} open streams, got "
                    f"{len(self)}: close some, or those of clients gone away by close_idle"
                )
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._fresh = self._fresh, self._fresh + 1
            self._load(slot, self._initial())
            id = next(_ids)
            self._slots[id], self._used[id] = slot, self._clock()
            return id

    def close(self, id: int) -> None:
        """Close a stream.

        Parameters
        ----------
        id : int
            From `open`. From now on it is refused.

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        with self._lock:
            self._free.append(self._slot(id))
            del self._slots[int(id)], self._used[int(id)]

    def idle(self, id: int) -> float:
        """Return for how many seconds a stream has not been opened, fed or set.

        Parameters
        ----------
        id : int

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        with self._lock:
            self._slot(id)
            return self._clock() - self._used[int(id)]

    def close_idle(self, seconds: float) -> list[int]:
        """Close streams that have not been used for some time, as those of clients gone away.

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
        with self._lock:
            closed = [id for id in self if self.idle(id) >= limit]
            for id in closed:
                self.close(id)
        return closed

    def reset(self, id: int) -> None:
        """Put a stream back to the initial state.

        Parameters
        ----------
        id : int

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        self.set_state(id, None)

    def state(self, id: int) -> Any:
        """Return the state of a stream as the network does for a batch of one row, in new arrays.

        Parameters
        ----------
        id : int

        Returns
        -------
        tuple
            An entry for each module that has a state.

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        with self._lock:
            slot = self._slot(id)
            return each(lambda a: a[:, slot : slot + 1].copy(), self._states)

    def set_state(self, id: int, state: Any) -> None:
        """Set the state of a stream.

        Parameters
        ----------
        id : int
        state : tuple, or None
            As `state` returns it; None, also for a module alone, is the initial state.

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream, or the state does not fit; the stream is as before.
        """
        with self._lock:
            slot = self._slot(id)
            self._load(slot, checked("state", state, self._initial()))
            self._used[int(id)] = self._clock()

    def snapshot(self, id: int) -> bytes:
        """Return the state of a stream as bytes, from which `restore` goes on with the same bits.

        Parameters
        ----------
        id : int

        Returns
        -------
        bytes
            A snapshot of one row, which a stream of `batch_size=1` takes as well.

        Raises
        ------
        ValueError, TypeError
            It is not that of an open stream.
        """
        return snapshots.pack_state(self._network, self.state(id), 1)

    def restore(self, id: int, snapshot: bytes) -> None:
        """Set the state of a stream to that of a snapshot.

        Parameters
        ----------
        id : int
            Of an open stream.
        snapshot : bytes
            From `snapshot` of a pool, or of a stream of one row, over a network with the same
            options and weights.

        Raises
        ------
        ValueError, TypeError
            The id is not that of an open stream, or the snapshot is damaged, cut short, of another
            version of the format, or of a network with other sizes, options or weights. The stream
            is as before.
        """
        self._slot(id)
        self.set_state(id, snapshots.unpack_state(self._network, snapshot, self._initial(), 1))

    def step(
        self, ids: Any, x: Any, out: Array | None = None, *, num_threads: int | None = None
    ) -> Array:
        """Feed one frame to each of some streams, and go on to the states after it.

        Parameters
        ----------
        ids : sequence of int of shape (n,)
            Of open streams, each once, in any order.
        x : array-like of shape (n, C)
            Their frames; where the network begins with an `Embedding` ids of shape (n,).
        out : ndarray of shape (n, F), optional
            Where to write the outputs. It may share memory with `x`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        ndarray of shape (n, F)

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the states are as before.
        """
        net = self._network
        runtime.number(num_threads)
        which = checks.read("ids", ids)
        if which.dtype.kind not in "iu" and not checks.empty_list(ids):
            raise TypeError(f"ids: expected integers, got dtype {which.dtype}")
        if which.ndim != 1:
            raise ValueError(f"ids: expected shape (n,), got {which.shape}")
        found = net._ids("x", x) if net._reads_ids else flow.numbers(net, "x", x)
        if found.ndim != 2 - net._reads_ids or len(found) != len(which):
            last = () if net._reads_ids else (found.shape[-1] if found.ndim else "C",)
            raise ValueError(f"x: expected shape {tuple([len(which), *last])}, got {found.shape}")
        if net._reads_ids:
            net._check_ids("x", found)
        if out is not None:
            width = net._features(None if net._reads_ids else found.shape[-1])
            checks.out(out, (len(which), width), net.dtype if net._typed else found.dtype)
        steps = Steps(net._time_second)
        with self._lock:
            slots = np.array([self._slot(id) for id in which.tolist()], np.intp)
            if len(np.unique(slots)) < len(slots):
                raise ValueError("ids: expected each stream once, got one twice")
            given = each(lambda a: a[:, slots], self._states)
            passed: Passed = net._pass(
                steps.from_rows(found[:, None]), given, steps, Run(False, num_threads)
            )
            for mine, new in zip(arrays(self._states), arrays(passed.state), strict=True):
                mine[:, slots] = new
            self._used.update(dict.fromkeys(which.tolist(), self._clock()))
        y = passed.y.squeeze(steps.time)
        if out is None:
            return y.copy() if np.may_share_memory(y, found) else y
        out[...] = y
        return out
