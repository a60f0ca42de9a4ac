"""Modules in files: a module's parameters, configuration, and a proof that it computes the same.

In a file's metadata, beside the parameters by name:

    cylstm.kind          "module"
    cylstm.format        version of this format, "1"
    cylstm.version       version of the library that wrote it
    cylstm.config        the module's `config` as JSON
    cylstm.blake2b       digest of all arrays' data
    cylstm.certificate   JSON: what computed the outputs below; only where there was a probe

and the certificate's arrays, see certificate.py.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from cylstm import checks
from cylstm.io import certificate, tensors
from cylstm.io.tensors import FormatError, TensorFile
from cylstm.module import Array, Module, Source

VERSION = 1
#: Levels of modules within modules, and how many there may be, however often each.
_DEPTH, _MODULES = 64, 10_000


def save(module: Module, path: str | os.PathLike[str], probe: Any) -> None:
    """Write a module to a file; see `Module.save`."""
    metadata = {"cylstm.config": json.dumps(module.config, default=dict, allow_nan=False)}
    arrays = module.state_dict()
    if probe is not None:
        arrays |= certificate.made(module, probe)
        metadata["cylstm.certificate"] = json.dumps(certificate.machine())
    metadata["cylstm.blake2b"] = tensors.digest_of(arrays)
    tensors.write(path, arrays, heading("module") | metadata)


def heading(kind: str) -> dict[str, str]:
    """Metadata of every file of the library.

    Parameters
    ----------
    kind : {"module", "state"}

    Returns
    -------
    dict of str to str
    """
    import cylstm

    return {
        "cylstm.kind": kind, "cylstm.format": str(VERSION), "cylstm.version": cylstm.__version__
    }  # fmt: skip


def checked(path: str | os.PathLike[str], kind: str, max_bytes: int | None) -> TensorFile:
    """Open a file of the library and check what it is.

    Parameters
    ----------
    path : str or path-like
    kind : {"module", "state"}
    max_bytes : int or None

    Returns
    -------
    TensorFile

    Raises
    ------
    FormatError
        It is no such file.
    """
    file = TensorFile(path, max_bytes)
    try:
        there, version = file.metadata.get("cylstm.kind"), file.metadata.get("cylstm.format", "")
        if there is None:
            raise FormatError(
                f"{file.path}: expected a file that cylstm has written, got one without its "
                "metadata: read it by safetensors.numpy.load_file, then from_state_dict"
            )
        if there != kind:
            raise FormatError(f"{file.path}: expected a {kind}, got a {reprlib.repr(there)}")
        if version != str(VERSION):
            raise FormatError(
                f"{file.path}: expected version {VERSION} of the format, got "
                f"{reprlib.repr(version)}; a later cylstm may read it"
            )
    except BaseException:
        file.close()
        raise
    return file


def load(
    path: str | os.PathLike[str],
    *,
    classes: Iterable[type[Module]] = (),
    mapped: bool = False,
    verify: bool = False,
    max_bytes: int | None = None,
) -> Any:
    """Make a module from a file that `save` has written.

    Nothing in a file is run, imported or unpickled. Names, dtypes, shapes and sizes are checked
    against the file's own size before anything is allocated. Parameters are read straight into
    their places.

    Parameters
    ----------
    path : str or path-like
    classes : iterable of subclasses of Module, default ()
        Classes of your own that the file may name; a class of the library's name stands in for it.
    mapped : bool, default False
        Leave the parameters in the file, mapped into memory: pages are read when they are needed,
        and shared by all processes, until `assign` or an optimiser changes them, which never
        changes the file. Whoever overwrites the file in place, which `save` does not do, changes
        the parameters or, by making it shorter, ends the process.
    verify : bool, default False
        Compare the data with their digest, and, if the file was saved with a probe, what the
        module returns for it with what it returned then. It must have the same bits where the
        versions of cylstm and NumPy and the instruction set are the same; elsewhere it may differ
        by 1e-5 (float64: 1e-12) of the largest output.
    max_bytes : int, optional
        Refuse a larger file. Default: no limit, as nothing is allocated beyond the file's size.

    Returns
    -------
    Module
        Of the class that was saved.

    Raises
    ------
    FormatError
        The file is damaged, of another kind or a later version, names a class that is neither the
        library's nor in `classes`, is larger than `max_bytes`, or is not confirmed by `verify`.
        It is a ValueError.
    OSError
        The file cannot be read.
    """
    known = _by_name(classes)
    checks.flag("mapped", mapped)
    checks.flag("verify", verify)
    with checked(path, "module", max_bytes) as file:
        if verify and file.digest() != file.metadata.get("cylstm.blake2b"):
            raise FormatError(f"{file.path}: expected data of the digest it names, got others")
        module = _built(file, known)
        whole = file.mapped() if mapped else None
        for prefix, owner in module._owners().items():
            if whole is None:
                owner._fill(partial(_read, file, prefix))
            elif owner._shapes:
                owner._place(_in_place(file, whole, [prefix + name for name in owner._shapes]))
        if verify and "cylstm.certificate" in file.metadata:
            certificate.confirm(file, module)
    return module


def _by_name(classes: Any) -> dict[str, type[Module]]:
    found = list(classes) if isinstance(classes, Iterable) else [classes]
    for kind in found:
        if not (isinstance(kind, type) and issubclass(kind, Module)):
            raise TypeError(f"classes: expected subclasses of Module, got {kind!r}")
    return {kind.__name__: kind for kind in found}


def config_of(file: TensorFile) -> dict[str, Any]:
    """Return the configuration in a module's file, its nesting checked.

    Parameters
    ----------
    file : TensorFile

    Returns
    -------
    dict of str to object

    Raises
    ------
    FormatError
        There is none, or it is none.
    """
    config = tensors.parse(f"{file.path}: config", file.metadata.get("cylstm.config", ""))
    layers, level = 0, [config]
    for _ in range(_DEPTH):
        layers += sum(n for part in level for n in _numbers_of_layers(part))
        level = [part for whole in level for part in _parts(whole)]
    if level or not isinstance(config, dict):
        raise FormatError(
            f"{file.path}: config: expected names and values, at most {_DEPTH} levels deep, got "
            f"{reprlib.repr(config)}"
        )
    if layers > len(file.entries):  # each has a parameter; a layer's own lists come before these
        raise FormatError(
            f"{file.path}: config: expected num_layers of at most {len(file.entries)}, as there "
            f"are parameters in the file, got {layers}"
        )
    if _expanded(config, "", {}) > _MODULES:
        raise FormatError(f"{file.path}: config: expected at most {_MODULES} modules, got more")
    return config


def _expanded(config: Any, path: str, known: dict[str, int]) -> int:
    """How many modules there are, those at a path that is named again counted again."""
    inner = config.get("modules") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return known.get(config, 1) if isinstance(config, str) else 1
    found = 1
    for name, part in inner.items():
        at = f"{path}.{name}".lstrip(".")
        known[at] = _expanded(part, at, known)
        found += known[at]
    return found


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _numbers_of_layers(value: Any) -> list[int]:
    number = value.get("num_layers") if isinstance(value, dict) else None
    return [number] if type(number) is int else []


def parameters_of(file: TensorFile) -> dict[str, tensors.Entry]:
    """Return what a module's file holds but for the certificate.

    Parameters
    ----------
    file : TensorFile

    Returns
    -------
    dict of str to Entry
    """
    entries = file.entries.items()
    return {name: e for name, e in entries if not name.startswith(certificate.PREFIX)}


def _built(file: TensorFile, classes: Mapping[str, type[Module]]) -> Module:
    """Make the module, its parameters zeros; the file's are exactly those that it has."""
    config, entries = config_of(file), parameters_of(file)
    numbers = sum(entry.nbytes // entry.dtype.itemsize for entry in entries.values())
    try:
        with Source(classes, len(entries), numbers):
            module = Module.from_config(config)
    except MemoryError:
        raise
    except Exception as error:  # whatever constructors make of what they were not made for
        hint = ""
        if "expected 'class'" in str(error):
            hint = ": pass a class of your own by classes=[...]"
        raise FormatError(f"{file.path}: {str(error)[:500]}{hint}") from error
    expected = {name: (value.dtype, value.shape) for name, value in module.params.items()}
    got = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    if got != expected:
        wrong = sorted(name for name in got | expected if got.get(name) != expected.get(name))
        name = wrong[0]
        raise FormatError(
            f"{file.path}: expected the parameters of {type(module).__name__}, got others: "
            f"{len(wrong)} differ, such as {name[:200]!r}: expected {expected.get(name)}, "
            f"got {got.get(name)}"
        )
    return module


def _read(file: TensorFile, prefix: str, name: str, into: Array) -> None:
    file.read_into(prefix + name, into)


def _in_place(file: TensorFile, whole: Array, names: list[str]) -> Array:
    """Return parameters where they are in the mapped file, end to end in the module's order."""
    entries = [file.entries[name] for name in names]
    dtype, start = entries[0].dtype, entries[0].start
    at = start
    for entry in entries:
        if entry.start != at or start % dtype.itemsize:
            raise FormatError(
                f"{file.path}: expected parameters in the module's order, as save writes them, got "
                "another one: load it with mapped=False"
            )
        at += entry.nbytes
    return whole[start:at].view(dtype)
