"""The digest that tells whether weights which anybody may write to have changed."""

import itertools

import numpy as np
import pytest

from cylstm.kernels import sequence

SIZES = (1, 15, 31, 32, 33, 64, 200)  # float32; a block of the digest is 32


def arrays(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype("float32")


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_counts(size):
    a = arrays(size)
    bits = a.view(np.uint32)
    seen = {sequence.digest([a])}
    for i, bit in itertools.product(range(size), (0, 22, 23, 31)):
        bits[i] ^= 1 << bit
        seen.add(sequence.digest([a]))
        bits[i] ^= 1 << bit
    assert len(seen) == 1 + 4 * size
    assert sequence.digest([a]) in seen


@pytest.mark.parametrize(
    "change",
    [np.negative, lambda a: -np.abs(a), lambda a: a * 2, np.zeros_like, lambda a: a[::-1],
     lambda a: np.roll(a, 2), lambda a: np.roll(a, 4), lambda a: np.roll(a, 32)],
)  # fmt: skip
def test_changes_of_everything(change):
    a = arrays(200)
    assert sequence.digest([np.ascontiguousarray(change(a))]) != sequence.digest([a])


def test_any_two_that_change_places():
    a = arrays(70)
    seen = {sequence.digest([a])}
    for i, j in itertools.combinations(range(70), 2):
        b = a.copy()
        b[[i, j]] = b[[j, i]]
        seen.add(sequence.digest([b]))
    assert len(seen) == 1 + 70 * 69 // 2


def test_zeros_and_where_arrays_end():
    a, zeros = arrays(40), np.zeros(64, np.float32)
    digests = [
        sequence.digest(parts)
        for parts in ([], [a], [a, a], [a[:39]], [a[:20], a[20:]], [a[20:], a[:20]], [a[:0], a],
                      [a, a[:0]], *([zeros[:n]] for n in range(64)))
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert 0 <= min(digests) and 2**63 < max(digests) < 2**64


def test_only_contiguous_arrays():
    for wrong in (arrays((4, 4)).T, None):
        with pytest.raises(ValueError, match="arrays: expected contiguous ones"):
            sequence.digest([wrong])
