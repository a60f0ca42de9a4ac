"""What goes on from a file beside the network: states of optimisers, counters, random generators.

Arrays are the file's arrays by name; everything else is JSON in its metadata, "cylstm.values".
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from cylstm.io import networks, tensors
from cylstm.io.tensors import FormatError

#: What a value may be in the JSON, where a tuple is {"tuple": [...]} and infinity {"float": "inf"}.
_PLAIN = (bool, int, float, str, type(None))
_NOT_FINITE = ("inf", "-inf", "nan")
#: Levels of lists within lists.
_DEPTH = 8


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write arrays, numbers and words to a file, such as an optimiser's `state_dict()`.

    The file is a safetensors file. It is written beside the old one, and takes its place when it is
    on the disk.

    Parameters
    ----------
    path : str or path-like
        By custom with the suffix ".safetensors".
    state : mapping of str to object
        NumPy arrays of booleans, integers, float16, float32 or float64; and None, booleans,
        integers, floats, strings, and lists and tuples of these. NumPy's scalars become Python's.

    Raises
    ------
    TypeError
        `state` is not a mapping of str, or a value is none of these.
    OSError
        The file cannot be written. What was at `path` is unchanged in any of these cases.

    Examples
    --------
    ``cylstm.save_state("adam.safetensors", optimizer.state_dict())`` and, over modules with the
    same parameters, ``optimizer.load_state_dict(cylstm.load_state("adam.safetensors"))``.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f"state: expected a mapping of str, got {reprlib.repr(state)}")
    arrays = {name: v for name, v in state.items() if isinstance(v, np.ndarray)}
    values = {name: _told(name, v) for name, v in state.items() if name not in arrays}
    metadata = networks.heading("state") | {"cylstm.values": json.dumps(values, allow_nan=False)}
    tensors.write(path, arrays, metadata)


def load_state(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Any]:
    """Read what `save_state` has written.

    Nothing in a file is run, imported or unpickled.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int, optional
        Refuse a larger file. Default: no limit, as nothing is allocated beyond the file's size.

    Returns
    -------
    dict of str to object
        With the same values and types; arrays first.

    Raises
    ------
    FormatError
        The file is damaged, of another kind or a later version, or larger than `max_bytes`. It is
        a ValueError.
    OSError
        The file cannot be read.
    """
    with networks.checked(path, "state", max_bytes) as file:
        where = f"{file.path}: cylstm.values"
        values = tensors.parse(where, file.metadata.get("cylstm.values", ""))
        if not isinstance(values, dict) or values.keys() & file.entries.keys():
            raise FormatError(f"{where}: expected names that no array has, got others")
        found = {name: _heard(where, value) for name, value in values.items()}
        return {name: file.array(name) for name in file.entries} | found


def _told(name: str, value: Any, levels: int = _DEPTH) -> Any:
    """Turn a value into JSON's."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (list, tuple) and levels:
        parts = [_told(name, part, levels - 1) for part in value]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if type(value) not in _PLAIN:
        raise TypeError(
            f"{name}: expected an array, or plain numbers and words, got {reprlib.repr(value)}"
        )
    return {"float": str(value)} if isinstance(value, float) and not isfinite(value) else value


def _heard(where: str, value: Any, levels: int = _DEPTH) -> Any:
    """Turn JSON's value into what it was."""
    if isinstance(value, dict) and len(value) == 1:
        kind, inner = next(iter(value.items()))
        if kind == "tuple" and isinstance(inner, list):
            return tuple(_heard(where, inner, levels))
        if kind == "float" and inner in _NOT_FINITE:
            return float(inner)
    if isinstance(value, list) and levels:
        return [_heard(where, part, levels - 1) for part in value]
    if isinstance(value, (dict, list)):
        raise FormatError(f"{where}: expected plain values, got {reprlib.repr(value)}")
    return value
