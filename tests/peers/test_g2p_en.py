"""The example of g2p-en: the phonemes of the package's own NumPy loop, word by word."""

import importlib.util
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from snippets import ROOT
from threadpoolctl import threadpool_limits

spec = importlib.util.spec_from_file_location("pronounce", ROOT / "examples" / "pronounce.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
WORDS = 1000


class Loop:
    """What g2p_en 2.1.0 computes, step by step, from the same file."""

    def __init__(self):
        self.w = dict(np.load(example.checkpoint()))

    def step(self, x, h, part):
        w_ih, w_hh, b_ih, b_hh = (self.w[f"{part}_{n}"] for n in ("w_ih", "w_hh", "b_ih", "b_hh"))
        of_x, of_h = np.matmul(x, w_ih.T) + b_ih, np.matmul(h, w_hh.T) + b_hh
        cut = 2 * h.shape[-1]
        r, z = np.split(1 / (1 + np.exp(-(of_x[:, :cut] + of_h[:, :cut]))), 2, -1)
        n = np.tanh(of_x[:, cut:] + r * of_h[:, cut:])
        return (1 - z) * n + z * h

    def __call__(self, words):
        """Phonemes as numbers, and how far the best score is from the next where it is closest.

        All words have as many letters, so that they go together.
        """
        known = {letter: i for i, letter in enumerate(example.LETTERS)}
        letters = np.array([[known.get(letter, 1) for letter in word] + [2] for word in words])
        h = np.zeros((len(words), self.w["enc_w_hh"].shape[-1]), np.float32)
        for step in letters.T:
            h = self.step(self.w["enc_emb"][step], h, "enc")
        last, steps, margins = np.full(len(words), 2), [], []
        for _ in range(20):
            h = self.step(self.w["dec_emb"][last], h, "dec")
            scores = np.matmul(h, self.w["fc_w"].T) + self.w["fc_b"]
            last = scores.argmax(axis=1)
            steps.append(last)
            margins.append(np.diff(np.sort(scores)[:, -2:])[:, 0])
        steps, margins = np.transpose(steps), np.transpose(margins)
        for word, found, close in zip(words, steps, margins, strict=True):
            end = np.argmax(found == 3) if 3 in found else len(found)
            yield word, found[:end].tolist(), close[: end + 1].min()


def words():
    """Words of the package's list of homographs, and letters at random."""
    rng = random.Random(0)
    lines = Path(example.checkpoint()).with_name("homographs.en").read_text("utf8").splitlines()
    found = [line.partition("|")[0].lower() for line in lines if not line.startswith("#")]
    while len(found) < WORDS:
        found.append("".join(rng.choices([*example.LETTERS[3:], "'"], k=rng.randrange(1, 13))))
    return found[:WORDS]


def test_phonemes_of_a_thousand_words():
    g2p, loop = example.G2P(), Loop()
    close = compared = 0
    for _, group in itertools.groupby(sorted(words(), key=len), key=len):
        with threadpool_limits(1):  # on a busy machine small products wait for each other
            found = list(loop(list(group)))
        for word, expected, margin in found:
            assert g2p.ids(word) == expected or margin < 1e-5, word
            close += margin < 1e-5
            compared += 1
    assert compared == WORDS and close < 3


def test_a_known_word():
    assert " ".join(example.G2P()("activationist")) == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps g2p-en"):
        example.checkpoint()
