"""Networks from one kind of file to another, and how far their outputs are apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cylstm.io import certificate, networks, npz, suffixes
from cylstm.module import Array, Module

Arguments = Mapping[str, Array]
Path = str | os.PathLike[str]


def _of_onnx(path: Path) -> Module:
    from cylstm.io.onnx import from_onnx  # whose package is needed for such files alone

    return from_onnx(path).module


def _to_onnx(module: Module, path: Path, sample: Arguments | None) -> None:
    from cylstm.io.onnx import to_onnx

    to_onnx(module, path)


def _of_keras(path: Path) -> Module:
    from cylstm.io.keras import from_keras

    return from_keras(path)


#: What makes a module from a file, by suffix.
READERS: dict[str, Callable[[Path], Module]] = {
    ".h5": _of_keras,
    ".keras": _of_keras,
    ".onnx": _of_onnx,
    ".safetensors": networks.load,
}
#: What writes a module to a file, by suffix; given an input, it may store that and the outputs.
WRITERS: dict[str, Callable[[Module, Path, Arguments | None], None]] = {
    ".onnx": _to_onnx,
    ".safetensors": lambda module, path, sample: module.save(path, probe=sample),
}
#: What runs a file on an input by other means than this library, by suffix.
RUNTIMES: dict[str, Callable[[Path, Arguments], list[Array]]] = {}


class Check(NamedTuple):
    """Largest difference between outputs of both files, and whether it is within rounding."""

    difference: float
    close: bool


def convert(source: Path, target: Path, sample: Path | None = None) -> Check | None:
    """Read a network from a file and write it to another.

    Parameters
    ----------
    source, target : str or path-like
        Their suffixes say what kinds of files they are.
    sample : str or path-like, optional
        An .npz file with an input "x", and further arguments of the call by name. Both files are
        run on it, the source by its own runtime where that is known and installed.

    Returns
    -------
    Check or None
        None without a sample.

    Raises
    ------
    FormatError
        A file is damaged.
    ValueError
        Files of such a suffix cannot be read or written, or the outputs have other shapes.
    OSError
        A file cannot be read or written.
    ImportError
        A package that such files need is not installed; the message says which.
    """
    read, write = suffixes.of("IN", source, READERS), suffixes.of("OUT", target, WRITERS)
    arguments = None if sample is None else npz.read(sample)
    module = read(source)
    write(module, target, arguments)
    if arguments is None:
        return None
    run = suffixes.of("IN", source, {"": _by_this_library} | RUNTIMES)
    expected = run(source, arguments)
    found = certificate.outputs(suffixes.of("OUT", target, READERS)(target), arguments)
    shapes = [value.shape for value in expected], [value.shape for value in found]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{target}: expected outputs of shapes {shapes[0]}, got {shapes[1]}")
    pairs = list(zip(found, expected, strict=True))
    return Check(
        max((certificate.difference(a, b) for a, b in pairs), default=0.0),
        all(certificate.close(a, b) for a, b in pairs),
    )


def _by_this_library(source: Path, arguments: Arguments) -> list[Array]:
    return certificate.outputs(suffixes.of("IN", source, READERS)(source), arguments)
