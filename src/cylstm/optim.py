"""Optimisers over whole modules: each works on the flat vectors, whatever the layers are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cylstm import checks
from cylstm.params import Array, Parameters

# Elements of a step done at once, so that the vectors of all its operations stay in the L2 cache.
_BLOCK = 16384


class Optimizer:
    """What optimisers have in common: modules, state vectors and the step.

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        What to train.
    lr : float
        Learning rate, at least 0. A plain attribute: assign to it to change it.
    weight_decay : float
        At least 0.
    names : tuple of str
        Names of the state vectors.

    Attributes
    ----------
    modules : tuple of Parameters
    steps : int
        Number of steps done.
    state : list of dict of str to ndarray
        One flat vector per name for each module, laid out like its `flat_params`, zeros at first.
        `module.split` gives views by parameter name.
    """

    def __init__(
        self,
        modules: Parameters | Iterable[Parameters],
        lr: float,
        weight_decay: float,
        names: tuple[str, ...] = (),
    ) -> None:
        self.modules = _modules(modules)
        self.lr = checks.number("lr", lr, 0, math.inf)
        self.weight_decay = checks.number("weight_decay", weight_decay, 0, math.inf)
        self.steps = 0
        self.state: list[dict[str, Array]] = [
            {name: np.zeros_like(module.flat_params) for name in names} for module in self.modules
        ]
        self._make_buffers()

    def _make_buffers(self) -> None:
        self._new = [np.empty_like(module.flat_params) for module in self.modules]
        self._scratch = [np.empty_like(new[:_BLOCK]) for new in self._new]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the buffers."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_new", "_scratch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make new buffers."""
        self.__dict__.update(state)
        self._make_buffers()

    def zero_grad(self) -> None:
        """Set the gradients of all modules to zero."""
        for module in self.modules:
            module.zero_grad()

    def step(self) -> None:
        """Change the parameters of all modules by their gradients."""
        self.steps += 1
        for module, state, new, scratch in zip(
            self.modules, self.state, self._new, self._scratch, strict=True
        ):
            for block in _blocks(new.size):
                self._update(
                    module.flat_params[block],
                    module.flat_grads[block],
                    {name: vector[block] for name, vector in state.items()},
                    new[block],
                    scratch[: block.stop - block.start],
                )
            module.assign(new)

    def _update(
        self, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        """Write the new parameters of one block into `new`; update its state in place."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as in `torch.optim.SGD` (dampening 0).

    With parameters p, their gradient g and the state vector v (`momentum_buffer`)::

        g := g + weight_decay p
        v := momentum v + g
        p := p - lr v                      or  p - lr (g + momentum v)  with nesterov

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        What to train.
    lr : float
        Learning rate, at least 0. A plain attribute: assign to it to change it.
    momentum : float, default 0.0
        At least 0; with 0 there is no state.
    nesterov : bool, default False
        Nesterov's momentum (Sutskever et al. 2013); needs a momentum.
    weight_decay : float, default 0.0
        At least 0.

    Raises
    ------
    TypeError
        `modules` are not `Parameters`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    def __init__(
        self,
        modules: Parameters | Iterable[Parameters],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = checks.number("momentum", momentum, 0, math.inf)
        self.nesterov = checks.flag("nesterov", nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected a momentum above 0 with it, got 0")
        super().__init__(modules, lr, weight_decay, ("momentum_buffer",) if self.momentum else ())

    def _update(
        self, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=new)
            new += g
            g = new
        if self.momentum:
            v = state["momentum_buffer"]
            v *= self.momentum
            v += g
            if self.nesterov:
                np.multiply(v, self.momentum, out=scratch)
                np.add(g, scratch, out=new)
                g = new
            else:
                g = v
        np.multiply(g, float(self.lr), out=new)
        np.subtract(p, new, out=new)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as `torch.optim.Adam`.

    With parameters p, their gradient g, the state vectors m (`exp_avg`) and v (`exp_avg_sq`),
    (b1, b2) = betas and t the number of this step, from 1::

        g := g + weight_decay p
        m := m + (1 - b1) (g - m)
        v := b2 v + (1 - b2) g^2
        p := p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        What to train.
    lr : float, default 1e-3
        Learning rate, at least 0. A plain attribute: assign to it to change it.
    betas : tuple of two floats, default (0.9, 0.999)
        Decay of the averages, each in [0, 1).
    eps : float, default 1e-8
        At least 0.
    weight_decay : float, default 0.0
        At least 0.

    Raises
    ------
    TypeError
        `modules` are not `Parameters`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    def __init__(
        self,
        modules: Parameters | Iterable[Parameters],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.betas = _betas(betas)
        self.eps = checks.number("eps", eps, 0, math.inf)
        super().__init__(modules, lr, weight_decay, ("exp_avg", "exp_avg_sq"))

    def _update(
        self, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=new)
            new += g
            g = new
        self._direction(g, state, new, scratch)
        np.subtract(p, new, out=new)

    def _direction(self, g: Array, state: dict[str, Array], new: Array, scratch: Array) -> None:
        """Update the averages; new := what to take from p, in which `g` may be `new`."""
        b1, b2 = self.betas
        m, v = state["exp_avg"], state["exp_avg_sq"]
        np.subtract(g, m, out=scratch)
        scratch *= 1 - b1
        m += scratch
        np.multiply(g, g, out=scratch)
        scratch *= 1 - b2
        v *= b2
        v += scratch
        np.sqrt(v, out=scratch)
        scratch /= math.sqrt(1 - b2**self.steps)
        scratch += self.eps
        np.divide(m, scratch, out=new)
        new *= float(self.lr) / (1 - b1**self.steps)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW`.

    As `Adam`, but the decay does not pass through the averages::

        p := (1 - lr weight_decay) p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        What to train.
    lr : float, default 1e-3
        Learning rate, at least 0. A plain attribute: assign to it to change it.
    betas : tuple of two floats, default (0.9, 0.999)
        Decay of the averages, each in [0, 1).
    eps : float, default 1e-8
        At least 0.
    weight_decay : float, default 0.01
        At least 0.

    Raises
    ------
    TypeError
        `modules` are not `Parameters`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    def __init__(
        self,
        modules: Parameters | Iterable[Parameters],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(modules, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(
        self, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        self._direction(g, state, new, scratch)
        np.multiply(p, 1 - float(self.lr) * self.weight_decay, out=scratch)
        np.subtract(scratch, new, out=new)


def clip_grad_norm(modules: Parameters | Iterable[Parameters], max_norm: float) -> float:
    """Scale the gradients of all modules together so that their norm is at most `max_norm`.

    The gradients are multiplied by min(1, max_norm / (norm + 1e-6)), as by
    `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013). A norm that is not finite makes them
    0 or NaN: look at what is returned before the step.

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        Whose gradients to scale.
    max_norm : float
        At least 0.

    Returns
    -------
    float
        Euclidean norm of all gradients before scaling, computed in float64.

    Raises
    ------
    TypeError
        `modules` are not `Parameters`, or `max_norm` is not a number.
    ValueError
        `max_norm` is negative or NaN, there are no modules, or one comes twice.
    """
    modules = _modules(modules)
    max_norm = checks.number("max_norm", max_norm, 0, math.inf)
    norm = math.sqrt(sum(_sum_of_squares(module.flat_grads) for module in modules))
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1:  # NaN included
        with np.errstate(invalid="ignore"):
            for module in modules:
                np.multiply(module.flat_grads, scale, out=module.flat_grads)
    return norm


def clip_grad_value(modules: Parameters | Iterable[Parameters], max_value: float) -> None:
    """Clamp every gradient of all modules to [-max_value, max_value].

    As `torch.nn.utils.clip_grad_value_`. Unlike `clip_grad_norm` it changes the direction of the
    gradient. Infinities become the bound, NaN stays NaN.

    Parameters
    ----------
    modules : Parameters or iterable of Parameters
        Whose gradients to clamp.
    max_value : float
        At least 0.

    Raises
    ------
    TypeError
        `modules` are not `Parameters`, or `max_value` is not a number.
    ValueError
        `max_value` is negative or NaN, there are no modules, or one comes twice.
    """
    modules = _modules(modules)
    max_value = checks.number("max_value", max_value, 0, math.inf)
    for module in modules:
        with np.errstate(over="ignore"):  # beyond float32: no bound
            bound = module.dtype.type(max_value)
        np.clip(module.flat_grads, -bound, bound, out=module.flat_grads)


def _sum_of_squares(vector: Array) -> float:
    blocks = (vector[block] for block in _blocks(vector.size))
    return sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks)


def _blocks(size: int) -> Iterator[slice]:
    """Cover a vector of the size with slices."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


def _modules(modules: Any) -> tuple[Parameters, ...]:
    several = tuple(modules) if isinstance(modules, Iterable) else (modules,)
    if not several:
        raise ValueError("modules: expected at least one, got none")
    for module in several:
        if not isinstance(module, Parameters):
            raise TypeError(f"modules: expected cylstm modules, got {type(module).__name__}")
    if len(set(map(id, several))) < len(several):
        raise ValueError("modules: expected each module once, got one twice")
    return several


def _betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"betas: expected two numbers, got {betas!r}")
    b1, b2 = (checks.number("betas", beta, 0, 1) for beta in betas)
    if 1 in (b1, b2):
        raise ValueError(f"betas: expected numbers below 1, got {betas!r}")
    return b1, b2
