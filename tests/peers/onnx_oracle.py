"""ONNX's LSTM, GRU and RNN in float64 NumPy, written from the text of the operators.

Names of inputs and attributes are ONNX's, layouts as well. Where the text leaves it open, a row of
length 0 passes its state.
"""

import numpy as np

DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Function of x, alpha and beta, and the defaults of those that it has.
FUNCTIONS = {
    "relu": (lambda x, a, b: np.maximum(x, 0),),
    "tanh": (lambda x, a, b: np.tanh(x),),
    "sigmoid": (lambda x, a, b: 1 / (1 + np.exp(-x)),),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), 0.01),
    "thresholdedrelu": (lambda x, a, b: np.where(x > a, x, 0), 1.0),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)), 1.0),
    "softsign": (lambda x, a, b: x / (1 + np.abs(x)),),
    "softplus": (lambda x, a, b: np.logaddexp(0, x),),
}


def functions(operator, ways, activations=None, activation_alpha=(), activation_beta=()):
    """The activations of each direction; numbers go to the functions that have them, in order."""
    alphas, betas = list(activation_alpha), list(activation_beta)
    found = []
    for name in activations or DEFAULTS[operator] * ways:
        f, *defaults = FUNCTIONS[name.lower()]
        a = (alphas.pop(0) if alphas else defaults[0]) if defaults else 0.0
        b = (betas.pop(0) if betas else defaults[1]) if len(defaults) > 1 else 0.0
        found.append(lambda x, f=f, a=a, b=b: f(x, a, b))
    places = len(DEFAULTS[operator])
    return [found[d * places : (d + 1) * places] for d in range(ways)]


def run(operator, inputs, *, direction="forward", layout=0, clip=None, input_forget=0,
        linear_before_reset=0, hidden_size=None, **activations):  # fmt: skip
    """Y, Y_h and for an LSTM Y_c of inputs by ONNX's names."""
    given = {k: np.asarray(v, np.float64) for k, v in inputs.items() if k != "sequence_lens"}
    if layout:
        given |= {k: given[k].swapaxes(0, 1) for k in ("X", "initial_h", "initial_c") if k in given}
    x, w, r = given["X"], given["W"], given["R"]
    steps, rows, ways, hidden = *x.shape[:2], len(w), r.shape[2]
    lengths = inputs.get("sequence_lens", np.full(rows, steps))
    y = np.zeros((steps, ways, rows, hidden))
    zeros = np.zeros((ways, rows, hidden))
    h = given.get("initial_h", zeros).copy()
    c = given.get("initial_c", zeros).copy()
    bias = given.get("B", np.zeros((ways, 2 * w.shape[1])))
    peepholes = given.get("P", np.zeros((ways, 3 * hidden)))

    def bounded(z):
        return z if clip is None else np.clip(z, -clip, clip)

    for d, fs in enumerate(functions(operator, ways, **activations)):
        wb, rb = np.split(bias[d], 2)
        backwards = direction == "reverse" or d == 1
        for b in range(rows):
            order = range(lengths[b])
            for t in reversed(order) if backwards else order:
                xs = np.split(w[d] @ x[t, b] + wb, len(w[d]) // hidden)
                hs = np.split(r[d] @ h[d, b] + rb, len(w[d]) // hidden)
                if operator == "RNN":
                    h[d, b] = fs[0](bounded(xs[0] + hs[0]))
                elif operator == "GRU":
                    z, q = (fs[0](bounded(xs[k] + hs[k])) for k in (0, 1))
                    inner = q * hs[2]
                    if not linear_before_reset:
                        inner = r[d][2 * hidden :] @ (q * h[d, b]) + rb[2 * hidden :]
                    h[d, b] = (1 - z) * fs[1](bounded(xs[2] + inner)) + z * h[d, b]
                else:
                    pi, po, pf = np.split(peepholes[d], 3)
                    i = fs[0](bounded(xs[0] + hs[0] + pi * c[d, b]))
                    f = fs[0](bounded(xs[2] + hs[2] + pf * c[d, b]))
                    f = 1 - i if input_forget else f
                    c[d, b] = f * c[d, b] + i * fs[1](bounded(xs[3] + hs[3]))
                    o = fs[0](bounded(xs[1] + hs[1] + po * c[d, b]))
                    h[d, b] = o * fs[2](c[d, b])
                y[t, d, b] = h[d, b]
    found = [y, h, c][: 3 if operator == "LSTM" else 2]
    if layout:
        found = [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in found[1:])]
    return found
