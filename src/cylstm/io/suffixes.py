"""Functions chosen by how a file's name ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

F = TypeVar("F")


def of(name: str, path: str | os.PathLike[str], table: Mapping[str, F]) -> F:
    """Find what a table has for a path, the longest suffix that fits first.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    path : str or path-like
    table : mapping of str to object
        By suffix, in lower case, with its dot.

    Returns
    -------
    object

    Raises
    ------
    ValueError
        No suffix fits.
    """
    file = os.fsdecode(os.fspath(path)).lower()
    for suffix in sorted(table, key=len, reverse=True):
        if file.endswith(suffix):
            return table[suffix]
    raise ValueError(f"{name}: expected a file named *{', *'.join(sorted(table))}, got {path!r}")
