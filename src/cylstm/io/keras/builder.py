"""From Keras' layers to modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cylstm.io.keras import functions, recurrence
from cylstm.io.keras.error import KerasError, named
from cylstm.io.keras.layer_line import Layer, Options
from cylstm.io.keras.sources import Tensor, Weights
from cylstm.layers.activation import Activation, LogSoftmax, Softmax
from cylstm.layers.conv import Conv1d
from cylstm.layers.dropout import Dropout
from cylstm.layers.embedding import Embedding
from cylstm.layers.linear import Linear
from cylstm.layers.norm import BatchNorm, LayerNorm
from cylstm.layers.pool import Pool
from cylstm.layers.sequential import Sequential
from cylstm.module import Module

_MERGES = ("concat", "sum", "mul", "ave")


class Builder:
    """A network in the making: what has been made, and what is known of the array in between."""

    def __init__(self, weights: Weights, version: int | None) -> None:
        self.weights, self.version = weights, version
        self.modules: dict[str, Module] = {}
        #: float64 if the first weights are, otherwise float32.
        self.dtype: str | None = None
        #: Features, and axes, batch included, if they are known.
        self.width: int | None = None
        self.rank: int | None = None
        #: Whether Keras has the steps in the other order here.
        self.flipped = False
        #: What makes a mask, as an expression in the input; who has read it; what hinders.
        self.mask: str | None = None
        self.readers: list[Layer] = []
        self.zeros = False
        self.ignored: Layer | None = None

    def add(self, layer: Layer, module: Module, end: str = "") -> None:
        """Append a module, under the layer's name."""
        name = layer.path.replace(".", "_") + end
        while name in self.modules:
            name += "_"
        self.modules[name] = module

    def make(self, layer: Layer, cls: Any, values: dict[str, Any], **arguments: Any) -> None:
        """Append a module with these parameters."""
        module = cls._undrawn(dtype=self._dtype(values), **arguments)
        module.assign(values)
        self.add(layer, module)

    def recur(
        self, layer: Layer, cell: recurrence.Cell, values: dict[str, Any], **arguments: Any
    ) -> None:
        """Append a recurrent layer with these parameters."""
        module = recurrence.layer_of(cell, values, self._dtype(values), **arguments)
        self.add(layer, module, f"_{cell.place.rpartition('/')[2]}" if "/" in cell.place else "")
        one = module.bidirectional and module.merge_mode == "concat"
        self.width = module.hidden_size * (2 if one else 1)

    def _dtype(self, values: dict[str, Any]) -> str:
        if self.dtype is None:
            double = all(np.asarray(v).dtype == np.float64 for v in values.values())
            self.dtype = "float64" if double else "float32"
        return self.dtype

    def arrays(self, layer: Layer, *slots: tuple[str, int]) -> list[Tensor]:
        """Find the arrays of a layer, as many as it has."""
        found = self.weights.arrays(layer, slots)
        expected = sum(count for _, count in slots)
        if len(found) != expected:
            raise KerasError(f"{layer}: expected {expected} arrays, got {len(found)}")
        return found

    def activate(self, layer: Layer, chain: functions.Chain) -> None:
        """Append activations."""
        for function in chain:
            made = {"softmax": Softmax, "log_softmax": LogSoftmax}.get(function[0])
            self.add(layer, Activation(*function) if made is None else made(), f"_{function[0]}")

    def reads_mask(self, layer: Layer) -> None:
        """Note that a layer looks at the mask, if there is one."""
        if self.mask is None:
            return
        if self.ignored is not None:
            raise KerasError(
                f"{layer}: expected no mask after {self.ignored}, which does not look at it in "
                "Keras; here all modules would"
            )
        self.readers.append(layer)

    def end_time(self) -> None:
        """Note that there is one vector for each sequence from here on."""
        self.rank, self.flipped, self.mask = 2, False, None

    def in_order(self, layer: Layer) -> None:
        """Refuse a layer that would see the steps in the other order."""
        if self.flipped:
            raise KerasError(
                f"{layer}: expected steps in their own order, got those of a layer with "
                "go_backwards and return_sequences, which Keras returns from the last to the first"
            )

    def last_axis(self, options: Options, value: Any) -> None:
        """Refuse a norm over other axes than features."""
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        last = None if self.rank is None else self.rank - 1
        if value != -1 and (value != last or isinstance(value, bool)):
            raise options.wrong("axis", "-1, the features", value)


def _input(net: Builder, layer: Layer) -> None:
    _shaped(net, layer)


def _shaped(net: Builder, layer: Layer) -> None:
    """Note the number of axes of the network's input."""
    for name in ("batch_shape", "batch_input_shape"):
        shape = layer.options.get(name)
        if isinstance(shape, (list, tuple)) and not net.modules:
            net.rank = len(shape)


def _embedding(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    count, size = options.size("input_dim"), options.size("output_dim")
    if options.flag("mask_zero"):
        net.mask = "ids != 0"
    options.finish()
    (table,) = net.arrays(layer, ("", 1))
    net.make(layer, Embedding, {"weight": table.read((count, size))},
             num_embeddings=count, embedding_dim=size)  # fmt: skip
    net.width, net.rank = size, 3


def _masking(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    value = options.number("mask_value", 0.0)
    options.finish()
    if net.modules:
        raise KerasError(f"{layer}: expected it before all other layers, got it after "
                         f"{list(net.modules)[-1]!r}")  # fmt: skip
    net.mask = f"(x != {value:g}).any(axis=-1)"


def _dense(net: Builder, layer: Layer, place: str = "") -> None:
    options = Options(layer, net.version)
    units, bias = options.size("units"), options.flag("use_bias", True)
    chain = functions.chain(options, "activation", None, net.version)
    options.finish()
    kernel, *biases = net.arrays(layer, (place, 1 + bias))
    values = {"weight": kernel.read((net.width, units)).T}
    if bias:
        values["bias"] = biases[0].read((units,))
    inside = chain[0] if chain and chain[0][0] not in ("softmax", "log_softmax") else None
    net.make(layer, Linear, values, in_features=kernel.shape[0], out_features=units, bias=bias,
             activation=inside and (inside[0] if len(inside) == 1 else inside))  # fmt: skip
    net.activate(layer, chain[1:] if inside else chain)
    net.width = units


def _conv1d(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    filters, size = options.size("filters"), options.size("kernel_size")
    stride, dilation = options.size("strides"), options.size("dilation_rate")
    bias, padding = options.flag("use_bias", True), options.get("padding", "valid")
    options.only("data_format", "channels_last", None)
    options.only("groups", 1)
    if padding not in ("valid", "same", "causal"):
        raise options.wrong("padding", "'valid', 'same' or 'causal'", padding)
    if padding == "same" and stride > 1:
        raise options.wrong("strides", "1 with padding='same'", stride)
    chain = functions.chain(options, "activation", None, net.version)
    options.finish()
    net.in_order(layer)
    if net.mask is not None:
        if net.readers or not net.mask.startswith(("ids", "(x != 0)")):
            raise KerasError(f"{layer}: expected no mask, as Keras reads masked steps here")
        net.ignored = layer
        if net.version == 3:  # which drops the mask, with a warning
            net.mask = None
    kernel, *biases = net.arrays(layer, ("", 1 + bias))
    found = kernel.read((size, net.width, filters))
    values = {"weight": found.transpose(2, 1, 0)}
    if bias:
        values["bias"] = biases[0].read((filters,))
    net.make(layer, Conv1d, values, in_channels=found.shape[1], out_channels=filters,
             kernel_size=size, stride=stride, dilation=dilation, bias=bias, batch_first=True,
             padding=0 if padding == "valid" else padding)  # fmt: skip
    net.activate(layer, chain)
    net.width = filters


def _batch_norm(net: Builder, layer: Layer, place: str = "") -> None:
    options = Options(layer, net.version)
    net.last_axis(options, options.get("axis", -1))
    scale, center = options.flag("scale", True), options.flag("center", True)
    eps = options.number("epsilon", 1e-3)
    options.finish()
    tensors = iter(net.arrays(layer, (place, scale + center + 2)))
    values = {name: next(tensors) for name, there in _affine(scale, center) if there}
    values |= {name: next(tensors) for name in ("running_mean", "running_var")}
    found = {name: tensor.read((net.width,)) for name, tensor in values.items()}
    net.width = len(found["running_mean"])
    _fill(found, net.width)
    net.make(layer, BatchNorm, found, num_features=net.width, eps=eps)


def _layer_norm(net: Builder, layer: Layer, place: str = "") -> None:
    options = Options(layer, net.version)
    net.last_axis(options, options.get("axis", -1))
    scale, center = options.flag("scale", True), options.flag("center", True)
    eps = options.number("epsilon", 1e-3)
    options.finish()
    tensors = iter(net.arrays(layer, (place, scale + center)))
    values = {name: next(tensors) for name, there in _affine(scale, center) if there}
    found = {name: tensor.read((net.width,)) for name, tensor in values.items()}
    if not found and net.width is None:
        raise KerasError(f"{layer}: expected a layer that tells the number of features")
    net.width = len(next(iter(found.values()))) if found else net.width
    _fill(found, net.width or 0)
    net.make(layer, LayerNorm, found, normalized_shape=net.width, eps=eps)


def _affine(scale: bool, center: bool) -> list[tuple[str, bool]]:
    return [("weight", scale), ("bias", center)]


def _fill(found: dict[str, Any], width: int) -> None:
    """Put in ones and zeros where Keras has no scale or no shift."""
    kind = next((v.dtype for v in found.values()), np.dtype(np.float32))
    found.setdefault("weight", np.ones(width, kind))
    found.setdefault("bias", np.zeros(width, kind))


def _dropout(net: Builder, layer: Layer, place: str = "") -> None:
    options = Options(layer, net.version)
    options.get("data_format")
    p = options.number("rate", 0.5)
    options.finish()
    if not 0 <= p < 1:
        raise options.wrong("rate", "a number from 0 to below 1", p)
    spatial = layer.kind == "SpatialDropout1D"
    net.add(layer, Dropout(p, variational=spatial, batch_first=True if spatial else None))


def _nothing(net: Builder, layer: Layer, place: str = "") -> None:
    """Leave out what only training does."""


def _flatten(net: Builder, layer: Layer) -> None:
    if net.rank != 2:
        raise KerasError(f"{layer}: expected one vector for each sequence, got steps")


def _activation(net: Builder, layer: Layer, place: str = "") -> None:
    chain = functions.of_layer(layer, net.version)
    if layer.kind == "Softmax" and net.mask is not None:
        raise KerasError(f"{layer}: expected no mask, which Keras adds to the scores here")
    net.activate(layer, chain)


def _pool(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    options.only("data_format", "channels_last", None)
    options.only("keepdims", False)
    options.finish()
    if "Average" in layer.kind:
        net.reads_mask(layer)
    elif net.readers and net.zeros:
        raise KerasError(f"{layer}: expected no mask, as Keras takes zeros at masked steps for "
                         "outputs here")  # fmt: skip
    net.add(layer, Pool("mean" if "Average" in layer.kind else "max", batch_first=True))
    net.end_time()


def _time_distributed(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    inner = layer.part(options.get("layer"), "layer")
    options.finish()
    if inner.kind not in _POINTWISE:
        raise KerasError(f"{inner}: expected one of {', '.join(_POINTWISE)}, got {inner.kind}")
    # The weights are the wrapper's, in its part "layer".
    alone = Layer(layer.path, inner.kind, inner.options, layer.group)
    rank, net.rank = net.rank, None if net.rank is None else net.rank - 1
    _POINTWISE[inner.kind](net, alone, "layer")
    net.rank = rank


def _recurrent(net: Builder, layer: Layer) -> None:
    found = recurrence.read(layer, net.version)
    tensors = iter(net.arrays(layer, *((c.place, _count(net, c)) for c in found.cells)))
    backwards = found.backwards != net.flipped
    net.reads_mask(layer)
    if backwards and found.sequences and net.mask is not None:
        raise KerasError(f"{layer}: expected no mask with go_backwards and return_sequences, as "
                         "Keras does not turn it round with the steps")  # fmt: skip
    for cell in found.cells:
        own = [next(tensors) for _ in range(_count(net, cell))]
        values = recurrence.state(cell, own, net.width, "_l0")
        net.recur(layer, cell, values, go_backwards=backwards)
    net.flipped, net.rank = backwards, 3
    _finish(net, layer, found)


def _count(net: Builder, cell: recurrence.Cell) -> int:
    """How many arrays a cell has: three for each gate in Keras 1."""
    if net.version == 1 and cell.kind != "RNN":
        return 12 if cell.kind == "LSTM" else 9
    return cell.arrays


def _finish(net: Builder, layer: Layer, found: recurrence.Recurrent) -> None:
    net.zeros |= found.zeros
    if not found.sequences:
        net.add(layer, Pool("final", batch_first=True), "_final")
        net.end_time()


def _bidirectional(net: Builder, layer: Layer) -> None:
    options = Options(layer, net.version)
    mode = options.get("merge_mode", "concat")
    if mode not in _MERGES:
        raise options.wrong("merge_mode", "one of " + ", ".join(_MERGES), mode)
    inner = layer.part(options.get("layer"), "layer")
    other = options.get("backward_layer")
    back = inner if other is None else layer.part(other, "backward_layer")
    options.finish()
    for part in (inner, back):
        if part.kind not in recurrence.KINDS:
            raise KerasError(f"{part}: expected one of {', '.join(recurrence.KINDS)}")
    one, two = recurrence.read(inner, net.version), recurrence.read(back, net.version)
    if len(one.cells) != 1 or len(two.cells) != 1:
        raise KerasError(f"{inner}: expected one cell in each direction, got a stack, whose inner "
                         "outputs Keras does not merge")  # fmt: skip
    cell, reverse = one.cells[0], two.cells[0]
    if cell[1:5] != reverse[1:5] or one.sequences != two.sequences:
        raise KerasError(f"{back}: expected the options of the forward layer, got others")
    if one.backwards or (other is not None and not two.backwards):
        raise KerasError(f"{layer}: expected a forward layer that goes forwards, and one backwards")
    net.in_order(layer)
    net.reads_mask(layer)
    count = _count(net, cell)
    tensors = net.arrays(layer, ("forward_layer/cell", count), ("backward_layer/cell", count))
    values = recurrence.state(cell, tensors[:count], net.width, "_l0")
    values |= recurrence.state(reverse, tensors[count:], net.width, "_l0_reverse")
    net.recur(layer, cell, values, merge_mode=mode)
    net.rank = 3
    _finish(net, layer, one._replace(zeros=True))


#: Layers that may be in TimeDistributed, which changes nothing for them.
_POINTWISE: dict[str, Callable[..., None]] = {
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Dropout": _dropout,
    **dict.fromkeys(functions.LAYERS, _activation),
    **dict.fromkeys(
        ("ActivityRegularization", "AlphaDropout", "GaussianDropout", "GaussianNoise", "Identity"),
        _nothing,
    ),
}
_MAKERS: dict[str, Callable[..., None]] = {
    **_POINTWISE,
    "InputLayer": _input,
    "Embedding": _embedding,
    "Masking": _masking,
    "Conv1D": _conv1d,
    "SpatialDropout1D": _dropout,
    "Flatten": _flatten,
    "TimeDistributed": _time_distributed,
    "Bidirectional": _bidirectional,
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalMaxPooling1D"), _pool),
    **dict.fromkeys(recurrence.KINDS, _recurrent),
}


def network(layers: Sequence[Layer], weights: Weights, version: int | None) -> Sequential:
    """Make the network.

    Parameters
    ----------
    layers : sequence of Layer
    weights : Weights
    version : int or None
        Keras' major version.
    """
    net = Builder(weights, version)
    mask = None
    for layer in layers:
        if layer.kind not in _MAKERS:
            raise KerasError(f"{layer}: expected one of {', '.join(sorted(_MAKERS))}, got "
                             f"{layer.kind}")  # fmt: skip
        with named(str(layer)):
            _shaped(net, layer)
            _MAKERS[layer.kind](net, layer)
        mask = net.mask or mask
    if net.flipped:
        net.in_order(Layer("output", "the network", {}))
    if net.readers:
        warnings.warn(
            f"{net.readers[0]} reads a mask that the model makes of its input in Keras: pass it, "
            f"as mask={mask}, or lengths=",
            stacklevel=4,
        )
    with named("model"):
        return Sequential(net.modules)
