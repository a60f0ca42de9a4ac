"""Stochastic gradient descent, Adam and AdamW."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cylstm import checks
from cylstm.module import Array, Module
from cylstm.training.optim.optimizer import Optimizer, Option


def _at_least_0(name: str, value: Any) -> float:
    """Check a finite number of at least 0; an array of shape () is one."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return checks.number(name, value, 0, sys.float_info.max)


def _betas(name: str, betas: Any) -> tuple[float, float]:
    if isinstance(betas, np.ndarray):
        betas = betas.tolist()
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"{name}: expected two numbers, got {betas!r}")
    b1, b2 = (checks.number(name, beta, 0, 1) for beta in betas)
    if 1 in (b1, b2):
        raise ValueError(f"{name}: expected numbers below 1, got {betas!r}")
    return b1, b2


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as in `torch.optim.SGD` (dampening 0).

    With parameters p, their gradient g and the state vector v (`momentum_buffer`)::

        g := g + weight_decay p
        v := momentum v + g
        p := p - lr v                      or  p - lr (g + momentum v)  with nesterov

    Hyperparameters can be assigned at any time, as in `optimizer.lr = 1e-4`, and are checked then,
    too; other attributes are refused. Frozen parameters and their state are left alone.

    Parameters
    ----------
    modules : Module or iterable of Module
        What to train.
    lr : float
        Learning rate, at least 0.
    momentum : float, default 0.0
        At least 0; with 0 there is no state.
    nesterov : bool, default False
        Nesterov's momentum (Sutskever et al. 2013); needs a momentum.
    weight_decay : float, default 0.0
        At least 0.

    Attributes
    ----------
    modules : tuple of Module
        What is trained.
    steps : int
        Number of steps done.
    state : list of dict of str to ndarray
        `momentum_buffer` of each module (nothing without a momentum), laid out like its
        `flat_params`, zeros at first; `module.split` gives views by parameter name.

    Raises
    ------
    TypeError
        `modules` are not `Module`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    lr = Option(_at_least_0)
    momentum = Option(_at_least_0)
    nesterov = Option(checks.flag)
    weight_decay = Option(_at_least_0)

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            modules, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )

    def _state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov: expected a momentum above 0 with it, got 0")
        return ("momentum_buffer",) if options["momentum"] else ()

    def _update(
        self, t: int, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
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
        np.multiply(g, self.lr, out=new)
        np.subtract(p, new, out=new)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as `torch.optim.Adam`.

    With parameters p, their gradient g, the state vectors m (`exp_avg`) and v (`exp_avg_sq`),
    (b1, b2) = betas and t the number of this step, from 1 (of the steps in which they were not
    frozen)::

        g := g + weight_decay p
        m := m + (1 - b1) (g - m)
        v := b2 v + (1 - b2) g^2
        p := p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Hyperparameters can be assigned at any time, as in `optimizer.lr = 1e-4`, and are checked then,
    too; other attributes are refused. Frozen parameters and their state are left alone.

    Parameters
    ----------
    modules : Module or iterable of Module
        What to train.
    lr : float, default 1e-3
        Learning rate, at least 0.
    betas : tuple of two floats, default (0.9, 0.999)
        Decay of the averages, each in [0, 1).
    eps : float, default 1e-8
        At least 0.
    weight_decay : float, default 0.0
        At least 0.

    Attributes
    ----------
    modules : tuple of Module
        What is trained.
    steps : int
        Number of steps done.
    state : list of dict of str to ndarray
        `exp_avg` and `exp_avg_sq` of each module, laid out like its `flat_params`, zeros at first;
        `module.split` gives views by parameter name.

    Raises
    ------
    TypeError
        `modules` are not `Module`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    lr = Option(_at_least_0)
    betas = Option(_betas)
    eps = Option(_at_least_0)
    weight_decay = Option(_at_least_0)

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _state_names(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(
        self, t: int, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=new)
            new += g
            g = new
        self._direction(t, g, state, new, scratch)
        np.subtract(p, new, out=new)

    def _direction(
        self, t: int, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        """Update the averages; write into `new`, which may be `g`, what to subtract from p."""
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
        scratch /= math.sqrt(1 - b2**t)
        scratch += self.eps
        np.divide(m, scratch, out=new)
        new *= self.lr / (1 - b1**t)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as `torch.optim.AdamW`.

    With parameters p, their gradient g, the state vectors m (`exp_avg`) and v (`exp_avg_sq`),
    (b1, b2) = betas and t the number of this step, from 1 (of the steps in which they were not
    frozen), the decay does not pass through the averages::

        m := m + (1 - b1) (g - m)
        v := b2 v + (1 - b2) g^2
        p := (1 - lr weight_decay) p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    Hyperparameters can be assigned at any time, as in `optimizer.lr = 1e-4`, and are checked then,
    too; other attributes are refused. Frozen parameters and their state are left alone.

    Parameters
    ----------
    modules : Module or iterable of Module
        What to train.
    lr : float, default 1e-3
        Learning rate, at least 0.
    betas : tuple of two floats, default (0.9, 0.999)
        Decay of the averages, each in [0, 1).
    eps : float, default 1e-8
        At least 0.
    weight_decay : float, default 0.01
        At least 0.

    Attributes
    ----------
    modules : tuple of Module
        What is trained.
    steps : int
        Number of steps done.
    state : list of dict of str to ndarray
        `exp_avg` and `exp_avg_sq` of each module, laid out like its `flat_params`, zeros at first;
        `module.split` gives views by parameter name.

    Raises
    ------
    TypeError
        `modules` are not `Module`, or a number is not one.
    ValueError
        A number is out of range, there are no modules, or one comes twice.
    """

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(modules, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(
        self, t: int, p: Array, g: Array, state: dict[str, Array], new: Array, scratch: Array
    ) -> None:
        self._direction(t, g, state, new, scratch)
        np.multiply(p, 1 - self.lr * self.weight_decay, out=scratch)
        np.subtract(scratch, new, out=new)
