"""The products of `Linear`: bit contract, accuracy, threads, weights used where they are."""

import copy
import gc
import pickle
import threading

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, run_python
from test_linear import normal

import cylstm
from cylstm.kernels import dispatch, sequence

# Sizes beside those of vectors, tiles, panels of outputs and sums that are added up.
SIZES = [(1, 1), (3, 2), (4, 6), (16, 4), (17, 9), (100, 10), (33, 193), (1030, 5), (2049, 13)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_bits_it_has_alone(dtype, size):
    layer = cylstm.Linear(*size, dtype=dtype, rng=0)
    x, dy = normal(33, size[0], dtype=dtype), normal(33, size[1], dtype=dtype, seed=1)
    alone = np.array([layer(row) for row in x])
    d_alone = np.array([layer.backward(layer.forward(r)[1], d) for r, d in zip(x, dy, strict=True)])
    for rows in range(1, 34):
        for start in (0, 33 - rows):
            part = slice(start, start + rows)
            for n in (1, 3):
                y, tape = layer.forward(x[part], num_threads=n)
                assert_same_bits(y, alone[part])
                assert_same_bits(layer.backward(tape, dy[part], num_threads=n), d_alone[part])


@pytest.mark.parametrize("f", [None, "tanh"])
@pytest.mark.parametrize(
    "size", [(700, 900, 130), (2000, 70, 10), (1940, 70, 10), (1, 1500, 1000), (96, 300, 600)]
)
def test_bits_on_any_number_of_threads(size, f):
    rows, inputs, outputs = size
    layer = cylstm.Linear(inputs, outputs, activation=f, rng=0)
    x, dy = normal(rows, inputs, dtype="float32"), normal(rows, outputs, dtype="float32", seed=1)
    outcomes = []
    for n in (1, 2, 3, 4):
        layer.zero_grad()
        y, tape = layer.forward(x, num_threads=n)
        dx = layer.backward(tape, dy, num_threads=n)
        outcomes.append((y, dx, layer.flat_grads.copy()))
    for outcome in outcomes[1:]:
        assert_same_bits(outcome, outcomes[0])
    assert_same_bits(layer(x[::-1])[::-1], outcomes[0][0])  # rows anywhere, strided
    wide = np.full((rows, inputs + 3), np.nan, np.float32)
    wide[:, 1:-2] = x
    assert_same_bits(layer(wide[:, 1:-2]), outcomes[0][0])
    assert_same_bits(layer(x.astype(float)), outcomes[0][0])


@pytest.mark.parametrize("isa", dispatch.usable())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_against_float64(dtype, isa):
    table = dispatch.table(dtype, isa)
    for inputs, outputs in [*SIZES, (64, 400)]:
        w, b = normal(outputs, inputs, dtype=dtype), normal(outputs, dtype=dtype, seed=1)
        weights = sequence.snapshot_of(np.concatenate([w.ravel(), b]))
        for rows in (1, 2, 5, 23, 24, 61):
            x, y = normal(rows, inputs, dtype=dtype), np.empty((rows, outputs), dtype)
            sequence.linear(table, x, weights, weights, w.size, y, None, None, 2)
            exact = x.astype(float) @ w.T.astype(float) + b
            size = np.abs(x).astype(float) @ np.abs(w.T).astype(float) + np.abs(b)
            eps = np.finfo(dtype).eps
            assert (np.abs(y - exact) <= 8 * eps * size).all()
            sequence.linear(table, x[:1], weights, weights, w.size, y[:1], None, None, 1)
            dy, dx = normal(rows, outputs, dtype=dtype, seed=2), np.empty_like(x)
            sequence.linear_dx(table, dy, weights, dx, 2)
            assert_close(dx, dy.astype(float) @ w.astype(float), 100 * eps)
            dw = np.ones_like(w)
            sequence.linear_dw(table, dy, x, dw, 2)
            assert_close(dw, 1 + dy.T.astype(float) @ x.astype(float), 100 * eps)


def test_errors_are_no_larger_than_those_of_blas():
    layer = cylstm.Linear(5000, 60, rng=0)
    x = normal(40, 5000, dtype="float32")
    weight, bias = layer.params["weight"], layer.params["bias"]
    exact = x.astype(float) @ weight.T.astype(float) + bias
    ours, of_blas = (np.abs(y - exact).mean() for y in (layer(x), x @ weight.T + bias))
    assert ours < 1.1 * of_blas


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_touch_each_other(dtype):
    layer = cylstm.Linear(37, 41, dtype=dtype, rng=0)
    x = normal(30, 37, dtype=dtype)
    expected = layer(x)
    x[7, 36], x[11, 0] = np.inf, np.nan
    y = layer(x)
    rest = np.setdiff1d(np.arange(30), [7, 11])
    assert_same_bits(y[rest], expected[rest])
    assert np.isnan(y[11]).all() and np.isinf(y[7]).all()
    weight = layer.params["weight"].copy()
    weight[40, [0, 36]] = np.inf
    layer.assign({"weight": weight})
    for rows in (rest, rest[:5], rest[:1]):
        assert_same_bits(layer(x[rows])[:, :40], expected[rows][:, :40])


# Weights are used where they are


def test_no_copy_of_the_weights_is_kept():
    layer = cylstm.Linear(300, 200, rng=0)
    weights = layer._snapshot()
    assert layer._snapshot() is weights
    _, tape = layer.forward(np.ones((2, 300)))
    assert tape.weight is weights
    old = weights.copy()
    layer.assign(2 * layer.flat_params)
    assert layer._snapshot() is not weights
    assert_same_bits(weights.copy(), old)
    assert_same_bits(layer._snapshot().copy(), np.array(layer.flat_params))


def test_a_snapshot_that_is_gone_is_not_copied_for():
    storage = sequence.Storage(np.arange(6, dtype=np.float32))
    first = storage.snapshot()
    del first
    gc.collect()
    values = np.ones(6, np.float32)
    second = storage.snapshot()
    storage.write([])
    storage.write([])
    assert_same_bits(second.copy(), np.arange(6, dtype=np.float32))
    with pytest.raises(ValueError, match="contiguous"):
        storage.write([(values[::2], values[:3])])
    with pytest.raises(ValueError, match="one dtype and size"):
        storage.write([(values, values.astype(float))])


def test_assign_beside_calls_is_all_or_nothing():
    layer = cylstm.Linear(400, 300, rng=0)
    embedding = cylstm.Embedding(300, 400, rng=0)
    versions = [np.full(layer.flat_params.size, v, np.float32) for v in (1, 2)]
    rows = [np.full(embedding.flat_params.size, v, np.float32) for v in (1, 2)]
    layer.assign(versions[0])
    embedding.assign(rows[0])
    x, ids = np.ones((2, 400), np.float32), np.arange(300)
    done, wrong = threading.Event(), []

    def call():
        while not done.is_set():
            y, tape = layer.forward(x, num_threads=1)
            dx = layer.backward(tape, np.ones((2, 300)), num_threads=1)
            if not (np.isin(y, (401, 802)).all() and (y == y[0, 0]).all()):
                wrong.append(y)
            if not (dx == 300 * (y[0, 0] // 401)).all():
                wrong.append(dx)
            vectors = embedding(ids)
            if not (vectors == vectors[0, 0]).all():
                wrong.append(vectors)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(300):
        layer.assign(versions[i % 2])
        embedding.assign(rows[i % 2])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_assign_in_a_finalizer_and_a_signal_handler():
    code = """
import signal
import numpy as np
import cylstm

layer = cylstm.Linear(600, 500, rng=0)
x = np.ones((50, 600), np.float32)

class Assigns:
    def __del__(self):
        layer.assign(layer.flat_params)

def handler(*args):
    layer.assign(layer.flat_params)
    layer(x)
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # not before this one has ended

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01)
expected = layer(x)
for _ in range(50):
    thing = [Assigns()]
    thing.append(thing)  # left to the collector
    y, tape = layer.forward(x)
    assert (y == expected).all()
    layer.backward(tape, y)
signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""
    assert run_python(code).split() == ["done"]


@pytest.mark.parametrize(
    ("dtype", "inputs", "terms"), [("float32", 1024, 600), ("float64", 512, 1600)]
)
def test_products_made_slice_by_slice_have_the_same_bits(dtype, inputs, terms):
    """As those of few rows or outputs are, so that a pause need not wait for all of their terms."""
    rows = 1900
    layer = cylstm.Linear(5000, 192, activation="tanh", dtype=dtype, rng=0)
    x = normal(rows, 5000, dtype=dtype)
    assert_same_bits(layer(x, num_threads=1)[-3:], layer(x[-3:]))

    layer = cylstm.Linear(inputs, terms, bias=False, dtype=dtype, rng=0)
    table, weight = layer._table, layer._snapshot()
    dy = normal(rows, terms, dtype=dtype)
    dx, few = np.empty((rows, inputs), dtype), np.empty((3, inputs), dtype)
    sequence.linear_dx(table, dy, weight, dx, 1)
    sequence.linear_dx(table, dy[-3:], weight, few, 1)
    assert_same_bits(dx[-3:], few)

    dy, x = np.ascontiguousarray(dy.T), normal(terms, inputs, dtype=dtype, seed=1)
    dw, few = np.zeros((rows, inputs), dtype), np.zeros((3, inputs), dtype)
    sequence.linear_dw(table, dy, x, dw, 1)
    sequence.linear_dw(table, dy[:, -3:], x, few, 1)
    assert_same_bits(dw[-3:], few)


INTERRUPTED = """
import signal
import numpy as np
import cylstm
from cylstm.kernels import sequence

size = 8192, 2048, 4096
layer = cylstm.Linear(*size[1:], rng=0)
x, dy = np.ones(size[:2], np.float32), np.ones((size[0], size[2]), np.float32)
weight, table = layer._snapshot(), layer._table
y, dx = np.full_like(dy, np.nan), np.full_like(x, np.nan)
products = {
    "y": lambda: sequence.linear(table, x, weight, None, 0, y, y, None, 1),
    "dx": lambda: sequence.linear_dx(table, dy, weight, dx, 2),
}
expected = {
    "y": layer(x[:1], num_threads=1)[0] - layer.params["bias"],
    "dx": layer.backward(layer.forward(x[:1])[1], dy[:1])[0],
}

def handler(*args):
    global handled
    handled += 1
    layer.assign(2 * layer.flat_params)  # which the product must not see, nor wait for
    assert len(layer(x[:2])) == 2
    if handled == 2:
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # not before this one has ended

signal.signal(signal.SIGALRM, handler)
for name, product in products.items():
    handled = 0
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        product()
    except KeyboardInterrupt:
        pass
    assert handled == 2, name
done = np.isfinite(y)
assert 0 < done.sum() < y.size, "only at its end"
assert (abs(y - expected["y"])[done] < 1e-4).all()
assert not (abs(dx - expected["dx"]) < 1e-4).all(), "only at its end"
print(len(layer(x[:3])))
"""


def test_a_long_product_lets_signal_handlers_run():
    assert run_python(INTERRUPTED).split() == ["3"]


def test_after_fork():
    code = """
import os, threading
import numpy as np
import cylstm

layer = cylstm.Linear(1500, 1500, rng=0)
x = np.ones((300, 1500), np.float32)
expected = layer(x[:1])
stop = threading.Event()

def work():
    while not stop.is_set():
        layer(x)

def change():
    while not stop.is_set():
        layer.assign(layer.flat_params)

threads = [threading.Thread(target=f) for f in (work, work, change)]
for t in threads:
    t.start()
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:  # calls and assignments of the parent's threads never end here
        layer.assign(2 * layer.flat_params)
        os._exit(0 if np.allclose(layer(x[:1]), 2 * expected) else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
for t in threads:
    t.join()
assert codes == [0] * 20, codes
print("done")
"""
    assert run_python(code).split() == ["done"]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_tapes_can_be_copied(how):
    layer = cylstm.Linear(5, 7, activation="softplus", dtype="float64", rng=0)
    x, dy = normal(3, 5), normal(3, 7, seed=1)
    _, tape = layer.forward(x)
    expected = layer.backward(tape, dy)
    twin = how(tape)
    layer.assign(2 * layer.flat_params)
    assert_same_bits(layer.backward(twin, dy), expected)


def test_needs_no_scipy():
    code = """
import sys
import numpy as np
import cylstm

layer, embedding = cylstm.Linear(300, 200), cylstm.Embedding(20, 300)
x, tape = embedding.forward(np.zeros(500, int))
y, linear_tape = layer.forward(x)
embedding.backward(tape, layer.backward(linear_tape, y))
assert not any(name.partition(".")[0] == "scipy" for name in sys.modules)
"""
    run_python(code)


def test_refused():
    table = dispatch.table("float32")
    weights = sequence.snapshot_of(np.zeros(12, np.float32))
    x, y = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    for wrong_x, wrong_y, bias in [
        (x[:1], y, None), (x.astype(float), y, None), (x, y[:, ::2], None),
        (x, np.zeros((2, 5), np.float32), None), (x, y, weights), (x[:, ::-1], y, None),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            sequence.linear(table, wrong_x, weights, bias, 0 if bias is None else 12, wrong_y,
                            None, None, 1)  # fmt: skip
    with pytest.raises(ValueError):
        sequence.linear_dx(table, y, weights, np.zeros((2, 4), np.float32), 1)
    with pytest.raises(ValueError):
        sequence.linear_dw(table, y, x, np.zeros((3, 4), np.float32), 1)
    with pytest.raises(ValueError, match=r"ids: expected integers from 0 to 3, got 4"):
        weights.lookup(np.array([4]), np.zeros((1, 3), np.float32))
    assert not y.any()
