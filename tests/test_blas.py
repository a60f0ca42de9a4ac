"""The BLAS wrapper alone: every dtype, transposition, scale, layout and size."""

import threading
import time

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits

from cylstm.kernels import blas

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
# m, n, k: single rows, columns and terms, none at all, and sizes beside a vector's
SIZES = [(1, 1, 1), (2, 3, 4), (1, 17, 33), (17, 1, 33), (33, 17, 1), (64, 65, 63), (5, 130, 300)]


def operands(m, n, k, transpose_a=False, transpose_b=False, dtype="float64", seed=0):
    """Random a, b and c as gemm takes them."""
    rng = np.random.default_rng(seed)
    shapes = (k, m) if transpose_a else (m, k), (n, k) if transpose_b else (k, n), (m, n)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def product(a, b, transpose_a, transpose_b):
    """The product in float64."""
    a, b = a.astype(float), b.astype(float)
    return np.einsum("km,kn->mn" if transpose_a else "mk,kn->mn", a, b.T if transpose_b else b)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype, transpose_a, transpose_b, size):
    a, b, c = operands(*size, transpose_a, transpose_b, dtype)
    ab = product(a, b, transpose_a, transpose_b)
    for alpha, beta in [(1.0, 0.0), (1.0, 1.0), (-0.5, 2.0), (0.0, 0.25), (0.0, 0.0)]:
        got = c.copy()
        assert blas.gemm(a, b, got, transpose_a, transpose_b, alpha, beta) is None
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(got, alpha * ab + beta * c, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_defaults(dtype):
    a, b, c = operands(2, 3, 4, dtype=dtype)
    c[...] = np.nan  # beta = 0 does not read c
    blas.gemm(a, b, c)
    np.testing.assert_allclose(c, product(a, b, False, False), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(dtype):
    for m, n in [(0, 3), (3, 0), (0, 0)]:
        for transpose_a, transpose_b in [(False, False), (True, True)]:
            blas.gemm(*operands(m, n, 4, transpose_a, transpose_b, dtype), transpose_a, transpose_b)
    for transpose in (False, True):
        a, b, c = operands(2, 3, 0, transpose, transpose, dtype)
        for beta in (1.0, -2.0, 0.0):
            got = c.copy()
            blas.gemm(a, b, got, transpose, transpose, beta=beta)
            assert_same_bits(np.abs(got), np.abs(got.dtype.type(beta) * c))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_beyond_the_int_range(monkeypatch, dtype, transpose_a, transpose_b, limit):
    monkeypatch.setattr(blas, "max_dimension", limit)
    for size in [(5, 6, 7), (7, 3, 2), (3, 7, 5), (2, 4, 9), (3, 3, 3), (4, 5, 0)]:
        a, b, c = operands(*size, transpose_a, transpose_b, dtype)
        expected = 0.5 * product(a, b, transpose_a, transpose_b) - 2 * c
        blas.gemm(a, b, c, transpose_a, transpose_b, 0.5, -2.0)
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(c, expected, rtol=tolerance, atol=tolerance)


def test_limit_is_that_of_int():
    assert blas.max_dimension == np.iinfo(np.intc).max


@pytest.mark.parametrize("dtype", DTYPES)
def test_part_of_a_larger_array(dtype):
    flat = np.random.default_rng(1).normal(size=2 + 3 * 4 + 2).astype(dtype)
    a, b, _ = operands(3, 4, 5, dtype=dtype)
    before = flat.copy()
    blas.gemm(a, b, flat[2:-2].reshape(3, 4), beta=1.0)
    expected = before.astype(float)
    expected[2:-2] += product(a, b, False, False).ravel()
    np.testing.assert_allclose(flat, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_same_bits(flat[[0, 1, -2, -1]], before[[0, 1, -2, -1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_may_be_read_only(dtype):
    a, b, c = operands(2, 3, 4, dtype=dtype)
    a.flags.writeable = b.flags.writeable = False
    before = a.copy(), b.copy()
    blas.gemm(a, b, c)
    np.testing.assert_allclose(c, product(a, b, False, False), rtol=TOLERANCE[dtype])
    assert_same_bits((a, b), before)


def test_refused():
    a, b, c = operands(2, 3, 4)
    kept = c.copy()
    read_only = c.copy()
    read_only.flags.writeable = False
    wrong = [
        ((a[:1], b, c), "do not fit"),
        ((a[:, :3].copy(), b, c), "do not fit"),
        ((a, b[:, :2].copy(), c), "do not fit"),
        ((a, b, c.T.copy()), "do not fit"),
        ((a, b, c, True), "do not fit"),
        ((a, b, c, False, True), "do not fit"),
        ((a, b[0], c), "dimensions"),
        ((a.T.copy().T, b, c), "not C-contiguous"),
        ((a, b[:, ::-1], c), "not C-contiguous"),
        ((a, b, np.zeros((2, 6))[:, ::2]), "not C-contiguous"),
        ((a, b.astype("float32"), c), "dtype mismatch"),
        ((a, b, c.astype("float32")), "dtype mismatch"),
        ((a, b.astype(">f8"), c), "endian"),
        ((a, b, read_only), "read-only"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            blas.gemm(*arguments)
    for other in (a[0], *map(a.astype, ("int64", "float16", "complex128", "object"))):
        with pytest.raises(TypeError):
            blas.gemm(other, b, c)
    assert_same_bits(c, kept)


def test_other_threads_run_meanwhile():
    a, b, c = operands(1200, 1200, 1200)
    blas.gemm(a, b, c)
    ticks, running = [], threading.Event()

    def tick():
        running.set()
        while running.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    ticker = threading.Thread(target=tick)
    ticker.start()
    running.wait()
    start = time.perf_counter()
    for _ in range(5):
        blas.gemm(a, b, c)
    stop = time.perf_counter()
    running.clear()
    ticker.join()
    assert sum(start < t < stop for t in ticks) > 5
