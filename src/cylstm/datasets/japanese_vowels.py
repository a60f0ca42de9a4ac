"""The data set that comes with the package."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cylstm.module import Array


class Utterances(NamedTuple):
    """One part of the Japanese Vowels data, padded to its longest utterance.

    Attributes
    ----------
    frames : ndarray of shape (T, B, 12), float32
        LPC cepstrum coefficients, time first; zeros beyond an utterance's length.
    lengths : ndarray of shape (B,), int64
        Frames of each utterance, 7 to 29.
    speaker : ndarray of shape (B,), int64
        Who speaks, 0 to 8: what is to be recognised.
    """

    frames: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    speaker: npt.NDArray[np.int64]


class JapaneseVowels(NamedTuple):
    """The original split of the Japanese Vowels data.

    Attributes
    ----------
    train : Utterances
        270 utterances, T = 26.
    test : Utterances
        370 utterances, T = 29.
    """

    train: Utterances
    test: Utterances


def load_japanese_vowels() -> JapaneseVowels:
    """Load the Japanese Vowels data: nine male speakers say /ae/, the task is to name them.

    Returns
    -------
    JapaneseVowels
        `train` and `test`, fresh arrays at every call.

    Notes
    -----
    Kudo, Toyama & Shimbo 1999, "Multidimensional curve classification using passing-through
    regions", Pattern Recognition Letters 20; UCI Machine Learning Repository, data set 128,
    CC BY 4.0. The authors recognise 94.1 % of the test utterances.
    """
    from importlib import resources  # slow to import, and rarely needed

    path = resources.files("cylstm") / "datasets" / "japanese_vowels.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return JapaneseVowels(
            *(
                Utterances(
                    _padded(arrays[f"{part}_frames"], arrays[f"{part}_lengths"]),
                    arrays[f"{part}_lengths"],
                    arrays[f"{part}_speaker"],
                )
                for part in ("train", "test")
            )
        )


def _padded(frames: Array, lengths: Array) -> Array:
    """Sequences that lie one after the other, (sum of lengths, I), as (T, B, I) with zeros."""
    valid = np.arange(lengths.max()) < lengths[:, np.newaxis]
    padded = np.zeros((*valid.shape, frames.shape[1]), frames.dtype)
    padded[valid] = frames
    return np.ascontiguousarray(padded.swapaxes(0, 1))
