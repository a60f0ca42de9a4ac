"""What networks can do as a whole: one call, one tape, one backward, streams, summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from cylstm import checks
from cylstm.layers import flow
from cylstm.layers.container import Container
from cylstm.layers.flow import FlowTape, Run

if TYPE_CHECKING:
    from cylstm.layers.summary import Summary
    from cylstm.module import Rng
    from cylstm.streams.network import NetworkStream
    from cylstm.streams.network_pool import NetworkPool


class Network(Container):
    """Modules that are called as one."""

    # Calls

    def __call__(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        num_threads: int | None = None,
    ) -> tuple[Any, Any]:
        """Run the network for inference: no tape, nothing dropped, running statistics.

        Parameters
        ----------
        x : array-like of shape (T, B, C), (B, T, C) if `batch_first`, or (T, C) unbatched
            Real numbers, cast to the network's dtype, or integers without the axis C where the
            first module is an `Embedding`. Or a list of arrays (T_i, C), one for each row. Where
            no module looks along time, any leading shape will do.
        state : tuple, optional
            Initial state: one entry, as the module takes it, for each that has a state, which may
            be None. Default all initial.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. What is beyond is not
            looked at, and the output there is 0.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray, or a list of such for a list
            The last module's output, laid out as `x`; without an axis of time after a `Pool`.
        state : tuple
            Final state, one entry for each module that has one.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; named in the message, with the path of the module that says
            so.
        """
        y, final, _ = flow.call(self, x, state, lengths, mask, Run(False, num_threads))
        return y, final

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        rng: Rng = None,
        num_threads: int | None = None,
    ) -> tuple[Any, Any, FlowTape]:
        """Run the network for training: with dropout and batch statistics, keeping a tape.

        The tape refers to arrays without copying them: do not overwrite `x` before `backward`.

        Parameters
        ----------
        x : array-like of shape (T, B, C), (B, T, C) if `batch_first`, or (T, C) unbatched
            Real numbers, cast to the network's dtype, or integers without the axis C where the
            first module is an `Embedding`. Or a list of arrays (T_i, C), one for each row. Where
            no module looks along time, any leading shape will do.
        state : tuple, optional
            Initial state: one entry, as the module takes it, for each that has a state, which may
            be None. Default all initial.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. What is beyond is not
            looked at, and the output there is 0.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`.
        rng : int or numpy.random.Generator, optional
            Source of all random masks of this call; the same int gives the same ones. Default the
            modules' own.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray, or a list of such for a list
            The last module's output, laid out as `x`; without an axis of time after a `Pool`.
        state : tuple
            Final state, one entry for each module that has one.
        tape : FlowTape
            For `backward`. It remembers the weights, so they may change in between.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; named in the message, with the path of the module that says
            so.
        """
        generator = None if rng is None else checks.generator("rng", rng)
        run = Run(True, num_threads, generator)
        y, final, tape = flow.call(self, x, state, lengths, mask, run)
        assert tape is not None
        return y, final, tape

    def backward(
        self, tape: FlowTape, dy: Any, dstate: Any = None, *, num_threads: int | None = None
    ) -> tuple[Any, Any]:
        """Propagate gradients back through one `forward`, adding to `grads`.

        Parameters
        ----------
        tape : FlowTape
            From this network's `forward`; may be used several times.
        dy : array-like shaped as y, or None
            Gradient of the output; None is zeros. Ignored at steps that were not read.
        dstate : tuple, optional
            Gradient of the final state, one entry or None for each module that has a state.
        num_threads : int, optional
            Most threads to use; never changes a bit of the result.

        Returns
        -------
        dx : ndarray shaped as x, or None
            Zero at steps that were not read. A list for a list. None where x names things.
        dstate : tuple
            Gradient of the initial state, shaped as that.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; `grads` is unchanged then.
        """
        return flow.back(self, tape, dy, dstate, Run(True, num_threads))

    def stream(self, batch_size: int = 1, *, num_threads: int | None = None) -> NetworkStream:
        """Make a stream: rows that are fed frame by frame, and remember their state.

        Parameters
        ----------
        batch_size : int, default 1
            B, the number of rows that step together.
        num_threads : int, optional
            Most threads that a step may use; default `get_num_threads()`.

        Returns
        -------
        cylstm.streams.NetworkStream
            In the initial state. It has `step(x, out=None)` for a frame (C,) or (B, C), `push` for
            many of them, `reset`, `state`, `snapshot` and `restore`.

        Raises
        ------
        ValueError
            A module looks ahead: a layer that is bidirectional or goes backwards, a `Pool`, a
            `Conv1d` that is not causal or has a stride. The message has its path.
        TypeError
            An argument is not as described.
        """
        from cylstm.streams.network import NetworkStream  # not needed to run

        return NetworkStream(self, batch_size, num_threads=num_threads)

    def summary(self, shape: Sequence[int]) -> Summary:
        """Say what the network consists of and what it makes of an input; nothing is computed.

        Parameters
        ----------
        shape : tuple of int
            Of the input: (T, B, C), (B, T, C) if `batch_first`, or (T, C); without C where the
            network begins with an `Embedding`.

        Returns
        -------
        Summary
            `rows` has for each module its path, class, output shape, parameters, multiply-adds and
            bytes; `str` makes a table of it. A recurrent layer before a `Pool` that it does itself
            is listed with all its outputs.

        Raises
        ------
        ValueError
            It is not the shape of an input.
        """
        from cylstm.layers import summary  # which imports this module

        return summary.of(self, shape)

    def workspace_nbytes(
        self, shape: Sequence[int], *, training: bool = False, num_threads: int | None = None
    ) -> int:
        """Bound the bytes that a call on an input of some shape allocates, without a call.

        With what it returns, for an input of the network's dtype. Not counted are parameters,
        gradients, and scratch of the kernels of about a megabyte for each thread; `lengths`, a
        mask or another dtype add copies of the input and of the output.

        Parameters
        ----------
        shape : tuple of int
            Of the input: (T, B, C), (B, T, C) if `batch_first`, or (T, C); without C where the
            network begins with an `Embedding`.
        training : bool, default False
            Count `forward` and `backward` together instead of a plain call.
        num_threads : int, optional
            Most threads that the call would use.

        Returns
        -------
        int
            For inference the largest of what a module takes with its input and its output. For
            training the sum of all outputs and tapes, and the most that any module takes for a
            while. A tape holds: of a recurrent layer what its own `workspace_nbytes` says; of a
            norm its input in float64; of a convolution the padded input, twice with a dilation; of
            an activation its input; of a `Dropout` the mask.

        Raises
        ------
        ValueError
            It is not the shape of an input.
        TypeError
            `training` is not a bool.
        """
        from cylstm.layers import memory  # which imports this module

        return memory.of(self, shape, checks.flag("training", training), num_threads)

    def folded(self) -> Self:
        """Return a copy for inference whose weights do what `BatchNorm` did.

        Each one goes into the `Linear` or `Conv1d` before it that has no activation, or else into
        the `Linear`, the `Conv1d` without padding or the recurrent layer with biases after it. A
        module that comes twice or shares weights is left alone, and so is a norm that has nowhere
        to go. Names stay; those of the norms are missing.

        Returns
        -------
        Sequential, Residual or Concat
            With parameters of its own; outputs are the same to rounding.
        """
        from cylstm.layers import folding  # which imports this module

        found: Self = folding.folded(self)
        return found

    def pool(self, capacity: int, *, clock: Callable[[], float] | None = None) -> NetworkPool:
        """Make a pool: independent streams over these weights, any of which step together.

        Parameters
        ----------
        capacity : int
            Most streams that can be open at once, up to 2**24.
        clock : callable, optional
            Returns seconds as a float, for idle times; default `time.monotonic`.

        Returns
        -------
        cylstm.streams.NetworkPool
            Without streams. `open` returns the id of a new one, `step(ids, x, out=None)` feeds some
            of them, `close(id)` closes one.

        Raises
        ------
        ValueError, TypeError
            A module looks ahead, or an argument is not as described.
        """
        from cylstm.streams.network_pool import NetworkPool  # not needed to run

        return NetworkPool(self, capacity, clock=clock)

    # States

    def _refuse_stream(self, path: str) -> None:
        for name, child in self._children.items():
            child._refuse_stream(f"{path}.{name}".lstrip("."))

    def _initial_state(self, rows: int) -> Any:
        """Return the state of streams at first: an entry for each module that has one."""
        return tuple(self._children[name]._initial_state(rows) for name in self._stateful())

    def _stateful(self) -> list[str]:
        """Names of the modules that have a state."""
        return [name for name, child in self._children.items() if child._has_state]

    def _states(self, name: str, state: Any) -> dict[str, Any]:
        """Check a state or a gradient of one, and return what there is for each module."""
        names = self._stateful()
        if state is None:
            return dict.fromkeys(names)
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            got = f"{len(state)} entries" if isinstance(state, (tuple, list)) else repr(state)
            raise (ValueError if isinstance(state, (tuple, list)) else TypeError)(
                f"{name}: expected a tuple with an entry for each of the modules {names}, got {got}"
            )
        return dict(zip(names, state, strict=True))

    def _check_back(self, tape: Any, dstate: Any) -> None:
        given = self._states("dstate", dstate)
        for name, own in given.items():
            try:
                self._children[name]._check_back(tape[name], own)
            except (TypeError, ValueError) as error:
                flow.named(error, name, self._children[name])
