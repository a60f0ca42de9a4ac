"""How much memory calls of a network take, by shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm.layers.activation import Activation
from cylstm.layers.branches import Concat, Residual
from cylstm.layers.conv import Conv1d
from cylstm.layers.dropout import Dropout
from cylstm.layers.embedding import Embedding
from cylstm.layers.linear import Linear
from cylstm.layers.norm import BatchNorm, LayerNorm
from cylstm.layers.pool import Pool
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.summary import Outline, checked_shape

if TYPE_CHECKING:
    from cylstm.layers.flow import Flowing
    from cylstm.layers.network import Network
    from cylstm.layers.summary import Shape

#: Bytes of Python objects and of NumPy's buffers, and of an index or a float64.
_SMALL, _BUFFERS, _WIDE = 4096, 65536, 8


class Bytes(NamedTuple):
    """What one module takes."""

    #: Its output and what its tape keeps.
    kept: int
    #: What else there is for a while, in a call or `forward`, and in `backward`.
    passing: int
    back: int


def of(network: Network, shape: Any, training: bool, num_threads: int | None) -> int:
    """Add up; see `Sequential.workspace_nbytes`."""
    given = checked_shape(network, shape)
    walk = _Walk(network, given, training, num_threads)
    walk.go(network, "", given)
    found = walk.found
    if training:
        passing = max((max(b.passing, b.back) for b in found), default=0)
        return sum(b.kept for b in found) + passing
    outputs = [0, *(b.kept for b in found)]
    steps = [before + b.kept + b.passing for before, b in zip(outputs, found, strict=False)]
    return walk.held + max(steps, default=0)


class _Walk(Outline):
    """A walk through a network that notes what each module takes."""

    def __init__(self, network: Network, shape: Shape, training: bool, threads: int | None) -> None:
        batched = len(shape) - (not network._reads_ids) == 2
        super().__init__(bool(network._time_second), batched)
        self._itemsize = network.dtype.itemsize
        self._batched, self._training, self._threads = batched, training, threads
        self.found: list[Bytes] = []
        #: What branches hold while others run.
        self.held = 0

    def go(self, module: Flowing, path: str, shape: Shape) -> Shape:
        """Note a module and those inside."""
        after = super().go(module, path, shape)
        if isinstance(module, (Residual, Concat)):
            x, y = (self._itemsize * int(np.prod(sizes)) for sizes in (shape, after))
            self.found.append(Bytes(y, 0, 2 * x))
            self.held += x + y
        return after

    def note(self, module: Flowing, path: str, shape: Shape, after: Shape) -> None:
        """Note one module that is not made of others."""
        s, x, y = self._itemsize, int(np.prod(shape)), int(np.prod(after))
        found = self._of(module, shape, after, s, x, y)
        more = _BUFFERS + 4 * module.flat_params.nbytes
        self.found.append(Bytes(found.kept + _SMALL, found.passing + more, found.back + more))

    def _of(self, module: Any, shape: Shape, after: Shape, s: int, x: int, y: int) -> Bytes:
        training = self._training
        if isinstance(module, Recurrent):
            steps = shape[self._time] if len(shape) > 1 else 1
            rows = shape[1 - self._time] if self._batched else 1
            own = module.workspace_nbytes(steps, rows, training=training, num_threads=self._threads)
            return Bytes(s * y + own * training, own * (not training) + s * x, 3 * s * (x + y))
        if isinstance(module, Conv1d):
            return self._of_conv(module, shape, s, x, y)
        if isinstance(module, Embedding):
            return Bytes(s * y + 3 * _WIDE * x, s * y, 3 * s * y + 4 * _WIDE * x)
        if isinstance(module, (LayerNorm, BatchNorm)):
            return self._of_norm(module, s, y)
        if isinstance(module, Pool):
            return Bytes(s * y + 2 * _WIDE * x * training, 3 * s * x, 3 * s * x)
        if isinstance(module, Linear):
            twice = 1 + (training and module.activation is not None)
            return Bytes(twice * s * y, s * x, s * (x + 2 * y))
        if isinstance(module, Dropout):
            return Bytes(s * y * (1 + training), 2 * _WIDE * y * training, s * y)
        passing = 1 if isinstance(module, Activation) else 2
        return Bytes(s * y * (1 + training), passing * s * y, 2 * s * y)

    def _of_norm(self, module: LayerNorm | BatchNorm, s: int, y: int) -> Bytes:
        """Count float64 copies; calls of a batch norm need none."""
        if isinstance(module, BatchNorm) and not self._training:
            return Bytes(s * y, s * y, 0)
        return Bytes(s * y + _WIDE * y * self._training, 4 * _WIDE * y, 6 * _WIDE * y)

    def _of_conv(self, module: Conv1d, shape: Shape, s: int, x: int, y: int) -> Bytes:
        """Count the padded input, its copy in another order, and outputs of all windows."""
        steps = max(shape[self._time], 1)
        reach = module._before + module._after + module._spread * module.stride
        padded = s * x * (steps + reach) // steps
        full = s * x // shape[-1] * (steps + reach) // steps // module.stride * module.out_channels
        full += s * y
        times = 1 + (module._spread > 1) + module.kernel_size * module._copies
        kept = padded * times + full * (1 + (self._training and module.activation is not None))
        return Bytes(kept, full * (module._spread > 1), 3 * padded + 2 * full)
