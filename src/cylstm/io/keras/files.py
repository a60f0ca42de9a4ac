"""What is in a file: the configuration, the version that wrote it, and where weights are.

Nothing of a file is believed: members of archives are read up to their declared size and the cap,
datasets only where their shape is the one that the configuration asks for, links and filters only
if they stay inside the file. Nothing is unpacked to disk, no class is looked up by name.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from cylstm.io.keras.config import Layer
from cylstm.io.keras.errors import KerasError, named
from cylstm.module import Array

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
#: No configuration or list of names is as long.
_TEXT = 2**26
#: HDF5's own filters that need no plug-in: deflate, shuffle, checksum.
_FILTERS = (1, 2, 3)


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
            n in (None, m) for n, m in zip(expected, self.shape, strict=True)
        )
        if not fits or 0 in self.shape:
            shape = str(tuple("any" if n is None else n for n in expected)).replace("'", "")
            raise KerasError(f"{self.name}: expected shape {shape}, got {self.shape}")
        if value.dtype.kind != "f":
            raise KerasError(
                f"{self.name}: expected floating-point numbers, got dtype {value.dtype}"
            )
        self._budget.take(self.name, math.prod(self.shape) * value.dtype.itemsize)
        if isinstance(value, np.ndarray):
            return value
        with named(self.name):
            self._check(value)
            found: Array = value[()]
        return found

    def _check(self, dataset: Any) -> None:
        """Refuse what leads out of the file, and chunks larger than what they are chunks of."""
        if dataset.is_virtual or dataset.external:
            raise KerasError(f"{self.name}: expected numbers in the file itself, got a reference "
                             "to another")  # fmt: skip
        properties = dataset.id.get_create_plist()
        for i in range(properties.get_nfilters()):
            code = properties.get_filter(i)[0]
            if code not in _FILTERS:
                raise KerasError(f"{self.name}: expected no filter but gzip, got number {code}")
        if dataset.chunks and math.prod(dataset.chunks) > 2 * math.prod(self.shape) + 2**20:
            raise KerasError(f"{self.name}: expected chunks of the array, got {dataset.chunks}")


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
        for path, count in slots:
            at = "/".join(filter(None, (layer.group, path, "vars")))
            group = _at(self._root, at, f"{layer}: weights")
            if len(group) != count:
                raise KerasError(f"{layer}: expected {count} arrays in {at!r}, got {len(group)}")
            found += [
                Tensor(f"{layer}: {at}/{i}", _at(group, str(i), f"{layer}: {at}"), self._budget)
                for i in range(count)
            ]
        return found


class Legacy(Weights):
    """Keras 1 to 3 in .h5: a group for each layer of the model by name, and a list of its arrays.

    Those of the layers of a model inside are in one group, and told apart by their own names.
    """

    def __init__(self, root: Any, budget: Budget) -> None:
        self._found: dict[str, list[tuple[str, Any]]] = {}
        self._budget = budget
        for name in _names(root, "layer_names"):
            group = _at(root, name, "layer_names")
            self._found[name] = [(w, _at(group, w, name)) for w in _names(group, "weight_names")]

    def arrays(self, layer: Layer, slots: Sequence[tuple[str, int]]) -> list[Tensor]:
        """Find the arrays of a layer in the list of the one that the model has."""
        outer, _, inside = layer.path.partition("/")
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
        if not arrays and sum(count for _, count in slots):
            raise KerasError(f"{layer}: expected weights, got none: build the model first")
        return [Tensor(f"{layer}: array {i}", a, self._budget) for i, a in enumerate(arrays)]


def h5py() -> Any:
    """Import the `h5py` package.

    Raises
    ------
    ImportError
        It is not installed; the message says how to.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('h5py is not installed: pip install "cylstm[keras]"') from error
    return h5py


@contextmanager
def opened(path: str | os.PathLike[str], budget: Budget) -> Iterator[tuple[Any, int | None, Any]]:
    """Open a file of any kind.

    Yields
    ------
    config : object or None
        The model's, from JSON.
    version : int or None
        Keras' major version.
    group : h5py.Group
        Where the weights are.
    """
    package = h5py()
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        begin = file.read(8)
        config = version = None
        with named(f"{os.fspath(path)!r}"):
            if begin[:4] == _ZIP:
                archive = stack.enter_context(zipfile.ZipFile(file))
                config = parsed(_member(archive, "config.json", budget))
                meta = parsed(_member(archive, "metadata.json", budget))
                version = _major(meta.get("keras_version") if isinstance(meta, dict) else None)
                file = io.BytesIO(_member(archive, "model.weights.h5", budget))
            elif begin != _HDF5:
                raise KerasError(f"expected a .keras or an HDF5 file, got one that begins with "
                                 f"{begin!r}")  # fmt: skip
            root = stack.enter_context(package.File(file, "r"))
            if begin == _HDF5:
                text = _text(root, "model_config")
                config = None if text is None else parsed(text)
                version = _major(_text(root, "keras_version"))
                if "model_weights" in root:
                    root = _at(root, "model_weights", "model_weights")
                    version = _major(_text(root, "keras_version")) or version
                if version is None and "layer_names" in root.attrs:
                    version = 1  # the first that wrote its version is 1.2
        yield config, version, root


def weights(root: Any, budget: Budget) -> Weights:
    """Tell the two layouts of weights apart."""
    with named("weights"):
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
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


def _at(group: Any, path: str, what: str) -> Any:
    """Go down a path, link by link; only to what is in this file."""
    package = h5py()
    here = group
    for name in path.split("/"):
        if not isinstance(here, package.Group) or name not in ("", *here):
            raise KerasError(f"{what}: expected {path!r} in the file, got nothing of that name")
        if name:
            link = here.get(name, getlink=True)
            if not isinstance(link, package.HardLink):
                raise KerasError(f"{what}: {path}: expected what is in the file itself, got a "
                                 f"{type(link).__name__}")  # fmt: skip
            here = here[name]
    return here


def _attribute(holder: Any, name: str) -> Any:
    """Read an attribute, unless it is too large; None if there is none."""
    if name not in holder.attrs:
        return None
    found = holder.attrs.get_id(name)
    size = math.prod(found.shape) * found.dtype.itemsize
    if size > _TEXT:
        raise KerasError(f"{name}: expected at most {_TEXT} bytes, got {size}")
    return holder.attrs[name]


def _text(holder: Any, name: str) -> str | None:
    value = _attribute(holder, name)
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not isinstance(value, str):
        raise KerasError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _names(holder: Any, name: str) -> list[str]:
    """Read a list of names, which is in pieces if it is long: name0, name1 and so on."""
    pieces = [name] if name in holder.attrs else []
    while f"{name}{len(pieces)}" in holder.attrs and pieces[:1] != [name]:
        pieces.append(f"{name}{len(pieces)}")
    found: list[str] = []
    for piece in pieces:
        for value in np.ravel(_attribute(holder, piece)).tolist():
            if not isinstance(value, (str, bytes)):
                raise KerasError(f"{piece}: expected names, got {value!r}")
            found.append(value.decode("utf-8") if isinstance(value, bytes) else value)
    return found
