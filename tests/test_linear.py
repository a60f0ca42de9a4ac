"""`Linear`: values, gradients, layouts, lists, activations, tied weights, errors."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits

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


# Activations

ACTIVATIONS = {
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    ("affine", 0.5, -0.25): lambda v: 0.5 * v - 0.25,
    ("leakyrelu", 0.2): lambda v: np.where(v > 0, v, 0.2 * v),
    ("thresholdedrelu", 0.3): lambda v: np.where(v > 0.3, v, 0),
    ("scaledtanh", 1.5, 0.7): lambda v: 1.5 * np.tanh(0.7 * v),
    "hardsigmoid": lambda v: np.clip(0.2 * v + 0.5, 0, 1),
    "hard_sigmoid_keras3": lambda v: np.clip(v / 6 + 0.5, 0, 1),
    ("elu", 0.7): lambda v: np.where(v > 0, v, 0.7 * np.expm1(v)),
    "softsign": lambda v: v / (1 + np.abs(v)),
    "softplus": lambda v: np.log1p(np.exp(v)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("f", ACTIVATIONS, ids=str)
def test_activation(f, bias):
    layer = cylstm.Linear(9, 21, bias=bias, activation=f, dtype="float64", rng=0)
    layer.assign(5 * layer.flat_params)  # to both sides of every kink
    assert layer.activation == f
    x, dy = normal(6, 9), normal(6, 21, seed=1)
    y, tape = layer.forward(x)
    assert_close(y, ACTIVATIONS[f](by_hand(layer, x)), 1e-13)
    assert_same_bits(layer(x), y)
    y[...] = np.nan  # the tape has its own
    dx = layer.backward(tape, dy)
    flat, grads = layer.flat_params.copy(), layer.flat_grads.copy()
    move_x, move = normal(6, 9, seed=2), normal(flat.size, seed=3)

    def by_parameters(step):
        layer.assign(flat + step * move)
        return np.vdot(dy, layer(x))

    by_input = slope(lambda step: np.vdot(dy, layer(x + step * move_x)), 1e-5)
    np.testing.assert_allclose(np.vdot(dx, move_x), by_input, rtol=1e-6)
    np.testing.assert_allclose(grads @ move, slope(by_parameters, 1e-5), rtol=1e-6)


@pytest.mark.parametrize("f", ["tanh", "relu", "softplus"])
def test_activation_of_wide_layers(f):
    layer = cylstm.Linear(30, 403, activation=f, rng=0)
    x = normal(100, 30, dtype="float32")
    assert_close(layer(x), ACTIVATIONS[f](by_hand(layer, x)), 1e-5)


def test_bad_activation():
    with pytest.raises(ValueError, match=r"^activation: expected one of sigmoid, .*, got 'gelu'"):
        cylstm.Linear(3, 4, activation="gelu")
    with pytest.raises(TypeError, match=r"^activation: expected the name of an activation, got 1"):
        cylstm.Linear(3, 4, activation=1)
    _, tape = cylstm.Linear(3, 4, activation="tanh").forward(np.ones(3))
    for other in (cylstm.Linear(3, 4), cylstm.Linear(3, 4, activation="relu")):
        with pytest.raises(ValueError, match=r"^tape: expected weights, dtype, activation"):
            other.backward(tape, np.ones(4))
        assert not other.flat_grads.any()


# Lists


def test_lists():
    layer = cylstm.Linear(4, 6, dtype="float64", activation="tanh", rng=0)
    x = [normal(n, 4, seed=n) for n in (3, 0, 1, 5)]
    dy = [normal(n, 6, seed=9 + n) for n in (3, 0, 1, 5)]
    y, tape = layer.forward(x)
    assert isinstance(y, list) and [part.shape for part in y] == [(3, 6), (0, 6), (1, 6), (5, 6)]
    dx = layer.backward(tape, dy)
    assert isinstance(dx, list) and [part.shape for part in dx] == [part.shape for part in x]
    together = layer.flat_grads.copy()
    layer.zero_grad()
    joined, tape = layer.forward(np.concatenate(x))
    assert_same_bits(np.concatenate(y), joined)
    d_joined = layer.backward(tape, np.concatenate(dy))
    assert_same_bits((np.concatenate(dx), together), (d_joined, layer.flat_grads))
    assert_same_bits(tuple(layer(x)), tuple(y))
    assert_same_bits(tuple(layer([part.tolist() for part in x])), tuple(y))
    assert_same_bits(tuple(layer(tuple(x))), tuple(y))


def test_lists_of_equal_lengths_and_of_nothing():
    layer = cylstm.Linear(4, 6, rng=0)
    x = normal(2, 3, 4)
    assert layer(x.tolist()).shape == (2, 3, 6)  # NumPy's nested list
    assert_same_bits(tuple(layer(list(x))), tuple(layer(x)))
    assert layer(list(x[0])).shape == (3, 6)  # of vectors: rows of one matrix
    y, tape = layer.forward([])
    assert y == [] and layer.backward(tape, []) == []
    assert layer([x, x[0]])[0].shape == (2, 3, 6)


def test_bad_lists():
    layer = cylstm.Linear(4, 6, rng=0)
    good = np.ones((2, 4))
    with pytest.raises(ValueError, match=r"^x\[1\]: expected shape \(\.\.\., 4\), got \(3, 5\)"):
        layer([good, np.ones((3, 5))])
    with pytest.raises(TypeError, match=r"^x\[1\]: expected real numbers, got dtype complex128"):
        layer([good, np.ones((3, 4), complex)])
    _, tape = layer.forward([good, good[:1]])
    for wrong, message in [
        (np.ones((3, 6)), "expected a list of 2 arrays, got ndarray"),
        ([np.ones((2, 6))], "expected a list of 2 arrays, got 1"),
        (None, "expected a list of 2 arrays, got NoneType"),
    ]:
        with pytest.raises(ValueError, match=f"^dy: {message}"):
            layer.backward(tape, wrong)
    with pytest.raises(ValueError, match=r"^dy\[1\]: expected shape \(1, 6\), got \(2, 6\)"):
        layer.backward(tape, [np.ones((2, 6)), np.ones((2, 6))])
    assert not layer.flat_grads.any()


# Weights of an embedding


def tied(bias=True, dtype="float64"):
    embedding = cylstm.Embedding(11, 5, padding_idx=0, dtype=dtype, rng=0)
    return embedding, cylstm.Linear(5, 11, bias=bias, tied_to=embedding, dtype=dtype, rng=1)


@pytest.mark.parametrize("bias", [True, False])
def test_tied(bias):
    embedding, linear = tied(bias)
    assert linear.tied_to is embedding
    assert list(linear.params) == ["bias"][:bias] and list(linear.state_dict()) == ["bias"][:bias]
    ids, dy = np.array([3, 0, 3, 7]), normal(4, 11)

    def outcome():
        return linear(embedding(ids))

    weight = embedding.params["weight"]
    assert_close(outcome(), weight[ids] @ weight.T + linear.params.get("bias", 0.0), 1e-14)
    y, tape = embedding.forward(ids)
    z, linear_tape = linear.forward(y)
    assert_same_bits(z, outcome())
    embedding.backward(tape, linear.backward(linear_tape, dy))
    both = [(m, m.flat_params.copy(), m.flat_grads.copy()) for m in (embedding, linear)]
    # Only what is looked up at the padding index has no gradient; what W there does has one.
    free = np.ones((11, 5))
    move = [normal(flat.size, seed=5) for _, flat, _ in both]
    move[0] = (move[0].reshape(11, 5) * free).ravel()

    def along(step):
        for (module, flat, _), direction in zip(both, move, strict=True):
            module.assign(flat + step * direction)
        looked_up = embedding(ids)
        looked_up[ids == 0] = both[0][1].reshape(11, 5)[0]  # as if it were no parameter
        return np.vdot(dy, linear(looked_up))

    expected = sum(grads @ direction for (_, _, grads), direction in zip(both, move, strict=True))
    np.testing.assert_allclose(slope(along), expected, rtol=1e-8)
    assert np.abs(both[0][2].reshape(11, 5)[0]).min() > 0


def test_tied_sees_and_trains_one_weight():
    embedding, linear = tied()
    x = normal(3, 5)
    before = linear(x)
    embedding.assign(2 * embedding.flat_params)
    assert_close(linear(x) - linear.params["bias"], 2 * (before - linear.params["bias"]), 1e-14)
    optimizer = cylstm.SGD([embedding, linear], 0.1)
    assert sum(m.flat_params.size for m in optimizer.modules) == 11 * 5 + 11
    linear.backward(linear.forward(x)[1], normal(3, 11))
    expected = embedding.flat_params - 0.1 * embedding.flat_grads
    optimizer.step()
    assert_close(embedding.flat_params, expected, 1e-15)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_tied_stay_tied_in_copies(how):
    embedding, linear = how(tied())
    assert linear.tied_to is embedding
    x = normal(3, 5)
    y = linear(x)
    embedding.assign(3 * embedding.flat_params)
    assert (linear(x) != y).any()
    alone = how(linear)
    assert_same_bits(alone(x), linear(x))
    assert alone.tied_to is not embedding


def test_tied_tape_remembers_the_weights():
    embedding, linear = tied()
    x, dy = normal(3, 5), normal(3, 11, seed=1)
    _, tape = linear.forward(x)
    expected = linear.backward(tape, dy)
    embedding.assign(2 * embedding.flat_params)
    assert_same_bits(linear.backward(tape, dy), expected)


def test_bad_ties():
    embedding = cylstm.Embedding(11, 5, rng=0)
    for sizes, message in [
        ((6, 11), "embedding_dim 6, got 5"),
        ((5, 12), "num_embeddings 12, got 11"),
    ]:
        with pytest.raises(ValueError, match=f"^tied_to: expected {message}"):
            cylstm.Linear(*sizes, tied_to=embedding)
    with pytest.raises(TypeError, match=r"^tied_to: expected an Embedding, got Linear"):
        cylstm.Linear(5, 11, tied_to=cylstm.Linear(5, 11))
    with pytest.raises(ValueError, match=r"^dtype: expected that of tied_to, float32, got float64"):
        cylstm.Linear(5, 11, tied_to=embedding, dtype="float64")
