"""LSTM, GRU and RNN with the interface of `torch.nn`'s and the kernels of this library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cylstm.torch import function
from cylstm.torch.engine import DTYPES, Engine, array

# The classes have a base of torch's after this one.
_Base: Any = torch.nn.RNNBase if TYPE_CHECKING else object
#: What a module's engine is made of.
_OPTIONS = frozenset({
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
    "bidirectional", "proj_size",
})  # fmt: skip
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Twin(_Base):
    """What the three classes put in front of torch's own: `forward`, and what belongs to it."""

    #: Arrays that the state consists of.
    _n_states = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    def _begin(self) -> None:
        """Get ready to run, without an engine yet."""
        self.__dict__["_engine"] = None
        self.__dict__["_number"] = function.register(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OPTIONS:
            self.__dict__["_engine"] = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: v for name, v in state.items() if name not in ("_engine", "_number")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layer.

        Parameters
        ----------
        input : Tensor of shape (T, B, I), (B, T, I) if `batch_first`, (T, I), or PackedSequence
        hx : Tensor or tuple (h, c) for LSTM, optional
            Initial state, of shape (num_layers * num_directions, B, size); default zeros.

        Returns
        -------
        output : Tensor or PackedSequence
            Of the hidden states of all steps, as `input` is laid out.
        hx : Tensor or tuple (h, c) for LSTM
            Final state.

        Raises
        ------
        RuntimeError, ValueError
            Shapes or dtypes do not fit, in PyTorch's words.
        """
        packed = isinstance(input, PackedSequence)
        x, sizes = (input.data, input.batch_sizes) if packed else (input, None)
        weights = self._weights()
        if torch.compiler.is_compiling():
            return self._compiled(input, x, sizes, hx, weights)
        engine = self._engine_for(x, weights)
        if engine is None:
            return super().forward(input, hx)
        states: tuple[Tensor, ...] = () if hx is None else self._parts(hx)
        if packed and states:
            states = self._permuted(states, input.sorted_indices)
        if states or packed or x.dim() != 3 or x.shape[2] != self.input_size:
            self._check(x, states, sizes)
        engine.follow(weights)
        drawn = self._seed()
        seed = None if drawn is None else int(drawn)
        by_step = None if sizes is None else array(sizes)
        if torch.is_grad_enabled() and _differentiable(x, states, weights):
            y, *final = function.Recurrence.apply(
                engine, by_step, seed, len(states), x, *states, *weights
            )
        else:
            given = tuple([array(s) for s in states])
            found, last, _ = engine.run(array(x), given, by_step, False, seed)
            y, final = torch.from_numpy(found), [torch.from_numpy(a) for a in last]
        return self._result(input, y, final)

    def _weights(self) -> list[Tensor]:
        """Parameters as they are now: functional_call and parametrize put others in their place."""
        own = self._parameters
        try:
            return [own[name] for name in self._flat_weights_names]
        except KeyError:
            return [getattr(self, name) for name in self._flat_weights_names]

    def _engine_for(self, x: Tensor, weights: list[Tensor]) -> Engine | None:
        """Return the engine; None if this is for PyTorch's own code."""
        engine: Engine | None = self._engine
        if (
            type(x) not in _PLAIN
            or not x.is_cpu
            or x.dtype not in DTYPES
            or x.layout is not torch.strided
            or torch.is_autocast_enabled("cpu")
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._get_tracing_state() is not None
            or torch.autograd.forward_ad._current_level >= 0
        ):
            return None
        for w in weights:
            if type(w) not in _PLAIN or w.dtype is not x.dtype or not w.is_cpu:
                return None
        if engine is None or engine.dtype is not x.dtype:
            self.__dict__["_engine"] = engine = Engine(self, x.dtype)
        return engine

    def _parts(self, hx: Any) -> tuple[Tensor, ...]:
        return (hx,) if self._n_states == 1 else tuple(hx)

    def _state(self, parts: Any) -> Any:
        return parts[0] if self._n_states == 1 else tuple(parts)

    def _permuted(self, states: Any, order: Tensor | None) -> tuple[Tensor, ...]:
        return self._parts(self.permute_hidden(self._state(states), order))

    def _check(self, x: Tensor, states: tuple[Tensor, ...], sizes: Tensor | None) -> None:
        """Raise PyTorch's errors about shapes and dtypes."""
        kind = self.mode.partition("_")[0]
        if sizes is None and x.dim() not in (2, 3):
            raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {x.dim()}D instead")
        if states and len(states) != self._n_states:
            raise ValueError(f"hx: expected {self._n_states} tensors, got {len(states)}")
        batched = sizes is not None or x.dim() == 3
        for s in states:
            if s.dim() != (3 if batched else 2):
                raise RuntimeError(
                    f"For {'batched 3-D' if batched else 'unbatched 2-D'} input, hx should also be "
                    f"{3 if batched else 2}-D but got {s.dim()}-D tensor"
                )
            if s.dtype is not x.dtype or not s.is_cpu:
                raise RuntimeError(
                    f"hx: expected {x.dtype} on cpu as input is, got {s.dtype} on {s.device}"
                )
        if not batched:
            x = x.unsqueeze(0 if self.batch_first else 1)
            states = tuple([s.unsqueeze(1) for s in states])
        if states:
            self.check_forward_args(x, self._state(states), sizes)
        else:
            self.check_input(x, sizes)
        if sizes is not None and int(sizes.sum()) != len(x):
            raise RuntimeError(
                f"input: expected {int(sizes.sum())} steps in its data, got {len(x)}"
            )

    def _seed(self) -> Tensor | None:
        """Draw the seed of this call's dropout from PyTorch's generator, if there is any."""
        if not (self.training and self.dropout and self.num_layers > 1):
            return None
        return torch.randint(0, 2**62, ())

    def _result(self, input: Any, y: Tensor, final: Any) -> Any:
        if isinstance(input, PackedSequence):
            y = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            final = self._permuted(final, input.unsorted_indices)
        return y, self._state(final)

    def _compiled(
        self, input: Any, x: Tensor, sizes: Tensor | None, hx: Any, weights: list[Tensor]
    ) -> Any:
        """Do what `forward` does, as an operator that compilers need not look into."""
        if (
            x.device.type != "cpu"
            or x.dtype not in DTYPES
            or torch.is_autocast_enabled("cpu")
            or _exporting()
        ):
            return super().forward(input, hx)
        states: tuple[Tensor, ...] = () if hx is None else self._parts(hx)
        if sizes is not None and states:
            states = self._permuted(states, input.sorted_indices)
        taped = torch.is_grad_enabled() and _differentiable(x, states, weights)
        y, *final, _ = function.recurrence(
            self._number, x, sizes, list(states), weights, self._seed(), taped
        )
        return self._result(input, y, final)


#: Whether a program is exported, which is to run where this library may not be.
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def _differentiable(x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> bool:
    if x.requires_grad:
        return True
    for t in weights:
        if t.requires_grad:
            return True
    for t in states:
        if t.requires_grad:
            return True
    return False


class LSTM(Twin, torch.nn.LSTM):
    """LSTM that runs and trains with cylstm's kernels: a twin of `torch.nn.LSTM`.

    Takes the arguments of `torch.nn.LSTM`, is an instance of it, and has its parameters,
    `state_dict`, initial values, errors and results, to rounding. A call with a PackedSequence
    costs its real steps. A state is (h, c).

    Parameters
    ----------
    input_size, hidden_size : int
        Features of the input and of the state.
    num_layers : int, default 1
        Layers in a stack.
    bias : bool, default True
        Whether there are biases b_ih and b_hh.
    batch_first : bool, default False
        Whether arrays are (B, T, features) in place of (T, B, features).
    dropout : float, default 0.0
        Probability with which outputs between layers are dropped in training. Masks are drawn by
        NumPy, from a seed that PyTorch's generator gives: `torch.manual_seed` makes them come
        again, but they are not the masks that `torch.nn.LSTM` draws.
    bidirectional : bool, default False
        Whether there is a reverse direction beside the forward one.
    proj_size : int, default 0
        Features of a projection of h; 0 for none.
    device, dtype : optional
        Where parameters are, and their type.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.

    Notes
    -----
    The kernels do float32 and float64 on the CPU. Other types and devices, tensor subclasses,
    autocast, function transforms (`torch.func`), forward-mode differentiation, dispatch modes and
    tracing are left to `torch.nn.LSTM`'s own code. Gradients are exact, and of the first order
    only: deriving one made with ``create_graph=True`` raises RuntimeError. Parameters may change in
    any way between calls, `p.data` included: a digest of their bytes, of 64 bits, is compared at
    each call, and they are laid out for the kernels again only if it differs. Calls use as many
    threads as `torch.get_num_threads()` says, at most `cylstm.get_num_threads()`.
    """

    _n_states = 2


class GRU(Twin, torch.nn.GRU):
    """GRU that runs and trains with cylstm's kernels: a twin of `torch.nn.GRU`.

    Takes the arguments of `torch.nn.GRU`, is an instance of it, and has its parameters,
    `state_dict`, initial values, errors and results, to rounding. A call with a PackedSequence
    costs its real steps.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of the input and of the state.
    num_layers : int, default 1
        Layers in a stack.
    bias : bool, default True
        Whether there are biases b_ih and b_hh.
    batch_first : bool, default False
        Whether arrays are (B, T, features) in place of (T, B, features).
    dropout : float, default 0.0
        Probability with which outputs between layers are dropped in training. Masks are drawn by
        NumPy, from a seed that PyTorch's generator gives: `torch.manual_seed` makes them come
        again, but they are not the masks that `torch.nn.GRU` draws.
    bidirectional : bool, default False
        Whether there is a reverse direction beside the forward one.
    device, dtype : optional
        Where parameters are, and their type.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.

    Notes
    -----
    The kernels do float32 and float64 on the CPU. Other types and devices, tensor subclasses,
    autocast, function transforms (`torch.func`), forward-mode differentiation, dispatch modes and
    tracing are left to `torch.nn.GRU`'s own code. Gradients are exact, and of the first order
    only: deriving one made with ``create_graph=True`` raises RuntimeError. Parameters may change in
    any way between calls, `p.data` included: a digest of their bytes, of 64 bits, is compared at
    each call, and they are laid out for the kernels again only if it differs. Calls use as many
    threads as `torch.get_num_threads()` says, at most `cylstm.get_num_threads()`.
    """


class RNN(Twin, torch.nn.RNN):
    """Vanilla RNN that runs and trains with cylstm's kernels: a twin of `torch.nn.RNN`.

    Takes the arguments of `torch.nn.RNN`, is an instance of it, and has its parameters,
    `state_dict`, initial values, errors and results, to rounding. A call with a PackedSequence
    costs its real steps.

    Parameters
    ----------
    input_size, hidden_size : int
        Features of the input and of the state.
    num_layers : int, default 1
        Layers in a stack.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        Of the new state.
    bias : bool, default True
        Whether there are biases b_ih and b_hh.
    batch_first : bool, default False
        Whether arrays are (B, T, features) in place of (T, B, features).
    dropout : float, default 0.0
        Probability with which outputs between layers are dropped in training. Masks are drawn by
        NumPy, from a seed that PyTorch's generator gives: `torch.manual_seed` makes them come
        again, but they are not the masks that `torch.nn.RNN` draws.
    bidirectional : bool, default False
        Whether there is a reverse direction beside the forward one.
    device, dtype : optional
        Where parameters are, and their type.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.

    Notes
    -----
    The kernels do float32 and float64 on the CPU. Other types and devices, tensor subclasses,
    autocast, function transforms (`torch.func`), forward-mode differentiation, dispatch modes and
    tracing are left to `torch.nn.RNN`'s own code. Gradients are exact, and of the first order
    only: deriving one made with ``create_graph=True`` raises RuntimeError. Parameters may change in
    any way between calls, `p.data` included: a digest of their bytes, of 64 bits, is compared at
    each call, and they are laid out for the kernels again only if it differs. Calls use as many
    threads as `torch.get_num_threads()` says, at most `cylstm.get_num_threads()`.
    """
