"""Recurrent layers (LSTM, GRU, vanilla RNN) for the CPU, forward and backward."""

from cylstm.data import load_japanese_vowels
from cylstm.layers import GRU, LSTM, RNN
from cylstm.linear import Embedding, Linear
from cylstm.losses import cross_entropy, mse_loss
from cylstm.optim import SGD, Adam, AdamW, clip_grad_norm
from cylstm.threads import config, get_num_threads, set_num_threads, show_config

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Embedding",
    "Linear",
    "clip_grad_norm",
    "config",
    "cross_entropy",
    "get_num_threads",
    "load_japanese_vowels",
    "mse_loss",
    "set_num_threads",
    "show_config",
]
