"""The recurrent layers: what distinguishes RNN, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cylstm import activations as known
from cylstm import checks
from cylstm.cells import SIGMOID, TANH, Activation
from cylstm.recurrent import Recurrent

Size = int | Sequence[int]


class RNN(Recurrent):
    """Vanilla recurrent layer: h_t = tanh(W x_t + b_ih + U h_{t-1} + b_hh), or another function.

    Parameters
    ----------
    input_size, hidden_size, num_layers, and all others but the following
        As for `Recurrent`, common to all layers.
    nonlinearity : str or tuple (str, alpha) or (str, alpha, beta), default "tanh"
        "tanh", "relu", or any other of `cylstm.activations`: ONNX's list.
    independent : bool, default False
        IndRNN (Li et al. 2018): weight_hh is a vector and multiplies h_{t-1} elementwise.

    Raises
    ------
    ValueError, TypeError
        An argument is not what is said above; named in the message.

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14 (1990).
    Li, Li, Cook, Zhu and Gao, "Independently recurrent neural network (IndRNN)", CVPR (2018).
    """

    gates: tuple[str, ...] = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        num_layers: int | None = None,
        *,
        nonlinearity: Any = "tanh",
        independent: bool = False,
        **options: Any,
    ) -> None:
        self.nonlinearity = nonlinearity
        self._activation = known.parse("nonlinearity", nonlinearity)
        self.independent = checks.flag("independent", independent)
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {"hidden": (0, self._activation)}


class LSTM(Recurrent):
    """Long short-term memory; gates i, f, g, o stacked in this order as in PyTorch.

    ::

        i, f, o = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)      each with its own rows
        g       = tanh(W x_t + b_ih + U h_{t-1} + b_hh)
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(c_t)

    Parameters
    ----------
    input_size, hidden_size, num_layers, and all others but the following
        As for `Recurrent`, common to all layers.
    proj_size : int, default 0
        If not 0, h_t = weight_hr (o tanh(c_t)) of this size P < H (Sak et al. 2014).
    peepholes : bool, default False
        The gates see the cell state (Gers and Schmidhuber 2000): i and f get p c_{t-1} added, o
        gets p c_t; weight_peephole (3 H,) in the order i, f, o.
    coupled : bool, default False
        Coupled input and forget gates (Greff et al. 2017): f = 1 - i, so that gates are i, g, o.
    cell_clip : float, optional
        Bound of c_t, as TFLite's and cuDNN's.
    layer_norm : {"haste", "tflite"}, optional
        "haste": LN(W x) + LN(U h) + b, each over all gates, and o tanh(LN(c_t)), with weights
        weight_ln_ih, weight_ln_hh (4 H,) and weight_ln_c, bias_ln_c (H,). "tflite": each gate's
        sum W x + U h (+ p c) is normalised by itself, times weight_ln (4 H,), plus the bias.
    activations : dict or sequence, optional
        By gate ("input", "forget", "candidate", "output", and "cell" for the tanh of c_t), or
        ONNX's three: of the gates, of the candidate, of the cell. See `cylstm.activations`.
    zoneout_cell : float, default 0.0
        As `zoneout`, for c_t; h_t and o see the new c before it.
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
    Gers and Schmidhuber, "Recurrent nets that time and count", IJCNN (2000).
    Sak, Senior and Beaufays, "Long short-term memory recurrent neural network architectures for
    large scale acoustic modeling", Interspeech (2014).
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450 (2016).
    Greff et al., "LSTM: a search space odyssey", IEEE TNNLS 28 (2017).
    """

    gates: tuple[str, ...] = ("input", "forget", "candidate", "output")
    states = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        num_layers: int | None = None,
        *,
        proj_size: int = 0,
        peepholes: bool = False,
        coupled: bool = False,
        cell_clip: float | None = None,
        layer_norm: str | None = None,
        activations: Any = None,
        zoneout_cell: float = 0.0,
        forget_bias: float | None = None,
        **options: Any,
    ) -> None:
        self.proj_size = checks.size("proj_size", proj_size, 0)
        self.peepholes = checks.flag("peepholes", peepholes)
        self.coupled = checks.flag("coupled", coupled)
        self.cell_clip = checks.bound("cell_clip", cell_clip)
        if layer_norm is not None:
            self.layer_norm = checks.choice("layer_norm", layer_norm, ("haste", "tflite"))
        self.zoneout_cell = checks.probability("zoneout_cell", zoneout_cell)
        if forget_bias is not None:
            forget_bias = checks.number("forget_bias", forget_bias, -1e6, 1e6)
            checks.excludes("forget_bias", forget_bias, "coupled", self.coupled, "True")
            checks.excludes(
                "forget_bias", forget_bias, "bias", options.get("bias") is False, "False"
            )
        if self.coupled:
            self.gates = tuple(gate for gate in self.gates if gate != "forget")
        sigmoids = [gate for gate in self.gates if gate != "candidate"]
        defaults = {gate: SIGMOID if gate in sigmoids else TANH for gate in self.gates}
        self._activations = known.of_gates(
            activations, defaults | {"cell": TANH}, [sigmoids, ["candidate"], ["cell"]]
        )
        super().__init__(input_size, hidden_size, num_layers, **options)
        if forget_bias:
            self._add_forget_bias(forget_bias)

    def _add_forget_bias(self, forget_bias: float) -> None:
        changed = {n: v.copy() for n, v in self.params.items() if n.startswith("bias_ih_")}
        for value in changed.values():
            hidden = len(value) // 4
            value[hidden : 2 * hidden] += forget_bias
        self.assign(changed)

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {name: (slot, act) for slot, (name, act) in enumerate(self._activations.items())}


class GRU(Recurrent):
    """Gated recurrent unit; gates r, z, n stacked in this order as in PyTorch.

    The reset gate acts after the recurrent product, as in cuDNN and PyTorch::

        r, z = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)         each with its own rows
        n    = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))
        h_t  = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    input_size, hidden_size, num_layers, and all others but the following
        As for `Recurrent`, common to all layers.
    reset_after : bool, default True
        False: the reset gate acts before the product, as in Cho et al. (2014) and ONNX's default:
        n = tanh(W_n x_t + b_in + b_hn + U_n (r h_{t-1})).
    layer_norm : "haste", optional
        LN(W x) and LN(U h), each over all gates, in place of W x and U h, with weights
        weight_ln_ih, weight_ln_hh (3 H,); biases are added after.
    activations : dict or sequence, optional
        By gate ("reset", "update", "candidate"), or ONNX's two: of both gates, of the candidate.
        See `cylstm.activations`.

    Raises
    ------
    ValueError, TypeError
        An argument is not what is said above; named in the message.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP (2014).
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450 (2016).
    """

    gates: tuple[str, ...] = ("reset", "update", "candidate")
    _candidate_first: ClassVar[bool] = True

    def __init__(
        self,
        input_size: int,
        hidden_size: Size,
        num_layers: int | None = None,
        *,
        reset_after: bool = True,
        layer_norm: str | None = None,
        activations: Any = None,
        **options: Any,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        if layer_norm is not None:
            self.layer_norm = checks.choice("layer_norm", layer_norm, ("haste",))
        defaults = {"reset": SIGMOID, "update": SIGMOID, "candidate": TANH}
        self._activations = known.of_gates(
            activations, defaults, [["reset", "update"], ["candidate"]]
        )
        super().__init__(input_size, hidden_size, num_layers, **options)

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {
            name: (slot, self._activations[name])
            for slot, name in enumerate(("candidate", "reset", "update"))
        }
