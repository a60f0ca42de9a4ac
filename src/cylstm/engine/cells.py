"""What the kernels are told about a cell and a call: plain data, one name per notion."""

from typing import NamedTuple

from cylstm.module import Array


class Activation(NamedTuple):
    """One of the kernels' activations."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


SIGMOID, TANH = Activation("sigmoid"), Activation("tanh")


class Cell(NamedTuple):
    """What distinguishes one cell from another, but for sizes and weights.

    What a unit keeps of its gates is in slots. The input product and the recurrent one add up
    in the slots that they share; so does `bias_ih` with the one and `bias_hh` with the other.
    """

    kind: str  # one of kernels/cells
    states: int  # arrays that the state consists of, h first
    x_slots: tuple[int, ...]  # slot of each gate in the input product, in a row with a rotation
    h_slots: tuple[int, ...]  # slot of each gate in the recurrent product
    products: int  # recurrent ones of a step: 0; 1 of all gates; 2 of one gate each, then a third
    usual: tuple[str, ...]  # activations of the textbook cell, in slot order
    activations: tuple[Activation, ...]  # in slot order; then the one of a cell state before h
    reverse: bool = False
    clip: float = 0.0  # 0 for none
    cell_clip: float = 0.0
    zone: float = 0.0
    zone_c: float = 0.0
    peepholes: bool = False
    norm: str | None = None  # "haste" or "tflite"
    independent: bool = False
    heads: int = 1  # diagonal blocks of weight_hh, of a multiple of the vector's size each

    @property
    def slots(self) -> int:
        """Slots that products and biases are summed in."""
        return max(*self.x_slots, *self.h_slots) + 1

    @property
    def turn(self) -> int:
        """The gate whose input product is in slot 0; the others follow in order."""
        return self.x_slots.index(0)


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
    attention: Array | None = None  # (T, B, 1) a number for each step that the cell reads
    record: bool = False  # also keep pre-activations
    checkpoint: int = 0  # steps between saved states, 0 to keep the tape
