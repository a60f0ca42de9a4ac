"""The LSTM layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.cells import SIGMOID, TANH, Activation, Cell
from cylstm.layers.gated import Gated
from cylstm.layers.structure import Checks
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng

_LSTM_CHECKS: Checks = {
    "proj_size": partial(checks.size, least=0),
    "peepholes": checks.flag,
    "coupled": checks.flag,
    "cell_clip": checks.bound,
    "layer_norm": partial(checks.optional_choice, choices=("haste", "tflite")),
    "zoneout_cell": checks.probability,
    "forget_bias": partial(checks.optional_number, low=-1e6, high=1e6),
}


class LSTM(Gated):
    """Long short-term memory; gates i, f, g, o stacked in this order as in PyTorch.

    ::

        i, f, o = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)      each with its own rows
        g       = tanh(W x_t + b_ih + U h_{t-1} + b_hh)
        c_t     = f c_{t-1} + i g
        h_t     = o tanh(c_t)

    Parameters
    ----------
    input_size : int
        Size I of the input, at least 1.
    hidden_size : int or tuple of int
        Size H of the hidden state, at least 1; a tuple has one for each layer.
    num_layers : int, default 1
        Stacked layers, each reading the outputs of the one below. The length of `hidden_size` if
        that is a tuple.
    bias : bool or "single", default True
        True: two vectors b_ih and b_hh per direction, as in PyTorch and cuDNN. "single": b_ih
        alone, as in Keras, DyNet and madmom. False: none.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last;
        what is left is scaled by 1 / (1 - p). With one layer it does nothing, and a warning says
        so.
    bidirectional : bool, default False
        Also read from the last step to the first, with weights of its own.
    proj_size : int, default 0
        If not 0, h_t = weight_hr (o tanh(c_t)) of this size P < H (Sak et al. 2014).
    peepholes : bool, default False
        The gates see the cell state (Gers and Schmidhuber 2000): i and f get p c_{t-1} added, o
        gets p c_t; weight_peephole (3 H,) in the order i, f, o.
    coupled : bool, default False
        Coupled input and forget gates (Greff et al. 2017): f = 1 - i, so that gates are i, g, o.
    cell_clip : float, optional
        Bound of c_t, as TFLite's and cuDNN's. Default none.
    layer_norm : {"haste", "tflite"}, optional
        "haste": LN(W x) + LN(U h) + b, each over all gates, and o tanh(LN(c_t)), with weights
        weight_ln_ih, weight_ln_hh (4 H,) and weight_ln_c, bias_ln_c (H,). "tflite": each gate's
        sum W x + U h (+ p c) is normalised by itself, times weight_ln (4 H,), plus the bias.
        Default none (Ba et al. 2016).
    activations : dict or sequence, optional
        By gate ("input", "forget", "candidate", "output", and "cell" for the tanh of c_t), or
        ONNX's three: of the gates, of the candidate, of the cell. Each is a name of
        `cylstm.activations.KNOWN` or a tuple (name, alpha) or (name, alpha, beta).
    variational : bool, default False
        Whether `dropout` drops the same outputs at every step (Gal and Ghahramani 2016).
    recurrent_dropout : float, default 0.0
        Probability in [0, 1) with which `forward` hides a unit of h from the recurrent weights,
        the same at every step (Gal and Ghahramani 2016); what is left is scaled by 1 / (1 - p).
    zoneout : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's h_{t-1} instead of its h_t
        (Krueger et al. 2017); a plain call mixes both by their probabilities.
    zoneout_cell : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's c_{t-1} instead of its c_t
        (Krueger et al. 2017); h_t and o see the new c before it. A plain call mixes both by their
        probabilities.
    dropconnect : float, default 0.0
        Probability in [0, 1) with which `forward` drops an element of weight_hh, the same at
        every step (Wan et al. 2013; Merity et al. 2018); what is left is scaled by 1 / (1 - p).
    clip : float, optional
        Bound of every gate's pre-activation, after its bias; ONNX's `clip`. Default none.
    merge_mode : {"concat", "sum", "mul", "ave", "separate"}, default "concat"
        What is made of both directions' outputs, as in Keras; "separate" gives a tuple, and needs
        one layer.
    go_backwards : bool, default False
        Read from a row's last step to its first. Outputs are at their original time positions;
        Keras' are in the order read.
    learn_initial_state : bool, default False
        Whether the state that rows start from where none is given, and after `reset`, is trained:
        parameters `initial_h_l0` (P,), for an LSTM `initial_c_l0` (H,) as well, and so on for each
        layer and direction, 0 at first. Otherwise it is 0.
    forget_bias : float, optional
        Added to the forget gate's initial bias b_ih, so that memory is kept until training says
        otherwise (Gers et al. 2000; 1 is common). Default None: PyTorch's initial values.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters, states and outputs; other inputs are cast to it.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial weights, U(-1/sqrt(H), 1/sqrt(H)) as PyTorch's, and of the masks that
        `forward` draws. With an int the same numbers come in every run; with None others in every
        run, copy and forked process.

    Attributes
    ----------
    params : mapping of str to ndarray
        Read-only views of the parameters, by PyTorch's names; `assign` changes them.
    flat_params : ndarray of shape (N,)
        The same as one vector.
    grads : mapping of str to ndarray
        Writable views of the gradients, to which `backward` adds.
    flat_grads : ndarray of shape (N,)
        The same as one vector.
    frozen : frozenset of str
        Parameters that optimisers leave alone; see `freeze`.

    Every argument but `rng` is also a read-only attribute: options are fixed at construction.

    Raises
    ------
    TypeError
        An argument is of the wrong type; named in the message.
    ValueError
        An argument is out of range, or does not go with another; both are named in the message.
    MemoryError
        There is no room for the parameters.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997).
    Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000).
    Gers and Schmidhuber, "Recurrent nets that time and count", IJCNN (2000).
    Sak, Senior and Beaufays, "Long short-term memory recurrent neural network architectures for
    large scale acoustic modeling", Interspeech (2014).
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450 (2016).
    Greff et al., "LSTM: a search space odyssey", IEEE TNNLS 28 (2017).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    Wan et al., "Regularization of neural networks using DropConnect", ICML (2013).
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR (2018).
    """

    if TYPE_CHECKING:  # annotations would show in help
        gates: tuple[str, ...]
        states: tuple[str, ...]
        proj_size: int
        peepholes: bool
        coupled: bool
        cell_clip: float | None
        layer_norm: str | None
        zoneout_cell: float
        forget_bias: float | None

    gates = ("input", "forget", "candidate", "output")
    states = ("h", "c")
    _kind = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int | None = None,
        *,
        bias: bool | str = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        peepholes: bool = False,
        coupled: bool = False,
        cell_clip: float | None = None,
        layer_norm: str | None = None,
        activations: Any = None,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        zoneout_cell: float = 0.0,
        dropconnect: float = 0.0,
        clip: float | None = None,
        merge_mode: str = "concat",
        go_backwards: bool = False,
        learn_initial_state: bool = False,
        forget_bias: float | None = None,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self._build(locals(), _LSTM_CHECKS)

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        if self.coupled:
            self.gates = tuple(gate for gate in self.gates if gate != "forget")
        sigmoids = [gate for gate in self.gates if gate != "candidate"]
        defaults = {gate: SIGMOID if gate in sigmoids else TANH for gate in self.gates}
        groups = [sigmoids, ["candidate"], ["cell"]]
        self._set_activations(given["activations"], defaults | {"cell": TANH}, groups)

    def _check_options(self) -> None:
        super()._check_options()
        checks.excludes("forget_bias", self.forget_bias, "coupled", self.coupled, "True")
        checks.excludes("forget_bias", self.forget_bias, "bias", not self.bias, "False")
        if self.proj_size >= min(self.hidden_sizes):
            raise ValueError(
                f"proj_size: expected less than hidden_size={self.hidden_size}, "
                f"got {self.proj_size}"
            )

    def _initialise(self, params: Mapping[str, Array]) -> None:
        super()._initialise(params)
        for name, value in params.items():
            if self.forget_bias is not None and name.startswith("bias_ih_"):
                hidden = len(value) // len(self.gates)
                value[hidden : 2 * hidden] += self.forget_bias

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {name: (slot, act) for slot, (name, act) in enumerate(self._activations.items())}

    def _described(self) -> Cell:
        cell = super()._described()
        return cell._replace(
            kind="lstm_coupled" if self.coupled else "lstm",
            cell_clip=self.cell_clip or 0.0,
            zone_c=self.zoneout_cell,
            peepholes=self.peepholes,
        )
