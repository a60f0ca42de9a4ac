"""Sigmoid and tanh as the kernels compute them, over the whole range of numbers."""

import numpy as np
import pytest
from helpers import activation

import cylstm

# Units in the last place of the exact result, wherever that is a normal number; README says so.
MAX_ULP = {"sigmoid": 2.5, "tanh": 2.75}
LEVELS = pytest.mark.parametrize("isa", [None, *cylstm.config()["isa_usable"]])
NAMES = pytest.mark.parametrize("name", ["sigmoid", "tanh"])
TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
LIMITS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


def exact(name, x):
    """Reference in long double, which has at least 11 bits more than float64 on x86 and AArch64."""
    x = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        return np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))


def sweep(dtype, mantissas, exponents=slice(None)):
    """Numbers of all the exponents, subnormals included, of both signs, mantissas spread evenly."""
    info = np.finfo(dtype)
    every = np.arange(2**info.nexp - 1, dtype=np.uint64)[exponents]  # the last is inf and NaN
    mantissa = np.linspace(0, 2**info.nmant - 1, mantissas).astype(np.uint64)
    mantissa[1:-1] += np.random.default_rng(0).integers(
        0, max(1, 2**info.nmant // mantissas), mantissas - 2, dtype=np.uint64
    )
    positive = (every[:, None] << np.uint64(info.nmant)) + mantissa % np.uint64(2**info.nmant)
    positive = positive.astype(f"u{info.bits // 8}").view(dtype).ravel()
    return np.concatenate((positive, -positive))


def assert_accurate(name, x, isa):
    y, expected = activation(name, x, isa=isa), exact(name, x)
    assert y.dtype == x.dtype and y.shape == x.shape
    tiny = np.finfo(x.dtype).tiny
    normal = np.abs(expected) >= tiny
    ulp = np.spacing(np.abs(expected[normal]).astype(x.dtype)).astype(np.longdouble)
    errors = np.abs(y[normal] - expected[normal]) / ulp
    worst = np.argmax(errors)
    assert errors[worst] <= MAX_ULP[name], (x[normal][worst], y[normal][worst])
    # A result below the normal range may be flushed to 0.
    small, small_exact = y[~normal], expected[~normal]
    assert np.all(np.abs(small) <= tiny)
    errors = np.abs(small - small_exact)
    assert np.all((errors <= np.finfo(x.dtype).smallest_subnormal) | (small == 0))
    low, high = LIMITS[name]
    assert np.all((low <= y) & (y <= high))


@LEVELS
@NAMES
def test_all_exponents_float32(name, isa):
    assert_accurate(name, sweep("float32", 1500), isa)


@LEVELS
@NAMES
def test_all_exponents_float64(name, isa):
    assert_accurate(name, sweep("float64", 150), isa)


@NAMES
@TYPES
def test_where_it_curves(name, dtype):
    info = np.finfo(dtype)
    bias = 2 ** (info.nexp - 1) - 1
    assert_accurate(name, sweep(dtype, 20_000, slice(bias - 15, bias + 10)), None)


@LEVELS
@TYPES
def test_special_values(dtype, isa):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e3, -1e3], dtype)
    tanh, sigmoid = activation("tanh", x, isa=isa), activation("sigmoid", x, isa=isa)
    np.testing.assert_array_equal(tanh, [0, 0, 1, -1, np.nan, np.nan, 1, -1])
    np.testing.assert_array_equal(sigmoid, [0.5, 0.5, 1, 0, np.nan, np.nan, 1, 0])
    assert np.signbit(tanh[1]) and not np.signbit(tanh[0])


@LEVELS
@TYPES
def test_tanh_is_odd_in_every_bit(dtype, isa):
    x = sweep(dtype, 200)
    np.testing.assert_array_equal(activation("tanh", -x, isa=isa), -activation("tanh", x, isa=isa))


@LEVELS
@NAMES
@TYPES
def test_length_and_place_change_no_bit(name, dtype, isa):
    x = np.random.default_rng(0).normal(size=67).astype(dtype) * 4
    whole = activation(name, x, isa=isa)
    for stop in range(67):
        np.testing.assert_array_equal(activation(name, x[stop:], isa=isa), whole[stop:])
        np.testing.assert_array_equal(activation(name, x[:stop], isa=isa), whole[:stop])
