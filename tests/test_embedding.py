"""`Embedding`: values, gradients, lists, padding, errors, and PyTorch's results."""

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits
from test_linear import LAYOUTS, SHAPES, TOLERANCE, normal, read_only, slope

import cylstm


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (3, 0, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype, shape):
    layer = cylstm.Embedding(7, 4, dtype=dtype, rng=0)
    assert {name: v.shape for name, v in layer.params.items()} == {"weight": (7, 4)}
    ids = np.random.default_rng(1).integers(0, 7, shape)
    y, _ = layer.forward(ids)
    assert y.shape == (*shape, 4)
    assert_same_bits(y, np.array(layer.params["weight"][ids]))
    assert_same_bits(layer(ids), y)
    y[...] = 0  # a copy
    assert layer.flat_params.all()


@pytest.mark.parametrize("shape", [*SHAPES, (0,), (3, 0, 2), (1000,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gradients(dtype, shape):
    layer = cylstm.Embedding(7, 4, dtype=dtype, rng=0)
    ids, dy = np.random.default_rng(1).integers(0, 5, shape), normal(*shape, 4, dtype=dtype)
    _, tape = layer.forward(ids)
    expected = np.zeros((7, 4))
    for row, d in zip(ids.ravel(), dy.reshape(-1, 4), strict=True):
        expected[row] += d
    assert layer.backward(tape, dy) is None
    assert_close(layer.grads["weight"], expected, TOLERANCE[dtype] / 10)
    layer.backward(tape, dy)
    assert_close(layer.grads["weight"], 2 * expected, TOLERANCE[dtype] / 10)


def test_embedding_gradients_numerically():
    layer = cylstm.Embedding(7, 4, dtype="float64", rng=0)
    ids, dy = np.array([[1, 2, 1], [6, 0, 1]]), normal(2, 3, 4)
    layer.backward(layer.forward(ids)[1], dy)
    flat = layer.flat_params.copy()
    for seed in range(3):
        move = normal(flat.size, seed=seed)

        def evaluate(step, move=move):
            layer.assign(flat + step * move)
            return np.vdot(dy, layer(ids))

        np.testing.assert_allclose(layer.flat_grads @ move, slope(evaluate), rtol=1e-6)


def test_embedding_sums_long_batches_exactly():
    layer = cylstm.Embedding(3, 2, rng=0)
    dy = np.full((200_000, 2), 0.1, np.float32)
    layer.backward(layer.forward(np.ones(200_000, int))[1], dy)
    expected = np.zeros((3, 2))
    expected[1] = dy.sum(axis=0, dtype=float)
    assert_close(layer.grads["weight"], expected, 1e-6)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "list"])
def test_embedding_takes_any_layout(layout):
    layer = cylstm.Embedding(7, 4, dtype="float64", rng=0)
    ids, dy = np.random.default_rng(1).integers(0, 7, (5, 3)), normal(5, 3, 4)
    outcomes = []
    for f in (np.array, read_only, LAYOUTS[layout]):
        layer.zero_grad()
        y, tape = layer.forward(f(ids))
        layer.backward(tape, f(dy))
        outcomes.append((y, layer.flat_grads.copy()))
    assert_same_bits(outcomes[1], outcomes[0])
    assert_same_bits(outcomes[2], outcomes[0])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", ">i4", "list"])
def test_embedding_takes_any_integers(kind):
    layer = cylstm.Embedding(1000, 4, rng=0)
    ids = [[3, 100], [0, 7]]
    given = ids if kind == "list" else np.array(ids, kind)
    assert_same_bits(layer(given), layer(np.array(ids)))


def test_embedding_tape_keeps_its_ids():
    layer = cylstm.Embedding(7, 4, rng=0)
    ids = np.array([1, 2])
    _, tape = layer.forward(ids)
    ids[...] = 5
    layer.backward(tape, np.ones((2, 4)))
    assert layer.grads["weight"].sum(axis=1).tolist() == [0, 4, 4, 0, 0, 0, 0]


def test_embedding_initial_values():
    layer = cylstm.Embedding(300, 400, rng=0)
    assert abs(layer.flat_params.mean()) < 0.01
    assert layer.flat_params.std() == pytest.approx(1, rel=0.01)
    assert_same_bits(cylstm.Embedding(300, 400, rng=0).flat_params, layer.flat_params)


def test_embedding_bad_arguments():
    layer = cylstm.Embedding(7, 4, rng=0)
    for wrong in (-1, -7, 7, 10**12, np.uint64(2**64 - 1), np.int64(-(2**63))):
        for ids in (np.array(wrong), np.array([[3, wrong], [0, 1]], np.asarray(wrong).dtype)):
            with pytest.raises(ValueError, match=rf"^ids: expected .* from 0 to 6, got {wrong}$"):
                layer(ids)
    for wrong, got in [(1.0, "float64"), ([True], "bool"), (["1"], "<U1"), (None, "object")]:
        with pytest.raises(TypeError, match=rf"^ids: expected integers, got dtype {got}"):
            layer(wrong)
    _, tape = layer.forward([[1, 2, 3]])
    for shape in [(), (3, 4), (1, 3), (1, 3, 1), (1, 4, 3)]:
        with pytest.raises(ValueError, match=r"^dy: expected shape \(1, 3, 4\), got \("):
            layer.backward(tape, np.ones(shape))
    with pytest.raises(TypeError, match=r"^dy: expected real numbers, got"):
        layer.backward(tape, np.ones((1, 3, 4), complex))
    for wrong in (None, np.array([1]), cylstm.Linear(2, 3).forward([1, 2])[1]):
        with pytest.raises(TypeError, match=r"^tape: expected what forward returned, got"):
            layer.backward(wrong, np.ones((1, 3, 4)))
    assert not layer.flat_grads.any()
    small = cylstm.Embedding(3, 4)
    with pytest.raises(ValueError, match=r"^tape: expected ids below 3, got 3"):
        small.backward(tape, np.ones((1, 3, 4)))
    assert not small.flat_grads.any()


# Padding


def test_embedding_padding():
    for index, place in [(2, 2), (-1, 6), (-7, 0), (0, 0)]:
        layer = cylstm.Embedding(7, 4, padding_idx=index, rng=0)
        assert layer.padding_idx == place
        rest = np.arange(7) != place
        assert not layer.params["weight"][place].any() and layer.params["weight"][rest].all()
        assert_same_bits(
            layer.params["weight"][rest], cylstm.Embedding(7, 4, rng=0).params["weight"][rest]
        )
        ids = np.array([[place, 1, 3], [5, place, place]])
        layer.backward(layer.forward(ids)[1], np.ones((2, 3, 4)))
        assert not layer.grads["weight"][place].any()
        assert (layer.grads["weight"].sum(axis=1)[np.setdiff1d([1, 3, 5], place)] >= 4).all()
    layer.assign({"weight": np.ones((7, 4))})  # as in PyTorch, whoever wants may change it
    assert_same_bits(layer([0]), np.ones((1, 4), np.float32))
    layer.zero_grad()
    layer.backward(layer.forward([0, 0])[1], np.ones((2, 4)))
    assert not layer.flat_grads.any()
    assert cylstm.Embedding(7, 4).padding_idx is None


def test_embedding_bad_padding():
    for index in (7, -8, 10**6):
        with pytest.raises(ValueError, match=r"^padding_idx: expected an integer from -7"):
            cylstm.Embedding(7, 4, padding_idx=index)
    for index in (1.0, "1", True):
        with pytest.raises(TypeError, match=r"^padding_idx: expected an integer, got"):
            cylstm.Embedding(7, 4, padding_idx=index)


# Lists


def test_embedding_of_nothing():
    layer = cylstm.Embedding(5, 3)
    for ids, shape in [([], (0, 3)), ((), (0, 3)), ([[]], (1, 0, 3)), ([[], []], (2, 0, 3))]:
        y, tape = layer.forward(ids)
        assert y.shape == shape and y.dtype == np.float32
        layer.backward(tape, y)
    with pytest.raises(TypeError, match=r"^ids: expected integers, got dtype float64"):
        layer(np.zeros(0))


RAGGED = {
    "lists": [[1, 2, 1], [3], []],
    "arrays": [np.array([1, 2, 1]), np.array([3]), np.array([], int)],
    "tuple": (np.array([1, 2, 1], np.uint8), [3], []),
}


@pytest.mark.parametrize("how", RAGGED)
def test_embedding_of_lists(how):
    layer = cylstm.Embedding(5, 3, dtype="float64", rng=0)
    ids = RAGGED[how]
    y, tape = layer.forward(ids)
    assert [part.shape for part in y] == [(3, 3), (1, 3), (0, 3)]
    weight = layer.params["weight"]
    assert_same_bits(y[0], np.array(weight[[1, 2, 1]]))
    assert_same_bits(y[1], np.array(weight[[3]]))
    dy = [normal(3, 3, seed=1), normal(1, 3, seed=2), normal(0, 3)]
    layer.backward(tape, dy)
    expected = np.zeros((5, 3))
    expected[1], expected[2], expected[3] = dy[0][0] + dy[0][2], dy[0][1], dy[1][0]
    assert_close(layer.grads["weight"], expected, 1e-14)


def test_embedding_lists_of_equal_length():
    layer = cylstm.Embedding(5, 3, rng=0)
    assert layer([[1, 2], [3, 4]]).shape == (2, 2, 3)  # NumPy's nested list
    y = layer([np.array([1, 2]), np.array([3, 4])])
    assert isinstance(y, list) and [part.shape for part in y] == [(2, 3), (2, 3)]
    assert layer([np.int64(1), np.int64(2)]).shape == (2, 3)


def test_embedding_bad_lists():
    layer = cylstm.Embedding(5, 3, rng=0)
    with pytest.raises(ValueError, match=r"^ids\[1\]: expected integers from 0 to 4, got 5"):
        layer([[1, 2], [5]])
    with pytest.raises(TypeError, match=r"^ids\[0\]: expected integers, got dtype float64"):
        layer([[1.0, 2.0], [3]])
    with pytest.raises(ValueError, match=r"^ids\[0\]: expected an array"):
        layer([[[1, 2], [3]], [1]])
    _, tape = layer.forward([[1, 2], [3]])
    for dy, message in [
        (np.ones((2, 3)), "a list of 2 arrays, got ndarray"),
        ([np.ones((2, 3))], "a list of 2 arrays, got 1"),
        ([np.ones((2, 3)), np.ones((2, 3))], None),
    ]:
        expected = (
            r"^dy\[1\]: expected shape \(1, 3\)" if message is None else "^dy: expected " + message
        )
        with pytest.raises(ValueError, match=expected):
            layer.backward(tape, dy)
    assert not layer.flat_grads.any()


def test_embedding_draws_the_same_numbers_in_blocks():
    layer = cylstm.Embedding(3000, 41, rng=0)
    drawn = np.random.default_rng(0).standard_normal(3000 * 41).astype(np.float32)
    assert_same_bits(np.array(layer.flat_params), drawn)
