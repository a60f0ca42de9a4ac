"""Turn the suites' JSON into Markdown tables and plots.

    python bench/report.py [bench/results/NAME.json ...]

Without arguments, the newest file there; of several, the later ones win. Writes report.md and
PNGs beside the last, and prints the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

OWN = "cylstm"
ENGINES = [OWN, "torch", "onnxruntime", "openvino", "jax"]
Row = dict[str, Any]  # one engine at one point: the suites' extra_info
# (cell, mode, threads) -> point -> engine -> row
Tables = dict[tuple[str, str, int], dict[str, dict[str, Row]]]


@dataclass
class Results:
    """Everything measured, by what it is about."""

    about: dict[str, Any] = field(default_factory=dict)
    grid: Tables = field(default_factory=dict)
    points: Tables = field(default_factory=dict)  # those of the grid and all others
    tests: dict[str, list[Row]] = field(default_factory=dict)


def load(paths: list[Path]) -> Results:
    """Read pytest-benchmark's JSON files."""
    out, versions = Results(), {}
    for path in paths:
        data = json.loads(path.read_text())
        out.about = {"machine": data["machine_info"], "date": data["datetime"]}
        for entry in data["benchmarks"]:
            test, row = entry["name"].split("[")[0], entry["extra_info"]
            out.tests.setdefault(test, []).append(row)
            if "threads" not in row:
                continue
            versions[row["engine"]] = row["version"]
            key = row["cell"], row["mode"], row["threads"]
            for table in [out.points] + [out.grid] * (test == "test_grid"):
                table.setdefault(key, {}).setdefault(row["point"], {})[row["engine"]] = row
    out.about["versions"] = versions
    return out


def time_of(row: Row) -> float:
    """Microseconds per call."""
    return float(median(row["us"]))


def best_peer(engines: dict[str, Row]) -> Row | None:
    """The fastest engine but cylstm."""
    return min((r for n, r in engines.items() if n != OWN), key=time_of, default=None)


def ratios_of(engines: dict[str, Row], name: str) -> list[float]:
    """Time of an engine / time of cylstm, round by round."""
    return [a / b for a, b in zip(engines[name]["us"], engines[OWN]["us"], strict=True)]


def threads_text(threads: int) -> str:
    """Thread count in words."""
    return f"{threads} thread" + "s" * (threads > 1)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Build a Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def us(value: float) -> str:
    """Three significant digits, whole from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def point_table(points: dict[str, dict[str, Row]]) -> str:
    """Times, ratios and fractions of the limits, one line per point."""
    names = [n for n in ENGINES if any(n in engines for engines in points.values())]
    head = ["B,T,H", *names, "best peer / cylstm", "GFLOP/s", "of FMA peak", "of limit", "others"]
    rows = []
    for point, engines in points.items():
        times = [us(time_of(engines[n])) if n in engines else "" for n in names]
        peer, own = best_peer(engines), engines.get(OWN)
        ratio = ""
        if peer and own:
            ratios = ratios_of(engines, peer["engine"])
            ratio = f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        shown = own or peer
        assert shown is not None
        limits = [f"{shown['gflops']:.0f}", f"{shown['of_peak']:.0%}", f"{shown['of_limit']:.0%}"]
        rows.append([point, *times, ratio, *limits, f"{shown['others']:.2f}"])
    return table(head, rows)


def summary(results: Results) -> str:
    """Least ratio and geometric mean over the grid."""
    rows = []
    for (cell, mode, threads), points in sorted(results.grid.items()):
        ratios = {}
        for point, engines in points.items():
            if OWN in engines and (peer := best_peer(engines)):
                ratios[point] = median(ratios_of(engines, peer["engine"]))
        if ratios:
            worst = min(ratios, key=lambda p: ratios[p])
            rows.append(
                [
                    f"{cell.upper()} {mode}, {threads_text(threads)}",
                    f"{ratios[worst]:.2f}",
                    worst,
                    f"{geometric_mean(ratios.values()):.2f}",
                ]
            )
    head = ["best peer's time / cylstm's", "least", "at B,T,H", "geometric mean over the grid"]
    return table(head, rows)


Key = tuple[str, str, int, str]  # cell, mode, threads, point


def _one_thread(row: Row) -> Key | None:
    return (row["cell"], row["mode"], 1, row["point"]) if row["threads"] == 2 else None


def _lstm(row: Row) -> Key | None:
    return ("lstm", row["mode"], row["threads"], row["point"]) if row["cell"] == "gru" else None


def _without(ending: str) -> Callable[[Row], Key | None]:
    """Make the partner the same point without what its name ends in."""

    def partner(row: Row) -> Key | None:
        point = row["point"]
        key = row["cell"], row["mode"], row["threads"], point.removesuffix(ending)
        return key if point.endswith(ending) else None

    return partner


def pair_tables(results: Results) -> Iterator[str]:
    """Ratios of times between related cases, for every engine."""
    yield pair_table("Two threads / one", results.grid, _one_thread)
    yield pair_table("GRU / LSTM", results.grid, _lstm)
    for title, ending in {
        "60 % real steps / full batch": ",60% real",
        "Loss on the last step / on all steps": ",last step's loss",
        "One core busy / alone": ",busy core",
    }.items():
        yield pair_table(title, results.points, _without(ending))


def pair_table(title: str, tables: Tables, partner: Callable[[Row], Key | None]) -> str:
    """Time of each case that has a partner / time of the partner."""
    rows = []
    for (cell, mode, threads), points in sorted(tables.items()):
        for point, engines in points.items():
            key = partner(next(iter(engines.values())))
            other = tables.get(key[:3], {}).get(key[3], {}) if key else {}
            both = [
                f"{time_of(engines[n]) / time_of(other[n]):.2f}"
                if n in engines and n in other
                else ""
                for n in ENGINES
            ]
            if other:
                name = f"{cell.upper()} {mode} {point}, {threads_text(threads)}"
                rows.append([name, *both])
    return f"### {title}\n\n" + table([title, *ENGINES], rows) if rows else ""


def memory_table(rows: list[Row]) -> str:
    """Peak memory per engine, and the documented formula."""
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = f"{row['cell'].upper()} {row['mode']} {row['point']}"
        by_case.setdefault(name, {})[row["engine"]] = row
    lines = []
    for name, engines in by_case.items():
        peaks = [
            f"{engines[n]['memory']['peak'] / 2**20:.1f}" if n in engines else "" for n in ENGINES
        ]
        formula, floats = "", ""
        if OWN in engines:
            nbytes = engines[OWN]["memory"]["formula"]
            formula = f"{nbytes / 2**20:.1f}"
            floats = f"{nbytes / 4 / engines[OWN]['floats']:.2f}"
        lines.append([name, *peaks, formula, floats])
    head = ["MiB", *ENGINES, "workspace_nbytes", "floats per unit, row and step"]
    return table(head, lines)


def options_table(rows: list[Row]) -> str:
    """Time of each option / time of the plain cell, and their multiply-adds."""
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(row["option"], {})[row["mode"]] = row
    lines = []
    for name, modes in by_name.items():
        cells = []
        for mode in ("inference", "training"):
            row = modes.get(mode, {"us": [], "plain_us": []})
            ratios = [a / b for a, b in zip(row["us"], row["plain_us"], strict=True)]
            cells.append(f"{median(ratios):.2f}" if ratios else "")
        lines.append([name, *cells, f"{next(iter(modes.values()))['work']:.2f}"])
    return table(["option / plain cell", "inference", "training", "multiply-adds"], lines)


def header(about: dict[str, Any]) -> str:
    """Machine, versions and date."""
    machine = about["machine"]
    cpu = machine["cpu"]
    versions = ", ".join(f"{n} {v}" for n, v in sorted(about["versions"].items()))
    return (
        f"{cpu.get('brand_raw', cpu['arch'])} (family {cpu.get('family')}, model "
        f"{cpu.get('model')}), {cpu['count']} cores, "
        f"{machine['system']}, Python {machine['python_version']}; {versions}; "
        f"{about['date'][:10]}. Microseconds per call, float32, medians of interleaved rounds; "
        "ratios are the best peer's time / cylstm's, median (least to most) over the rounds; "
        "GFLOP/s and fractions are cylstm's, against the FMA peak and the limit probed in the "
        "same run; `others` is the cores that other processes kept busy meanwhile.\n"
    )


def write(results: Results) -> str:
    """The whole report."""
    parts = ["# Benchmark\n", header(results.about), summary(results)]
    if "test_probes" in results.tests:
        probes = [row["probes"] for row in results.tests["test_probes"]]
        rows = [[f"{value:.0f}" for value in line.values()] for line in probes]
        parts += ["## Limits of the machine\n", table(list(probes[0]), rows)]
    for (cell, mode, threads), points in sorted(results.grid.items()):
        parts += [f"## {cell.upper()} {mode}, {threads_text(threads)}\n", point_table(points)]
    parts.append("## Beyond the grid\n")
    for (cell, mode, threads), points in sorted(results.points.items()):
        grid = results.grid.get((cell, mode, threads), {})
        rest = {p: e for p, e in points.items() if p not in grid}
        if rest:
            parts += [f"### {cell.upper()} {mode}, {threads_text(threads)}\n", point_table(rest)]
    parts += ["## Between related cases\n", *pair_tables(results)]
    if "test_option" in results.tests:
        parts += [
            "## Options, B=16, T=100, H=128, one thread\n",
            options_table(results.tests["test_option"]),
        ]
    if "test_memory" in results.tests:
        parts += [
            "## Peak memory of three calls (JAX's with its compiler)\n",
            memory_table(results.tests["test_memory"]),
        ]
    if "test_import" in results.tests:
        imports = results.tests["test_import"]
        rows = [[row["package"], f"{median(row['us']) / 1e6:.2f}"] for row in imports]
        parts += ["## Import\n", table(["package", "seconds"], rows)]
    return "\n".join(parts)


def main() -> None:
    """Read, write, plot."""
    import plots

    folder = Path(__file__).with_name("results")
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    paths = [Path(p) for p in sys.argv[1:]] or found[-1:]  # the newest
    if not paths:
        sys.exit(f"no results in {folder}: run pytest bench/ --benchmark-json={folder}/NAME.json")
    results = load(paths)
    text = write(results)
    paths[-1].with_name("report.md").write_text(text)
    print(text)
    plots.draw(results, paths[-1].parent)


if __name__ == "__main__":
    main()
