"""Initial values other than the constructor's.

Each function changes one kind of parameter in all layers and directions of a recurrent layer by one
`assign`, and leaves the rest alone, so that they can be combined. Keras' initial values are::

    cylstm.init.glorot_uniform(lstm, per_gate=False, rng=0)
    cylstm.init.orthogonal(lstm, per_gate=False, rng=1)
    cylstm.init.zeros(lstm, "bias")
    cylstm.init.forget_bias(lstm, 1.0)

H is the hidden size, G the number of gates. Biases that the cell only ever adds up are set in
`bias_ih`, with zeros in `bias_hh` if there is one. Layer norm's weights (1) and biases (0) are
never touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from cylstm import checks
from cylstm.layers.gru import GRU
from cylstm.layers.lstm import LSTM
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array, draw_uniform

if TYPE_CHECKING:
    from cylstm.module import Rng

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole")
_SUFFIX = re.compile(r"_l\d+(_reverse)?$")


def uniform(
    layer: Recurrent,
    which: str | Iterable[str] | None = None,
    *,
    bound: float | None = None,
    rng: Rng = None,
) -> None:
    """Draw from U(-bound, bound), by default as PyTorch and the constructors do.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    which : str or iterable of str, optional
        What to change: "weight_ih", "weight_hh", "weight_hr" (projection), "weight_peephole",
        "bias_ih", "bias_hh", or "bias" for both of these. Default all of them that there are.
    bound : float, optional
        At least 0. Default 1 / sqrt(H), with each layer's own H.
    rng : None, int or numpy.random.Generator, default None
        Source of the values; default the layer's own.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message. Nothing has been changed then.
    """
    if bound is not None:
        bound = checks.number("bound", bound, 0, 1e30)
    names = _chosen(layer, which)
    source = _source(layer, rng)
    with layer._changing():
        for name in names:
            b = 1 / math.sqrt(_hidden(layer, name)) if bound is None else bound
            draw_uniform(source, _into(layer)[name], -b, b)


def zeros(layer: Recurrent, which: str | Iterable[str] = "bias") -> None:
    """Set to 0, by default the biases.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    which : str or iterable of str, default "bias"
        What to change: "weight_ih", "weight_hh", "weight_hr" (projection), "weight_peephole",
        "bias_ih", "bias_hh", or "bias" for both of these. What the layer does not have is refused.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message. Nothing has been changed then.
    """
    names = _chosen(layer, which)
    with layer._changing():
        for name in names:
            _into(layer)[name][...] = 0


def glorot_uniform(
    layer: Recurrent,
    which: str | Iterable[str] = "weight_ih",
    *,
    per_gate: bool = True,
    rng: Rng = None,
) -> None:
    """Draw matrices from U(-b, b), b = sqrt(6 / (columns + rows)), by default the input weights.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    which : str or iterable of str, default "weight_ih"
        "weight_ih", "weight_hh" or "weight_hr".
    per_gate : bool, default True
        Count the rows of one gate, H, as Haste does; False: of all gates, G H, as Keras does.
    rng : None, int or numpy.random.Generator, default None
        Source of the values; default the layer's own.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message. Nothing has been changed then.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS (2010), equation 16.
    """

    def draw(source: np.random.Generator, into: Array) -> None:
        b = math.sqrt(6 / sum(into.shape))
        draw_uniform(source, into, -b, b)

    _draw_matrices(layer, which, per_gate, rng, draw)


def orthogonal(
    layer: Recurrent,
    which: str | Iterable[str] = "weight_hh",
    *,
    per_gate: bool = True,
    gain: float = 1.0,
    rng: Rng = None,
) -> None:
    """Draw orthogonal matrices, by default the recurrent weights.

    Q of the QR decomposition of a matrix of N(0, 1), its columns multiplied by the signs of R's
    diagonal, which makes it uniform over all orthogonal matrices; times `gain`. A matrix with
    fewer rows than columns gets orthonormal rows, any other orthonormal columns.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    which : str or iterable of str, default "weight_hh"
        "weight_ih", "weight_hh" or "weight_hr".
    per_gate : bool, default True
        One matrix per gate, as in Haste, so that each gate keeps the norm of h; False: one
        (G H, H) matrix, as in Keras, so that all gates together keep it.
    gain : float, default 1.0
        At least 0.
    rng : None, int or numpy.random.Generator, default None
        Source of the values; default the layer's own.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message. Nothing has been changed then.

    References
    ----------
    Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", ICLR (2014).
    Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the
    AMS 54 (2007), for the signs.
    """
    gain = checks.number("gain", gain, 0, 1e30)

    def draw(source: np.random.Generator, into: Array) -> None:
        rows, columns = into.shape
        q, r = np.linalg.qr(source.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.copysign(gain, np.diagonal(r))
        into[...] = q if rows >= columns else q.T

    _draw_matrices(layer, which, per_gate, rng, draw)


def forget_bias(layer: Recurrent, value: float = 1.0) -> None:
    """Set the bias of an LSTM's forget gates, so that memory is kept until training says otherwise.

    b_f = value; with `coupled=True`, where f = 1 - i, b_i = -value, which makes the same f. Unlike
    the constructor's `forget_bias`, this replaces the random value and does not add to it.

    Parameters
    ----------
    layer : LSTM
    value : float, default 1.0

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, or the layer has no forget gate or no bias; named in the message.
        Nothing has been changed then.

    References
    ----------
    Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000).
    Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network
    architectures", ICML (2015), for the value 1.
    """
    value = checks.number("value", value, -1e6, 1e6)
    _check_biases("forget_bias", layer, LSTM)
    if "forget" in layer.gates:
        _set_gate_biases(layer, lambda size: {"forget": np.full(size, value)})
    else:
        _set_gate_biases(layer, lambda size: {"input": np.full(size, -value)})


def chrono(layer: Recurrent, max_time: float, *, rng: Rng = None) -> None:
    """Set the biases of the gates that keep memory for a range of time scales up to `max_time`.

    With u ~ U(1, max_time - 1) for each unit::

        LSTM                b_f = log(u), b_i = -log(u)
        LSTM, coupled=True  b_i = -log(u)                   so that f = 1 - i is the same
        GRU                 b_z = log(u)                    h_t = (1 - z) n + z h_{t-1}

    A unit whose keeping gate is sigmoid(log(u)) = u / (u + 1) forgets with a time constant of about
    u + 1 steps. The other gates' biases stay as they are. Meant for sigmoid gates.

    Parameters
    ----------
    layer : LSTM or GRU
    max_time : float
        The longest time over which something has to be remembered, in steps; at least 2.
    rng : None, int or numpy.random.Generator, default None
        Source of the values; default the layer's own.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit, or the layer has no gates or no bias; named in the message.
        Nothing has been changed then.

    References
    ----------
    Tallec and Ollivier, "Can recurrent neural networks warp time?", ICLR (2018), section 2.
    """
    max_time = checks.number("max_time", max_time, 2, 1e15)
    _check_biases("chrono", layer, LSTM, GRU)
    source = _source(layer, rng)

    def draw(size: int) -> dict[str, Array]:
        keep = np.log(source.uniform(1, max_time - 1, size))
        if isinstance(layer, GRU):
            return {"update": keep}
        return {"forget": keep, "input": -keep} if "forget" in layer.gates else {"input": -keep}

    _set_gate_biases(layer, draw)


def indrnn(layer: Recurrent, max_time: float, *, rng: Rng = None) -> None:
    """Draw the recurrent weights of `RNN(independent=True)` for sequences of `max_time` steps.

    U(0, 2^(1/T)) in every layer but the last, U(2^(-1/T), 2^(1/T)) in the last, T = `max_time`:
    over T steps a unit of the last layer scales what it holds by 1/2 to 2, a unit below by 0 to 2.

    Parameters
    ----------
    layer : RNN with independent=True
    max_time : float
        Steps T, at least 1.
    rng : None, int or numpy.random.Generator, default None
        Source of the values; default the layer's own.

    Raises
    ------
    TypeError, ValueError
        An argument does not fit; named in the message. Nothing has been changed then.

    References
    ----------
    Li, Li, Cook, Zhu and Gao, "Independently recurrent neural network (IndRNN)", CVPR (2018),
    sections 3 and 4.
    """
    max_time = checks.number("max_time", max_time, 1, 1e15)
    names = _chosen(layer, "weight_hh")
    if layer.params[names[0]].ndim != 1:
        raise ValueError(f"indrnn: expected an RNN with independent=True, got {layer!r}")
    source = _source(layer, rng)
    high = 2 ** (1 / max_time)
    last = f"weight_hh_l{layer.num_layers - 1}"
    with layer._changing():
        for name in names:
            low = 1 / high if name.startswith(last) else 0.0
            draw_uniform(source, _into(layer)[name], low, high)


def _source(layer: Recurrent, rng: Rng) -> np.random.Generator:
    return layer._rng if rng is None else checks.generator("rng", rng)


def _into(layer: Recurrent) -> dict[str, Array]:
    """Return views to write to while the layer is `_changing`."""
    return layer.split(layer._storage)


def _hidden(layer: Recurrent, name: str) -> int:
    """Hidden size of the layer that a parameter belongs to."""
    suffix = name.removeprefix(_kind(name))
    rows: int = layer.params[f"weight_ih{suffix}"].shape[0]
    return rows // len(layer.gates)


def _kind(name: str) -> str:
    """Take layer and direction off a parameter's name."""
    return _SUFFIX.sub("", name)


def _chosen(layer: Recurrent, which: str | Iterable[str] | None) -> list[str]:
    """Names of the parameters of the chosen kinds, in storage order."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    kinds = {name: _kind(name) for name in layer.params}
    there = [kind for kind in _KINDS if kind in kinds.values()]
    if which is None:
        return [name for name, kind in kinds.items() if kind in there]
    wanted: set[str] = set()
    for word in [which] if isinstance(which, str) else list(which):
        found = [kind for kind in there if kind == word or (word == "bias" and "bias" in kind)]
        if not found:
            raise ValueError(
                f"which: expected some of this layer's {', '.join(map(repr, there))}, got {word!r}"
            )
        wanted.update(found)
    return [name for name, kind in kinds.items() if kind in wanted]


def _draw_matrices(
    layer: Recurrent,
    which: str | Iterable[str],
    per_gate: bool,
    rng: Rng,
    draw: Callable[[np.random.Generator, Array], None],
) -> None:
    per_gate = checks.flag("per_gate", per_gate)
    names = _chosen(layer, which)
    for name in names:
        if layer.params[name].ndim != 2:
            why = ", a vector with independent=True" if name.startswith("weight_hh") else ""
            raise ValueError(f"which: expected matrices, got {_kind(name)!r}{why}")
    source = _source(layer, rng)
    with layer._changing():
        for name in names:
            gated = per_gate and not name.startswith("weight_hr")
            for block in np.split(_into(layer)[name], len(layer.gates) if gated else 1):
                draw(source, block)


def _check_biases(function: str, layer: Recurrent, *cells: type[Recurrent]) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    if not isinstance(layer, cells):
        expected = " or ".join(cell.__name__ for cell in cells)
        raise ValueError(f"{function}: expected a layer of type {expected}, got {layer!r}")
    if not layer.bias:
        raise ValueError(f"{function}: expected a layer with biases, got bias=False: {layer!r}")


def _set_gate_biases(layer: Recurrent, make: Callable[[int], dict[str, Array]]) -> None:
    """Set whole biases of some gates: `make` gets H and returns them by gate."""
    made = {name: make(_hidden(layer, name)) for name in _chosen(layer, "bias_ih")}
    with layer._changing():
        into = _into(layer)
        for name, of_gates in made.items():
            size = _hidden(layer, name)
            for gate, bias in of_gates.items():
                start = layer.gates.index(gate) * size
                into[name][start : start + size] = bias
                other = name.replace("bias_ih", "bias_hh")
                if other in into:
                    into[other][start : start + size] = 0
