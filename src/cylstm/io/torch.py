"""Networks of PyTorch's as networks of this library, and back: structure and weights."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm.module import Module

if TYPE_CHECKING:
    import torch

_RECURRENT = ("LSTM", "GRU", "RNN")
_OF_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                 "bidirectional")  # fmt: skip
#: Activations of torch.nn: the name of ours, and where its numbers are.
_ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "Softsign": ("softsign", ()),
    "Softplus": ("softplus", ()),
    "LeakyReLU": ("leakyrelu", ("negative_slope",)),
    "ELU": ("elu", ("alpha",)),
    "Hardsigmoid": ("hard_sigmoid_keras3", ()),
}
#: What of torch.nn's options changes results in a way that is not to be had here.
_REFUSED: dict[str, dict[str, Any]] = {
    "Embedding": {"max_norm": None, "scale_grad_by_freq": False},
    "LayerNorm": {"elementwise_affine": True},
    "BatchNorm1d": {"track_running_stats": True},
    "Conv1d": {"groups": 1, "padding_mode": "zeros"},
    "Softplus": {"beta": 1},
}
#: Modules of torch.nn that read (B, C, T), and those whose features are the last axis.
_CHANNELS_FIRST = ("Conv1d",)
_FEATURES_LAST = (*_RECURRENT, "LSTMCell", "GRUCell", "RNNCell", "Linear", "LayerNorm")


def from_torch(module: Any, example: Any = None) -> Any:
    """Make a module of PyTorch's one of this library, with its weights, bit by bit.

    Known are, of `torch.nn`: `LSTM`, `GRU` and `RNN` (and the twins in `cylstm.torch`), `LSTMCell`,
    `GRUCell` and `RNNCell` (layers of one cell), `Linear`, `Embedding` (a `Linear` may share its
    weight), `Conv1d`, `LayerNorm`, `BatchNorm1d`, `Dropout`, `Identity`, `ReLU`, `Tanh`, `Sigmoid`,
    `LeakyReLU`, `ELU`, `Softplus`, `Softsign`, `Hardsigmoid`, `Softmax` and `LogSoftmax` of
    features, and `Sequential`, `ModuleList` and `ModuleDict` of them. Anything else is refused by
    path and type: nothing is left out, nothing guessed, nothing drawn at random.

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU. A file is yours to read: ``torch.load(path, weights_only=True)`` runs no code
        from it.
    example : array-like or Tensor, optional
        An input of the module, here and there. Needed for a class with a `forward` of its own
        (and for a ModuleList or ModuleDict), which is taken for its children one after the other,
        in the order in which they were assigned: outputs of both for the example are compared, and
        have to agree. The module is run in eval mode for that.

    Returns
    -------
    Module
        A layer, or a `cylstm.Sequential` with the same names. What `requires_grad=False` says is
        frozen. Parameters of 16 bits become float32.

    Raises
    ------
    TypeError
        Something is no module, or of a class that is not known.
    ValueError
        An option is not to be had here, parameters are shared by modules other than an `Embedding`
        and a `Linear`, outputs for the example differ, or there is none where one is needed.
    ImportError
        PyTorch is not installed.

    Notes
    -----
    Recurrent layers return (output, state) in PyTorch, so that a `torch.nn.Sequential` with one
    in the middle does not run there. Here the output goes on to the next module. Features are
    always the last axis here; `torch.nn.Conv1d` and, for three axes, `BatchNorm1d` have them in
    the middle. A `torch.nn.Sequential` of both kinds would be another network there than here, so
    it is refused.
    """
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    found = _Reader(example is not None).read("", module)
    if example is not None:
        _compare(torch, module, found, example)
    return found


def to_torch(module: Module) -> Any:
    """Make a module of this library one of PyTorch's, with its weights, bit by bit.

    Parameters
    ----------
    module : Module
        `LSTM`, `GRU`, `RNN`, `Linear`, `Embedding`, `Conv1d`, `LayerNorm`, `BatchNorm`, `Dropout`,
        `Activation`, `Softmax`, `LogSoftmax`, or a `Sequential` of them, with options that PyTorch
        has.

    Returns
    -------
    torch.nn.Module
        In training mode. Frozen parameters have ``requires_grad=False``. A `Sequential` with a
        recurrent layer before its end is a `torch.nn.Sequential` with the same names and weights,
        but does not run as such, since recurrent layers return tuples there.

    Raises
    ------
    TypeError
        Something is no module, or of a class that PyTorch does not have.
    ValueError
        An option is not to be had there.
    ImportError
        PyTorch is not installed.
    """
    torch = _torch()
    if not isinstance(module, Module):
        raise TypeError(f"module: expected a module of cylstm, got {type(module).__name__}")
    return _Writer(torch.nn).write("", module)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError('expected PyTorch to be installed: pip install "cylstm[torch]"') from None
    return torch


def _refuse(path: str, what: str, error: type[Exception] = ValueError) -> Exception:
    return error(f"module{path and f'[{path!r}]'}: {what}")


class _Reader:
    """One call of `from_torch`: what has been made so far, by what it was made of."""

    def __init__(self, in_line: bool) -> None:
        self.in_line = in_line
        self.channels_first = False  # whether what is being read is between convolutions
        self.made: dict[int, Any] = {}
        self.owners: dict[int, tuple[str, Any]] = {}

    def read(self, path: str, part: torch.nn.Module) -> Any:
        """Return the module that this one becomes."""
        if id(part) not in self.made:
            self.made[id(part)] = self._made(path, part)
        return self.made[id(part)]

    def _made(self, path: str, part: torch.nn.Module) -> Any:
        kind = _kind(part)
        if part._forward_hooks or part._forward_pre_hooks:
            raise _refuse(path, f"expected a module without forward hooks, got {kind} with some")
        for option, value in _REFUSED.get(kind, {}).items():
            if getattr(part, option) != value:
                got = getattr(part, option)
                raise _refuse(path, f"expected {kind} with {option}={value!r}, got {got!r}")
        if kind in _ACTIVATIONS:
            import cylstm

            name, numbers = _ACTIVATIONS[kind]
            return cylstm.Activation(name, *(getattr(part, number) for number in numbers))
        if kind in ("Softmax", "LogSoftmax"):
            self._check_dim(path, part, kind)
        if kind == "Sequential" and not self.channels_first:
            self.channels_first = self._reads_channels(path, part)
            try:
                return self._line(path, part, kind)
            finally:
                self.channels_first = False
        if kind == "Sequential":
            return self._line(path, part, kind)
        if kind not in _READERS and not (self.in_line and list(part.children())):
            has = list(part.children()) and ", or example= for children that run one by one"
            raise _refuse(
                path, f"expected a module that cylstm knows{has or ''}, got {_full_name(part)}",
                TypeError,
            )  # fmt: skip
        if kind in _READERS:
            return self._leaf(path, part, kind)
        return self._line(path, part, kind)

    def _line(self, path: str, part: torch.nn.Module, kind: str) -> Any:
        import cylstm

        if part._parameters or part._buffers:
            names = [*part._parameters, *part._buffers]
            raise _refuse(path, f"expected parameters in known modules only, got {names} in {kind}")
        inner = {}
        for name, child in part._modules.items():
            where = f"{path}.{name}".lstrip(".")
            if child is None:
                raise _refuse(where, "expected a module, got None", TypeError)
            inner[name] = self.read(where, child)
        return cylstm.Sequential(inner)

    def _leaf(self, path: str, part: torch.nn.Module, kind: str) -> Any:
        values = dict(part.state_dict())
        named = dict(part.named_parameters())
        options: dict[str, Any] = {}
        for name, p in named.items():
            owner = self.owners.setdefault(id(p), (f"{path}.{name}".lstrip("."), part))
            if owner[1] is not part:
                if (kind, name, _kind(owner[1])) != ("Linear", "weight", "Embedding"):
                    raise _refuse(path, f"expected a {name} of its own, got that of {owner[0]!r}")
                options["tied_to"] = self.made[id(owner[1])]
                del values[name]
        typed = [v for v in values.values() if v.is_floating_point()]
        if typed and "tied_to" not in options:
            double = all(str(v.dtype) == "torch.float64" for v in typed)
            options["dtype"] = "float64" if double else "float32"
        elif typed:
            options["dtype"] = options["tied_to"].dtype.name
        found = _READERS[kind](path, part, kind, options)
        if values:
            found.load_state_dict(values)
        frozen = [name for name, p in named.items() if not p.requires_grad]
        for name in frozen:
            found.freeze(name if name in found.params else f"{name}_l0")
        return found

    def _reads_channels(self, path: str, part: torch.nn.Module) -> bool:
        """Whether a Sequential reads (B, C, T); refuse one in which features change places."""
        kinds = [_kind(child) for child in part.modules() if not list(child.children())]
        first = [kind for kind in kinds if kind in _CHANNELS_FIRST]
        last = [kind for kind in kinds if kind in _FEATURES_LAST]
        if first and last and not self.in_line:
            raise _refuse(
                path,
                "expected a Sequential whose features stay on one axis, got "
                f"{first[0]}, which reads (B, C, T), and {last[0]}, whose features are the last",
            )
        return bool(first)

    def _check_dim(self, path: str, part: Any, kind: str) -> None:
        """Refuse a softmax along time."""
        expected = (1, -2) if self.channels_first else (-1,)
        if part.dim not in expected and not (self.in_line and part.dim in (-1, -2, 1, 2)):
            raise _refuse(
                path,
                f"expected {kind} of features, dim={expected[0]}, or example= to compare with, "
                f"got dim={part.dim}",
            )


def _kind(part: torch.nn.Module) -> str:
    """Name of a class of torch.nn; of others, their full name."""
    import torch

    kind: type[Any] = type(part)
    twins = sys.modules.get("cylstm.torch.swapping")
    if twins is not None:
        kind = twins.original(kind)
    name: str = kind.__name__
    return name if getattr(torch.nn, name, None) is kind else _full_name(part)


def _full_name(part: torch.nn.Module) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _recurrent(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    given = {name: getattr(part, name) for name in _OF_RECURRENT} | options
    if part.num_layers == 1:
        given["dropout"] = 0.0
    if kind == "LSTM":
        given["proj_size"] = part.proj_size
    if kind == "RNN":
        given["nonlinearity"] = part.nonlinearity
    return getattr(cylstm, kind)._undrawn(**given)


def _cell(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    name = kind.removesuffix("Cell")
    if name == "RNN":
        options = options | {"nonlinearity": part.nonlinearity}
    sizes = {"input_size": part.input_size, "hidden_size": part.hidden_size, "bias": part.bias}
    return getattr(cylstm, name)._undrawn(**sizes, **options)


def _linear(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    return cylstm.Linear._undrawn(
        in_features=part.in_features, out_features=part.out_features,
        bias=part.bias is not None, **options,
    )  # fmt: skip


def _embedding(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    return cylstm.Embedding._undrawn(
        num_embeddings=part.num_embeddings, embedding_dim=part.embedding_dim,
        padding_idx=part.padding_idx, **options,
    )  # fmt: skip


def _conv(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    padding = part.padding
    if isinstance(padding, tuple):
        padding = padding[0]
    return cylstm.Conv1d._undrawn(
        in_channels=part.in_channels, out_channels=part.out_channels,
        kernel_size=part.kernel_size[0], stride=part.stride[0],
        padding=0 if padding == "valid" else padding, dilation=part.dilation[0],
        bias=part.bias is not None, **options,
    )  # fmt: skip


def _layer_norm(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    return cylstm.LayerNorm._undrawn(
        normalized_shape=part.normalized_shape, eps=part.eps, bias=part.bias is not None, **options
    )


def _batch_norm(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    if part.momentum is None:
        raise _refuse(path, "expected BatchNorm1d with a number as momentum, got None")
    return cylstm.BatchNorm._undrawn(
        num_features=part.num_features, eps=part.eps, momentum=part.momentum,
        affine=part.affine, **options,
    )  # fmt: skip


def _dropout(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    return cylstm.Dropout(part.p if kind == "Dropout" else 0.0)  # that of 0 is the identity


def _softmax(path: str, part: Any, kind: str, options: dict[str, Any]) -> Any:
    import cylstm

    return getattr(cylstm, kind)()


_READERS: dict[str, Callable[[str, Any, str, dict[str, Any]], Any]] = {
    **dict.fromkeys(_RECURRENT, _recurrent),
    **{f"{kind}Cell": _cell for kind in _RECURRENT},
    "Linear": _linear,
    "Embedding": _embedding,
    "Conv1d": _conv,
    "LayerNorm": _layer_norm,
    "BatchNorm1d": _batch_norm,
    "Dropout": _dropout,
    "Identity": _dropout,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
}


def _compare(torch: Any, module: Any, found: Any, example: Any) -> None:
    """Refuse a network whose outputs are not the module's."""
    given = example if isinstance(example, torch.Tensor) else torch.as_tensor(np.asarray(example))
    was = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            expected = _first(module(given))
    finally:
        for part, training in was.items():
            part.training = training
    actual = _first(found(given.numpy()))
    wanted = expected.numpy() if isinstance(expected, torch.Tensor) else np.empty(0)
    if actual.shape != wanted.shape:
        how = f"shape {actual.shape} in place of {wanted.shape}"
    else:
        error = np.abs(actual - wanted).max(initial=0)
        if error <= 1e-4 * np.abs(wanted).max(initial=1):
            return
        how = f"one that differs by {error:.3g}"
    raise ValueError(
        "example: expected the output of PyTorch's module from its children, one after the other, "
        f"got {how}"
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


class _Writer:
    """One call of `to_torch`."""

    def __init__(self, nn: Any) -> None:
        self.nn = nn
        self.made: dict[int, Any] = {}

    def write(self, path: str, module: Any) -> Any:
        """Return the torch module that this one becomes."""
        if id(module) not in self.made:
            self.made[id(module)] = self._made(path, module)
        return self.made[id(module)]

    def _made(self, path: str, module: Any) -> Any:
        import torch

        kind = type(module).__name__
        if kind == "Sequential":
            inner = {
                name: self.write(f"{path}.{name}".lstrip("."), child)
                for name, child in module._children.items()
            }
            return self.nn.Sequential(OrderedDict(inner))
        if kind == "Activation":
            return self._activation(path, module)
        if kind not in _WRITERS or type(module).__module__.partition(".")[0] != "cylstm":
            raise _refuse(path, f"expected a module that PyTorch has, got {kind}", TypeError)
        name, options = _WRITERS[kind]
        given = dict(module.config) if kind != "Linear" else _linear_options(module)
        self._check_options(path, module, given, options)
        taken = {n: v for n, v in given.items() if n in options and n != "dtype"}
        if "num_layers" in taken:
            taken["num_layers"] = module.num_layers
        if kind in ("Softmax", "LogSoftmax"):
            taken["dim"] = -1
        elif kind != "Dropout":
            taken["dtype"] = getattr(torch, module.dtype.name)
        if module.params:  # of which nothing is drawn
            found = getattr(self.nn, name)(**taken, device="meta").to_empty(device="cpu")
        else:
            found = getattr(self.nn, name)(**taken)
        self._fill(found, module)
        return found

    def _fill(self, found: Any, module: Any) -> None:
        import torch

        state = module.state_dict(as_torch=True)
        if getattr(module, "tied_to", None) is not None:
            found.weight = self.write("", module.tied_to).weight
            state["weight"] = found.weight.detach()
        if hasattr(found, "num_batches_tracked"):
            state["num_batches_tracked"] = torch.tensor(0)
        found.load_state_dict(state)
        for name, parameter in found.named_parameters():
            if name in module.frozen:
                parameter.requires_grad_(False)

    def _check_options(
        self, path: str, module: Any, given: dict[str, Any], known: tuple[str, ...]
    ) -> None:
        """Refuse what PyTorch's class does not have, unless it is at its default."""
        kind = type(module)
        sizes = {n: given[n] for n in ("input_size", "hidden_size") if n in given}
        usual = dict(kind._undrawn(**sizes).config) if sizes else dict(kind._signature)
        # Of the initial values only, or of a layout that PyTorch's class has not.
        known = (*known, "class", "dtype", "rng", "forget_bias", "tied_to", "batch_first")
        for option, value in given.items():
            if option not in known and value != usual[option]:
                raise _refuse(
                    path, f"expected {option}={usual[option]!r}, which PyTorch has, got {value!r}"
                )
        for option, expected in (("hidden_size", int), ("bias", bool)):
            if option in given and not isinstance(given[option], expected):
                raise _refuse(path, f"expected one {option} for PyTorch, got {given[option]!r}")
        if given.get("padding") == "causal":
            raise _refuse(path, "expected padding that PyTorch has, got 'causal'")

    def _activation(self, path: str, module: Any) -> Any:
        name, *numbers = module._f
        for torch_name, (ours, places) in _ACTIVATIONS.items():
            from cylstm.layers import activations

            usual = activations.KNOWN[ours]
            if usual.name == name and (places or tuple(usual[1:]) == tuple(numbers)):
                given = dict(zip(places, numbers, strict=False))
                return getattr(self.nn, torch_name)(**given)
        raise _refuse(path, f"expected an activation that PyTorch has, got {module!r}")


def _linear_options(module: Any) -> dict[str, Any]:
    """Options of a Linear; a tied one has no configuration."""
    return {n: getattr(module, n) for n in ("in_features", "out_features", "bias", "activation")}


#: Of each class: PyTorch's name of it, and the arguments that it has there.
_WRITERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LSTM": ("LSTM", (*_OF_RECURRENT, "proj_size")),
    "GRU": ("GRU", _OF_RECURRENT),
    "RNN": ("RNN", (*_OF_RECURRENT, "nonlinearity")),
    "Linear": ("Linear", ("in_features", "out_features", "bias")),
    "Embedding": ("Embedding", ("num_embeddings", "embedding_dim", "padding_idx")),
    "Conv1d": ("Conv1d", ("in_channels", "out_channels", "kernel_size", "stride", "padding",
                          "dilation", "bias")),
    "LayerNorm": ("LayerNorm", ("normalized_shape", "eps", "bias")),
    "BatchNorm": ("BatchNorm1d", ("num_features", "eps", "momentum", "affine")),
    "Dropout": ("Dropout", ("p",)),
    "Softmax": ("Softmax", ()),
    "LogSoftmax": ("LogSoftmax", ()),
}  # fmt: skip
