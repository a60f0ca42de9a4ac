"""What the arguments of a call cost: one step of one row of an LSTM, beside the plain call.

    python bench/calls.py [words of the forms]

All forms run in turn in the same rounds; a ratio is form / plain call with a state, the median over
the rounds. ONNX Runtime's session is the last line, where it is installed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from cases import Case, problem

SIZE, ROUNDS, CALLS = 64, 41, 300


def forms() -> dict[str, Callable[[], Any]]:
    """Return the calls by name; the first is the plain one."""
    import cylstm

    rng = np.random.default_rng(0)
    layer = cylstm.LSTM(SIZE, SIZE, rng=0)
    x = rng.normal(size=(1, 1, SIZE)).astype(np.float32)
    two = rng.normal(size=(1, 2, SIZE)).astype(np.float32)
    y, state = layer(x)
    out, state_out = np.empty_like(y), tuple(np.empty_like(part) for part in state)
    lengths, mask, reset = np.array([1]), np.ones((1, 1), bool), np.zeros((1, 1), bool)
    wide, strided = x.astype(float), np.repeat(x, 2, axis=2)[..., ::2]
    shapes = iter(lambda turns=[0]: turns.__setitem__(0, 1 - turns[0]) or turns[0], None)
    return {
        "plain": lambda: layer(x, state),
        "no state": lambda: layer(x),
        "out=": lambda: layer(x, state, out=out),
        "out=, state_out=": lambda: layer(x, state, out=out, state_out=state_out),
        "lengths=": lambda: layer(x, state, lengths=lengths),
        "mask=": lambda: layer(x, state, mask=mask),
        "reset=": lambda: layer(x, state, reset=reset),
        "return_='last'": lambda: layer(x, state, return_="last"),
        "return_='final'": lambda: layer(x, state, return_="final"),
        "return_='mean'": lambda: layer(x, state, return_="mean"),
        "return_=1": lambda: layer(x, state, return_=1),
        "a list": lambda: layer([x[0]], state),
        "float64 x": lambda: layer(wide, state),
        "strided x": lambda: layer(strided, state),
        "two shapes by turns": lambda: layer(x, state) if next(shapes) else layer(two),
        "forward": lambda: layer.forward(x, state),
    }


def session() -> Callable[[], Any] | None:
    """Return ONNX Runtime's call of such a layer with carried state, if it is installed."""
    try:
        from peers.ort import OnnxRuntime
    except ImportError:
        return None
    case = Case("lstm", "inference", 1, 1, SIZE)
    return OnnxRuntime(case, problem(case), 1).infer


def main() -> None:
    """Measure and print a table."""
    calls = forms()
    peer = session()
    if peer is not None:
        calls["ONNX Runtime"] = peer
    words = sys.argv[1:]
    if words:
        calls = {k: v for k, v in calls.items() if k == "plain" or any(w in k for w in words)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(CALLS):
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.perf_counter() - began) / CALLS)
    plain = seconds["plain"]
    print(f"LSTM, one step of one row, I = H = {SIZE}: {1e6 * min(plain):.2f} us at best\n")
    print("| form | of the plain call |\n| --- | ---: |")
    for name, found in seconds.items():
        print(f"| {name} | {median(a / b for a, b in zip(found, plain, strict=True)):.2f} |")


if __name__ == "__main__":
    main()
