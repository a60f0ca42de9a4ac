"""OpenVINO, which runs oneDNN's RNN primitives."""

from __future__ import annotations

import io
from typing import Any

import openvino
from cases import Array, Case, Problem

from peers import onnx_model
from peers.base import Engine, arrays


class OpenVino(Engine):
    """A request on the case's model, compiled for static shapes."""

    package = "openvino"
    modes = ("inference",)

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Load and compile the model."""
        core = openvino.Core()
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 where the machine has it
        }
        model = core.read_model(io.BytesIO(onnx_model.model(case, problem)))
        self.request = core.compile_model(model, "CPU", config).create_infer_request()
        self.case, self.feeds = case, onnx_model.feeds(problem)

    def infer(self) -> Any:
        """Output and states."""
        return self.request.infer(self.feeds, share_inputs=True, share_outputs=True)

    def results(self) -> list[Array]:
        """Arrays to compare."""
        y, *states = arrays(self.infer().values())
        return onnx_model.results(self.case, y, states)


PEER = OpenVino
