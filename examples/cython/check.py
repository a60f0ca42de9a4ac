"""The compiled loop against a call on the whole sequence: the same frame, the same bits after."""

import threading

import frames
import numpy as np

import cylstm
from cylstm.kernels.sequence import Stepper

layer = cylstm.LSTM(8, 16, 2, rng=0)
x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
y, _ = layer(x)
threshold = float(np.sort(y.max(axis=1))[-5])
expected = int(np.argmax(y.max(axis=1) > threshold))

stream = layer.stream()
stepper = Stepper(stream)
assert frames.first_above(stepper, x, threshold) == expected
stepper.give_state(stream)  # go on in Python from there
assert np.array_equal(stream.push(x[expected + 1 :]), y[expected + 1 :])

steppers = [Stepper(layer.stream()) for _ in range(4)]  # in parallel: the weights are shared
found = [None] * 4


def work(i):
    """Run one of them."""
    found[i] = frames.first_above(steppers[i], x, threshold)


threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [expected] * 4
for wrong in (None, 3, object()):
    try:
        frames.first_above(wrong, x, threshold)
    except TypeError:
        continue
    raise AssertionError(wrong)
empty = Stepper.__new__(Stepper)
try:
    frames.first_above(empty, x, threshold)
except ValueError:
    print("the compiled loop stops at the same frame, and its state goes on with the same bits")
