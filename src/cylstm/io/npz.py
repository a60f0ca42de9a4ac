"""Arrays in .npz files from elsewhere: sizes are checked before anything is unpacked.

`numpy.load` believes what the header of an array says of its size.
"""

from __future__ import annotations

import math
import os
import zipfile
from typing import Any

import numpy as np

from cylstm.io.tensors import FormatError
from cylstm.module import Array

#: What one compressed byte can become at most.
_INFLATES = 1032
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: str | os.PathLike[str], max_bytes: int = 2**30) -> dict[str, Array]:
    """Read all arrays of a file that `numpy.savez` or `numpy.savez_compressed` has written.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int, default 2**30
        Refuse arrays that take more together.

    Returns
    -------
    dict of str to ndarray
        Of booleans, integers and floating-point numbers.

    Raises
    ------
    FormatError
        The file is damaged, of another kind, holds Python objects or words, or more than
        `max_bytes`.
    OSError
        The file cannot be opened.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                total = sum(member.file_size for member in members)
                if total > max_bytes:
                    raise ValueError(f"expected at most {max_bytes} bytes of arrays, got {total}")
                found = {m.filename.removesuffix(".npy"): _array(archive, m) for m in members}
                if len(found) < len(members):
                    raise ValueError("expected each name once, got one twice")
                return found
        except MemoryError:
            raise
        except Exception as error:  # whatever zipfile, zlib and the reader of headers raise
            raise FormatError(f"{name}: {str(error)[:500] or type(error).__name__}") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """Read one array, once its sizes agree."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"expected no compression but deflate, got {member.compress_type}")
    if member.file_size > _INFLATES * member.compress_size + _INFLATES:
        raise ValueError(f"expected less than {member.file_size} bytes of {member.compress_size}")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"expected version 1.0 or 2.0 of .npy, got {version}")
        try:
            shape, by_columns, dtype = _HEADERS[version](stream)
        except MemoryError:  # what Python's parser calls too many levels
            raise ValueError(
                f"{member.filename}: expected a plain header, got a deep one"
            ) from None
        if dtype.kind not in "biuf":
            raise ValueError(f"{member.filename}: expected numbers, got dtype {dtype}")
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{member.filename}: expected as many numbers as bytes, got {shape}")
        data: Any = stream.read()
    found: Array = np.frombuffer(data, dtype, count)
    return found.reshape(shape, order="F" if by_columns else "C")
