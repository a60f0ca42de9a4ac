"""The GRU layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.engine.cells import SIGMOID, TANH, Activation, Cell
from cylstm.layers.gated import Gated
from cylstm.layers.structure import Checks

if TYPE_CHECKING:
    from cylstm.module import Rng

_GRU_CHECKS: Checks = {
    "reset_after": checks.flag,
    "layer_norm": partial(checks.optional_choice, choices=("haste",)),
}


class GRU(Gated):
    """Gated recurrent unit; gates r, z, n stacked in this order as in PyTorch.

    The reset gate acts after the recurrent product, as in cuDNN and PyTorch::

        r, z = sigmoid(W x_t + b_ih + U h_{t-1} + b_hh)         each with its own rows
        n    = tanh(W_n x_t + b_in + r (U_n h_{t-1} + b_hn))
        h_t  = (1 - z) n + z h_{t-1}

    With `bias="single"` there is no b_hh, and so no b_hn inside the brackets.

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
    reset_after : bool, default True
        False: the reset gate acts before the product, as in Cho et al. (2014) and ONNX's default:
        n = tanh(W_n x_t + b_in + b_hn + U_n (r h_{t-1})).
    layer_norm : "haste", optional
        LN(W x) and LN(U h), each over all gates, in place of W x and U h, with weights
        weight_ln_ih, weight_ln_hh (3 H,); biases are added after (Ba et al. 2016). Default none.
        Does not go with `reset_after=False`.
    activations : dict or sequence, optional
        By gate ("reset", "update", "candidate"), or ONNX's two: of both gates, of the candidate.
        Each is a name of `cylstm.activations.KNOWN` or a tuple (name, alpha) or (name, alpha,
        beta).
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
    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP (2014).
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450 (2016).
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
    networks", NeurIPS (2016).
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR
    (2017).
    Wan et al., "Regularization of neural networks using DropConnect", ICML (2013).
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR (2018).
    """

    gates = ("reset", "update", "candidate")
    _kind = "gru"
    if TYPE_CHECKING:
        reset_after: bool
        layer_norm: str | None

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
        reset_after: bool = True,
        layer_norm: str | None = None,
        activations: Any = None,
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
        self._build(locals(), _GRU_CHECKS)

    def _read_activations(self, given: Mapping[str, Any]) -> None:
        defaults = {"reset": SIGMOID, "update": SIGMOID, "candidate": TANH}
        groups = [["reset", "update"], ["candidate"]]
        self._set_activations(given["activations"], defaults, groups)

    def _check_options(self) -> None:
        super()._check_options()
        checks.excludes("layer_norm", self.layer_norm, "reset_after", not self.reset_after,
                        "False")  # fmt: skip

    def _slots(self) -> dict[str, tuple[int, Activation]]:
        return {
            name: (slot, self._activations[name])
            for slot, name in enumerate(("candidate", "reset", "update"))
        }

    def _described(self) -> Cell:
        """Put the candidate's input into slot 0, and r and z, which both products add to, next."""
        cell = super()._described()._replace(x_slots=(1, 2, 0), h_slots=(1, 2, 3))
        if self.reset_after:
            return cell
        return cell._replace(kind=f"{self._kind}_reset_before", h_slots=(1, 2, 0), products=2)
