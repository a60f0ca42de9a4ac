"""Modules whose calls read the parameters where they are: no packed copy, no copy for tapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from cylstm.kernels import sequence
from cylstm.layers.flow import Flowing
from cylstm.module import Array


class Stored(Flowing):
    """Parameters that calls read in place while `assign` waits, and tapes refer to.

    A tape refers to a snapshot, which is the storage itself until that changes: `assign` copies the
    old values for it then, and only then.
    """

    _shared: sequence.Storage

    def _make_views(self) -> None:
        self._storage = np.require(self._storage, requirements=["C", "A", "W"])
        super()._make_views()
        self._shared = sequence.Storage(self._storage)

    def _write(self, changes: list[tuple[Array, Array]]) -> None:
        """Write when no call reads; see `Module._write`."""
        self._shared.write([(old, np.ascontiguousarray(new, old.dtype)) for old, new in changes])

    def _snapshot(self) -> sequence.Snapshot:
        """Return the parameters as they are now; they remain so in the snapshot."""
        with self._lock:
            return self._shared.snapshot()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made anew."""
        state = super().__getstate__()
        state.pop("_shared", None)
        return state
