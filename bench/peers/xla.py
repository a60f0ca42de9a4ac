"""JAX: the layer as users write it, a jitted `lax.scan` with fused gates.

The input projection is hoisted out of the scan; weights are kept transposed, as (in, out).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from cases import Array, Case, Problem

from peers.base import Engine, arrays

jax.config.update("jax_platforms", "cpu")


class Jax(Engine):
    """One compiled function for inference or for the vector-Jacobian product."""

    package = "jax"

    @classmethod
    def supports(cls, case: Case) -> bool:
        """Lengths are not worth masking by hand."""
        return case.real_steps == 1

    def __init__(self, case: Case, problem: Problem, threads: int) -> None:
        """Hand over the weights."""
        self.case = case
        self.params = {name: jnp.asarray(w.T.copy()) for name, w in problem.weights.items()}
        self.x, self.dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)

        def forward(params: dict[str, Any], x: Any) -> Any:
            return _layers(case, params, x)

        def gradients(params: dict[str, Any], x: Any, dy: Any) -> Any:
            y, pullback = jax.vjp(lambda p, x: forward(p, x)[0], params, x)
            return y, pullback(dy)

        self._forward, self._gradients = jax.jit(forward), jax.jit(gradients)

    def infer(self) -> Any:
        """Output and states."""
        return jax.block_until_ready(self._forward(self.params, self.x))

    def train(self) -> Any:
        """Output and gradients."""
        return jax.block_until_ready(self._gradients(self.params, self.x, self.dy))

    def results(self) -> list[Array]:
        """Arrays to compare."""
        if self.case.mode == "training":
            y, (params, dx) = self.train()
            return arrays([y, dx, *(params[name].T for name in self.params)])
        y, states = self.infer()
        return arrays([y, *states])


def _layers(case: Case, params: dict[str, Any], x: Any) -> Any:
    finals = []
    for layer in range(case.layers):
        outputs = []
        for suffix in ("", "_reverse")[: case.directions]:
            names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
            weights = [params[f"{name}_l{layer}{suffix}"] for name in names]
            y, final = _direction(case, *weights, x, reverse=suffix == "_reverse")
            outputs.append(y)
            finals.append(final)
        x = jnp.concatenate(outputs, axis=-1) if case.bidirectional else outputs[0]
    return x, [jnp.stack(kind) for kind in zip(*finals, strict=True)]


def _direction(case: Case, wi: Any, bi: Any, wh: Any, bh: Any, x: Any, *, reverse: bool) -> Any:
    zero = jnp.zeros((case.B, case.H), jnp.float32)
    step = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}[case.cell]
    # The GRU's recurrent bias stays inside: its candidate part is multiplied by the reset gate.
    projected = x @ wi + (bi if case.cell == "gru" else bi + bh)
    initial = (zero, zero) if case.cell == "lstm" else (zero,)
    final, y = jax.lax.scan(lambda s, gx: step(s, gx, wh, bh), initial, projected, reverse=reverse)
    return y, final


def _lstm(state: Any, gx: Any, wh: Any, _bh: Any) -> Any:
    h, c = state
    i, f, g, o = jnp.split(gx + h @ wh, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru(state: Any, gx: Any, wh: Any, bh: Any) -> Any:
    (h,) = state
    rx, zx, nx = jnp.split(gx, 3, axis=-1)
    rh, zh, nh = jnp.split(h @ wh + bh, 3, axis=-1)
    z = jax.nn.sigmoid(zx + zh)
    n = jnp.tanh(nx + jax.nn.sigmoid(rx + rh) * nh)
    h = (1 - z) * n + z * h
    return (h,), h


def _rnn(state: Any, gx: Any, wh: Any, _bh: Any) -> Any:
    (h,) = state
    h = jnp.tanh(gx + h @ wh)
    return (h,), h


PEER = Jax
