"""`Residual` and `Concat`: networks that are no single line."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from cylstm.layers import flow
from cylstm.layers.flow import Flowing, Passed, Run, Steps
from cylstm.layers.network import Network
from cylstm.layers.pool import Pool
from cylstm.module import Array, Module


class Residual(Network):
    """Add what a module makes of its input to the input: y = x + f(x) (He et al. 2016).

    Parameters are those of the module, under names that begin with "module.". Its state, if it has
    one, is the module's own.

    Parameters
    ----------
    module : Module
        f: its output has the features and the steps of its input. Several in a row are a
        `Sequential`.

    Attributes
    ----------
    module : Module

    Raises
    ------
    TypeError
        `module` is not one.
    ValueError
        Its output cannot be added to its input.
    """

    def __init__(self, module: Module) -> None:
        self._adopt({"module": module}, "modules")
        self.module = module
        if self._inner._reads_ids:
            raise ValueError(f"module: expected one that reads numbers, got {module!r}")
        if self._inner._ends_time:
            raise ValueError(f"module: expected one that keeps the axis of time, got {module!r}")
        self._width = self._inner._width
        self._features(self._width)

    @property
    def _inner(self) -> Flowing:
        return self._children["module"]

    @classmethod
    def _of(cls, children: dict[str, Any], options: dict[str, Any]) -> Self:
        if list(children) != ["module"] or options:
            got = sorted({*children, *options})
            raise TypeError(f"config: expected 'module' among the modules of Residual, got {got}")
        return cls(children["module"])

    def __repr__(self) -> str:
        """Show the call that makes such a module."""
        return "Residual(\n    " + repr(self.module).replace("\n", "\n    ") + ",\n)"

    def _features(self, width: int | None) -> int | None:
        """Say how many features the output has; refuse others than the input's."""
        found = self._inner._features(width)
        if None not in (width, found) and width != found:
            raise ValueError(
                f"module: expected one with as many features in its output as in its input, "
                f"{width}, got {found}"
            )
        return width if found is None else found

    def _initial_state(self, rows: int) -> Any:
        """Return that of the module."""
        return self._inner._initial_state(rows) if self._has_state else ()

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        try:
            passed = self._inner._pass(x, state, steps, run)
        except (TypeError, ValueError) as error:
            flow.named(error, "module", self._inner)
        if passed.y.shape != x.shape:
            raise ValueError(
                f"module: expected an output of the shape of its input, {x.shape}, got "
                f"{passed.y.shape}"
            )
        return passed._replace(y=x + passed.y, steps=steps)

    def _check_back(self, tape: Any, dstate: Any) -> None:
        self._inner._check_back(tape, dstate)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        dx, dfirst = self._inner._pass_back(tape, dy, dstate, run)
        return dy + dx, dfirst


class Concat(Network):
    """Give the same input to several modules, and put their features side by side.

    Parameters are those of the modules, under names such as "0.weight". The state has one entry for
    each module that has one.

    Parameters
    ----------
    *modules : Module, or one mapping of str to Module
        Their outputs have the same steps; either all of them read ids or none does, and either all
        end with a `Pool` or none does. Those that are not named are "0", "1" and so on.

    Attributes
    ----------
    modules : tuple of Module

    Raises
    ------
    TypeError
        Something is not a module, or a name is not a str.
    ValueError
        There are no modules, or they do not go together.
    """

    def __init__(self, *modules: Module) -> None:
        self._adopt(self._by_name(modules), "modules")
        if not self._children:
            raise ValueError("modules: expected at least one, got none")
        for what in ("_reads_ids", "_ends_time"):
            said = {getattr(child, what) for child in self._children.values()}
            if len(said) > 1:
                names = {"_reads_ids": "read ids", "_ends_time": "end with a Pool"}
                raise ValueError(f"modules: expected all or none that {names[what]}, got some")
        self._agreed("modules", {name: c._width for name, c in self._children.items()})
        self._reads_ids = self._first()._reads_ids
        widths = [c._width for c in self._children.values() if c._width is not None]
        self._width = widths[0] if widths else None
        self._features(self._width)

    def _refuse(self, name: str, child: Any) -> None:
        super()._refuse(name, child)
        if isinstance(child, Pool) and child.mode == "final":
            raise ValueError(
                f"{name}: expected a recurrent layer directly before a Pool of mode 'final', got "
                "none"
            )

    def _first(self) -> Flowing:
        return next(iter(self._children.values()))

    def _ids(self, name: str, value: Any) -> Any:
        first: Any = self._first()
        return first._ids(name, value)

    def _check_ids(self, name: str, ids: Any) -> None:
        child: Any
        for child in self._children.values():
            child._check_ids(name, ids)

    def _features(self, width: int | None) -> int | None:
        """Add up the features of all outputs."""
        found: list[int | None] = []
        for name, child in self._children.items():
            try:
                found.append(child._features(width))
            except ValueError as error:
                flow.named(error, name, child)
        return None if None in found else sum(n for n in found if n is not None)

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        given = self._states("state", state)
        made: dict[str, Passed] = {}
        for name, child in self._children.items():
            try:
                made[name] = child._pass(x, given.get(name), steps, run)
            except (TypeError, ValueError) as error:
                flow.named(error, name, child)
            self._compare(name, made)
        finals = tuple(p.state for name, p in made.items() if name in given)
        y = np.concatenate([passed.y for passed in made.values()], axis=-1)
        tape = {name: passed.tape for name, passed in made.items()}
        if run.taped:
            tape[""] = [passed.y.shape[-1] for passed in made.values()]
        return Passed(y, next(iter(made.values())).steps, finals, tape)

    @staticmethod
    def _compare(name: str, made: dict[str, Passed]) -> None:
        """Refuse outputs of other steps than the first module's."""
        first, other = next(iter(made.values())), made[name]
        same = first.y.shape[:-1] == other.y.shape[:-1]
        if same and first.steps.lengths is not None and other.steps.lengths is not None:
            same = np.array_equal(first.steps.lengths, other.steps.lengths)
        if not same:
            raise ValueError(
                f"modules[{name!r}]: expected an output of as many steps as that of "
                f"{next(iter(made))!r}, shape {first.y.shape}, got {other.y.shape}"
            )

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        given = self._states("dstate", dstate)
        parts = np.split(dy, np.cumsum(tape[""])[:-1], axis=-1)
        total, firsts = None, []
        for (name, child), part in zip(self._children.items(), parts, strict=True):
            dx, dfirst = child._pass_back(tape[name], part, given.get(name), run)
            total = dx if total is None else total + dx
            if name in given:
                firsts.append(dfirst)
        return total, tuple(firsts)
