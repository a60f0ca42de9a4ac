"""Losses: values and gradients, masks, extremes, errors, and PyTorch's results."""

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits

from cylstm import cross_entropy, mse_loss

TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
LENGTHS = [4, 0, 2]
INVALID = np.arange(4)[:, None] >= LENGTHS  # (T, B)


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def classes(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 5, shape)


def slope(evaluate, step=1e-3):
    """Derivative at 0 of a function of one number: central difference of fourth order."""
    near = evaluate(step) - evaluate(-step)
    far = evaluate(2 * step) - evaluate(-2 * step)
    return (8 * near - far) / (12 * step)


def case(loss, shape, dtype="float64"):
    """Arguments of a loss over elements of the shape, with 5 classes or features."""
    target = classes(*shape) if loss is cross_entropy else normal(*shape, 5, dtype=dtype, seed=1)
    return normal(*shape, 5, dtype=dtype), target


def time_second(a):
    return np.swapaxes(a, 0, 1)


BOTH = pytest.mark.parametrize("loss", [cross_entropy, mse_loss])


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_by_hand(dtype, shape):
    logits, targets = case(cross_entropy, shape, dtype)
    loss, dlogits = cross_entropy(logits, targets)
    z = logits.astype(float).reshape(-1, 5)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    right = np.eye(5)[targets.ravel()]
    assert type(loss) is float
    assert loss == pytest.approx(-np.log(p[right == 1]).mean(), rel=TOLERANCE[dtype])
    assert dlogits.dtype == dtype
    assert_close(dlogits, ((p - right) / len(p)).reshape(logits.shape), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_loss_by_hand(dtype, shape):
    prediction, target = case(mse_loss, shape, dtype)
    loss, dprediction = mse_loss(prediction, target)
    difference = prediction.astype(float) - target
    assert type(loss) is float
    assert loss == pytest.approx((difference**2).mean(), rel=TOLERANCE[dtype])
    assert dprediction.dtype == dtype
    assert_close(dprediction, 2 * difference / difference.size, TOLERANCE[dtype])


def test_mse_loss_of_a_number():
    loss, dprediction = mse_loss(3.0, 1)
    assert (loss, dprediction.shape, float(dprediction)) == (4.0, (), 4.0)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@BOTH
def test_gradients(loss, lengths):
    z, target = case(loss, (4, 3))
    _, dz = loss(z, target, lengths=lengths)
    for seed in range(3):
        move = normal(*z.shape, seed=seed)

        def evaluate(step, move=move):
            return loss(z + step * move, target, lengths=lengths)[0]

        np.testing.assert_allclose(np.vdot(dz, move), slope(evaluate), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_masked_is_as_if_cut_off(loss, dtype):
    z, target = case(loss, (4, 3), dtype)
    got, dz = loss(z, target, lengths=LENGTHS)
    cut, dcut = loss(z[~INVALID], target[~INVALID])
    assert got == cut
    assert_same_bits(dz[~INVALID], dcut)
    assert not dz[INVALID].any()
    assert dz[~INVALID].all()


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_padding_is_not_looked_at(loss, dtype, junk):
    z, target = case(loss, (4, 3), dtype)
    expected = loss(z, target, lengths=LENGTHS)
    z, target = z.copy(), target.copy()
    z[INVALID] = junk
    target[INVALID] = -100 if loss is cross_entropy else junk
    got = loss(z, target, lengths=LENGTHS)
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])


@pytest.mark.parametrize("rows", [3, 4])  # 4 is also the number of steps
@BOTH
def test_batch_first(loss, rows):
    z, target = case(loss, (4, rows))
    lengths = [4, 0, 2, 3][:rows]
    expected = loss(z, target, lengths=lengths)
    assert not expected[1][2:, 2].any() and expected[1][1, 2].all()
    got = loss(time_second(z), time_second(target), lengths=lengths, batch_first=True)
    assert got[0] == pytest.approx(expected[0], rel=1e-14)
    assert_close(time_second(got[1]), expected[1], 1e-14)
    flat = loss(z[0], target[0], batch_first=True)
    assert flat[0] == loss(z[0], target[0])[0]


@BOTH
def test_axes_after_the_batch(loss):
    z, target = case(loss, (4, 3, 2))
    got, dz = loss(z, target, lengths=LENGTHS)
    cut, dcut = loss(z[~INVALID], target[~INVALID])
    assert got == cut
    assert_same_bits(dz[~INVALID], dcut)


@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_nothing_valid(loss, dtype):
    for shape, lengths in [((0,), None), ((0, 3), None), ((4, 0), None), ((4, 3), [0, 0, 0]),
                           ((0, 3), [0, 0, 0]), ((4, 0), np.zeros(0, int))]:  # fmt: skip
        z, target = case(loss, shape, dtype)
        got, dz = loss(np.full_like(z, np.nan), target, lengths=lengths)
        assert type(got) is float and got == 0
        assert dz.shape == z.shape and dz.dtype == dtype and not dz.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_extreme_logits(dtype):
    big = float(np.finfo(dtype).max) / 4
    with np.errstate(all="raise"):
        loss, dlogits = cross_entropy(np.array([[big, -big, 0]], dtype), [0])
        assert loss == 0 and not dlogits.any()
        loss, dlogits = cross_entropy(np.array([[1000, 0, 1000]], dtype), [1])
        assert loss == pytest.approx(1000 + np.log(2))
        assert dlogits.tolist() == [[0.5, -1, 0.5]]
        loss, dlogits = cross_entropy(np.array([[0, -np.inf]], dtype), [0])
        assert loss == 0 and not dlogits.any()
    loss, dlogits = cross_entropy(np.array([[0, -np.inf]], dtype), [1])
    assert loss == np.inf
    assert dlogits.tolist() == [[1, -1]]


@BOTH
def test_float32_accumulates_in_float64(loss):
    n = 300_000
    z, target = case(loss, (n,), "float32")
    exact, dexact = loss(z.astype(float), target)
    got, dz = loss(z, target)
    assert got == pytest.approx(exact, rel=1e-8)
    assert_close(n * dz, n * dexact, 1e-6)


def test_mse_loss_of_large_float32():
    loss, _ = mse_loss(np.float32([1e30, 0]), np.float32([0, 0]))
    assert loss == pytest.approx(5e59, rel=1e-6)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", ">i4", "list"])
def test_any_integers(kind):
    z, target = case(cross_entropy, (4, 3))
    expected = cross_entropy(z, target, lengths=LENGTHS)
    given = (target.tolist(), LENGTHS) if kind == "list" else (
        target.astype(kind), np.array(LENGTHS, kind))  # fmt: skip
    got = cross_entropy(z, given[0], lengths=given[1])
    assert got[0] == expected[0]
    assert_same_bits(got[1], expected[1])


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int8", "uint64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_loss_takes_any_real_target(dtype, kind):
    prediction = normal(3, 4, dtype=dtype)
    target = np.arange(12).reshape(3, 4).astype(kind)
    loss, dprediction = mse_loss(prediction, target)
    difference = prediction.astype(float) - target
    assert loss == pytest.approx((difference**2).mean(), rel=TOLERANCE[dtype])
    assert dprediction.dtype == dtype
    assert_close(dprediction, difference / 6, TOLERANCE[dtype])


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    "change",
    [np.asfortranarray, lambda a: a[::-1].copy()[::-1], read_only,
     lambda a: a.astype(a.dtype.newbyteorder("S"))],
    ids=["Fortran", "reversed", "read-only", "byte-swapped"],
)  # fmt: skip
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", DTYPES)
@BOTH
def test_any_layout(loss, dtype, lengths, change):
    z, target = case(loss, (4, 3), dtype)
    before = z.copy(), target.copy()
    expected = loss(z, target, lengths=lengths)
    got = loss(change(z), change(target), lengths=lengths)
    assert got[0] == pytest.approx(expected[0], rel=TOLERANCE[dtype])
    assert_close(got[1], expected[1], TOLERANCE[dtype])
    assert got[1].dtype == dtype and got[1].dtype.isnative
    assert_same_bits((z, target), before)


def test_cross_entropy_refuses():
    z, target = case(cross_entropy, (4, 3))
    for wrong in (-1, 5, 10**12):
        with pytest.raises(ValueError, match=rf"^targets: expected .* from 0 to 4, got {wrong}$"):
            cross_entropy(z, np.where(np.arange(3) == 2, wrong, target))
    for shape in [(4,), (3, 4), (12,), (4, 3, 5), (4, 3, 1), ()]:
        with pytest.raises(ValueError, match=r"^targets: expected shape \(4, 3\), got \("):
            cross_entropy(z, np.zeros(shape, int))
    for shape in [(), (5,), (3, 0)]:
        with pytest.raises(ValueError, match=r"^logits: expected shape \(\.\.\., C\)"):
            cross_entropy(np.zeros(shape), np.zeros(shape[:-1], int))
    for kind in ("float64", "bool", "object"):
        with pytest.raises(TypeError, match=rf"^targets: expected integers, got dtype {kind}"):
            cross_entropy(z, target.astype(kind))
    for kind in ("float16", "int64", "complex128", "object"):
        with pytest.raises(TypeError, match=rf"^logits: expected float32 or float64, got {kind}"):
            cross_entropy(z.astype(kind), target)


def test_mse_loss_refuses():
    z, target = case(mse_loss, (4, 3))
    for shape in [(4, 3), (3, 4, 5), (1, 3, 5), (4, 3, 1), ()]:
        with pytest.raises(ValueError, match=r"^target: expected shape \(4, 3, 5\), got \("):
            mse_loss(z, np.zeros(shape))
    for kind in ("complex128", "bool", "object"):
        with pytest.raises(TypeError, match=rf"^target: expected real numbers, got dtype {kind}"):
            mse_loss(z, target.astype(kind))
    for kind in ("float16", "int64", "complex128", "object"):
        with pytest.raises(TypeError, match=rf"^prediction: expected .* float64, got {kind}"):
            mse_loss(z.astype(kind), target)


@BOTH
def test_lengths_refused(loss):
    z, target = case(loss, (4, 3))
    cases = [
        ([1, 2, 5], ValueError, "expected .* 0 to 4, got .*5"),
        ([1, -1, 2], ValueError, "expected .* 0 to 4, got .*-1"),
        (np.array([2**64 - 1, 0, 0], "uint64"), ValueError, f"got .*{2**64 - 1}"),
        ([1, 2], ValueError, r"expected shape \(3,\), got \(2,\)"),
        ([1, 2, 3, 4], ValueError, r"expected shape \(3,\), got \(4,\)"),
        (2, ValueError, r"expected shape \(3,\), got \(\)"),
        ([[1, 2, 3]], ValueError, r"expected shape \(3,\), got \(1, 3\)"),
        ([1.0, 2.0, 3.0], TypeError, "expected integers, got dtype float64"),
        ([True, True, True], TypeError, "expected integers, got dtype bool"),
    ]
    for lengths, error, message in cases:
        with pytest.raises(error, match=rf"^lengths: .*{message}"):
            loss(z, target, lengths=lengths)
    with pytest.raises(ValueError, match=r"^lengths: expected shape \(4,\), got \(3,\)"):
        loss(z, target, lengths=[1, 2, 3], batch_first=True)
    with pytest.raises(ValueError, match="with lengths, expected at least 2 axes, got shape"):
        if loss is cross_entropy:
            loss(z[0], target[0], lengths=[1, 1, 1])
        else:
            loss(z[0, 0], target[0, 0], lengths=[1])
