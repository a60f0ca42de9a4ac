"""Quick comparison at a few points, for work on the kernels.

    python bench/compare.py --cell lstm --mode inference --points 1,100,64 32,100,256 \
        --threads 1 --peers torch,onnxruntime --rounds 7

Points are B,T,H or B,T,H,I; without them, the whole grid. Everything is shared with the suites.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import worker


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare cylstm with its peers at a few points.")
    parser.add_argument("--cell", choices=["lstm", "gru", "rnn"], nargs="+", default=["lstm"])
    parser.add_argument(
        "--mode", choices=["inference", "training"], nargs="+", default=["inference"]
    )
    parser.add_argument("--points", nargs="+", default=None, metavar="B,T,H[,I]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--peers", default="torch,onnxruntime,openvino,jax", help="comma-separated, may be empty"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    worker.pin(args.threads)

    import cases
    import peers

    wanted = [name for name in args.peers.split(",") if name] + ["cylstm"]
    names = [name for name in wanted if name in peers.installed()]
    if missing := set(wanted) - set(names):
        print(f"not installed, left out: {', '.join(sorted(missing))}")
    limits = worker.probes(args.threads)
    print(f"{args.threads} threads;", ", ".join(f"{v:.0f} {k}" for k, v in limits.items()))
    for cell in args.cell:
        for mode in args.mode:
            points = args.points and [tuple(map(int, p.split(","))) for p in args.points]
            print_table(cases.cases(cell, mode, points or cases.GRID[mode]), names, args)


def print_table(todo: list[Any], names: list[str], args: argparse.Namespace) -> None:
    """Measure cases of one cell and mode and print a line for each."""
    print(f"\n{todo[0].cell} {todo[0].mode}, {args.threads} threads: us per call, median (min)")
    columns = [f"{n:>21}" for n in names]
    columns += [f"{n:>9}" for n in ("ratio", "GFLOP/s", "of peak", "of limit", "others")]
    print(f"{'B,T,H':>14}" + "".join(columns))
    for case in todo:
        print(line(case, names, worker.measure(case, names, args.threads, args.rounds)), flush=True)


def line(case: Any, names: list[str], result: dict[str, Any]) -> str:
    """One point: times, best peer / cylstm, how near cylstm (or the best) is to the limits.

    The last column is the cores other processes kept busy meanwhile.
    """
    from timing import limit_us

    us = {n: median(v) for n, v in result["us"].items()}
    text = f"{case.point:>14}"
    for n in names:
        cell = f"{us[n]:.1f} ({min(result['us'][n]):.1f})" if n in us else "-"
        text += f"{cell:>21}"
    rivals = [us[n] for n in us if n != "cylstm"]
    ratio = f"{min(rivals) / us['cylstm']:.2f}" if "cylstm" in us and rivals else "-"
    best = us.get("cylstm", min(us.values()))
    peak, gflops = result["fma_gflops"], case.flop() / best / 1e3
    limit = limit_us(case, peak, result["read_gbs"])
    text += f"{ratio:>9}{gflops:>9.1f}{gflops / peak:>9.0%}{limit / best:>9.0%}"
    return f"{text}{result['others']:>9.2f}"


if __name__ == "__main__":
    main()
