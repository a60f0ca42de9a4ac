"""Layers around the recurrent ones: `Linear` after them, `Embedding` before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cylstm import checks
from cylstm.params import Array, Parameters

if TYPE_CHECKING:
    from cylstm.params import Rng


class LinearTape(NamedTuple):
    """What `Linear.backward` needs: the input, and the weights as they were."""

    x: Array
    weight: Array


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
    Products run in SciPy's BLAS, which is imported at the first call and uses its own threads.
    Unlike in recurrent layers, the last bits of a row may depend on the number of rows beside it.
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
        self.in_features = checks.size("in_features", in_features)
        self.out_features = checks.size("out_features", out_features)
        self.bias = checks.flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        super().__init__(shapes, checks.dtype(dtype))
        bound = self.in_features**-0.5
        self.assign(checks.generator("rng", rng).uniform(-bound, bound, self.flat_params.size))

    def _changed(self) -> None:
        self._frozen: dict[str, Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the copies, too."""
        return super().__getstate__() | {"_frozen": {}}

    def _frozen_params(self) -> dict[str, Array]:
        """Return copies that no `assign` changes, made once after each, for calls and tapes."""
        frozen = self._frozen
        if not frozen:
            with self._lock:
                frozen = self._frozen = self.state_dict()
        return frozen

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
            Remembers the weights, so they may change in between. Refers to `x` where no copy
            was needed: leave that unchanged until `backward`.

        Raises
        ------
        TypeError
            `x` is not made of real numbers.
        ValueError
            The last axis of `x` is not `in_features` long.
        """
        from cylstm.kernels.blas import gemm

        x = checks.array("x", x, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape (..., {self.in_features}), got {x.shape}")
        y = np.empty((*x.shape[:-1], self.out_features), self.dtype)
        params = self._frozen_params()
        if self.bias:
            y[...] = params["bias"]
        # y := x W' + b
        gemm(_rows(x), params["weight"], _rows(y), transpose_b=True, beta=float(self.bias))
        return y, LinearTape(x, params["weight"])

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
            The shape of `dy` is not the output's, or the tape is that of another kind of layer.
            `grads` is unchanged then.
        """
        from cylstm.kernels.blas import gemm

        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        x, weight = tape
        expected = (self.out_features, self.in_features), self.dtype
        if (weight.shape, weight.dtype) != expected:
            raise ValueError(f"tape: expected weights {expected}, got {weight.shape, weight.dtype}")
        dy = checks.array("dy", dy, self.dtype)
        checks.shape("dy", dy, (*x.shape[:-1], self.out_features))
        x_rows, dy_rows = _rows(x), _rows(dy)
        dx = np.empty(x.shape, self.dtype)
        # dx := dy W
        gemm(dy_rows, weight, _rows(dx))
        with self._lock:  # two threads adding at once would lose a gradient
            # dW := dW + dy' x, db := db + sum over rows of dy
            gemm(dy_rows, x_rows, self.grads["weight"], transpose_a=True, beta=1.0)
            if self.bias:
                self.grads["bias"] += dy_rows.sum(axis=0, dtype=np.float64)
        return dx


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
        self.num_embeddings = checks.size("num_embeddings", num_embeddings)
        self.embedding_dim = checks.size("embedding_dim", embedding_dim)
        shapes = {"weight": (self.num_embeddings, self.embedding_dim)}
        super().__init__(shapes, checks.dtype(dtype))
        self.assign(checks.generator("rng", rng).normal(size=self.flat_params.size))

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
        dy = checks.array("dy", dy, self.dtype)
        checks.shape("dy", dy, (*tape.ids.shape, self.embedding_dim))
        # Pairwise sums over equal ids side by side: exacter than numpy.add.at, and faster where
        # ids repeat.
        ids = tape.ids.ravel()
        order = np.argsort(ids, kind="stable")
        used, starts = np.unique(ids[order], return_index=True)
        if used.size and used[-1] >= self.num_embeddings:
            raise ValueError(f"tape: expected ids below {self.num_embeddings}, got {used[-1]}")
        sums = np.add.reduceat(_rows(dy)[order], starts, axis=0)
        with self._lock:  # two threads adding at once would lose a gradient
            self.grads["weight"][used] += sums


def _rows(array: Array) -> Array:
    """Return the C-contiguous matrix of the array's last axis, a view if the array is that."""
    return np.ascontiguousarray(array.reshape(-1, array.shape[-1]))
