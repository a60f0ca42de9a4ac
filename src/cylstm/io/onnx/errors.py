"""The one error that files and graphs give, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OnnxError(ValueError):
    """A model is damaged, too large, or says what cannot be said here; the message names where."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Give errors of other people's code, and of layers, the name of what was being done."""
    try:
        yield
    except OnnxError:
        raise
    except Exception as error:  # of protobuf, of the runtime: whatever they are made of
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise OnnxError(f"{what}: {reason}") from error


def package() -> Any:
    """Import the `onnx` package.

    Raises
    ------
    ImportError
        It is not installed; the message says how to.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError('onnx is not installed: pip install "cylstm[onnx]"') from error
    return onnx
