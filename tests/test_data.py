"""The Japanese Vowels data: what comes out is what the documentation says."""

from importlib import resources

import numpy as np
from helpers import assert_same_bits

from cylstm import load_japanese_vowels


def test_shapes_and_values():
    train, test = data = load_japanese_vowels()
    assert data.train is train and data.test is test
    for part, steps, rows, total in [(train, 26, 270, 4274), (test, 29, 370, 5687)]:
        assert part.frames.shape == (steps, rows, 12) and part.frames.dtype == np.float32
        assert part.lengths.shape == part.speaker.shape == (rows,)
        assert part.lengths.dtype == part.speaker.dtype == np.int64
        assert (part.lengths.min(), part.lengths.max(), part.lengths.sum()) == (7, steps, total)
        assert np.unique(part.speaker).tolist() == list(range(9))
        assert part.frames.flags.c_contiguous
        valid = np.arange(steps)[:, None] < part.lengths
        assert not part.frames[~valid].any()
        assert part.frames[valid].any(axis=-1).all()
    assert np.bincount(train.speaker).tolist() == [30] * 9
    assert np.bincount(test.speaker).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_frames_are_those_of_the_file():
    path = resources.files("cylstm") / "datasets" / "japanese_vowels.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        for name, part in load_japanese_vowels()._asdict().items():
            pieces = np.split(arrays[f"{name}_frames"], np.cumsum(part.lengths)[:-1])
            for row, piece in enumerate(pieces):
                assert_same_bits(part.frames[: len(piece), row], piece)
            assert_same_bits(part.lengths, arrays[f"{name}_lengths"])
            assert_same_bits(part.speaker, arrays[f"{name}_speaker"])


def test_arrays_are_fresh():
    train, _ = load_japanese_vowels()
    train.frames[...] = 0
    train.speaker[...] = 0
    again, _ = load_japanese_vowels()
    assert again.frames.any() and again.speaker.any()


def test_source_is_named():
    text = (resources.files("cylstm") / "datasets" / "README.md").read_text(encoding="utf-8")
    for words in ("Kudo", "Toyama", "Shimbo", "UCI Machine Learning Repository", "CC BY 4.0"):
        assert words in text
