"""Models of ONNX: `from_onnx` and `to_onnx`."""

from cylstm.io.onnx.errors import OnnxError
from cylstm.io.onnx.network import OnnxNetwork, OnnxStream, from_onnx
from cylstm.io.onnx.writing import to_onnx

__all__ = ["OnnxError", "OnnxNetwork", "OnnxStream", "from_onnx", "to_onnx"]
