"""What the kernels are told about a cell and a call: plain data, one name per notion."""

from typing import NamedTuple

from cylstm.params import Array


class Activation(NamedTuple):
    """One of the kernels' activations."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


SIGMOID, TANH = Activation("sigmoid"), Activation("tanh")


class Cell(NamedTuple):
    """What distinguishes one cell from another, but for sizes and weights."""

    kind: str  # "rnn", "gru" or "lstm"
    activations: tuple[Activation, ...]  # in slot order; for LSTM then that of c on its way out
    reverse: bool = False
    clip: float = 0.0  # 0 for none, as the next
    cell_clip: float = 0.0
    zone: float = 0.0
    zone_c: float = 0.0
    coupled: bool = False
    peepholes: bool = False
    norm: str | None = None  # "haste" or "tflite"
    reset_before: bool = False
    independent: bool = False


class Extras(NamedTuple):
    """What a call asks for besides a plain pass. Shapes are those inside: time first."""

    mask: Array | None = None  # (T, B) of uint8: which steps are read
    starts: Array | None = None  # (S,) where each row of the call starts along x's first axis
    columns: Array | None = None  # (S,) and along its second; None is 0
    spans: Array | None = None  # (S,) with a mask beside starts: steps of the mask it covers
    y_starts: Array | None = None  # (S,) where it starts in y, if every k-th output is picked
    pick: str = "all"  # "every", "last", "final", "mean", "max"
    every: int = 1
    recurrent: Array | None = None  # (D, B, P) factors of h in recurrent products
    zone_h: Array | None = None  # (T, B, D * P) 1 where h keeps its value
    zone_c: Array | None = None  # (T, B, D * H)
    record: bool = False  # keep pre-activations, too
    checkpoint: int = 0  # steps between saved states, 0 to keep the tape
