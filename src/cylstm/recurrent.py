"""What all recurrent layers share: parameters, states, one call down to the kernels per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from cylstm import checks, threads
from cylstm.kernels import dispatch, sequence
from cylstm.params import Array, Parameters

if TYPE_CHECKING:
    from cylstm.params import Rng

State = Any  # an array, or for LSTM a tuple (h, c) of arrays


class Tape(NamedTuple):
    """What one `forward` keeps for `backward`. Opaque; may be used any number of times."""

    layer: Recurrent
    calls: list[sequence.Call]
    masks: list[Array]
    padded: bool
    batched: bool
    steps: int
    rows: int


class Recurrent(Parameters):
    """What RNN, LSTM and GRU share. Subclasses say how many gates and which states there are."""

    #: Gates in PyTorch's order, as stacked in the weights.
    gates: ClassVar[tuple[str, ...]]
    #: The arrays a state consists of.
    states: ClassVar[tuple[str, ...]] = ("h",)
    #: Where `trace` finds the gates among the kernels' slots.
    _traced_slots: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.num_layers = checks.size("num_layers", num_layers)
        self.bias = checks.flag("bias", bias)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.dropout = checks.number("dropout", dropout, 0, 1)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        self.num_directions = 2 if bidirectional else 1
        super().__init__(self._parameter_shapes(), checks.dtype(dtype))
        self._rng = np.random.default_rng(rng)
        bound = 1 / math.sqrt(self.hidden_size)
        self.assign(self._rng.uniform(-bound, bound, self.flat_params.size))

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for suffix in self._suffixes():
            first = suffix.startswith("l0")
            width = self.input_size if first else self.num_directions * self.hidden_size
            shapes[f"weight_ih_{suffix}"] = (rows, width)
            shapes[f"weight_hh_{suffix}"] = (rows, self.hidden_size)
            if self.bias:
                shapes[f"bias_ih_{suffix}"] = (rows,)
                shapes[f"bias_hh_{suffix}"] = (rows,)
        return shapes

    def _suffixes(self) -> list[str]:
        """Names of all directions of all layers, in the order of the states' first axis."""
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in self._directions()]

    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse")[: self.num_directions]

    def __repr__(self) -> str:
        """Show the constructor's main arguments."""
        words = [f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"]
        if self.bidirectional:
            words.append("bidirectional=True")
        return f"{type(self).__name__}({', '.join(words)}, dtype={self.dtype.name!r})"

    # What the kernels need of a cell

    def _cell(self) -> str:
        raise NotImplementedError

    def _slot_bias(self, b_ih: Array, b_hh: Array) -> Array:
        """Biases in the kernels' slot order; those that are only ever added are added here."""
        return b_ih + b_hh

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the packed weights, too."""
        return {k: v for k, v in super().__getstate__().items() if k != "_packed"}

    def _changed(self) -> None:
        self._packed: list[list[sequence.Packed]] | None = None

    def _weights(self, backward: bool) -> list[list[sequence.Packed]]:
        """Packed weights of each direction of each layer, packed again only after a change."""
        found = self._packed
        if found is not None and (found[0][0].backward or not backward):
            return found
        with self._lock:  # so that a change by another thread is seen whole or not at all
            found = self._packed
            if found is None or (backward and not found[0][0].backward):
                packed = [self._pack(suffix, backward) for suffix in self._suffixes()]
                d = self.num_directions
                found = [packed[i : i + d] for i in range(0, len(packed), d)]
                self._packed = found
        return found

    def _pack(self, suffix: str, backward: bool) -> sequence.Packed:
        b_ih, b_hh = (
            self.params.get(f"bias_{which}_{suffix}", np.zeros(len(self.gates) * self.hidden_size))
            for which in ("ih", "hh")
        )
        return sequence.Packed(
            dispatch.table(self.dtype.name),
            self._cell(),
            self.params[f"weight_ih_{suffix}"][None],
            self.params[f"weight_hh_{suffix}"][None],
            self._slot_bias(b_ih, b_hh).astype(self.dtype, copy=False)[None, None],
            backward,
        )

    # Running

    def __call__(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, State]:
        """Run the layer for inference: no tape, no dropout.

        Parameters
        ----------
        x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
            Real numbers of any dtype, cast to the layer's.
        state : array or tuple (h, c) for LSTM, optional
            Initial state, each (num_layers * num_directions, B, H), or without B if unbatched;
            default zeros. None in place of h or c is zeros, too.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. Output beyond a row's
            length is 0, its final state is that of its last valid step, and the reverse
            direction starts there.
        out : ndarray, optional
            Where to write `y`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray of shape (T, B, num_directions * H), laid out as `x`
        state : ndarray or tuple (h, c)
            Final state, shaped as the initial one.

        Raises
        ------
        ValueError, TypeError
            An argument's shape, dtype or value does not fit; named in the message.
        """
        return self._run(x, state, lengths, out, num_threads, False, False)[:2]

    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run the layer for training: with dropout between layers, keeping a tape.

        The output has the same bits as that of a plain call, unless there is dropout. The tape
        refers to `x` without copying it: do not overwrite it before `backward`.

        Parameters
        ----------
        x, state, lengths, out, num_threads
            As for a plain call.

        Returns
        -------
        y : ndarray
        state : ndarray or tuple (h, c)
        tape : Tape
            For `backward`. It remembers the weights, so they may change in between.

        Raises
        ------
        ValueError, TypeError
            As a plain call.
        """
        y, final, calls, masks, shape = self._run(
            x, state, lengths, out, num_threads, True, self.dropout > 0
        )
        return y, final, Tape(self, calls, masks, lengths is not None, *shape)

    def _run(
        self,
        x: Any,
        state: State,
        lengths: Any,
        out: Array | None,
        num_threads: int | None,
        taped: bool,
        drop: bool,
    ) -> tuple[Array, State, list[sequence.Call], list[Array], tuple[bool, int, int]]:
        n_threads = threads.number(num_threads)
        x = checks.array("x", x, self.dtype)
        batched = x.ndim == 3
        if not (batched or x.ndim == 2) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"x: expected shape {'(B, T, I)' if self.batch_first else '(T, B, I)'} or (T, I) "
                f"with I = input_size = {self.input_size}, got {x.shape}"
            )
        y, y_shape = out, (*x.shape[:-1], self.num_directions * self.hidden_size)
        if y is not None:
            checks.out(y, y_shape, self.dtype)
        elif self.batch_first or not batched:
            y = np.empty(y_shape, self.dtype)
        y_inside = None if y is None else self._inward(y, batched)
        x = self._inward(x, batched)
        steps, rows, _ = x.shape
        if lengths is not None:
            lengths = checks.lengths(lengths, rows, steps)
        initial = self._states_in("state", state, rows, batched)
        weights = self._weights(taped)
        calls, masks, finals = [], [], []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            h0 = self._of_layer(initial, layer)
            x, final, call = sequence.forward(
                weights[layer], x, y_inside if last else None, h0, lengths, taped, n_threads
            )
            finals.append(final)
            if taped:
                calls.append(call)
                if drop and not last:
                    masks.append(self._dropout_mask(x.shape))
                    x = x * masks[-1]
        states = self._states_out(finals, batched)
        return x if y is None else y, states, calls, masks, (batched, steps, rows)

    def trace(
        self, x: Any, state: State = None, *, lengths: Any = None
    ) -> dict[str, dict[str, Array]]:
        """Run the layer as a plain call does and return what went on inside.

        Parameters
        ----------
        x, state, lengths
            As for a plain call.

        Returns
        -------
        dict of str to dict of str to ndarray
            For each layer and direction ("l0", "l0_reverse", "l1", ...), arrays of shape
            (T, B, H), laid out as `x`, at original time positions, zero beyond a row's length:
            every activated gate by name (LSTM "input", "forget", "candidate", "output"; GRU
            "reset", "update", "candidate"), "hidden", and for LSTM "cell".
        """
        _, _, calls, _, (batched, steps, rows) = self._run(
            x, state, lengths, None, None, True, False
        )
        traces: dict[str, dict[str, Array]] = {}
        for i, suffix in enumerate(self._suffixes()):
            call, direction = calls[i // self.num_directions], i % self.num_directions
            slots, c, h, time, row = call.recorded(direction)
            named = {name: slots[:, slot] for name, slot in self._traced_slots.items()}
            named["hidden"] = h
            if c is not None:
                named["cell"] = c
            traces[suffix] = {}
            for name, entries in named.items():
                full = np.zeros((steps, rows, self.hidden_size), self.dtype)
                full[time, row] = entries
                traces[suffix][name] = self._outward(full, batched)
        return traces

    def backward(
        self,
        tape: Tape,
        dy: Any,
        dstate: State = None,
        *,
        num_threads: int | None = None,
    ) -> tuple[Array, State]:
        """Propagate gradients back through one `forward`, adding to `grads`.

        Parameters
        ----------
        tape : Tape
            From this layer's `forward`.
        dy : array-like shaped as y, or None
            Gradient of the output; None is zeros. Ignored beyond a row's length.
        dstate : array or tuple (dh, dc) for LSTM, optional
            Gradient of the final state; default zeros.
        num_threads : int, optional
            Most threads to use; never changes a bit of the result.

        Returns
        -------
        dx : ndarray shaped as x
            Zero beyond a row's length.
        dstate : ndarray or tuple (dh, dc)
            Gradient of the initial state.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; `grads` is unchanged then.

        Notes
        -----
        Backpropagation through time (Werbos 1990), exact: nothing is truncated or clipped.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape.layer is not self:
            raise ValueError("tape: expected one of this layer, got one of another layer")
        n_threads = threads.number(num_threads)
        steps, rows, batched = tape.steps, tape.rows, tape.batched
        if dy is not None:
            width = self.num_directions * self.hidden_size
            expected: tuple[int, ...] = (steps, width)
            if batched:
                expected = (rows, steps, width) if self.batch_first else (steps, rows, width)
            dy = checks.shape("dy", checks.array("dy", dy, self.dtype), expected)
            dy = self._inward(dy, batched)
        dfinal = self._states_in("dstate", dstate, rows, batched)
        gradient = np.zeros_like(self.flat_params)
        views = self.split(gradient)
        dinitials: list[tuple[Array, ...]] = []
        for layer in reversed(range(self.num_layers)):
            width = tape.calls[layer].x.shape[2]
            dx = [
                self._empty(steps, rows, width, batched and layer == 0, tape.padded)
                for _ in range(self.num_directions)
            ]
            dinitial = sequence.backward(
                tape.calls[layer],
                dy,
                self._of_layer(dfinal, layer),
                dx,
                [self._gradients(views, f"l{layer}{d}") for d in self._directions()],
                n_threads,
            )
            dinitials.insert(0, dinitial)
            if self.bidirectional:
                dx[0] += dx[1]
            dy = dx[0]
            if layer > 0 and tape.masks:
                dy *= tape.masks[layer - 1]
        with self._lock:
            self.flat_grads += gradient
        return self._outward(dy, batched), self._states_out(dinitials, batched)

    def workspace_nbytes(
        self,
        steps: int,
        rows: int = 1,
        *,
        training: bool = False,
        num_threads: int | None = None,
    ) -> int:
        """Bytes a call on a (T, B, I) input needs beside parameters, outputs and gradients.

        Parameters
        ----------
        steps, rows : int
            T and B, at least 0.
        training : bool, default False
            For `forward` and `backward` together instead of a plain call.
        num_threads : int, optional
            As the call's; each thread has scratch of its own.

        Returns
        -------
        int
            For inference it does not depend on T, but for index tables of 3 integers per step,
            and the outputs between layers. A tape holds per direction, unit (rounded up to whole
            vectors), row and step: LSTM 6 floats (four gates, c, h), GRU 5 (three gates,
            U_n h + b_hn, h), RNN 2; backward adds a bounded workspace and one copy of the
            gradients.

        Raises
        ------
        MemoryError
            It would not fit.
        """
        steps, rows = checks.size("steps", steps, 0), checks.size("rows", rows, 0)
        n_threads = threads.number(num_threads)
        forward, backward = [], [0]
        for weights in self._weights(training):
            f, b = sequence.workspace(weights, steps, rows, training, n_threads)
            forward.append(f)
            backward.append(b)
        between = steps * rows * self.num_directions * self.hidden_size * self.dtype.itemsize
        if training:
            return sum(forward) + max(backward) + between * (self.num_layers - 1)
        return max(forward) + between * min(2, self.num_layers - 1)

    def _gradients(self, views: dict[str, Array], suffix: str) -> tuple[Array | None, ...]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        found = [views.get(f"{name}_{suffix}") for name in names]
        return tuple(
            None if v is None else v[None] if v.ndim == 2 else v[None, None] for v in found
        )

    def _dropout_mask(self, shape: tuple[int, ...]) -> Array:
        """Inverted dropout: 0 with probability p, otherwise 1 / (1 - p)."""
        keep = 1 - self.dropout
        mask = (self._rng.random(shape, np.float32) < keep).astype(self.dtype)
        mask *= 1 / keep if keep else 0
        return mask

    # Layouts: inside, arrays are (T, B, width) and states (L * D, B, H)

    def _inward(self, a: Array, batched: bool) -> Array:
        if not batched:
            return a[:, None]
        return a.swapaxes(0, 1) if self.batch_first else a

    def _outward(self, a: Array, batched: bool) -> Array:
        if not batched:
            return a[:, 0]
        return a.swapaxes(0, 1) if self.batch_first else a

    def _empty(self, steps: int, rows: int, width: int, face: bool, zero: bool) -> Array:
        """Room for dx, in memory order of the caller's layout if he will see it."""
        make = np.zeros if zero else np.empty
        if face and self.batch_first:
            return make((rows, steps, width), self.dtype).swapaxes(0, 1)
        return make((steps, rows, width), self.dtype)

    def _states_in(
        self, name: str, state: State, rows: int, batched: bool
    ) -> tuple[Array | None, ...]:
        if state is None:
            return (None,) * len(self.states)
        layers = self.num_layers * self.num_directions
        shape = (layers, rows, self.hidden_size) if batched else (layers, self.hidden_size)
        found = checks.tensors(name, state, self.states, shape, self.dtype)
        if batched:
            return found
        return tuple([None if s is None else s[:, None] for s in found])

    def _states_out(self, layers: list[tuple[Array, ...]], batched: bool) -> State:
        """Join the states of all layers."""
        states: Sequence[Array] = layers[0]
        if len(layers) > 1:
            states = [np.concatenate(parts) for parts in zip(*layers, strict=True)]
        if not batched:
            states = [s[:, 0] for s in states]
        return states[0] if len(self.states) == 1 else tuple(states)

    def _of_layer(self, states: tuple[Any, ...], layer: int) -> tuple[Any, ...]:
        if self.num_layers == 1:
            return states
        part = slice(layer * self.num_directions, (layer + 1) * self.num_directions)
        return tuple([None if s is None else s[part] for s in states])
