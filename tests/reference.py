"""The recurrent layers in float64 NumPy, written from the equations: the oracle of the tests.

A cell is a pair of functions over one time step of B rows:

    state, cache = cell(ax, ah, *state)            ax = W x + b_ih,  ah = R h + b_hh,  (B, G*H) each
    dax, dah, dstate = d_cell(cache, *dstate)      dstate: only what bypasses ah

Everything else (products, time, directions, layers) is the same for all cells. Layouts, names and
gate orders are PyTorch's: LSTM i, f, g, o; GRU r, z, n with the reset gate applied after the
product. A cache holds the step's gates by name, as `layer.trace` reports them.
"""

import itertools

import numpy as np


def sigmoid(a):
    return np.exp(-np.logaddexp(0.0, -a))


def lstm(ax, ah, h, c):
    """Hochreiter & Schmidhuber 1997, Gers et al. 2000: c' = f c + i g, h' = o tanh(c')."""
    i, f, g, o = np.split(ax + ah, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_new = f * c + i * g
    h_new = o * np.tanh(c_new)
    gates = {"input": i, "forget": f, "candidate": g, "output": o, "cell": c_new, "hidden": h_new}
    return (h_new, c_new), gates | {"c_prev": c}


def d_lstm(cache, dh, dc):
    i, f, g, o = (cache[gate] for gate in ("input", "forget", "candidate", "output"))
    u = np.tanh(cache["cell"])
    do = dh * u
    dc = dc + dh * o * (1 - u * u)
    da = (dc * g * i * (1 - i), dc * cache["c_prev"] * f * (1 - f), dc * i * (1 - g * g),
          do * o * (1 - o))  # fmt: skip
    da = np.concatenate(da, axis=-1)
    return da, da, (np.zeros_like(dh), dc * f)


def gru(ax, ah, h):
    """Cho et al. 2014, reset after the product: n = tanh(ax_n + r ah_n), h' = (1 - z) n + z h."""
    (xr, xz, xn), (hr, hz, hn) = np.split(ax, 3, axis=-1), np.split(ah, 3, axis=-1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    h_new = (1 - z) * n + z * h
    gates = {"reset": r, "update": z, "candidate": n, "hidden": h_new}
    return (h_new,), gates | {"hn": hn, "h_prev": h}


def d_gru(cache, dh):
    r, z, n = cache["reset"], cache["update"], cache["candidate"]
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * cache["hn"] * r * (1 - r)
    dz = dh * (cache["h_prev"] - n) * z * (1 - z)
    dax = np.concatenate((dr, dz, dn), axis=-1)
    dah = np.concatenate((dr, dz, dn * r), axis=-1)
    return dax, dah, (dh * z,)


def rnn_tanh(ax, ah, h):
    """Elman 1990: h' = tanh(ax + ah)."""
    h_new = np.tanh(ax + ah)
    return (h_new,), {"hidden": h_new}


def d_rnn_tanh(cache, dh):
    da = dh * (1 - cache["hidden"] ** 2)
    return da, da, (np.zeros_like(dh),)


def rnn_relu(ax, ah, h):
    """h' = max(ax + ah, 0)."""
    h_new = np.maximum(ax + ah, 0)
    return (h_new,), {"hidden": h_new, "preactivation": ax + ah}


def d_rnn_relu(cache, dh):
    da = dh * (cache["hidden"] > 0)
    return da, da, (np.zeros_like(dh),)


CELLS = {
    "rnn_tanh": (rnn_tanh, d_rnn_tanh),
    "rnn_relu": (rnn_relu, d_rnn_relu),
    "gru": (gru, d_gru),
    "lstm": (lstm, d_lstm),
}


def direction(cell, params, suffix, x, state, lengths):
    """One direction of one layer: x (T, B, I), state of (B, H) arrays -> y (T, B, H), state, cache.

    The reverse direction walks from T-1 to 0; steps beyond a row's length leave its state alone,
    so that each row starts at its own last valid step.
    """
    weight_ih, weight_hh = params["weight_ih" + suffix], params["weight_hh" + suffix]
    bias_ih, bias_hh = params.get("bias_ih" + suffix, 0.0), params.get("bias_hh" + suffix, 0.0)
    steps, rows, _ = x.shape
    order = list(range(steps))[:: -1 if suffix.endswith("_reverse") else 1]
    valid = np.arange(steps)[:, None, None] < lengths[:, None]  # (T, B, 1)
    x = np.where(valid, x, 0)
    y = np.zeros((steps, rows, weight_hh.shape[1]))
    caches, h_prev = [{}] * steps, np.zeros_like(y)
    for t in order:
        h_prev[t] = state[0]
        ax, ah = x[t] @ weight_ih.T + bias_ih, state[0] @ weight_hh.T + bias_hh
        new, caches[t] = CELLS[cell][0](ax, ah, *state)
        state = tuple(np.where(valid[t], n, s) for n, s in zip(new, state, strict=True))
        y[t] = np.where(valid[t], new[0], 0)
    return y, state, (cell, params, suffix, x, order, valid, caches, h_prev)


def d_direction(cache, dy, dstate, grads):
    """dy (T, B, H), dstate a tuple of (B, H) -> dx, dstate; adds to grads."""
    cell, params, suffix, x, order, valid, caches, h_prev = cache
    weight_ih, weight_hh = params["weight_ih" + suffix], params["weight_hh" + suffix]
    dx = np.zeros_like(x)
    for t in reversed(order):
        passed_by = tuple(np.where(valid[t], 0, d) for d in dstate)
        dnew = [np.where(valid[t], d, 0) for d in dstate]
        dnew[0] = dnew[0] + np.where(valid[t], dy[t], 0)
        dax, dah, dold = CELLS[cell][1](caches[t], *dnew)
        dold = (dold[0] + dah @ weight_hh, *dold[1:])
        dstate = tuple(d + p for d, p in zip(dold, passed_by, strict=True))
        dx[t] = dax @ weight_ih
        grads["weight_ih" + suffix] += dax.T @ x[t]
        grads["weight_hh" + suffix] += dah.T @ h_prev[t]
        if "bias_ih" + suffix in grads:
            grads["bias_ih" + suffix] += dax.sum(axis=0)
            grads["bias_hh" + suffix] += dah.sum(axis=0)
    return dx, dstate


def suffixes(params):
    """Per layer, the suffixes of its directions: [["_l0", "_l0_reverse"], ["_l1", ...], ...]."""
    names = [n.removeprefix("weight_ih") for n in params if n.startswith("weight_ih")]
    layers = [n for n in names if not n.endswith("_reverse")]
    return [[s for s in (layer, layer + "_reverse") if s in names] for layer in layers]


def forward(cell, params, x, state=None, lengths=None, masks=None):
    """The whole network.

    x (T, B, I); state a tuple of (L*D, B, H), zeros if None; lengths (B,), all T if None;
    masks, one (T, B, D*H) array for every layer but the last, multiplies that layer's output.
    Returns y (T, B, D*H), the final state, and the cache for `backward`.
    """
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    y = np.asarray(x, np.float64)
    steps, rows, _ = y.shape
    layers = suffixes(params)
    names = list(itertools.chain(*layers))
    if state is None:
        zeros = np.zeros((len(names), rows, params["weight_hh_l0"].shape[1]))
        state = (zeros, zeros) if cell == "lstm" else (zeros,)
    lengths = np.full(rows, steps) if lengths is None else np.asarray(lengths)
    finals, caches = [], {}
    for depth, layer in enumerate(layers):
        x, ys = (y if depth == 0 or masks is None else y * masks[depth - 1]), []
        for suffix in layer:
            initial = tuple(np.asarray(s, np.float64)[names.index(suffix)] for s in state)
            y, final, caches[suffix] = direction(cell, params, suffix, x, initial, lengths)
            ys.append(y)
            finals.append(final)
        y = np.concatenate(ys, axis=-1)
    return y, tuple(np.stack(s) for s in zip(*finals, strict=True)), (params, masks, caches)


def backward(cache, dy, dstate):
    """dy (T, B, D*H), dstate a tuple of (L*D, B, H) -> dx, dstate, and grads by name."""
    params, masks, caches = cache
    layers = suffixes(params)
    names = list(itertools.chain(*layers))
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    initial = {}
    for depth in reversed(range(len(layers))):
        dx = 0.0
        for suffix, part in zip(layers[depth], np.split(dy, len(layers[0]), axis=-1), strict=True):
            dfinal = tuple(d[names.index(suffix)] for d in dstate)
            d, initial[suffix] = d_direction(caches[suffix], part, dfinal, grads)
            dx = dx + d
        dy = dx if depth == 0 or masks is None else dx * masks[depth - 1]
    return dy, tuple(np.stack(s) for s in zip(*(initial[n] for n in names), strict=True)), grads


def trace(cache):
    """Gates by layer and direction as `layer.trace` gives them: {"l0": {"hidden": (T, B, H)}}."""
    _, _, caches = cache
    private = ("c_prev", "hn", "h_prev", "preactivation")
    return {
        suffix[1:]: {
            gate: np.stack([step[gate] for step in steps])
            for gate in steps[0] if gate not in private
        }
        for suffix, (_, _, _, _, _, _, steps, _) in caches.items()
    }  # fmt: skip
