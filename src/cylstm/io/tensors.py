"""safetensors files: named arrays and words about them, checked before anything is allocated.

A file is, as https://github.com/huggingface/safetensors says:

    uint64    length of the header, little-endian
    ...       the header, JSON: of each array its dtype, shape and place; "__metadata__": words
    ...       the arrays' data, end to end, without holes

Reading trusts nothing. What the header says is checked in Python's integers against the size of
the file, and data go from the file into the place where they belong.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import IO, Any, NamedTuple, Self

import numpy as np

from cylstm.module import Array

#: NumPy's dtypes by the format's names of them; those that NumPy does not have are refused.
DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
#: Bytes of the longest header: JSON takes up to 30 times its length once it is read.
HEADER_LIMIT = 2**22
#: Where data begin: a multiple of this, so that any vector of the kernels may be read there.
ALIGNMENT = 64
#: Most axes of an array in NumPy 1.
_AXES = 32
_METADATA = "__metadata__"


class FormatError(ValueError):
    """A file is damaged, of another kind or version, or not what it says it is."""


class Entry(NamedTuple):
    """An array in a file: its dtype and shape, and where in the file its bytes begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Its bytes, in Python's integers."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse(what: str, text: str | bytes) -> Any:
    """Read JSON: no name twice, no NaN, no nesting beyond reason.

    Parameters
    ----------
    what : str
        What the text is, for the message.
    text : str or bytes

    Raises
    ------
    FormatError
        It is not JSON, or not of this kind.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_once,
            parse_constant=_refuse,
        )
    except RecursionError:
        raise FormatError(f"{what}: expected JSON, got too many levels of it") from None
    except ValueError as error:
        raise FormatError(f"{what}: expected JSON, got {str(error)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is there twice")
    return found


def _refuse(word: str) -> Any:
    raise ValueError(word)


class TensorFile:
    """A safetensors file that is open to be read, its header checked.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int, optional
        Refuse a larger file. Default: no limit.

    Attributes
    ----------
    path : str
    metadata : dict of str to str
    entries : dict of str to Entry
        In the order of their data.

    Raises
    ------
    FormatError
        The file is no safetensors file, is damaged, or larger than `max_bytes`.
    OSError
        The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self.path = _path(path)
        if max_bytes is not None and not _is_size(max_bytes):
            raise ValueError(f"max_bytes: expected an integer of at least 0, got {max_bytes!r}")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe
        try:
            self.metadata, self.entries = self._checked(max_bytes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what has been mapped stays."""
        os.close(self._fd)

    def _checked(self, max_bytes: int | None) -> tuple[dict[str, str], dict[str, Entry]]:
        """Read the header and check it against the file's size."""
        status = os.fstat(self._fd)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{self.path}: expected a regular file, got a folder, device or pipe")
        if max_bytes is not None and size > max_bytes:
            raise FormatError(f"{self.path}: expected at most {max_bytes} bytes, got {size}")
        length = int.from_bytes(self._bytes(0, 8, size), "little")
        if length > HEADER_LIMIT:
            raise FormatError(
                f"{self.path}: expected a safetensors file, with a header of at most "
                f"{HEADER_LIMIT} bytes, got {length}"
            )
        header = parse(f"{self.path}: header", self._bytes(8, length, size))
        if not isinstance(header, dict):
            raise FormatError(f"{self.path}: expected a JSON object, got {reprlib.repr(header)}")
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise FormatError(
                f"{self.path}: expected words in {_METADATA}, got {reprlib.repr(metadata)}"
            )
        begin = 8 + length
        found = {name: self._entry(name, value, begin) for name, value in header.items()}
        entries = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)))
        at = begin
        for name, entry in entries.items():
            if entry.start != at:
                raise FormatError(
                    f"{self.path}: expected {_shown(name)} at byte {at - begin} of the data, where "
                    f"the array before it ends, got {entry.start - begin}"
                )
            at += entry.nbytes
        if at != size:
            raise FormatError(f"{self.path}: expected {at} bytes, as its header says, got {size}")
        return metadata, entries

    def _bytes(self, start: int, count: int, size: int) -> bytes:
        found = os.pread(self._fd, count, start) if start + count <= size else b""
        if len(found) < count:
            raise FormatError(f"{self.path}: expected at least {start + count} bytes, got {size}")
        return found

    def _entry(self, name: str, value: Any, begin: int) -> Entry:
        """Check what the header says of one array by itself."""
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._wrong(name, "dtype, shape and data_offsets", value)
        kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(kind, str) or kind not in DTYPES:
            raise self._wrong(name, f"one of the dtypes {', '.join(DTYPES)}", kind)
        dtype = np.dtype(DTYPES[kind])
        if not _sizes(shape) or len(shape) > _AXES:
            raise self._wrong(name, f"a shape of at most {_AXES} sizes", shape)
        if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
            raise self._wrong(name, "a shape that fits in memory", shape)
        entry = Entry(dtype, tuple(shape), 0)
        if not _sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != entry.nbytes:
            raise self._wrong(name, f"data_offsets that are {entry.nbytes} bytes apart", offsets)
        return entry._replace(start=begin + offsets[0])

    def _wrong(self, name: str, expected: str, got: Any) -> FormatError:
        return FormatError(
            f"{self.path}: {_shown(name)}: expected {expected}, got {reprlib.repr(got)}"
        )

    def read_into(self, name: str, into: Array) -> None:
        """Read an array's data straight into a place of its dtype and shape.

        Parameters
        ----------
        name : str
        into : ndarray
            C-contiguous, of the entry's shape and dtype.

        Raises
        ------
        FormatError
            The file has become shorter.
        """
        entry = self.entries[name]
        if into.dtype != entry.dtype:  # a machine that is big-endian
            into[...] = self.array(name)
            return
        room = into.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(room):
            count = os.preadv(self._fd, [room[done:]], entry.start + done)
            if not count:
                raise FormatError(f"{self.path}: expected all of {_shown(name)}, got its beginning")
            done += count

    def array(self, name: str) -> Array:
        """Read an array into memory of its own.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray
        """
        entry = self.entries[name]
        found: Array = np.empty(entry.shape, entry.dtype)
        self.read_into(name, found)
        return found

    def mapped(self) -> Array:
        """Map the file into memory, as bytes.

        Pages come from the file when they are read, and are shared by all processes that map it. A
        page that is written to becomes this process's own; the file is never changed.

        Returns
        -------
        ndarray of uint8
        """
        mapping = mmap.mmap(self._fd, 0, access=mmap.ACCESS_COPY)
        return np.frombuffer(mapping, np.uint8)

    def digest(self) -> str:
        """Digest of all arrays' data in their order, read in pieces.

        Returns
        -------
        str
            BLAKE2b of 32 bytes, in hexadecimal.
        """
        found = blake2b(digest_size=32)
        start = min((entry.start for entry in self.entries.values()), default=0)
        while piece := os.pread(self._fd, 2**20, start) if self.entries else b"":
            found.update(piece)
            start += len(piece)
        return found.hexdigest()


def _path(path: Any) -> str:
    try:
        return os.fsdecode(os.fspath(path))
    except TypeError:
        raise TypeError(f"path: expected a str or a path, got {type(path).__name__}") from None


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _sizes(value: Any) -> bool:
    """Whether it is a list of integers from 0 to below 2**63."""
    return isinstance(value, list) and all(map(_is_size, value))


def _shown(name: str) -> str:
    """Show a name from a file, in one line of reasonable length."""
    return repr(name if len(name) <= 200 else name[:200] + "...")


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file in place of what is there, all of it or nothing.

    Parameters
    ----------
    path : str or path-like
    arrays : mapping of str to ndarray
        Laid out by descending size of an element, so that each is aligned.
    metadata : mapping of str to str

    Raises
    ------
    TypeError
        An array's dtype has no name in the format.
    ValueError
        The header would be too long, or a name is not free.
    OSError
        The file cannot be written. What was at `path` is unchanged in any of these cases.
    """
    path = _path(path)
    ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))
    if _METADATA in ordered:
        raise ValueError(f"names: expected any but {_METADATA!r}, which is the format's own")
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    at = 0
    for name, value in ordered.items():
        stored = NAMES.get(value.dtype.newbyteorder("<"))
        if stored is None:
            raise TypeError(f"{name}: expected dtype {', '.join(DTYPES)}, got {value.dtype}")
        end = at + value.nbytes
        header[name] = {"dtype": stored, "shape": value.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        raise ValueError(
            f"header: expected names and metadata of at most {HEADER_LIMIT} bytes, got {len(text)}"
        )
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in ordered.values():
            file.write(stored_bytes(value))


def digest_of(arrays: Mapping[str, Array]) -> str:
    """Digest that `TensorFile.digest` will find in a file of these arrays.

    Parameters
    ----------
    arrays : mapping of str to ndarray

    Returns
    -------
    str
    """
    found = blake2b(digest_size=32)
    for value in sorted(arrays.values(), key=lambda value: -value.dtype.itemsize):
        found.update(stored_bytes(value))
    return found.hexdigest()


def stored_bytes(value: Array) -> memoryview:
    """Bytes of an array as they are stored: C order, little-endian; a view where they are so."""
    flat = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


@contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """Write a file under another name beside it, and give it its name once it is on the disk.

    Parameters
    ----------
    path : str
        A link is followed.

    Yields
    ------
    file
        To write to. If anything fails it is removed, and what was at `path` stays as it was.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:100]}.{os.getpid()}.{os.urandom(6).hex()}")
    file = open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):  # an interrupt may come after it has got its name
            os.unlink(temporary)
        raise
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(where)
    finally:
        os.close(where)
