"""Random problems and comparisons that several test files use."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reference

import cylstm

LAYERS = {
    "rnn_tanh": partial(cylstm.RNN, nonlinearity="tanh"),
    "rnn_relu": partial(cylstm.RNN, nonlinearity="relu"),
    "gru": cylstm.GRU,
    "lstm": cylstm.LSTM,
}
CELLS = tuple(LAYERS)
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


class Problem(NamedTuple):
    """A layer with everything a forward and a backward call take; states are tuples of parts."""

    cell: str
    layer: Any
    x: np.ndarray  # (T, B, I)
    state: tuple
    lengths: np.ndarray | None
    dy: np.ndarray  # (T, B, D*H)
    dstate: tuple

    def oracle(self, masks=None):
        """Output, final state and cache of the float64 reference."""
        return reference.forward(
            self.cell, self.layer.params, self.x, self.state, self.lengths, masks
        )

    def forward(self, **options):
        """Output, final state as a tuple, tape."""
        y, state, tape = self.layer.forward(
            self.x, joined(self.state), lengths=self.lengths, **options
        )
        return y, parts(state), tape

    def infer(self, **options):
        """Output and final state as a tuple."""
        y, state = self.layer(self.x, joined(self.state), lengths=self.lengths, **options)
        return y, parts(state)

    def backward(self, tape, **options):
        """Zero the gradients, go back, and return dx and the state's gradients as a tuple."""
        self.layer.zero_grad()
        dx, dstate = self.layer.backward(tape, self.dy, joined(self.dstate), **options)
        return dx, parts(dstate)


def problem(cell, sizes, *, steps=5, rows=3, lengths=None, seed=0, **options):
    """A problem with distinct random numbers everywhere.

    sizes are input, hidden and number of layers; lengths an array, None, or "random" for
    lengths in any order from 0 to all steps.
    """
    rng = np.random.default_rng(seed)
    layer = LAYERS[cell](*sizes, rng=rng, **options)
    shape = (layer.num_layers * layer.num_directions, rows, layer.hidden_size)

    def normal(*shape):
        return rng.normal(size=shape).astype(layer.dtype)

    def states():
        return tuple(normal(*shape) for _ in range(1 + (cell == "lstm")))

    x = normal(steps, rows, layer.input_size)
    dy = normal(steps, rows, layer.num_directions * layer.hidden_size)
    if isinstance(lengths, str):
        lengths = rng.permutation(np.linspace(0, steps, rows).round().astype(int))
    return Problem(cell, layer, x, states(), lengths, dy, states())


def parts(state):
    """The parts of a state as a tuple: (h, c) or (h,)."""
    return state if isinstance(state, tuple) else (state,)


def joined(parts):
    """A state as layers take it: (h, c) or h."""
    return parts if len(parts) == 2 else parts[0]


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_bits(actual, expected):
    """Arrays, or nested tuples of arrays, equal in dtype, shape and every bit."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple) and len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e)
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits(actual), bits(expected))


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def run_python(code, *arguments, **environment):
    """Run Python code in a fresh interpreter that finds these helpers; return its output."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
