"""The recurrent layers in float64 NumPy, written from the equations: the oracle of the tests.

`reference_cells` has one step of each cell; here is what all cells share: time and its masks,
directions and their merging, layers, and the choice of outputs. Layouts and names are PyTorch's.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from reference_cells import CELLS, activation, margins

GATES = {
    "rnn": ("hidden",),
    "gru": ("reset", "update", "candidate"),
    "augru": ("reset", "update", "candidate"),
    "mingru": ("update", "candidate"),
    "slstm": ("input", "forget", "candidate", "output"),
    "minlstm": ("input", "forget", "candidate"),
    "lstm": ("input", "forget", "candidate", "output"),
}
# Cells whose state is more than h.
STATES = {"lstm": "hc", "slstm": "hcnm"}
# Cells to which each step comes with a number.
ATTENDING = ("augru",)
# Cells whose gates do not see h, and whose candidate is linear.
MINIMAL = ("mingru", "minlstm")
# By state, as `trace` calls it.
TRACED = {"h": "hidden", "c": "cell", "n": "normaliser", "m": "stabiliser"}


@dataclass(frozen=True)
class Network:
    """What the oracle must know of a layer beside its parameters: the constructor's arguments."""

    cell: str  # one of GATES
    input_size: int
    hidden_size: Any
    num_layers: int = 1
    bias: Any = True  # or False, or "single": bias_ih alone
    bidirectional: bool = False
    merge_mode: str = "concat"
    go_backwards: bool = False
    zoneout: float = 0.0
    clip: float | None = None
    nonlinearity: Any = "tanh"
    independent: bool = False
    proj_size: int = 0
    peepholes: bool = False
    coupled: bool = False
    cell_clip: float | None = None
    layer_norm: str | None = None
    activations: Any = None
    zoneout_cell: float = 0.0
    reset_after: bool = True
    learn_initial_state: bool = False
    num_heads: int = 1
    forget_gate: str = "sigmoid"

    @cached_property
    def hidden(self):
        """One size per layer."""
        one_size = isinstance(self.hidden_size, int)
        return (self.hidden_size,) * self.num_layers if one_size else tuple(self.hidden_size)

    @cached_property
    def widths(self):
        """Of each layer's h, one direction."""
        return tuple(self.proj_size or size for size in self.hidden)

    @cached_property
    def directions(self):
        return ("", "_reverse")[: 1 + self.bidirectional]

    @cached_property
    def suffixes(self):
        return [f"_l{k}{d}" for k in range(len(self.hidden)) for d in self.directions]

    @cached_property
    def gates(self):
        return GATES[self.cell]

    @cached_property
    def states(self):
        return STATES.get(self.cell, "h")

    @property
    def attends(self):
        """Whether each step comes with a number."""
        return self.cell in ATTENDING

    @cached_property
    def activation_of(self):
        """By gate name, and "cell" for the way out of an LSTM's: name, alpha, beta."""
        if self.cell == "rnn":
            return {"hidden": activation(self.nonlinearity)}
        found = dict.fromkeys(self.gates, "sigmoid") | {"candidate": "tanh"}
        if self.cell == "lstm":
            found["cell"] = "tanh"
        if self.cell in MINIMAL:
            found["candidate"] = "affine"
        if self.cell == "slstm":
            found |= {"input": "affine", "forget": "affine"}
        given = self.activations or {}
        if not isinstance(given, dict):  # as ONNX lists them
            f, g, *h = given
            given = dict.fromkeys(self.gates, f) | {"candidate": g}
            given |= dict(zip(("cell",), h, strict=False))
        return {gate: activation(a) for gate, a in (found | given).items()}

    def shapes(self):
        """Names and shapes of all parameters in order."""
        shapes = {}
        width = self.input_size
        for k, (hidden, out) in enumerate(zip(self.hidden, self.widths, strict=True)):
            rows = (len(self.gates) - self.coupled) * hidden
            own = {"weight_ih": (rows, width)}
            if self.cell not in MINIMAL:
                seen = out // self.num_heads
                own |= {"weight_hh": (hidden,) if self.independent else (rows, seen)}
            if self.bias:
                own |= {"bias_ih": (rows,)}
            if self.bias is True and self.cell not in MINIMAL:
                own |= {"bias_hh": (rows,)}
            if self.proj_size:
                own |= {"weight_hr": (out, hidden)}
            if self.peepholes:
                own |= {"weight_peephole": ((3 - self.coupled) * hidden,)}
            if self.layer_norm == "haste":
                own |= {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,)}
                if self.cell == "lstm":
                    own |= {"weight_ln_c": (hidden,), "bias_ln_c": (hidden,)}
            if self.layer_norm == "tflite":
                own |= {"weight_ln": (rows,)}
            if self.learn_initial_state:
                own |= {f"initial_{s}": (hidden if s != "h" else out,) for s in self.states}
            for d in self.directions:
                shapes |= {f"{name}_l{k}{d}": shape for name, shape in own.items()}
            width = out * (len(self.directions) if self.merge_mode == "concat" else 1)
        return shapes

    def state_parts(self):
        """Per part of the state (h, and an LSTM's c) its size in each layer."""
        return (self.widths, *[self.hidden] * (len(self.states) - 1))

    def state_of(self, make, rows):
        """A state whose arrays make(D or L*D, rows, size) returns."""
        ways = len(self.directions)
        if len(set(self.hidden)) == 1:
            return tuple(make(ways * len(sizes), rows, sizes[0]) for sizes in self.state_parts())
        return tuple(
            tuple(make(ways, rows, size) for size in sizes) for sizes in self.state_parts()
        )

    def _by_direction(self, state):
        """Per direction of each layer a tuple of (B, size) arrays."""
        parts = ([a for layer in part for a in layer] if isinstance(part, tuple) else part
                 for part in state)  # fmt: skip
        return dict(zip(self.suffixes, zip(*parts, strict=True), strict=True))

    def _joined(self, states):
        """The inverse, of a dict by suffix."""
        ways, parts = len(self.directions), zip(*(states[s] for s in self.suffixes), strict=True)
        if len(set(self.hidden)) == 1:
            return tuple(np.stack(part) for part in parts)
        return tuple(
            tuple(np.stack(part[k : k + ways]) for k in range(0, len(part), ways)) for part in parts
        )


def cuts_of(reset, backwards):
    """Before reading which steps (T, B, 1) the state is the initial one again."""
    cuts = reset
    if backwards:  # what is read before step t is step t + 1
        cuts = np.concatenate([reset[1:], np.zeros_like(reset[:1])])
    return cuts[..., None]


def direction(net, w, x, state, valid, backwards, masks, reset, initial):
    """One direction of one layer: x (T, B, I), state of (B, size) arrays -> y, state, cache.

    Steps where valid (T, B) is False leave the state alone and give y = 0, so that each row begins
    at its own first step, or with `backwards` at its own last. Masks, of this direction: recurrent
    (B, P); zoneout (T, B, P) and zoneout_cell (T, B, H), 1 where the old value stays, or a number.
    At cuts the state becomes `initial`, of (size,) arrays.
    """
    steps = len(x)
    order = list(range(steps))[:: -1 if backwards else 1]
    cuts = cuts_of(reset, backwards)
    valid = valid[..., None]
    x = np.where(valid, x, 0)
    y, records = np.zeros((*x.shape[:2], state[0].shape[-1])), [{}] * steps
    for t in order:
        state = tuple(np.where(cuts[t], i, s) for i, s in zip(initial, state, strict=True))
        h_in = masks["recurrent"] * state[0]
        new, records[t] = CELLS[net.cell][0](net, at_step(w, masks, t), x[t], h_in, *state)
        # Zoneout, Krueger et al. 2017.
        new = [n + k * (s - n) for n, s, k in zip(new, state, kept(masks, t, state), strict=True)]
        records[t] |= {TRACED[s]: n for s, n in zip(net.states, new, strict=True)}
        state = tuple(np.where(valid[t], n, s) for n, s in zip(new, state, strict=True))
        y[t] = np.where(valid[t], new[0], 0)
    return y, state, (net, w, order, valid, masks, records, cuts)


def kept(masks, t, state):
    """The masks of zoneout at a step: for h, for c, and none for others."""
    masks = (masks["zoneout"], masks["zoneout_cell"], 0.0, 0.0)
    return [m if np.ndim(m) == 0 else m[t] for m in masks[: len(state)]]


def at_step(w, masks, t):
    """The weights, and the number that comes with a step, (B, 1), if the cell reads one."""
    return w if masks["attention"] is None else w | {"attention": masks["attention"][t][:, None]}


def d_direction(cache, dy, dstate, grads, clip_step):
    """dy (T, B, P), dstate a tuple of (B, size) -> dx, dstate, dinitial; adds to grads."""
    net, w, order, valid, masks, records, cuts = cache
    dx = np.zeros((*dy.shape[:2], w["weight_ih"].shape[1]))
    dinitial = [0.0] * len(dstate)
    for t in reversed(order):
        passed_by = [np.where(valid[t], 0, d) for d in dstate]
        dnew = [np.where(valid[t], d, 0) for d in dstate]
        dnew[0] = dnew[0] + np.where(valid[t], dy[t], 0)
        dzoned = [d * k for d, k in zip(dnew, kept(masks, t, dnew), strict=True)]
        dnew = [d - z for d, z in zip(dnew, dzoned, strict=True)]
        own = at_step(w, masks, t)
        dx[t], dh_in, dold = CELLS[net.cell][1](net, own, records[t], grads, clip_step, *dnew)
        if masks["attention"] is not None:
            masks["d_attention"][t] += records[t]["_dattention"]
        dold = (dold[0] + masks["recurrent"] * dh_in, *dold[1:])
        dstate = tuple(sum(ds) for ds in zip(dold, passed_by, dzoned, strict=True))
        dinitial = [i + (cuts[t] * d).sum(0) for i, d in zip(dinitial, dstate, strict=True)]
        dstate = tuple(np.where(cuts[t], 0, d) for d in dstate)
    return dx, dstate, dinitial


def select(y, valid, how, backwards):
    """The outputs of one direction that `return_` asks for, and the weights (T, B, P) of each."""
    steps, width = y.shape[0], y.shape[2]
    valid = np.broadcast_to(valid[..., None], y.shape)
    if how == "all":
        return y, None
    if isinstance(how, int):
        return y[how - 1 :: how], None
    weights = np.zeros(y.shape)
    if steps == 0:
        return np.zeros(y.shape[1:]), weights
    if how == "mean":
        weights += valid / np.maximum(valid.sum(0), 1)
    elif how == "last":
        weights[steps - 1 - valid[::-1].argmax(0), *np.ogrid[: y.shape[1], :width]] = 1
    elif how == "max":  # of equal ones the one read last
        best = np.where(valid, y, -np.inf)
        late = best.argmax(0) if backwards else steps - 1 - best[::-1].argmax(0)
        weights[late, *np.ogrid[: y.shape[1], :width]] = 1
    weights *= valid
    return np.where(weights != 0, weights * y, 0).sum(0), weights


def d_select(dy, weights, how, shape):
    if how == "all":
        return dy
    if isinstance(how, int):
        full = np.zeros(shape)
        full[how - 1 :: how] = dy
        return full
    return np.where(weights != 0, weights * dy, 0)


def merge(mode, ys):
    """Outputs of the directions (Keras' Bidirectional)."""
    if len(ys) == 1:
        return ys[0]
    a, b = ys
    if mode == "separate":
        return a, b
    if mode == "concat":
        return np.concatenate(ys, axis=-1)
    return {"sum": a + b, "ave": (a + b) / 2, "mul": a * b}[mode]


def d_merge(mode, ys, dy):
    if len(ys) == 1:
        return [dy]
    a, b = ys
    if mode == "separate":
        return list(dy)
    if mode == "concat":
        return np.split(dy, 2, axis=-1)
    return {"sum": [dy, dy], "ave": [dy / 2, dy / 2], "mul": [dy * b, dy * a]}[mode]


def masks_of(net, layer, d, drawn, attention, d_attention):
    """The masks of direction d of a layer, or what stands for them in a call without."""
    ways = len(net.directions)

    def part(name, default):
        return np.split(drawn[name], ways, axis=-1)[d] if name in drawn else default

    return {
        "dropconnect": drawn["dropconnect"][d] if "dropconnect" in drawn else 1.0,
        "recurrent": drawn["recurrent"][d] if "recurrent" in drawn else 1.0,
        "zoneout": part("zoneout", net.zoneout),
        "zoneout_cell": part("zoneout_cell", net.zoneout_cell),
        "attention": attention,
        "d_attention": d_attention,
    }


def forward(
    net, params, x, state=None, lengths=None, masks=None, *, mask=None, return_="all", reset=None,
    attention=None,
):  # fmt: skip
    """The whole network.

    x (T, B, I). state: a tuple of (L*D, B, size) arrays, or of tuples of (D, B, size) if sizes
    differ; of None, or of arrays that are None, the learned one or zeros; of one row it is that of
    all. reset (T, B): before such steps the state is the learned one or zeros again. lengths (B,)
    or mask (T, B): the valid steps. attention (T, B), if the cell reads it. masks, one dict per
    layer, as a tape has them: dropconnect, a list of arrays like weight_hh; recurrent (D, B, P);
    zoneout (T, B, D*P); zoneout_cell (T, B, D*H); dropout, which multiplies the layer's output.
    Without them zoneout acts by its expectation and nothing is dropped.
    Returns y, the final state, and the cache for `backward`.
    """
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    y = np.asarray(x, np.float64)
    steps, rows, _ = y.shape
    if lengths is not None:
        mask = np.arange(steps)[:, None] < np.asarray(lengths)
    valid = np.ones((steps, rows), bool) if mask is None else np.asarray(mask)
    reset = np.zeros((steps, rows), bool) if reset is None else np.asarray(reset, bool)
    given, learned = starts_of(net, params, state, rows)
    attention = attention if attention is None else np.asarray(attention, np.float64)
    d_attention = np.zeros((steps, rows))
    finals, layers = {}, []
    for k in range(len(net.hidden)):
        drawn = masks[k] if masks else {}
        last = k == len(net.hidden) - 1
        caches, ys = [], []
        for d, way in enumerate(net.directions):
            suffix, backwards = f"_l{k}{way}", bool(way) or net.go_backwards
            w = {n.removesuffix(suffix): v for n, v in params.items() if n.endswith(suffix)}
            own = masks_of(net, k, d, drawn, attention, d_attention)
            if "weight_hh" in w:
                w["weight_hh"] = w["weight_hh"] * own["dropconnect"]
            start = tuple(
                np.broadcast_to(i if g is None else g, (rows, len(i)))
                for g, i in zip(given[suffix], learned[suffix], strict=True)
            )
            y_d, finals[suffix], cache = direction(
                net, w, y, start, valid, backwards, own, reset, learned[suffix]
            )
            chosen, weights = select(y_d, valid, return_ if last else "all", backwards)
            if last and return_ == "final":
                chosen = finals[suffix][0]
            caches.append((suffix, cache, weights, y_d.shape))
            ys.append(chosen)
        y = merge(net.merge_mode, ys)
        dropout = drawn.get("dropout") if not last else None
        y = y if dropout is None else y * dropout
        layers.append((caches, ys, dropout))
    return y, net._joined(finals), (net, params, layers, valid, return_, given)


def starts_of(net, params, state, rows):
    """By direction: the given state, of arrays with as many rows as given or None, and the initial
    state of (size,) arrays: the learned one or zeros."""
    parts, ways = net.state_parts(), len(net.directions)
    state = (None,) * len(parts) if state is None else state
    filled = ([None] * (ways * len(sizes)) if part is None else part
              for part, sizes in zip(state, parts, strict=True))  # fmt: skip
    learned = {}
    for i, suffix in enumerate(net.suffixes):
        sizes = [part[i // ways] for part in parts]
        learned[suffix] = tuple(
            params.get(f"initial_{name}{suffix}", np.zeros(size))
            for name, size in zip(net.states, sizes, strict=True)
        )
    return net._by_direction(filled), learned


def backward(cache, dy, dstate, clip_step=None):
    """Gradients of y and of the final state, shaped as these -> dx, dstate, and grads by name.

    "attention" is among the latter if it is among what the cell reads.
    """
    net, params, layers, _, return_, given = cache
    grads, initial = {name: np.zeros_like(value) for name, value in params.items()}, {}
    dfinal = net._by_direction(dstate)
    for caches, _, _ in layers:
        for _, run, _, _ in caches:
            run[4]["d_attention"][...] = 0
    for k in reversed(range(len(layers))):
        caches, ys, dropout = layers[k]
        dy = dy if dropout is None else dy * dropout
        dx = 0.0
        for (suffix, run, weights, shape), part in zip(
            caches, d_merge(net.merge_mode, ys, dy), strict=True
        ):
            chosen = return_ if k == len(layers) - 1 else "all"
            if chosen == "final":
                dfinal[suffix] = (dfinal[suffix][0] + part, *dfinal[suffix][1:])
                part, chosen = np.zeros(shape), "all"
            part = d_select(part, weights, chosen, shape)
            own = {n.removesuffix(suffix): g for n, g in grads.items() if n.endswith(suffix)}
            d, dstart, dlearned = d_direction(run, part, dfinal[suffix], own, clip_step)
            for name, g, ds, dl in zip(net.states, given[suffix], dstart, dlearned, strict=True):
                if net.learn_initial_state:
                    own[f"initial_{name}"] += dl + (ds.sum(0) if g is None else 0)
            initial[suffix] = tuple(
                d if g is None or len(g) == len(d) else d.sum(0, keepdims=True)
                for g, d in zip(given[suffix], dstart, strict=True)
            )
            if "weight_hh" in own:
                own["weight_hh"] *= run[4]["dropconnect"]
            dx = dx + d
        dy = dx
    if net.attends:
        grads |= {"attention": layers[0][0][0][1][4]["d_attention"].copy()}
    return dy, net._joined(initial), grads


def runs(cache):
    """Per direction of each layer its suffix, its cache and the shape of its output."""
    return [run for caches, _, _ in cache[2] for run in caches]


def trace(cache):
    """Gates by layer and direction as `layer.trace` gives them: {"l0": {"hidden": (T, B, H)}}."""
    valid = cache[3][..., None]
    return {
        suffix[1:]: {
            gate: np.where(valid, np.stack([step[gate] for step in records]), 0)
            for gate in records[0] if not gate.startswith("_")
        }
        for suffix, (*_, records, _), _, _ in runs(cache)
    }  # fmt: skip


def margin(cache):
    """The least distance of anything from where the network is not smooth."""
    net, _, layers, valid, return_, _ = cache
    found = [np.inf]
    for _, (*_, records, _), _, _ in runs(cache):
        for t, step in enumerate(records):
            found += [d[valid[t]].min(initial=np.inf) for d in margins(net, step)]
    if return_ == "max" and len(valid):
        for _, (*_, records, _), _, _ in layers[-1][0]:
            none = np.full(records[0]["hidden"].shape, -1e9)
            steps = [np.where(v[:, None], r["hidden"], none)
                     for v, r in zip(valid, records, strict=True)]  # fmt: skip
            second, best = np.sort([none, *steps], axis=0)[-2:]
            found.append((best - second)[valid.any(0)].min(initial=np.inf))
    return min(found)
