"""Damaged files made from good ones: a number says which, so that each can be made again."""

import json
import random

NUMBERS = [
    -1, 0, 1, 2, 7, 255, 2**16, 10**6, 2**31 - 1, 2**31, 2**32, 10**12, 2**53 + 1, 2**63 - 1, 2**63,
    2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
]  # fmt: skip
WORDS = [
    "", "F32", "F64", "BF16", "U8", "I64", "f32", "O", "|O8", "LSTM", "GRU", "Linear", "Embedding",
    "Sequential", "Module", "Adam", "init", "os", "__main__", "__class__", "__metadata__", "weight",
    "../../etc/passwd", "cos\nsystem\n(S'true'\ntR.", "\x1b[2J", "\ud800", "x" * 5000, "concat",
]  # fmt: skip


def mutated(good, seed):
    """Return a damaged copy of a good file's bytes, always the same one for a seed."""
    rng = random.Random(seed)
    data = bytearray(good)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice(MUTATIONS)(rng, data)
    return bytes(data)


def cut(rng, data):
    return data[: rng.randrange(len(data) + 1)]


def longer(rng, data):
    return data + rng.randbytes(rng.choice([1, 7, 8, 64, 1000]))


def flipped(rng, data):
    """Flip a few bits; of a file's head more often than of the rest."""
    for _ in range(rng.choice([1, 1, 2, 8, 64]) if data else 0):
        end = rng.choice([8, 64, 1000, len(data), len(data)])
        data[rng.randrange(min(end, len(data)))] ^= 1 << rng.randrange(8)
    return data


def overwritten(rng, data):
    start = rng.randrange(len(data) + 1)
    count = rng.choice([1, 2, 4, 8, 100])
    piece = rng.choice([b"\x00" * count, b"\xff" * count, rng.randbytes(count)])
    data[start : start + count] = piece
    return data


def moved(rng, data):
    """Copy a piece of the file to another place."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[a : min(b, a + 300)] + data[at:]


def other_length(rng, data):
    """Change what the first eight bytes say of the header's length."""
    now = int.from_bytes(data[:8], "little")
    number = rng.choice([now - 1, now + 1, now + 8, 0, 2, len(data), 2**22 + 1, 2**32, 2**64 - 1])
    data[:8] = (number % 2**64).to_bytes(8, "little")
    return data


def other_header(rng, data):
    """Change the header where it is JSON, and its length with it."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return flipped(rng, data)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        metadata = {}
    inner = [name for name in ("cylstm.config", "cylstm.values") if name in metadata]
    if inner and rng.random() < 0.5:
        try:
            metadata[inner[0]] = changed_text(rng, json.loads(metadata[inner[0]]))
        except (ValueError, TypeError, RecursionError):
            metadata[inner[0]] = "{"
        text = json.dumps(header)
    else:
        text = changed_text(rng, header)
    text = text.encode()
    return bytearray(len(text).to_bytes(8, "little")) + text + data[8 + length :]


def changed_text(rng, tree):
    """Return JSON of a tree with one place changed, or with a name twice, or nested deeply."""
    kind = rng.randrange(12)
    if kind == 0:
        depth = rng.choice([10, 100, 900, 1100, 20_000])
        return "[" * depth + "]" * depth
    if kind in (2, 3, 4):
        other_number(rng, tree)
    text = json.dumps(tree if kind in (1, 2, 3, 4) else changed(rng, tree))
    return text.replace("{", '{"class": 1, "class": 2, ', 1) if kind == 1 else text


def other_number(rng, tree):
    """Put another number in the place of one."""
    places, pending = [], [tree]
    while pending:
        part = pending.pop()
        if isinstance(part, (dict, list)):
            for key in list(part) if isinstance(part, dict) else range(len(part)):
                pending.append(part[key])
                if type(part[key]) in (int, float):
                    places.append((part, key))
    if places:
        part, key = rng.choice(places)
        part[key] = rng.choice(NUMBERS)


def changed(rng, tree):
    """Change one place of a tree: another value, no value, another name."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return value(rng)
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key, what = rng.choice(keys), rng.randrange(8)
    if what == 0:
        del tree[key]
    elif what == 1 and isinstance(tree, dict):
        tree[rng.choice([*WORDS, *keys])] = tree.pop(key)
    elif what == 2 and len(keys) > 1:
        other = rng.choice(keys)
        tree[key], tree[other] = tree[other], tree[key]
    else:
        tree[key] = changed(rng, tree[key])
    return tree


def value(rng):
    return rng.choice(
        [
            rng.choice(NUMBERS), rng.choice(NUMBERS), rng.choice(WORDS), None, True, [], {},
            [rng.choice(NUMBERS) for _ in range(rng.choice([1, 2, 40]))],
            {rng.choice(WORDS): rng.choice(NUMBERS)},
        ]
    )  # fmt: skip


MUTATIONS = [
    cut, longer, flipped, flipped, overwritten, moved, other_length,
    other_header, other_header, other_header, other_header,
]  # fmt: skip
