"""torch.nn.LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any

import torch
from cases import Array, Case, Problem
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from peers.base import Engine, arrays


class Torch(Engine):
    """The layer in inference mode, or under autograd."""

    package = "torch"

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Load the weights."""
        torch.set_num_threads(threads)
        kind = getattr(torch.nn, case.cell.upper())
        self.layer = kind(case.I, case.H, case.layers, bidirectional=case.bidirectional)
        weights = {name: torch.from_numpy(w) for name, w in problem.weights.items()}
        self.layer.load_state_dict(weights)
        self.params = [dict(self.layer.named_parameters())[name] for name in weights]
        self.case = case
        self.x = torch.tensor(problem.x, requires_grad=case.mode == "training")
        self.dy = torch.from_numpy(problem.dy)
        self.lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths)

    def _forward(self) -> Any:
        if self.lengths is None:
            return self.layer(self.x)
        packed = pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        y, state = self.layer(packed)
        return pad_packed_sequence(y, total_length=self.case.T)[0], state

    def infer(self) -> Any:
        """Output and state."""
        with torch.inference_mode():
            return self._forward()

    def train(self) -> Any:
        """Output and gradients."""
        y, _ = self._forward()
        return y, torch.autograd.grad(y, [self.x, *self.params], self.dy)

    def results(self) -> list[Array]:
        """Arrays to compare."""
        if self.case.mode == "training":
            y, grads = self.train()
            return arrays([y.detach(), *grads])
        y, state = self.infer()
        return arrays([y, *(state if isinstance(state, tuple) else (state,))])


PEER = Torch
