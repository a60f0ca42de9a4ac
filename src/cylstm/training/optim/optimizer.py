"""What optimisers have in common: modules, hyperparameters, state vectors and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cylstm import checks
from cylstm.module import Array, Module

# Elements of a step done at once, so that the vectors of all its operations stay in the L2 cache.
_BLOCK = 16384


class Option:
    """A hyperparameter as an attribute of an optimiser, checked whenever it is assigned.

    Parameters
    ----------
    check : callable
        Gets the name and a value and returns the value to keep, or raises.
    """

    def __init__(self, check: Callable[[str, Any], Any]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer._options[self._name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._set_options({self._name: value})


class Optimizer:
    """The base of all optimisers.

    An optimiser is a subclass with an `Option` for each hyperparameter, `_state_names` and
    `_update`. Attributes other than those of the class are refused.

    Parameters
    ----------
    modules : Module or iterable of Module
        What to train.
    **options : Any
        All hyperparameters by name.
    """

    def __init__(self, modules: Module | Iterable[Module], **options: Any) -> None:
        self._modules = modules_of(modules)
        self._steps = 0
        # Steps of each parameter: fewer than `steps` if it has been frozen for a while.
        self._counts = [dict.fromkeys(module.params, 0) for module in self._modules]
        self._state: list[dict[str, Array]] = [{} for _ in self._modules]
        self._options: dict[str, Any] = {}
        self._set_options(options)
        self._make_buffers()

    def _make_buffers(self) -> None:
        self._new = [np.empty_like(module.flat_params) for module in self._modules]
        self._scratch = [np.empty_like(new[:_BLOCK]) for new in self._new]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the buffers."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_new", "_scratch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make new buffers."""
        self.__dict__.update(state)
        self._make_buffers()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would have no effect."""
        if not name.startswith("_") and not hasattr(type(self), name):
            options = ", ".join(self.__dict__.get("_options", ()))
            raise AttributeError(
                f"{name}: expected one of the options of {type(self).__name__} ({options}), "
                "got another name"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        one, *others = self._modules
        options = [f"{name}={value!r}" for name, value in self._options.items()]
        modules = repr([one, *others] if others else one)
        return f"{type(self).__name__}({', '.join([modules, *options])})"

    @property
    def modules(self) -> tuple[Module, ...]:
        """What is trained."""
        return self._modules

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return self._steps

    @property
    def state(self) -> list[dict[str, Array]]:
        """State vectors of each module by name, laid out like its `flat_params`.

        They are zeros at first. `module.split` gives views by parameter name.
        """
        return self._state

    def _set_options(self, changes: Mapping[str, Any]) -> None:
        """Check and set hyperparameters, and make the state that they need."""
        options = self._options | self._checked(changes)
        names = self._state_names(options)
        self._options = options
        for module, state in zip(self._modules, self._state, strict=True):
            for name in set(state) - set(names):
                del state[name]
            for name in names:
                if name not in state:
                    state[name] = np.zeros_like(module.flat_params)

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: getattr(type(self), name).check(name, v) for name, v in options.items()}

    def _state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state vectors; refuse options that do not go together."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set the gradients of all modules to zero."""
        for module in self._modules:
            module.zero_grad()

    def step(self) -> None:
        """Change the parameters of all modules by their gradients.

        Frozen parameters and their state are left alone, weight decay included. What overflows or
        underflows does so silently, whatever `numpy.seterr` says. A signal handler that raises, as
        Ctrl-C does, finds all of a step or nothing: once it has begun it is brought to its end.
        """
        begun = self._planned()
        try:
            self._go_on(begun)
        except BaseException:
            if begun.kept >= 0:
                self._go_on(begun)
            raise

    def _planned(self) -> _Step:
        """Return what the next step consists of; nothing is changed."""
        found: list[tuple[int, slice, int]] = []
        for i, module in enumerate(self._modules):
            pieces = _pieces(module, self._counts[i])
            if sum(stop - start for start, stop, _ in pieces) < module.flat_params.size:
                self._new[i][...] = module.flat_params
            found += [(i, block, count) for *piece, count in pieces for block in blocks(*piece)]
        counts = [
            {name: count + (name not in module.frozen) for name, count in counts.items()}
            for module, counts in zip(self._modules, self._counts, strict=True)
        ]
        return _Step(found, counts, self._steps + 1)

    def _go_on(self, step: _Step) -> None:
        """Make a step, or what an interrupt has left of it: all that is done may be done again."""
        with np.errstate(all="ignore"):
            for at in range(step.at, len(step.blocks)):
                i, block, count = step.blocks[at]
                state = {name: vector[block] for name, vector in self._state[i].items()}
                step.keep_or_restore(at, i, state)
                module, new = self._modules[i], self._new[i][block]
                p, g = module.flat_params[block], module.flat_grads[block]
                self._update(count + 1, p, g, state, new, self._scratch[i][: len(new)])
                step.at = at + 1
            for i in dict.fromkeys(i for i, _, _ in step.blocks):
                self._modules[i].assign(self._new[i])
        self._counts, self._steps = step.counts, step.steps

    def _update(
        self, t: int, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        """Write new parameters of one block into `new` at its step t; update its state in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here with the same bits, as copies.

        Returns
        -------
        dict
            `steps`: int, the number of steps done. The hyperparameters by name, such as `lr`:
            numbers, booleans, or a tuple of numbers. For the parameter `name` of module i, counted
            from 0, `step.i.name`: int, the number of its steps (less than `steps` if it has been
            frozen for a while), and for each state vector, such as `exp_avg`, `exp_avg.i.name`:
            ndarray of the shape and dtype of the parameter. `numpy.savez` can save it.
        """
        found: dict[str, Any] = {"steps": self._steps, **self._options}
        for key, i, name, _ in self._places(self._options):
            found[f"{key}.{i}.{name}"] = (
                self._counts[i][name]
                if key == "step"
                else self._modules[i].split(self._state[i][key])[name].copy()
            )
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the hyperparameters, state vectors and counts of steps.

        The modules' parameters are not part of it; load them with their own `load_state_dict`.

        Parameters
        ----------
        state : mapping
            What `state_dict` of an optimiser of the same class returns, over modules with the same
            parameters; also as read back from `numpy.savez` by `numpy.load`.

        Raises
        ------
        KeyError
            Names are missing or unexpected.
        TypeError
            `state` is not a mapping, or a value has another type or dtype.
        ValueError
            A shape differs, or a number is out of range. Nothing has been changed in any of these
            cases.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state: expected a mapping, as of state_dict(), got {type(state).__name__}"
            )
        given = {name: _plain(value) for name, value in state.items()}
        options = self._options | self._checked({k: given[k] for k in self._options if k in given})
        places = self._places(options)
        expected = {"steps", *options, *(f"{key}.{i}.{name}" for key, i, name, _ in places)}
        missing, unexpected = sorted(expected - set(given)), sorted(set(given) - expected, key=str)
        if missing or unexpected:
            raise KeyError(f"state: missing {missing}, unexpected {unexpected}")
        steps = checks.size("steps", given["steps"], 0)
        counts = [dict(of_module) for of_module in self._counts]
        vectors: list[dict[str, Array]] = [{} for _ in self._modules]
        for key, i, name, like in places:
            whole = f"{key}.{i}.{name}"
            if key == "step":
                counts[i][name] = checks.size(whole, given[whole], 0)
                continue
            value = _like(whole, given[whole], like)
            vector = vectors[i].setdefault(key, np.empty_like(self._modules[i].flat_params))
            self._modules[i].split(vector)[name][...] = value
        self._steps, self._counts, self._state, self._options = steps, counts, vectors, options

    def _places(self, options: Mapping[str, Any]) -> list[tuple[str, int, str, Array]]:
        """Kind, module, name and parameter of what a state dict has for each parameter."""
        return [
            (key, i, name, value)
            for key in ("step", *self._state_names(options))
            for i, module in enumerate(self._modules)
            for name, value in module.params.items()
        ]


class _Step:
    """A step that may be interrupted, and then gone on with."""

    def __init__(
        self, blocks: list[tuple[int, slice, int]], counts: list[dict[str, int]], steps: int
    ) -> None:
        #: Module, part of its flat vector, and steps that this part has done.
        self.blocks = blocks
        #: What the optimiser counts after it.
        self.counts, self.steps = counts, steps
        #: Blocks that are done.
        self.at = 0
        #: The last one that has been begun, and room for its state before, by module and name.
        self.kept = -1
        self._room: dict[tuple[int, str], Array] = {}

    def keep_or_restore(self, at: int, i: int, state: dict[str, Array]) -> None:
        """Keep a block's state before it is changed; if it has been, undo that."""
        for name, now in state.items():
            if (i, name) not in self._room:
                self._room[i, name] = np.empty(_BLOCK, now.dtype)
            room = self._room[i, name][: now.size]
            source, into = (room, now) if self.kept == at else (now, room)
            into[...] = source
        self.kept = at


def _pieces(module: Module, counts: dict[str, int]) -> list[tuple[int, int, int]]:
    """Return the trainable ranges of the flat vector, each with the steps that it has done."""
    pieces: list[tuple[int, int, int]] = []
    trainable, begin = module.trainable_slices(), 0
    for name, value in module.params.items():
        end = begin + value.size
        for part in trainable:
            start, stop = max(begin, part.start), min(end, part.stop)
            if start < stop:
                if pieces and pieces[-1][1:] == (start, counts[name]):
                    start = pieces.pop()[0]
                pieces.append((start, stop, counts[name]))
        begin = end
    return pieces


def blocks(start: int, stop: int) -> Iterator[slice]:
    """Cover a range of a vector with short slices."""
    for at in range(start, stop, _BLOCK):
        yield slice(at, min(at + _BLOCK, stop))


def modules_of(modules: Any) -> tuple[Module, ...]:
    """Check one module or several; of a network return the modules that it is made of."""
    one = isinstance(modules, (Module, Mapping, np.ndarray, str))
    several = (modules,) if one or not isinstance(modules, Iterable) else tuple(modules)
    if not several:
        raise ValueError("modules: expected at least one, got none")
    for module in several:
        if not isinstance(module, Module):
            raise TypeError(
                f"modules: expected cylstm modules, got {type(module).__name__}; "
                "pass the layer itself, not its parameters"
            )
    parts = tuple(part for module in several for part in module._parts())
    if len(set(map(id, parts))) < len(parts):
        raise ValueError("modules: expected each module once, got one twice")
    return parts


def _plain(value: Any) -> Any:
    """Return the number in an array of shape (), as `numpy.load` makes one of a number."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _like(name: str, value: Any, parameter: Array) -> Array:
    """Check an array of a parameter's shape and dtype."""
    found: Array = np.asarray(value)
    checks.shape(name, found, parameter.shape)
    if found.dtype.newbyteorder("=") != parameter.dtype:
        raise TypeError(f"{name}: expected dtype {parameter.dtype}, got {found.dtype}")
    return found
