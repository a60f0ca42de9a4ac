"""`Linear` and `Embedding`: values, gradients, layouts, errors, and PyTorch's results."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, run_python

import cylstm

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
SHAPES = [(), (1,), (7,), (5, 3), (2, 5, 3)]  # leading shapes


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def slope(evaluate, step=1e-3):
    """Derivative at 0 of a function of one number: central difference of fourth order."""
    near = evaluate(step) - evaluate(-step)
    far = evaluate(2 * step) - evaluate(-2 * step)
    return (8 * near - far) / (12 * step)


# Linear


def by_hand(layer, x):
    """The output in float64."""
    weight = layer.params["weight"].astype(float)
    return np.einsum("...i,oi->...o", x.astype(float), weight) + layer.params.get("bias", 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype, bias, shape):
    layer = cylstm.Linear(4, 6, bias=bias, dtype=dtype, rng=0)
    assert list(layer.params) == ["weight", "bias"][: 1 + bias]
    x = normal(*shape, 4, dtype=dtype)
    y, _ = layer.forward(x)
    assert y.dtype == dtype and y.shape == (*shape, 6)
    assert_close(y, by_hand(layer, x), TOLERANCE[dtype])
    assert_same_bits(layer(x), y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradients(bias, shape):
    layer = cylstm.Linear(4, 6, bias=bias, dtype="float64", rng=0)
    x, dy = normal(*shape, 4), normal(*shape, 6, seed=1)
    dx = layer.backward(layer.forward(x)[1], dy)
    assert dx.shape == x.shape
    flat, grads = layer.flat_params.copy(), layer.flat_grads.copy()
    for seed in range(3):
        move_x, move = normal(*x.shape, seed=seed), normal(flat.size, seed=seed)

        def by_input(step, move_x=move_x):
            return np.vdot(dy, layer(x + step * move_x))

        def by_parameters(step, move=move):
            layer.assign(flat + step * move)
            return np.vdot(dy, layer(x))

        np.testing.assert_allclose(np.vdot(dx, move_x), slope(by_input), rtol=1e-6)
        np.testing.assert_allclose(grads @ move, slope(by_parameters), rtol=1e-6)
        layer.assign(flat)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_of_nothing(dtype, shape, bias):
    layer = cylstm.Linear(4, 6, bias=bias, dtype=dtype, rng=0)
    y, tape = layer.forward(np.zeros((*shape, 4)))
    assert y.shape == (*shape, 6) and y.dtype == dtype
    layer.flat_grads[...] = 2
    assert layer.backward(tape, y).shape == (*shape, 4)
    assert (layer.flat_grads == 2).all()


def test_linear_gradients_add_up():
    layer = cylstm.Linear(4, 6, dtype="float64", rng=0)
    x, dy = normal(5, 4), normal(5, 6, seed=1)
    _, tape = layer.forward(x)
    first = layer.backward(tape, dy)
    once = layer.flat_grads.copy()
    assert_same_bits(layer.backward(tape, dy), first)  # a tape may be used again
    assert_close(layer.flat_grads, 2 * once, 1e-14)
    assert np.abs(once).min() > 0


def test_linear_gradients_of_long_batches():
    layer = cylstm.Linear(1, 2, rng=0)
    x = np.ones((200_000, 1), np.float32)
    dy = np.full((200_000, 2), 0.1, np.float32)
    layer.backward(layer.forward(x)[1], dy)
    assert_close(layer.grads["bias"], dy.sum(axis=0, dtype=float), 1e-6)


LAYOUTS = {
    "reversed": lambda a: a[::-1].copy()[::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "Fortran": np.asfortranarray,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "misaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "list": lambda a: a.tolist(),
}


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("layout", ["read-only", *LAYOUTS])
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_takes_any_layout(dtype, shape, layout):
    change = LAYOUTS.get(layout, read_only)
    layer = cylstm.Linear(4, 6, dtype=dtype, rng=0)
    x, dy = normal(*shape, 4, dtype=dtype), normal(*shape, 6, dtype=dtype, seed=1)
    outcomes = []
    for f in (np.array, change):
        layer.zero_grad()
        y, tape = layer.forward(f(x))
        outcomes.append((y, layer.backward(tape, f(dy)), layer.flat_grads.copy()))
    assert_same_bits(*outcomes)


@pytest.mark.parametrize("given", ["float16", "float32", "float64", "int8", "uint64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_casts_real_numbers(dtype, given):
    layer = cylstm.Linear(4, 6, dtype=dtype, rng=0)
    x = np.abs(5 * normal(3, 4)).astype(given)
    assert_same_bits(layer(x), layer(x.astype(dtype)))
    assert layer(x).dtype == dtype


def test_linear_results_are_fresh_and_arguments_left_alone():
    layer = cylstm.Linear(4, 6, rng=0)
    x, dy = normal(5, 4, dtype="float32"), normal(5, 6, dtype="float32", seed=1)
    before = x.copy(), dy.copy()
    y, tape = layer.forward(x)
    dx = layer.backward(tape, dy)
    assert_same_bits((x, dy), before)
    for result in (y, dx):
        assert result.flags.writeable
        result[...] = np.nan
    assert np.isfinite(layer(x)).all() and np.isfinite(layer.backward(tape, dy)).all()


def test_linear_sees_changed_weights():
    layer = cylstm.Linear(4, 6, rng=0)
    x = normal(3, 4)
    y = layer(x)
    layer.assign(2 * layer.flat_params)
    assert_same_bits(layer(x), 2 * y)
    layer.assign({"bias": np.zeros(6)})
    assert_close(layer(x), by_hand(layer, x), 1e-6)


def test_linear_tape_remembers_the_weights():
    layer = cylstm.Linear(4, 6, rng=0)
    x, dy = normal(3, 4), normal(3, 6, seed=1)
    _, tape = layer.forward(x)
    expected = layer.backward(tape, dy), layer.flat_grads.copy()
    layer.assign(2 * layer.flat_params)
    layer.zero_grad()
    assert_same_bits((layer.backward(tape, dy), layer.flat_grads), expected)
    assert_same_bits(layer.backward(layer.forward(x)[1], dy), 2 * expected[0])


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
@pytest.mark.parametrize("make", [cylstm.Linear, cylstm.Embedding])
def test_copies(make, how):
    layer = make(40, 60, rng=0)
    argument = np.arange(3) if make is cylstm.Embedding else normal(3, 40)
    y = layer(argument)
    twin = how(layer)
    assert_same_bits(twin(argument), y)
    twin.assign(3 * twin.flat_params)
    assert_same_bits(layer(argument), y)
    assert (twin(argument) != y).any()
    assert len(pickle.dumps(layer)) < 2.2 * layer.flat_params.nbytes


def test_linear_initial_values():
    layer = cylstm.Linear(400, 300, rng=0)
    for value in layer.params.values():
        assert np.abs(value).max() <= 1 / 20
        assert np.abs(value).max() > 0.98 / 20
        assert abs(value.mean()) < 0.004
        assert value.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.08)
    assert_same_bits(cylstm.Linear(400, 300, rng=0).flat_params, layer.flat_params)
    generator = np.random.default_rng(0)
    assert_same_bits(cylstm.Linear(400, 300, rng=generator).flat_params, layer.flat_params)
    assert (cylstm.Linear(400, 300, rng=generator).flat_params != layer.flat_params).any()
    assert (cylstm.Linear(4, 3).flat_params != cylstm.Linear(4, 3).flat_params).any()


@pytest.mark.parametrize("make", [cylstm.Linear, cylstm.Embedding])
def test_bad_options(make):
    names = ("in_features", "out_features")
    if make is cylstm.Embedding:
        names = ("num_embeddings", "embedding_dim")
    else:
        with pytest.raises(TypeError, match=r"^bias: expected True or False, got 'no'"):
            make(3, 4, bias="no")
    for i, name in enumerate(names):
        for value, error in [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError),
                             (None, TypeError), (True, TypeError)]:  # fmt: skip
            sizes = [3, 4]
            sizes[i] = value
            with pytest.raises(error, match=rf"^{name}: expected an integer.*, got '?{value}"):
                make(*sizes)
    for value in ("float16", "int32", "no dtype", complex):
        with pytest.raises((ValueError, TypeError), match=r"^dtype: expected 'float32' or"):
            make(3, 4, dtype=value)


def test_linear_bad_arguments():
    layer = cylstm.Linear(4, 6, rng=0)
    for shape in [(), (6,), (4, 3), (3, 0)]:
        with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., 4\), got \("):
            layer(np.zeros(shape))
    for wrong in (np.zeros(4, complex), np.zeros(4, bool), ["a"] * 4, None):
        with pytest.raises(TypeError, match=r"^x: expected real numbers, got"):
            layer(wrong)
    _, tape = layer.forward(np.zeros((3, 4)))
    layer.zero_grad()
    for shape in [(), (3, 4), (6,), (18,), (4, 6), (3, 1), (1, 3, 6)]:
        with pytest.raises(ValueError, match=r"^dy: expected shape \(3, 6\), got \("):
            layer.backward(tape, np.ones(shape))
    with pytest.raises(TypeError, match=r"^dy: expected real numbers, got"):
        layer.backward(tape, np.ones((3, 6), complex))
    for wrong in (None, np.zeros((3, 4)), cylstm.Embedding(2, 3).forward([1])[1]):
        with pytest.raises(TypeError, match=r"^tape: expected what forward returned, got"):
            layer.backward(wrong, np.ones((3, 6)))
    others = cylstm.Linear(5, 6), cylstm.Linear(4, 7), cylstm.Linear(4, 6, dtype="float64")
    for other in others:
        with pytest.raises(ValueError, match=r"^tape: expected weights"):
            other.backward(tape, np.ones((3, 6)))
        assert not other.flat_grads.any()
    assert not layer.flat_grads.any()


# Both


@pytest.mark.parametrize("make", [cylstm.Linear, cylstm.Embedding])
def test_threads_add_gradients_one_after_the_other(make):
    layer = make(7, 4, rng=0)
    argument = np.arange(7) if make is cylstm.Embedding else normal(7, 7)
    _, tape = layer.forward(argument)
    thread = threading.Thread(target=layer.backward, args=(tape, np.ones((7, 4))))
    with layer._lock:  # as if another thread were adding
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not layer.flat_grads.any()
    thread.join()
    assert layer.flat_grads.all()


def test_backward_from_many_threads():
    linear = cylstm.Linear(64, 64, dtype="float64", rng=0)
    embedding = cylstm.Embedding(50, 64, dtype="float64", rng=0)
    x, ids = normal(50, 64), np.random.default_rng(0).integers(0, 50, 50)
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(50):
            linear.backward(linear.forward(x)[1], x)
            embedding.backward(embedding.forward(ids)[1], x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = linear.flat_grads.copy(), embedding.flat_grads.copy()
    linear.zero_grad(), embedding.zero_grad()
    linear.backward(linear.forward(x)[1], x)
    embedding.backward(embedding.forward(ids)[1], x)
    assert_close(together[0], 200 * linear.flat_grads, 1e-10)
    assert_close(together[1], 200 * embedding.flat_grads, 1e-10)
