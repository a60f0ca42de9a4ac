"""The layers as differentiable functions: for autograd, and as operators for torch.compile."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cylstm.module import Array
from cylstm.torch.engine import Engine, array, keep, kept

if TYPE_CHECKING:
    from cylstm.torch.modules import Twin


class Recurrence(torch.autograd.Function):
    """One pass over a batch: y and each final state, of x, each initial state and each weight."""

    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        sizes: Array | None,
        seed: int | None,
        n_states: int,
        x: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run the engine, whose parameters are up to date, and keep the tape."""
        ctx.set_materialize_grads(False)
        states = tuple([array(s) for s in others[:n_states]])
        y, final, tape = engine.run(array(x), states, sizes, True, seed)
        assert tape is not None
        # x is part of the tape: saved, autograd sees that nobody has written into it.
        ctx.save_for_backward(x, keep(engine, tape))
        ctx.n_states = n_states
        return tuple([torch.from_numpy(a) for a in (y, *final)])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *dfinal: Tensor | None) -> tuple[Any, ...]:
        """Propagate gradients back; those that nobody needs are dropped."""
        _, handle = ctx.saved_tensors
        dx, dstates, dweights = _back(handle, dy, dfinal)
        found = (dx, *dstates[: ctx.n_states], *dweights)
        needed = ctx.needs_input_grad[4:]
        tensors = [torch.from_numpy(d) if n else None for d, n in zip(found, needed, strict=True)]
        if torch.is_grad_enabled():  # by create_graph=True
            tensors = [None if t is None else _differentiable_once(t) for t in tensors]
        return (None, None, None, None, *tensors)


def _differentiable_once(gradient: Tensor) -> Tensor:
    """Have a gradient raise where it is differentiated again, instead of counting as a constant."""
    refuse = torch._C._functions.DelayedError(
        b"cylstm.torch: expected a first derivative, got one of a gradient (create_graph=True): "
        b"use torch.nn's layers there, for example by cylstm.torch.restore(module)",
        1,
    )
    found: Tensor = refuse(gradient.requires_grad_())
    return found


def _back(
    handle: Tensor, dy: Tensor | None, dfinal: tuple[Tensor | None, ...]
) -> tuple[Array, tuple[Array, ...], list[Array]]:
    engine, tape = kept(handle)
    parts = tuple([None if d is None else array(d) for d in dfinal])
    return engine.back(tape, None if dy is None else array(dy), parts)


# As operators. A module is named by a number, since operators take tensors and numbers only.

_numbers = itertools.count()
_modules: weakref.WeakValueDictionary[int, Twin] = weakref.WeakValueDictionary()


def register(module: Twin) -> int:
    """Give a module a number for as long as it lives."""
    number = next(_numbers)
    _modules[number] = module
    return number


@torch.library.custom_op("cylstm::recurrence", mutates_args=())
def recurrence(
    module: int,
    x: Tensor,
    sizes: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    seed: Tensor | None,
    taped: bool,
) -> list[Tensor]:
    """Return y, each final state, and the tensor that owns the tape."""
    engine = _modules[module]._engine_for(x, weights)
    if engine is None:
        raise TypeError(
            f"input: expected a float32 or float64 CPU tensor as the weights are, got {x.dtype} "
            f"on {x.device} with weights of {weights[0].dtype} on {weights[0].device}"
        )
    engine.follow(weights)
    y, final, tape = engine.run(
        array(x),
        tuple([array(s) for s in states]),
        None if sizes is None else array(sizes),
        taped,
        None if seed is None else int(seed),
    )
    handle = torch.full((1,), -1) if tape is None else keep(engine, tape)
    return [*(torch.from_numpy(a).contiguous() for a in (y, *final)), handle]


@recurrence.register_fake
def _(
    module: int,
    x: Tensor,
    sizes: Tensor | None,
    states: list[Tensor],
    weights: list[Tensor],
    seed: Tensor | None,
    taped: bool,
) -> list[Tensor]:
    twin = _modules[module]
    directions = 2 if twin.bidirectional else 1
    outputs = twin.proj_size or twin.hidden_size
    rows: tuple[Any, ...] = ()
    if sizes is not None:
        rows = (
            (torch.library.get_ctx().new_dynamic_size(),) if not states else (states[0].shape[1],)
        )
    elif x.dim() == 3:
        rows = (x.shape[0 if twin.batch_first else 1],)
    n = twin.num_layers * directions
    widths = (outputs, twin.hidden_size)[: twin._n_states]
    return [
        x.new_empty((*x.shape[:-1], directions * outputs)),
        *(x.new_empty((n, *rows, width)) for width in widths),
        torch.empty(1, dtype=torch.int64),
    ]


@torch.library.custom_op("cylstm::recurrence_backward", mutates_args=())
def recurrence_backward(
    handle: Tensor,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    dy: Tensor | None,
    dfinal: list[Tensor],
) -> list[Tensor]:
    """Return the gradients of x, of each state that was given and of each weight."""
    dx, dstates, dweights = _back(handle, dy, tuple(dfinal))
    found = (dx, *dstates[: len(states)], *dweights)
    return [torch.from_numpy(d).contiguous() for d in found]


@recurrence_backward.register_fake
def _(
    handle: Tensor,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    dy: Tensor | None,
    dfinal: list[Tensor],
) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, *states, *weights)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, x, _, states, weights, _, _ = inputs
    *_, handle = output
    ctx.n_states = len(states)
    ctx.save_for_backward(handle, x, *states, *weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    handle, x, *others = ctx.saved_tensors
    n = ctx.n_states
    dy, *dfinal = grads[:-1]
    found = recurrence_backward(handle, x, others[:n], others[n:], dy, dfinal)
    return None, found[0], None, found[1 : 1 + n], found[1 + n :], None, None


recurrence.register_autograd(_backward, setup_context=_setup)
