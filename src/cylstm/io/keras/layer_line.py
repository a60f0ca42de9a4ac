"""A model's configuration: its layers in a line, models inside it opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cylstm.io.keras.error import KerasError

#: Models, by the names that they have had.
_MODELS = ("Sequential", "Functional", "Model")
_PACKAGES = ("keras", "tf_keras", "tensorflow")
#: Nodes of Keras 3 that make masks of what layers before them read; kept as the mask's source.
_MASKS = ("NotEqual", "Any")
#: Most layers of a model.
_MOST = 5000
#: Options that a call for inference does not depend on.
_IGNORED = frozenset(
    "name trainable dtype batch_input_shape batch_shape input_shape init input_length "
    "seed unroll implementation consume_less stateful dropout recurrent_dropout dropout_W "
    "dropout_U unit_forget_bias return_state zero_output_for_mask momentum renorm renorm_clipping "
    "renorm_momentum synchronized fused virtual_batch_size noise_shape autocast".split()
)
_IGNORED_ENDS = ("_initializer", "_regularizer", "_constraint", "_init")
#: What Keras 1 called them.
_OLD = {
    "output_dim": "units",
    "inner_activation": "recurrent_activation",
    "bias": "use_bias",
    "p": "rate",
    "nb_filter": "filters",
    "filter_length": "kernel_size",
    "border_mode": "padding",
    "subsample_length": "strides",
    "atrous_rate": "dilation_rate",
}


@dataclass
class Layer:
    """A layer of a model, and where its weights are."""

    #: Names of the models it is in and its own, with "/" between them.
    path: str
    kind: str
    options: Mapping[str, Any]
    #: Its group in a file of Keras 3.
    group: str = ""

    def __str__(self) -> str:
        """Name the layer in messages."""
        return f"{self.path} ({self.kind})"

    def part(self, value: Any, name: str) -> Layer:
        """Return the layer or cell that an option of this one describes."""
        kind, options = _described(value, f"{self}: {name}")
        return Layer(f"{self.path}/{name}", kind, options)


class Options:
    """The options of a layer, each of which is read, known not to matter, or refused."""

    def __init__(self, layer: Layer, version: int | None) -> None:
        self.layer = layer
        given = dict(layer.options)
        if version == 1 and layer.kind != "Embedding":
            given = {_OLD.get(name, name): value for name, value in given.items()}
            given.pop("input_dim", None)
        self._given, self._left = given, set(given)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option's value."""
        self._left.discard(name)
        return self._given.get(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return True or False."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def size(self, name: str) -> int:
        """Return a positive integer, or the one in a list of one."""
        value = self.get(name)
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.wrong(name, "an integer from 1 to 2**31 - 1", value)
        return value

    def number(self, name: str, default: float) -> float:
        """Return a number."""
        value = self.get(name, default)
        if isinstance(value, dict) and value.get("class_name") == "__numpy__":
            value = value.get("config", {}).get("value")  # how Keras writes numpy's numbers
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(name, "a number", value)
        return float(value)

    def only(self, name: str, *values: Any) -> None:
        """Refuse an option that has another value than those; it may be missing."""
        if name in self._given and self.get(name) not in values:
            raise self.wrong(name, " or ".join(map(repr, values)), self._given[name])

    def finish(self) -> None:
        """Refuse what nobody has read and is not known to make no difference."""
        for name in sorted(self._left):
            value = self._given[name]
            if value in (None, False) or name in _IGNORED or name.endswith(_IGNORED_ENDS):
                continue
            raise self.wrong(name, "nothing, as it may change results", value)

    def wrong(self, name: str, expected: str, value: Any) -> KerasError:
        """Make the error of an option."""
        return KerasError(f"{self.layer}: {name}: expected {expected}, got {str(value)[:200]!r}")


def lined(config: Any) -> list[Layer]:
    """Return the layers of a model in order, those of models inside it in place of these.

    Parameters
    ----------
    config : mapping
        {"class_name", "config", ...} of a model, or of a layer alone.
    """
    kind, options = _described(config, "configuration")
    if kind in _MODELS:
        return list(_inside(kind, options, "", "", 0))
    return [Layer(str(options.get("name", kind.lower())), kind, options)]


def _described(value: Any, where: str) -> tuple[str, Any]:
    """Check the description of a layer: class and options; refuse classes that are not Keras'."""
    if not isinstance(value, Mapping) or not isinstance(value.get("class_name"), str):
        raise KerasError(f"{where}: expected a layer, got {str(value)[:100]!r}")
    kind, options = value["class_name"], value.get("config")
    module, registered = value.get("module"), value.get("registered_name")
    if isinstance(module, str) and module.partition(".")[0] not in _PACKAGES:
        raise KerasError(f"{where}: expected a layer of Keras, got {kind} of {module!r}")
    if ">" in kind or (isinstance(registered, str) and ">" in registered):
        raise KerasError(f"{where}: expected a layer of Keras, got {registered or kind!r}")
    if not isinstance(options, Mapping) and not (kind in _MODELS and isinstance(options, list)):
        raise KerasError(f"{where} ({kind}): expected options, got {str(options)[:100]!r}")
    return kind, options


def _inside(kind: str, options: Any, path: str, group: str, depth: int) -> Iterator[Layer]:
    """Go through the layers of a model."""
    where = f"{path or 'model'} ({kind})"
    if depth > 20:
        raise KerasError(f"{where}: expected models inside each other at most 20 deep")
    layers = options if isinstance(options, list) else options.get("layers")  # a list until 2.2.4
    if not isinstance(layers, list):
        raise KerasError(f"{where}: expected a list of layers, got {str(layers)[:100]!r}")
    if len(layers) > _MOST:
        raise KerasError(f"{where}: expected at most {_MOST} layers, got {len(layers)}")
    used: dict[str, int] = {}
    found: dict[str, tuple[str, Layer]] = {}
    for i, entry in enumerate(layers):
        what, inner = _described(entry, f"{where}: layers[{i}]")
        own = inner.get("name") if isinstance(inner, Mapping) else None
        name = str(own or entry.get("name") or f"{what.lower()}_{i}")
        plain = _snake("Functional" if what == "Model" else what)
        used[plain] = used.get(plain, -1) + 1
        at = f"{group}/layers/{plain}_{used[plain]}" if used[plain] else f"{group}/layers/{plain}"
        inside = f"{path}/{name}".lstrip("/")
        if name in found:
            raise KerasError(f"{where}: expected names of layers once, got {name!r} twice")
        found[name] = what, Layer(inside, what, inner, at.lstrip("/"))
    names = list(found) if kind == "Sequential" else _order(where, options, layers)
    for name in names:
        what, layer = found[name]
        if what in _MODELS:
            yield from _inside(what, layer.options, layer.path, layer.group, depth + 1)
        else:
            yield layer


def _order(where: str, options: Mapping[str, Any], layers: list[Any]) -> list[str]:
    """Go from the output of a graph back to its input; refuse what is no line."""
    entries = {str(entry.get("name") or entry["config"].get("name")): entry for entry in layers}
    first = _ends(where, options, "input_layers")
    here, place = _ends(where, options, "output_layers")
    order: list[str] = []
    while True:
        if place != 0:
            raise KerasError(
                f"{where}: expected a line that goes through first outputs, got output {place} of "
                f"{here!r}"
            )
        if here in order or here not in entries:
            raise KerasError(f"{where}: expected a line of layers, got {here!r} out of place")
        order.insert(0, here)
        if here == first[0]:
            break
        nodes = entries[here].get("inbound_nodes")
        if not isinstance(nodes, list) or len(nodes) != 1:
            raise KerasError(f"{where}: expected {here!r} once in a line, got nodes {nodes!r:.100}")
        sources, others = _sources(nodes[0])
        for name, source in others:
            kind = entries.get(source, {}).get("class_name")
            if name != "mask" or kind not in _MASKS:
                raise KerasError(
                    f"{where}: expected a line of layers, got {here!r} that also reads {source!r} "
                    f"as {name}"
                )
        if len(sources) != 1:
            raise KerasError(
                f"{where}: expected a line of layers, got {here!r} that reads {len(sources)} others"
            )
        here, place = sources[0]
    apart = [n for n, e in entries.items() if n not in order and e["class_name"] not in _MASKS]
    if apart:
        raise KerasError(f"{where}: expected a line of layers, got {apart} beside it")
    return order


def _ends(where: str, options: Mapping[str, Any], name: str) -> tuple[str, int]:
    """Read the one input or output of a graph: [name, 0, place], alone or in a list."""
    value = options.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[2], int)
    ):
        return value[0], value[2]
    raise KerasError(f"{where}: expected one entry in {name}, got {str(value)[:100]}")


def _sources(node: Any) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """Return what a node reads: tensors as its input, and those with a name of their own."""
    if isinstance(node, list):  # Keras 2: [[name, node, tensor, arguments], ...]
        inputs = [(str(one[0]), int(one[2])) for one in node]
        others = [
            (str(name), str(value[0]))
            for one in node
            if len(one) > 3 and isinstance(one[3], Mapping)
            for name, value in one[3].items()
            if isinstance(value, list) and value and isinstance(value[0], str)
        ]
        return inputs, others
    arguments, named = node.get("args", []), node.get("kwargs", {})
    inputs = [t for value in arguments[:1] for t in _tensors(value)]
    others = [("an argument", t[0]) for value in arguments[1:] for t in _tensors(value)]
    others += [(str(n), t[0]) for n, value in named.items() for t in _tensors(value)]
    return inputs, others


def _tensors(value: Any) -> list[tuple[str, int]]:
    if isinstance(value, list):
        return [t for one in value for t in _tensors(one)]
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        history = value["config"]["keras_history"]
        return [(str(history[0]), int(history[2]))]
    return []


def _snake(name: str) -> str:
    """Name a class as Keras 3 names groups: BatchNormalization is batch_normalization."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
