"""How data goes through modules in a row: arrays, which of their steps are read, and the way back.

On the way a batch is one array: (T, B, C), (B, T, C) with `batch_first`, (T, C) unbatched, and of a
list of sequences (sum of T, C), all of them end to end. `Steps` goes along and says which it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from cylstm import checks, runtime
from cylstm.engine.batches import is_ragged
from cylstm.layers import ragged
from cylstm.module import Array, Module

if TYPE_CHECKING:
    import numpy.typing as npt


class Steps(NamedTuple):
    """Layout of the leading axes of an array on its way, and which of its steps are read."""

    batch_first: bool = False
    #: Whether there is a batch axis beside that of time.
    batched: bool = True
    #: Whether sequences are end to end, of `lengths` steps each.
    ragged: bool = False
    #: Valid steps of each row; None: all.
    lengths: npt.NDArray[np.int64] | None = None
    #: Steps that are read, in place of `lengths`, laid out as the array.
    mask: npt.NDArray[np.bool_] | None = None
    #: Whether there still is an axis of time.
    timed: bool = True

    @property
    def time(self) -> int:
        """The axis of time."""
        return int(self.batched and self.batch_first)

    @property
    def padded(self) -> bool:
        """Whether there may be steps that are not read."""
        return (
            self.timed and not self.ragged and (self.lengths is not None or self.mask is not None)
        )

    def read(self, lead: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        """Which steps of an array with this leading shape are read; None: all of them."""
        if not self.padded:
            return None
        if self.mask is not None:
            return self.mask
        assert self.lengths is not None
        steps = np.arange(lead[self.time])
        if not self.batched:
            return steps < self.lengths
        if self.batch_first:
            return steps < self.lengths[:, None]
        return steps[:, None] < self.lengths

    def cleared(self, a: Array, *, features: bool = True) -> Array:
        """Return an array with zeros at the steps that are not read; a copy if there may be any."""
        found = self.read(a.shape[:-1] if features else a.shape)
        if found is None:
            return a
        return np.where(found[..., None] if features else found, a, a.dtype.type(0))

    def rows(self, a: Array) -> tuple[Array, npt.NDArray[np.bool_] | None]:
        """Return an array as (B, T, C), and which steps are read; a view where that will do."""
        if not self.ragged:
            read = self.read(a.shape[:-1])
            return self.by_row(a), None if read is None else self.by_row(read)
        read = self._valid()
        found = np.zeros((*read.shape, a.shape[-1]), a.dtype)
        found[read] = a
        return found, read

    def of_rows(self, rows: Array) -> Array:
        """Undo `rows`."""
        if not self.ragged:
            return self.from_rows(rows)
        found: Array = rows[self._valid()]
        return found

    def _valid(self) -> npt.NDArray[np.bool_]:
        """Return which of (B, T) are steps of the sequences that are end to end."""
        lengths = np.empty(0, np.int64) if self.lengths is None else self.lengths
        found: npt.NDArray[np.bool_] = np.arange(lengths.max(initial=0)) < lengths[:, None]
        return found

    def by_row(self, a: Array) -> Array:
        """View a padded array (T, B, ...), (B, T, ...) or (T, ...) as (B, T, ...)."""
        if not self.batched:
            whole: Array = a[None]
            return whole
        turned: Array = a if self.batch_first else a.swapaxes(0, 1)
        return turned

    def from_rows(self, a: Array) -> Array:
        """Undo `by_row`."""
        if not self.batched:
            row: Array = a[0]
            return row
        return a if self.batch_first else a.swapaxes(0, 1)


class Run(NamedTuple):
    """What else a pass through modules needs to know."""

    taped: bool = False
    threads: int | None = None
    rng: np.random.Generator | None = None


class Passed(NamedTuple):
    """What a module has made of an array."""

    y: Array
    steps: Steps
    state: Any = None
    tape: Any = None


class Flowing(Module):
    """A module that arrays can go through on their way through others."""

    #: Whether it reads integers that name things.
    _reads_ids = False
    #: Whether it computes in a dtype of its own, whatever comes.
    _typed = True
    #: Features of the input, if they are fixed.
    _width: int | None = None
    #: Whether time is the second axis, if the module says so.
    _batch_first: bool | None = None
    #: Whether it does not look at what is not read, and leaves zeros there.
    _skips_unread = _leaves_zeros = False
    #: Whether it carries a state from call to call.
    _has_state = False
    #: Whether it needs an axis of time, and whether it takes that away.
    _looks_along_time = _ends_time = False

    @property
    def _time_second(self) -> bool:
        return bool(self._batch_first)

    def _all(self) -> dict[str, Flowing]:
        """Return all modules in here that are not made of others, by path."""
        return {"": self}

    def _features(self, width: int | None) -> int | None:
        """Features of the output, for so many of the input, None if not known."""
        return width

    def _refuse_stream(self, path: str) -> None:
        """Refuse to stream where an output depends on later steps; `path` says where this is."""

    def _initial_state(self, rows: int) -> Any:
        """Return the state of streams at first, of modules that have one."""
        raise NotImplementedError

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        """Make the output of an array on its way."""
        raise NotImplementedError

    def _check_back(self, tape: Any, dstate: Any) -> None:
        """Refuse a gradient of the final state that does not fit, before anything is changed."""

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        """Make the gradients of the input and of the initial state; add up those of parameters."""
        raise NotImplementedError


class FlowTape(NamedTuple):
    """What `forward` of a module or a network keeps for `backward`. Opaque."""

    module: Any
    inner: Any
    before: Steps
    after: Steps
    #: Of the output.
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __repr__(self) -> str:
        """Show the module and the shape of its output, not what is kept."""
        return f"<tape of {type(self.module).__name__}: output {self.shape}>"


def enter(module: Any, name: str, x: Any, lengths: Any, mask: Any) -> tuple[Array, Steps]:
    """Read the input of a module or a network; what is not read of it is zero.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message.
    """
    ids, batch_first = bool(module._reads_ids), bool(module._time_second)
    if type(x) is not np.ndarray and (ragged.is_list(x, 1) and len(x) if ids else is_ragged(x)):
        for other, value in (("lengths", lengths), ("mask", mask)):
            if value is not None:
                raise ValueError(f"{other}: expected None with a list as {name}, got {value!r}")
        return _enter_list(module, name, x, batch_first)
    found = module._ids(name, x) if ids else numbers(module, name, x)
    axes = found.ndim - (not ids)
    if module._looks_along_time and axes not in (1, 2):
        layout = "(B, T{0}) or (T{0})" if batch_first else "(T, B{0}) or (T{0})"
        layout = layout.format("" if ids else ", C")
        raise ValueError(f"{name}: expected shape {layout}, got {found.shape}")
    steps = Steps(batch_first, axes >= 2)
    if lengths is None and mask is None:
        if ids:
            module._check_ids(name, found)
        return found, steps
    if lengths is not None and mask is not None:
        raise ValueError("lengths, mask: expected at most one of them, got both")
    if axes not in (1, 2):
        raise ValueError(
            f"{name}: expected a time and a batch axis, or a time axis alone, with lengths or "
            f"mask, got shape {found.shape}"
        )
    lead = found.shape[:axes]
    if lengths is not None:
        rows = lead[1 - steps.time] if steps.batched else 1
        steps = steps._replace(lengths=checks.lengths(lengths, rows, lead[steps.time]))
    else:
        steps = steps._replace(mask=checks.booleans("mask", mask, lead))
    if not module._skips_unread:
        found = steps.cleared(found, features=not ids)
    if ids:  # only now, as what is not read may be anything
        module._check_ids(name, found)
    return found, steps


def _enter_list(module: Any, name: str, x: Any, batch_first: bool) -> tuple[Array, Steps]:
    """Read a list of sequences, and lay them end to end."""
    parts = []
    for i, part in enumerate(x):
        one = f"{name}[{i}]"
        if module._reads_ids:
            found = module._ids(one, part)
            module._check_ids(one, found)
            if found.ndim != 1:
                raise ValueError(f"{one}: expected shape (T,), got {found.shape}")
        else:
            found = numbers(module, one, part, empty=True)
            if found.ndim == 3 and found.shape[1 - batch_first] == 1:
                found = found.squeeze(1 - batch_first)
            if found.ndim != 2:
                raise ValueError(f"{one}: expected shape (T, {module._width or 'C'}), got "
                                 f"{found.shape}")  # fmt: skip
        parts.append(found)
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(f"{name}: expected as many features in each, got "
                         f"{sorted({part.shape[1] for part in parts})}")  # fmt: skip
    lengths = np.array([len(part) for part in parts], np.int64)
    joined = np.concatenate(parts or [np.empty((0, module._width or 0), module.dtype)])
    return joined, Steps(batch_first, False, True, lengths)


def numbers(module: Any, name: str, x: Any, empty: bool = False) -> Array:
    """Read real numbers as a module computes with them: its dtype, that of x if it has none."""
    dtype = module.dtype
    if not module._typed:
        kind = checks.real(name, x).dtype
        dtype = np.dtype(np.float64 if kind.type is np.float64 else np.float32)
    found = checks.array(name, x, dtype)
    width = module._width
    if empty and found.shape == (0,):
        found = found.reshape(0, width or 0)
    if found.ndim == 0 or (width is not None and found.shape[-1] != width):
        raise ValueError(f"{name}: expected shape (..., {width or 'C'}), got {found.shape}")
    return found


def parts_of(a: Array, steps: Steps) -> list[Array]:
    """Cut sequences that are end to end apart."""
    assert steps.lengths is not None
    return np.split(a, np.cumsum(steps.lengths)[:-1]) if len(steps.lengths) else []


def call(
    module: Any, x: Any, state: Any, lengths: Any, mask: Any, run: Run
) -> tuple[Any, Any, FlowTape | None]:
    """Run a module or a network as the caller has asked."""
    runtime.number(run.threads)
    entered, steps = enter(module, "x", x, lengths, mask)
    passed = module._pass(entered, state, steps, run)
    y = passed.y
    if not module._leaves_zeros:
        y = passed.steps.cleared(y)
    if np.may_share_memory(entered, y):  # what came may be the caller's
        y = y.copy()
    tape = None
    if run.taped:
        tape = FlowTape(module, passed.tape, steps, passed.steps, y.shape, y.dtype)
    outer = passed.steps.timed and passed.steps.ragged
    return parts_of(y, passed.steps) if outer else y, passed.state, tape


def back(module: Any, tape: Any, dy: Any, dstate: Any, run: Run) -> tuple[Any, Any]:
    """Go back through a module or a network."""
    if not isinstance(tape, FlowTape):
        raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
    if tape.module is not module:
        raise ValueError("tape: expected one of this module, got one of another module")
    runtime.number(run.threads)
    steps, dtype = tape.after, tape.dtype
    if dy is None:
        given = np.zeros(tape.shape, dtype)
    elif steps.timed and steps.ragged:
        assert steps.lengths is not None
        layout = ragged.Layout(tuple((int(n),) for n in steps.lengths), True)
        given = layout.inward("dy", dy, tape.shape[-1], dtype)
    else:
        given = checks.shape("dy", checks.array("dy", dy, dtype), tape.shape)
    module._check_back(tape.inner, dstate)
    dx, dfirst = module._pass_back(tape.inner, steps.cleared(given), dstate, run)
    if dx is None:
        return None, dfirst
    dx = tape.before.cleared(dx)
    if np.may_share_memory(dx, given):
        dx = dx.copy()
    return parts_of(dx, tape.before) if tape.before.ragged else dx, dfirst


def named(error: Exception, name: str, module: Module) -> NoReturn:
    """Raise an error of a module again with its path before the message."""
    inner: tuple[str, str, str] | None = getattr(error, "_inside", None)
    if inner is None:
        inner = name, type(module).__name__, str(error)
    else:
        inner = f"{name}.{inner[0]}", *inner[1:]
    kind = TypeError if isinstance(error, TypeError) else ValueError
    new: Any = kind(f"{inner[0]} ({inner[1]}): {inner[2]}")
    new._inside = inner
    raise new from None
