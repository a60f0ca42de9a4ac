"""The vanilla recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.cells import TANH, Activation, Cell
from cylstm.layers import activations as known
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.structure import Checks

if TYPE_CHECKING:
    from cylstm.module import Rng

_RNN_CHECKS: Checks = {"independent": checks.flag}


class RNN(Recurrent):
    """Vanilla recurrent layer: h_t = tanh(W x_t + b_ih + U h_{t-1} + b_hh), or another function.

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
    nonlinearity : str or tuple (str, alpha) or (str, alpha, beta), default "tanh"
        "tanh", "relu", or any other of `cylstm.activations.KNOWN`: ONNX's list.
    independent : bool, default False
        IndRNN (Li et al. 2018): weight_hh is a vector and multiplies h_{t-1} elementwise. Does not
        go with `dropconnect`.
    variational : bool, default False
        Whether `dropout` drops the same outputs at every step (Gal and Ghahramani 2016).
    recurrent_dropout : float, default 0.0
        Probability in [0, 1) with which `forward` hides a unit of h from the recurrent weights,
        the same at every step (Gal and Ghahramani 2016); what is left is scaled by 1 / (1 - p).
    zoneout : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's h_{t-1} instead of its h_t
        (Krueger et al. 2017); a plain call mixes both by their probabilities.
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
    Elman, "Finding structure in time", Cognitive Science 14 (1990).
    Li, Li, Cook, Zhu and Gao, "Independently recurrent neural network (IndRNN)", CVPR (2018).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    Wan et al., "Regularization of neural networks using DropConnect", ICML (2013).
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR (2018).
    """

    gates = ("hidden",)
    _kind = "rnn"
    _usual = MappingProxyType({"hidden": TANH})
    if TYPE_CHECKING:
        independent: bool

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
        nonlinearity: Any = "tanh",
        independent: bool = False,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        dropconnect: float = 0.0,
        clip: float | None = None,
        merge_mode: str = "concat",
        go_backwards: bool = False,
        learn_initial_state: bool = False,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self._build(locals(), _RNN_CHECKS)

    @property
    def nonlinearity(self) -> Any:
        """Activation: its name, or a tuple of the name and numbers that are not the defaults."""
        return known.public(self._activation)

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        self._activation = known.parse("nonlinearity", given["nonlinearity"])

    def _check_options(self) -> None:
        super()._check_options()
        checks.excludes("independent", self.independent, "dropconnect", self.dropconnect > 0,
                        self.dropconnect)  # fmt: skip

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {"hidden": (0, self._activation)}

    def _described(self) -> Cell:
        cell = super()._described()
        return cell._replace(products=0, independent=True) if self.independent else cell
