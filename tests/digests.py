"""Digests of what every variant computes, by instruction set: python tests/digests.py writes them.

They are stored so that a change of the kernels that is meant to change no bit can be seen to change
none. The stored ones of LSTM, GRU and RNN are of the version before the cells were described by
tables; those of the other cells are of the version that brought them.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from variants import EVERY_VARIANT, RETURNS, TOPOLOGIES

import cylstm

FOLDER = Path(__file__).parent / "digests"
CLASSES = {
    "lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN", "augru": "AUGRU",
    "mingru": "MinGRU", "minlstm": "MinLSTM", "slstm": "SLSTM",
}  # fmt: skip
STEPS, ROWS, INPUTS = 9, 7, 5
INPUTS_OF_CALLS = ("lengths", "mask", "reset")
MANY = {"hidden": 33, "rows": 70, "steps": 12}


def cases():
    """Names of cases, with the cell, the layer's options, and those of the call."""
    found = {name: (cell, options, {}) for name, cell, options in EVERY_VARIANT}
    for cell in CLASSES:
        for name, options in TOPOLOGIES.items():
            if not (cell == "augru" and "merge_mode" in options):
                found[f"{cell}-{name}"] = cell, options, {}
        for name in INPUTS_OF_CALLS:
            found[f"{cell}-{name}"] = cell, {"num_layers": 2}, {name: True}
        for value in RETURNS[1:]:
            found[f"{cell}-return_-{value}"] = cell, {}, {"return_": value, "lengths": True}
        found[f"{cell}-many"] = cell, {}, MANY
        found[f"{cell}-checkpoint"] = cell, {}, {"checkpoint": 4}
    return found


def arguments(rng, steps, rows, cell, call):
    """Arguments of `forward` that a case names."""
    given = {k: v for k, v in call.items() if k in ("return_", "checkpoint")}
    if "lengths" in call:
        given["lengths"] = rng.integers(0, steps + 1, rows)
    if "mask" in call:
        given["mask"] = rng.random((steps, rows)) < 0.7
    if "reset" in call:
        given["reset"] = rng.random((steps, rows)) < 0.3
    if cell == "augru":
        given["attention"] = rng.random((steps, rows))
    return given


def digest(cell, options, call, dtype):
    """Digests of what a call returns, and of the gradients."""
    steps, rows = call.get("steps", STEPS), call.get("rows", ROWS)
    options = {"num_layers": 2 if "dropout" in options else 1, **options, "dtype": dtype, "rng": 1}
    if cell == "rnn_relu":
        options["nonlinearity"] = "relu"
    layer = getattr(cylstm, CLASSES[cell])(INPUTS, call.get("hidden", 20), **options)
    rng = np.random.default_rng(2)
    layer.assign(rng.uniform(-0.6, 0.6, layer.flat_params.size).astype(dtype))
    x = rng.uniform(-2, 2, (steps, rows, INPUTS)).astype(dtype)
    given = arguments(rng, steps, rows, cell, call)
    inference = {k: v for k, v in given.items() if k != "checkpoint"}
    outputs = [layer(x, num_threads=1, **inference)]
    y, state, tape = layer.forward(x, rng=3, num_threads=2, **given)
    outputs.append((y, state))
    gradients = [*layer.backward(tape, rng.uniform(-1, 1, np.shape(y)).astype(dtype))]
    return digest_of(outputs), digest_of([*gradients, layer.flat_grads])


def digest_of(values):
    hashed = hashlib.sha256()

    def add(value):
        if isinstance(value, (tuple, list)):
            for part in value:
                add(part)
        else:
            hashed.update(np.ascontiguousarray(value).tobytes())

    add(values)
    return hashed.hexdigest()[:12]


def stored(isa):
    """Where the digests of an instruction set are."""
    return FOLDER / f"{isa}.json"


def main():
    """Add what has no digest yet; what has one stays."""
    path = stored(cylstm.config()["isa"])
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, (cell, options, call) in cases().items():
        if not hasattr(cylstm, CLASSES[cell]):
            continue
        for dtype in ("float32", "float64"):
            if f"{name}-{dtype}" not in known:
                known[f"{name}-{dtype}"] = digest(cell, options, call, dtype)
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(known.items()))
    path.write_text(f"{{\n{lines}\n}}\n")
    print(f"{path}: {len(known)}")


if __name__ == "__main__":
    main()
