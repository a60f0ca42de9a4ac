"""A layer that works on the parameters of a torch module, as they are at each call."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import cylstm
from cylstm import runtime
from cylstm.engine.batches import Batch, PackedBatch
from cylstm.kernels import sequence
from cylstm.module import Array

if TYPE_CHECKING:
    from cylstm.engine.tape import Tape
    from cylstm.layers.recurrent import Recurrent

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "LSTM": (cylstm.LSTM, {}),
    "GRU": (cylstm.GRU, {}),
    "RNN_TANH": (cylstm.RNN, {"nonlinearity": "tanh"}),
    "RNN_RELU": (cylstm.RNN, {"nonlinearity": "relu"}),
}


def layer_of(module: torch.nn.RNNBase, dtype: str) -> Recurrent:
    """Make a layer of a torch module's options; its parameters are zeros."""
    kind, options = _KINDS[module.mode]
    if module.proj_size:
        options = options | {"proj_size": module.proj_size}
    layer: Recurrent = kind._undrawn(
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        num_layers=module.num_layers,
        bias=module.bias,
        batch_first=module.batch_first,
        # Between layers, of which there may be none; torch has warned of that.
        dropout=float(module.dropout) if module.num_layers > 1 else 0.0,
        bidirectional=module.bidirectional,
        dtype=dtype,
        **options,
    )
    return layer


def array(tensor: torch.Tensor) -> Array:
    """View of a CPU tensor's elements."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():  # as of x.conj().imag
        tensor = tensor.resolve_neg()
    found: Array = tensor.numpy()
    return found


class Engine:
    """What a torch module's calls share: a layer, and what its parameters were last.

    Attributes
    ----------
    layer : Recurrent
        Its parameters are copies of the module's: `follow` finds out whether they still are.
        Version counters would miss `p.data.mul_(...)` and writes by other processes, so the bytes
        are read at each call, and their digest compared.
    """

    def __init__(self, module: torch.nn.RNNBase, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layer = layer_of(module, DTYPES[dtype])
        self._into = list(self.layer.split(self.layer._storage).values())
        self._digest: int | None = None
        self._seen: list[Any] = []
        self._arrays: list[Array] = []

    def follow(self, weights: list[torch.Tensor]) -> None:
        """Take over the values of the parameters, if any has changed."""
        seen = [(w.data_ptr(), w.shape, w.stride()) for w in weights]
        arrays = self._arrays
        if seen != self._seen:
            arrays = [array(w) for w in weights]
            for a, (name, shape) in zip(arrays, self.layer._shapes.items(), strict=True):
                if a.shape != shape:
                    raise RuntimeError(f"{name}: expected shape {shape}, got {a.shape}")
            if all(a.flags.c_contiguous for a in arrays):
                # The views keep the memory, so that no other tensor can be where it was.
                self._seen, self._arrays = seen, arrays
            else:
                arrays = [np.ascontiguousarray(a) for a in arrays]
        digest = sequence.digest(arrays)
        if digest != self._digest:
            with self.layer._changing():
                self.layer._write(list(zip(self._into, arrays, strict=True)))
            self._digest = digest

    def run(
        self,
        x: Array,
        states: tuple[Array, ...],
        sizes: Array | None,
        taped: bool,
        seed: int | None,
    ) -> tuple[Array, tuple[Array, ...], Tape | None]:
        """Run the layer.

        Parameters
        ----------
        x : ndarray shaped as the module's input, or as the data of a PackedSequence
        states : tuple of ndarray
            Empty for zeros.
        sizes : ndarray of int64 of shape (T,) or None
            The batch sizes of a PackedSequence.
        taped : bool
            Whether to keep a tape.
        seed : int or None
            Of the masks of dropout; None for no dropout.

        Returns
        -------
        y : ndarray
        final : tuple of ndarray
        tape : Tape or None
        """
        layer, n, tape, y, final = self.layer, threads(), None, None, None
        state = None if not states else states if len(states) > 1 else states[0]
        if sizes is None and seed is None and not taped:
            y, final = layer(x, state, num_threads=n)
        elif sizes is None and seed is None and not layer.dropout:
            y, final, tape = layer.forward(x, state, num_threads=n)
        else:
            batch = (
                Batch(x, layer.input_size, layer.dtype, layer.batch_first, None, None, "all")
                if sizes is None
                else PackedBatch(x, sizes)
            )
            rng = None if seed is None else np.random.default_rng(seed)
            y, final, tape = layer._run_batch(
                batch, state, num_threads=n, taped=taped or rng is not None, rng=rng
            )
        return y, final if isinstance(final, tuple) else (final,), tape if taped else None

    def back(
        self, tape: Tape, dy: Array | None, dfinal: tuple[Array | None, ...]
    ) -> tuple[Array, tuple[Array, ...], list[Array]]:
        """Gradients of x, of the initial states and of each parameter."""
        layer = self.layer
        found = {name: np.zeros_like(copy) for name, copy in layer.params.items()}
        dstate: Any = dfinal if len(dfinal) > 1 else dfinal[0]
        dx, dinitial, _ = layer._backward(tape, dy, dstate, None, threads(), found)
        states = dinitial if isinstance(dinitial, tuple) else (dinitial,)
        return dx, states, list(found.values())


def threads() -> int:
    """As many threads as PyTorch would use, at most as many as cylstm's default."""
    n: int = torch.get_num_threads()
    return n if n == 1 else min(n, runtime.get_num_threads())


class Kept(np.ndarray[Any, Any]):
    """The number of a tape, as an array that owns it: it lives as long as the array's memory."""

    tape: Tape
    engine: Engine


_numbers = itertools.count()
_kept: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()


def keep(engine: Engine, tape: Tape) -> torch.Tensor:
    """Make a tensor that owns a tape, so that autograd frees both when it frees its tensors."""
    number = next(_numbers)
    owner = np.array([number]).view(Kept)
    owner.engine, owner.tape = engine, tape
    _kept[number] = owner
    handle: torch.Tensor = torch.from_numpy(owner)
    return handle


def kept(handle: torch.Tensor) -> tuple[Engine, Tape]:
    """Find the tape again that `keep` was given."""
    found = _kept.get(int(handle))
    if found is None:
        raise RuntimeError(
            "cylstm.torch: expected the tensors that forward saved, got copies of them: "
            "saved_tensors_hooks that copy, such as save_on_cpu, cannot copy a tape"
        )
    return found.engine, found.tape
