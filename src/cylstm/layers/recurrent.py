"""Recurrent layers at work: forward and backward, one call down to the kernels per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks, runtime
from cylstm.engine import masks, outputs, states, weights
from cylstm.engine.batches import Batch, is_ragged, split
from cylstm.engine.cells import Extras
from cylstm.engine.states import Parts, State
from cylstm.engine.tape import Tape
from cylstm.kernels import sequence
from cylstm.layers.flow import Passed, Run, Steps, parts_of
from cylstm.layers.structure import Structure
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng
    from cylstm.streams import Stream, StreamPool


class Recurrent(Structure):
    """What RNN, LSTM and GRU share; they say which gates, states and options of their own exist."""

    def __call__(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        return_: str | int = "all",
        out: Array | None = None,
        state_out: State = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State]:
        """Run the layer for inference: no tape, nothing dropped, zoneout's expectation.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here. Or a list of arrays (T_i, I), one for each row: no padding, no sorting;
            (T_i, 1, I) and nested lists count as well. Nested lists of numbers that all have the
            same shape are one array.
        state : array or tuple (h, c) for LSTM, optional
            Initial state: h (num_layers * num_directions, B, P), c (num_layers * num_directions,
            B, H), both without B if unbatched; P is `proj_size` or H. One row, B = 1, stands for
            all. Default, also of h or c alone: zeros, or what `learn_initial_state` has learned.
            If layers differ in size, h and c are tuples of one (num_directions, B, size) per layer.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode. A
            list of arrays (T_i,) for a list.
        return_ : {"all", "final", "last", "mean", "max"} or int, default "all"
            Which outputs: of all steps; each direction's final hidden state, side by side or
            merged by `merge_mode` (Keras' `return_sequences=False`); at each row's last step that
            is read (``y`` there, so what the reverse direction has read is that step alone);
            every k-th, ``y[k-1::k]``; the mean or maximum over steps that are read, of each
            direction before merging. Of a row without a step that is read it is 0, and "final"
            its initial h. Only what is returned is made. With `reset` "all", "final" or "last".
        out : ndarray, optional
            Where to write `y`. It may share memory with `x` and `state`.
        state_out : ndarray or tuple (h, c) of ndarrays, optional
            Where to write the final state, shaped as it. It may be `state` itself, and share
            memory with `x`, but not with `out`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray of shape (T, B, num_directions * P), laid out as `x`
            Of (T // k, B, ...) for every k-th output, (B, ...) for one per row. A list for a
            list. For `merge_mode` "separate" a tuple (forward, reverse).
        state : ndarray or tuple (h, c)
            Final state, shaped as the initial one.

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        stack = self._packed or self._weights(False)
        # All at once if everything is as the kernels take it; otherwise it is checked and made so.
        found: tuple[Any, State] | None = stack.run(
            x, state, lengths, mask, reset, return_, out, state_out, num_threads
        )
        if found is not None:
            return found
        return self._run(
            x, state, lengths, mask, reset, return_, out, num_threads, state_out=state_out
        )[:2]

    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        return_: str | int = "all",
        checkpoint: int | str | None = None,
        rng: Rng = None,
        out: Array | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State, Tape]:
        """Run the layer for training: with dropout, zoneout and the like, keeping a tape.

        The output has the same bits as that of a plain call, unless something is random. The tape
        refers to `x` without copying it: do not overwrite it before `backward`.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here. Or a list of arrays (T_i, I), one for each row: no padding, no sorting;
            (T_i, 1, I) and nested lists count as well. Nested lists of numbers that all have the
            same shape are one array.
        state : array or tuple (h, c) for LSTM, optional
            Initial state: h (num_layers * num_directions, B, P), c (num_layers * num_directions,
            B, H), both without B if unbatched; P is `proj_size` or H. One row, B = 1, stands for
            all. Default, also of h or c alone: zeros, or what `learn_initial_state` has learned.
            If layers differ in size, h and c are tuples of one (num_directions, B, size) per layer.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode. A
            list of arrays (T_i,) for a list.
        return_ : {"all", "final", "last", "mean", "max"} or int, default "all"
            Which outputs: of all steps; each direction's final hidden state, side by side or
            merged by `merge_mode` (Keras' `return_sequences=False`); at each row's last step that
            is read (``y`` there, so what the reverse direction has read is that step alone);
            every k-th, ``y[k-1::k]``; the mean or maximum over steps that are read, of each
            direction before merging. Of a row without a step that is read it is 0, and "final"
            its initial h. Only what is returned is made. With `reset` "all", "final" or "last".
        out : ndarray, optional
            Where to write `y`; it must not share memory with `x`.
        checkpoint : int or "sqrt", optional
            Keep the state every so many steps, or sqrt(T), instead of the tape, which `backward`
            then makes again piece by piece (Chen et al. 2016): the same bits for one more
            forward pass. Rounded up to a multiple of the kernels' chunk, ceil(256 / B) steps or
            so. See `workspace_nbytes` for what it saves.
        rng : int or numpy.random.Generator, optional
            Source of this call's masks; the same int gives the same ones. Default the layer's.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray of shape (T, B, num_directions * P), laid out as `x`
            Of (T // k, B, ...) for every k-th output, (B, ...) for one per row. A list for a
            list. For `merge_mode` "separate" a tuple (forward, reverse).
        state : ndarray or tuple (h, c)
            Final state, shaped as the initial one.
        tape : Tape
            For `backward`. It remembers the weights, so they may change in between.

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        checkpoint = self._interval(checkpoint)
        generator = self._rng if rng is None else checks.generator("rng", rng)
        if checkpoint is None and reset is None and not self._draws and not self.dropout:
            found = self._weights(True).record(x, state, lengths, mask, return_, out, num_threads)
            if found is not None:
                y, final, calls, x, lengths = found
                batch = Batch.of_read(x, lengths, mask is not None, return_, self.batch_first)
                return y, final, Tape.plain(self, batch, calls, state)
        return self._run(
            x, state, lengths, mask, reset, return_, out, num_threads, True, checkpoint, generator
        )

    def stream(self, batch_size: int = 1, *, num_threads: int | None = None) -> Stream:
        """Make a stream: rows that are fed frame by frame, and remember their state.

        Parameters
        ----------
        batch_size : int, default 1
            B, the number of rows that step together.
        num_threads : int, optional
            Most threads that a step may use; default `get_num_threads()`.

        Returns
        -------
        cylstm.streams.Stream
            In the initial state. It has `step(x, out=None)` for a frame (I,) or (B, I), `push` for
            many of them, `reset`, `state`, `snapshot` and `restore`.

        Raises
        ------
        ValueError, TypeError
            The layer is bidirectional or goes backwards, or an argument is not as described.
        """
        from cylstm.streams import Stream  # not needed to run

        return Stream(self, batch_size, num_threads=num_threads)

    def pool(
        self, capacity: int, *, latency: float = 0.0, clock: Callable[[], float] | None = None
    ) -> StreamPool:
        """Make a pool: independent streams over these weights, any of which step together.

        Parameters
        ----------
        capacity : int
            Most streams that can be open at once, up to 2**24.
        latency : float, default 0
            Seconds that a frame given to `submit` may wait for others before it is `due`.
        clock : callable, optional
            Returns seconds as a float; default `time.monotonic`.

        Returns
        -------
        cylstm.streams.StreamPool
            Without streams. `open` returns the id of a new one, `step(ids, x, out=None)` feeds some
            of them, `close(id)` closes one.

        Raises
        ------
        ValueError, TypeError
            The layer is bidirectional or goes backwards, or an argument is not as described.
        """
        from cylstm.streams import StreamPool  # not needed to run

        return StreamPool(self, capacity, latency=latency, clock=clock)

    def _run(
        self, x: Any, state: State, lengths: Any, mask: Any = None, reset: Any = None,
        return_: str | int = "all", out: Array | None = None, num_threads: int | None = None,
        taped: bool = False, checkpoint: int | str | None = None,
        rng: np.random.Generator | None = None, record: bool = False, state_out: State = None,
        attention: Any = None,
    ) -> tuple[Any, State, Any]:  # fmt: skip
        n_threads = runtime.number(num_threads)
        batch = Batch(
            x, self.input_size, self.dtype, self.batch_first, lengths, mask, return_, reset,
            attention,
        )  # fmt: skip
        if rng is not None and self.variational and batch.ragged:
            raise ValueError("x: expected an array with variational=True, got a list")
        # Most calls need none of what `outputs` does, and some of them take microseconds.
        direct = batch.direct and out is None and self.num_directions == 1
        x, y_inside = batch.x, None if direct else outputs.place(self, out, batch, taped)
        if state_out is not None:
            states.look_out(self, state_out, batch, out)
        given = states.inward(self, "state", state, batch)
        initial = states.spread(self, given, batch)
        calls: list[sequence.Call] = []
        drawings: list[masks.Masks] = []
        kept: list[Array | None] = []
        finals = []
        stack = self._weights(taped)
        for depth, directions in enumerate(stack.layers):
            last = depth == self.num_layers - 1
            asked: dict[str, Any] = {}
            if taped:
                drawn = {} if rng is None else masks.of_layer(self, depth, batch, rng)
                asked = self._asked(batch.steps, drawn, checkpoint, record)
                drawings.append(drawn)
                directions = self._dropped(depth, drawn, directions)
            inside = y_inside if last else None
            if batch.segments is not None:
                inside = outputs.blank(self, depth, batch, inside)
            both, final, call = sequence.forward(
                directions, x, inside, initial[depth], batch.counts, taped, n_threads,
                batch.extras(last, asked) if asked or not batch.plain else None,
            )  # fmt: skip
            finals.append(final)
            if last and batch.segments is not None and batch.pick != "all":
                both = outputs.of_rows(self, both, batch)
            x = both if direct else outputs.join(self, both, batch if last else None)
            calls.append(call)
            if taped:
                kept.append(both if self.merge_mode == "mul" else None)
                if rng is not None and self.dropout and not last:
                    drawn["dropout"] = masks.between(self, x.shape, rng)
                    x = x * drawn["dropout"]
        y = x if direct else outputs.result(self, x, batch, out, y_inside)
        finals = states.of_rows(self, finals, batch)
        if not taped:
            final = states.outward(self, finals, batch)
            return y, final if state_out is None else states.copied(final, state_out), None
        tape = Tape(self, batch, calls, drawings, kept, states.rows_given(self, given))
        return y, states.outward(self, finals, batch), tape

    def _dropped(
        self, depth: int, drawn: masks.Masks, directions: list[sequence.Packed]
    ) -> list[sequence.Packed]:
        """Weights of one layer with elements of weight_hh dropped, if any are."""
        if "dropconnect" not in drawn:
            return directions
        return [
            weights.pack(self, f"l{depth}{d}", True, mask)
            for d, mask in zip(self._directions(), drawn["dropconnect"], strict=True)
        ]

    @staticmethod
    def _interval(checkpoint: int | str | None) -> int | str | None:
        if checkpoint is None or isinstance(checkpoint, str):
            return (
                checkpoint
                if checkpoint is None
                else checks.choice("checkpoint", checkpoint, ("sqrt",))
            )
        return checks.size("checkpoint", checkpoint)

    def _asked(
        self, n_steps: int, drawn: masks.Masks, checkpoint: int | str | None, record: bool
    ) -> dict[str, Any]:
        """Collect what one layer's call asks of the kernels in addition to a plain pass."""
        if not drawn and checkpoint is None and not record:
            return {}
        names = {"recurrent": "recurrent", "zoneout": "zone_h", "zoneout_cell": "zone_c"}
        found = {names[name]: mask for name, mask in drawn.items() if name in names}
        if checkpoint is not None:
            steps = math.isqrt(max(0, n_steps - 1)) + 1 if checkpoint == "sqrt" else checkpoint
            found["checkpoint"] = steps
        if record:
            found["record"] = True
        return found

    def trace(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
    ) -> dict[str, dict[str, Array]]:
        """Run the layer for inference and return what went on inside.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's; CPU tensors of PyTorch and JAX are
            arrays here. No list of rows of different lengths.
        state : array or tuple (h, c) for LSTM, optional
            Initial state: h (num_layers * num_directions, B, P), c (num_layers * num_directions,
            B, H), both without B if unbatched; P is `proj_size` or H. One row, B = 1, stands for
            all. Default, also of h or c alone: zeros, or what `learn_initial_state` has learned.
            If layers differ in size, h and c are tuples of one (num_directions, B, size) per layer.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`. Others are
            passed over: the state stays as it is, the output is 0 and x is not looked at.
        reset : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: where a new episode begins. Before such a step, read or
            not, the state is the default initial one again, and gradients stop: the same bits as
            separate calls on the episodes. `state` is the one before the first step, so it does
            not count where that is a reset. A direction that reads backwards is cut at the same
            places: it starts from `state` after the last step and ends with the first episode.

        Returns
        -------
        dict of str to dict of str to ndarray
            For each layer and direction ("l0", "l0_reverse", "l1", ...), arrays of shape
            (T, B, H), laid out as `x`, at original time positions, zero at steps that are not
            read: every activated gate by name (LSTM "input", "forget", "candidate", "output";
            GRU "reset", "update", "candidate"), its pre-activation, before any clip, as
            "<gate>_preactivation" (RNN: "hidden_preactivation"), "hidden", and for LSTM "cell".

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        return self._traced(x, state, lengths, mask, reset)

    def _traced(
        self, x: Any, state: State, lengths: Any, mask: Any, reset: Any, attention: Any = None
    ) -> dict[str, dict[str, Array]]:
        """Do what `trace` says."""
        if is_ragged(x):
            raise ValueError("x: expected an array, got a list")
        tape = self._run(
            x, state, lengths, mask, reset, taped=True, record=True, attention=attention
        )[2]
        return {suffix: tape.recorded(i) for i, suffix in enumerate(self._suffixes())}

    def backward(
        self,
        tape: Tape,
        dy: Any,
        dstate: State = None,
        *,
        clip_step: float | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, ...]:
        """Propagate gradients back through one `forward`, adding to `grads`.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`.
        dy : array-like shaped as y, or None
            Gradient of the output; None is zeros. Ignored at steps that were not read.
        dstate : array or tuple (dh, dc) for LSTM, optional
            Gradient of the final state, shaped as it; default zeros.
        clip_step : float, optional
            Bound of the gradient of every gate's pre-activation at every step, as Graves (2013)
            did against exploding gradients. Default none: the gradient is exact.
        num_threads : int, optional
            Most threads to use; never changes a bit of the result.

        Returns
        -------
        dx : ndarray shaped as x
            Zero at steps that were not read. A list for a list.
        dstate : ndarray or tuple (dh, dc)
            Gradient of the initial state, shaped as it: of one row if one was given for all.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; `grads` is unchanged then.

        Notes
        -----
        Backpropagation through time (Werbos 1990). Where the maximum over time was returned, its
        gradient goes to the step that reached it, the one read last if there were several.
        """
        return self._backward(tape, dy, dstate, clip_step, num_threads)[:2]

    def _backward(
        self, tape: Tape, dy: Any, dstate: State, clip_step: float | None, num_threads: int | None
    ) -> tuple[Any, State, Any]:
        """Do what `backward` says; return also the gradient of the attention, if any was given."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape.layer is not self:
            raise ValueError("tape: expected one of this layer, got one of another layer")
        n_threads, bound = runtime.number(num_threads), checks.bound("clip_step", clip_step) or 0.0
        batch = tape.batch
        if dy is not None:
            dy = outputs.gradient(self, dy, batch)
        dfinals = states.inward(self, "dstate", dstate, batch)
        dfinals = states.of_segments(self, dfinals, batch)
        dinitials: list[Parts] = []
        calls: list[sequence.Call] = []
        attentions: list[Array] = []
        for depth in reversed(range(self.num_layers)):
            drawn, both = tape.masks[depth], None
            if dy is not None:
                if "dropout" in drawn:
                    dy = dy * drawn["dropout"]
                both = outputs.part(
                    self, dy, batch if depth == self.num_layers - 1 else None, tape.both[depth]
                )
            dx = [self._room(batch, depth) for _ in range(self.num_directions)]
            if batch.attention is not None:
                attentions += [np.zeros(batch.attention.shape, self.dtype) for _ in dx]
            dinitial, call = sequence.backward(
                tape.calls[depth], both, dfinals[depth], dx, n_threads, bound,
                attentions[-len(dx) :] or None,
            )  # fmt: skip
            dinitials.insert(0, dinitial)
            calls.insert(0, call)
            if self.bidirectional:
                dx[0] += dx[1]
            dy = dx[0]
        dinitials, learned = states.d_spread(self, dinitials, tape.given, batch)
        # Only now that nothing can fail any more.
        with self._lock:
            weights.add_gradients(self, calls, [m.get("dropconnect") for m in tape.masks])
            for name, sums in learned.items():
                self._grad_views[name] += sums
        dattention = batch.attention_outward(np.sum(attentions, axis=0)) if attentions else None
        return batch.x_outward(dy), states.outward(self, dinitials, batch), dattention

    # On the way through a network

    _skips_unread = _leaves_zeros = _has_state = _looks_along_time = True

    @property
    def _width(self) -> int:  # type: ignore[override]
        return self.input_size

    @property
    def _batch_first(self) -> bool:  # type: ignore[override]
        return self.batch_first

    def _features(self, width: int | None) -> int:
        """Say how many features the output has."""
        return self._merged(-1)

    def _refuse_stream(self, path: str) -> None:
        from cylstm.streams import state_rows  # not needed to run

        try:
            state_rows.refuse_what_looks_ahead(self)
        except ValueError as error:
            raise ValueError(f"{path} ({type(self).__name__}): {error}") from None

    def _initial_state(self, rows: int) -> State:
        """Return zeros, or what has been learned."""
        from cylstm.streams import state_rows  # not needed to run

        return state_rows.outward(self, state_rows.initial(self, rows))

    def _pass(
        self, x: Array, state: Any, steps: Steps, run: Run, return_: str = "all"
    ) -> Passed:  # fmt: skip
        asked: dict[str, Any] = {"return_": return_, "num_threads": run.threads}
        if not steps.ragged:
            asked |= {"lengths": steps.lengths, "mask": steps.mask}
        given = parts_of(x, steps) if steps.ragged else x
        tape = None
        if run.taped:
            y, state, tape = self.forward(given, state, rng=run.rng, **asked)
        else:
            y, state = self(given, state, **asked)
        if return_ != "all":
            return Passed(y, steps._replace(timed=False), state, (tape, False))
        if steps.ragged:
            y = np.concatenate(y or [np.empty((0, self._merged(-1)), self.dtype)])
        return Passed(y, steps, state, (tape, steps.ragged))

    def _check_back(self, tape: Any, dstate: Any) -> None:
        states.inward(self, "dstate", dstate, tape[0].batch)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        own, in_parts = tape
        batch = own.batch
        given: Any = split(dy[:, None], batch.lengths) if in_parts else dy
        dx, dfirst, *_ = self.backward(own, given, dstate, num_threads=run.threads)
        if batch.ragged:
            dx = np.concatenate(dx or [np.empty((0, self.input_size), self.dtype)])
        return dx, dfirst

    def _room(self, batch: Batch, depth: int) -> Array:
        """Room for dx, in memory order of the caller's layout if he will see it."""
        width = self.input_sizes[depth]
        if depth == 0:
            return batch.empty(batch.x.shape[0], width, self.dtype, batch.padded)
        make = np.zeros if batch.padded else np.empty
        return make((*batch.x.shape[:2], width), self.dtype)

    def workspace_nbytes(
        self,
        steps: int,
        rows: int = 1,
        *,
        training: bool = False,
        checkpoint: int | str | None = None,
        num_threads: int | None = None,
    ) -> int:
        """Bytes that a call on a (T, B, I) input allocates, without allocating them.

        Not counted are parameters, gradients, the parameters' packed copy (of the same size, twice
        that for training; made here if there is none yet), and what the call returns.

        Parameters
        ----------
        steps : int
            T.
        rows : int, default 1
            B.
        training : bool, default False
            Count `forward` and `backward` together instead of a plain call.
        checkpoint : int or "sqrt", optional
            What `forward` would be given: steps between kept states, or sqrt(T) of them.
        num_threads : int, optional
            Most threads that the call would use; each has scratch of its own.

        Returns
        -------
        int
            For inference it does not depend on T, but for index tables of 4 integers per step and
            the outputs between layers. A tape holds per direction, unit (rounded up to whole
            vectors), row and step: LSTM 6 floats (four gates, c, h), GRU 5 (three gates,
            U_n h + b_hn, h), RNN 2; activations other than tanh, sigmoid and relu, or a clip, add
            one for each gate, layer norms one ("tflite") or two ("haste"). With checkpoints it
            is as long as one of their intervals, and there is one state per interval. Backward
            adds a bounded workspace and one copy of the gradients. Between calls at most 256 KB
            are held for each of `num_layers` and of the last four shapes, for calls of these.

        Raises
        ------
        MemoryError
            It would not fit.
        """
        steps, rows = checks.size("steps", steps, 0), checks.size("rows", rows, 0)
        n_threads = runtime.number(num_threads)
        forward, backward, sums, between = [], [0], [0], [0]
        checkpoint = self._interval(checkpoint)
        extras = Extras(**self._asked(steps, {}, checkpoint, False))
        for depth, packed in enumerate(self._weights(training).layers):
            f, b, g = sequence.workspace(packed, steps, rows, training, n_threads, extras)
            forward.append(f)
            backward.append(b)
            sums.append(g)
            if depth < self.num_layers - 1:
                between.append(steps * rows * self._merged(depth) * self.dtype.itemsize)
        if training:
            return sum(forward) + max(backward) + sum(sums) + sum(between)
        return max(forward) + sum(sorted(between)[-2:])
