"""One time step of the recurrent cells in float64 NumPy, written from the equations.

A cell is a pair of functions over B rows, for one direction with weights `w` (names without suffix)
and the options `o` of a `reference.Network`:

    state, step = cell(o, w, x, h_in, *state)
    dx, dh_in, dstate = d_cell(o, w, step, grads, clip_step, *dstate)

h_in is h_{t-1} under the recurrent dropout's mask; dstate of the second line is what bypasses it.
`step` holds the gates by name, "<gate>_preactivation" before the clip, and after an underscore what
only the second function needs. d_cell adds to `grads`, whose names are those of `w`. Layouts and
gate orders are PyTorch's.
"""

import numpy as np

# name: function, derivative (one-sided at a kink as the layers promise), default alpha and beta,
# kinks: where the first or second derivative jumps.
ACTIVATIONS = {
    "tanh": (
        lambda x, a, b: np.tanh(x), lambda x, a, b: 1 - np.tanh(x) ** 2,
        1.0, 0.0, lambda a, b: (),
    ),
    "sigmoid": (
        lambda x, a, b: np.exp(-np.logaddexp(0, -x)),
        lambda x, a, b: np.exp(-np.logaddexp(0, -x) - np.logaddexp(0, x)),
        1.0, 0.0, lambda a, b: (),
    ),
    "relu": (
        lambda x, a, b: np.maximum(x, 0), lambda x, a, b: x > 0,
        1.0, 0.0, lambda a, b: (0,),
    ),
    "affine": (
        lambda x, a, b: a * x + b, lambda x, a, b: np.full_like(x, a),
        1.0, 0.0, lambda a, b: (),
    ),
    "leakyrelu": (
        lambda x, a, b: np.where(x > 0, x, a * x), lambda x, a, b: np.where(x > 0, 1, a),
        0.01, 0.0, lambda a, b: (0,),
    ),
    "thresholdedrelu": (
        lambda x, a, b: np.where(x > a, x, 0), lambda x, a, b: x > a,
        1.0, 0.0, lambda a, b: (a,),
    ),
    "scaledtanh": (
        lambda x, a, b: a * np.tanh(b * x), lambda x, a, b: a * b * (1 - np.tanh(b * x) ** 2),
        1.0, 1.0, lambda a, b: (),
    ),
    "hardsigmoid": (
        lambda x, a, b: np.clip(a * x + b, 0, 1),
        lambda x, a, b: np.where((a * x + b > 0) & (a * x + b < 1), a, 0),
        0.2, 0.5, lambda a, b: (-b / a, (1 - b) / a),
    ),
    "elu": (
        lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))),
        lambda x, a, b: np.where(x >= 0, 1, a * np.exp(np.minimum(x, 0))),
        1.0, 0.0, lambda a, b: (0,),
    ),
    "softsign": (
        lambda x, a, b: x / (1 + np.abs(x)), lambda x, a, b: (1 + np.abs(x)) ** -2.0,
        1.0, 0.0, lambda a, b: (0,),
    ),
    "softplus": (
        lambda x, a, b: np.logaddexp(0, x), lambda x, a, b: np.exp(-np.logaddexp(0, -x)),
        1.0, 0.0, lambda a, b: (),
    ),
}  # fmt: skip
KERAS = {"hard_sigmoid_keras2": (0.2, 0.5), "hard_sigmoid_keras3": (1 / 6, 1 / 2)}
EPS = {"haste": 1e-5, "tflite": 1e-8}  # added to the variance


def activation(given):
    """A name, or a tuple of it with alpha and beta -> name as in ACTIVATIONS, alpha, beta."""
    name, *numbers = (given,) if isinstance(given, str) else given
    name = name.lower()
    if name in KERAS:
        return ("hardsigmoid", *KERAS[name])
    defaults = ACTIVATIONS[name][2:4]
    return (name, *numbers, *defaults[len(numbers) :])


def parts(a, count):
    """Equal parts side by side in the last axis."""
    size = a.shape[-1] // count
    return [a[..., k * size : (k + 1) * size] for k in range(count)]


def act(o, gate, a):
    name, alpha, beta = o.activation_of[gate]
    return ACTIVATIONS[name][0](a, alpha, beta)


def d_act(o, gate, a):
    name, alpha, beta = o.activation_of[gate]
    return ACTIVATIONS[name][1](a, alpha, beta)


def clamp(a, bound):
    return a if bound is None else np.clip(a, -bound, bound)


def inside(a, bound):
    """Derivative of the clamp: 1 inside and at the bounds."""
    return 1.0 if bound is None else np.abs(a) <= bound


def d_gate(o, step, gate, dgate, clip_step):
    """From the gradient of an activated gate to that of its pre-activation.

    Graves, "Generating sequences with recurrent neural networks" (2013) clips the latter.
    """
    a = step[gate + "_preactivation"]
    return clamp(dgate * d_act(o, gate, clamp(a, o.clip)) * inside(a, o.clip), clip_step)


def norm(v, gain, eps):
    """Layer normalisation (Ba, Kiros and Hinton 2016) with the biased variance, without bias."""
    centred = v - v.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * inverse * gain, (centred * inverse, inverse, gain)


def d_norm(cache, d):
    """Gradients of v and gain."""
    unit, inverse, gain = cache
    dunit = d * gain
    mean, along = dunit.mean(-1, keepdims=True), (dunit * unit).mean(-1, keepdims=True)
    return inverse * (dunit - mean - unit * along), (d * unit).sum(0)


def sums(o, w, x, h_in):
    """What the gates get from input and state, (B, G*H) each.

    W x + b_ih and U h + b_hh; Haste normalises each product before its bias. With TFLite's layer
    norm the biases belong to the gates' norm and are not added here. IndRNN (Li et al. 2018): U is
    diagonal, a vector.
    """
    ax = x @ w["weight_ih"].T
    ah = h_in * w["weight_hh"] if w["weight_hh"].ndim == 1 else h_in @ w["weight_hh"].T
    norms = ()
    if o.layer_norm == "haste":
        ax, norm_x = norm(ax, w["weight_ln_ih"], EPS["haste"])
        ah, norm_h = norm(ah, w["weight_ln_hh"], EPS["haste"])
        norms = (norm_x, norm_h)
    if o.layer_norm != "tflite":
        ax, ah = ax + w.get("bias_ih", 0), ah + w.get("bias_hh", 0)
    return ax, ah, (x, h_in, norms)


def d_sums(o, w, cache, grads, dax, dah):
    """Gradients of x and h_in."""
    x, h_in, norms = cache
    if o.layer_norm != "tflite":
        add(grads, "bias_ih", dax.sum(0))
        add(grads, "bias_hh", dah.sum(0))
    if norms:
        dax, dgain_x = d_norm(norms[0], dax)
        dah, dgain_h = d_norm(norms[1], dah)
        grads["weight_ln_ih"] += dgain_x
        grads["weight_ln_hh"] += dgain_h
    grads["weight_ih"] += dax.T @ x
    if w["weight_hh"].ndim == 1:
        grads["weight_hh"] += (dah * h_in).sum(0)
        return dax @ w["weight_ih"], dah * w["weight_hh"]
    grads["weight_hh"] += dah.T @ h_in
    return dax @ w["weight_ih"], dah @ w["weight_hh"]


def add(grads, name, value):
    """Add to the gradient of a parameter that there may not be."""
    if name in grads:
        grads[name] += value


def by_name(names, stacked):
    return dict(zip(names, parts(stacked, len(names)), strict=True))


def rnn(o, w, x, h_in, h):
    """Elman 1990: h' = act(W x + U h)."""
    ax, ah, cache = sums(o, w, x, h_in)
    h_new = act(o, "hidden", clamp(ax + ah, o.clip))
    return (h_new,), {"hidden": h_new, "hidden_preactivation": ax + ah, "_sums": cache}


def d_rnn(o, w, step, grads, clip_step, dh):
    da = d_gate(o, step, "hidden", dh, clip_step)
    return *d_sums(o, w, step["_sums"], grads, da, da), (np.zeros_like(dh),)


def gru(o, w, x, h_in, h):
    """Cho et al. 2014: h' = (1 - z) n + z h, n = act(W_n x + U_n (r h)).

    Reset after the product, as in cuDNN: n = act(W_n x + r (U_n h + b_hn)).
    """
    z, n, step = gru_gates(o, w, x, h_in, h)
    return ((1 - z) * n + z * h,), step


def gru_gates(o, w, x, h_in, h):
    ax, ah, cache = sums(o, w, x, h_in)
    (xr, xz, xn), (hr, hz, hn) = parts(ax, 3), parts(ah, 3)
    r = act(o, "reset", clamp(xr + hr, o.clip))
    if o.reset_after:
        an = xn + r * hn
    else:
        (*_, u), (*_, b) = np.split(w["weight_hh"], 3), np.split(w.get("bias_hh", np.zeros(3)), 3)
        an = xn + (r * h_in) @ u.T + b
    z, n = act(o, "update", clamp(xz + hz, o.clip)), act(o, "candidate", clamp(an, o.clip))
    step = {"reset": r, "update": z, "candidate": n, "reset_preactivation": xr + hr,
            "update_preactivation": xz + hz, "candidate_preactivation": an}  # fmt: skip
    return z, n, step | {"_sums": cache, "_hn": hn, "_h": h}


def d_gru(o, w, step, grads, clip_step, dh):
    z, n = step["update"], step["candidate"]
    dz, dn = dh * (step["_h"] - n), dh * (1 - z)
    return *d_gru_gates(o, w, step, grads, clip_step, dz, dn), (dh * z,)


def d_gru_gates(o, w, step, grads, clip_step, dz, dn):
    r = step["reset"]
    dan = d_gate(o, step, "candidate", dn, clip_step)
    daz = d_gate(o, step, "update", dz, clip_step)
    if o.reset_after:
        dr, dhn, dh_reset = dan * step["_hn"], dan * r, 0.0
    else:
        h_in, hidden = step["_sums"][1], r.shape[-1]
        drh = dan @ w["weight_hh"][2 * hidden :]
        grads["weight_hh"][2 * hidden :] += dan.T @ (r * h_in)
        if "bias_hh" in w:  # beside what d_sums adds to bias_ih
            grads["bias_hh"][2 * hidden :] += dan.sum(0)
        dr, dhn, dh_reset = drh * h_in, np.zeros_like(dan), drh * r
    dar = d_gate(o, step, "reset", dr, clip_step)
    dax, dah = (np.concatenate((dar, daz, d), axis=-1) for d in (dan, dhn))
    dx, dh_in = d_sums(o, w, step["_sums"], grads, dax, dah)
    return dx, dh_in + dh_reset


def augru(o, w, x, h_in, h):
    """A GRU whose update gate is scaled, as oneDNN does: h' = (1 - u) n + u h, u = (1 - a) z."""
    z, n, step = gru_gates(o, w, x, h_in, h)
    u = (1 - w["attention"]) * z
    return ((1 - u) * n + u * h,), step


def d_augru(o, w, step, grads, clip_step, dh):
    z, n, rest = step["update"], step["candidate"], 1 - w["attention"]
    du = dh * (step["_h"] - n)
    step["_dattention"] = -(du * z).sum(-1)
    dn = dh * (1 - rest * z)
    return *d_gru_gates(o, w, step, grads, clip_step, du * rest, dn), (dh * rest * z,)


def x_sums(o, w, x):
    """What gates get that see x alone."""
    return by_name(o.gates, x @ w["weight_ih"].T + w.get("bias_ih", 0))


def d_x_sums(o, w, x, grads, ds):
    d = np.concatenate([ds[name] for name in o.gates], axis=-1)
    add(grads, "bias_ih", d.sum(0))
    grads["weight_ih"] += d.T @ x
    return d @ w["weight_ih"]


def mingru(o, w, x, h_in, h):
    """Feng et al. 2024, section 3.1: h' = (1 - z) h + z g."""
    step = {f"{name}_preactivation": a for name, a in x_sums(o, w, x).items()}
    step |= {g: act(o, g, clamp(step[f"{g}_preactivation"], o.clip)) for g in o.gates}
    z, g = step["update"], step["candidate"]
    return ((1 - z) * h + z * g,), step | {"_x": x, "_h": h}


def d_mingru(o, w, step, grads, clip_step, dh):
    z, g = step["update"], step["candidate"]
    ds = {
        "update": d_gate(o, step, "update", dh * (g - step["_h"]), clip_step),
        "candidate": d_gate(o, step, "candidate", dh * z, clip_step),
    }
    return d_x_sums(o, w, step["_x"], grads, ds), np.zeros_like(dh), (dh * (1 - z),)


def minlstm(o, w, x, h_in, h):
    """Feng et al. 2024, section 3.2: h' = f / (f + i) h + i / (f + i) g."""
    step = {f"{name}_preactivation": a for name, a in x_sums(o, w, x).items()}
    step |= {g: act(o, g, clamp(step[f"{g}_preactivation"], o.clip)) for g in o.gates}
    i, f, g = (step[name] for name in o.gates)
    return (f / (f + i) * h + i / (f + i) * g,), step | {"_x": x, "_h": h}


def d_minlstm(o, w, step, grads, clip_step, dh):
    i, f, g, h = (step[name] for name in (*o.gates, "_h"))
    df = dh * (h - g) * i / (f + i) ** 2
    di = dh * (g - h) * f / (f + i) ** 2
    ds = {
        "input": d_gate(o, step, "input", di, clip_step),
        "forget": d_gate(o, step, "forget", df, clip_step),
        "candidate": d_gate(o, step, "candidate", dh * i / (f + i), clip_step),
    }
    return d_x_sums(o, w, step["_x"], grads, ds), np.zeros_like(dh), (dh * f / (f + i),)


def slstm(o, w, x, h_in, h, c, n, m):
    """Beck et al. 2024, equations 8 to 17: exponential gates, normaliser n, stabiliser m."""
    w = whole(o, w)
    ax, ah, cache = sums(o, w, x, h_in)
    a = by_name(o.gates, ax + ah)
    step = {f"{name}_preactivation": v for name, v in a.items()}
    a = {name: clamp(v, o.clip) for name, v in a.items()}
    log_f = a["forget"] if o.forget_gate == "exp" else -np.logaddexp(0, -a["forget"])
    m_new = np.where(n == 0, a["input"], np.maximum(a["input"], log_f + m))
    i, f = np.exp(a["input"] - m_new), np.exp(np.minimum(log_f + m - m_new, 80))
    z, out = np.tanh(a["candidate"]), np.exp(-np.logaddexp(0, -a["output"]))
    c_new, n_new = f * c + i * z, f * n + i
    step |= {"input": i, "forget": f, "candidate": z, "output": out}
    step |= {"_sums": cache, "_a": a, "_old": (c, n), "_new": (c_new, n_new)}
    step["_kink"] = np.where(n == 0, 1e9, np.abs(a["input"] - log_f - m))
    step["_i_larger"] = (n == 0) | (a["input"] > log_f + m)
    return (out * c_new / n_new, c_new, n_new, m_new), step


def d_slstm(o, w, step, grads, clip_step, dh, dc, dn, dm):
    i, f, z, out = (step[name] for name in o.gates)
    (c, n), (c_new, n_new) = step["_old"], step["_new"]
    dc = dc + dh * out / n_new
    dn = dn - dh * out * c_new / n_new**2
    dlog_i, dlog_f = (dc * z + dn) * i, (dc * c + dn * n) * f  # through i and f, m_new held
    dm = dm - dlog_i - dlog_f
    dlog_i, dlog_f = dlog_i + dm * step["_i_larger"], dlog_f + dm * ~step["_i_larger"]
    a = step["_a"]
    slope = 1.0 if o.forget_gate == "exp" else np.exp(-np.logaddexp(0, a["forget"]))
    ds = {
        "input": dlog_i, "forget": dlog_f * slope, "candidate": dc * i * (1 - z**2),
        "output": dh * c_new / n_new * out * (1 - out),
    }  # fmt: skip
    ds = {
        name: clamp(d * inside(step[name + "_preactivation"], o.clip), clip_step)
        for name, d in ds.items()
    }
    stacked = np.concatenate([ds[name] for name in o.gates], axis=-1)
    own = grads | {"weight_hh": np.zeros_like(whole(o, w)["weight_hh"])}
    dx, dh_in = d_sums(o, whole(o, w), step["_sums"], own, stacked, stacked)
    grads["weight_hh"] += blocks(o, own["weight_hh"])
    return dx, dh_in, (np.zeros_like(dh), dc * f, dn * f, dlog_f)


def whole(o, w):
    """The weights with all of the recurrent matrix, zeros outside of its diagonal blocks."""
    u = w["weight_hh"]
    full = np.zeros((len(u), u.shape[1] * o.num_heads))
    for row, values in enumerate(u):
        head = row % full.shape[1] // u.shape[1]
        full[row, head * u.shape[1] : (head + 1) * u.shape[1]] = values
    return w | {"weight_hh": full}


def blocks(o, full):
    """The diagonal blocks of a matrix, one below the other for each gate."""
    size = full.shape[1] // o.num_heads
    heads = np.arange(len(full)) % full.shape[1] // size
    return np.stack([row[h * size : (h + 1) * size] for row, h in zip(full, heads, strict=True)])


def lstm_parts(o, w):
    """Gate names in the weights' order, and by gate name the peepholes and TFLite's layer norm."""
    names = [name for name in o.gates if name != "forget" or not o.coupled]
    watched = [g for g in names if g != "candidate"]
    peep = by_name(watched, w["weight_peephole"]) if "weight_peephole" in w else {}
    if o.layer_norm != "tflite":
        return names, peep, None, None
    bias = w.get("bias_ih", 0) + w.get("bias_hh", 0) + np.zeros_like(w["weight_ln"])
    return names, peep, by_name(names, w["weight_ln"]), by_name(names, bias)


def lstm(o, w, x, h_in, h, c):
    """Hochreiter and Schmidhuber 1997, Gers et al. 2000: c' = f c + i g, h' = o tanh(c').

    Peepholes: Gers, Schraudolph and Schmidhuber 2002. f = 1 - i: Greff et al. 2017. Projection:
    Sak, Senior and Beaufays 2014. Layer norm: the forms of Haste and of TensorFlow Lite.
    """
    names, peep, gain, bias = lstm_parts(o, w)
    ax, ah, cache = sums(o, w, x, h_in)
    s, step = by_name(names, ax + ah), {"_sums": cache}

    def gate(name, c_seen):
        a = s[name] + peep.get(name, 0) * c_seen
        if gain:
            a, step["_norm_" + name] = norm(a, gain[name], EPS["tflite"])
            a = a + bias[name]
        step[name + "_preactivation"] = a
        step[name] = act(o, name, clamp(a, o.clip))
        return step[name]

    i = gate("input", c)
    f = 1 - i if o.coupled else gate("forget", c)
    raw = f * c + i * gate("candidate", 0.0)
    c_new = u = clamp(raw, o.cell_clip)
    if o.layer_norm == "haste":
        u, step["_norm_cell"] = norm(c_new, w["weight_ln_c"], EPS["haste"])
        u = u + w["bias_ln_c"]
    h_new = step["_wide"] = gate("output", c_new) * act(o, "cell", u)
    if "weight_hr" in w:
        h_new = h_new @ w["weight_hr"].T
    return (h_new, c_new), step | {"forget": f, "_c": c, "_raw": raw, "_c_new": c_new, "_u": u}


def d_lstm(o, w, step, grads, clip_step, dh, dc):
    names, peep, _, _ = lstm_parts(o, w)
    dpeep, dgain, dbias, ds = {}, {}, {}, {}

    def gate(name, dgate, c_seen):
        """Gradient of the cell state that the gate saw."""
        d = d_gate(o, step, name, dgate, clip_step)
        dbias[name] = d.sum(0)
        if o.layer_norm == "tflite":
            d, dgain[name] = d_norm(step["_norm_" + name], d)
        ds[name] = d
        dpeep[name] = (d * c_seen).sum(0)
        return d * peep.get(name, 0)

    i, f, g, c, u = (step[k] for k in ("input", "forget", "candidate", "_c", "_u"))
    dwide = dh
    if "weight_hr" in w:
        dwide = dh @ w["weight_hr"]
        grads["weight_hr"] += dh.T @ step["_wide"]
    du = dwide * step["output"] * d_act(o, "cell", u)
    if o.layer_norm == "haste":
        grads["bias_ln_c"] += du.sum(0)
        du, dgain_c = d_norm(step["_norm_cell"], du)
        grads["weight_ln_c"] += dgain_c
    dc = dc + du + gate("output", dwide * act(o, "cell", u), step["_c_new"])
    dc = dc * inside(step["_raw"], o.cell_clip)
    gate("candidate", dc * i, 0.0)
    dc_old = dc * f
    if o.coupled:
        dc_old = dc_old + gate("input", dc * (g - c), c)
    else:
        dc_old = dc_old + gate("input", dc * g, c) + gate("forget", dc * c, c)

    def stacked(parts, chosen=names):
        return np.concatenate([parts[name] for name in chosen], axis=-1)

    if peep:
        grads["weight_peephole"] += stacked(dpeep, list(peep))
    if dgain:
        grads["weight_ln"] += stacked(dgain)
        add(grads, "bias_ih", stacked(dbias))
        add(grads, "bias_hh", stacked(dbias))
    dx, dh_in = d_sums(o, w, step["_sums"], grads, stacked(ds), stacked(ds))
    return dx, dh_in, (np.zeros_like(dh), dc_old)


CELLS = {
    "rnn": (rnn, d_rnn),
    "gru": (gru, d_gru),
    "augru": (augru, d_augru),
    "mingru": (mingru, d_mingru),
    "minlstm": (minlstm, d_minlstm),
    "slstm": (slstm, d_slstm),
    "lstm": (lstm, d_lstm),
}


def margins(o, step):
    """Distances of everything in a step from where it is not smooth: arrays of (B, H)."""
    for gate, (name, alpha, beta) in o.activation_of.items():
        a = step["_u"] if gate == "cell" else step.get(gate + "_preactivation")
        if a is None:  # a forget gate that is 1 - i
            continue
        if gate != "cell":
            if o.clip is not None:
                yield np.abs(np.abs(a) - o.clip)
            a = clamp(a, o.clip)
        for kink in ACTIVATIONS[name][4](alpha, beta):
            yield np.abs(a - kink)
    if "_kink" in step:
        yield step["_kink"]
    if o.cell_clip is not None:
        yield np.abs(np.abs(step["_raw"]) - o.cell_clip)
