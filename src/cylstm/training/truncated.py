"""Truncated backpropagation through time: windows of steps, each with gradients of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks, runtime
from cylstm.engine import states
from cylstm.engine.batches import Batch
from cylstm.engine.states import State
from cylstm.engine.tape import Tape
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng


class Piece(NamedTuple):
    """Steps start to stop - 1 with the tape of one `forward` over them. Opaque."""

    start: int
    stop: int
    tape: Tape


class Window(NamedTuple):
    """Steps `start` to `stop` - 1 of a sequence, as `truncated_bptt` yields them.

    Attributes
    ----------
    layer : RNN, LSTM or GRU
    start, stop : int
        The window's steps.
    reach : int
        max(0, stop - k2): how far back `backward` goes.
    y : ndarray of shape (stop - start, B, .), laid out as the layer's output
    state : ndarray or tuple (h, c)
        State after step `stop` - 1, to go on from in another call.
    pieces : tuple
        Tapes of the steps from `reach` on. Opaque.
    """

    layer: Recurrent
    start: int
    stop: int
    reach: int
    y: Array
    state: State
    pieces: tuple[Piece, ...]

    def __repr__(self) -> str:
        """Show the steps, not what is kept of them."""
        steps = f"steps {self.start} to {self.stop - 1}, gradients from step {self.reach} on"
        return f"<window of {self.layer!r}: {steps}>"

    def backward(
        self, dy: Any, *, clip_step: float | None = None, num_threads: int | None = None
    ) -> tuple[Array, State]:
        """Propagate the gradient of this window's output back to step `reach`; add to the grads.

        Parameters
        ----------
        dy : array-like shaped as y, or None
            Gradient of the window's output; None is zeros. Where k2 < k1, that of the steps before
            `reach` is ignored.
        clip_step : float, optional
            Bound of the gradient of every gate's pre-activation at every step, as Graves (2013)
            did against exploding gradients. Default none: the gradient is exact.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        dx : ndarray
            Gradient of the inputs of steps `reach` to `stop` - 1, from this window's output only:
            windows that overlap add up.
        dstate : ndarray or tuple (dh, dc)
            Gradient of the state before step `reach`: of the initial state where `reach` is 0.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; the layer's `grads` are unchanged then.
        """
        layer, axis = self.layer, _time_axis(self.layer, self.y)
        if dy is not None:
            dy = checks.shape("dy", checks.array("dy", dy, layer.dtype), self.y.shape)
        parts: list[Array] = []
        dstate: State = None
        for piece in reversed(self.pieces):
            # Pieces before the window have no output in its loss: only the state's gradient passes.
            dpart = None
            if dy is not None and piece.start >= self.start:
                dpart = _steps(dy, axis, piece.start - self.start, piece.stop - self.start)
            dx, dstate = layer.backward(
                piece.tape, dpart, dstate, clip_step=clip_step, num_threads=num_threads
            )
            parts.insert(0, dx)
        return _joined(parts, axis), dstate


Source = Callable[[int, int], Any]  # gives steps start to stop - 1; None after the last


def truncated_bptt(
    layer: Recurrent,
    x: Any,
    k1: int,
    k2: int | None = None,
    *,
    state: State = None,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    steps: int | None = None,
    rng: Rng = None,
    num_threads: int | None = None,
) -> Iterator[Window]:
    """Run a layer over windows of k1 steps whose gradients reach back k2 steps.

    The windows are [0, k1), [k1, 2 k1), ...; the last one may be shorter. The state is carried from
    each to the next, so outputs are those of one call over the whole sequence. The gradient of a
    window's output goes back no further than k2 steps before the window's end, where the state
    counts as a constant: BPTT(k2; k1) of Williams and Peng. k2 = k1 cuts at the window's start, k2
    > k1 lets a window teach the steps before it, k2 >= T cuts nothing, and k2 < k1 trains only on
    the last k2 steps of every window.

    ::

        for window in cylstm.truncated_bptt(layer, x, k1=20, k2=60):
            loss, dy = loss_of(window.y, target[window.start : window.stop])
            window.backward(dy)
            optimizer.step()
            optimizer.zero_grad()

    With a function in place of x each window's input is made when it is needed, with the weights
    of that time: what comes before the layer is trained along::

        def embedded(start, stop):
            nonlocal tape
            x, tape = embedding.forward(ids[start:stop])
            return x

        for window in cylstm.truncated_bptt(layer, embedded, k1=20, steps=len(ids)):
            loss, dy = loss_of(window.y, ids[window.start + 1 : window.stop + 1])
            dx, _ = window.backward(dy)
            embedding.backward(tape, dx)
            optimizer.step()
            optimizer.zero_grad()

    The weights may be changed between windows. Each tape remembers the weights it was made with, so
    a window's gradient is that of what was computed, with older weights before `start` than in it.
    Steps that several windows reach are run once, not again for each window. Tapes of less than
    k1 + k2 steps are kept at any time, unless the caller keeps windows.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Reading forwards only.
    x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I); callable; iterable
        An array is not copied: do not overwrite it while windows are in use. A callable is called
        as x(start, stop) once for each window, when it is needed, and returns those steps. An
        iterable, such as a generator, gives the windows one after the other: k1 steps each, fewer
        only in the last one. A list is neither: pad its rows and give `lengths`, or give
        ``iter(windows)``.
    k1 : int
        Steps from one window to the next, at least 1.
    k2 : int, optional
        Steps that gradients reach back from a window's end, at least 1. Default: k1; but the
        window's own steps, so that dx has the shape of what was asked for, if x is a callable or
        an iterable, where the last window may be shorter than k1.
    state : array or tuple (h, c) for LSTM, optional
        Initial state, such as the last window's of the preceding part of a stream; default zeros,
        or the learned initial state.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; default all.
    mask : array-like of shape (T, B), (B, T) or (T,), as x, or callable, optional
        Booleans, or integers 0 and 1: which steps are read; not with `lengths`. A callable is
        called as mask(start, stop) once for each window.
    reset : array-like of shape (T, B), (B, T) or (T,), as x, or callable, optional
        Booleans, or integers 0 and 1: before which steps the state is the default initial one
        again, where gradients stop. A callable is called as reset(start, stop).
    steps : int, optional
        T, at least 0: needed if x is a callable, and to be left out if it is an array. Without it
        an iterable is read to its end, and the gradients of a last window shorter than k1 reach
        into the windows before it only as far as time has been cut there.
    rng : None, int or numpy.random.Generator, default None
        Source of the masks of dropout and its like; default the layer's own. Masks that stay the
        same over time (variational, recurrent_dropout, dropconnect) are drawn anew wherever time
        is cut: at the multiples of k1, and k2 steps before the end of each window.
    num_threads : int, optional
        Most threads to use; never changes a bit of the result.

    Returns
    -------
    iterator of Window
        None at all where T is 0.

    Raises
    ------
    ValueError, TypeError
        An argument does not fit, or the layer reads backwards; named in the message. At the call,
        but for what depends on windows of x that are still to be made.

    References
    ----------
    Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories", Neural Computation 2 (1990).
    """
    _check_layer(layer)
    k1 = checks.size("k1", k1)
    windowed = callable(x) or _is_iterable(x)
    own_steps = k2 is None and windowed
    k2 = k1 if k2 is None else checks.size("k2", k2)
    if windowed:
        steps = None if steps is None else checks.size("steps", steps, 0)
        if steps is None and callable(x):
            raise ValueError("steps: expected T with a callable as x, got None")
        source, shape = x if callable(x) else _iterated(iter(x), steps), None
    else:
        x = _checked_array(layer, x, state)
        if steps is not None:
            raise ValueError(f"steps: expected None with an array as x, got {steps!r}")
        steps, shape = x.shape[_time_axis(layer, x)], x.shape[:-1]
        source = _sliced(x, _time_axis(layer, x))
    if lengths is not None:
        if mask is not None:
            raise ValueError("mask: expected None with lengths, got both")
        rows = None if shape is None else 1 if len(shape) == 1 else shape[1 - layer.batch_first]
        lengths = checks.lengths(lengths, rows, steps)
    sources = {
        name: value if callable(value) else _marks(layer, name, value, shape)
        for name, value in (("mask", mask), ("reset", reset))
        if value is not None
    }
    runtime.number(num_threads)
    options: dict[str, Any] = {"num_threads": num_threads}
    if rng is not None:  # a generator, so that pieces do not all start from the same seed
        options["rng"] = checks.generator("rng", rng)
    plan = _Plan(k1, k2, own_steps, steps)
    return _windows(layer, plan, source, sources, lengths, state, options)


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    for name in ("bidirectional", "go_backwards"):
        if getattr(layer, name, False):
            raise ValueError(
                f"layer: expected one that reads forwards, got one with {name}=True, "
                "whose first outputs depend on the last steps"
            )


def _is_iterable(x: Any) -> bool:
    """Whether it is an iterable of windows rather than an array."""
    return isinstance(x, Iterable) and not (
        isinstance(x, (list, tuple, str, bytes)) or hasattr(x, "shape") or hasattr(x, "__array__")
    )


def _checked_array(layer: Recurrent, x: Any, state: State) -> Array:
    if isinstance(x, (list, tuple)):
        raise TypeError(
            f"x: expected an array, got a {type(x).__name__}; pad its rows and give lengths, or "
            "give iter(x) if it holds windows"
        )
    found = _steps_of(layer, x)
    nothing = _steps(found, _time_axis(layer, found), 0, 0)
    batch = Batch(nothing, layer.input_size, layer.dtype, layer.batch_first, None, None, "all")
    states.inward(layer, "state", state, batch)
    return found


def _steps_of(layer: Recurrent, x: Any) -> Array:
    """Check x, or a window of it."""
    found = checks.array("x", x, layer.dtype)
    if found.ndim not in (2, 3) or found.shape[-1] != layer.input_size:
        raise ValueError(
            f"x: expected shape {'(B, T, I)' if layer.batch_first else '(T, B, I)'} or (T, I) "
            f"with I = input_size = {layer.input_size}, got {found.shape}"
        )
    return found


class _Plan(NamedTuple):
    """Where time is cut: windows start at multiples of k1, gradients end k2 steps before stops."""

    k1: int
    k2: int
    own_steps: bool  # whether they end where the window starts instead
    steps: int | None

    def stop(self, start: int) -> int:
        """Where the window ends that starts there, as far as it is known."""
        return start + self.k1 if self.steps is None else min(start + self.k1, self.steps)

    def reach(self, start: int, stop: int) -> int:
        """How far back the gradients of a window may go."""
        return start if self.own_steps else max(0, stop - self.k2)

    def cuts(self, start: int, stop: int) -> list[int]:
        """Return a window's start and stop, and between them where gradients of later ones end.

        A tape is indivisible, so time is cut wherever a window starts or a gradient ends.
        """
        ends = {start, stop}
        if not self.own_steps:
            later = ((start + self.k2) // self.k1 + 1) * self.k1
            if self.steps is None or later <= self.steps:
                ends.add(later - self.k2)
            if self.steps is not None:
                ends.add(self.steps - self.k2)
        return sorted(end for end in ends if start <= end <= stop)


def _windows(
    layer: Recurrent,
    plan: _Plan,
    source: Source,
    sources: dict[str, Source],
    lengths: Array | None,
    state: State,
    options: dict[str, Any],
) -> Iterator[Window]:
    pieces: list[Piece] = []
    start, stop = 0, plan.stop(0)
    while start < stop:
        x, expected = source(start, stop), stop - start
        if x is None and plan.steps is None:
            return
        x = _steps_of(layer, x)
        axis = _time_axis(layer, x)
        stop = start + x.shape[axis]
        if stop - start > expected or (stop - start < expected and plan.steps is not None):
            raise ValueError(f"x: expected {expected} steps from step {start}, got {x.shape[axis]}")
        if stop - start < expected:  # the end of an iterable
            plan = plan._replace(steps=stop)
            if source(stop, stop) is not None:
                raise ValueError(
                    f"x: expected no step after {stop}, as windows have {expected} but for the "
                    "last, got more"
                )
        if start == stop:
            return
        marks = {
            name: checks.booleans(name, of(start, stop), x.shape[:-1])
            for name, of in sources.items()
        }
        reach = plan.reach(start, stop)
        pieces = [piece for piece in pieces if piece.start >= reach]
        outputs = []
        for first, end in pairwise(plan.cuts(start, stop)):
            part: dict[str, Any] = {
                name: _steps(flags, axis, first - start, end - start)
                for name, flags in marks.items()
            }
            if lengths is not None:
                part["lengths"] = np.clip(lengths - first, 0, end - first)
            x_part = _steps(x, axis, first - start, end - start)
            y, state, tape = layer.forward(x_part, state, **part, **options)
            outputs.append(y)
            if first >= reach:
                pieces.append(Piece(first, end, tape))
        if pieces:
            reach = pieces[0].start
        yield Window(layer, start, stop, reach, _joined(outputs, axis), state, tuple(pieces))
        start, stop = stop, plan.stop(stop)


def _iterated(windows: Iterator[Any], steps: int | None) -> Source:
    """One window after the other, of an iterable."""

    def following(start: int, stop: int) -> Any:
        x = next(windows, None)
        if x is None and steps is not None:
            raise ValueError(f"x: expected {steps} steps, got windows of {start}")
        return x

    return following


def _marks(layer: Recurrent, name: str, value: Any, shape: tuple[int, ...] | None) -> Source:
    """Windows of booleans for all steps."""
    flags = checks.booleans(name, value, shape)
    return _sliced(flags, int(layer.batch_first and flags.ndim == 2))


def _sliced(a: Array, axis: int) -> Source:
    """Windows of an array of the whole time."""
    return lambda start, stop: _steps(a, axis, start, stop)


def _time_axis(layer: Recurrent, x: Array) -> int:
    return int(layer.batch_first and x.ndim == 3)


def _steps(a: Array, axis: int, start: int, stop: int) -> Array:
    return a[:, start:stop] if axis else a[start:stop]


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
