"""The figure of the demo: training curves, gates over time, and how far gradients reach.

Needs matplotlib, used without pyplot: no backend is chosen and no global state touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from cylstm.datasets.japanese_vowels import Utterances
from cylstm.examples.japanese_vowels import CELLS, FEATURES, HIDDEN, Epoch, SpeakerNet, valid_frames
from cylstm.layers.recurrent import Recurrent
from cylstm.module import Array

# Steps from the first frame to the loss, and sequences averaged over.
LAG = 100
ROWS = 32

SHOWN = {
    "lstm": ("input", "forget", "output", "cell"),
    "gru": ("reset", "update", "candidate", "hidden"),
    "rnn": ("hidden",),
}
TITLES = {
    "input": "input gate",
    "forget": "forget gate",
    "output": "output gate",
    "cell": "cell state",
    "reset": "reset gate",
    "update": "update gate",
    "candidate": "candidate",
    "hidden": "hidden state",
}
GATES = ("input", "forget", "output", "reset", "update")

CAPTION = (
    f"Bottom: {LAG + 1} frames of test utterances joined end to end are read in one direction; the "
    "loss is a random combination of the last output alone. Shown is the Euclidean norm of "
    "dloss/dx of the frame k steps\n"
    f"earlier, mean over {ROWS} sequences, divided by that at k = 0, in float64. Untrained weights "
    f"are uniform within 1/sqrt({HIDDEN}) for every cell, as PyTorch draws them: LSTM and GRU then "
    "lose the gradient too,\n"
    "as their gates start half open. A forget bias opens the LSTM's forget gate, so that its cell "
    "state carries the gradient on. Trained here: the forward direction after training on "
    "utterances of at most 26 frames."
)


def gradient_flow(layer: Recurrent, frames: Array) -> Array:
    """Norm of the gradient that reaches each frame from a loss on the last output alone.

    The loss is the product of every row's last output with the same random vector.

    Parameters
    ----------
    layer : Recurrent
        One direction.
    frames : ndarray of shape (T, B, I)

    Returns
    -------
    ndarray of shape (T,)
        Entry k is the Euclidean norm of dloss/dx[T-1-k], mean over the rows, relative to entry 0.
    """
    y, _, tape = layer.forward(frames)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(0).standard_normal(y.shape[2])
    dx, _ = layer.backward(tape, dy)
    norm = np.linalg.norm(dx, axis=2).mean(axis=1)[::-1]
    flow: Array = norm / norm[0]
    return flow


def gradient_flows(net: SpeakerNet, part: Utterances) -> dict[str, Array]:
    """Gradient flow in the forward direction of a trained network, and in untrained layers.

    Parameters
    ----------
    net : SpeakerNet
    part : Utterances
        Read as if they were one long utterance, cut into `ROWS` sequences.

    Returns
    -------
    dict of str to ndarray of shape (LAG + 1,)
        By label: what the weights are.
    """
    frames = valid_frames(part)[: ROWS * (LAG + 1)]
    frames = frames.reshape(ROWS, LAG + 1, FEATURES).swapaxes(0, 1)
    options: dict[str, dict[str, Any]] = {"untrained": {}}
    if net.cell == "lstm":
        options |= {f"untrained, forget bias {b}": {"forget_bias": b} for b in (1, 3)}
    layers = {
        label: CELLS[net.cell](FEATURES, HIDDEN, dtype="float64", rng=0, **option)
        for label, option in options.items()
    }
    layers["trained here"] = net.one_direction(dtype="float64")
    return {label: gradient_flow(layer, frames) for label, layer in layers.items()}


def write(
    path: Path,
    cell: str,
    history: Sequence[Epoch],
    trace: Mapping[str, Array],
    flows: Mapping[str, Mapping[str, Array]],
) -> None:
    """Draw everything into one PNG.

    Parameters
    ----------
    path : Path
    cell : {"lstm", "gru", "rnn"}
        The cell of `history` and `trace`.
    history : sequence of Epoch
    trace : mapping of str to ndarray of shape (T, H)
        What went on inside the layer over one utterance.
    flows : mapping of str to mapping of str to ndarray
        Of each cell, what `gradient_flows` returns.
    """
    figure = Figure(figsize=(14, 9.5), layout="constrained")
    top, bottom, foot = figure.subfigures(3, 1, squeeze=False, height_ratios=(1, 1, 0.17))[:, 0]
    left, right = top.subfigures(1, 2, width_ratios=(1, 2))
    draw_curves(left, cell, history)
    draw_gates(right, cell, trace)
    draw_flows(bottom, flows)
    foot.text(0.02, 0.5, CAPTION, va="center", fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def draw_curves(figure: SubFigure, cell: str, history: Sequence[Epoch]) -> None:
    """Draw loss and accuracy over the epochs."""
    figure.suptitle(f"Training the bidirectional {cell.upper()}")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(history) + 1)
    marker = "." if len(history) < 3 else ""
    above.semilogy(epochs, [e.loss for e in history], marker=marker, color="black")
    above.set_ylabel("loss, with noise")
    below.plot(epochs, [100 * e.train for e in history], marker=marker, label="train")
    below.plot(epochs, [100 * e.test for e in history], marker=marker, label="test")
    below.set(ylabel="accuracy, %", xlabel="epoch")
    below.set_ylim(bottom=min(80, 90 * history[-1].test), top=100.5)  # not the very first epochs
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)


def draw_gates(figure: SubFigure, cell: str, trace: Mapping[str, Array]) -> None:
    """Draw gates and states of one utterance, units against frames."""
    names = SHOWN[cell]
    steps, units = trace["hidden"].shape
    sorted_by = names[min(1, len(names) - 1)]
    order = trace[sorted_by].mean(axis=0).argsort()
    figure.suptitle(f"Inside the {cell.upper()} over one test utterance, forward direction")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        values = trace[name][:, order].T
        limit = 1.0 if name != "cell" else float(np.abs(values).max())
        low, colours = (0.0, "viridis") if name in GATES else (-limit, "RdBu_r")
        image = axes.imshow(
            values, colours, vmin=low, vmax=limit, aspect="auto", interpolation="nearest",
            extent=(0.5, steps + 0.5, units + 0.5, 0.5),
        )  # fmt: skip
        axes.set_title(TITLES[name], fontsize=10)
        axes.set_xlabel("frame")
        ticks = None if name == "cell" else np.linspace(low, limit, 3)
        figure.colorbar(image, ax=axes, location="bottom", aspect=15, ticks=ticks)
    panels[0].set_ylabel(f"unit, sorted by mean {TITLES[sorted_by]}")


def draw_flows(figure: SubFigure, flows: Mapping[str, Mapping[str, Array]]) -> None:
    """Draw the gradient flow of the cells side by side on one scale."""
    figure.suptitle("Gradient that reaches the input k steps before the loss")
    panels = figure.subplots(1, len(flows), sharey=True)
    styles = {
        "untrained": ("black", "-"),
        "untrained, forget bias 1": ("tab:blue", "--"),
        "untrained, forget bias 3": ("tab:green", "--"),
        "trained here": ("tab:red", "-"),
    }
    for axes, (cell, curves) in zip(panels, flows.items(), strict=True):
        for label, norm in curves.items():
            colour, style = styles[label]
            axes.semilogy(norm, color=colour, linestyle=style, label=label)
        axes.set_title(cell.upper())
        axes.set_xlabel("lag k, frames")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize=9)
    panels[0].set_yticks(10.0 ** np.arange(-30, 1, 5))
    least = min(norm.min() for curves in flows.values() for norm in curves.values())
    panels[0].set_ylim(0.1 * least, 10)
    panels[0].set_ylabel("gradient norm, relative to lag 0")
