"""Proof that a module in a file computes what it computed where it was saved.

Among the file's arrays are "certificate/input/NAME", what the module was called with, and
"certificate/output/N", what it returned. The metadata say on what kind of machine that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cylstm import checks
from cylstm.io import tensors
from cylstm.io.tensors import FormatError, TensorFile
from cylstm.module import Array, Module

PREFIX = "certificate/"
INPUT, OUTPUT = PREFIX + "input/", PREFIX + "output/"
#: How far outputs may be from the stored ones elsewhere, relative to the largest of these, by the
#: bytes of a number.
TOLERANCES = {4: 1e-5, 8: 1e-12}
#: Most numbers in a probe: what a file makes the library compute is to be little.
LIMIT = 2**16


def made(module: Module, probe: Any) -> dict[str, Array]:
    """Call a module; return the arrays of a certificate.

    Parameters
    ----------
    module : Module
    probe : array-like, or mapping of str to array-like
        An input, or arguments by name, with the input as "x".

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        There is no "x", or the arrays are too large.
    """
    named = dict(probe) if isinstance(probe, Mapping) else {"x": probe}
    inputs = {name: np.array(checks.read(f"probe[{name!r}]", v)) for name, v in named.items()}
    if (size := sum(value.size for value in inputs.values())) > LIMIT:
        raise ValueError(f"probe: expected at most {LIMIT} numbers, got {size}")
    found = {f"{INPUT}{name}": value for name, value in inputs.items()}
    return found | {f"{OUTPUT}{i}": value for i, value in enumerate(outputs(module, inputs))}


def outputs(module: Any, arguments: Mapping[str, Array]) -> list[Array]:
    """Call a module; all arrays that it returns, in order.

    Parameters
    ----------
    module : callable
    arguments : mapping of str to ndarray
        The input, "x", and whatever else the call takes by name.

    Returns
    -------
    list of ndarray

    Raises
    ------
    ValueError
        There is no "x", or the module refuses the arguments.
    """
    rest = dict(arguments)
    if "x" not in rest:
        raise ValueError(f"probe: expected an array 'x', the input, got {sorted(rest)}")
    return list(_arrays(module(rest.pop("x"), **rest)))


def _arrays(value: Any) -> Iterator[Array]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _arrays(part)
    elif value is not None:
        yield np.asarray(value)


def machine() -> dict[str, str]:
    """Say on what equal outputs have equal bits.

    Returns
    -------
    dict of str to str
        "version" of the library, "isa" and version of "numpy".
    """
    import cylstm

    isa = str(cylstm.config()["isa"])
    return {"version": cylstm.__version__, "isa": isa, "numpy": np.__version__}


def confirm(file: TensorFile, module: Module) -> None:
    """Call a module as it was called when it was saved, and compare.

    Parameters
    ----------
    file : TensorFile
        With a certificate.
    module : Module
        Loaded from it.

    Raises
    ------
    FormatError
        The outputs are not those that the file holds.
    """
    where = f"{file.path}: certificate"
    then = tensors.parse(where, file.metadata["cylstm.certificate"])
    inputs = {name: entry for name, entry in file.entries.items() if name.startswith(INPUT)}
    if sum(entry.nbytes // entry.dtype.itemsize for entry in inputs.values()) > LIMIT:
        raise FormatError(f"{where}: expected a probe of at most {LIMIT} numbers, got more")
    try:
        found = outputs(module, {name.removeprefix(INPUT): file.array(name) for name in inputs})
    except MemoryError:
        raise
    except Exception as error:  # whatever a call makes of arguments that it was not made for
        raise FormatError(f"{where}: {str(error)[:500]}") from error
    count = sum(name.startswith(OUTPUT) for name in file.entries)
    names = [f"{OUTPUT}{i}" for i in range(len(found))]
    if len(found) != count or not all(name in file.entries for name in names):
        raise FormatError(f"{where}: expected {count} outputs, got {len(found)}")
    for i, (name, value) in enumerate(zip(names, found, strict=True)):
        stored = file.array(name)
        if (value.dtype, value.shape) != (stored.dtype, stored.shape):
            raise FormatError(
                f"{where}: output {i}: expected {stored.dtype}{stored.shape}, got "
                f"{value.dtype}{value.shape}"
            )
        same = value.tobytes() == stored.tobytes()
        if not same and (then == machine() or not close(value, stored)):
            raise FormatError(
                f"{where}: output {i}: expected {'the bits' if then == machine() else 'about'} "
                f"what it was when saved, got differences up to {difference(value, stored):.3g}"
            )


def difference(one: Array, other: Array) -> float:
    """Largest difference of two arrays.

    Parameters
    ----------
    one, other : ndarray
        Of the same shape.

    Returns
    -------
    float
        NaN where only one is NaN counts as infinite; equal elements as 0, infinities too.
    """
    if not one.size:
        return 0.0
    with np.errstate(all="ignore"):
        a, b = one.astype(np.float64), other.astype(np.float64)
        distance = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.where(np.isnan(distance), np.inf, distance).max())


def close(value: Array, stored: Array) -> bool:
    """Whether two arrays are as near as results of different machines are to be.

    Parameters
    ----------
    value, stored : ndarray
        Of the same shape and dtype.

    Returns
    -------
    bool
    """
    if value.dtype.kind != "f":
        return bool(np.array_equal(value, stored))
    sizes = np.abs(stored[np.isfinite(stored)])
    scale = float(sizes.max()) if sizes.size else 0.0
    return difference(value, stored) <= TOLERANCES.get(value.itemsize, 1e-2) * scale
