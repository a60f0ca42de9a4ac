"""`Linear`: an affine map of the last axis, after a recurrent layer."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks, runtime
from cylstm.kernels import dispatch, sequence
from cylstm.layers import activations, ragged
from cylstm.layers.embedding import Embedding
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stored import Stored
from cylstm.module import Array, draw_uniform

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.engine.cells import Activation
    from cylstm.module import Rng


class LinearTape(NamedTuple):
    """What `Linear.backward` needs: the input, the weights as they were, and x W' + b."""

    x: Array
    layout: ragged.Layout
    weight: sequence.Snapshot
    shape: tuple[int, int]
    f: Activation | None
    sums: Array | None


class Linear(Stored):
    """Affine map of the last axis, and an activation if wanted: y = f(x W' + b).

    Parameters are `weight` (out_features, in_features) and `bias` (out_features,), as in
    `torch.nn.Linear`, and drawn from U(-k, k) with k = 1 / sqrt(in_features), as there.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of input and output, at least 1.
    bias : bool, default True
        Whether to add b.
    activation : str or tuple, optional
        f: one of the activations that the gates of recurrent layers have, by name, or a tuple of
        the name, alpha and beta: "sigmoid", "tanh", "relu", "affine", "leakyrelu",
        "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu", "softsign", "softplus",
        "hard_sigmoid_keras2", "hard_sigmoid_keras3"; formulas and defaults are ONNX's. Default
        none. At a kink the derivative is that of the flat side.
    tied_to : Embedding, optional
        Use the vectors of this layer as W, as language models do (Press & Wolf 2017): in_features
        must be its embedding_dim, out_features its num_embeddings. `bias` is then the only
        parameter of this layer. W is read from the embedding and its gradient added to
        `tied_to.grads["weight"]`, so give an optimiser both modules. Pickled or copied together
        they stay tied.
    dtype : {"float32", "float64"}, default "float32"
        Type of parameters and outputs; inputs of other real types are cast to it. That of
        `tied_to`, if given.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial parameters.

    Attributes
    ----------
    in_features, out_features : int
    bias : bool
    activation : str, tuple or None
    tied_to : Embedding or None

    Raises
    ------
    TypeError
        A size is not an integer, `bias` not a bool, `activation` not a name, or `tied_to` not an
        `Embedding`.
    ValueError
        A size is below 1 or not that of `tied_to`, `activation` is unknown or has parameters that
        it does not take, or `dtype` is neither float32 nor float64 or not that of `tied_to`.

    Notes
    -----
    A row has the same bits alone and in any batch, at any place, for any number of threads and
    with or without a tape, and so has the gradient of x; gradients of parameters are the same for
    any number of threads. They may differ in the last bits between instruction sets. Numbers below
    the normal range (1.2e-38 in float32) count as zero. Weights are used where they are; a call
    during which another thread assigns new ones uses either the old or the new, all of them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str | tuple[Any, ...] | None = None,
        tied_to: Embedding | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: Rng = None,
    ) -> None:
        self.in_features = checks.size("in_features", in_features)
        self.out_features = checks.size("out_features", out_features)
        self.bias = checks.flag("bias", bias)
        self.activation = activation
        self._f = None if activation is None else activations.parse("activation", activation)
        self.tied_to = tied_to
        kind = checks.dtype(dtype)
        if tied_to is not None:
            self._check_tie(tied_to, kind)
        generator = checks.generator("rng", rng)
        shapes: dict[str, tuple[int, ...]] = {}
        if tied_to is None:
            shapes["weight"] = (self.out_features, self.in_features)
        if self.bias:
            shapes["bias"] = (self.out_features,)
        super().__init__(shapes, kind)
        bound = self.in_features**-0.5
        if self._draws_parameters():
            draw_uniform(generator, self._storage, -bound, bound)

    def _check_tie(self, other: Any, dtype: np.dtype[Any]) -> None:
        if not isinstance(other, Embedding):
            raise TypeError(f"tied_to: expected an Embedding, got {type(other).__name__}")
        for name, size in (
            ("embedding_dim", self.in_features),
            ("num_embeddings", self.out_features),
        ):
            if getattr(other, name) != size:
                raise ValueError(f"tied_to: expected {name} {size}, got {getattr(other, name)}")
        if other.dtype != dtype:
            raise ValueError(f"dtype: expected that of tied_to, {other.dtype}, got {dtype}")

    @property
    def _owner(self) -> Stored:
        """The module whose parameter W is."""
        return self if self.tied_to is None else self.tied_to

    def __call__(self, x: npt.ArrayLike, *, num_threads: int | None = None) -> Any:
        """Compute the output.

        Parameters
        ----------
        x : array-like of shape (..., in_features), or a list of such
            Real numbers; any leading shape, empty ones included. In a list of arrays each element
            is a sequence of its own.
        num_threads : int, optional
            At least 1. Default `cylstm.get_num_threads()`; small products run on one.

        Returns
        -------
        ndarray of shape (..., out_features), or a list of such
            A list if `x` is one.

        Raises
        ------
        TypeError
            `x` is not made of real numbers, or `num_threads` not an integer.
        ValueError
            The last axis of `x` is not `in_features` long, or `num_threads` is below 1.
        """
        return self._run(x, num_threads, False)[0]

    def forward(
        self, x: npt.ArrayLike, *, num_threads: int | None = None
    ) -> tuple[Any, LinearTape]:
        """Compute the output and keep what `backward` needs.

        Parameters
        ----------
        x : array-like of shape (..., in_features), or a list of such
            Real numbers; any leading shape, empty ones included. In a list of arrays each element
            is a sequence of its own.
        num_threads : int, optional
            At least 1. Default `cylstm.get_num_threads()`; small products run on one.

        Returns
        -------
        y : ndarray of shape (..., out_features), or a list of such
            A list if `x` is one.
        tape : LinearTape
            Remembers the weights, so they may change in between; they are copied when they do.
            Refers to `x` where no copy was needed: leave that unchanged until `backward`. With an
            activation it also keeps x W' + b.

        Raises
        ------
        TypeError
            `x` is not made of real numbers, or `num_threads` not an integer.
        ValueError
            The last axis of `x` is not `in_features` long, or `num_threads` is below 1.
        """
        y, tape = self._run(x, num_threads, True)
        assert tape is not None
        return y, tape

    def _run(self, x: Any, num_threads: int | None, taped: bool) -> tuple[Any, LinearTape | None]:
        team = runtime.number(num_threads)
        rows, layout = ragged.matrix("x", x, self.in_features, self.dtype)
        sums = np.empty((len(rows), self.out_features), self.dtype)
        y = sums
        if taped and self._f is not None:
            y = np.empty_like(sums)  # the tape keeps what f is applied to
        weight = self._product(rows, sums, y, team)
        if not taped:
            return layout.outward(y), None
        shape = self.out_features, self.in_features
        tape = LinearTape(rows, layout, weight, shape, self._f, None if y is sums else sums)
        return layout.outward(y), tape

    @property
    def _width(self) -> int:  # type: ignore[override]
        return self.in_features

    def _features(self, width: int | None) -> int:
        """Say how many features the output has."""
        return self.out_features

    def _rows(self, rows: Array, num_threads: int | None) -> Array:
        """Compute the output of rows as the kernels read them."""
        y = np.empty((len(rows), self.out_features), self.dtype)
        self._product(rows, y, y, runtime.number(num_threads))
        return y

    def _product(self, rows: Array, sums: Array, y: Array, team: int) -> sequence.Snapshot:
        """Fill `sums` with x W' + b and `y` with f of that; return the weights as they were."""
        weight = self._owner._snapshot()
        bias, start = weight, self.out_features * self.in_features
        if self.tied_to is not None:
            bias, start = self._snapshot(), 0
        sequence.linear(
            self._table, rows, weight, bias if self.bias else None, start, sums, y, self._f, team
        )
        return weight

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        y, tape = self._run(x, run.threads, run.taped)
        return Passed(y, steps, tape=tape)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        return self.backward(tape, dy, num_threads=run.threads), None

    @cached_property
    def _table(self) -> Any:
        """The kernels of this dtype."""
        return dispatch.table(self.dtype.name)

    def __getstate__(self) -> dict[str, Any]:
        """Also leave out the kernels: another machine may have others."""
        state = super().__getstate__()
        state.pop("_table", None)
        return state

    def backward(
        self, tape: LinearTape, dy: npt.ArrayLike, *, num_threads: int | None = None
    ) -> Any:
        """Add the parameters' gradients to `grads` and return the input's.

        Parameters
        ----------
        tape : LinearTape
            From `forward`; may be used several times.
        dy : array-like of shape (..., out_features), or a list of such
            Gradient of the loss with respect to the output, laid out like that.
        num_threads : int, optional
            At least 1. Default `cylstm.get_num_threads()`; small products run on one.

        Returns
        -------
        ndarray of shape (..., in_features), or a list of such
            Gradient with respect to the input, laid out like that.

        Raises
        ------
        TypeError
            `tape` is not a `LinearTape`, `dy` is not made of real numbers, or `num_threads` is not
            an integer.
        ValueError
            The shape of `dy` is not the output's, the tape is that of another kind of layer, or
            `num_threads` is below 1. `grads` is unchanged then.

        Notes
        -----
        An exception from a signal handler, as Ctrl-C raises, may leave part of the gradients added:
        call `zero_grad` before going on.
        """
        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        expected = (self.out_features, self.in_features), self.dtype, self._f
        if (got := (tape.shape, tape.x.dtype, tape.f)) != expected:
            raise ValueError(f"tape: expected weights, dtype, activation {expected}, got {got}")
        team, table = runtime.number(num_threads), self._table
        dy_rows = tape.layout.inward("dy", dy, self.out_features, self.dtype)
        if tape.f is not None and tape.sums is not None:
            dy_rows = sequence.d_activation(table, tape.f, tape.sums, dy_rows)
        dx = np.empty(tape.x.shape, self.dtype)
        sequence.linear_dx(table, dy_rows, tape.weight, dx, team)
        with self._owner._lock:  # two threads adding at once would lose a gradient
            sequence.linear_dw(table, dy_rows, tape.x, self._owner.grads["weight"], team)
        if self.bias:
            db = dy_rows.sum(axis=0, dtype=np.float64)
            with self._lock:
                self.grads["bias"][...] += db
        return tape.layout.outward(dx)
