"""Error after 1000 steps against PyTorch's, on the same weights and input.

    python bench/accuracy.py

Root mean square error of all outputs in float32, cylstm's / PyTorch's; exact is float64.
"""

from __future__ import annotations

import numpy as np
import torch

import cylstm

CELLS = {
    "lstm": (cylstm.LSTM, torch.nn.LSTM, {}),
    "gru": (cylstm.GRU, torch.nn.GRU, {}),
    "rnn_tanh": (cylstm.RNN, torch.nn.RNN, {}),
    "rnn_relu": (cylstm.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}


def ratio(cell: str, hidden: int, steps: int = 1000, rows: int = 4, inputs: int = 12) -> float:
    """RMS error of cylstm's outputs / that of PyTorch's."""
    ours, theirs, options = CELLS[cell]
    layer = ours(inputs, hidden, rng=0, **options)
    exact = ours(inputs, hidden, rng=0, dtype="float64", **options)
    exact.assign(layer.flat_params)
    other = theirs(inputs, hidden, **options)
    other.load_state_dict({n: torch.from_numpy(v) for n, v in layer.state_dict().items()})
    x = np.random.default_rng(1).normal(size=(steps, rows, inputs)).astype(np.float32)
    with torch.no_grad():
        y_torch = other(torch.from_numpy(x))[0].numpy()
    y_exact, y = exact(x)[0], layer(x)[0]
    mine, torchs = (np.sqrt(np.mean((a - y_exact) ** 2)) for a in (y, y_torch))
    return float(mine / torchs)


if __name__ == "__main__":
    print("| cell | " + " | ".join(f"H = {h}" for h in (32, 64, 128, 256, 512)) + " |")
    for cell in CELLS:
        print(
            f"| {cell} | "
            + " | ".join(f"{ratio(cell, h):.2f}" for h in (32, 64, 128, 256, 512))
            + " |"
        )
