"""Keras' recurrent layers and cells: their options and weights as those of LSTM, GRU and RNN.

Kernels are (inputs, gates H) there, gates i, f, c, o of an LSTM and z, r, h of a GRU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cylstm.io.keras import functions
from cylstm.io.keras.layer_line import Layer, Options
from cylstm.io.keras.sources import Tensor
from cylstm.layers.gru import GRU
from cylstm.layers.lstm import LSTM
from cylstm.layers.rnn import RNN
from cylstm.module import Array

_CELLS = {
    "LSTM": "LSTM", "LSTMCell": "LSTM", "CuDNNLSTM": "LSTM",
    "GRU": "GRU", "GRUCell": "GRU", "CuDNNGRU": "GRU",
    "SimpleRNN": "RNN", "SimpleRNNCell": "RNN",
}  # fmt: skip
_CLASSES: dict[str, Any] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
#: Where Keras has each of our gates.
_ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
#: Keras 1 has a kernel, recurrent kernel and bias for each gate: i, c, f, o and z, r, h.
_KERAS_1 = {"LSTM": (0, 2, 1, 3), "GRU": (0, 1, 2)}
KINDS = ("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU", "RNN")


class Cell(NamedTuple):
    """What a cell needs in order to be made, but for its weights."""

    layer: Layer
    #: "LSTM", "GRU" or "RNN".
    kind: str
    units: int
    #: Arguments of our class.
    arguments: dict[str, Any]
    #: How many arrays it has, 2 without a bias.
    arrays: int
    #: Where they are in a file of Keras 3, below the layer's group.
    place: str

    @property
    def cudnn(self) -> bool:
        """Whether the weights are as cuDNN has them."""
        return self.layer.kind.startswith("CuDNN")

    @property
    def biases(self) -> int:
        """How many biases a unit and gate has."""
        two = self.cudnn or (self.kind == "GRU" and self.arguments.get("reset_after", True))
        return 2 if two else 1


class Recurrent(NamedTuple):
    """A recurrent layer: its cells, and what it does with the axis of time."""

    cells: list[Cell]
    backwards: bool
    sequences: bool
    #: Whether masked steps are zeros, where Keras otherwise repeats the output before.
    zeros: bool


def read(layer: Layer, version: int | None) -> Recurrent:
    """Read the options of a recurrent layer."""
    options = Options(layer, version)
    backwards, sequences = options.flag("go_backwards"), options.flag("return_sequences")
    zeros = options.flag("zero_output_for_mask")
    if layer.kind == "RNN":
        cells = _stacked(layer.part(options.get("cell"), "cell"), version, "cell")
        options.finish()
    else:
        cells = [_cell(layer, options, version, "cell")]
    return Recurrent(cells, backwards, sequences, zeros)


def _stacked(cell: Layer, version: int | None, place: str) -> list[Cell]:
    """Read a cell, or a stack of them, each of which has the next layer's input."""
    options = Options(cell, version)
    if cell.kind != "StackedRNNCells":
        return [_cell(cell, options, version, place)]
    options.only("reverse_state_order", False)
    inner = options.get("cells")
    if not isinstance(inner, list) or not inner:
        raise options.wrong("cells", "a list of cells", inner)
    options.finish()
    found: list[Cell] = []
    used: dict[str, int] = {}
    for i, value in enumerate(inner):
        one = cell.part(value, f"cells/{i}")
        plain = {"LSTMCell": "lstm_cell", "GRUCell": "gru_cell"}.get(one.kind, "simple_rnn_cell")
        n = used[plain] = used.get(plain, -1) + 1
        found.append(
            _cell(one, Options(one, version), version, f"{place}/cells/{plain}" + f"_{n}" * (n > 0))
        )
    return found


def _cell(layer: Layer, options: Options, version: int | None, place: str) -> Cell:
    """Read the options of a cell."""
    if layer.kind not in _CELLS:
        raise options.wrong("class", "one of " + ", ".join(_CELLS), layer.kind)
    kind, cudnn = _CELLS[layer.kind], layer.kind.startswith("CuDNN")
    units, arguments = options.size("units"), {}
    bias = options.flag("use_bias", True)
    candidate = functions.of_gates(options, "activation", "tanh", version)
    if kind == "RNN":
        arguments["nonlinearity"] = candidate
    else:
        gate = "sigmoid" if cudnn or version == 3 else "hard_sigmoid"
        gates = functions.of_gates(options, "recurrent_activation", gate, version)
        names = ("input", "forget", "output") if kind == "LSTM" else ("reset", "update")
        arguments["activations"] = dict.fromkeys(names, gates) | {"candidate": candidate}
        if kind == "LSTM":
            arguments["activations"]["cell"] = candidate
        else:
            arguments["reset_after"] = options.flag("reset_after") or cudnn
    options.finish()
    return Cell(layer, kind, units, arguments, 2 + (bias or cudnn), place)


def state(cell: Cell, tensors: Sequence[Tensor], width: int | None, suffix: str) -> dict[str, Any]:
    """Read the weights of a cell as parameters of one direction.

    Parameters
    ----------
    cell : Cell
    tensors : sequence of Tensor
        Kernel, recurrent kernel and bias, or those of each gate (Keras 1).
    width : int or None
        Features of the input, if they are known.
    suffix : {"_l0", "_l0_reverse"}
    """
    order, h = _ORDER[cell.kind], cell.units
    gates = len(order)
    if len(tensors) == 3 * gates and gates > 1:
        kernels = [t.read((width, h)) for t in tensors[0::3]]
        recurrents = [t.read((h, h)) for t in tensors[1::3]]
        biases = [t.read((h,)) for t in tensors[2::3]]
        arrays = [
            np.concatenate([parts[k] for k in _KERAS_1[cell.kind]], axis=-1)
            for parts in (kernels, recurrents, biases)
        ]
    else:
        arrays = [tensors[0].read((width, gates * h)), tensors[1].read((h, gates * h))]
        if cell.arrays > 2:
            arrays.append(_bias(cell, tensors[2], gates * h))
    kernel, recurrent, *bias = arrays
    turned = _of_cudnn if cell.cudnn else np.transpose
    found = {
        "weight_ih": [turned(part) for part in np.split(kernel, gates, axis=1)],
        "weight_hh": [turned(part) for part in np.split(recurrent, gates, axis=1)],
    }
    for name, row in zip(("bias_ih", "bias_hh"), np.reshape(bias, (-1, gates * h)), strict=False):
        found[name] = np.split(row, gates)
    return {
        name + suffix: np.concatenate([blocks[k] for k in order]) for name, blocks in found.items()
    }


def _bias(cell: Cell, tensor: Tensor, size: int) -> Array:
    """Read a bias, or two, one after the other with cuDNN and below each other otherwise."""
    if cell.biases == 1:
        return tensor.read((size,))
    return tensor.read((2 * size,) if cell.cudnn else (2, size))


def _of_cudnn(kernel: Array) -> Array:
    """Turn a matrix of cuDNN, (H, inputs) in its own order, which has Keras' shape."""
    return kernel.reshape(kernel.shape[::-1])


def layer_of(cell: Cell, found: dict[str, Any], dtype: str, **options: Any) -> Any:
    """Make the layer of a cell with its weights in place."""
    given = {name: np.asarray(value, dtype) for name, value in found.items()}
    cls = _CLASSES[cell.kind]
    return cls.from_state_dict(given, batch_first=True, **cell.arguments, **options)
