"""Storage of trainable parameters: one flat vector, named read-only views, and gradients alike.

Everything trainable (`RNN`, `LSTM`, `GRU`, `Linear`, `Embedding`) is a `Module`. Optimisers
and all-reduces see one contiguous vector per module and never need the names.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import weakref
from _thread import RLock  # importing threading takes longer than the package
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:  # numpy.typing takes time to import
    Array = np.ndarray
if TYPE_CHECKING:  # naming numpy.random would import it
    Rng = int | np.random.Generator | None


_alive: weakref.WeakSet[Module] = weakref.WeakSet()
_REQUIRED = object()
#: Numbers drawn at once, so that no array is made of the size of the parameters.
_BLOCK = 65536


def _after_fork() -> None:
    for module in _alive:
        module._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def draw(into: Array, sample: Callable[[int], Array]) -> None:
    """Fill a contiguous array with so many draws at a time that another of its size is not made."""
    flat = into.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        block[...] = sample(block.size)


def draw_uniform(rng: np.random.Generator, into: Array, low: float, high: float) -> None:
    """Fill a contiguous array with draws from U(low, high), rounded from float64."""
    draw(into, lambda size: rng.uniform(low, high, size))


class LoadedKeys(NamedTuple):
    """What `load_state_dict` found no place or no value for; names are PyTorch's."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Gradients(Mapping[str, Array]):
    """Views of the flat gradients by name: the arrays can be written to, the names are fixed."""

    __slots__ = ("_views",)

    def __init__(self, views: dict[str, Array]) -> None:
        self._views = views

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Refuse anything but what `grads[name] += values` ends with."""
        if value is not self[name]:
            raise TypeError(
                f"grads: expected grads[{name!r}][...] = value, which writes into the gradient, "
                f"got grads[{name!r}] = value"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return repr(self._views)


class Module:
    """Named parameters of one module, stored as one flat vector.

    The parameters can be read as `params` (PyTorch names) or as `flat_params`; both are read-only
    views that cannot be made writable. The one way to change them is `assign` (or
    `load_state_dict`), which also drops whatever was derived from the old values, so that a
    changed weight is never ignored.

    Subclasses may set attributes of their own in `__init__`, and declare others in the class. Once
    a module is made, its options are read-only and an attribute that nobody declared is refused.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Parameter names and shapes, in storage order.
    dtype : numpy dtype
        float32 or float64.

    Raises
    ------
    MemoryError
        There is no room for the parameters.
    """

    #: Public attributes that are read-only once the options have been read.
    _fixed = frozenset({"dtype"})
    #: Arguments of the library's own constructor with their defaults.
    _signature = MappingProxyType[str, Any]({})
    #: 0 while the library's constructor runs, 1 until a subclass's has ended as well, then 2.
    _stage = 0
    #: Whether parameters are to be loaded, so that none are drawn.
    _loaded = False
    _frozen_names = frozenset[str]()

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the constructor's options, and have it say when an instance is complete."""
        super().__init_subclass__(**options)
        init: Any = cls.__init__
        if "__init__" not in vars(cls) and hasattr(init, "completes"):
            return
        if _of_the_library(cls) and "__init__" in vars(cls):
            cls._signature = MappingProxyType(_arguments(init))
            cls._fixed = cls._fixed | cls._signature.keys()

        @functools.wraps(init)
        def __init__(self: Module, *arguments: Any, **options: Any) -> None:
            init(self, *arguments, **options)
            kind = type(self)
            if kind.__init__ is __init__:
                self._stage = 2
            elif cls is next(filter(_of_the_library, kind.__mro__)):
                self._stage = 1

        __init__.completes = True  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[method-assign]

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self._shapes = dict(shapes)
        self.dtype = np.dtype(dtype.name)  # NumPy's own object, which compares fastest
        self._storage = self._zeros()
        self._version = 0  # counts changes, so that a tape can tell that it is out of date
        self._make_views()

    def _zeros(self) -> Array:
        """Make one number per parameter; the system gives memory when it is written to."""
        size = sum(math.prod(shape) for shape in self._shapes.values())
        try:
            return np.zeros(size, self.dtype)
        except (MemoryError, ValueError, OverflowError):
            raise MemoryError(
                f"{self!r}: expected parameters that fit in memory, got "
                f"{size * self.dtype.itemsize:,} bytes"
            ) from None

    def _make_views(self) -> None:
        self._lock = RLock()
        _alive.add(self)
        # A view of a read-only memoryview: unlike `flags.writeable = False`, nobody can undo it.
        read_only = self._storage.data.toreadonly()
        self._flat_params = np.frombuffer(read_only, self.dtype)
        self._params = MappingProxyType(self.split(self._flat_params))
        self._flat_grads = self._zeros()
        self._grad_views = self.split(self._flat_grads)
        self._grads = Gradients(self.split(self._flat_grads))

    def _after_fork(self) -> None:
        """In a child: a thread that held the lock in the parent will never release it here."""
        self._lock = RLock()

    if not TYPE_CHECKING:  # a type checker would take them for a licence to assign anything

        def __setattr__(self, name: str, value: Any) -> None:
            if self._stage and not name.startswith("_"):
                self._check_assignment(name)
            object.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            if self._stage and name in self._fixed:
                self._check_assignment(name)
            object.__delattr__(self, name)

    def _check_assignment(self, name: str) -> None:
        """Refuse to assign to options, to parameters, and to what is probably a typing error."""
        kind = type(self)
        if name in self._shapes:
            raise AttributeError(
                f"{name}: expected assign({{{name!r}: values}}), which changes the parameter, "
                "got an assignment to an attribute"
            )
        if name in self._fixed:
            raise AttributeError(
                f"{name}: options are fixed at construction; make a new {kind.__name__} instead"
            )
        declared = name in self.__dict__ or any(
            name in names for c in kind.__mro__ for names in (vars(c), _annotated(c))
        )
        if self._stage == 1 or declared:
            return
        import difflib  # seldom needed, and slow to import

        public = [n for n in (*dir(self), *self._shapes) if not n.startswith("_")]
        near = difflib.get_close_matches(name, public, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(
            f"{name}: expected an attribute of {kind.__name__}, or one that a subclass declares or "
            f"sets in __init__, got an unknown name{hint}"
        )

    def __repr__(self) -> str:
        """Show the call that makes such a module: all arguments but those at their defaults."""
        words = [
            repr(value) if default is _REQUIRED else f"{name}={value!r}"
            for name, default in self._signature.items()
            if (value := self._argument(name)) is not default and value != default
        ]
        return f"{type(self).__name__}({', '.join(words)})"

    @property
    def config(self) -> Mapping[str, Any]:
        """What makes such a module again: plain data, for JSON and the like.

        Returns
        -------
        mapping of str to (None, bool, int, float, str or tuple)
            Read-only. "class" is the name of the module's class; the rest are the arguments of its
            constructor, all of them but `rng`. `from_config` takes it back.

        Raises
        ------
        ValueError
            The module shares a parameter with another one (`tied_to`), which data cannot say.
        """
        values = {name: self._argument(name) for name in self._signature if self._keeps(name)}
        if values.get("tied_to") is not None:
            raise ValueError(
                f"tied_to: expected None, to describe a module by itself, got {values['tied_to']!r}"
            )
        return MappingProxyType({"class": type(self).__name__, **values})

    def _keeps(self, name: str) -> bool:
        """Whether a constructor's argument is still there to be read."""
        return name == "dtype" or hasattr(self, name)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, rng: Rng = None) -> Self:
        """Make a module as `config` describes it, with new parameters.

        Parameters
        ----------
        config : mapping of str to object
            From `config` of a module, also by way of JSON, where tuples are lists. Arguments that
            are not there have their defaults.
        rng : None, int or numpy.random.Generator, default None
            Source of the initial parameters.

        Returns
        -------
        Module
            Of the class that this is called on, or, called on the class that all modules share, of
            the one that "class" names.

        Raises
        ------
        TypeError
            `config` is not a mapping, or has an argument that the class does not.
        ValueError
            "class" is not there, names no module of the library, or not the class this is called
            on; or an argument is wrong.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config: expected a mapping, got {type(config).__name__}")
        kind, arguments = cls._named(config.get("class")), dict(config)
        del arguments["class"]
        unknown = sorted(map(str, set(arguments) - set(kind._described_by())))
        if unknown:
            raise TypeError(f"config: expected arguments of {kind.__name__}, got {unknown}")
        return kind._made(arguments, rng)

    @classmethod
    def _described_by(cls) -> Iterable[str]:
        """Names of what a configuration says beside the class."""
        return cls._signature

    @classmethod
    def _made(cls, arguments: dict[str, Any], rng: Rng) -> Self:
        """Make a module of the arguments in its configuration."""
        made: Any = cls
        source = {"rng": rng} if "rng" in cls._signature else {}
        module: Self = made(**{name: _as_tuple(v) for name, v in arguments.items()}, **source)
        return module

    @classmethod
    def _named(cls, name: Any) -> type[Self]:
        """Return the class that a configuration is of."""
        if cls._signature:
            if name != cls.__name__:
                raise ValueError(f"config: expected 'class' {cls.__name__!r}, got {name!r}")
            return cls
        import cylstm

        kind = getattr(cylstm, name, None) if isinstance(name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, cls)) or not kind._signature:
            raise ValueError(f"config: expected 'class' to name a module of cylstm, got {name!r}")
        return kind

    @classmethod
    def _undrawn(cls, **arguments: Any) -> Self:
        """Make a module whose parameters are zeros, to be loaded."""
        module = cls.__new__(cls)
        module._loaded = True
        cls.__init__(module, **arguments)
        return module

    def _parts(self) -> tuple[Module, ...]:
        """Return the modules that have the parameters in vectors of their own."""
        return (self,)

    def _draws_parameters(self) -> bool:
        """Whether a constructor is to draw initial values; asked once."""
        return not self.__dict__.pop("_loaded", False)

    def _argument(self, name: str) -> Any:
        """Value of a constructor's argument that makes such a module; its default if it is gone."""
        if name == "dtype":
            return self.dtype.name
        return getattr(self, name, self._signature[name])

    @property
    def params(self) -> Mapping[str, Array]:
        """Read-only views of the parameters by name; `assign` changes them."""
        return self._params

    @property
    def flat_params(self) -> Array:
        """Read-only view of all parameters as one vector; `assign` changes them."""
        return self._flat_params

    @property
    def grads(self) -> Mapping[str, Array]:
        """Views of the gradients by name, zero at first; write with `grads[name][...] = value`."""
        return self._grads

    @property
    def flat_grads(self) -> Array:
        """View of all gradients as one vector; assigning to it writes into the vector."""
        return self._flat_grads

    @flat_grads.setter
    def flat_grads(self, values: npt.ArrayLike) -> None:
        self._flat_grads[...] = self._as_values("flat_grads", values, self._storage.shape)

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
        if flat.shape != self._storage.shape:
            raise ValueError(f"flat: expected shape {self._storage.shape}, got {flat.shape}")
        return {
            name: flat[where].reshape(self._shapes[name]) for name, where in self._slices().items()
        }

    def _slices(self) -> dict[str, slice]:
        """Where each parameter is in the flat vector."""
        found, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + math.prod(shape)
            found[name] = slice(start, stop)
            start = stop
        return found

    def assign(self, values: Array | Mapping[str, Any]) -> None:
        """Change all parameters, or those that are named; the others stay as they are.

        Parameters
        ----------
        values : array-like of shape (flat_params.size,) or mapping of str to array-like
            All parameters as one vector laid out like `flat_params`, or some of them by name: of a
            layer with two biases, assigning `bias_ih_l0` leaves `bias_hh_l0` at its old value,
            which is random in a new layer. `load_state_dict` insists on all names. Values are
            copied and cast to the module's dtype; whatever NumPy or DLPack can read is taken,
            PyTorch's CPU tensors and bfloat16 included.

        Raises
        ------
        KeyError
            A name is not a parameter of this module.
        TypeError
            Values are not real numbers, or 8-bit integers, which would need a scale.
        ValueError
            A shape differs. Nothing has been changed in any of these cases.
        """
        changes = []
        if isinstance(values, Mapping):
            unknown = sorted(map(str, set(values) - set(self._shapes)))
            if unknown:
                raise KeyError(f"{unknown} not among the parameters {list(self._shapes)}")
            into = self.split(self._storage)
            for name, value in values.items():
                changes.append((into[name], self._as_values(name, value, self._shapes[name])))
        else:
            changes.append((self._storage, self._as_values("values", values, self._storage.shape)))
        with self._changing():
            self._write(changes)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Let a block write to the parameters' storage, and drop what was derived from it."""
        with self._lock:
            try:
                yield
            finally:
                self._version += 1
                self._changed()

    def _write(self, changes: list[tuple[Array, Array]]) -> None:
        """Change the storage: write new values into views of it; called with the lock held."""
        for old, new in changes:
            old[...] = new

    def _as_values(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        """Check values; they are copied where writing them could fail or change them."""
        from cylstm import checks  # which imports this module

        array = checks.shape(name, checks.tensor(name, value), shape)
        if np.can_cast(array.dtype, self.dtype) and not np.may_share_memory(array, self._storage):
            return array
        return array.astype(self.dtype)

    def _changed(self) -> None:
        """Forget everything derived from the parameters; layers drop their packed weights here."""

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self._flat_grads[...] = 0

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that optimisers leave alone; see `freeze`."""
        return self._frozen_names

    def freeze(self, *names: str) -> None:
        """Have optimisers leave parameters alone, weight decay included.

        Their gradients are still computed. Copies and pickles remember what is frozen.

        Parameters
        ----------
        *names : str
            Names of parameters, or patterns such as "weight_hh*" and "*_l0" (`fnmatch`). Default
            all parameters.

        Raises
        ------
        ValueError
            A name or pattern fits no parameter. Nothing has been changed then.
        TypeError
            A name is not a str.
        """
        self._frozen_names = self._frozen_names | self._matching(names)

    def unfreeze(self, *names: str) -> None:
        """Have optimisers change parameters again that `freeze` has made them leave alone.

        Parameters
        ----------
        *names : str
            Names of parameters, or patterns such as "weight_hh*" and "*_l0" (`fnmatch`). Default
            all parameters.

        Raises
        ------
        ValueError
            A name or pattern fits no parameter. Nothing has been changed then.
        TypeError
            A name is not a str.
        """
        self._frozen_names = self._frozen_names - self._matching(names)

    def _matching(self, patterns: tuple[str, ...]) -> frozenset[str]:
        from fnmatch import fnmatchcase

        found: set[str] = set()
        for pattern in patterns or ("*",):
            if not isinstance(pattern, str):
                raise TypeError(f"names: expected names of parameters, got {pattern!r}")
            fitting = {name for name in self._shapes if fnmatchcase(name, pattern)}
            if not fitting:
                raise ValueError(
                    f"names: expected some of the parameters {list(self._shapes)}, got {pattern!r}"
                )
            found |= fitting
        return frozenset(found)

    def trainable_slices(self) -> list[slice]:
        """Where in the flat vector the parameters are that are not frozen.

        Returns
        -------
        list of slice
            As few as possible, in order; one over the whole vector where nothing is frozen.
        """
        found: list[slice] = []
        for name, where in self._slices().items():
            if name in self._frozen_names:
                continue
            if found and found[-1].stop == where.start:
                where = slice(found.pop().start, where.stop)
            found.append(where)
        return found

    def state_dict(self, *, as_torch: bool = False) -> dict[str, Any]:
        """Return copies of all parameters under PyTorch's names.

        The copies are of one moment, whatever other threads assign meanwhile.

        Parameters
        ----------
        as_torch : bool, default False
            Return tensors, so that `torch.nn.LSTM(...).load_state_dict(layer.state_dict(
            as_torch=True))` and `torch.save` take them. Imports PyTorch.

        Returns
        -------
        dict of str to ndarray or torch.Tensor

        Raises
        ------
        ImportError
            `as_torch=True` and PyTorch is not installed.
        """
        from cylstm import checks  # which imports this module

        with self._lock:
            copies = self.split(self._storage.copy())
        if not checks.flag("as_torch", as_torch):
            return copies
        import torch

        return {name: torch.from_numpy(value) for name, value in copies.items()}

    def load_state_dict(
        self, state: Mapping[str, Any], prefix: str | None = None, strict: bool = True
    ) -> LoadedKeys:
        """Set the parameters from what `state_dict`, here or in PyTorch, returns.

        Parameters
        ----------
        state : mapping of str to array-like
            Arrays or CPU tensors by PyTorch's names, of any floating dtype, bfloat16 included;
            `dict(module.named_parameters())` will do. A layer of one cell takes the names of
            `torch.nn.LSTMCell` and the like, without "_l0".
        prefix : str, optional
            Only what begins with it is read, as "encoder.lstm." in the state dict of a whole
            network. Default: the names are the module's own, with nothing before them.
        strict : bool, default True
            Whether all names must be there and no other. False: what is missing stays as it is,
            what is unexpected is left out.

        Returns
        -------
        missing_keys, unexpected_keys : list of str
            A named tuple, without the prefix; both empty with `strict=True`.

        Raises
        ------
        KeyError
            Names are missing or unexpected, or none begins with the prefix.
        TypeError
            `state` is not a mapping, or an entry is not made of floating-point numbers in this
            machine's memory: integers would need a scale.
        ValueError
            A shape differs. Nothing has been changed in any of these cases.
        """
        from cylstm import checks  # which imports this module
        from cylstm.io import state_dict as loading

        checks.flag("strict", strict)
        found = loading.entries(state, prefix, self._shapes.__contains__)
        missing = [name for name in self._shapes if name not in found]
        unexpected = sorted(n for n in set(found) - set(self._shapes) if not self._passes_over(n))
        if strict and (missing or unexpected):
            raise KeyError(f"state: missing {missing}, unexpected {unexpected}")
        self.assign(
            {name: loading.weight(name, found[name]) for name in self._shapes if name in found}
        )
        return LoadedKeys(missing, unexpected)

    def _passes_over(self, name: str) -> bool:
        """Whether an entry of PyTorch's state dict has nothing to say here."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Return everything of one moment but the gradients, the lock and the views."""
        derived = {"_lock", "_params", "_grads", "_grad_views", "_flat_params", "_flat_grads"}
        with self._lock:
            state: Any = object.__getstate__(self)
            if isinstance(state, tuple):  # of a subclass with slots
                state = state[0] | state[1]
            kept: dict[str, Any] = {k: v for k, v in state.items() if k not in derived}
            return kept | {"_storage": self._storage.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a new lock, new views, and gradients of zero."""
        for name, value in state.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dtype", np.dtype(self.dtype.name))
        # joblib, dask and pickle protocol 5 may hand over arrays in read-only memory.
        self._storage = np.require(self._storage, requirements="W")
        self._make_views()
        self._changed()

    def __copy__(self) -> Module:
        """Copy everything: a change in one of two layers over one storage would be ignored."""
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        """Copy everything of one moment but the gradients, which are zero in the copy."""
        import copy  # seldom needed, and slow to import

        memo[id(self)] = twin = object.__new__(type(self))
        state = self.__getstate__()
        storage = state.pop("_storage")  # a copy already
        twin.__setstate__(copy.deepcopy(state, memo) | {"_storage": storage})
        return twin


def _of_the_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _annotated(cls: type) -> Mapping[str, Any]:
    return getattr(cls, "__annotations__", {})


def _as_tuple(value: Any) -> Any:
    """Turn lists, as JSON has them, into the tuples that arguments are."""
    return tuple([_as_tuple(v) for v in value]) if isinstance(value, (list, tuple)) else value


def _arguments(init: Any) -> dict[str, Any]:
    """Names of a constructor's arguments with their defaults; `inspect` is slow to import."""
    code = init.__code__
    count = code.co_argcount
    # With CO_VARARGS the name of *arguments comes last.
    several = code.co_flags & 4 > 0
    names = code.co_varnames[1 : count + code.co_kwonlyargcount + several]
    defaults = init.__defaults__ or ()
    positional = dict(zip(code.co_varnames[count - len(defaults) : count], defaults, strict=True))
    return dict.fromkeys(names, _REQUIRED) | positional | (init.__kwdefaults__ or {})
