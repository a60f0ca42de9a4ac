"""The recurrent layers: what distinguishes RNN, LSTM and GRU."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from cylstm import checks
from cylstm.params import Array
from cylstm.recurrent import Recurrent


class RNN(Recurrent):
    """Vanilla recurrent layer: h_t = tanh(W x_t + b_ih + U h_{t-1} + b_hh), or relu.

    Parameters
    ----------
    input_size, hidden_size : int
        Sizes I and H, at least 1.
    num_layers : int, default 1
        Stacked layers, each reading the outputs of the one below.
    nonlinearity : {"tanh", "relu"}, default "tanh"
    bias : bool, default True
        Whether there are b_ih and b_hh.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last.
    bidirectional : bool, default False
        Also read backwards; outputs are concatenated.
    dtype : {"float32", "float64"}, default "float32"
    rng : None, int or numpy.random.Generator, default None
        Source of the initial weights, U(-1/sqrt(H), 1/sqrt(H)) as PyTorch's, and of dropout.

    Raises
    ------
    ValueError, TypeError
        An argument is not what is said above; named in the message.

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14 (1990).
    """

    gates = ("h",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        self.nonlinearity = checks.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


class LSTM(Recurrent):
    """Long short-term memory; gates i, f, g, o stacked in this order as in PyTorch.

    ::

        i, f, o = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)      each with its own rows
        g       = tanh(W x_t + b_ih + U h_{t-1} + b_hh)
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(c_t)

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng
        As for `RNN`.
    forget_bias : float, optional
        Added to the forget gate's initial bias, so that memory is kept until training says
        otherwise (Gers et al. 2000; 1 is common). Default None: PyTorch's initial values.

    Raises
    ------
    ValueError, TypeError
        An argument is not what is said above; named in the message.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997).
    Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000).
    """

    gates = ("input", "forget", "candidate", "output")
    states = ("h", "c")
    _traced_slots: ClassVar[dict[str, int]] = {name: slot for slot, name in enumerate(gates)}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        forget_bias: float | None = None,
        **options: Any,
    ) -> None:
        if forget_bias is not None:
            forget_bias = checks.number("forget_bias", forget_bias, -1e6, 1e6)
        super().__init__(input_size, hidden_size, num_layers, **options)
        if forget_bias is None:
            return
        if not self.bias:
            raise ValueError(f"forget_bias: expected None with bias=False, got {forget_bias}")
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        names = [f"bias_ih_{suffix}" for suffix in self._suffixes()]
        changed = {name: self.params[name].copy() for name in names}
        for value in changed.values():
            value[forget] += forget_bias
        self.assign(changed)

    def _cell(self) -> str:
        return "lstm"


class GRU(Recurrent):
    """Gated recurrent unit; gates r, z, n stacked in this order as in PyTorch.

    The reset gate acts after the recurrent product, as in cuDNN and PyTorch::

        r, z = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)         each with its own rows
        n    = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))
        h_t  = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng
        As for `RNN`.

    Raises
    ------
    ValueError, TypeError
        An argument is not what is said above; named in the message.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP (2014).
    """

    gates = ("reset", "update", "candidate")
    _traced_slots: ClassVar[dict[str, int]] = {"reset": 1, "update": 2, "candidate": 0}

    def _cell(self) -> str:
        return "gru"

    def _slot_bias(self, b_ih: Array, b_hh: Array) -> Array:
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(b_ih, 3), np.split(b_hh, 3)
        return np.concatenate([n_x, r_x + r_h, z_x + z_h, n_h])
