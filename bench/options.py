"""Every option beside the plain cell of the same sizes: what it costs, and what it computes more.

    python bench/options.py [words of option names]

Both run in turn in the same rounds; a ratio is option / plain. The second figure is the ratio of
their multiply-adds, which is all that a ratio may be without being called slow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

B, T, H = 16, 100, 128

# name: (class, constructor's options, options of the call, work relative to the plain cell's)
OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "proj_size=64": ("LSTM", {"proj_size": H // 2}, {}, (4 * 1.5 + 0.5) / 8),
    "peepholes": ("LSTM", {"peepholes": True}, {}, 1),
    "coupled": ("LSTM", {"coupled": True}, {}, 3 / 4),
    "clip": ("LSTM", {"clip": 3.0}, {}, 1),
    "cell_clip": ("LSTM", {"cell_clip": 3.0}, {}, 1),
    "layer_norm=haste": ("LSTM", {"layer_norm": "haste"}, {}, 1),
    "layer_norm=tflite": ("LSTM", {"layer_norm": "tflite"}, {}, 1),
    "hard sigmoids": ("LSTM", {"activations": ("HardSigmoid", "Tanh", "Tanh")}, {}, 1),
    "softplus, elu, softsign": ("LSTM", {"activations": ("Softplus", "Elu", "Softsign")}, {}, 1),
    "zoneout": ("LSTM", {"zoneout": 0.1, "zoneout_cell": 0.1}, {}, 1),
    "recurrent_dropout": ("LSTM", {"recurrent_dropout": 0.2}, {}, 1),
    "dropconnect": ("LSTM", {"dropconnect": 0.2}, {}, 1),
    "go_backwards": ("LSTM", {"go_backwards": True}, {}, 1),
    "GRU reset_after=False": ("GRU", {"reset_after": False}, {}, 1),
    "GRU layer_norm": ("GRU", {"layer_norm": "haste"}, {}, 1),
    "GRU clip": ("GRU", {"clip": 3.0}, {}, 1),
    "AUGRU": ("AUGRU", {}, {"attention": True}, 1),
    "MinGRU": ("MinGRU", {}, {}, 1),
    "MinLSTM": ("MinLSTM", {}, {}, 3 / 8),
    "SLSTM": ("SLSTM", {}, {}, 1),
    "SLSTM num_heads=4": ("SLSTM", {"num_heads": 4}, {}, 5 / 8),
    "SLSTM forget_gate=exp": ("SLSTM", {"forget_gate": "exp"}, {}, 1),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}, {}, 1),
    "RNN elu": ("RNN", {"nonlinearity": "Elu"}, {}, 1),
    "RNN independent": ("RNN", {"independent": True}, {}, 1 / 2),
    "bidirectional sum": ("LSTM", {"bidirectional": True, "merge_mode": "sum"}, {}, 2),
    "hidden_size=(128, 64)": ("LSTM", {"hidden_size": (H, H // 2)}, {}, 1 + 3 / 8),
    "bias=single": ("LSTM", {"bias": "single"}, {}, 1),
    "learn_initial_state": ("LSTM", {"learn_initial_state": True}, {}, 1),
    "mask": ("LSTM", {}, {"mask": "holes"}, 0.9),
    "reset": ("LSTM", {}, {"reset": "episodes of 20 steps"}, 1),
    "list": ("LSTM", {}, {"list": True}, 0.8),
    "return last": ("LSTM", {}, {"return_": "last"}, 1),
    "return every 4th": ("LSTM", {}, {"return_": 4}, 1),
    "return mean": ("LSTM", {}, {"return_": "mean"}, 1),
    "return max": ("LSTM", {}, {"return_": "max"}, 1),
    "checkpoint=sqrt": ("LSTM", {}, {"checkpoint": "sqrt"}, 1),
    "clip_step": ("LSTM", {}, {"clip_step": 1.0}, 1),
}
# What a class is compared with, if not with itself without options.
PLAIN = {"LSTM": "", "AUGRU": "GRU", "MinGRU": "RNN", "MinLSTM": "", "SLSTM": ""}
TRAINING_ONLY = ("checkpoint", "clip_step")


def run_of(name: str, mode: str, threads: int) -> Callable[[], Any]:
    """Build one option ("" is the plain LSTM, "GRU" and "RNN" the others) and return its call."""
    import cylstm

    kind, options, call, _ = OPTIONS.get(name, (name or "LSTM", {}, {}, 1))
    options = {"hidden_size": H} | options
    layer = getattr(cylstm, kind)(H, **options, rng=0)
    rng = np.random.default_rng(0)
    x: Any = rng.standard_normal((T, B, H), np.float32)
    call = {"num_threads": threads} | call
    if "mask" in call:
        call["mask"] = rng.random((T, B)) < 0.9
    if "attention" in call:
        call["attention"] = rng.random((T, B), np.float32)
    if "reset" in call:
        call["reset"] = rng.random((T, B)) < 1 / 20
    if call.pop("list", False):
        x = [x[: T - T * b * 2 // (5 * (B - 1)), b] for b in range(B)]
    backward = {key: call.pop(key) for key in ("clip_step",) if key in call}
    if mode == "inference":
        return lambda: layer(x, **call)
    y, _, _ = layer.forward(x, **call)
    dy = [0.1 * part for part in y] if isinstance(y, list) else 0.1 * y

    def train() -> None:
        _, _, tape = layer.forward(x, **call)
        layer.backward(tape, dy, **backward, num_threads=threads)

    return train


def measure(name: str, mode: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds per call of an option and of its plain cell, round by round."""
    plain = PLAIN.get(OPTIONS[name][0], OPTIONS[name][0])
    runs = {"option": run_of(name, mode, threads), "plain": run_of(plain, mode, threads)}
    us: dict[str, list[float]] = {key: [] for key in runs}
    for i in range(rounds + 1):
        for key in list(runs)[:: 1 if i % 2 else -1]:
            calls = 10 if mode == "inference" else 4
            start = time.perf_counter()
            for _ in range(calls):
                runs[key]()
            us[key].append((time.perf_counter() - start) / calls * 1e6)
    return {key: values[1:] for key, values in us.items()}


def modes_of(name: str) -> list[str]:
    """Modes in which an option does anything."""
    training_only = any(word in name for word in TRAINING_ONLY)
    return ["training"] if training_only else ["inference", "training"]


def main() -> None:
    """Print a line per option."""
    import worker

    worker.pin(1)
    for name in OPTIONS:
        if not all(word in name for word in sys.argv[1:]):
            continue
        words = []
        for mode in modes_of(name):
            us = measure(name, mode, 1, 5)
            ratio = median(a / b for a, b in zip(us["option"], us["plain"], strict=True))
            words.append(f"{mode} {ratio:.2f}")
        print(f"{name:26} {'  '.join(words):32} work {OPTIONS[name][3]:.2f}")


if __name__ == "__main__":
    main()
