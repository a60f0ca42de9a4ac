"""What is in a file: the configuration, the version that wrote it, and where weights are.

Nothing of a file is believed: members of archives are read up to their declared size and the cap,
arrays only where their shape is the one that the configuration asks for. Nothing is unpacked to
disk, no class is looked up by name.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from cylstm.io.keras import hdf5
from cylstm.io.keras.error import KerasError, named
from cylstm.io.keras.layer_line import Layer
from cylstm.module import Array

_ZIP = b"PK\x03\x04"
#: No configuration is as long.
_TEXT = 2**26
#: What "layers" was called in Keras 2.12 to 2.15.
_OLD = "_layer_checkpoint_dependencies"
#: Most pieces of a list of names, and arrays of a model.
_PIECES, _ARRAYS = 64, 10**5


class Budget:
    """How many bytes may still be read."""

    def __init__(self, max_bytes: int) -> None:
        self.limit = self.left = max_bytes

    def take(self, what: str, nbytes: int) -> None:
        """Count bytes that are about to be read."""
        if nbytes > self.left:
            raise KerasError(
                f"{what}: expected at most max_bytes={self.limit} bytes in all, got {nbytes} where "
                f"{self.left} were left"
            )
        self.left -= nbytes


class Tensor:
    """An array that has not been read yet, but for its shape."""

    def __init__(self, name: str, value: Any, budget: Budget) -> None:
        self.name, self.shape = name, tuple(value.shape)
        self._value, self._budget = value, budget

    def read(self, expected: Sequence[int | None]) -> Array:
        """Read the numbers, after a look at what they are.

        Parameters
        ----------
        expected : sequence of int or None
            The shape that the configuration asks for; None for a size that nothing tells.
        """
        value = self._value
        fits = len(self.shape) == len(expected) and all(
            n is None or n == m for n, m in zip(expected, self.shape, strict=True)
        )
        if not fits or 0 in self.shape:
            shape = str(tuple("any" if n is None else n for n in expected)).replace("'", "")
            raise KerasError(f"{self.name}: expected shape {shape}, got {self.shape}")
        if value.dtype is None or value.dtype.kind != "f":
            raise KerasError(
                f"{self.name}: expected floating-point numbers, got {value.dtype or 'others'}"
            )
        self._budget.take(self.name, math.prod(self.shape) * value.dtype.itemsize)
        if isinstance(value, np.ndarray):
            return value
        with named(self.name):
            found: Array = value.read()
        return found


class Weights:
    """Where the arrays of a layer are."""

    def arrays(self, layer: Layer, slots: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Find the arrays of a layer.

        Parameters
        ----------
        layer : Layer
        slots : sequence of (path, count)
            Where the layer keeps its arrays, and how many.
        """
        raise NotImplementedError


class Saved(Weights):
    """Keras 3: a group for each layer, by class and number, with its parts in groups inside."""

    def __init__(self, root: Any, budget: Budget) -> None:
        self._root, self._budget = root, budget

    def arrays(self, layer: Layer, slots: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Find the arrays of a layer in its group."""
        found = []
        inside = layer.group
        if _OLD in self._root:
            inside = inside.replace("layers/", f"{_OLD}/")
        for path, count in slots:
            at = "/".join(filter(None, (inside, path, "vars")))
            group = self._root[at]
            if not isinstance(group, hdf5.Group) or len(group) != count:
                raise KerasError(f"{layer}: expected {count} arrays in {at!r}, got others")
            found += [
                Tensor(f"{layer}: {at}/{i}", _dataset(group, str(i)), self._budget)
                for i in range(count)
            ]
        return found


class Legacy(Weights):
    """Keras 1 to 3 in .h5: a group for each layer of the model by name, and a list of its arrays.

    Those of the layers of a model inside are in one group, and told apart by their own names.
    """

    def __init__(self, root: Any, budget: Budget) -> None:
        self._found: dict[str, list[tuple[str, Any]]] = {}
        self._budget, arrays = budget, 0
        for name in _names(root, "layer_names"):
            group = root[name]
            names = _names(group, "weight_names")
            self._found[name] = [(w, _dataset(group, w)) for w in names]
            arrays += len(names)
            if arrays > _ARRAYS:
                raise KerasError(f"expected at most {_ARRAYS} arrays, got more")

    def arrays(self, layer: Layer, slots: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Find the arrays of a layer in the list of the one that the model has."""
        outer, _, inside = layer.path.partition("/")
        if layer.path in self._found:  # names may have a "/" themselves
            outer, inside = layer.path, ""
        if outer not in self._found:
            raise KerasError(f"{layer}: expected its weights, got those of {list(self._found)}")
        own = inside.rpartition("/")[2]
        return [
            Tensor(f"{layer}: {name}", array, self._budget)
            for name, array in self._found[outer]
            if not inside or own in name.split("/")
        ]


class Given(Weights):
    """A model in memory."""

    def __init__(self, model: Any, budget: Budget) -> None:
        self._model, self._budget = model, budget

    def arrays(self, layer: Layer, slots: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Ask the layer of that path for its weights."""
        found = self._model
        if hasattr(found, "layers"):
            for name in layer.path.split("/"):
                found = next(one for one in found.layers if one.name == name)
        with named(str(layer)):
            arrays = [np.asarray(a) for a in found.get_weights()]
        if not arrays and any(count for _, count in slots):
            raise KerasError(f"{layer}: expected weights, got none: build the model first")
        return [Tensor(f"{layer}: array {i}", a, self._budget) for i, a in enumerate(arrays)]


@contextmanager
def opened(path: str | os.PathLike[str], budget: Budget) -> Iterator[tuple[Any, int | None, Any]]:
    """Open a file of any kind.

    Yields
    ------
    config : object or None
        The model's, from JSON.
    version : int or None
        Keras' major version.
    root : hdf5.Group
        Where the weights are.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        begin = file.read(8)
        config = version = None
        with named(f"{os.fspath(path)!r}"):
            if begin[:4] == _ZIP:
                archive = stack.enter_context(zipfile.ZipFile(file))
                config = parsed(_member(archive, "config.json", budget))
                meta = parsed(_member(archive, "metadata.json", budget))
                version = _major(meta.get("keras_version") if isinstance(meta, dict) else None)
                root = hdf5.File(_member(archive, "model.weights.h5", budget)).root
            elif begin == hdf5.SIGNATURE:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                root = hdf5.File(stack.enter_context(data)).root
                config, version, root = _model(root)
            else:
                raise KerasError(f"expected a .keras or an HDF5 file, got one that begins with "
                                 f"{begin!r}")  # fmt: skip
        yield config, version, root


def _model(root: hdf5.Group) -> tuple[Any, int | None, hdf5.Group]:
    """Read configuration and version of an HDF5 file, and find its weights."""
    text = _text(root, "model_config")
    config = None if text is None else parsed(text)
    version = _major(_text(root, "keras_version"))
    if "model_weights" in root:
        found = root["model_weights"]
        if not isinstance(found, hdf5.Group):
            raise KerasError("model_weights: expected a group")
        root = found
        version = version or _major(_text(root, "keras_version"))
    if version is None and _names(root, "layer_names"):
        version = 1  # the first that wrote its version is 1.2
    return config, version, root


def weights(root: hdf5.Group, budget: Budget) -> Weights:
    """Tell the two layouts of weights apart."""
    with named("weights"):
        if _names(root, "layer_names"):
            return Legacy(root, budget)
    return Saved(root, budget)


def parsed(text: str | bytes) -> Any:
    """Read JSON."""
    with named("configuration"):
        return json.loads(text)


def _major(version: Any) -> int | None:
    """Return the first number of a version."""
    if version is None:
        return None
    text = version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)
    first = text.partition(".")[0]
    if first not in ("1", "2", "3"):
        raise KerasError(f"keras_version: expected 1, 2 or 3, got {text[:50]!r}")
    return int(first)


def _member(archive: zipfile.ZipFile, name: str, budget: Budget) -> bytes:
    """Read a member of an archive, not more than it says and the budget allows."""
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise KerasError(f"expected one member {name!r}, got {len(found)}")
    info = found[0]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise KerasError(f"{name}: expected stored or deflated, got method {info.compress_type}")
    if not name.endswith(".h5") and info.file_size > _TEXT:
        raise KerasError(f"{name}: expected at most {_TEXT} bytes, got {info.file_size}")
    budget.take(name, info.file_size)
    with named(name), archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise KerasError(f"{name}: expected {info.file_size} bytes, got {len(data)}")
    return data


def _dataset(group: hdf5.Group | hdf5.Dataset, path: str) -> hdf5.Dataset:
    """Find an array."""
    found = group[path] if isinstance(group, hdf5.Group) else group
    if not isinstance(found, hdf5.Dataset):
        raise KerasError(f"{found.name}: expected an array, got a group")
    return found


def _text(holder: hdf5.Object, name: str) -> str | None:
    """Read an attribute that is one text."""
    value = holder.attribute(name)
    if value is None:
        return None
    if len(value) != 1:
        raise KerasError(f"{name}: expected one text, got {len(value)}")
    return value[0].decode("utf-8")


def _names(holder: hdf5.Object, name: str) -> list[str]:
    """Read a list of names, which is in pieces if it is long: name0, name1 and so on."""
    found = holder.attribute(name)
    if found is None:
        found = []
        for i in range(_PIECES):
            piece = holder.attribute(f"{name}{i}")
            if piece is None:
                break
            found += piece
    return [value.decode("utf-8") for value in found]
