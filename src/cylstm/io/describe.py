"""What is in a file, in lines, without running it or making room for its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cylstm.io import networks, suffixes
from cylstm.io.tensors import Entry, TensorFile

#: Widest value that is shown in a line.
_WIDTH = 100


def lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Describe a file.

    Parameters
    ----------
    path : str or path-like

    Yields
    ------
    str
        Lines to be printed, without control characters.

    Raises
    ------
    FormatError
        The file is damaged.
    ValueError
        Nothing is known of files of its suffix.
    OSError
        The file cannot be read.
    """
    yield from suffixes.of("FILE", path, DESCRIBERS)(os.fspath(path))


def safetensors(path: str) -> Iterator[str]:
    """Describe a safetensors file: metadata, configuration, arrays.

    Parameters
    ----------
    path : str

    Yields
    ------
    str
    """
    with TensorFile(path) as file:
        yield f"{_shown(file.path)}: safetensors, {os.path.getsize(file.path):,} bytes"
        for name, text in file.metadata.items():
            if name != "cylstm.config":
                yield f"{_shown(name)}: {_shown(text)}"
        if "cylstm.config" in file.metadata:
            yield "config:"
            yield from _configuration(networks.config_of(file), 1)
        own = networks.parameters_of(file)
        rest = {name: entry for name, entry in file.entries.items() if name not in own}
        yield from _table("arrays", own)
        if rest:
            yield from _table("of the certificate", rest)


def _table(title: str, entries: Mapping[str, Entry]) -> Iterator[str]:
    """One line for each array, after their sums."""
    numbers = sum(entry.nbytes // entry.dtype.itemsize for entry in entries.values())
    total = sum(entry.nbytes for entry in entries.values())
    yield f"{title}: {len(entries)}, {numbers:,} numbers, {total:,} bytes"
    width = max((len(_shown(name)) for name in entries), default=0)
    for name, entry in entries.items():
        shape = " x ".join(map(str, entry.shape)) or "one number"
        size = f"{entry.nbytes:,} bytes"
        yield f"  {_shown(name):{width}}  {entry.dtype.name:8} {size:>18}  {shape}"


def _configuration(config: Mapping[str, Any], level: int) -> Iterator[str]:
    """One line for each option, those of nested modules further in."""
    for name, value in config.items():
        start = "  " * level + _shown(name) + ":"
        nested = isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value)
        if isinstance(value, dict) or nested:
            yield start
            inner = value if isinstance(value, dict) else {str(i): v for i, v in enumerate(value)}
            yield from _configuration(inner, level + 1)
        else:
            yield f"{start} {_shown(str(value))}"


def _shown(text: str) -> str:
    """Show text from a file in one line, so that it cannot do anything to a terminal."""
    text = text if len(text) <= _WIDTH else f"{text[:_WIDTH]}... ({len(text):,} characters)"
    return text if text.isprintable() else ascii(text)


#: What describes a file, by suffix.
DESCRIBERS: dict[str, Callable[[str], Iterator[str]]] = {".safetensors": safetensors}
