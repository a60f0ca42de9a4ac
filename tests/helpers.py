"""Random problems and comparisons that several test files use."""

import dataclasses
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference

import cylstm
from cylstm.kernels import dispatch, sequence

LAYERS = {
    "rnn_tanh": partial(cylstm.RNN, nonlinearity="tanh"),
    "rnn_relu": partial(cylstm.RNN, nonlinearity="relu"),
    "gru": cylstm.GRU,
    "lstm": cylstm.LSTM,
}
CELLS = tuple(LAYERS)
LAYERS |= {"augru": cylstm.AUGRU, "mingru": cylstm.MinGRU, "minlstm": cylstm.MinLSTM}
LAYERS |= {"slstm": cylstm.SLSTM}
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


class Problem(NamedTuple):
    """A layer with everything a forward and a backward call take; states are tuples of parts.

    With differing hidden sizes a part is a tuple of one array per layer.
    """

    cell: str
    layer: Any
    x: np.ndarray  # (T, B, I)
    state: tuple
    lengths: np.ndarray | None
    dy: Any  # shaped as y
    dstate: tuple
    network: Any = None  # the oracle's description of the layer
    mask: np.ndarray | None = None  # (T, B)
    return_: Any = "all"
    reset: np.ndarray | None = None  # (T, B)
    attention: np.ndarray | None = None  # (T, B), for cells that read it

    def oracle(self, masks=None):
        """Output, final state and cache of the float64 reference."""
        return reference.forward(
            self.network, self.layer.params, self.x, self.state, self.lengths, masks,
            mask=self.mask, return_=self.return_, reset=self.reset, attention=self.attention,
        )  # fmt: skip

    def steps(self):
        """The arguments of a call beside x and state, where they are not the defaults."""
        given = {"lengths": self.lengths, "mask": self.mask, "reset": self.reset,
                 "attention": self.attention}  # fmt: skip
        chosen = {"return_": self.return_} if self.return_ != "all" else {}
        return {name: value for name, value in given.items() if value is not None} | chosen

    def forward(self, **options):
        """Output, final state as a tuple, tape."""
        call = self.steps() | options
        y, state, tape = self.layer.forward(self.x, joined(self.state), **call)
        return y, self.parts(state), tape

    def infer(self, **options):
        """Output and final state as a tuple."""
        y, state = self.layer(self.x, joined(self.state), **(self.steps() | options))
        return y, self.parts(state)

    def backward(self, tape, **options):
        """Zero the gradients, go back, and return dx and the state's gradients as a tuple."""
        self.layer.zero_grad()
        dx, dstate, *_ = self.layer.backward(tape, self.dy, joined(self.dstate), **options)
        return dx, self.parts(dstate)

    def gradients(self, tape, **options):
        """All gradients by name."""
        self.layer.zero_grad()
        dx, dstate, *more = self.layer.backward(tape, self.dy, joined(self.dstate), **options)
        found = {"x": dx, **by_name(self.network, self.parts(dstate))}
        found |= {k: g.copy() for k, g in self.layer.grads.items()}
        return found | ({"attention": more[0]} if more else {})

    def oracle_gradients(self, masks=None, clip_step=None):
        """What `gradients` should give."""
        cache = self.oracle(masks)[2]
        dx, dstate, grads = reference.backward(cache, self.dy, self.dstate, clip_step)
        return {"x": dx, **by_name(self.network, dstate), **grads}

    def parts(self, state):
        return state if len(self.network.states) > 1 else (state,)


class Bare:
    """The parameters of a network without a layer, for the oracle alone."""

    def __init__(self, network, rng):
        bound = 1 / np.sqrt(max(network.hidden))
        self.params = {n: rng.uniform(-bound, bound, s) for n, s in network.shapes().items()}
        self.dtype = np.dtype("float64")

    def assign(self, values):
        self.params |= values


def problem(
    cell, sizes, *, steps=5, rows=3, lengths=None, mask=None, return_="all", reset=None, seed=0,
    bare=False, **options,
):  # fmt: skip
    """A problem with distinct random numbers everywhere.

    sizes are input, hidden and number of layers; lengths an array, None, or "random" for
    lengths in any order from 0 to all steps; mask an array, None, "left" for left padding of any
    length, or "holes"; reset an array, None, or the share of resets. Layer norm does not begin at
    1 and 0 as it does in a new layer.
    """
    rng = np.random.default_rng(seed)
    known = {name: options[name] for name in NETWORK_OPTIONS & options.keys()}
    if cell.startswith("rnn"):
        known = {"nonlinearity": cell.removeprefix("rnn_")} | known
    network = reference.Network(cell.partition("_")[0], *sizes, **known)
    layer = Bare(network, rng) if bare else LAYERS[cell](*sizes, rng=rng, **options)

    def normal(*shape):
        return rng.normal(size=shape).astype(layer.dtype)

    x = normal(steps, rows, network.input_size)
    outputs = (steps, rows) if return_ == "all" else (rows,)
    if isinstance(return_, int):
        outputs = (steps // return_, rows)
    ways = len(network.directions)
    width = network.widths[-1] * (ways if network.merge_mode == "concat" else 1)
    dy = normal(*outputs, width)
    if network.merge_mode == "separate":
        dy = (dy, normal(*outputs, width))
    if isinstance(lengths, str):
        lengths = rng.permutation(np.linspace(0, steps, rows).round().astype(int))
    if isinstance(mask, str):
        first = rng.permutation(np.linspace(0, steps, rows).round().astype(int))
        mask = np.arange(steps)[:, None] >= first if mask == "left" else (
            rng.random((steps, rows)) < 0.6)  # fmt: skip
    if isinstance(reset, float):
        reset = rng.random((steps, rows)) < reset
    state, dstate = (network.state_of(normal, rows) for _ in range(2))
    if cell == "slstm":  # whose normaliser is a sum of positive numbers
        state = (*state[:2], positive(state[2]), state[3])
    normed = {n: v + 0.3 * normal(*v.shape) for n, v in layer.params.items() if "_ln" in n}
    if normed:
        layer.assign(normed)
    if network.learn_initial_state:
        drawn = {n: 0.5 * normal(*v.shape) for n, v in layer.params.items() if "initial" in n}
        drawn |= {n: positive(v) for n, v in drawn.items() if "initial_n" in n}
        layer.assign(drawn)
    attention = rng.random((steps, rows)).astype(layer.dtype) if network.attends else None
    return Problem(
        cell, layer, x, state, lengths, dy, dstate, network, mask, return_, reset, attention
    )


def positive(a):
    return tuple(map(positive, a)) if isinstance(a, tuple) else np.abs(a) + a.dtype.type(0.5)


NETWORK_OPTIONS = {field.name for field in dataclasses.fields(reference.Network)}
KINK = 1e-4  # nothing is nearer than this to where it is not smooth, so that no difference is wrong


def smooth_problem(*arguments, masks=None, least=KINK, **options):
    """A problem, of float64 unless said, that is differentiable with a margin around its point.

    masks(problem) are those of its oracle, if any.
    """
    options = {"dtype": "float64"} | options
    for seed in range(500):
        p = problem(*arguments, seed=seed, **options)
        _, state, cache = p.oracle(masks and masks(p))
        bounded = all(np.abs(a).max(initial=0) < 30 for a in by_name(p.network, state).values())
        if bounded and reference.margin(cache) > least:  # not every activation is bounded
            return p
    raise RuntimeError("expected a smooth problem among 500, got none")


def by_name(network, state):
    """The arrays of a state or of its gradient: h0, c0, or h0_l0 and so on."""
    found = {}
    for name, part in zip([f"{name}0" for name in network.states], state, strict=True):
        if part is None:
            continue
        found |= ({f"{name}_l{k}": a for k, a in enumerate(part)} if isinstance(part, tuple)
                  else {name: part})  # fmt: skip
    return found


def tensors(p):
    """Everything to differentiate by, by name."""
    more = {} if p.attention is None else {"attention": p.attention}
    return {"x": p.x, **by_name(p.network, p.state), **p.layer.params, **more}


def moved(p, name, value):
    """The problem with one of its tensors replaced."""
    if name in p.layer.params:
        p.layer.assign({name: value})
        return p
    if name in ("x", "attention"):
        return p._replace(**{name: value})
    arrays = iter((by_name(p.network, p.state) | {name: value}).values())
    return p._replace(state=tuple(
        tuple(next(arrays) for _ in part) if isinstance(part, tuple) else next(arrays)
        for part in p.state
    ))  # fmt: skip


def dot(a, b):
    """Scalar product of arrays or of tuples or lists of such."""
    if isinstance(a, (tuple, list)):
        return sum(dot(*both) for both in zip(a, b, strict=True))
    return np.vdot(a, b)


def loss(p, y, state):
    """The linear functional of outputs and final state whose gradient backward gives."""
    return dot(p.dy, y) + dot(p.dstate, state)


def numeric_slope(evaluate, step):
    """Derivative at 0 of a function of one number: central difference of fourth order."""
    near = evaluate(step) - evaluate(-step)
    far = evaluate(2 * step) - evaluate(-2 * step)
    return (8 * near - far) / (12 * step)


def assert_gradients_match_differences(p, gradients, evaluate):
    """gradients by name; evaluate(problem) -> outputs, final state."""
    rng = np.random.default_rng(1)
    kinks = reference.margin(p.oracle()[2]) < np.inf
    for name, value in tensors(p).items():
        value = value.copy()
        along = rng.normal(size=value.shape)
        along /= np.linalg.norm(along)

        def at(s, name=name, value=value, along=along):
            q = moved(p, name, value + s * along)
            return loss(q, *evaluate(q))

        slope = numeric_slope(at, KINK / 50 if kinks else 5e-4)
        moved(p, name, value)
        scale = np.linalg.norm(gradients[name]) / np.sqrt(value.size)  # of a typical slope
        np.testing.assert_allclose(
            np.vdot(gradients[name], along), slope, rtol=1e-6, atol=1e-6 * scale, err_msg=name
        )


def assert_gradients_close(actual, expected, tolerance):
    """By name, to a tolerance relative to each tensor's largest."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        scale = max(1.0, np.abs(value).max(initial=0))
        np.testing.assert_allclose(
            actual[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name
        )


def parts(state):
    """The parts of a state as a tuple: (h, c) or (h,)."""
    return state if isinstance(state, tuple) else (state,)


def joined(parts):
    """A state as layers take it: (h, c) or h."""
    return parts if len(parts) > 1 else parts[0]


def replayed(p):
    """The masks of `forward` with rng=7."""
    return p.forward(rng=7)[2].masks


def inside(masks, lengths, steps):
    """The masks of a call on a list of sequences, over (T, B) as the oracle takes them."""
    row, time = np.nonzero(np.arange(steps) < np.asarray(lengths)[:, None])

    def spread(name, mask):
        if name in ("recurrent", "dropconnect"):
            return mask
        full = np.zeros((steps, len(lengths), mask.shape[-1]))
        full[time, row] = mask[:, 0]
        return full

    return [{name: spread(name, mask) for name, mask in own.items()} for own in masks]


def assert_as_the_oracle(p, *, clip_step=None, **options):
    """Outputs, final state and every gradient, with masks from rng=7, and those of a plain call."""
    tolerance = 5e-6 if p.layer.dtype == "float32" else 2e-13
    if p.network.layer_norm:  # which divides by what may be small
        tolerance *= 10
    y, state, tape = p.forward(rng=7, **options)
    y_expected, state_expected, _ = p.oracle(tape.masks)
    assert_close(y, y_expected, tolerance)
    assert_close(state, state_expected, tolerance)
    gradients = p.gradients(tape, **({} if clip_step is None else {"clip_step": clip_step}))
    assert_gradients_close(gradients, p.oracle_gradients(tape.masks, clip_step), 10 * tolerance)
    y, state = p.infer()  # zoneout by its expectation, nothing dropped
    y_expected, state_expected, _ = p.oracle()
    assert_close(y, y_expected, tolerance)
    assert_close(state, state_expected, tolerance)


def assert_close(actual, expected, tolerance):
    """Arrays, or nested tuples or lists of arrays."""
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, tolerance)
        return
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_bits(actual, expected):
    """Arrays, or nested tuples of arrays, equal in dtype, shape and every bit."""
    if isinstance(expected, tuple):
        assert isinstance(actual, tuple) and len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e)
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(bits(actual), bits(expected))


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def refused(error, name, got, call, *arguments, **options):
    """Assert that a call raises this error with a message "name: expected ..., got ..."."""
    message = rf"(?s)^{re.escape(name)}\b.*expected .*{re.escape(got)}"
    with pytest.raises(error, match=message):
        call(*arguments, **options)


def run_python(code, *arguments, **environment):
    """Run Python code in a fresh interpreter that finds these helpers; return its output."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def activation(name, x, isa=None, alpha=0.0, beta=0.0):
    """Apply an activation by the very code the cells use."""
    table, kind = dispatch.table(x.dtype.name, isa), (name, alpha, beta)
    return sequence.activation(table, kind, x.reshape(1, 1, -1)).reshape(-1)
