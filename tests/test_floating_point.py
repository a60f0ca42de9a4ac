"""The floating-point environment of the calling thread."""

import pytest
from helpers import run_python

FLAGS = """
import ctypes, platform, sys
import numpy as np
import cylstm

libm = ctypes.CDLL("libm.so.6")
# Invalid, division by zero, overflow and underflow; whatever Python does raises inexact.
FLAGS = {"x86_64": 0x1D, "aarch64": 0x0F}[platform.machine()]
layer = getattr(cylstm, sys.argv[1])(33, 64, rng=0)
layer.assign({name: 100 * value for name, value in layer.params.items()})
x = np.full((9, 24, 33), 3e38, np.float32)
x[:, 0] = 0
dy = np.full((9, 24, 64), 1e38, np.float32)


def left(call, *arguments):
    libm.feclearexcept(FLAGS)
    result = call(*arguments, num_threads=2)
    assert libm.fetestexcept(FLAGS) == 0, (call, libm.fetestexcept(FLAGS))
    return result


for _ in range(2):  # the second time by the shorter way
    left(layer, x)
tape = left(layer.forward, x)[2]
left(layer.backward, tape, dy)
"""


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_exception_flags_are_left_alone(name):
    """A sum that overflows inside of a call raises no flag outside."""
    run_python(FLAGS, name)
