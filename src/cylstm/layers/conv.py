"""`Conv1d`: a convolution over time, before or between recurrent layers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cylstm import checks, runtime
from cylstm.kernels import dispatch, sequence
from cylstm.layers import activations
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stateless import Stateless
from cylstm.module import Array, draw_uniform

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.module import Rng


class ConvTape(NamedTuple):
    """What the gradients of a convolution need."""

    #: The padded input (B, length, in_channels), its windows, and steps of the output.
    padded: Array
    windows: Array
    steps_out: int
    weight: sequence.Snapshot
    #: What the activation was applied to, a row for each window.
    sums: Array | None
    before: Steps
    after: Steps
    #: Steps of the input.
    steps: int


class Conv1d(Stateless):
    """Convolution over time.

    y_t = f(b + sum over j and c of weight[:, c, j] x[t stride + j dilation, c]), of arrays
    (T, B, C), where `torch.nn.Conv1d` has (B, C, T). Parameters are `weight`
    (out_channels, in_channels, kernel_size) and `bias` (out_channels,), as there, and drawn from
    U(-k, k) with k = 1 / sqrt(in_channels * kernel_size), as there. What is not read counts as
    zeros, like the padding.

    Parameters
    ----------
    in_channels, out_channels : int
        Sizes of the last axis of input and output, at least 1.
    kernel_size : int
        Steps that an output sees, at least 1.
    stride : int, default 1
        Steps from an output to the next.
    padding : int, "same" or "causal", default 0
        Zeros before the first and after the last step. "same": as many as make the output as long
        as the input, with `stride=1` only; of an odd number the one more comes after. "causal": all
        of them before, so that an output sees no later step; such a convolution can stream.
    dilation : int, default 1
        Steps between those that an output sees.
    bias : bool, default True
        Whether to add b.
    activation : str or tuple, optional
        f: one of the activations that the gates of recurrent layers have, by name, or a tuple of
        the name, alpha and beta. Default none.
    batch_first : bool, optional
        Whether x is (B, T, C). Default as the other modules of a network, and otherwise False.
    dtype : {"float32", "float64"}, default "float32"
        Type of parameters and outputs; inputs of other real types are cast to it.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial parameters.

    Attributes
    ----------
    in_channels, out_channels, kernel_size, stride, dilation : int
    padding : int or str
    bias : bool
    activation : str, tuple or None
    batch_first : bool or None

    Raises
    ------
    TypeError
        A size is not an integer, `bias` not a bool, or `activation` not a name.
    ValueError
        A size is out of range, `padding` something else, "same" with a stride, `activation` unknown
        or `dtype` neither float32 nor float64.

    Notes
    -----
    The product is that of `Linear`, on windows of the input where it lies: rows that overlap, no
    copy of each. The input is copied once where it is padded, T-first or dilated; windows are
    copied only with a stride and a dilation. A row has the same bits alone, in any batch, padded,
    and, if causal, in one piece or chunks.

    A row of n steps has ``(n + padding before and after - dilation (kernel_size - 1) - 1) // stride
    + 1`` outputs, none where that is negative or n is 0; see `out_lengths`. In a network a causal
    convolution has a state, the last ``dilation (kernel_size - 1)`` steps of its input, of shape
    (steps, B, in_channels) or (steps, in_channels); to go on with a stride, cut the input at its
    multiples.
    """

    _looks_along_time = _skips_unread = True
    _turned: sequence.Snapshot | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        bias: bool = True,
        activation: str | tuple[Any, ...] | None = None,
        batch_first: bool | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: Rng = None,
    ) -> None:
        self.in_channels = checks.size("in_channels", in_channels)
        self.out_channels = checks.size("out_channels", out_channels)
        self.kernel_size = checks.size("kernel_size", kernel_size)
        self.stride = checks.size("stride", stride)
        self.dilation = checks.size("dilation", dilation)
        self.bias = checks.flag("bias", bias)
        self.activation = activation
        self._f = None if activation is None else activations.parse("activation", activation)
        self.batch_first = None if batch_first is None else checks.flag("batch_first", batch_first)
        #: Steps that a window covers beyond its first, and zeros before and after.
        self._reach = self.dilation * (self.kernel_size - 1)
        self.padding = padding
        self._before, self._after = self._read_padding(padding)
        self._has_state = padding == "causal" and self._reach > 0
        generator = checks.generator("rng", rng)
        shape = (self.out_channels, self.in_channels, self.kernel_size)
        shapes = {"weight": shape} | ({"bias": shape[:1]} if self.bias else {})
        super().__init__(shapes, checks.dtype(dtype))
        bound = (self.in_channels * self.kernel_size) ** -0.5
        if self._draws_parameters():
            with self._changing():
                draw_uniform(generator, self._storage, -bound, bound)

    def _read_padding(self, padding: Any) -> tuple[int, int]:
        if not isinstance(padding, str):
            n = checks.size("padding", padding, 0)
            return n, n
        if checks.choice("padding", padding, ("same", "causal")) == "causal":
            return self._reach, 0
        if self.stride > 1:
            raise ValueError(f"padding: expected an int or 'causal' with stride={self.stride}, got "
                             "'same'")  # fmt: skip
        return self._reach // 2, self._reach - self._reach // 2

    def out_lengths(self, lengths: Any) -> npt.NDArray[np.int64]:
        """Say how many outputs sequences have.

        Parameters
        ----------
        lengths : array-like of int of shape (B,)
            Steps of the inputs.

        Returns
        -------
        ndarray of int64 of shape (B,)

        Raises
        ------
        TypeError, ValueError
            They are not integers from 0 on.
        """
        return self._counted(checks.lengths(lengths, None, None))

    def _counted(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        room = lengths + (self._before + self._after - self._reach - 1)
        return np.where(lengths > 0, np.maximum(room // self.stride + 1, 0), 0)

    # On the way

    @property
    def _width(self) -> int:  # type: ignore[override]
        return self.in_channels

    @property
    def _batch_first(self) -> bool | None:  # type: ignore[override]
        return self.batch_first

    def _features(self, width: int | None) -> int:
        """Say how many features the output has."""
        return self.out_channels

    @cached_property
    def _table(self) -> Any:
        """The kernels of this dtype."""
        return dispatch.table(self.dtype.name)

    def __getstate__(self) -> dict[str, Any]:
        """Also leave out the turned weights, and kernels that another machine may not have."""
        state = super().__getstate__()
        for name in ("_table", "_turned"):
            state.pop(name, None)
        return state

    def _changed(self) -> None:
        self._turned = None

    def _snapshot(self) -> sequence.Snapshot:
        """Weights as (out_channels, kernel_size, in_channels), then b; made after each change."""
        found = self._turned
        if found is None:
            with self._lock:
                flat = self._storage.copy()
                shape = self.out_channels, self.kernel_size, self.in_channels
                weight = self.params["weight"].swapaxes(1, 2)
                flat[: weight.size].reshape(shape)[...] = weight
                self._turned = found = sequence.snapshot_of(flat)
        return found

    def _refuse_stream(self, path: str) -> None:
        if self._after or self._before != self._reach:
            raise ValueError(
                f"{path} (Conv1d): expected padding='causal' for a stream, as other outputs need "
                f"later steps, got {self.padding!r}"
            )
        if self.stride > 1:
            raise ValueError(
                f"{path} (Conv1d): expected stride=1 for a stream, an output for each step, got "
                f"{self.stride}"
            )

    def _initial_state(self, rows: int) -> Array:
        """Return the zeros before the first step."""
        return np.zeros((self._reach, rows, self.in_channels), self.dtype)

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        rows, read = steps.rows(x)
        n, n_steps, _ = rows.shape
        after = self._steps_after(steps, n_steps)
        n_out = int(self._counted(np.array([n_steps]))[0])
        padded = self._padded(rows, read, self._context(state, n, steps))
        final = None
        if self._has_state:
            final = self._final(padded, steps, n_steps)
        weight = self._snapshot()
        if not n * n_out:
            y = np.zeros((n, n_out, self.out_channels), self.dtype)
            tape = ConvTape(padded, padded, n_out, weight, None, steps, after, n_steps)
            return Passed(after.of_rows(y), after, final, tape)
        windows = self._windows(padded, n_out)
        full = np.empty((self._places(padded, n_out), self.out_channels), self.dtype)
        sums = y = full[: len(windows)]
        if self._f is not None and run.taped:
            sums = np.empty_like(y)
        sequence.linear(
            self._table, windows, weight, weight if self.bias else None,
            self.out_channels * self.in_channels * self.kernel_size, sums, y, self._f,
            runtime.number(run.threads),
        )  # fmt: skip
        kept = None if self._f is None else sums
        tape = ConvTape(padded, windows, n_out, weight, kept, steps, after, n_steps)
        return Passed(after.of_rows(self._gathered(full, n, n_out)), after, final, tape)

    def _steps_after(self, steps: Steps, n_steps: int) -> Steps:
        """Which steps of the output are read."""
        if steps.mask is not None and (
            self.stride > 1 or self._before + self._after != self._reach
        ):
            raise ValueError(
                "mask: expected lengths instead, as the output has other steps than the input, got "
                "a mask"
            )
        if steps.lengths is None:
            return steps
        return steps._replace(lengths=self._counted(steps.lengths))

    def _context(self, state: Any, rows: int, steps: Steps) -> Array | None:
        """Check a state, the steps before the first, and lay it out as (B, steps, C)."""
        if state is None or not self._has_state:
            return None
        batched = steps.batched or steps.ragged
        shape = (self._reach, rows, self.in_channels)[:: 1 if batched else 2]
        found = checks.shape("state", checks.array("state", state, self.dtype), shape)
        return found.swapaxes(0, 1) if batched else found[None]

    def _final(self, padded: Array, steps: Steps, n_steps: int) -> Array:
        """Take the last steps that were read, of those before the first if there are few."""
        ends = np.full(len(padded), n_steps) if steps.lengths is None else steps.lengths
        at = ends[:, None] + np.arange(self._reach)
        final: Array = np.take_along_axis(padded, at[..., None], axis=1)
        return final.swapaxes(0, 1) if steps.batched or steps.ragged else final[0]

    def _padded(self, rows: Array, read: Array | None, context: Array | None) -> Array:
        """Return the input with what is around it, where that is not as it lies."""
        n, n_steps, width = rows.shape
        unit = self.stride if self._spread == 1 else self._spread * (self.stride == 1) or 1
        length = -(-(self._before + n_steps + self._after) // unit) * unit
        if length == n_steps and read is None and rows.flags.c_contiguous:
            return rows
        padded = np.zeros((n, length, width), self.dtype)
        inside = padded[:, self._before : self._before + n_steps]
        inside[...] = rows
        if read is not None:
            inside[~read] = 0
        if context is not None:
            padded[:, : self._before] = context
        return padded

    @property
    def _spread(self) -> int:
        return self.dilation if self.kernel_size > 1 else 1

    @property
    def _copies(self) -> bool:
        """Whether windows are no rows of the input, in whatever order its steps are."""
        return self._spread > 1 and self.stride > 1

    def _places(self, padded: Array, n_out: int) -> int:
        """Windows that there would be if each step of the padded input began one."""
        n, length, _ = padded.shape
        return n * n_out if self._copies else int(n * length // self.stride)

    def _windows(self, padded: Array, n_out: int) -> Array:
        """Return windows as rows (., kernel_size * in_channels) that overlap, sequences' ends too.

        Those of a dilated convolution lie in one piece after the steps have been dealt out to as
        many sequences as the dilation has steps.
        """
        n, _, width = padded.shape
        k, stride = self.kernel_size, self.stride
        if self._copies:
            taps = self._taps(padded, n_out)
            return np.concatenate(taps, axis=2).reshape(n * n_out, k * width)
        flat = self._dealt(padded).reshape(-1, width)
        count = (len(flat) - k) // stride + 1
        size = flat.itemsize
        return as_strided(
            flat, (count, k * width), (stride * width * size, size), writeable=False
        )  # fmt: skip

    def _taps(self, padded: Array, n_out: int) -> list[Array]:
        """View as (B, n_out, C) of what each element of the kernel is multiplied by."""
        last = (n_out - 1) * self.stride + 1
        starts = [j * self.dilation for j in range(self.kernel_size)]
        return [padded[:, start : start + last : self.stride] for start in starts]

    def _dealt(self, a: Array) -> Array:
        """Bring steps that are a dilation apart side by side, as (B * dilation, ., C)."""
        if self._spread == 1:
            return a
        n, length, width = a.shape
        parts = a.reshape(n, length // self._spread, self._spread, width).swapaxes(1, 2)
        return np.ascontiguousarray(parts).reshape(n * self._spread, -1, width)

    def _collected(self, a: Array, n: int) -> Array:
        """Undo `_dealt`."""
        if self._spread == 1:
            return a
        parts = a.reshape(n, self._spread, -1, a.shape[-1]).swapaxes(1, 2)
        return parts.reshape(n, -1, a.shape[-1])

    def _gathered(self, full: Array, n: int, n_out: int) -> Array:
        """Pick outputs (B, n_out, C) out of those of all windows."""
        by_row = full.reshape(n, -1, self.out_channels)
        if not self._copies:
            by_row = self._collected(by_row, n)
        return by_row[:, :n_out]

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        n, length, width = tape.padded.shape
        dpadded = np.zeros((n, length, width), self.dtype)
        if n * tape.steps_out:
            self._go_back(tape, tape.after.rows(dy)[0], dpadded, runtime.number(run.threads))
        if self._has_state:
            self._add_final(tape, dpadded, dstate)
        inside = dpadded[:, self._before : self._before + tape.steps]
        dx = tape.before.of_rows(inside)
        if not tape.before.ragged:
            dx = tape.before.cleared(dx)
        dfirst = None
        if self._has_state:
            first = dpadded[:, : self._reach]
            batched = tape.before.batched or tape.before.ragged
            dfirst = first.swapaxes(0, 1) if batched else first[0]
        return dx, dfirst

    def _go_back(self, tape: ConvTape, dy: Array, dpadded: Array, team: int) -> None:
        """Add to the gradients of parameters and of the padded input."""
        n, table, k = len(dy), self._table, self.kernel_size
        full = np.zeros(
            (n, self._places(tape.padded, tape.steps_out) // n, dy.shape[2]), self.dtype
        )
        full[:, : tape.steps_out] = dy
        if not self._copies:
            full = self._dealt(full)
        rows = full.reshape(-1, self.out_channels)[: len(tape.windows)]
        if self._f is not None and tape.sums is not None:
            rows = sequence.d_activation(table, self._f, tape.sums, rows)
        dw = np.zeros((self.out_channels, k * self.in_channels), self.dtype)
        sequence.linear_dw(table, rows, tape.windows, dw, team)
        weight = tape.weight.copy()[: dw.size].reshape(self.out_channels, k, self.in_channels)
        into = dpadded if self._copies else self._dealt(dpadded).reshape(-1, self.in_channels)
        for j in range(k):
            tap = sequence.snapshot_of(np.ascontiguousarray(weight[:, j]).reshape(-1))
            part = np.empty((len(rows), self.in_channels), self.dtype)
            sequence.linear_dx(table, rows, tap, part, team)
            if self._copies:
                self._taps(into, tape.steps_out)[j][...] += part.reshape(n, -1, self.in_channels)
            else:
                into[j : j + (len(rows) - 1) * self.stride + 1 : self.stride] += part
        if not self._copies and self._spread > 1:
            dpadded[...] = self._collected(into.reshape(n * self._spread, -1, into.shape[1]), n)
        with self._lock:  # two threads adding at once would lose a gradient
            self.grads["weight"][...] += dw.reshape(weight.shape).swapaxes(1, 2)
            if self.bias:
                self.grads["bias"][...] += rows.sum(axis=0, dtype=np.float64)

    def _check_back(self, tape: Any, dstate: Any) -> None:
        self._d_final(tape, dstate)

    def _d_final(self, tape: ConvTape, dstate: Any) -> Array | None:
        if dstate is None:
            return None
        steps = tape.before
        batched = steps.batched or steps.ragged
        shape = (self._reach, len(tape.padded), self.in_channels)[:: 1 if batched else 2]
        found = checks.shape("dstate", checks.array("dstate", dstate, self.dtype), shape)
        return found.swapaxes(0, 1) if batched else found[None]

    def _add_final(self, tape: ConvTape, dpadded: Array, dstate: Any) -> None:
        """Add the gradient of the final state to that of the steps that it consists of."""
        given = self._d_final(tape, dstate)
        if given is None:
            return
        n = len(given)
        ends = tape.before.lengths
        starts = np.full(n, tape.steps) if ends is None else ends
        for row, (start, part) in enumerate(zip(starts, given, strict=True)):
            dpadded[row, start : start + self._reach] += part
