"""Streams and pools of an LSTM beside ONNX Runtime with carried state: time, memory, latency.

    python bench/streams.py [--streams N] [--size H] [--rounds R]

Everything in a table runs in turn in the same rounds; figures are medians over the rounds, and
ratios medians of each round's ratio. One stream runs on one thread and one processor; the pool and
its rivals with their default threads. Without ONNX Runtime its lines are left out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from cases import Array

import cylstm

Runs = dict[str, tuple[Callable[[], Any], int]]  # what to run, and how often in one round


def session(layer: cylstm.LSTM, threads: int = 0) -> Any:
    """Return ONNX Runtime's run(x, h, c) -> (h, c) of one step of any number of rows, or None."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    inputs, hidden = layer.input_size, layer.hidden_sizes[0]

    def blocks(name: str) -> Array:
        """Gates in ONNX's order."""
        return np.concatenate([np.split(layer.params[name], 4)[i] for i in (0, 3, 1, 2)])

    weights = {
        "W": blocks("weight_ih_l0")[None],
        "R": blocks("weight_hh_l0")[None],
        "B": np.concatenate([blocks("bias_ih_l0"), blocks("bias_hh_l0")])[None],
    }

    def tensor(name: str, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node(
        "LSTM", ["x", *weights, "", "h", "c"], ["", "h1", "c1"], hidden_size=hidden
    )
    graph = helper.make_graph(
        [node],
        "step",
        [tensor("x", 1, "n", inputs), tensor("h", 1, "n", hidden), tensor("c", 1, "n", hidden)],
        [tensor("h1", 1, "n", hidden), tensor("c1", 1, "n", hidden)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 14)], producer_name="bench", ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x, h, c: made.run(None, {"x": x, "h": h, "c": c})


def timed(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call in each round."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for call, _ in runs.values():
        call()
    for k in range(rounds):
        for name in list(runs)[:: 1 if k % 2 else -1]:
            call, times = runs[name]
            start = time.perf_counter()
            for _ in range(times):
                call()
            found[name].append((time.perf_counter() - start) / times)
    return found


def report(title: str, seconds: dict[str, list[float]], unit: float, base: str) -> None:
    """Print a table; the ratio is to the line `base`."""
    print(f"\n{title}\n")
    for name, own in seconds.items():
        ratio = median(a / b for a, b in zip(own, seconds[base], strict=True))
        print(f"  {name:52}{median(own) / unit:10.2f}{ratio:10.3f}")


def one_stream(layer: cylstm.LSTM, rounds: int) -> None:
    """A step of one row."""
    size = layer.input_size
    x = np.random.default_rng(0).normal(size=(1, 1, size)).astype(np.float32)
    _, state = layer(x)
    stream, pool = layer.stream(num_threads=1), layer.pool(16)
    ids, frame, out = np.array([pool.open()]), x[0, 0].copy(), np.empty(size, np.float32)
    runs: Runs = {
        "layer(x, state)": (lambda: layer(x, state), 500),
        "stream.step(x, out=y)": (lambda: stream.step(frame, out=out), 500),
        "stream.step(x)": (lambda: stream.step(frame), 500),
        "pool.step([id], x, out=y)": (lambda: pool.step(ids, x[0], out=out[None]), 500),
    }
    run = session(layer, 1)
    if run is not None:
        carried = [*state]

        def step() -> None:
            carried[:] = run(x, *carried)

        runs["ONNX Runtime, carried state"] = (step, 100)
    found = timed(runs, rounds)
    report("One stream, one thread: us a step", found, 1e-6, "layer(x, state)")
    for name in ("layer(x, state)", "ONNX Runtime, carried state"):
        if name in found:
            ours = found["stream.step(x, out=y)"]
            ratio = median(a / b for a, b in zip(ours, found[name], strict=True))
            print(f"  stream.step(x, out=y) / {name}: {ratio:.3f}")


def many_streams(layer: cylstm.LSTM, count: int, rounds: int) -> None:
    """A step of all streams of a pool, and of half of them."""
    size, hidden = layer.input_size, layer.hidden_sizes[0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, size)).astype(np.float32)
    out, pool = np.empty((count, hidden), np.float32), layer.pool(count)
    ids = np.array([pool.open() for _ in range(count)])
    some = np.sort(rng.permutation(count)[: count // 2])
    half, x_half, out_half = ids[some].copy(), x[some].copy(), out[some].copy()
    runs: Runs = {
        "pool.step, all": (lambda: pool.step(ids, x, out=out), 3),
        "pool.step, half of them": (lambda: pool.step(half, x_half, out=out_half), 3),
        "pool.step, all, one thread": (lambda: pool.step(ids, x, out=out, num_threads=1), 2),
    }
    run = session(layer)
    if run is not None:
        h, c = np.zeros((2, 1, count, hidden), np.float32)
        rows = np.arange(count)

        def batched() -> None:
            h[:, rows], c[:, rows] = run(x[None], h[:, rows], c[:, rows])

        states = [[*np.zeros((2, 1, 1, hidden), np.float32)] for _ in range(count)]
        frames = list(x[:, None, None])

        def loop() -> None:
            for k, frame in enumerate(frames):
                states[k] = run(frame, *states[k])

        runs["ONNX Runtime, one batch, gathered and scattered"] = (batched, 2)
        runs["ONNX Runtime, a loop over streams"] = (loop, 1)
    found = timed(runs, rounds)
    report(f"{count} streams: ms a step of each", found, 1e-3, "pool.step, all")


def latency(layer: cylstm.LSTM, clients: int, seconds: float) -> None:
    """Time from a frame's arrival to its output, of clients that send 100 frames a second each."""
    print(f"\nA server, {clients} clients of 100 frames a second: ms from arrival to output\n")
    print(f"  {'latency=':12}{'median':>10}{'p99':>10}{'frames a flush':>18}")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(clients, layer.input_size)).astype(np.float32)
    for limit in (0.0, 0.001, 0.005):
        pool = layer.pool(clients, latency=limit)
        ids = [pool.open() for _ in range(clients)]
        at = np.sort(rng.uniform(0, seconds, int(100 * clients * seconds)))
        who = rng.integers(clients, size=len(at))
        done, sent, waits, flushes = 0, 0, np.empty(len(at)), 0
        start = time.perf_counter()
        while done < len(at):
            now = time.perf_counter() - start
            while sent < len(at) and at[sent] <= now:
                pool.submit(ids[who[sent]], x[who[sent]])
                sent += 1
            if pool.due() == 0:
                pool.flush()
                flushes += 1
                waits[done:sent] = time.perf_counter() - start - at[done:sent]
                done = sent
        p50, p99 = np.percentile(1e3 * waits, [50, 99])
        print(f"  {limit:<12}{p50:10.2f}{p99:10.2f}{len(at) / flushes:18.1f}")


def memory(layer: cylstm.LSTM, count: int) -> None:
    """Bytes of a stream, as the process grows."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pool, x = layer.pool(2 * count), np.ones((count, layer.input_size), np.float32)
    first = np.array([pool.open()])
    pool.step(first, x[:1], num_threads=1)
    out, before = np.empty((count, layer.hidden_sizes[0]), np.float32), resident()
    out[...] = 0
    before = resident()
    ids = np.array([pool.open() for _ in range(count)])
    pool.step(ids, x, out=out, num_threads=1)
    state = 2 * layer.hidden_sizes[0] * 4
    size = (resident() - before) / count
    print(f"\nA stream of a pool: {size:.0f} bytes, {size / state:.2f} times its state ({state})")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    layer = cylstm.LSTM(given.size, given.size, rng=0)
    memory(layer, given.streams)
    many_streams(layer, given.streams, max(3, given.rounds // 3))
    latency(layer, 200, 2.0)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    one_stream(layer, 2 * given.rounds)
    os.sched_setaffinity(0, allowed)


if __name__ == "__main__":
    main()
