"""`Activation`, `Softmax` and `LogSoftmax`: functions of features, without parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from cylstm import checks
from cylstm.kernels import dispatch, sequence
from cylstm.layers import activations
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stateless import Stateless
from cylstm.module import Array, Module


class Activation(Stateless):
    """One of the activations that gates have, applied to every number.

    Parameters
    ----------
    name : str
        "sigmoid", "tanh", "relu", "affine", "leakyrelu", "thresholdedrelu", "scaledtanh",
        "hardsigmoid", "elu", "softsign", "softplus", "hard_sigmoid_keras2" or
        "hard_sigmoid_keras3"; formulas and defaults are ONNX's. At a kink the derivative is that
        of the flat side.
    *numbers : float
        alpha, or alpha and beta, of those that have them.

    Attributes
    ----------
    name : str
    numbers : tuple of float

    Raises
    ------
    TypeError
        `name` is not a str, or a parameter not a number.
    ValueError
        There is no such activation, or it does not take so many parameters.
    """

    _typed = False

    def __init__(self, name: str, *numbers: float) -> None:
        self._f = activations.parse("name", (name, *numbers))
        self.name = name
        self.numbers = tuple(checks.number("numbers", n, -1e30, 1e30) for n in numbers)
        Module.__init__(self, {}, np.dtype(np.float32))

    def __repr__(self) -> str:
        """Show the call that makes such a module."""
        return f"Activation({', '.join(map(repr, (self.name, *self.numbers)))})"

    @classmethod
    def _made(cls, arguments: dict[str, Any], rng: Any) -> Any:
        numbers = arguments.pop("numbers", ())
        return cls(arguments.get("name"), *numbers)  # type: ignore[arg-type]

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        flat = np.ascontiguousarray(x).reshape(1, 1, -1)
        name, alpha, beta = self._f
        y = sequence.activation(dispatch.table(x.dtype.name), (name, alpha, beta), flat)
        return Passed(y.reshape(x.shape), steps, tape=flat)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        flat = np.ascontiguousarray(dy).reshape(1, 1, -1)
        dx = sequence.d_activation(dispatch.table(dy.dtype.name), self._f, tape, flat)
        return dx.reshape(dy.shape), None


class Softmax(Stateless):
    """exp(x) of each feature over the sum of all features': y_i = exp(x_i) / sum_j exp(x_j).

    Losses of the library read scores before it, as PyTorch's do: it is for what is read by others.
    """

    _typed = False

    def __init__(self) -> None:
        Module.__init__(self, {}, np.dtype(np.float32))

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        y = np.exp(_below_zero(x))
        y /= y.sum(axis=-1, keepdims=True)
        return Passed(y, steps, tape=y if run.taped else None)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        inner = (dy * tape).sum(axis=-1, keepdims=True)
        return tape * (dy - inner), None


class LogSoftmax(Stateless):
    """Logarithm of the softmax over features: y_i = x_i - log(sum_j exp(x_j))."""

    _typed = False

    def __init__(self) -> None:
        Module.__init__(self, {}, np.dtype(np.float32))

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        y = _below_zero(x)
        with np.errstate(divide="ignore"):  # of no features
            y -= np.log(np.exp(y).sum(axis=-1, keepdims=True))
        return Passed(y, steps, tape=y if run.taped else None)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        return dy - np.exp(tape) * dy.sum(axis=-1, keepdims=True), None


def _below_zero(x: Array) -> Array:
    """Return a contiguous copy with the largest feature at 0, which no exponential overflows."""
    return np.ascontiguousarray(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
