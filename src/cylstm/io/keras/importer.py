"""`from_keras`: the way from a file or model to a network."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from cylstm.io.keras import builder, layer_line, sources
from cylstm.io.keras.error import KerasError, named
from cylstm.layers.sequential import Sequential


def from_keras(
    model: Any,
    *,
    config: str | Mapping[str, Any] | None = None,
    version: int | None = None,
    max_bytes: int = 2**31,
) -> Sequential:
    """Make the network that a Keras model is.

    Files are read by this library itself: neither Keras, TensorFlow nor h5py is needed. Layers that
    it knows: LSTM, GRU, SimpleRNN, CuDNNLSTM, CuDNNGRU, RNN of cells and of stacks of these,
    Bidirectional, TimeDistributed, Dense, Conv1D, Embedding, Masking, BatchNormalization,
    LayerNormalization, activations, global pooling over time, models inside models, and what does
    something in training only. They must stand in a line.

    Parameters
    ----------
    model : path, or a model or layer of Keras
        A .keras file; a .h5 file with a model or, with `config`, with weights alone (.weights.h5
        too); or what is in memory, of Keras 3 or tf_keras, built.
    config : str or mapping, optional
        The model, as its `to_json()` gives it or what this means, in place of what the file says.
    version : {1, 2, 3}, optional
        Keras' major version, which decides what "hard_sigmoid" is. Default as the file says.
    max_bytes : int, default 2**31
        How many bytes of configuration and weights may be read.

    Returns
    -------
    Sequential
        `batch_first`, its modules under the names of Keras' layers, those of models inside with "/"
        between. float64 if the first weights are, otherwise float32. `return_sequences=False` is a
        `Pool("final")` after the layer. Dropout stays, for training.

    Raises
    ------
    KerasError
        A ValueError. The file is damaged or larger than `max_bytes`, or the model has what
        cannot be said here: the message names the layer by its path, its class, and the option.
    OSError
        The file cannot be opened.
    TypeError, ValueError
        `version` or `max_bytes` is something else.

    Warns
    -----
    UserWarning
        A layer reads a mask that Keras makes of the input (Masking, mask_zero). Here it is an
        argument of the call: `mask=` or `lengths=`.

    Notes
    -----
    Keras' `y` at masked steps repeats the one before; here it is 0. Of a model with
    `stateful=True`, pass the state that the call before returned.
    """
    if version not in (None, 1, 2, 3) or isinstance(version, bool):
        raise ValueError(f"version: expected 1, 2 or 3, got {version!r}")
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 0:
        raise ValueError(f"max_bytes: expected an integer of at least 0, got {max_bytes!r}")
    budget = sources.Budget(max_bytes)
    if not isinstance(model, (str, os.PathLike)):
        found, major = _described(model)
        given = found if config is None else config
        return _made(given, version or major, sources.Given(model, budget))
    with sources.opened(model, budget) as (stored, own, root):
        given = stored if config is None else config
        if given is None:
            raise KerasError(f"{os.fspath(model)!r} has weights alone: pass config=model.to_json()")
        return _made(given, version or own, sources.weights(root, budget))


def _made(config: Any, version: int | None, weights: sources.Weights) -> Sequential:
    with named("configuration"):
        found = sources.parsed(config) if isinstance(config, (str, bytes)) else config
        line = layer_line.lined(found)
    return builder.network(line, weights, version)


def _described(model: Any) -> tuple[Any, int]:
    """Return the configuration and version of what Keras has in memory."""
    for cls in type(model).__mro__:
        package = sys.modules.get(cls.__module__.partition(".")[0])
        if package is not None and package.__name__ in ("keras", "tf_keras"):
            with named(type(model).__name__):
                described = package.saving.serialize_keras_object(model)
            return described, 3 if package.__name__ == "keras" else 2
    raise TypeError(
        f"model: expected a path, or a model or layer of Keras, got {type(model).__name__}"
    )
