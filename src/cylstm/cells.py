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
    activations: tuple[Activation, ...]  # in slot order; for LSTM then the one of c before h
    reverse: bool = False
    clip: float = 0.0  # 0 for none
    cell_clip: float = 0.0
    zone: float = 0.0
    zone_c: float = 0.0
    coupled: bool = False
    peepholes: bool = False
    norm: str | None = None  # "haste" or "tflite"
    reset_before: bool = False
    independent: bool = False


class Extras(NamedTuple):
    """What a call asks for in addition to a plain pass. Arrays have time first."""

    mask: Array | None = None  # (T, B) of uint8: which steps are read
    # Rows that are segments of x: (S,) each, S in place of B in what follows
    starts: Array | None = None  # first time of each
    columns: Array | None = None  # its place among x's rows; None: the only one
    spans: Array | None = None  # with a mask: its steps of time, of which lengths are read
    y_starts: Array | None = None  # its first output in y, if every k-th is picked
    pick: str = "all"  # "every", "last", "mean", "max", "final"
    every: int = 1
    recurrent: Array | None = None  # (D, B, P) factors of h in recurrent products
    zone_h: Array | None = None  # (T, B, D * P) 1 where h keeps its value
    zone_c: Array | None = None  # (T, B, D * H)
    record: bool = False  # also keep pre-activations
    checkpoint: int = 0  # steps between saved states, 0 to keep the tape
