"""What a network consists of: output shapes, parameters and work of each module, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.layers.branches import Concat, Residual
from cylstm.layers.container import Container
from cylstm.layers.conv import Conv1d
from cylstm.layers.recurrent import Recurrent
from cylstm.layers.sequential import Sequential

if TYPE_CHECKING:
    from cylstm.layers.flow import Flowing
    from cylstm.layers.network import Network

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One module of a network.

    Attributes
    ----------
    path : str
        Its place, with dots.
    layer : str
        The name of its class.
    output_shape : tuple of int
    parameters : int
        Numbers of its own; of a module that comes again 0.
    multiply_adds : int
        Multiplications by weights, each with an addition, of one call for inference.
    nbytes : int
        Of the parameters.
    """

    path: str
    layer: str
    output_shape: Shape
    parameters: int
    multiply_adds: int
    nbytes: int


class Summary(NamedTuple):
    """All modules of a network; `str` makes a table.

    Attributes
    ----------
    rows : tuple of Row
        In the order of the modules, with those inside of others.
    input_shape, output_shape : tuple of int
        Of the network.
    """

    rows: tuple[Row, ...]
    input_shape: Shape
    output_shape: Shape

    @property
    def parameters(self) -> int:
        """Numbers in all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Multiplications by weights of one call."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return sum(row.nbytes for row in self.rows)

    def __str__(self) -> str:
        """Lay out a table: one line for each module, the sums at its end."""
        head = ("", "layer", "output shape", "parameters", "multiply-adds", "bytes")
        lines: list[tuple[str, ...]] = [
            (row.path, row.layer, str(row.output_shape), *map("{:,}".format, row[3:]))
            for row in self.rows
        ]
        sums = (self.parameters, self.multiply_adds, self.nbytes)
        total = ("", "total", str(self.output_shape), *map("{:,}".format, sums))
        widths = [max(map(len, column)) for column in zip(head, *lines, total, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

        def line(words: tuple[str, ...]) -> str:
            cells = [
                word.ljust(width) if i < 3 else word.rjust(width)
                for i, (word, width) in enumerate(zip(words, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        return "\n".join([line(head), rule, *map(line, lines), rule, line(total)])


def of(network: Network, shape: Any) -> Summary:
    """Summarise a network for an input of some shape; see `Sequential.summary`."""
    given = checked_shape(network, shape)
    outline = _Rows(bool(network._time_second), len(given) - (not network._reads_ids) == 2)
    after = outline.go(network, "", given)
    return Summary(tuple(outline.rows), given, after)


def checked_shape(network: Network, shape: Any) -> Shape:
    """Check the shape of an input."""
    sizes = checks.read("shape", shape)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or np.any(sizes < 0):
        raise ValueError(f"shape: expected a tuple of integers from 0 on, got {shape!r}")
    given = tuple(map(int, sizes))
    axes = len(given) - (not network._reads_ids)
    width = network._width
    if axes < 0 or (network._looks_along_time and axes not in (1, 2)) or (
        width is not None and given[-1] != width and not network._reads_ids
    ):  # fmt: skip
        last = () if network._reads_ids else (width or "C",)
        expected = ", ".join(map(str, ("T", "B", *last)))
        raise ValueError(f"shape: expected that of an input, such as ({expected}), got {given}")
    return given


class Outline:
    """A walk through a network with shapes in place of arrays."""

    def __init__(self, batch_first: bool, batched: bool) -> None:
        self._time = int(batch_first and batched)

    def go(self, module: Flowing, path: str, shape: Shape) -> Shape:
        """Note a module and those inside, and return its output's shape."""
        if isinstance(module, Container):
            return self._inside(module, path, shape)
        after = self._after(module, shape)
        self.note(module, path, shape, after)
        return after

    def note(self, module: Flowing, path: str, shape: Shape, after: Shape) -> None:
        """Note a module that is not made of others, with the shapes of its input and output."""
        raise NotImplementedError

    def _inside(self, container: Container, path: str, shape: Shape) -> Shape:
        places = [(f"{path}.{n}".lstrip("."), m) for n, m in container._children.items()]
        if isinstance(container, Residual):
            self.go(places[0][1], places[0][0], shape)
            return shape
        if isinstance(container, Concat):
            ends = [self.go(module, at, shape) for at, module in places]
            return (*ends[0][:-1], sum(end[-1] for end in ends))
        assert isinstance(container, Sequential)
        for at, module in places:
            shape = self.go(module, at, shape)
        return shape

    def _after(self, module: Flowing, shape: Shape) -> Shape:
        """Return the shape of a module's output."""
        if module._reads_ids:
            return (*shape, module._features(None) or 0)
        lead, width = list(shape[:-1]), module._features(shape[-1]) or 0
        if module._ends_time:
            del lead[self._time]
        elif isinstance(module, Conv1d):
            lead[self._time] = int(module.out_lengths([lead[self._time]])[0])
        return (*lead, width)


class _Rows(Outline):
    """A walk that makes the rows of a summary."""

    def __init__(self, batch_first: bool, batched: bool) -> None:
        super().__init__(batch_first, batched)
        self.rows: list[Row] = []
        self._seen: set[int] = set()

    def note(self, module: Flowing, path: str, shape: Shape, after: Shape) -> None:
        """Make a row."""
        first = id(module) not in self._seen
        self._seen.add(id(module))
        size, nbytes = module.flat_params.size * first, module.flat_params.nbytes * first
        work = _multiply_adds(module, int(np.prod(shape[:-1])), int(np.prod(after[:-1])))
        self.rows.append(Row(path, type(module).__name__, after, size, work, nbytes))


def _multiply_adds(module: Flowing, inputs: int, outputs: int) -> int:
    """Multiplications by weights, for so many steps of input and output."""
    weights = sum(value.size for name, value in module.params.items() if name.startswith("weight"))
    if module._reads_ids:
        return 0
    tied: Any = getattr(module, "tied_to", None)
    if tied is not None:
        weights = tied.params["weight"].size
    return weights * (inputs if isinstance(module, Recurrent) else outputs)
