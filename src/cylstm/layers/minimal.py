"""Minimal recurrent layers: gates see the input alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.cells import SIGMOID, Activation
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.structure import Checks
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng

LINEAR = Activation("affine", 1.0)
_CHECKS: Checks = {"bias": checks.flag}
_LSTM_CHECKS: Checks = {"forget_bias": partial(checks.optional_number, low=-1e6, high=1e6)}


class _Minimal(Recurrent):
    """What minimal layers share: no weights see h, and activations are fixed."""

    _recurrent = False

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        """Read none."""

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {gate: (slot, self._usual[gate]) for slot, gate in enumerate(self.gates)}


class MinGRU(_Minimal):
    """Minimal GRU: gates z and g stacked in this order, which see x_t alone.

    The plain form of Feng et al. (2024); there is no recurrent matrix, so that all products of a
    call are made at once::

        z_t = sigmoid(W_z x_t + b_z)                    "update"
        g_t = W_g x_t + b_g                             "candidate"
        h_t = (1 - z_t) h_{t-1} + z_t g_t

    Note that z_t is what is taken of g_t, where a GRU's is what is kept of h_{t-1}.

    Parameters
    ----------
    input_size : int
        Size I of the input, at least 1.
    hidden_size : int or tuple of int
        Size H of the hidden state, at least 1; a tuple has one for each layer.
    num_layers : int, default 1
        Stacked layers, each reading the outputs of the one below. The length of `hidden_size` if
        that is a tuple.
    bias : bool, default True
        Whether there is a vector b_ih per direction.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last;
        what is left is scaled by 1 / (1 - p). With one layer it does nothing, and a warning says
        so.
    bidirectional : bool, default False
        Also read from the last step to the first, with weights of its own.
    variational : bool, default False
        Whether `dropout` drops the same outputs at every step (Gal and Ghahramani 2016).
    zoneout : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's h_{t-1} instead of its h_t
        (Krueger et al. 2017); a plain call mixes both by their probabilities.
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
        parameters `initial_h_l0` (H,) and so on for each layer and
        direction, 0 at first. Otherwise it is 0.
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
    Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs all we needed?", arXiv:2410.01201
    (2024).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    """

    gates = ("update", "candidate")
    _kind = "mingru"
    _usual = MappingProxyType({"update": SIGMOID, "candidate": LINEAR})

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int | None = None,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        variational: bool = False,
        zoneout: float = 0.0,
        clip: float | None = None,
        merge_mode: str = "concat",
        go_backwards: bool = False,
        learn_initial_state: bool = False,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self._build(locals(), _CHECKS)


class MinLSTM(_Minimal):
    """Minimal LSTM: gates i, f, g stacked in this order, which see x_t alone.

    The plain, length-independent form of Feng et al. (2024); there is no recurrent matrix, so that
    all products of a call are made at once, and no cell state other than h::

        i_t = sigmoid(W_i x_t + b_i)                    "input"
        f_t = sigmoid(W_f x_t + b_f)                    "forget"
        g_t = W_g x_t + b_g                             "candidate"
        h_t = f_t / (f_t + i_t) h_{t-1} + i_t / (f_t + i_t) g_t

    Parameters
    ----------
    input_size : int
        Size I of the input, at least 1.
    hidden_size : int or tuple of int
        Size H of the hidden state, at least 1; a tuple has one for each layer.
    num_layers : int, default 1
        Stacked layers, each reading the outputs of the one below. The length of `hidden_size` if
        that is a tuple.
    bias : bool, default True
        Whether there is a vector b_ih per direction.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last;
        what is left is scaled by 1 / (1 - p). With one layer it does nothing, and a warning says
        so.
    bidirectional : bool, default False
        Also read from the last step to the first, with weights of its own.
    variational : bool, default False
        Whether `dropout` drops the same outputs at every step (Gal and Ghahramani 2016).
    zoneout : float, default 0.0
        Probability in [0, 1) with which `forward` keeps a unit's h_{t-1} instead of its h_t
        (Krueger et al. 2017); a plain call mixes both by their probabilities.
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
        parameters `initial_h_l0` (H,) and so on for each layer and
        direction, 0 at first. Otherwise it is 0.
    forget_bias : float, optional
        Added to the forget gate's initial bias, so that memory is kept until training says
        otherwise. Default None: uniform as all other initial values.
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
    Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs all we needed?", arXiv:2410.01201
    (2024).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    """

    gates = ("input", "forget", "candidate")
    _kind = "minlstm"
    _usual = MappingProxyType({"input": SIGMOID, "forget": SIGMOID, "candidate": LINEAR})
    if TYPE_CHECKING:
        forget_bias: float | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int | None = None,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        variational: bool = False,
        zoneout: float = 0.0,
        clip: float | None = None,
        merge_mode: str = "concat",
        go_backwards: bool = False,
        learn_initial_state: bool = False,
        forget_bias: float | None = None,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self._build(locals(), _CHECKS | _LSTM_CHECKS)

    def _check_options(self) -> None:
        super()._check_options()
        checks.excludes("forget_bias", self.forget_bias, "bias", not self.bias, "False")

    def _initialise(self, params: Mapping[str, Array]) -> None:
        super()._initialise(params)
        for name, value in params.items():
            if self.forget_bias is not None and name.startswith("bias_ih_"):
                hidden = len(value) // len(self.gates)
                value[hidden : 2 * hidden] += self.forget_bias
