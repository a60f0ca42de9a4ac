"""What all recurrent layers share: parameters, states, one call down to the kernels per layer."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from cylstm import checks, masks, outputs, states, threads, weights
from cylstm.batches import Batch, is_ragged
from cylstm.cells import Activation, Cell, Extras
from cylstm.kernels import sequence
from cylstm.params import Array, Parameters, draw_uniform
from cylstm.states import Parts, State

if TYPE_CHECKING:
    from cylstm.params import Rng


Checks = dict[str, Callable[[str, Any], Any]]
#: How the options are checked that all layers have.
_CHECKS: Checks = {
    "input_size": checks.size,
    "bias": checks.bias,
    "batch_first": checks.flag,
    "dropout": partial(checks.number, low=0, high=1),
    "variational": checks.flag,
    "recurrent_dropout": checks.probability,
    "zoneout": checks.probability,
    "dropconnect": checks.probability,
    "clip": checks.bound,
    "bidirectional": checks.flag,
    "merge_mode": partial(checks.choice, choices=outputs.MERGE_MODES),
    "go_backwards": checks.flag,
    "learn_initial_state": checks.flag,
}


class Tape(NamedTuple):
    """What one `forward` keeps for `backward`. Opaque; may be used any number of times."""

    layer: Recurrent
    batch: Batch
    calls: list[sequence.Call]
    #: Random masks of each layer, by name.
    masks: list[masks.Masks]
    #: Outputs of both directions of each layer, where backward needs them.
    both: list[Array | None]
    #: Rows that each part of the initial state was given with.
    given: states.Given

    @classmethod
    def plain(
        cls, layer: Recurrent, batch: Batch, calls: list[sequence.Call], state: State
    ) -> Tape:
        """Make one of calls without random masks, each part of whose state has all rows."""
        given = layer._no_state
        if state is not None:
            parts = state if isinstance(state, tuple) else (state,)
            given = [tuple([None if part is None else batch.rows for part in parts])]
            given *= layer.num_layers
        return cls(layer, batch, calls, layer._no_masks, layer._no_outputs, given)

    def __repr__(self) -> str:
        """Show the layer and the size of the call, not what is kept."""
        return f"<tape of {self.layer!r}: {self.batch.steps} steps of {self.batch.rows} rows>"

    def __reduce__(self) -> Any:
        """Say why a tape cannot be pickled or copied."""
        raise TypeError(
            "a tape cannot be pickled or copied: it is memory of the kernels; "
            "call forward again where it is needed"
        )


def _level_outside() -> int:
    """Return the stack level of the code that called the library, for warnings to point at."""
    level, frame = 0, sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("cylstm.") and frame.f_back:
        level, frame = level + 1, frame.f_back
    return level + 1


class Recurrent(Parameters):
    """What RNN, LSTM and GRU share; they say which gates, states and options of their own exist."""

    if TYPE_CHECKING:  # annotations would show in help
        gates: tuple[str, ...]
        states: tuple[str, ...]
        input_size: int
        hidden_size: int | tuple[int, ...]
        bias: bool | str
        batch_first: bool
        dropout: float
        variational: bool
        recurrent_dropout: float
        zoneout: float
        dropconnect: float
        clip: float | None
        bidirectional: bool
        merge_mode: str
        go_backwards: bool
        learn_initial_state: bool

        def __init__(
            self, input_size: int, hidden_size: Any, num_layers: int | None = None, **options: Any
        ) -> None: ...

    #: Gates in PyTorch's order, as stacked in the weights.
    gates = ()
    #: The arrays a state consists of.
    states = ("h",)
    #: The kernels' name of the cell.
    _kind = ""
    #: Whether the candidate's slot is the kernels' first: a GRU's.
    _candidate_first = False
    #: Whether the weights come from a state dict and nothing is to be drawn.
    _undrawn = False
    _fixed = Parameters._fixed | {
        "gates", "states", "hidden_sizes", "num_directions", "input_sizes", "output_sizes",
    }  # fmt: skip

    def _build(self, given: Mapping[str, Any], own: Checks) -> None:
        """Make the layer of its constructor's arguments; `own` checks the options of its class."""
        for name, check in (_CHECKS | own).items():
            setattr(self, name, check(name, given[name]))
        self._read_sizes(given["hidden_size"], given["num_layers"])
        self.num_directions = 2 if self.bidirectional else 1
        #: Of each direction, whether it reads from the last step to the first.
        self._backwards = (False, True) if self.bidirectional else (self.go_backwards,)
        self._read_activations(given)
        self._check_options()
        self._no_state: list[Parts] = [(None,) * len(self.states)] * self.num_layers
        self._no_masks: list[masks.Masks] = [{}] * self.num_layers
        self._no_outputs: list[Array | None] = [None] * self.num_layers
        self.output_sizes = tuple(getattr(self, "proj_size", 0) or h for h in self.hidden_sizes)
        self.input_sizes = (self.input_size, *map(self._merged, range(self.num_layers - 1)))
        self._cell = Cell(
            kind=self._kind,
            activations=tuple(activation for _, activation in self._slots().values()),
            clip=self.clip or 0.0,
            zone=self.zoneout,
            norm=getattr(self, "layer_norm", None),
            **self._own_terms(),
        )
        #: Whether `forward` draws masks of the recurrence.
        self._draws = bool(
            self.dropconnect or self.recurrent_dropout or self.zoneout or self._cell.zone_c
        )
        #: Whether the kernels' outputs and zero states are the layer's.
        self._plain = self.merge_mode == "concat" and not self.learn_initial_state
        shapes = [weights.shapes(self, depth) for depth in range(self.num_layers)]
        #: Of each direction: short and full names of its parameters.
        self._names = {
            suffix: {name: f"{name}_{suffix}" for name in shapes[weights.depth_of(suffix)]}
            for suffix in self._suffixes()
        }
        self._single_sizes = [weights.single_sizes(self, d) for d in range(self.num_layers)]
        named = {
            full: shapes[weights.depth_of(suffix)][name]
            for suffix, names in self._names.items()
            for name, full in names.items()
        }
        dtype = checks.dtype(given["dtype"])
        self._rng = checks.generator("rng", given["rng"])
        #: Whether masks repeat from run to run; otherwise no two copies draw the same.
        self._seeded = given["rng"] is not None
        Parameters.__init__(self, named, dtype)
        if not self.__dict__.pop("_undrawn", False):
            with self._changing():
                self._initialise(self.split(self._storage))

    def _read_sizes(self, hidden_size: int | Sequence[int], num_layers: int | None) -> None:
        if not isinstance(hidden_size, (tuple, list)):
            self.hidden_size = checks.size("hidden_size", hidden_size)
            self.num_layers = checks.size("num_layers", 1 if num_layers is None else num_layers)
            self.hidden_sizes = (self.hidden_size,) * self.num_layers
            return
        sizes = tuple(checks.size(f"hidden_size[{i}]", h) for i, h in enumerate(hidden_size))
        if num_layers is not None and checks.size("num_layers", num_layers) != len(sizes):
            raise ValueError(
                f"num_layers: expected {len(sizes)}, the length of hidden_size, got {num_layers}"
            )
        self.hidden_size, self.hidden_sizes = sizes, sizes
        if not sizes:
            raise ValueError("hidden_size: expected at least one size, got 0: ()")
        self.num_layers = len(sizes)

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        """Set what `_slots` reads, and the gates where they depend on options."""
        raise NotImplementedError

    def _check_options(self) -> None:
        """Refuse what does not go together."""
        mode = self.merge_mode
        checks.excludes("merge_mode", mode != "concat" and mode, "bidirectional",
                        not self.bidirectional, "False")  # fmt: skip
        checks.excludes("merge_mode", mode == "separate" and mode, "num_layers",
                        self.num_layers > 1, self.num_layers)  # fmt: skip
        checks.excludes("go_backwards", self.go_backwards, "bidirectional", self.bidirectional,
                        "True")  # fmt: skip
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout:g} does nothing with num_layers=1: it drops outputs "
                "between layers",
                stacklevel=_level_outside(),
            )

    def _own_terms(self) -> dict[str, Any]:
        """Fields of `Cell` for the options that only this kind of layer has."""
        return {}

    def _initialise(self, params: Mapping[str, Array]) -> None:
        """Set PyTorch's initial values; weights of layer norms are 1, their biases 0."""
        for name, view in params.items():
            depth = weights.depth_of("l" + name.rpartition("_l")[2])
            bound = 1 / math.sqrt(self.hidden_sizes[depth])
            value = weights.initial(name)
            if value is None:
                draw_uniform(self._rng, view, -bound, bound)
            else:
                view[...] = value

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], prefix: str = "", **options: Any) -> Self:
        """Make the layer that a state dict fits, with its weights; nothing is drawn at random.

        Sizes, layers, directions, projection, biases, peepholes, layer norm and independent units
        are inferred from names and shapes. Entries are copied one at a time, straight into the
        layer, so that weights in a mapped file need no second copy in memory.

        Parameters
        ----------
        state : mapping of str to array-like
            Arrays or CPU tensors by PyTorch's names, as `torch.nn.LSTM(...).state_dict()`,
            `dict(module.named_parameters())`, `numpy.load` of an .npz file or `state_dict` here
            return them, of any floating dtype, bfloat16 included. Names of `torch.nn.LSTMCell`
            and the like, without "_l0", make a layer of one cell.
        prefix : str, default ""
            Only what begins with it is read, as "encoder.lstm." in the state dict of a whole
            network.
        **options
            Arguments of the constructor that weights do not tell, such as `batch_first`,
            `nonlinearity`, `reset_after`, `coupled`, `merge_mode`, `dropout` and `rng`. What they
            do tell may be given if it is the same. `dtype` is by default float64 if all weights
            are, otherwise float32.

        Returns
        -------
        RNN, LSTM or GRU
            Of the class that this is called on, which may be a subclass that takes the arguments
            needed.

        Raises
        ------
        KeyError
            Names are missing or unexpected, or none begins with the prefix.
        TypeError
            `state` is not a mapping, there is no such option, or an entry is not made of
            floating-point numbers in this machine's memory: integers would need a scale.
        ValueError
            Shapes fit no layer of this class, or an option contradicts them.
        """
        from cylstm import loading  # not needed to run

        return loading.layer_of(cls, state, prefix, options)

    def _merged(self, depth: int) -> int:
        """Features of a layer's output."""
        side_by_side = self.merge_mode in outputs.SIDE_BY_SIDE
        return self.output_sizes[depth] * (self.num_directions if side_by_side else 1)

    def _suffixes(self) -> list[str]:
        """Names of all directions of all layers, in the order of the states' first axis."""
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in self._directions()]

    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse")[: self.num_directions]

    def _argument(self, name: str) -> Any:
        """Leave out the number of layers where it says nothing."""
        if name == "num_layers" and (self.num_layers == 1 or isinstance(self.hidden_size, tuple)):
            return None
        return super()._argument(name)

    # What the kernels need of a cell

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        """Slot and activation of each gate, and of what else has one, in slot order."""
        raise NotImplementedError

    def _cell_of(self, suffix: str) -> Cell:
        return self._cell._replace(reverse=self.go_backwards or suffix.endswith("_reverse"))

    def __getstate__(self) -> dict[str, Any]:
        """Also leave out the packed weights and views of gradients."""
        derived = {"_packed", "_places"}
        return {k: v for k, v in super().__getstate__().items() if k not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Have masks of their own drawn, where there was no seed."""
        super().__setstate__(state)
        if not self._seeded:
            self._rng = checks.generator("rng", None)

    def _after_fork(self) -> None:
        """In a child: draw other masks, and do not wait for a thread that drew at the fork."""
        super()._after_fork()
        old = self._rng.bit_generator
        if not self._seeded:
            self._rng = checks.generator("rng", None)
        elif old.lock.acquire(blocking=False):
            old.lock.release()
        else:
            new = type(old)()
            new.state = old.state
            self._rng = np.random.Generator(new)

    def _make_views(self) -> None:
        super()._make_views()
        self._places = weights.places(self, [None] * self.num_layers * self.num_directions)

    def _changed(self) -> None:
        self._packed: sequence.Stack | None = None

    def _weights(self, backward: bool) -> sequence.Stack:
        """Packed weights of each direction of each layer, packed again only after a change."""
        found = self._packed
        if found is not None and (found.backward or not backward):
            return found
        with self._lock:  # so that a change by another thread is seen whole or not at all
            found = self._packed
            if found is None or (backward and not found.backward):
                packed = [weights.pack(self, suffix, backward) for suffix in self._suffixes()]
                d = self.num_directions
                layers = [packed[i : i + d] for i in range(0, len(packed), d)]
                self._packed = found = sequence.Stack(layers, threads.number, self._plain)
        return found

    # Running

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
            x, state, lengths, mask, reset, return_, self.batch_first, out, state_out, num_threads
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
        x, state, lengths, mask, reset, return_, num_threads
            As for a plain call.
        out : ndarray, optional
            Where to write `y`; it must not share memory with `x`.
        checkpoint : int or "sqrt", optional
            Keep the state every so many steps, or sqrt(T), instead of the tape, which `backward`
            then makes again piece by piece (Chen et al. 2016): the same bits for one more
            forward pass. Rounded up to a multiple of the kernels' chunk, ceil(256 / B) steps or
            so. See `workspace_nbytes` for what it saves.
        rng : int or numpy.random.Generator, optional
            Source of this call's masks; the same int gives the same ones. Default the layer's.

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
        checkpoint = self._interval(checkpoint)
        generator = self._rng if rng is None else checks.generator("rng", rng)
        if checkpoint is None and reset is None and not self._draws and not self.dropout:
            found = self._weights(True).record(
                x, state, lengths, mask, return_, self.batch_first, out, num_threads
            )
            if found is not None:
                y, final, calls, x, lengths = found
                batch = Batch.of_read(x, lengths, mask is not None, return_, self.batch_first)
                return y, final, Tape.plain(self, batch, calls, state)
        return self._run(
            x, state, lengths, mask, reset, return_, out, num_threads, True, checkpoint, generator
        )

    def _run(
        self,
        x: Any,
        state: State,
        lengths: Any,
        mask: Any = None,
        reset: Any = None,
        return_: str | int = "all",
        out: Array | None = None,
        num_threads: int | None = None,
        taped: bool = False,
        checkpoint: int | str | None = None,
        rng: np.random.Generator | None = None,
        record: bool = False,
        state_out: State = None,
    ) -> tuple[Any, State, Any]:
        n_threads = threads.number(num_threads)
        batch = Batch(
            x, self.input_size, self.dtype, self.batch_first, lengths, mask, return_, reset
        )
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
        """Run the layer as a plain call does and return what went on inside.

        Parameters
        ----------
        x, state, lengths, mask, reset
            As for a plain call; x is an array.

        Returns
        -------
        dict of str to dict of str to ndarray
            For each layer and direction ("l0", "l0_reverse", "l1", ...), arrays of shape
            (T, B, H), laid out as `x`, at original time positions, zero at steps that are not
            read: every activated gate by name (LSTM "input", "forget", "candidate", "output";
            GRU "reset", "update", "candidate"), its pre-activation, before any clip, as
            "<gate>_preactivation" (RNN: "hidden_preactivation"), "hidden", and for LSTM "cell".
        """
        if is_ragged(x):
            raise ValueError("x: expected an array, got a list")
        tape = self._run(x, state, lengths, mask, reset, taped=True, record=True)[2]
        return {suffix: self._recorded(tape, i) for i, suffix in enumerate(self._suffixes())}

    def _recorded(self, tape: Tape, index: int) -> dict[str, Array]:
        """Everything of one direction of one layer, by name."""
        call, batch = tape.calls[index // self.num_directions], tape.batch
        slots, before, c, h, time, row = call.recorded(index % self.num_directions)
        named: dict[str, Array] = {}
        for name, (slot, _) in self._slots().items():
            if name in self.gates:
                named[name] = slots[:, slot]
                named[f"{name}_preactivation"] = slots[:, before + slot]
        if self._cell.coupled:
            named["forget"] = 1 - named["input"]
        named["hidden"] = h
        if c is not None:
            named["cell"] = c
        for name, entries in named.items():
            full = np.zeros((batch.steps, batch.rows, entries.shape[1]), self.dtype)
            full[time, row] = entries
            named[name] = batch.outward(full)
        return named

    def backward(
        self,
        tape: Tape,
        dy: Any,
        dstate: State = None,
        *,
        clip_step: float | None = None,
        num_threads: int | None = None,
    ) -> tuple[Any, State]:
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
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        if tape.layer is not self:
            raise ValueError("tape: expected one of this layer, got one of another layer")
        n_threads, bound = threads.number(num_threads), checks.bound("clip_step", clip_step) or 0.0
        batch = tape.batch
        if dy is not None:
            dy = outputs.gradient(self, dy, batch)
        dfinals = states.inward(self, "dstate", dstate, batch)
        dfinals = states.of_segments(self, dfinals, batch)
        dinitials: list[Parts] = []
        calls: list[sequence.Call] = []
        for depth in reversed(range(self.num_layers)):
            drawn, both = tape.masks[depth], None
            if dy is not None:
                if "dropout" in drawn:
                    dy = dy * drawn["dropout"]
                both = outputs.part(
                    self, dy, batch if depth == self.num_layers - 1 else None, tape.both[depth]
                )
            dx = [self._room(batch, depth) for _ in range(self.num_directions)]
            dinitial, call = sequence.backward(
                tape.calls[depth], both, dfinals[depth], dx, n_threads, bound
            )
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
        return batch.x_outward(dy), states.outward(self, dinitials, batch)

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
        n_threads = threads.number(num_threads)
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
