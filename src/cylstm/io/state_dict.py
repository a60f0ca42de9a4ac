"""Weights from elsewhere: which entries of a state dict are meant, and what layer they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cylstm import checks
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.layers.structure import Structure

L = TypeVar("L", bound="Structure")
_NAME = re.compile(
    r"(?:weight_(?:ih|hh|hr|peephole|ln|ln_ih|ln_hh|ln_c)|bias_(?:ih|hh|ln_c)|initial_[hcnm])"
    r"_l(\d+)(_reverse)?"
)


def weight(name: str, value: Any) -> Array:
    """Read an entry of a state dict: floating-point numbers of any kind."""
    found = checks.tensor(name, value)
    if found.dtype.kind != "f":
        raise TypeError(
            f"{name}: expected floating-point numbers, got dtype {found.dtype}: multiply quantised "
            "weights by their scale"
        )
    return found


def entries(state: Any, prefix: str | None, known: Callable[[str], Any]) -> dict[str, Any]:
    """Entries under a prefix, by the names after it; names of a single cell become layer 0's.

    Parameters
    ----------
    state : mapping of str to array-like
    prefix : str or None
    known : callable
        Whether a name may be that of a parameter.

    Raises
    ------
    TypeError
        The state is not a mapping, or the prefix not a str.
    KeyError
        Nothing fits, and another prefix would, or none begins with the prefix.
    """
    if not isinstance(state, Mapping):
        hint = ": pass its state_dict()" if hasattr(state, "state_dict") else ""
        raise TypeError(
            f"state: expected a mapping of names to arrays, got {type(state).__name__}{hint}"
        )
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str or None, got {prefix!r}")
    names = {str(name): name for name in state}
    start = prefix or ""
    found = {name[len(start) :]: state[names[name]] for name in names if name.startswith(start)}
    if any(map(known, found)):
        return found
    if any(known(f"{name}_l0") for name in found):
        return {f"{name}_l0" if known(f"{name}_l0") else name: v for name, v in found.items()}
    _suggest(names, start, known)
    if start and not found:
        raise KeyError(f"prefix: expected one that names begin with, got {start!r}: {list(names)}")
    return found


def _suggest(names: Collection[str], prefix: str, known: Callable[[str], Any]) -> None:
    """Refuse names that would be those of parameters with another prefix, and name it."""
    prefixes = {}
    for name in names:
        for i in range(1, len(name)):
            if known(name[i:]) or known(f"{name[i:]}_l0"):
                prefixes[repr(name[:i])] = name
                break
    if prefixes:
        raise KeyError(
            f"state: expected names that begin with prefix={prefix!r}, got "
            f"{next(iter(prefixes.values()))!r}: pass prefix={' or prefix='.join(prefixes)}"
        )


def layer_of(cls: type[L], state: Any, prefix: str, options: dict[str, Any]) -> L:
    """Make the layer that a state dict fits, with nothing drawn and nothing copied twice."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a str, got {prefix!r}")
    found = entries(state, prefix, _NAME.fullmatch)
    unexpected = sorted(name for name in found if not _NAME.fullmatch(name))
    if unexpected or not found:
        raise KeyError(f"state: expected names of {cls.__name__} parameters, got {unexpected}")
    if options.get("forget_bias") is not None:
        raise ValueError(
            f"forget_bias: expected None with weights given, got {options['forget_bias']!r}"
        )
    layer = cls._undrawn(**_inferred(cls, found, options))
    missing = [name for name in layer._shapes if name not in found]
    unexpected = sorted(set(found) - set(layer._shapes))
    if missing or unexpected:
        raise KeyError(f"state: missing {missing}, unexpected {unexpected} for {layer!r}")
    for name, shape in layer._shapes.items():
        if (got := _shape(name, found[name])) != shape:
            hint = "; is there a merge_mode?" if layer.bidirectional and "_ih" in name else ""
            raise ValueError(f"{name}: expected shape {shape} for {layer!r}, got {got}{hint}")
    with layer._changing():
        for name, view in layer.split(layer._storage).items():
            view[...] = weight(name, found[name])
    return layer


def _shape(name: str, value: Any) -> tuple[int, ...]:
    return tuple(value.shape if hasattr(value, "shape") else weight(name, value).shape)


def _inferred(
    cls: type[Structure], found: Mapping[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of the constructor; options that contradict the weights are refused."""
    shapes = {name: _shape(name, value) for name, value in found.items()}
    sizes = _hidden_sizes(cls, shapes, options)
    norm = "haste" if "weight_ln_ih_l0" in shapes else "tflite"

    def there(kind: str) -> bool:
        return f"{kind}_l0" in shapes

    one = "single" if cls._recurrent else True
    inferred: dict[str, Any] = {
        "input_size": shapes["weight_ih_l0"][1],
        "hidden_size": _plain(sizes, len(sizes)),
        "num_layers": len(sizes),
        "bias": there("bias_hh") or (one if there("bias_ih") else False),
        "bidirectional": any(name.endswith("_reverse") for name in shapes),
        "proj_size": shapes["weight_hr_l0"][0] if there("weight_hr") else 0,
        "peepholes": there("weight_peephole"),
        "layer_norm": norm if any(n.startswith("weight_ln") for n in shapes) else None,
        "independent": len(shapes.get("weight_hh_l0", ())) == 1,
        "learn_initial_state": there("initial_h"),
    }
    known = cls._signature
    if "num_heads" in known:
        inferred["num_heads"] = max(1, sizes[0] // max(1, shapes["weight_hh_l0"][-1]))
    foreign = [name for name, value in inferred.items() if value and name not in known]
    if foreign:
        raise KeyError(
            f"state: expected the parameters of a {cls.__name__}, got some for {', '.join(foreign)}"
        )
    for name, value in inferred.items():
        if name in options and _plain(options[name], len(sizes)) != value:
            raise ValueError(
                f"{name}: expected {value!r}, as the weights say, or nothing, got {options[name]!r}"
            )
    double = all(str(getattr(v, "dtype", "")).endswith("float64") for v in found.values())
    # Subclasses need not take every option: defaults are not passed.
    needed = {
        name: value
        for name, value in (inferred | {"dtype": "float64" if double else "float32"}).items()
        if name in known and value != known[name] and (name, value) != ("num_layers", 1)
    }
    return needed | {n: v for n, v in options.items() if n not in inferred or n not in known}


def _hidden_sizes(
    cls: type[Structure], shapes: Mapping[str, tuple[int, ...]], options: dict[str, Any]
) -> tuple[int, ...]:
    """Hidden size of each layer."""
    depth = 1 + max(int(m[1]) for m in map(_NAME.fullmatch, shapes) if m)
    matrices = ("ih", "hh") if cls._recurrent else ("ih",)
    needed = [f"weight_{w}_l{k}" for k in range(depth) for w in matrices]
    if missing := [name for name in needed if name not in shapes]:
        raise KeyError(f"state: missing {missing}")
    for name, shape in shapes.items():
        matrix = name.startswith(("weight_ih", "weight_hr"))
        if len(shape) not in ((2,) if matrix else (1, 2) if "weight_hh" in name else (1,)):
            what = "matrix" if "weight_h" in name or matrix else "vector"
            raise ValueError(f"{name}: expected a {what}, got shape {shape}")
    gates = len(cls.gates) - (options.get("coupled") is True)
    sizes = []
    for k in range(depth):
        rows = shapes[f"weight_ih_l{k}"][0]
        size = rows // gates
        if cls._recurrent and "num_heads" not in cls._signature:
            size = shapes.get(f"weight_hr_l{k}", shapes[f"weight_hh_l{k}"])[-1]
        if rows != gates * size:
            raise ValueError(
                f"weight_ih_l{k}: expected {gates} rows for each of the {size} units of a "
                f"{cls.__name__}, {gates * size}, got {rows}"
            )
        sizes.append(size)
    return tuple(sizes)


def _plain(value: Any, layers: int) -> Any:
    """Sizes of all layers; one of them where they are equal."""
    if isinstance(value, (tuple, list)) and len(value) == layers and len(set(value)) == 1:
        return value[0]
    return tuple(value) if isinstance(value, list) else value
