"""The one error of Keras files and models, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class KerasError(ValueError):
    """A file is damaged or too large, or a model says what cannot be said here; names where."""


@contextmanager
def named(what: str) -> Iterator[None]:
    """Give errors of other people's code, and of layers, the name of what was being done."""
    try:
        yield
    except KerasError:
        raise
    except Exception as error:  # of zipfile, zlib, json and HDF5: whatever they make of damage
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise KerasError(f"{what}: {reason}") from error
