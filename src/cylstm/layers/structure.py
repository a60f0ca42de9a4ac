"""What a recurrent layer consists of: options, sizes, names, parameters and their packed copy."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from cylstm import checks, runtime
from cylstm.engine import outputs, weights
from cylstm.engine.cells import Activation, Cell
from cylstm.engine.masks import Masks
from cylstm.engine.states import Parts
from cylstm.kernels import sequence
from cylstm.layers.drawing import Drawing
from cylstm.layers.flow import Flowing
from cylstm.module import Array, Module, draw_uniform

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


def _level_outside() -> int:
    """Return the stack level of the code that called the library, for warnings to point at."""
    level, frame = 0, sys._getframe(1)
    while frame.f_globals.get("__name__", "").startswith("cylstm.") and frame.f_back:
        level, frame = level + 1, frame.f_back
    return level + 1


#: Units in the longest vector of any instruction set.
VECTOR = 16


class Structure(Drawing, Flowing):
    """What recurrent layers are made of, before any of them runs."""

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
    #: Whether a step reads x and the state alone, as streams can give it.
    _reads_x_only = True
    #: The kernels' name of the cell.
    _kind = ""
    #: Whether gates see h, by weights.
    _recurrent = True
    #: Diagonal blocks of weight_hh, of which only these are stored.
    _heads = 1
    #: Activations of the textbook cell, by gate.
    _usual: Mapping[str, Activation] = {}
    _fixed = Module._fixed | {
        "gates", "states", "hidden_sizes", "num_directions", "input_sizes", "output_sizes",
    }  # fmt: skip

    def _build(self, given: Mapping[str, Any], own: Checks) -> None:
        """Make the layer of its constructor's arguments; `own` checks the options of its class."""
        for name, check in (_CHECKS | own).items():
            if name in given:
                setattr(self, name, check(name, given[name]))
        self._read_sizes(given["hidden_size"], given["num_layers"])
        self.num_directions = 2 if self.bidirectional else 1
        #: Of each direction, whether it reads from the last step to the first.
        self._backwards = (False, True) if self.bidirectional else (self.go_backwards,)
        self._read_activations(given)
        self._check_options()
        self._no_state: list[Parts] = [(None,) * len(self.states)] * self.num_layers
        self._no_masks: list[Masks] = [{}] * self.num_layers
        self._no_outputs: list[Array | None] = [None] * self.num_layers
        self.output_sizes = tuple(getattr(self, "proj_size", 0) or h for h in self.hidden_sizes)
        self.input_sizes = (self.input_size, *map(self._merged, range(self.num_layers - 1)))
        self._cell = self._described()
        #: Whether `forward` draws masks of the recurrence.
        drawing = ("dropconnect", "recurrent_dropout", "zoneout", "zoneout_cell")
        self._draws = any(getattr(self, name, 0) for name in drawing)
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
        self._seed(given["rng"])
        Module.__init__(self, named, dtype)
        if self._draws_parameters():
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

    def _described(self) -> Cell:
        """Describe the cell to the kernels: each gate in the slot of its place, both products."""
        slots = tuple(range(len(self.gates)))
        sizes = {hidden // self._heads for hidden in self.hidden_sizes}
        return Cell(
            kind=self._kind,
            states=len(self.states),
            x_slots=slots,
            h_slots=slots,
            products=int(self._recurrent),
            usual=tuple(self._usual[name].name for name in self._slots()),
            activations=tuple(activation for _, activation in self._slots().values()),
            clip=self.clip or 0.0,
            zone=self.zoneout,
            norm=getattr(self, "layer_norm", None),
            # Blocks that are no whole vectors are products with the zeros beside them.
            heads=1 if any(size % VECTOR for size in sizes) else self._heads,
        )

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
        from cylstm.io import state_dict as loading  # not needed to run

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
                self._packed = found = sequence.Stack(
                    layers, runtime.number, self._plain, self.batch_first
                )
        return found
