"""ONNX Runtime."""

from __future__ import annotations

from typing import Any

import onnxruntime
from cases import Array, Case, Problem

from peers import onnx_model
from peers.base import Engine, arrays


class OnnxRuntime(Engine):
    """A session on the case's model."""

    package = "onnxruntime"
    modes = ("inference",)

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            onnx_model.model(case, problem), options, providers=["CPUExecutionProvider"]
        )
        self.case, self.feeds = case, onnx_model.feeds(problem)

    def infer(self) -> Any:
        """Output and states."""
        return self.session.run(None, self.feeds)

    def results(self) -> list[Array]:
        """Arrays to compare."""
        y, *states = arrays(self.infer())
        return onnx_model.results(self.case, y, states)


PEER = OnnxRuntime
