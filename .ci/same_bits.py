"""Compare what two machines computed: python same_bits.py ONE.npz OTHER.npz.

All bits are to be the same, with two exceptions. A NaN is a NaN, since architectures differ in the
sign of one that arithmetic makes. Where the exact result rounds up to the smallest normal number it
may also have been flushed to 0, since they differ in whether they round before they look.
"""

import sys

import numpy as np


def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Elements that are neither the same nor one of the exceptions."""
    unequal = one.view(f"u{one.itemsize}") != other.view(f"u{one.itemsize}")
    sizes = np.stack([np.abs(one), np.abs(other)])
    flushed = (sizes.min(axis=0) == 0) & (sizes.max(axis=0) == np.finfo(one.dtype).tiny)
    return unequal & ~flushed & ~(np.isnan(one) & np.isnan(other))


with np.load(sys.argv[1]) as one, np.load(sys.argv[2]) as other:
    if not one.files or one.files != other.files:
        sys.exit("expected the same names of arrays, at least one")
    wrong = 0
    for name in one.files:
        a, b = one[name], other[name]
        if a.dtype != b.dtype or a.shape != b.shape or differing(a, b).any():
            print(f"{name}: {a.dtype}{a.shape} and {b.dtype}{b.shape} differ")
            wrong += 1
print(f"{len(one.files) - wrong} of {len(one.files)} arrays have the same bits")
sys.exit(wrong > 0)
