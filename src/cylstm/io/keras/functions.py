"""Keras' activations by name, as those that the library has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cylstm.io.keras.error import KerasError
from cylstm.io.keras.layer_line import Layer, Options

#: One after the other: a name and its numbers, as the kernels have them.
Chain = list[tuple[Any, ...]]

_SOFTMAX, _LOG_SOFTMAX = ("softmax",), ("log_softmax",)
_CHAINS: dict[str, Chain] = {
    "linear": [],
    "sigmoid": [("sigmoid",)],
    "tanh": [("tanh",)],
    "relu": [("relu",)],
    "softplus": [("softplus",)],
    "softsign": [("softsign",)],
    "elu": [("elu", 1.0)],
    "leaky_relu": [("leakyrelu", 0.2)],
    "selu": [("elu", 1.6732632423543772), ("affine", 1.0507009873554805, 0.0)],
    "relu6": [("hardsigmoid", 1 / 6, 0.0), ("affine", 6.0, 0.0)],
    "hard_tanh": [("hardsigmoid", 0.5, 0.5), ("affine", 2.0, -1.0)],
    "softmax": [_SOFTMAX],
    "log_softmax": [_LOG_SOFTMAX],
}
#: Layers that are activations, each with its own options.
LAYERS = ("Activation", "ELU", "LeakyReLU", "ReLU", "Softmax", "ThresholdedReLU")


def chain(options: Options, name: str, default: Any, version: int | None) -> Chain:
    """Read an option that is an activation: its name, a layer, or nothing.

    Parameters
    ----------
    options : Options
    name : str
        The option.
    default : str or None
        What a file that does not have the option means.
    version : int or None
        Keras' major version, which decides what "hard_sigmoid" is.
    """
    value = options.get(name, default)
    if isinstance(value, Mapping) and value.get("class_name") in LAYERS:
        return of_layer(options.layer.part(value, name), version)
    if value is None:
        return []
    if value == "hard_sigmoid":
        if version is None:
            raise KerasError(
                f"{options.layer}: {name}: expected version= to be given, as the file does not say "
                "it: 'hard_sigmoid' is clip(x / 6 + 0.5) in Keras 3 and clip(0.2 x + 0.5) before"
            )
        return [("hard_sigmoid_keras3" if version >= 3 else "hard_sigmoid_keras2",)]
    if not isinstance(value, str) or value not in _CHAINS:
        raise options.wrong(name, "one of " + ", ".join([*_CHAINS, "hard_sigmoid"]), value)
    return _CHAINS[value]


def of_gates(options: Options, name: str, default: str, version: int | None) -> Any:
    """Read the activation of gates, which is one that works on each number alone."""
    found = chain(options, name, default, version)
    if not found:
        return ("affine", 1.0, 0.0)
    if len(found) > 1 or found[0] in (_SOFTMAX, _LOG_SOFTMAX):
        raise options.wrong(name, "an activation that gates have", options.get(name))
    return found[0]


def of_layer(layer: Layer, version: int | None) -> Chain:
    """Read a layer that is an activation."""
    options, kind = Options(layer, version), layer.kind
    if kind == "Activation":
        found = chain(options, "activation", None, version)
    elif kind == "Softmax":
        options.only("axis", -1)
        found = [_SOFTMAX]
    elif kind == "ELU":
        found = [("elu", options.number("alpha", 1.0))]
    elif kind == "LeakyReLU":
        alpha = options.number("alpha", 0.3)
        found = [("leakyrelu", options.number("negative_slope", alpha))]
    elif kind == "ThresholdedReLU":
        found = [("thresholdedrelu", options.number("theta", 1.0))]
    else:
        options.only("max_value", None)
        options.only("threshold", 0, 0.0)
        slope = options.number("negative_slope", 0.0)
        found = [("leakyrelu", slope)] if slope else [("relu",)]
    options.finish()
    return found
