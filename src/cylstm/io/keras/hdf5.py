"""The part of HDF5 that Keras writes, read without the HDF5 library.

That library is written for files that one trusts: of damaged ones some end the process. Here every
offset is checked against the file. What Keras does not write, links out of the file and plug-ins
among it, is refused. Structures and numbers are those of the HDF5 File Format Specification, with
the section in brackets.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cylstm.io.keras.error import KerasError
from cylstm.module import Array

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1
#: Messages of an object header.
_SPACE, _LINKS, _TYPE, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 6, 7, 8
_FILTERS, _ATTRIBUTE, _CONTINUED, _TABLE, _ATTRIBUTES = 11, 12, 16, 17, 21
#: Bits of IEEE numbers by size: where the exponent is, and the sizes of exponent and mantissa.
_IEEE = {2: (10, 5, 10), 4: (23, 8, 23), 8: (52, 11, 52)}
_DEFLATE, _SHUFFLE, _FLETCHER = 1, 2, 3
#: Most bytes of one text, and of one of several, which is a name.
_TEXT, _NAME = 2**26, 2**10
_RESAVE = "; h5py can write it again: copy its groups into a new h5py.File(path, 'w')"


class Type(NamedTuple):
    """A datatype [IV.A.2.d]."""

    #: "float", "string", "text" (of any length) or "other".
    kind: str
    size: int
    dtype: np.dtype[Any] | None = None


class File:
    """An HDF5 file in memory, or mapped into it.

    Parameters
    ----------
    data : bytes or mmap.mmap
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        version, sizes = self.at(8, 1)[0], self.at(13, 2)
        if self.at(0, 8) != SIGNATURE:
            raise KerasError("expected an HDF5 file, got something else")
        if version > 1 or sizes != b"\x08\x08":
            raise KerasError(f"expected HDF5 as Keras writes it, got version {version}{_RESAVE}")
        start = 24 + 4 * version  # [II.A]
        base, _, _, _, _, root = self.unpack("<6Q", start)
        if base:
            raise KerasError(f"expected HDF5 from the file's beginning, got base address {base}")
        self.root = Group(self, root, "/")

    def at(self, offset: int, size: int) -> bytes:
        """Return bytes of the file."""
        if offset < 0 or size < 0 or offset + size > len(self._data):
            raise KerasError(f"expected {size} bytes at {offset}, got a file of {len(self._data)}")
        found: bytes = self._data[offset : offset + size]
        return found

    def unpack(self, form: str, offset: int) -> tuple[Any, ...]:
        """Return numbers of the file."""
        return struct.unpack(form, self.at(offset, struct.calcsize(form)))

    def messages(self, address: int) -> list[tuple[int, int, int]]:
        """Return kind, offset and size of the messages of an object header [IV.A.1.a]."""
        version, _, count, _, size = self.unpack("<BBHII", address)
        if version != 1:
            raise KerasError(f"expected an object of HDF5 as Keras writes it, got one of version "
                             f"{version}{_RESAVE}")  # fmt: skip
        found: list[tuple[int, int, int]] = []
        blocks = [(address + 16, size)]
        seen = set()
        while blocks and len(found) < count:
            here, size = blocks.pop(0)
            if here in seen:
                raise KerasError("expected messages of an object once")
            seen.add(here)
            end = here + size
            while here + 8 <= end and len(found) < count:
                kind, size, flags = self.unpack("<HHB", here)
                here += 8
                self.at(here, size)
                if flags & 2:
                    raise KerasError("expected messages of an object in it, got shared ones")
                if kind == _CONTINUED:
                    blocks.append(self.unpack("<QQ", here))
                found.append((kind, here, size))
                here += size
        return found

    def type_at(self, offset: int) -> Type:
        """Read a datatype."""
        kind, bits, _, _, size = self.unpack("<BBBBI", offset)
        order = "<>"[bits & 1]
        if kind & 15 == 1:
            _, precision, *where, _, mantissa = self.unpack("<HHBBBB", offset + 8)
            if _IEEE.get(size) != (*where, mantissa) or precision != 8 * size or bits & 64:
                return Type("other", size)
            return Type("float", size, np.dtype(f"{order}f{size}"))
        if kind & 15 == 3:
            return Type("string", size)
        if kind & 15 == 9 and bits & 15 == 1 and size == 16:
            return Type("text", size)
        return Type("other", size)

    def shape_at(self, offset: int) -> tuple[int, ...]:
        """Read a dataspace [IV.A.2.b]."""
        version, rank, _, kind = self.unpack("<4B", offset)
        if version not in (1, 2) or rank > 32:
            raise KerasError(f"expected a shape, got version {version} of {rank} axes")
        if version == 2 and kind == 2:
            return (0,)
        return self.unpack(f"<{rank}Q", offset + (8 if version == 1 else 4))

    def text_at(self, offset: int, most: int) -> bytes:
        """Read text of any length, which is in a heap [III.E]."""
        length, heap, index = self.unpack("<IQI", offset)
        if not length:
            return b""
        start, size = self._heap(heap).get(index, (0, -1))
        if length > min(size, most):
            raise KerasError(f"expected at most {min(size, most)} bytes of text, got {length}")
        return self.at(start, length)

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Return offset and size of the objects of a heap."""
        if address not in self._heaps:
            if self.at(address, 4) != b"GCOL":
                raise KerasError(f"expected a heap at {address}")
            end = address + self.unpack("<Q", address + 8)[0]
            found, here = {}, address + 16
            while here + 16 <= end:
                index, _, _, size = self.unpack("<HHIQ", here)
                if index == 0:
                    break
                found[index] = here + 16, size
                here += 16 + -(-size // 8) * 8
            self._heaps[address] = found
        return self._heaps[address]

    def leaves(self, address: int, kind: int, key: int) -> Iterator[tuple[int, int]]:
        """Go through a B-tree [III.A.1]: offsets of the keys, and addresses of the children."""
        pending, seen = [address], set()
        while pending:
            here = pending.pop()
            if here in seen:
                raise KerasError("expected a tree, got a node twice")
            seen.add(here)
            signature, found, level, count = self.unpack("<4sBBH", here)
            if signature != b"TREE" or found != kind:
                raise KerasError(f"expected a tree at {here}")
            for i in range(count):
                at = here + 24 + i * (key + 8)
                (child,) = self.unpack("<Q", at + key)
                if level:
                    pending.append(child)
                else:
                    yield at, child


class Object:
    """What groups and datasets share: a header with attributes."""

    def __init__(self, file: File, address: int, name: str) -> None:
        self._file, self.name = file, name
        self._messages = file.messages(address)

    def _one(self, kind: int) -> int | None:
        """Return where the message of a kind is."""
        return next((at for found, at, _ in self._messages if found == kind), None)

    def attribute(self, name: str) -> list[bytes] | None:
        """Read an attribute that is text, one or an array of it; None if there is none."""
        file = self._file
        for kind, at, size in self._messages:
            if kind == _ATTRIBUTES:
                raise KerasError(f"{self.name}: expected few attributes, got many{_RESAVE}")
            if kind != _ATTRIBUTE:
                continue
            version, _, *sizes = file.unpack("<BBHHH", at)  # [IV.A.2.m]
            if version not in (1, 2, 3):
                raise KerasError(f"{self.name}: expected an attribute, got version {version}")
            padded = [-(-n // 8) * 8 for n in sizes] if version == 1 else sizes
            start = at + (9 if version == 3 else 8)
            if file.at(start, sizes[0]).rstrip(b"\0") == name.encode():
                found = file.type_at(start + padded[0])
                shape = file.shape_at(start + padded[0] + padded[1])
                return self._texts(name, found, shape, start + sum(padded), at + size)
        return None

    def _texts(
        self, name: str, kind: Type, shape: tuple[int, ...], start: int, end: int
    ) -> list[bytes]:
        count = math.prod(shape)
        if not count:
            return []
        if kind.kind not in ("string", "text") or not 0 < count * kind.size <= end - start:
            raise KerasError(f"{self.name}: {name}: expected text, got {kind.kind} of {shape}")
        places = range(start, start + count * kind.size, kind.size)
        if kind.kind == "text":
            most = _TEXT if count == 1 else _NAME
            return [self._file.text_at(place, most) for place in places]
        return [self._file.at(place, kind.size).rstrip(b"\0") for place in places]


class Group(Object):
    """A group: names of groups and datasets."""

    def __init__(self, file: File, address: int, name: str) -> None:
        super().__init__(file, address, name)
        self._links = dict(self._found())

    def __contains__(self, name: str) -> bool:
        """Whether there is something of that name."""
        return name in self._links

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._links)

    def __getitem__(self, path: str) -> Group | Dataset:
        """Go down a path."""
        here: Group | Dataset = self
        for name in filter(None, path.split("/")):
            if not isinstance(here, Group) or name not in here:
                raise KerasError(f"{self.name}: expected {path!r} in it, got nothing of that name")
            address = here._links[name]
            if address is None:
                raise KerasError(f"{self.name}: {path}: expected what is in the file itself, got a "
                                 "link")  # fmt: skip
            inside = f"{here.name}/{name}".replace("//", "/")
            group = any(
                kind in (_TABLE, _LINKS, _LINK) for kind, _, _ in self._file.messages(address)
            )
            here = (Group if group else Dataset)(self._file, address, inside)
        return here

    def _found(self) -> Iterator[tuple[str, int | None]]:
        """Go through names and addresses; None for what is elsewhere."""
        file = self._file
        for kind, at, _ in self._messages:
            if kind == _LINK:
                yield self._link(at)
            elif kind == _LINKS:
                flags = file.at(at + 1, 1)[0]
                if file.unpack("<Q", at + (10 if flags & 1 else 2))[0] != _UNDEFINED:
                    raise KerasError(f"{self.name}: expected few links, got many{_RESAVE}")
            elif kind == _TABLE:
                tree, heap = file.unpack("<QQ", at)
                signature, _, size, _, names = file.unpack("<4sIQQQ", heap)
                if signature != b"HEAP":
                    raise KerasError(f"{self.name}: expected names at {heap}")
                for _, node in file.leaves(tree, 0, 8):
                    yield from self._symbols(node, names, size)

    def _symbols(self, node: int, names: int, size: int) -> Iterator[tuple[str, int | None]]:
        """Go through a node of a symbol table [III.B]."""
        signature, _, count = self._file.unpack("<4sHH", node)
        if signature != b"SNOD":
            raise KerasError(f"{self.name}: expected a table of names at {node}")
        for i in range(count):
            name, address, cache = self._file.unpack("<QQI", node + 8 + 40 * i)
            if name >= size:
                raise KerasError(f"{self.name}: expected a name, got {name} of {size} bytes")
            text = self._file.at(names + name, min(size - name, 4096)).partition(b"\0")[0]
            yield text.decode("utf-8", "replace"), None if cache == 2 else address

    def _link(self, at: int) -> tuple[str, int | None]:
        """Read a link [IV.A.2.g]."""
        file, (_, flags) = self._file, self._file.unpack("<BB", at)
        here = at + 2
        kind = file.at(here, 1)[0] if flags & 8 else 0
        here += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        length = int.from_bytes(file.at(here, width), "little")
        name = file.at(here + width, length).decode("utf-8", "replace")
        return name, file.unpack("<Q", here + width + length)[0] if kind == 0 else None


class Dataset(Object):
    """An array: `shape` and, if it is one of NumPy's floating-point types, `dtype`."""

    def __init__(self, file: File, address: int, name: str) -> None:
        super().__init__(file, address, name)
        space, kind = self._one(_SPACE), self._one(_TYPE)
        if space is None or kind is None:
            raise KerasError(f"{name}: expected an array")
        self.shape = file.shape_at(space)
        self.dtype = file.type_at(kind).dtype

    def read(self) -> Array:
        """Read the numbers, as many as the shape says."""
        file, layout = self._file, self._one(_LAYOUT)
        if self.dtype is None or layout is None or self._one(_EXTERNAL) is not None:
            raise KerasError(f"{self.name}: expected floating-point numbers in the file itself")
        size = math.prod(self.shape) * self.dtype.itemsize
        version, kind = file.unpack("<BB", layout)  # [IV.A.2.i]
        if version != 3 or kind > 2:
            raise KerasError(f"{self.name}: expected an array as Keras writes it, in the file "
                             f"itself, got version {version} of kind {kind}{_RESAVE}")  # fmt: skip
        if kind == 2:
            return self._chunks(layout)
        if kind == 0:
            (there,), start = file.unpack("<H", layout + 2), layout + 4
        else:
            start, there = file.unpack("<QQ", layout + 2)
        if there < size or start == _UNDEFINED:
            raise KerasError(f"{self.name}: expected {size} bytes of numbers, got {there}")
        return np.frombuffer(file.at(start, size), self.dtype).reshape(self.shape)

    def _filters(self) -> list[int]:
        """Read which filters chunks went through [IV.A.2.l]."""
        at = self._one(_FILTERS)
        if at is None:
            return []
        version, count = self._file.unpack("<BB", at)
        here, found = at + (8 if version == 1 else 2), []
        for _ in range(count):
            (code,) = self._file.unpack("<H", here)
            if code not in (_DEFLATE, _SHUFFLE, _FLETCHER):
                raise KerasError(f"{self.name}: expected no filter but gzip, got number {code}")
            named = version == 1
            name, _, values = self._file.unpack("<HHH", here + 2) if named else (
                0, *self._file.unpack("<HH", here + 2))  # fmt: skip
            here += (8 if named else 6) + -(-name // 8) * 8
            here += 4 * values + (4 * (values % 2) if named else 0)
            found.append(code)
        return found

    def _chunks(self, layout: int) -> Array:
        """Put chunks together."""
        file, rank, kind = self._file, len(self.shape), self.dtype
        axes, tree = file.unpack("<BQ", layout + 2)
        sizes = file.unpack(f"<{rank}I", layout + 11)
        assert kind is not None
        nbytes = math.prod(sizes) * kind.itemsize
        whole = math.prod(self.shape) * kind.itemsize
        if axes != rank + 1 or 0 in sizes or nbytes > 2 * whole + 2**20 or tree == _UNDEFINED:
            raise KerasError(f"{self.name}: expected chunks of {self.shape}, got {sizes}")
        filters, found = self._filters(), np.zeros(self.shape, kind)
        missing = math.prod(-(-n // size) for n, size in zip(self.shape, sizes, strict=True))
        for at, address in file.leaves(tree, 1, 8 + 8 * (rank + 1)):
            stored, mask, *first = file.unpack(f"<II{rank}Q", at)
            if any(i >= n or i % k for i, n, k in zip(first, self.shape, sizes, strict=True)):
                raise KerasError(f"{self.name}: expected a chunk in {self.shape}, got {first}")
            data = self._plain(file.at(address, stored), filters, mask, nbytes)
            block = np.frombuffer(data, kind).reshape(sizes)
            where = tuple(slice(i, i + size) for i, size in zip(first, sizes, strict=True))
            part = found[where]
            part[...] = block[tuple(slice(n) for n in part.shape)]
            missing -= 1
            if missing < 0:
                break
        if missing:
            raise KerasError(f"{self.name}: expected all chunks of {self.shape} once")
        return found

    def _plain(self, data: bytes, filters: list[int], mask: int, nbytes: int) -> bytes:
        """Undo the filters of a chunk, from the last to the first."""
        assert self.dtype is not None
        for i, code in reversed(list(enumerate(filters))):
            if mask >> i & 1:
                continue
            if code == _FLETCHER:
                data = data[:-4]
            elif code == _DEFLATE:
                data = zlib.decompressobj().decompress(data, nbytes + 5)
            elif len(data) % self.dtype.itemsize == 0:
                data = np.frombuffer(data, "u1").reshape(self.dtype.itemsize, -1).T.tobytes()
        if len(data) != nbytes:
            raise KerasError(f"{self.name}: expected {nbytes} bytes in a chunk, got {len(data)}")
        return data
