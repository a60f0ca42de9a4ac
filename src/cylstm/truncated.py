"""Truncated backpropagation through time: windows of steps, each with gradients of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.params import Array
from cylstm.recurrent import Recurrent, Tape
from cylstm.states import State

if TYPE_CHECKING:
    from cylstm.params import Rng


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

    def backward(
        self, dy: Any, *, clip_step: float | None = None, num_threads: int | None = None
    ) -> tuple[Array, State]:
        """Propagate the gradient of this window's output back to step `reach`; add to the grads.

        Parameters
        ----------
        dy : array-like shaped as y, or None
            Gradient of the window's output; None is zeros. Where k2 < k1, that of the steps before
            `reach` is ignored.
        clip_step, num_threads
            As for the layer's `backward`.

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


def truncated_bptt(
    layer: Recurrent,
    x: Any,
    k1: int,
    k2: int | None = None,
    *,
    state: State = None,
    lengths: Any = None,
    mask: Any = None,
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

    The weights may be changed between windows. Each tape remembers the weights it was made with, so
    a window's gradient is that of what was computed, with older weights before `start` than in it.
    Steps that several windows reach are run once, not again for each window. Tapes of less than
    k1 + k2 steps are kept at any time, unless the caller keeps windows.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Reading forwards only.
    x : array-like of shape (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched
        Not copied: do not overwrite it while windows are in use.
    k1 : int
        Steps from one window to the next, at least 1.
    k2 : int, optional
        Steps that gradients reach back from a window's end, at least 1; default k1.
    state : array or tuple (h, c) for LSTM, optional
        Initial state, such as the last window's of the preceding part of a stream; default zeros.
    lengths : array-like of int of shape (B,), optional
        Valid steps of each row, 0 to T; default all.
    mask : array-like of bool, optional
        Valid steps, as for a plain call; not with `lengths`.
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
        An argument does not fit, or the layer reads backwards; named in the message.

    References
    ----------
    Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories", Neural Computation 2 (1990).
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    for name in ("bidirectional", "go_backwards"):
        if getattr(layer, name, False):
            raise ValueError(
                f"layer: expected one that reads forwards, got one with {name}=True, "
                "whose first outputs depend on the last steps"
            )
    k1 = checks.size("k1", k1)
    k2 = k1 if k2 is None else checks.size("k2", k2)
    if isinstance(x, (list, tuple)):
        raise TypeError(f"x: expected an array, got a {type(x).__name__}; pad it and give lengths")
    x = checks.array("x", x, layer.dtype)
    if x.ndim not in (2, 3) or x.shape[-1] != layer.input_size:
        raise ValueError(
            f"x: expected shape {'(B, T, I)' if layer.batch_first else '(T, B, I)'} or (T, I) "
            f"with I = input_size = {layer.input_size}, got {x.shape}"
        )
    axis = _time_axis(layer, x)
    if lengths is not None:
        rows = 1 if x.ndim == 2 else x.shape[1 - axis]
        lengths = checks.lengths(lengths, rows, x.shape[axis])
    if mask is not None:
        mask = np.asarray(mask)
        if lengths is not None:
            raise ValueError("mask: expected None with lengths, got both")
        checks.shape("mask", mask, x.shape[:-1])
    if rng is not None:
        rng = checks.generator("rng", rng)  # so that pieces do not all start from the same seed
    options = {"num_threads": num_threads}
    return _windows(layer, x, axis, k1, k2, state, lengths, mask, rng, options)


def _windows(
    layer: Recurrent,
    x: Array,
    axis: int,
    k1: int,
    k2: int,
    state: State,
    lengths: Array | None,
    mask: Array | None,
    rng: Rng,
    options: dict[str, Any],
) -> Iterator[Window]:
    steps = x.shape[axis]
    stops = [*range(k1, steps, k1), steps] if steps else []
    # A tape is indivisible, so time is cut wherever a window starts or a gradient ends.
    cuts = sorted({0, *stops, *(stop - k2 for stop in stops if stop > k2)})
    pieces: list[Piece] = []
    at = 0
    for start, stop in pairwise([0, *stops]):
        reach = max(0, stop - k2)
        pieces = [piece for piece in pieces if piece.start >= reach]
        outputs = []
        while cuts[at] < stop:
            first, end = cuts[at], cuts[at + 1]
            part = dict(options, rng=rng)
            if lengths is not None:
                part["lengths"] = np.clip(lengths - first, 0, end - first)
            if mask is not None:
                part["mask"] = _steps(mask, axis, first, end)
            y, state, tape = layer.forward(_steps(x, axis, first, end), state, **part)
            outputs.append(y)
            if first >= reach:
                pieces.append(Piece(first, end, tape))
            at += 1
        yield Window(layer, start, stop, reach, _joined(outputs, axis), state, tuple(pieces))


def _time_axis(layer: Recurrent, a: Array) -> int:
    return int(layer.batch_first and a.ndim == 3)


def _steps(a: Array, axis: int, start: int, stop: int) -> Array:
    return a[:, start:stop] if axis else a[start:stop]


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
