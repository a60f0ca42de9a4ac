"""Recurrent layers (LSTM, GRU, vanilla RNN) for the CPU, forward and backward."""

from typing import TYPE_CHECKING, Any

# Before ours: inside nested imports CPython's frames make NumPy's import up to 12 ms slower.
import numpy  # noqa: F401

from cylstm.layers.gru import GRU
from cylstm.layers.lstm import LSTM
from cylstm.layers.rnn import RNN
from cylstm.runtime import config, get_num_threads, set_num_threads, show_config

if TYPE_CHECKING:
    from cylstm import init
    from cylstm.datasets.japanese_vowels import load_japanese_vowels
    from cylstm.io.keras import from_keras
    from cylstm.io.networks import load
    from cylstm.io.onnx import from_onnx, to_onnx
    from cylstm.io.state_files import load_state, save_state
    from cylstm.io.tensors import FormatError
    from cylstm.io.torch import from_torch, to_torch
    from cylstm.layers.activation import Activation, LogSoftmax, Softmax
    from cylstm.layers.augru import AUGRU
    from cylstm.layers.branches import Concat, Residual
    from cylstm.layers.conv import Conv1d
    from cylstm.layers.dropout import Dropout
    from cylstm.layers.embedding import Embedding
    from cylstm.layers.linear import Linear
    from cylstm.layers.minimal import MinGRU, MinLSTM
    from cylstm.layers.norm import BatchNorm, LayerNorm
    from cylstm.layers.pool import Pool
    from cylstm.layers.sequential import Sequential
    from cylstm.layers.slstm import SLSTM
    from cylstm.module import Module
    from cylstm.training.losses import (
        binary_cross_entropy_with_logits,
        cross_entropy,
        huber_loss,
        l1_loss,
        mse_loss,
        quantile_loss,
    )
    from cylstm.training.optim import SGD, Adam, AdamW, clip_grad_norm, clip_grad_value
    from cylstm.training.truncated import truncated_bptt

__version__ = "0.1.0"

__all__ = [
    "AUGRU",
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "SLSTM",
    "Activation",
    "Adam",
    "AdamW",
    "BatchNorm",
    "Concat",
    "Conv1d",
    "Dropout",
    "Embedding",
    "FormatError",
    "LayerNorm",
    "Linear",
    "LogSoftmax",
    "MinGRU",
    "MinLSTM",
    "Module",
    "Pool",
    "Residual",
    "Sequential",
    "Softmax",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "cross_entropy",
    "from_keras",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "huber_loss",
    "init",
    "l1_loss",
    "load",
    "load_japanese_vowels",
    "load_state",
    "mse_loss",
    "quantile_loss",
    "save_state",
    "set_num_threads",
    "show_config",
    "to_onnx",
    "to_torch",
    "truncated_bptt",
]

# What few programs need is imported when it is first used: the others start sooner.
_LATER = {
    "io.keras": ["from_keras"],
    "layers.activation": ["Activation", "LogSoftmax", "Softmax"],
    "layers.augru": ["AUGRU"],
    "datasets.japanese_vowels": ["load_japanese_vowels"],
    "io.networks": ["load"],
    "io.state_files": ["load_state", "save_state"],
    "io.tensors": ["FormatError"],
    "layers.branches": ["Concat", "Residual"],
    "layers.conv": ["Conv1d"],
    "layers.dropout": ["Dropout"],
    "layers.embedding": ["Embedding"],
    "layers.linear": ["Linear"],
    "training.losses": [
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "huber_loss",
        "l1_loss",
        "mse_loss",
        "quantile_loss",
    ],
    "io.onnx": ["from_onnx", "to_onnx"],
    "io.torch": ["from_torch", "to_torch"],
    "layers.minimal": ["MinGRU", "MinLSTM"],
    "module": ["Module"],
    "training.optim": ["SGD", "Adam", "AdamW", "clip_grad_norm", "clip_grad_value"],
    "layers.norm": ["BatchNorm", "LayerNorm"],
    "layers.pool": ["Pool"],
    "layers.sequential": ["Sequential"],
    "layers.slstm": ["SLSTM"],
    "training.truncated": ["truncated_bptt"],
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("init", "torch"):
        return import_module(f"cylstm.{name}")
    for module, names in _LATER.items():
        if name in names:
            found = getattr(import_module(f"cylstm.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'cylstm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
