"""What the kernels are told about a cell and a call: plain data, one name per notion.

Plain classes: importing dataclasses costs more than the rest of the package.
"""

from __future__ import annotations

from typing import NamedTuple

from cylstm.params import Array


class Activation(NamedTuple):
    """One of the kernels' activations."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


SIGMOID, TANH = Activation("sigmoid"), Activation("tanh")


class Cell:
    """What distinguishes one cell from another, but for sizes and weights."""

    def __init__(
        self,
        kind: str,  # "rnn", "gru" or "lstm"
        # In slot order; for LSTM then that of c on its way out.
        activations: tuple[Activation, ...],
        reverse: bool = False,
        clip: float = 0.0,  # 0 for none, as the next
        cell_clip: float = 0.0,
        zone: float = 0.0,
        zone_c: float = 0.0,
        coupled: bool = False,
        peepholes: bool = False,
        norm: str | None = None,  # "haste" or "tflite"
        reset_before: bool = False,
        independent: bool = False,
    ) -> None:
        self.kind = kind
        self.activations = activations
        self.reverse = reverse
        self.clip = clip
        self.cell_clip = cell_clip
        self.zone = zone
        self.zone_c = zone_c
        self.coupled = coupled
        self.peepholes = peepholes
        self.norm = norm
        self.reset_before = reset_before
        self.independent = independent


class Extras:
    """What a call asks for besides a plain pass. Shapes are those inside: time first."""

    def __init__(
        self,
        mask: Array | None = None,  # (T, B) of uint8: which steps are read
        starts: Array | None = None,  # (B,) where each row of ragged input starts in x
        y_starts: Array | None = None,  # (B,) and in y, if every k-th output is picked
        pick: str = "all",  # "every", "last", "mean", "max"
        every: int = 1,
        recurrent: Array | None = None,  # (D, B, P) factors of h in recurrent products
        zone_h: Array | None = None,  # (T, B, D * P) 1 where h keeps its value
        zone_c: Array | None = None,  # (T, B, D * H)
        record: bool = False,  # keep pre-activations, too
        checkpoint: int = 0,  # steps between saved states, 0 to keep the tape
    ) -> None:
        self.mask = mask
        self.starts = starts
        self.y_starts = y_starts
        self.pick = pick
        self.every = every
        self.recurrent = recurrent
        self.zone_h = zone_h
        self.zone_c = zone_c
        self.record = record
        self.checkpoint = checkpoint
