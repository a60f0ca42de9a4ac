"""Activations of gates by name: ONNX's list with its defaults, and Keras' two hard sigmoids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cylstm import checks
from cylstm.engine.cells import Activation

#: Names in lower case, and the kernels' activation with default alpha and beta.
KNOWN = {
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
    "affine": Activation("affine", 1.0, 0.0),
    "leakyrelu": Activation("leakyrelu", 0.01),
    "thresholdedrelu": Activation("thresholdedrelu", 1.0),
    "scaledtanh": Activation("scaledtanh", 1.0, 1.0),
    "hardsigmoid": Activation("hardsigmoid", 0.2, 0.5),
    "elu": Activation("elu", 1.0),
    "softsign": Activation("softsign"),
    "softplus": Activation("softplus"),
    "hard_sigmoid_keras2": Activation("hardsigmoid", 0.2, 0.5),
    "hard_sigmoid_keras3": Activation("hardsigmoid", 1 / 6, 0.5),
}
#: How many of alpha and beta each of the kernels' activations has.
PARAMETERS = {"affine": 2, "scaledtanh": 2, "hardsigmoid": 2, "leakyrelu": 1,
              "thresholdedrelu": 1, "elu": 1}  # fmt: skip


def parse(name: str, value: Any) -> Activation:
    """Read an activation: its name, or a tuple of name, alpha and beta.

    Parameters
    ----------
    name : str
        The argument's, for messages.
    value : str or tuple (str, alpha) or (str, alpha, beta)

    Raises
    ------
    ValueError, TypeError
        It is unknown, or has parameters that it does not take.
    """
    word, *numbers = value if isinstance(value, (tuple, list)) and value else (value,)
    if not isinstance(word, str):
        raise TypeError(f"{name}: expected the name of an activation, got {value!r}")
    if word.lower() not in KNOWN:
        raise ValueError(f"{name}: expected one of {', '.join(KNOWN)}, got {word!r}")
    found = KNOWN[word.lower()]
    most = 0 if "keras" in word.lower() else PARAMETERS.get(found.name, 0)
    if len(numbers) > most:
        raise ValueError(f"{name}: expected at most {most} parameters of {word}, got {value!r}")
    given = [checks.number(name, number, -1e30, 1e30) for number in numbers]
    return Activation(found.name, *given, *found[1 + len(given) :])


def public(value: Activation) -> str | tuple[str | float, ...]:
    """Return what `parse` makes this activation of: its name, or a tuple with its numbers."""
    if value == KNOWN[value.name]:
        return value.name
    return value[: 1 + PARAMETERS[value.name]]


def of_gates(
    value: Any, defaults: Mapping[str, Activation], short: Sequence[Sequence[str]]
) -> dict[str, Activation]:
    """Read the activation of each gate.

    Parameters
    ----------
    value : None, mapping of gate to activation, or sequence
        A sequence is ONNX's list: one activation for each of the groups in `short`.
    defaults : mapping of gate to Activation
    short : sequence of sequence of str

    Raises
    ------
    ValueError, TypeError
        There is no such gate or activation.
    """
    found = dict(defaults)
    if value is None:
        return found
    if isinstance(value, Mapping):
        for gate, activation in value.items():
            if gate not in defaults:
                raise ValueError(
                    f"activations: expected gates out of {', '.join(defaults)}, got {gate!r}"
                )
            found[gate] = parse(f"activations[{gate!r}]", activation)
        return found
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(short):
        raise ValueError(
            f"activations: expected a dict by gate or a sequence of {len(short)}, got "
            + (
                repr(value)
                if isinstance(value, str) or not isinstance(value, Sequence)
                else f"{len(value)}: {value!r}"
            )
        )
    for position, (gates, activation) in enumerate(zip(short, value, strict=True)):
        for gate in gates:
            found[gate] = parse(f"activations[{position}]", activation)
    return found
