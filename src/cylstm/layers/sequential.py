"""`Sequential`: modules in a row, with one call, one tape and one backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from cylstm.layers import flow
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.network import Network
from cylstm.layers.pool import Pool
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array, Module


class Sequential(Network):
    """Modules in a row, each reading the output of the one before.

    Parameters are those of the modules, under names such as "0.weight_ih_l0" and
    "encoder.2.bias", as in `torch.nn.Sequential`. `net[0]`, `net["encoder"]` and slices give the
    modules themselves, not copies.

    Parameters
    ----------
    *modules : Module, or one mapping of str to Module
        Recurrent layers, `Embedding`, `Linear`, what else the library has, and networks of them.
        Those that are not named are "0", "1" and so on. All of one dtype; those that say
        `batch_first` must agree.

    Attributes
    ----------
    modules : tuple of Module

    Raises
    ------
    TypeError
        Something is not a module, or a name is not a str.
    ValueError
        A name is empty or has a dot, sizes of neighbours do not fit, or modules differ in dtype or
        `batch_first`.

    Notes
    -----
    A row of sequences has the same bits alone and in any company, padded or in a list, for any
    number of threads. Each module keeps its parameters and gradients in a vector of its own;
    `flat_params` and `flat_grads` of the network are copies of them, end to end. A call during
    which another thread assigns new parameters uses, of each module, either the old or the new.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        self._adopt(self._by_name(modules), "modules")
        #: Recurrent layers that are asked for what the module after them would make of all outputs.
        self._pooled = self._pools()
        children = list(self._children.values())
        if children:
            self._reads_ids, self._width = children[0]._reads_ids, children[0]._width
            self._skips_unread = children[0]._skips_unread
            self._leaves_zeros = children[-1]._leaves_zeros
        self._features(None)

    # As a collection

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._children.values())

    def __bool__(self) -> bool:
        """Say that there is a network, even an empty one."""
        return True

    def __getitem__(self, key: int | str | slice) -> Any:
        """Return a module by place or name, or a network of those in a slice, which it shares."""
        if isinstance(key, str):
            if key not in self._children:
                raise KeyError(f"{key!r} not among the modules {list(self._children)}")
            return self._children[key]
        if isinstance(key, slice):
            return type(self)(dict(list(self._children.items())[key]))
        return list(self._children.values())[key]

    # On the way

    def _pools(self) -> dict[str, str]:
        """Find recurrent layers with a Pool after them that they can do themselves."""
        found: dict[str, str] = {}
        before: tuple[str, Any] = ("", None)
        for name, child in self._children.items():
            if isinstance(child, Pool):
                layer = before[1]
                if isinstance(layer, Recurrent):
                    alike = layer.num_directions == 1 or layer.merge_mode == "concat"
                    if alike or child.mode in ("final", "last"):
                        found[before[0]] = child.mode
                elif child.mode == "final":
                    raise ValueError(
                        f"modules[{name!r}]: expected a recurrent layer directly before a Pool of "
                        f"mode 'final', got {layer!r}"
                    )
            before = name, child
        return found

    def _ids(self, name: str, value: Any) -> Any:
        first: Any = self[0]
        return first._ids(name, value)

    def _check_ids(self, name: str, ids: Any) -> None:
        first: Any = self[0]
        first._check_ids(name, ids)

    def _features(self, width: int | None) -> int | None:
        """Features of the output; refuses modules whose sizes do not fit."""
        before, ended = "the input", False
        for name, child in self._children.items():
            if child._reads_ids and before != "the input":
                raise ValueError(
                    f"modules[{name!r}]: expected an Embedding at the beginning, got it after "
                    f"{before}"
                )
            if None not in (width, child._width) and width != child._width:
                raise ValueError(
                    f"modules[{name!r}]: expected a module that reads {width} features, which "
                    f"{before} has, got one that reads {child._width}"
                )
            if ended and child._looks_along_time:
                raise ValueError(
                    f"modules[{name!r}]: expected a module that needs no axis of time after a Pool,"
                    f" got {child!r}"
                )
            ended = ended or child._ends_time
            try:
                width = child._features(width)
            except ValueError as error:
                flow.named(error, name, child)
            before = f"the output of {name!r}"
        return width

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        given = self._states("state", state)
        finals: list[Any] = []
        tapes: dict[str, Any] = {}
        asked: dict[str, Any] = {}
        for name, child in self._children.items():
            if asked:  # the Pool after a layer that has been asked for its output
                asked, tapes[name] = {}, None
                continue
            if name in self._pooled:
                asked = {"return_": self._pooled[name]}
            try:
                passed = child._pass(x, given.get(name), steps, run, **asked)
            except (TypeError, ValueError) as error:
                flow.named(error, name, child)
            x, steps = passed.y, passed.steps
            tapes[name] = passed.tape
            if child._has_state:
                finals.append(passed.state)
        return Passed(x, steps, tuple(finals), tapes if run.taped else None)

    def _pass_back(self, tape: Any, dy: Any, dstate: Any, run: Run) -> tuple[Any, Any]:
        given = self._states("dstate", dstate)
        firsts: list[Any] = []
        done = {pool for before, pool in pairwise(self._children) if before in self._pooled}
        for name, child in reversed(self._children.items()):
            if name in done:
                continue
            dy, dfirst = child._pass_back(tape[name], dy, given.get(name), run)
            if child._has_state:
                firsts.insert(0, dfirst)
        return dy, tuple(firsts)
