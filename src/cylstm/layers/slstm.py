"""xLSTM's scalar memory: exponential gates, normalised and stabilised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.cells import SIGMOID, TANH, Activation, Cell
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.structure import Checks
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.module import Rng

LINEAR = Activation("affine", 1.0)
_CHECKS: Checks = {
    "num_heads": checks.size,
    "forget_gate": partial(checks.choice, choices=("sigmoid", "exp")),
    "forget_bias": partial(checks.optional_number, low=-1e6, high=1e6),
}


class SLSTM(Recurrent):
    """sLSTM of xLSTM: gates i, f, g, o stacked in this order, i exponential; heads of units.

    ::

        a_i, a_f = W x_t + b_ih + U h_{t-1} + b_hh        each with its own rows, as are g and o
        g        = tanh(W x_t + b_ih + U h_{t-1} + b_hh)
        o        = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)
        m_t      = max(a_i, log f + m_{t-1}),  f = sigmoid(a_f) or exp(a_f)
        i        = exp(a_i - m_t)
        f'       = exp(log f + m_{t-1} - m_t)
        c_t      = f' c_{t-1} + i g
        n_t      = f' n_{t-1} + i
        h_t      = o c_t / n_t

    The state is a tuple (h, c, n, m): c the cell's, n the normaliser, m the stabiliser, which keeps
    the exponentials within bounds and h does not depend on. Where n_{t-1} is 0, as at the start,
    m_t = a_i. U is block-diagonal, a block for each head.

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
        True: two vectors b_ih and b_hh per direction, as an LSTM's in PyTorch. "single": b_ih
        alone, as in the paper's code. False: none.
    batch_first : bool, default False
        Whether inputs and outputs are (B, T, .) instead of (T, B, .). States never are.
    dropout : float, default 0.0
        Probability in [0, 1] with which `forward` zeroes an output of every layer but the last;
        what is left is scaled by 1 / (1 - p). With one layer it does nothing, and a warning says
        so.
    bidirectional : bool, default False
        Also read from the last step to the first, with weights of its own.
    num_heads : int, default 1
        Heads: the units are cut into so many groups of the same size, and the gates of each see h
        of their own group alone. weight_hh (4 H, H / num_heads) has a block for each, so that it is
        as many times smaller. It has to divide H; groups of a multiple of 16 units are fast.
    forget_gate : {"sigmoid", "exp"}, default "sigmoid"
        What f is of its pre-activation. The paper allows for both; its code has the sigmoid.
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
        Bound of every gate's pre-activation, after its bias. Default none.
    merge_mode : {"concat", "sum", "mul", "ave", "separate"}, default "concat"
        What is made of both directions' outputs, as in Keras; "separate" gives a tuple, and needs
        one layer.
    go_backwards : bool, default False
        Read from a row's last step to its first. Outputs are at their original time positions;
        Keras' are in the order read.
    learn_initial_state : bool, default False
        Whether the state that rows start from where none is given, and after `reset`, is trained:
        parameters `initial_h_l0`, `initial_c_l0`, `initial_n_l0` and `initial_m_l0` (H,), and so on
        for each layer and direction, 0 at first. Otherwise it is 0.
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
    Beck et al., "xLSTM: extended long short-term memory", NeurIPS (2024), section 2.2; its code,
    github.com/NX-AI/xlstm.
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    Wan et al., "Regularization of neural networks using DropConnect", ICML (2013).
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR (2018).
    """

    gates = ("input", "forget", "candidate", "output")
    states = ("h", "c", "n", "m")
    _kind = "slstm"
    _usual = MappingProxyType(
        {"input": LINEAR, "forget": LINEAR, "candidate": TANH, "output": SIGMOID}
    )
    if TYPE_CHECKING:
        num_heads: int
        forget_gate: str
        forget_bias: float | None

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
        num_heads: int = 1,
        forget_gate: str = "sigmoid",
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        dropconnect: float = 0.0,
        clip: float | None = None,
        merge_mode: str = "concat",
        go_backwards: bool = False,
        learn_initial_state: bool = False,
        forget_bias: float | None = None,
        dtype: Any = "float32",
        rng: Rng = None,
    ) -> None:
        self._build(locals(), _CHECKS)

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        self._heads = self.num_heads
        for hidden in self.hidden_sizes:
            if hidden % self.num_heads:
                raise ValueError(
                    f"num_heads: expected a divisor of hidden_size={hidden}, got {self.num_heads}"
                )

    def _check_options(self) -> None:
        super()._check_options()
        checks.excludes("forget_bias", self.forget_bias, "bias", not self.bias, "False")

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {gate: (slot, self._usual[gate]) for slot, gate in enumerate(self.gates)}

    def _described(self) -> Cell:
        cell = super()._described()
        return cell._replace(kind="slstm_exp") if self.forget_gate == "exp" else cell

    def _initialise(self, params: Mapping[str, Array]) -> None:
        super()._initialise(params)
        for name, value in params.items():
            if self.forget_bias is not None and name.startswith("bias_ih_"):
                hidden = len(value) // len(self.gates)
                value[hidden : 2 * hidden] += self.forget_bias
