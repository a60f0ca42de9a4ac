"""Storage of trainable parameters: one flat vector, named read-only views, gradients beside them.

Everything trainable (`RNN`, `LSTM`, `GRU`, `Linear`, `Embedding`) is a `Parameters`. Optimisers
and all-reduces see one contiguous vector per module and never need the names.
"""

from __future__ import annotations

import math
import os
import weakref
from _thread import RLock  # importing threading takes longer than the package
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:  # numpy.typing takes time to import
    Array = np.ndarray
if TYPE_CHECKING:  # naming numpy.random would import it
    Rng = int | np.random.Generator | None


_alive: weakref.WeakSet[Parameters] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child: a thread that held a lock in the parent will never release it here."""
    for module in _alive:
        module._lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class _Gradients(dict[str, Array]):
    """Views of the flat gradients; assigning to a name writes into its view."""

    def __setitem__(self, name: str, value: Any) -> None:
        self[name][...] = value


class Parameters:
    """Named parameters of one module, stored as one flat vector.

    The parameters can be read as `params` (PyTorch names) or as `flat_params`; both are read-only
    views that cannot be made writable. The one way to change them is `assign` (or
    `load_state_dict`), which also drops whatever was derived from the old values, so that a
    changed weight is never ignored.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Parameter names and shapes, in storage order.
    dtype : numpy dtype
        float32 or float64.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self._shapes = dict(shapes)
        self.dtype = np.dtype(dtype.name)  # NumPy's own object, which compares fastest
        size = sum(math.prod(shape) for shape in self._shapes.values())
        self._storage = np.zeros(size, dtype)
        self._flat_grads = np.zeros(size, dtype)
        self._version = 0  # counts changes, so that a tape can tell that it is out of date
        self._make_views()

    def _make_views(self) -> None:
        self._lock = RLock()
        _alive.add(self)
        # A view of a read-only memoryview: unlike `flags.writeable = False`, nobody can undo it.
        read_only = self._storage.data.toreadonly()
        self._flat_params = np.frombuffer(read_only, self.dtype)
        self._params = MappingProxyType(self.split(self._flat_params))
        self._grad_views = self.split(self._flat_grads)
        self._grads = _Gradients(self._grad_views)

    @property
    def params(self) -> Mapping[str, Array]:
        """Read-only views of the parameters by name; `assign` changes them."""
        return self._params

    @property
    def flat_params(self) -> Array:
        """Read-only view of all parameters as one vector; `assign` changes them."""
        return self._flat_params

    @property
    def grads(self) -> dict[str, Array]:
        """Views of the gradients by name; assigning to a name writes into its view."""
        return self._grads

    @property
    def flat_grads(self) -> Array:
        """View of all gradients as one vector; assigning to it writes into the vector."""
        return self._flat_grads

    @flat_grads.setter
    def flat_grads(self, values: npt.ArrayLike) -> None:
        self._flat_grads[...] = values

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
        views, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return views

    def assign(self, values: Array | Mapping[str, Array]) -> None:
        """Change parameters.

        Parameters
        ----------
        values : ndarray of shape (flat_params.size,) or mapping of str to ndarray
            All parameters as one vector laid out like `flat_params`, or some of them by name.
            Values are copied and cast to the module's dtype.

        Raises
        ------
        KeyError
            A name is not a parameter of this module.
        TypeError
            Values are not real numbers.
        ValueError
            A shape differs. Nothing has been changed in any of these cases.
        """
        if isinstance(values, Mapping):
            unknown = sorted(set(values) - set(self._shapes))
            if unknown:
                raise KeyError(f"{unknown} not among the parameters {list(self._shapes)}")
            into = self.split(self._storage)
            # Copies, because the values may be views of the parameters about to change.
            changes = [
                (into[name], self._as_values(name, value, self._shapes[name]).copy())
                for name, value in values.items()
            ]
        else:
            changes = [(self._storage, self._as_values("values", values, self._storage.shape))]
        with self._lock:
            self._write(changes)
            self._version += 1
            self._changed()

    def _write(self, changes: list[tuple[Array, Array]]) -> None:
        """Change the storage: write new values into views of it; called with the lock held."""
        for old, new in changes:
            old[...] = new

    def _as_values(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        array: Array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        return array.astype(self.dtype, copy=False)

    def _changed(self) -> None:
        """Forget everything derived from the parameters; layers drop their packed weights here."""

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.flat_grads[...] = 0

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters under PyTorch's names."""
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters from what `state_dict`, here or in PyTorch, returns.

        Parameters
        ----------
        state : mapping of str to array-like
            Exactly this module's names; anything `numpy.asarray` accepts, CPU tensors included.

        Raises
        ------
        KeyError
            Names are missing or unexpected.
        TypeError
            Values are not real numbers.
        ValueError
            A shape differs. Nothing has been changed in any of these cases.
        """
        missing = sorted(set(self._shapes) - set(state))
        unexpected = sorted(set(state) - set(self._shapes))
        if missing or unexpected:
            raise KeyError(f"state: missing {missing}, unexpected {unexpected}")
        self.assign(dict(state))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock and the views."""
        derived = {"_lock", "_params", "_grads", "_grad_views", "_flat_params"}
        return {k: v for k, v in self.__dict__.items() if k not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a new lock and new views."""
        self.__dict__.update(state)
        self.dtype = np.dtype(self.dtype.name)
        # joblib, dask and pickle protocol 5 may hand over arrays in read-only memory.
        self._storage = np.require(self._storage, requirements="W")
        self._flat_grads = np.require(self._flat_grads, requirements="W")
        self._make_views()
        self._changed()

    def __copy__(self) -> Parameters:
        """Copy everything: a change in one of two layers over one storage would be ignored."""
        import copy  # seldom needed, and slow to import

        return copy.deepcopy(self)
