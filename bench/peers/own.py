"""The layers of cylstm."""

from __future__ import annotations

from typing import Any

from cases import Array, Case, Problem

import cylstm
from peers.base import Engine, arrays


class Cylstm(Engine):
    """The layer called as users call it: NumPy arrays in and out."""

    package = "cylstm"

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Load the weights."""
        kind = getattr(cylstm, case.cell.upper())
        self.layer = kind(case.I, case.H, case.layers, bidirectional=case.bidirectional)
        self.layer.load_state_dict(problem.weights)
        self.case, self.data, self.threads = case, problem, threads

    def infer(self) -> Any:
        """Output and state."""
        return self.layer(self.data.x, lengths=self.data.lengths, num_threads=self.threads)

    def train(self) -> Any:
        """Output, dx and fresh gradients."""
        layer, data, threads = self.layer, self.data, self.threads
        y, _, tape = layer.forward(data.x, lengths=data.lengths, num_threads=threads)
        layer.zero_grad()
        dx, _ = layer.backward(tape, data.dy, num_threads=threads)
        return y, dx, layer.grads

    def results(self) -> list[Array]:
        """Arrays to compare."""
        if self.case.mode == "training":
            y, dx, grads = self.train()
            return arrays([y, dx, *(grads[name] for name in self.data.weights)])
        y, state = self.infer()
        return arrays([y, *(state if isinstance(state, tuple) else (state,))])


PEER = Cylstm
