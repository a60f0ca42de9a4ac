"""Whole networks: every recurrent layer made a twin, in place, and back."""

from __future__ import annotations

import torch

from cylstm.torch import modules

_TWINS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.LSTM: modules.LSTM,
    torch.nn.GRU: modules.GRU,
    torch.nn.RNN: modules.RNN,
}
_ORIGINALS = {twin: original for original, twin in _TWINS.items()}


def accelerate(module: torch.nn.Module) -> torch.nn.Module:
    """Have all recurrent layers of a network run by cylstm's kernels, in place.

    Every `torch.nn.LSTM`, `GRU` and `RNN` becomes a twin of `cylstm.torch`: the same object, with
    the same parameters, hooks and mode, of another class. Optimisers, references and state dicts
    stay as they are. Layers of classes derived from them, parametrised ones among these, are left
    alone: their own code may depend on PyTorch's.

    Parameters
    ----------
    module : torch.nn.Module
        A network, or a recurrent layer.

    Returns
    -------
    torch.nn.Module
        The module itself.

    Raises
    ------
    TypeError
        `module` is not a torch.nn.Module.
    """
    for part in _modules(module):
        if twin := _TWINS.get(type(part)):
            part.__class__ = twin
            part._begin()
    return module


def restore(module: torch.nn.Module) -> torch.nn.Module:
    """Undo `accelerate`: every twin becomes a layer of `torch.nn` again, in place.

    Twins that were made as such are changed as well. Parameters stay the same objects.

    Parameters
    ----------
    module : torch.nn.Module
        A network, or a recurrent layer.

    Returns
    -------
    torch.nn.Module
        The module itself.

    Raises
    ------
    TypeError
        `module` is not a torch.nn.Module.
    """
    for part in _modules(module):
        if original := _ORIGINALS.get(type(part)):
            for name in ("_engine", "_number"):
                del part.__dict__[name]
            part.__class__ = original
    return module


def original(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """Return PyTorch's class of a twin's; others as they are."""
    return _ORIGINALS.get(kind, kind)


def _modules(module: torch.nn.Module) -> list[torch.nn.Module]:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    return list(module.modules())
