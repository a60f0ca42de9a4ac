"""The one error that files and graphs give, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OnnxError(ValueError):
    """A model is damaged, too large, or says what cannot be said here; the message names where."""


def failure(what: str, error: Exception) -> OnnxError:
    """Make the error of other people's code, or of a layer, one that says what was being done."""
    if isinstance(error, OnnxError):
        return error
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    return OnnxError(f"{what}: {reason}")


@contextmanager
def named(what: str) -> Iterator[None]:
    """Give whatever goes wrong inside a name; calls that take microseconds use `failure`."""
    try:
        yield
    except Exception as error:  # of protobuf, of the runtime: whatever they are made of
        raise failure(what, error) from error


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
