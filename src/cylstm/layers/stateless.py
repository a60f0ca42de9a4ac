"""What modules without a state share: their own call, `forward` and `backward`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cylstm import checks
from cylstm.layers import flow
from cylstm.layers.flow import Flowing, FlowTape, Run

if TYPE_CHECKING:
    from cylstm.module import Rng


class Stateless(Flowing):
    """A module whose calls take an array or a list, and steps to read, and nothing else."""

    def __call__(
        self, x: Any, *, lengths: Any = None, mask: Any = None, num_threads: int | None = None
    ) -> Any:
        """Compute the output for inference: nothing dropped, running statistics.

        Parameters
        ----------
        x : array-like of shape (T, B, C), (B, T, C) if `batch_first`, or (T, C) unbatched
            Real numbers. Or a list of arrays (T_i, C), one for each row. Where the module does not
            look along time, any leading shape will do.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. What is beyond is not
            looked at, and the output there is 0.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        ndarray, or a list of such for a list

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; named in the message.
        """
        return flow.call(self, x, None, lengths, mask, Run(False, num_threads))[0]

    def forward(
        self,
        x: Any,
        *,
        lengths: Any = None,
        mask: Any = None,
        rng: Rng = None,
        num_threads: int | None = None,
    ) -> tuple[Any, FlowTape]:
        """Compute the output for training, with dropout and batch statistics; keep a tape.

        Parameters
        ----------
        x : array-like of shape (T, B, C), (B, T, C) if `batch_first`, or (T, C) unbatched
            Real numbers. Or a list of arrays (T_i, C), one for each row. Where the module does not
            look along time, any leading shape will do.
        lengths : array-like of int of shape (B,), optional
            Valid steps of each row, 0 to T, in any order; default all. What is beyond is not
            looked at, and the output there is 0.
        mask : array-like of shape (T, B), (B, T) or (T,), as x, optional
            Booleans, or integers 0 and 1: which steps are read, in place of `lengths`.
        rng : int or numpy.random.Generator, optional
            Source of random masks; the same int gives the same ones. Default the module's.
        num_threads : int, optional
            Most threads to use; default `get_num_threads()`. Never changes a bit of the result.

        Returns
        -------
        y : ndarray, or a list of such for a list
        tape : FlowTape
            For `backward`. Refers to `x` where no copy was needed: leave that unchanged until then.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; named in the message.
        """
        generator = None if rng is None else checks.generator("rng", rng)
        run = Run(True, num_threads, generator)
        y, _, tape = flow.call(self, x, None, lengths, mask, run)
        assert tape is not None
        return y, tape

    def backward(self, tape: FlowTape, dy: Any, *, num_threads: int | None = None) -> Any:
        """Add the parameters' gradients, if there are any, to `grads` and return the input's.

        Parameters
        ----------
        tape : FlowTape
            From this module's `forward`; may be used several times.
        dy : array-like shaped as y, or None
            Gradient of the output; None is zeros. Ignored at steps that were not read.
        num_threads : int, optional
            Most threads to use; never changes a bit of the result.

        Returns
        -------
        ndarray shaped as x, or a list of such for a list
            Zero at steps that were not read.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit; `grads` is unchanged then.
        """
        return flow.back(self, tape, dy, None, Run(True, num_threads))[0]
