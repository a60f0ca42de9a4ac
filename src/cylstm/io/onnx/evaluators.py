"""What runs the rest of a graph: ONNX Runtime where it is installed, otherwise `onnx.reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from cylstm import checks, runtime
from cylstm.io.onnx.errors import named, package
from cylstm.module import Array

Run = Callable[[Mapping[str, Array]], Sequence[Any]]
NAMES = ("onnxruntime", "reference")


def chosen(name: str | None) -> str:
    """Check the name of an evaluator, or choose the one that is there."""
    if name is None:
        return NAMES[0] if find_spec("onnxruntime") else NAMES[1]
    return checks.choice("evaluator", name, NAMES)


def prepare(name: str, model: Any, outputs: Sequence[str]) -> Run:
    """Make a function of a model's inputs, by name, that returns its outputs in order.

    Raises
    ------
    OnnxError
        The evaluator cannot run the model.
    """
    with named(f"model: {name}"):
        return (_onnxruntime if name == NAMES[0] else _reference)(model, list(outputs))


def _onnxruntime(model: Any, outputs: list[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.number(None)
    options.log_severity_level = 3  # errors are raised
    # Threads that wait by spinning would take the cores from the layers' own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: session.run(outputs, dict(feeds))


def _reference(model: Any, outputs: list[str]) -> Run:
    from onnx.reference import ReferenceEvaluator

    package()
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: evaluator.run(outputs, dict(feeds))
