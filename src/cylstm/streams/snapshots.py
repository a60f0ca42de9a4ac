"""States as bytes: what they belong to is in them, and what does not fit is refused.

All numbers are little-endian:

    8 bytes   b"CYLSTM-S"
    uint16    version of this format
    uint16    bytes of a number: 4 or 8
    uint32    rows
    uint32    numbers in each
    16 bytes  digest of the layer's class and options, as far as inference depends on them
    16 bytes  digest of the weights
    ...       the rows: all layers' h, and c for an LSTM, end to end
    16 bytes  digest of everything before
"""

from __future__ import annotations

import struct
import weakref
from typing import Any

import numpy as np

from cylstm.module import Array, Module

MAGIC, VERSION = b"CYLSTM-S", 1
HEAD = struct.Struct("<8sHHII16s16s")
DIGEST = 16
#: Options on which neither the values of a state nor what is done with it in inference depend; of
#: the sizes the shapes of the parameters tell.
LEFT_OUT = frozenset(
    "input_size hidden_size num_layers batch_first rng dtype dropout variational "
    "recurrent_dropout dropconnect".split()
)
_fingerprints: weakref.WeakKeyDictionary[Module, tuple[Any, bytes, bytes]]
_fingerprints = weakref.WeakKeyDictionary()


def digest(*parts: Any) -> bytes:
    """Digest of bytes-like objects, one after the other."""
    from hashlib import blake2b  # only snapshots need it

    found = blake2b(digest_size=DIGEST)
    for part in parts:
        found.update(part)
    return found.digest()


def fingerprint(layer: Any) -> tuple[bytes, bytes]:
    """Digests of what the layer is and of its weights; made again only after a change of these."""
    with layer._lock:
        known = _fingerprints.get(layer)
        if known is None or known[0] != layer._version:
            words = []
            for path, leaf in layer._all().items():
                words += [path, type(leaf).__name__] if path else [*layer.gates, *layer.states]
                words += _options(leaf)
            shapes = [f"{name}{value.shape}" for name, value in layer.params.items()]
            what = "\n".join([*words, *shapes])
            weights = layer.flat_params.astype(layer.flat_params.dtype.newbyteorder("<"))
            known = layer._version, digest(what.encode()), digest(weights)
            _fingerprints[layer] = known
    return known[1:]


def _options(layer: Any) -> list[str]:
    """Arguments of a constructor on which the state may depend."""
    return [
        f"{name}={layer._argument(name)!r}"
        for name, default in layer._signature.items()
        if name not in LEFT_OUT and layer._argument(name) != default
    ]


def pack(layer: Module, rows: Array) -> bytes:
    """Bytes of rows (n, S)."""
    size = rows.itemsize
    head = HEAD.pack(MAGIC, VERSION, size, *rows.shape, *fingerprint(layer))
    body = head + rows.astype(f"<f{size}").tobytes()
    return body + digest(body)


def unpack(layer: Module, snapshot: Any, count: int, width: int) -> Array:
    """Rows of shape (count, width) from bytes; what does not fit is refused by name."""
    try:
        blob = bytes(memoryview(snapshot))
    except TypeError:
        raise TypeError(f"snapshot: expected bytes, got {type(snapshot).__name__}") from None
    if len(blob) < HEAD.size + DIGEST or not blob.startswith(MAGIC):
        raise ValueError(f"snapshot: expected one of a stream, got {len(blob)} other bytes")
    _, version, size, rows, columns, options, weights = HEAD.unpack_from(blob)
    if version != VERSION:
        raise ValueError(f"snapshot: expected version {VERSION} of the format, got {version}")
    body = blob[:-DIGEST]
    if len(body) != HEAD.size + rows * columns * size or digest(body) != blob[-DIGEST:]:
        raise ValueError("snapshot: expected it as it was made, got one damaged or cut short")
    if (size, columns) != (layer.dtype.itemsize, width) or options != fingerprint(layer)[0]:
        raise ValueError(
            f"snapshot: expected one of such a layer, {layer!r}, got one of a layer of another "
            f"class, size or option, with {columns} numbers of {size} bytes in a row's state"
        )
    if weights != fingerprint(layer)[1]:
        raise ValueError("snapshot: expected one of these weights, got one of other weights")
    if rows != count:
        raise ValueError(f"snapshot: expected {count} rows, got {rows}")
    found = np.frombuffer(body, f"<f{size}", offset=HEAD.size).reshape(rows, columns)
    return found.astype(layer.dtype)


# States of networks


def each(make: Any, *trees: Any) -> Any:
    """Nested tuples of what is made of the arrays at each place."""
    if isinstance(trees[0], tuple):
        return tuple(each(make, *parts) for parts in zip(*trees, strict=True))
    return make(*trees)


def arrays(tree: Any) -> list[Array]:
    """Arrays in nested tuples, in order."""
    return [a for part in tree for a in arrays(part)] if isinstance(tree, tuple) else [tree]


def pack_state(network: Module, state: Any, rows: int) -> bytes:
    """Bytes of nested tuples of arrays (., rows, .)."""
    parts = [a.swapaxes(0, 1).reshape(rows, -1) for a in arrays(state)]
    return pack(network, np.concatenate([np.empty((rows, 0), network.dtype), *parts], axis=1))


def unpack_state(network: Module, snapshot: Any, like: Any, count: int) -> Any:
    """Nested tuples of arrays shaped as those of `like`, of so many rows, from bytes."""
    widths = [a.shape[0] * a.shape[2] for a in arrays(like)]
    rows = unpack(network, snapshot, count, sum(widths))
    parts = iter(np.split(rows, np.cumsum(widths)[:-1], axis=1) if widths else ())

    def filled(first: Array) -> Array:
        by_row = next(parts).reshape(count, first.shape[0], first.shape[2])
        return np.ascontiguousarray(by_row.swapaxes(0, 1))

    return each(filled, like)
