"""Layers around the recurrent ones: `Linear` after them, `Embedding` before them."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cylstm.params import Array, Parameters

Rng = int | np.random.Generator | None


class LinearTape(NamedTuple):
    """What `Linear.backward` needs: the input, and how often the weights had been changed."""

    x: Array
    version: int


class EmbeddingTape(NamedTuple):
    """What `Embedding.backward` needs: the numbers of the rows looked up."""

    ids: npt.NDArray[np.intp]


class Linear(Parameters):
    """Affine map of the last axis: y = x W' + b.

    Parameters are `weight` (out_features, in_features) and `bias` (out_features,), as in
    `torch.nn.Linear`, drawn like there from U(-k, k) with k = 1 / sqrt(in_features).

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of input and output, at least 1.
    bias : bool, default True
        Whether to add b.
    dtype : {"float32", "float64"}, default "float32"
        Type of parameters and outputs; inputs of other real types are cast to it.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial parameters.

    Raises
    ------
    TypeError
        A size is not an integer.
    ValueError
        A size is below 1, or `dtype` is neither float32 nor float64.

    Notes
    -----
    Products run in SciPy's BLAS, which is imported at the first call. The last bits of a row may
    depend on the number of rows beside it; recurrent layers do not have this property.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = "float32",
        rng: Rng = None,
    ) -> None:
        self.in_features = _size("in_features", in_features)
        self.out_features = _size("out_features", out_features)
        self.bias = bool(bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        super().__init__(shapes, _real_dtype(dtype))
        bound = self.in_features**-0.5
        self.assign(np.random.default_rng(rng).uniform(-bound, bound, self.flat_params.size))

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Output alone; see `forward`."""
        return self.forward(x)[0]

    def forward(self, x: npt.ArrayLike) -> tuple[Array, LinearTape]:
        """Compute the output and keep what `backward` needs.

        Parameters
        ----------
        x : array-like of shape (..., in_features)
            Real numbers; any leading shape, empty ones included.

        Returns
        -------
        y : ndarray of shape (..., out_features)
        tape : LinearTape
            Refers to `x` where no copy was needed: leave `x` unchanged until `backward`.

        Raises
        ------
        TypeError
            `x` is not made of real numbers.
        ValueError
            The last axis of `x` is not `in_features` long.
        """
        from cylstm.kernels.blas import gemm

        version = self._version
        x = _real_array("x", x, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape (..., {self.in_features}), got {x.shape}")
        y = np.empty((*x.shape[:-1], self.out_features), self.dtype)
        if self.bias:
            y[...] = self.params["bias"]
        # y := x W' + b
        gemm(_rows(x), self.params["weight"], _rows(y), transpose_b=True, beta=float(self.bias))
        return y, LinearTape(x, version)

    def backward(self, tape: LinearTape, dy: npt.ArrayLike) -> Array:
        """Add the parameters' gradients to `grads` and return the input's.

        Parameters
        ----------
        tape : LinearTape
            From `forward`; may be used several times.
        dy : array-like of shape (..., out_features)
            Gradient of the loss with respect to the output.

        Returns
        -------
        ndarray of shape (..., in_features)
            Gradient with respect to the input.

        Raises
        ------
        TypeError
            `tape` is not a `LinearTape`, or `dy` is not made of real numbers.
        ValueError
            The shape of `dy` is not the output's, or the parameters have been changed since
            `forward`. `grads` is unchanged then.
        """
        from cylstm.kernels.blas import gemm

        x = self._check_tape(tape)
        dy = _real_array("dy", dy, self.dtype)
        shape = (*x.shape[:-1], self.out_features)
        if dy.shape != shape:
            raise ValueError(f"dy: expected shape {shape}, got {dy.shape}")
        dx = np.empty_like(x)
        # dx := dy W
        gemm(_rows(dy), self.params["weight"], _rows(dx))
        with self._lock:  # two threads adding at once would lose a gradient
            # dW := dW + dy' x, db := db + sum over rows of dy
            gemm(_rows(dy), _rows(x), self.grads["weight"], transpose_a=True, beta=1.0)
            if self.bias:
                self.grads["bias"] += _rows(dy).sum(axis=0, dtype=np.float64)
        return dx

    def _check_tape(self, tape: LinearTape) -> Array:
        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        expected, got = (self.in_features, self.dtype), (tape.x.shape[-1], tape.x.dtype)
        if got != expected:
            raise ValueError(f"tape: expected in_features and dtype {expected}, got {got}")
        if tape.version != self._version:
            raise ValueError("tape: the parameters have been changed since forward")
        return tape.x


class Embedding(Parameters):
    """Table of vectors, looked up by number.

    The parameter is `weight` (num_embeddings, embedding_dim), as in `torch.nn.Embedding`, drawn
    like there from N(0, 1).

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Number of vectors and length of each, at least 1.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters and outputs.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial parameters.

    Raises
    ------
    TypeError
        A size is not an integer.
    ValueError
        A size is below 1, or `dtype` is neither float32 nor float64.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: npt.DTypeLike = "float32",
        rng: Rng = None,
    ) -> None:
        self.num_embeddings = _size("num_embeddings", num_embeddings)
        self.embedding_dim = _size("embedding_dim", embedding_dim)
        super().__init__({"weight": (self.num_embeddings, self.embedding_dim)}, _real_dtype(dtype))
        self.assign(np.random.default_rng(rng).normal(size=self.flat_params.size))

    def __call__(self, ids: npt.ArrayLike) -> Array:
        """Output alone; see `forward`."""
        return self.forward(ids)[0]

    def forward(self, ids: npt.ArrayLike) -> tuple[Array, EmbeddingTape]:
        """Look up vectors and keep what `backward` needs.

        Parameters
        ----------
        ids : array-like of shape (...)
            Integers from 0 to num_embeddings - 1; negative ones do not count from the end.

        Returns
        -------
        y : ndarray of shape (..., embedding_dim)
        tape : EmbeddingTape

        Raises
        ------
        TypeError
            `ids` are not integers.
        ValueError
            An id is negative or too large.
        """
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids: expected integers, got dtype {ids.dtype}")
        outside = (ids < 0) | (ids >= self.num_embeddings)
        if outside.any():
            raise ValueError(
                f"ids: expected integers from 0 to {self.num_embeddings - 1}, got {ids[outside][0]}"
            )
        ids = ids.astype(np.intp)  # a copy: the caller may reuse his array before backward
        return self.params["weight"].take(ids, axis=0), EmbeddingTape(ids)

    def backward(self, tape: EmbeddingTape, dy: npt.ArrayLike) -> None:
        """Add the gradients of the vectors looked up to `grads`.

        Parameters
        ----------
        tape : EmbeddingTape
            From `forward`; may be used several times.
        dy : array-like of shape (..., embedding_dim)
            Gradient of the loss with respect to the output.

        Raises
        ------
        TypeError
            `tape` is not an `EmbeddingTape`, or `dy` is not made of real numbers.
        ValueError
            The shape of `dy` is not the output's. `grads` is unchanged then.
        """
        if not isinstance(tape, EmbeddingTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        dy = _real_array("dy", dy, self.dtype)
        shape = (*tape.ids.shape, self.embedding_dim)
        if dy.shape != shape:
            raise ValueError(f"dy: expected shape {shape}, got {dy.shape}")
        # Sums over equal ids side by side, in order and float64: exacter than numpy.add.at, faster
        # where ids repeat.
        ids = tape.ids.ravel()
        order = np.argsort(ids, kind="stable")
        used, starts = np.unique(ids[order], return_index=True)
        if used.size and used[-1] >= self.num_embeddings:
            raise ValueError(f"tape: expected ids below {self.num_embeddings}, got {used[-1]}")
        sums = np.add.reduceat(_rows(dy)[order], starts, axis=0, dtype=np.float64)
        with self._lock:  # two threads adding at once would lose a gradient
            self.grads["weight"][used] += sums


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def _real_dtype(value: npt.DTypeLike) -> np.dtype[Any]:
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"dtype: expected float32 or float64, got {value!r}") from None
    if value is None or dtype not in (np.float32, np.float64):  # NumPy takes None for float64
        raise ValueError(f"dtype: expected float32 or float64, got {value!r}")
    return dtype


def _real_array(name: str, value: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    """Make a C-contiguous, aligned array of the dtype, without a copy where there is one."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def _rows(array: Array) -> Array:
    """View an array as the matrix whose rows lie along its last axis."""
    return array.reshape(-1, array.shape[-1])
