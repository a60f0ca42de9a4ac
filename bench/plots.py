"""Plots of the report: ratios as bars, roofline, time against H, T, B and threads."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from report import ENGINES, OWN, Results, Row, ratios_of, threads_text, time_of

COLOURS = dict(zip(ENGINES, ["#d62728", "#ff7f0e", "#1f77b4", "#2ca02c", "#9467bd"], strict=True))


def draw(results: Results, folder: Path) -> None:
    """Write every plot there is data for."""
    for threads in sorted({key[2] for key in results.grid}):
        ratios(results, threads, folder / f"ratios_{threads}.png")
        roofline(results, threads, folder / f"roofline_{threads}.png")
    if "test_sweeps" in results.tests:
        sweeps(results.tests["test_sweeps"], folder / "sweeps.png")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ratios(results: Results, threads: int, path: Path) -> None:
    """Bars of peer time / cylstm time, one group per point of the grid."""
    keys = [key for key in sorted(results.grid) if key[2] == threads]
    if not all(OWN in engines for key in keys for engines in results.grid[key].values()):
        return
    figure, axes = plt.subplots(len(keys), figsize=(10, 2.8 * len(keys)), squeeze=False)
    for axis, key in zip(axes[:, 0], keys, strict=True):
        points = results.grid[key]
        names = [n for n in ENGINES[1:] if any(n in e for e in points.values())]
        for i, name in enumerate(names):
            # Bars rise or fall from 1.
            heights = [median(ratios_of(e, name)) - 1 if name in e else 0 for e in points.values()]
            at = [x + (i - (len(names) - 1) / 2) * 0.8 / len(names) for x in range(len(points))]
            axis.bar(at, heights, 0.8 / len(names), 1, label=name, color=COLOURS[name])
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(yscale="log", ylabel="peer / cylstm", xticks=range(len(points)))
        axis.set_xticklabels(points)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(f"{key[0].upper()} {key[1]}, {threads_text(threads)} (B,T,H)", fontsize=10)
        axis.legend(fontsize=8)
    _save(figure, path)


def roofline(results: Results, threads: int, path: Path) -> None:
    """GFLOP/s against FLOP per byte of recurrent weights, under the probed roofs."""
    keys = [key for key in sorted(results.grid) if key[2] == threads]
    figure, axes = plt.subplots(1, len(keys), figsize=(4.5 * len(keys), 4), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        rows = [r for engines in results.grid[key].values() for r in engines.values()]
        for name in ENGINES:
            mine = [r for r in rows if r["engine"] == name]
            axis.plot(
                [r["intensity"] for r in mine],
                [r["gflops"] for r in mine],
                "o",
                color=COLOURS[name],
                label=name,
                markersize=5 + 2 * (name == OWN),
            )
        intensities = sorted({r["intensity"] for r in rows})
        peak = median(r["fma_gflops"] for r in rows)
        axis.axhline(peak, color="black", linewidth=0.8)
        for read in sorted({round(r["read_gbs"], -1) for r in rows}):
            roof = [min(peak, read * x) for x in intensities]
            axis.plot(intensities, roof, color="grey", linewidth=0.5)
        axis.set(xscale="log", yscale="log", xlabel="FLOP / byte of recurrent weights")
        axis.set_ylabel("GFLOP/s")
        axis.set_title(f"{key[0].upper()} {key[1]}, {threads_text(threads)}", fontsize=10)
        axis.legend(fontsize=8)
    _save(figure, path)


def sweeps(rows: list[Row], path: Path) -> None:
    """Time of a call against H, B and T; lines are one thread, dashes two."""
    modes = sorted({r["mode"] for r in rows})
    figure, axes = plt.subplots(len(modes), 3, figsize=(13, 4 * len(modes)), squeeze=False)
    for line, mode in zip(axes, modes, strict=True):
        for axis, size in zip(line, "HBT", strict=True):
            fixed = {"H": ("B", 16, "T", 50), "B": ("T", 50, "H", 128), "T": ("B", 16, "H", 128)}
            a, va, b, vb = fixed[size]
            chosen = [r for r in rows if r["mode"] == mode and r[a] == va and r[b] == vb]
            for name in ENGINES:
                for threads, style in ((1, "-o"), (2, "--.")):
                    mine = sorted(
                        (r[size], time_of(r))
                        for r in chosen
                        if r["engine"] == name and r["threads"] == threads
                    )
                    label = name if threads == 1 else None
                    if mine:
                        axis.plot(*zip(*mine, strict=True), style, color=COLOURS[name], label=label)
            axis.set(xscale="log", yscale="log", xlabel=size, ylabel="us per call")
            axis.set_xticks(sorted({r[size] for r in chosen}), minor=False)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
            axis.set_title(f"LSTM {mode}, {a}={va}, {b}={vb}; dashed: 2 threads", fontsize=10)
            axis.legend(fontsize=8)
    _save(figure, path)
