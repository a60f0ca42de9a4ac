"""`Dropout`: features zeroed at random in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cylstm import checks
from cylstm.engine import masks
from cylstm.layers.drawing import Drawing
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stateless import Stateless
from cylstm.module import Array, Module

if TYPE_CHECKING:
    from cylstm.module import Rng


class Dropout(Drawing, Stateless):
    """Zero features with a probability in `forward`; calls for inference leave all as it is.

    What is left is scaled by 1 / (1 - p), so that the expectation stays (Srivastava et al. 2014).

    Parameters
    ----------
    p : float, default 0.5
        Probability of zero, from 0 to 1.
    variational : bool, default False
        Zero the same features at all steps of a sequence (Gal & Ghahramani 2016).
    batch_first : bool, optional
        Whether x is (B, T, C), for `variational`. Default as the other modules of a network, and
        otherwise False.
    rng : None, int or numpy.random.Generator, default None
        Source of the masks; a call's own `rng` goes first.

    Attributes
    ----------
    p : float
    variational : bool
    batch_first : bool or None

    Raises
    ------
    TypeError
        `p` is not a number, or another argument not as described.
    ValueError
        `p` is out of range.
    """

    _typed = False

    def __init__(
        self,
        p: float = 0.5,
        *,
        variational: bool = False,
        batch_first: bool | None = None,
        rng: Rng = None,
    ) -> None:
        self.p = checks.number("p", p, 0, 1)
        self.variational = checks.flag("variational", variational)
        self.batch_first = None if batch_first is None else checks.flag("batch_first", batch_first)
        self._seed(rng)
        Module.__init__(self, {}, np.dtype(np.float32))

    @property
    def _batch_first(self) -> bool | None:  # type: ignore[override]
        return self.batch_first

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        if not run.taped or not self.p:
            return Passed(x, steps)
        rng = self._rng if run.rng is None else run.rng
        shape = list(x.shape)
        over_time = self.variational and steps.timed and x.ndim > 1
        if over_time and steps.ragged:
            assert steps.lengths is not None
            shape[0] = len(steps.lengths)
        elif over_time:
            shape[steps.time] = 1
        mask = masks.inverted(rng, self.p, tuple(shape), x.dtype)
        if over_time and steps.ragged and steps.lengths is not None:
            mask = np.repeat(mask, steps.lengths, axis=0)
        return Passed(x * mask, steps, tape=mask)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        return dy if tape is None else dy * tape, None
