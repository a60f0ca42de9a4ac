"""What modules made of modules share: parameters under dotted names, states, configurations."""

from __future__ import annotations

import contextlib
from _thread import RLock
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cylstm import checks
from cylstm.layers.flow import Flowing
from cylstm.module import Array, Gradients, Module, _alive

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.module import Rng


class Container(Flowing):
    """A module made of others, which keep their parameters.

    A parameter's name is that of its module, a dot, and the name it has there, as in PyTorch. A
    module that is there twice, and so shares its parameters, is named by its first place.
    """

    _children: dict[str, Flowing]

    def _adopt(self, children: Mapping[str, Any], name: str) -> None:
        """Take the modules that this one is made of, and check that they go together."""
        for key, child in children.items():
            if not isinstance(child, Flowing):
                raise TypeError(
                    f"{name}[{key!r}]: expected a module of cylstm, got {type(child).__name__}"
                )
            self._refuse(f"{name}[{key!r}]", child)
        self._children = dict(children)
        #: The modules with parameters of their own, each once, by path.
        self._leaves = _leaves(self)
        self._shapes = {
            f"{path}.{name}": shape
            for path, leaf in self._leaves.items()
            for name, shape in leaf._shapes.items()
        }
        self.dtype = self._agreed(
            "dtype", {p: leaf.dtype for p, leaf in self._all().items() if leaf._typed}
        ) or np.dtype(np.float32)
        self._typed = any(leaf._typed for leaf in self._all().values())
        self._batch_first = self._agreed(
            "batch_first", {path: leaf._batch_first for path, leaf in self._all().items()}
        )
        for option in ("_has_state", "_looks_along_time", "_ends_time"):
            setattr(self, option, any(getattr(c, option) for c in self._children.values()))
        self._make_views()

    def _refuse(self, name: str, child: Any) -> None:
        """Refuse what cannot be one of several modules."""
        if not getattr(child, "_reads_x_only", True):
            raise TypeError(f"{name}: expected a module that reads x alone, got {child!r}, which "
                            "also reads attention")  # fmt: skip
        if getattr(child, "merge_mode", None) == "separate":
            raise ValueError(f"{name}: expected a module with one output, got {child!r}, which has "
                             "two with merge_mode='separate'")  # fmt: skip

    def _agreed(self, what: str, values: Mapping[str, Any]) -> Any:
        """Return what all that say something say, or None."""
        said = {path: value for path, value in values.items() if value is not None}
        for path, value in said.items():
            first = next(iter(said))
            if value != said[first]:
                raise ValueError(
                    f"{what}: expected that of {first!r}, {said[first]}, in all modules, got "
                    f"{value} in {path!r}"
                )
        return next(iter(said.values()), None)

    def _all(self) -> dict[str, Flowing]:
        """Return all modules that are not made of others, by path."""
        found: dict[str, Flowing] = {}
        for name, child in self._children.items():
            inner = child._all()
            found |= {f"{name}.{path}".rstrip("."): leaf for path, leaf in inner.items()}
        return found

    def _make_views(self) -> None:
        self._lock = RLock()
        _alive.add(self)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that this one is made of, in order."""
        return tuple(self._children.values())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Go through this module and all inside, at any depth, each once.

        Yields
        ------
        path : str
            "" for this module, then names with dots between them.
        module : Module
        """
        seen: set[int] = set()
        pending: list[tuple[str, Module]] = [("", self)]
        while pending:
            path, module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            if isinstance(module, Container):
                inner = [(f"{path}.{n}".lstrip("."), m) for n, m in module._children.items()]
                pending += reversed(inner)

    # Parameters

    @property
    def params(self) -> Mapping[str, Array]:
        """Read-only views of the parameters by name; `assign` changes them."""
        return MappingProxyType(
            {
                f"{path}.{name}": value
                for path, leaf in self._leaves.items()
                for name, value in leaf.params.items()
            }
        )

    @property
    def grads(self) -> Mapping[str, Array]:
        """Views of the gradients by name, zero at first; write with `grads[name][...] = value`."""
        return Gradients(
            {
                f"{path}.{name}": value
                for path, leaf in self._leaves.items()
                for name, value in leaf._grad_views.items()
            }
        )

    @property
    def flat_params(self) -> Array:
        """Read-only copy of all parameters as one vector, module after module; see `assign`.

        Each module has its own vector, which its own `flat_params` shows without a copy.
        """
        return self._joined([leaf.flat_params for leaf in self._leaves.values()])

    @property
    def flat_grads(self) -> Array:
        """Read-only copy of all gradients as one vector; assigning one writes into the gradients.

        `grads` and the modules' own `flat_grads` are views.
        """
        return self._joined([leaf.flat_grads for leaf in self._leaves.values()])

    @flat_grads.setter
    def flat_grads(self, values: npt.ArrayLike) -> None:
        given = self._vector("flat_grads", values)
        for leaf, part in self._by_leaf(given):
            leaf.flat_grads = part

    def _joined(self, vectors: list[Array]) -> Array:
        joined = np.concatenate([np.empty(0, self.dtype), *vectors])
        joined.flags.writeable = False
        return joined

    def _vector(self, name: str, values: Any) -> Array:
        size = sum(leaf.flat_params.size for leaf in self._leaves.values())
        return checks.shape(name, checks.tensor(name, values), (size,))

    def _by_leaf(self, flat: Array) -> Iterator[tuple[Flowing, Array]]:
        start = 0
        for leaf in self._leaves.values():
            stop = start + leaf.flat_params.size
            yield leaf, flat[start:stop]
            start = stop

    def split(self, flat: Array) -> dict[str, Array]:
        """Split a flat vector into views with the parameters' names and shapes.

        Parameters
        ----------
        flat : ndarray of shape (flat_params.size,)
            Any vector laid out like `flat_params`, such as an optimiser's moments.

        Returns
        -------
        dict of str to ndarray

        Raises
        ------
        ValueError
            The shape differs.
        """
        size = sum(leaf.flat_params.size for leaf in self._leaves.values())
        if flat.shape != (size,):
            raise ValueError(f"flat: expected shape ({size},), got {flat.shape}")
        return {
            name: flat[where].reshape(self._shapes[name]) for name, where in self._slices().items()
        }

    def _parts(self) -> tuple[Module, ...]:
        return tuple(leaf for leaf in self._leaves.values() if leaf.flat_params.size)

    def _passes_over(self, name: str) -> bool:
        path, _, last = name.rpartition(".")
        return path in self._leaves and self._leaves[path]._passes_over(last)

    @contextlib.contextmanager
    def _all_locked(self) -> Iterator[None]:
        """Keep other threads from assigning to any of the modules; always in one order."""
        with contextlib.ExitStack() as stack:
            for leaf in sorted(self._leaves.values(), key=id):
                stack.enter_context(leaf._lock)
            yield

    def assign(self, values: Array | Mapping[str, Any]) -> None:
        """Change all parameters, or those that are named; the others stay as they are.

        Parameters
        ----------
        values : array-like of shape (flat_params.size,) or mapping of str to array-like
            All parameters as one vector laid out like `flat_params`, or some of them by name.
            Values are copied and cast to the modules' dtype; whatever NumPy or DLPack can read is
            taken, PyTorch's CPU tensors and bfloat16 included.

        Raises
        ------
        KeyError
            A name is not a parameter of this module.
        TypeError
            Values are not real numbers, or 8-bit integers, which would need a scale.
        ValueError
            A shape differs. Nothing has been changed in any of these cases.
        """
        changes: list[tuple[Flowing, Any]]
        if isinstance(values, Mapping):
            unknown = sorted(map(str, set(values) - set(self._shapes)))
            if unknown:
                raise KeyError(f"{unknown} not among the parameters {list(self._shapes)}")
            by_path: dict[str, dict[str, Array]] = {}
            for full, value in values.items():
                path, _, name = full.rpartition(".")
                leaf = self._leaves[path]
                checked = leaf._as_values(full, value, self._shapes[full])
                by_path.setdefault(path, {})[name] = checked
            changes = [(self._leaves[path], named) for path, named in by_path.items()]
        else:
            changes = list(self._by_leaf(self._vector("values", values)))
        with self._all_locked():
            for leaf, change in changes:
                leaf.assign(change)

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for leaf in self._leaves.values():
            leaf.zero_grad()

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that optimisers leave alone; see `freeze`."""
        return frozenset(
            f"{path}.{name}" for path, leaf in self._leaves.items() for name in leaf.frozen
        )

    def freeze(self, *names: str) -> None:
        """Have optimisers leave parameters alone, weight decay included.

        Their gradients are still computed. Copies and pickles remember what is frozen.

        Parameters
        ----------
        *names : str
            Names of parameters, or patterns such as "0.*" and "*.weight_hh*" (`fnmatch`). Default
            all parameters.

        Raises
        ------
        ValueError
            A name or pattern fits no parameter. Nothing has been changed then.
        TypeError
            A name is not a str.
        """
        for leaf, own in self._by_path(self._matching(names)):
            leaf.freeze(*own)

    def unfreeze(self, *names: str) -> None:
        """Have optimisers change parameters again that `freeze` has made them leave alone.

        Parameters
        ----------
        *names : str
            Names of parameters, or patterns such as "0.*" and "*.weight_hh*" (`fnmatch`). Default
            all parameters.

        Raises
        ------
        ValueError
            A name or pattern fits no parameter. Nothing has been changed then.
        TypeError
            A name is not a str.
        """
        for leaf, own in self._by_path(self._matching(names)):
            leaf.unfreeze(*own)

    def _by_path(self, names: frozenset[str]) -> Iterator[tuple[Flowing, list[str]]]:
        for path, leaf in self._leaves.items():
            own = [name for name in leaf._shapes if f"{path}.{name}" in names]
            if own:
                yield leaf, own

    @property
    def _frozen_names(self) -> frozenset[str]:  # type: ignore[override]
        return self.frozen

    def state_dict(self, *, as_torch: bool = False) -> dict[str, Any]:
        """Return copies of all parameters under PyTorch's names.

        The copies are of one moment, whatever other threads assign meanwhile. A parameter that two
        modules share is there once, under its first name.

        Parameters
        ----------
        as_torch : bool, default False
            Return tensors, as `torch.nn.Sequential(...).load_state_dict` and `torch.save` take
            them. Imports PyTorch.

        Returns
        -------
        dict of str to ndarray or torch.Tensor

        Raises
        ------
        ImportError
            `as_torch=True` and PyTorch is not installed.
        """
        with self._all_locked():
            return {
                f"{path}.{name}": value
                for path, leaf in self._leaves.items()
                for name, value in leaf.state_dict(as_torch=as_torch).items()
            }

    # Configurations and copies

    @property
    def config(self) -> Mapping[str, Any]:
        """What makes such a module again: plain data, for JSON and the like.

        Returns
        -------
        mapping of str to object
            Read-only. "class" is the name of the module's class, "modules" maps names to the
            configurations of the modules inside. Where one comes again or shares a parameter
            (`tied_to`) its path stands in place of a configuration. `from_config` takes it back.

        Raises
        ------
        ValueError
            A module shares a parameter with one that is not in here.
        """
        return MappingProxyType(self._described("", {}))

    def _described(self, path: str, known: dict[int, str]) -> dict[str, Any]:
        """Describe this module at a path; `known` has the paths of what has been described."""
        inside: dict[str, Any] = {}
        for name, child in self._children.items():
            at = f"{path}.{name}".lstrip(".")
            if id(child) in known:
                inside[name] = known[id(child)]
                continue
            known[id(child)] = at
            if isinstance(child, Container):
                inside[name] = child._described(at, known)
                continue
            tied = getattr(child, "tied_to", None)
            if tied is None:
                inside[name] = dict(child.config)
            elif id(tied) in known:
                words = {n: child._argument(n) for n in child._signature if child._keeps(n)}
                inside[name] = {"class": type(child).__name__} | words
                inside[name]["tied_to"] = known[id(tied)]
            else:
                raise ValueError(
                    f"tied_to: expected a module before {at!r} in the same network, got {tied!r}"
                )
        return {"class": type(self).__name__, "modules": inside}

    @classmethod
    def _described_by(cls) -> tuple[str, ...]:
        return ("modules",)

    @classmethod
    def _made(cls, arguments: dict[str, Any], rng: Rng) -> Self:
        """Make the network that a configuration describes."""
        return cls._rebuilt(arguments, checks.generator("rng", rng), "", {})

    @classmethod
    def _rebuilt(
        cls, arguments: dict[str, Any], rng: np.random.Generator, path: str,
        known: dict[str, Flowing],
    ) -> Self:  # fmt: skip
        described = arguments.pop("modules", {})
        if not isinstance(described, Mapping):
            raise TypeError(f"config: expected a mapping of modules, got {described!r}")
        children: dict[str, Any] = {}
        for name, config in described.items():
            at = f"{path}.{name}".lstrip(".")
            if isinstance(config, str):
                children[name] = _known(config, known)
            elif isinstance(config, Mapping):
                kind: Any = Module._named(config.get("class"))
                given = {key: value for key, value in config.items() if key != "class"}
                if isinstance(given.get("tied_to"), str):
                    given["tied_to"] = _known(given["tied_to"], known)
                if issubclass(kind, Container):
                    children[name] = kind._rebuilt(given, rng, at, known)
                elif given.get("tied_to") is None:
                    children[name] = Module.from_config(config, rng=rng)
                else:
                    children[name] = kind._made(given, rng)
            else:
                raise TypeError(f"config: expected a mapping for {at!r}, got {config!r}")
            known[at] = children[name]
        return cls._of(children, arguments)

    @classmethod
    def _of(cls, children: dict[str, Any], options: dict[str, Any]) -> Self:
        """Make one of named modules."""
        if options:
            raise TypeError(f"config: expected arguments of {cls.__name__}, got {sorted(options)}")
        made: Any = cls
        in_order = list(children) == [str(i) for i in range(len(children))]
        module: Self = made(*children.values()) if in_order else made(children)
        return module

    @staticmethod
    def _by_name(modules: tuple[Any, ...]) -> Mapping[str, Any]:
        """Return what a constructor was given by name: a mapping, or modules in order."""
        if len(modules) != 1 or not isinstance(modules[0], Mapping):
            return {str(i): module for i, module in enumerate(modules)}
        for name in modules[0]:
            if not isinstance(name, str):
                raise TypeError(f"modules: expected names of type str, got {name!r}")
            if not name or "." in name:
                raise ValueError(f"modules: expected names without dots, got {name!r}")
        return modules[0]

    def __repr__(self) -> str:
        """Show the call that makes such a module, one module on each line."""
        named = list(self._children) != [str(i) for i in range(len(self._children))]
        lines = [
            (f"{name!r}: {child!r}" if named else repr(child)).replace("\n", "\n    ")
            for name, child in self._children.items()
        ]
        body = "".join(f"\n    {line}," for line in lines)
        if not lines:
            return f"{type(self).__name__}()"
        return f"{type(self).__name__}(" + (f"{{{body}\n}})" if named else f"{body}\n)")

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the lock; each module has its own state."""
        state: Any = object.__getstate__(self)
        if isinstance(state, tuple):  # of a subclass with slots
            state = state[0] | state[1]
        return {key: value for key, value in state.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a new lock."""
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dtype", np.dtype(self.dtype.name))
        self._make_views()

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        """Copy everything of one moment but the gradients, which are zero in the copy."""
        import copy  # seldom needed, and slow to import

        memo[id(self)] = twin = object.__new__(type(self))
        with self._all_locked():
            twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    @property
    def _version(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(leaf._version for leaf in self._leaves.values())


def _leaves(container: Container) -> dict[str, Flowing]:
    """Modules with parameters in vectors of their own, each once, by path."""
    return {
        path: module
        for path, module in container.named_modules()
        if isinstance(module, Flowing) and not isinstance(module, Container)
    }


def _known(path: str, known: Mapping[str, Flowing]) -> Flowing:
    if path not in known:
        raise ValueError(f"config: expected the path of a module before, got {path!r}")
    return known[path]
