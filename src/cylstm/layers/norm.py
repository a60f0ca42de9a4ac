"""`LayerNorm` over the features of each step, `BatchNorm` over the steps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stateless import Stateless
from cylstm.module import Array

if TYPE_CHECKING:
    import numpy.typing as npt


class NormTape(NamedTuple):
    """What gradients of a norm need; float64, of the rows that were read."""

    #: Normalised input (n, C), and what it was divided by, (n, 1) or (C,).
    normal: Array
    spread: Array
    weight: Array | float
    #: Which rows of the input these are; None: all of them.
    read: Array | None
    shape: tuple[int, ...]


class LayerNorm(Stateless):
    """Normalise each step over its features: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Ba et al. (2016), with the biased variance, as `torch.nn.LayerNorm`. Parameters are `weight` and
    `bias` (normalized_shape,), 1 and 0 at first. The recurrent layers' own `layer_norm` is inside
    the cell; this one is between layers.

    Parameters
    ----------
    normalized_shape : int or tuple of one int
        Number of features, the size of the last axis.
    eps : float, default 1e-5
        Added to the variance.
    bias : bool, default True
        Whether to add a bias.
    dtype : {"float32", "float64"}, default "float32"
        Type of parameters and outputs; inputs of other real types are cast to it.

    Attributes
    ----------
    normalized_shape : tuple of one int
    eps : float
    bias : bool

    Raises
    ------
    TypeError
        `normalized_shape` is not an integer, `eps` not a number or `bias` not a bool.
    ValueError
        There are several axes or no features, `eps` is negative or `dtype` something else.

    Notes
    -----
    Computed in float64 and rounded once.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        *,
        bias: bool = True,
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        given = normalized_shape
        if isinstance(given, (tuple, list)):
            if len(given) != 1:
                raise ValueError(f"normalized_shape: expected one axis, features, got {given!r}")
            given = given[0]
        n = checks.size("normalized_shape", given)
        self.normalized_shape = (n,)
        self.eps = checks.number("eps", eps, 0, 1e30)
        self.bias = checks.flag("bias", bias)
        super().__init__({"weight": (n,)} | ({"bias": (n,)} if bias else {}), checks.dtype(dtype))
        if self._draws_parameters():
            self.assign({"weight": np.ones(n)})

    @property
    def _width(self) -> int:  # type: ignore[override]
        return self.normalized_shape[0]

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        weight, bias = _affine(self)
        normal = x.reshape(-1, self._width).astype(np.float64)  # a contiguous copy
        normal -= normal.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.square(normal).mean(axis=1, keepdims=True) + self.eps)
        # Without eps all features may be equal: 0 / 0 is taken for 0.
        normal /= np.where(spread == 0, 1, spread)
        y = (normal * weight + bias).astype(self.dtype).reshape(x.shape)
        tape = NormTape(normal, spread, weight, None, x.shape) if run.taped else None
        return Passed(y, steps, tape=tape)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        return _gradients(self, tape, dy, axis=1), None


class BatchNorm(Stateless):
    """Normalise each feature over the steps of a batch.

    y = (x - mean) / sqrt(var + eps) * weight + bias (Ioffe & Szegedy 2015), as
    `torch.nn.BatchNorm1d`, but features are the last axis. `forward` uses mean and biased variance
    of the steps that are read, over all rows, and moves the running ones towards them, `running +=
    momentum * (batch - running)`, the variance unbiased. Calls use the running ones, so that every
    step stands for itself; `Sequential.folded` takes them into the weights of a module beside.

    Parameters are `weight` and `bias` (num_features,), 1 and 0 at first, if `affine`.
    `running_mean` and `running_var`, 0 and 1 at first, are parameters that are always frozen.

    Parameters
    ----------
    num_features : int
        Size of the last axis, at least 1.
    eps : float, default 1e-5
        Added to the variance.
    momentum : float, default 0.1
        How far the running statistics go towards those of a batch, 0 to 1.
    affine : bool, default True
        Whether there are `weight` and `bias`.
    dtype : {"float32", "float64"}, default "float32"
        Type of parameters and outputs; inputs of other real types are cast to it.
    batch_first : bool, optional
        Whether x is (B, T, C), for `lengths`. Default as the other modules of a network, and
        otherwise False.

    Attributes
    ----------
    num_features : int
    eps, momentum : float
    affine : bool
    batch_first : bool or None

    Raises
    ------
    TypeError
        `num_features` is not an integer, `eps` or `momentum` not a number, or another argument not
        a bool.
    ValueError
        A number is out of range or `dtype` something else.
    """

    #: What calls multiply by and add, until something changes.
    _factors: tuple[Array, Array] | None = None
    _BUFFERS = frozenset({"running_mean", "running_var"})

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        affine: bool = True,
        dtype: npt.DTypeLike = "float32",
        batch_first: bool | None = None,
    ) -> None:
        n = self.num_features = checks.size("num_features", num_features)
        self.eps = checks.number("eps", eps, 0, 1e30)
        self.momentum = checks.number("momentum", momentum, 0, 1)
        self.affine = checks.flag("affine", affine)
        self.batch_first = None if batch_first is None else checks.flag("batch_first", batch_first)
        names = ["weight", "bias"] * self.affine + ["running_mean", "running_var"]
        self._frozen_names = frozenset()
        super().__init__(dict.fromkeys(names, (n,)), checks.dtype(dtype))
        if self._draws_parameters():
            ones = {"weight", "running_var"} & set(names)
            self.assign({name: np.ones(n) for name in ones})

    @property
    def _frozen_names(self) -> frozenset[str]:
        return self._more_frozen | self._BUFFERS

    @_frozen_names.setter
    def _frozen_names(self, names: frozenset[str]) -> None:
        self._more_frozen = frozenset(names) - self._BUFFERS

    def _passes_over(self, name: str) -> bool:
        return name == "num_batches_tracked"

    @property
    def _width(self) -> int:  # type: ignore[override]
        return self.num_features

    @property
    def _batch_first(self) -> bool | None:  # type: ignore[override]
        return self.batch_first

    def _changed(self) -> None:
        self._factors = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made of the statistics."""
        return {k: v for k, v in super().__getstate__().items() if k != "_factors"}

    def scale_and_shift(self) -> tuple[Array, Array]:
        """Return what a call multiplies features by and then adds.

        Returns
        -------
        scale, shift : ndarray of float64 of shape (num_features,)
        """
        with self._lock:
            weight, bias = _affine(self)
            mean, var = (self.params[f"running_{name}"].astype(float) for name in ("mean", "var"))
        scale = weight / np.sqrt(var + self.eps)
        return scale, bias - mean * scale

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        if not run.taped:
            if (factors := self._factors) is None:
                with self._lock:
                    scale, shift = self.scale_and_shift()
                    factors = scale.astype(self.dtype), shift.astype(self.dtype)
                    self._factors = factors
            scale, shift = factors
            return Passed(x * scale + shift, steps)
        where = steps.read(x.shape[:-1])
        rows = x.reshape(-1, self.num_features)
        read = None if where is None else np.flatnonzero(where)
        if read is not None:
            rows = rows[read]
        if len(rows) == 1:
            raise ValueError("x: expected at least 2 steps that are read, for a variance, got 1")
        normal = rows.astype(np.float64)
        mean = normal.mean(axis=0) if len(rows) else np.zeros(self.num_features)
        normal -= mean
        var = np.square(normal).sum(axis=0) / max(1, len(rows))
        spread = np.sqrt(var + self.eps)
        normal /= np.where(spread == 0, 1, spread)
        with self._lock:
            weight, bias = _affine(self)
            if len(rows):
                self._move(mean, var * len(rows) / (len(rows) - 1))
        y = (normal * weight + bias).astype(self.dtype)
        tape = NormTape(normal, spread, weight, read, x.shape)
        return Passed(_spread_out(y, read, x.shape), steps, tape=tape)

    def _move(self, mean: Array, var: Array) -> None:
        """Move the running statistics towards those of a batch."""
        moved = {}
        for name, value in (("running_mean", mean), ("running_var", var)):
            old = self.params[name].astype(np.float64)
            moved[name] = old + self.momentum * (value - old)
        self.assign(moved)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        return _gradients(self, tape, dy, axis=0), None


def _affine(module: LayerNorm | BatchNorm) -> tuple[Array | float, Array | float]:
    """Return copies of weight and bias of one moment, in float64."""
    with module._lock:
        found = [module.params[name].astype(np.float64) if name in module.params else default
                 for name, default in (("weight", 1.0), ("bias", 0.0))]  # fmt: skip
    return found[0], found[1]


def _spread_out(rows: Array, read: Array | None, shape: tuple[int, ...]) -> Array:
    """Put rows where they came from, zeros elsewhere."""
    if read is None:
        return rows.reshape(shape)
    found = np.zeros((int(np.prod(shape[:-1])), shape[-1]), rows.dtype)
    found[read] = rows
    return found.reshape(shape)


def _gradients(module: Any, tape: NormTape, dy: Array, axis: int) -> Array:
    """Return the input's gradient, and add up those of weight and bias."""
    rows = dy.reshape(-1, dy.shape[-1])
    rows = (rows if tape.read is None else rows[tape.read]).astype(np.float64)
    scaled = rows * tape.weight
    with np.errstate(invalid="ignore", divide="ignore"):  # of no rows, or of a variance of zero
        along = (scaled * tape.normal).mean(axis=axis, keepdims=True) if rows.size else 0.0
        level = scaled.mean(axis=axis, keepdims=True) if rows.size else 0.0
        dx = (scaled - level - tape.normal * along) / np.where(tape.spread == 0, 1, tape.spread)
    sums = {"weight": (rows * tape.normal).sum(axis=0), "bias": rows.sum(axis=0)}
    with module._lock:  # two threads adding at once would lose a gradient
        for name, value in sums.items():
            if name in module.grads:
                module.grads[name][...] += value
    return _spread_out(dx.astype(module.dtype), tape.read, tape.shape)
