"""Pronunciations of English words by the network of g2p-en 2.1.0, its decoder as a stream.

    pip install --no-deps g2p-en==2.1.0
    python examples/pronounce.py activationist cylstm

A GRU reads the letters; a second one begins with the first's last state and names a phoneme at each
step, until it names the end. The weights, PyTorch's names and gate order in an .npz, are read from
the installed package, which is not imported: that would fetch dictionaries for what is not used
here.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

import cylstm

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
UNKNOWN, END = 1, 2
#: What the network's output stands for: special signs, and ARPAbet with stress.
PHONEMES = (
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 "
    "B CH D DH EH0 EH1 EH2 ER0 ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG "
    "OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
).split()
BEGIN, STOP = 2, 3
MOST = 20  # phonemes of a word


def checkpoint():
    """Where the installed package keeps its weights."""
    found = importlib.util.find_spec("g2p_en")
    if found is None or found.origin is None:
        raise ImportError("g2p_en is not installed: pip install --no-deps g2p-en==2.1.0")
    return Path(found.origin).with_name("checkpoint20.npz")


def gru(weights, prefix):
    """One of the two networks."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    long = {"w": "weight", "b": "bias"}
    return cylstm.GRU.from_state_dict(
        {f"{long[name[0]]}{name[1:]}_l0": weights[f"{prefix}_{name}"] for name in names}
    )


class G2P:
    """A word's phonemes."""

    def __init__(self, path=None):
        with np.load(path or checkpoint(), allow_pickle=False) as file:
            weights = {name: file[name] for name in file.files}
        self.letters, self.phonemes = weights["enc_emb"], weights["dec_emb"]
        self.encoder, self.decoder = gru(weights, "enc"), gru(weights, "dec").stream(num_threads=1)
        self.weight, self.bias = weights["fc_w"], weights["fc_b"]
        self.index = {letter: i for i, letter in enumerate(LETTERS)}

    def ids(self, word):
        """Phonemes as numbers."""
        letters = [self.index.get(letter, UNKNOWN) for letter in word] + [END]
        _, self.decoder.state = self.encoder(self.letters[letters, None], num_threads=1)
        found, last = [], BEGIN
        for _ in range(MOST):
            scores = self.weight @ self.decoder.step(self.phonemes[last]) + self.bias
            last = int(scores.argmax())
            if last == STOP:
                break
            found.append(last)
        return found

    def __call__(self, word):
        return [PHONEMES[i] for i in self.ids(word)]


if __name__ == "__main__":
    g2p = G2P()
    for word in sys.argv[1:] or ["activationist"]:
        print(word, *g2p(word))
