"""Twins of `torch.nn`'s recurrent layers, run and differentiated by cylstm's kernels.

Needs PyTorch: ``pip install "cylstm[torch]"``.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        'cylstm.torch: expected PyTorch to be installed: pip install "cylstm[torch]"'
    ) from error

from cylstm.torch.modules import GRU, LSTM, RNN
from cylstm.torch.swapping import accelerate, restore

__all__ = ["GRU", "LSTM", "RNN", "accelerate", "restore"]
