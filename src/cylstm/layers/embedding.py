"""`Embedding`: vectors looked up by index, before a recurrent layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cylstm import checks
from cylstm.layers import ragged
from cylstm.layers.flow import Passed, Run, Steps
from cylstm.layers.stored import Stored
from cylstm.module import Array, draw

if TYPE_CHECKING:
    import numpy.typing as npt

    from cylstm.module import Rng


class EmbeddingTape(NamedTuple):
    """What `Embedding.backward` needs: the indices of the rows looked up, and their layout."""

    ids: npt.NDArray[np.intp]
    layout: ragged.Layout


class Embedding(Stored):
    """Table of vectors, looked up by index.

    The parameter is `weight` (num_embeddings, embedding_dim), as in `torch.nn.Embedding`, drawn
    from N(0, 1) as there.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Number of vectors and length of each, at least 1.
    padding_idx : int, optional
        Id whose vector is zero at first and gets no gradient from lookups, as in
        `torch.nn.Embedding`; -num_embeddings to num_embeddings - 1, negative ones count from the
        end. `assign` may still change the vector. Default: no such id.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters and outputs.
    rng : None, int or numpy.random.Generator, default None
        Source of the initial parameters.

    Attributes
    ----------
    num_embeddings, embedding_dim : int
    padding_idx : int or None
        Counted from the beginning.

    Raises
    ------
    TypeError
        A size or `padding_idx` is not an integer.
    ValueError
        A size is below 1, `padding_idx` out of range, or `dtype` neither float32 nor float64.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_idx: int | None = None,
        dtype: npt.DTypeLike = "float32",
        rng: Rng = None,
    ) -> None:
        self.num_embeddings = checks.size("num_embeddings", num_embeddings)
        self.embedding_dim = checks.size("embedding_dim", embedding_dim)
        self.padding_idx = None if padding_idx is None else self._index(padding_idx)
        generator = checks.generator("rng", rng)
        shapes = {"weight": (self.num_embeddings, self.embedding_dim)}
        super().__init__(shapes, checks.dtype(dtype))
        if self._draws_parameters():
            draw(self._storage, generator.standard_normal)
        if self.padding_idx is not None:
            self.split(self._storage)["weight"][self.padding_idx] = 0

    def _index(self, value: Any) -> int:
        """Check `padding_idx` and count it from the beginning."""
        n = self.num_embeddings
        index = checks.size("padding_idx", value, -n)
        if index >= n:
            raise ValueError(f"padding_idx: expected an integer from {-n} to {n - 1}, got {index}")
        return index % n

    def __call__(self, ids: npt.ArrayLike) -> Any:
        """Look up vectors.

        Parameters
        ----------
        ids : array-like of shape (...), or a list of such
            Integers from 0 to num_embeddings - 1; negative ones do not count from the end. In a
            list of arrays, or of lists that differ in length, each is a sequence of its own.

        Returns
        -------
        ndarray of shape (..., embedding_dim), or a list of such
            A copy of the vectors, of the layer's dtype.

        Raises
        ------
        TypeError
            `ids` are not integers.
        ValueError
            An id is negative or too large.
        """
        return self.forward(ids)[0]

    def forward(self, ids: npt.ArrayLike) -> tuple[Any, EmbeddingTape]:
        """Look up vectors and keep what `backward` needs.

        Parameters
        ----------
        ids : array-like of shape (...), or a list of such
            Integers from 0 to num_embeddings - 1; negative ones do not count from the end. In a
            list of arrays, or of lists that differ in length, each is a sequence of its own.

        Returns
        -------
        y : ndarray of shape (..., embedding_dim), or a list of such
            A copy of the vectors, of the layer's dtype.
        tape : EmbeddingTape

        Raises
        ------
        TypeError
            `ids` are not integers.
        ValueError
            An id is negative or too large.
        """
        found, layout = ragged.vector("ids", ids, self._read)
        y = np.empty((len(found), self.embedding_dim), self.dtype)
        self._snapshot().lookup(found, y)
        return layout.outward(y), EmbeddingTape(found, layout)

    def _read(self, name: str, value: Any) -> npt.NDArray[np.intp]:
        """Read and check ids."""
        ids = self._ids(name, value)
        self._check_ids(name, ids)
        return np.ascontiguousarray(ids, np.intp).reshape(ids.shape)

    def _ids(self, name: str, value: Any) -> npt.NDArray[Any]:
        """Read integers, into a copy: another thread may be writing into the caller's array."""
        ids = np.array(checks.read(name, value))
        if ids.size == 0 and isinstance(value, (list, tuple)):  # NumPy takes them for floats
            ids = ids.astype(np.intp)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got dtype {ids.dtype}")
        return ids

    def _check_ids(self, name: str, ids: npt.NDArray[Any]) -> None:
        """Refuse ids that there are no vectors of."""
        outside = (ids < 0) | (ids >= self.num_embeddings)
        if outside.any():
            raise ValueError(
                f"{name}: expected integers from 0 to {self.num_embeddings - 1}, "
                f"got {ids[outside][0]}"
            )

    _reads_ids = True

    def _features(self, width: int | None) -> int:
        """Say how many features the output has."""
        return self.embedding_dim

    def _pass(self, x: Array, state: Any, steps: Steps, run: Run) -> Passed:
        y, tape = self.forward(x)
        return Passed(y, steps, tape=tape)

    def _pass_back(self, tape: Any, dy: Array, dstate: Any, run: Run) -> tuple[Any, Any]:
        self.backward(tape, dy)
        return None, None

    def backward(self, tape: EmbeddingTape, dy: npt.ArrayLike) -> None:
        """Add the gradients of the vectors looked up to `grads`.

        The sums have the same bits from run to run.

        Parameters
        ----------
        tape : EmbeddingTape
            From `forward`; may be used several times.
        dy : array-like of shape (..., embedding_dim), or a list of such
            Gradient of the loss with respect to the output, laid out like that.

        Raises
        ------
        TypeError
            `tape` is not an `EmbeddingTape`, or `dy` is not made of real numbers.
        ValueError
            The shape of `dy` is not the output's. `grads` is unchanged then.
        """
        if not isinstance(tape, EmbeddingTape):
            raise TypeError(f"tape: expected what forward returned, got {type(tape).__name__}")
        rows = tape.layout.inward("dy", dy, self.embedding_dim, self.dtype)
        ids = tape.ids
        if ids.size and ids.max() >= self.num_embeddings:
            raise ValueError(f"tape: expected ids below {self.num_embeddings}, got {ids.max()}")
        if self.padding_idx is not None:
            counts = ids != self.padding_idx
            ids, rows = ids[counts], rows[counts]
        # Pairwise sums over equal ids side by side: more accurate than numpy.add.at, and faster
        # where ids repeat.
        order = np.argsort(ids, kind="stable")
        used, starts = np.unique(ids[order], return_index=True)
        sums = np.add.reduceat(rows[order], starts, axis=0)
        with self._lock:  # two threads adding at once would lose a gradient
            self.grads["weight"][used] += sums
