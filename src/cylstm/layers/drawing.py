"""Modules that draw random masks: a generator that copies, pickles and forks do not repeat."""

from __future__ import annotations

from typing import Any

import numpy as np

from cylstm import checks
from cylstm.module import Module


class Drawing(Module):
    """A module with a random generator of its own."""

    def _seed(self, rng: Any) -> None:
        """Read the constructor's `rng`."""
        self._rng = checks.generator("rng", rng)
        #: Whether masks repeat from run to run; otherwise no two copies draw the same.
        self._seeded = rng is not None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Have masks of their own drawn, where there was no seed."""
        super().__setstate__(state)
        if not self._seeded:
            self._rng = checks.generator("rng", None)

    def _after_fork(self) -> None:
        """In a child: draw other masks, and do not wait for a thread that drew at the fork."""
        super()._after_fork()
        old = self._rng.bit_generator
        if not self._seeded:
            self._rng = checks.generator("rng", None)
        elif old.lock.acquire(blocking=False):
            old.lock.release()
        else:
            new = type(old)()
            new.state = old.state
            self._rng = np.random.Generator(new)
