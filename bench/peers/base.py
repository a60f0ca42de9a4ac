"""What every engine offers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
from cases import Array, Case, Problem


class Engine:
    """One engine, built for one case."""

    package: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = ("inference", "training")

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Load the weights and hand over the data: whatever users do once, outside the clock."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        """Version of the engine."""
        return version(cls.package)

    @classmethod
    def supports(cls, case: Case) -> bool:
        """Whether the engine can run the case."""
        return case.mode in cls.modes

    def infer(self) -> Any:
        """Timed: outputs and final states, in the engine's own types."""
        raise NotImplementedError

    def train(self) -> Any:
        """Timed: output, then gradients of input and all parameters, in the engine's own types."""
        raise NotImplementedError

    def results(self) -> list[Array]:
        """Run the case once; y and final states, or y, dx and gradients in PyTorch's layouts."""
        raise NotImplementedError


def arrays(values: Iterable[Any]) -> list[Array]:
    """Copies as NumPy arrays: an engine may reuse its own at the next call."""
    return [np.array(v) for v in values]
