"""Options that make no sense or contradict each other: errors that name the arguments."""

import itertools
import re

import numpy as np
import pytest
from helpers import LAYERS, assert_same_bits, problem, refused

import cylstm

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)

# cell or None for every, sizes, options, the two arguments that the message names
CONTRADICTIONS = [
    (None, (2, 4, 2), {"variational": True}, "dropout"),
    (None, (2, 4, 2), {"variational": True, "dropout": 0.0}, "dropout"),
    *[(None, (2, 4), {"merge_mode": mode}, "bidirectional")
      for mode in ("sum", "mul", "ave", "separate")],
    (None, (2, 4, 2), {"merge_mode": "separate", "bidirectional": True}, "num_layers"),
    (None, (2, (4, 5)), {"merge_mode": "separate", "bidirectional": True}, "num_layers"),
    (None, (2, 4), {"go_backwards": True, "bidirectional": True}, "bidirectional"),
    (None, (2, (4, 5), 3), {"hidden_size": None}, "num_layers"),
    (None, (2, (4, 5, 6), 2), {"hidden_size": None}, "num_layers"),
    ("rnn_tanh", (2, 4), {"independent": True, "dropconnect": 0.5}, "dropconnect"),
    ("gru", (2, 4), {"layer_norm": "haste", "reset_after": False}, "reset_after"),
    ("lstm", (2, 4), {"proj_size": 4}, "hidden_size"),
    ("lstm", (2, 4), {"proj_size": 5}, "hidden_size"),
    ("lstm", (2, (6, 4)), {"proj_size": 4}, "hidden_size"),
    ("lstm", (2, 4), {"forget_bias": 1.0, "bias": False}, "bias"),
    ("lstm", (2, 4), {"forget_bias": 1.0, "coupled": True}, "coupled"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "sizes", "options", "other"),
    [(c, *rest) for cell, *rest in CONTRADICTIONS for c in ([cell] if cell else CELLS)],
    ids=lambda v: str(v).replace(" ", ""),
)
def test_contradictions_name_both(cell, sizes, options, other):
    name = next(iter(options))
    options = {n: v for n, v in options.items() if v is not None}
    with pytest.raises(ValueError) as caught:
        LAYERS[cell](*sizes, **options)
    for word in (name, other):
        assert re.search(rf"\b{word}\b", str(caught.value)), str(caught.value)


PROBABILITY = [
    (-0.1, ValueError, "-0.1"),
    (1.0, ValueError, "1.0"),
    (1.5, ValueError, "1.5"),
    (np.nan, ValueError, "nan"),
    ("0.5", TypeError, "0.5"),
    (None, TypeError, "None"),
    (True, TypeError, "True"),
]
BOUND = [
    (0, ValueError, "0"),
    (-1.0, ValueError, "-1"),
    (np.nan, ValueError, "nan"),
    ("1", TypeError, "1"),
    (True, TypeError, "True"),
]
FLAG = [("no", TypeError, "no"), (2, TypeError, "2"), (None, TypeError, "None")]
WORD = [("none", ValueError, "none"), (1, (TypeError, ValueError), "1")]
ACTIVATION = [
    ("gelu", ValueError, "gelu"),
    (None, (TypeError, ValueError), "None"),
    ((), (TypeError, ValueError), "()"),
    (("Elu", np.nan), ValueError, "nan"),
    (("Elu", "1"), TypeError, "1"),
    (("HardSigmoid", 1, 2, 3), ValueError, "3"),
    ((0.5, "Elu"), (TypeError, ValueError), "0.5"),
]
SIZES = [
    ((), ValueError, "()"),
    ((4, 0), ValueError, "0"),
    ((4, -1), ValueError, "-1"),
    ((4, 2.0), TypeError, "2.0"),
    ((4, True), TypeError, "True"),
    (((4,),), TypeError, "(4,)"),
    ("45", TypeError, "4"),
    ({4: 5}, TypeError, "4"),
]
BAD = {
    None: {
        "variational": FLAG,
        "recurrent_dropout": PROBABILITY,
        "zoneout": PROBABILITY,
        "dropconnect": PROBABILITY,
        "clip": BOUND,
        "merge_mode": [*WORD, (None, (TypeError, ValueError), "None")],
        "go_backwards": FLAG,
        "hidden_size": SIZES,
    },
    "lstm": {
        "proj_size": [(-1, ValueError, "-1"), (1.0, TypeError, "1.0"), (True, TypeError, "True")],
        "peepholes": FLAG,
        "coupled": FLAG,
        "cell_clip": BOUND,
        "layer_norm": [*WORD, (True, (TypeError, ValueError), "True")],
        "zoneout_cell": PROBABILITY,
        "activations": [
            ("tanh", (TypeError, ValueError), "tanh"),
            (("tanh", "tanh"), ValueError, "('tanh', 'tanh')"),
            (("tanh",) * 4, ValueError, "('tanh', 'tanh', 'tanh', 'tanh')"),
            ({"reset": "tanh"}, ValueError, "reset"),
            *[({"cell": a}, *rest) for a, *rest in ACTIVATION],
            *[(("tanh", a, "tanh"), *rest) for a, *rest in ACTIVATION],
        ],
    },
    "gru": {
        "reset_after": FLAG,
        "layer_norm": [*WORD, ("tflite", ValueError, "tflite")],
        "activations": [
            (("tanh",) * 3, ValueError, "('tanh', 'tanh', 'tanh')"),
            ({"cell": "tanh"}, ValueError, "cell"),
            *[({"update": a}, *rest) for a, *rest in ACTIVATION],
        ],
    },
    "rnn_tanh": {"independent": FLAG, "nonlinearity": ACTIVATION},
}
BAD_VALUES = [
    (cell, name, *bad)
    for which, arguments in BAD.items() for name, values in arguments.items()
    for cell in ([which] if which else CELLS) for bad in values
]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "name", "value", "error", "got"), BAD_VALUES,
    ids=[f"{cell}-{name}-{value!r}".replace(" ", "") for cell, name, value, *_ in BAD_VALUES],
)  # fmt: skip
def test_bad_values(cell, name, value, error, got):
    sizes = {"input_size": 2, "hidden_size": 4}
    refused(error, name, got, LAYERS[cell], **(sizes | {name: value}))


FOREIGN = {
    "lstm": ("nonlinearity", "independent", "reset_after"),
    "gru": ("proj_size", "peepholes", "coupled", "cell_clip", "zoneout_cell", "forget_bias",
            "nonlinearity", "independent"),
    "rnn_tanh": ("proj_size", "peepholes", "layer_norm", "activations", "reset_after"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "name"), [(cell, name) for cell, names in FOREIGN.items() for name in names]
)
def test_options_of_another_cell(cell, name):
    layer = {"lstm": cylstm.LSTM, "gru": cylstm.GRU, "rnn_tanh": cylstm.RNN}[cell]
    with pytest.raises(TypeError, match=name):
        layer(2, 4, **{name: None})


# Calls


def calls(layer):
    return [layer, layer.forward]


@EVERY
def test_mask(cell):
    p = problem(cell, (3, 5), steps=4, rows=3)
    right = np.ones((4, 3), bool)
    cases = [
        (right + 1, ValueError, "2 to 2"),
        (right.astype(int) - 2, ValueError, "-1 to -1"),
        (right.astype("f"), TypeError, "float32"),
        (right.astype(object), TypeError, "object"),
        (right.T, ValueError, "(3, 4)"),
        (right[0], ValueError, "(3,)"),
        (right[..., None], ValueError, "(4, 3, 1)"),
        (True, ValueError, "()"),
    ]
    for call in [*calls(p.layer), p.layer.trace]:
        for wrong, error, got in cases:
            refused(error, "mask", got, call, p.x, mask=wrong)
        with pytest.raises(ValueError, match=r"(?s)mask.*lengths|lengths.*mask"):
            call(p.x, lengths=[1, 2, 3], mask=right)
    refused(ValueError, "mask", "(4, 3)", p.layer, p.x[:, 0], mask=right)
    first = LAYERS[cell](3, 5, batch_first=True)
    refused(ValueError, "mask", "(4, 3)", first, p.x.swapaxes(0, 1), mask=right)


@EVERY
def test_return(cell):
    p = problem(cell, (3, 5))
    cases = [
        ("first", ValueError, "first"),
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (True, TypeError, "True"),
        (False, TypeError, "False"),
        (1.0, TypeError, "1.0"),
        (None, TypeError, "None"),
        (("all",), TypeError, "all"),
    ]
    for call in calls(p.layer):
        for wrong, error, got in cases:
            refused((error, ValueError), "return_", got, call, p.x, return_=wrong)


SHAPES = {"all": (5, 3, 10), "last": (3, 10), 2: (2, 3, 10), 9: (0, 3, 10), "mean": (3, 10),
          "max": (3, 10)}  # fmt: skip


@EVERY
def test_shapes_of_out_and_dy_for_each_return(cell):
    p = problem(cell, (3, 5), bidirectional=True)
    for right, wrong in itertools.product(SHAPES, SHAPES):
        if SHAPES[right] == SHAPES[wrong]:
            continue
        bad = np.full(SHAPES[wrong], 7, np.float32)
        for call in calls(p.layer):
            refused(ValueError, "out", str(bad.shape), call, p.x, return_=right, out=bad)
        tape = p.layer.forward(p.x, return_=right)[2]
        refused(ValueError, "dy", str(bad.shape), p.layer.backward, tape, bad)
        assert np.all(bad == 7) and not np.any(p.layer.flat_grads)


@EVERY
def test_gradients_of_separate_directions(cell):
    p = problem(cell, (3, 5), bidirectional=True, merge_mode="separate")
    tape = p.forward()[2]
    a, b = p.dy
    for wrong in (a, np.stack(p.dy), (a,), (a, b, b), {0: a, 1: b}):
        refused((TypeError, ValueError), "dy", "", p.layer.backward, tape, wrong)
    refused(ValueError, "dy", str(b[1:].shape), p.layer.backward, tape, (a, b[1:]))
    refused(ValueError, "dy", str(a[1:].shape), p.layer.backward, tape, (a[1:], b))
    assert not np.any(p.layer.flat_grads)


@EVERY
def test_checkpoint(cell):
    p = problem(cell, (3, 5))
    for wrong, error, got in [(0, ValueError, "0"), (-2, ValueError, "-2"), (1.5, TypeError, "1.5"),
                              (True, TypeError, "True"), ("log", ValueError, "log")]:  # fmt: skip
        refused((error, TypeError), "checkpoint", got, p.layer.forward, p.x, checkpoint=wrong)
    with pytest.raises(TypeError):
        p.layer(p.x, checkpoint=2)


@EVERY
def test_clip_step(cell):
    p = problem(cell, (3, 5))
    tape = p.forward()[2]
    for wrong, error, got in BOUND:
        refused(error, "clip_step", got, p.layer.backward, tape, p.dy, clip_step=wrong)
    assert not np.any(p.layer.flat_grads)


@EVERY
def test_rng_of_a_call(cell):
    p = problem(cell, (3, 5, 2), dropout=0.5)
    for wrong in ("seed", 1.5, -1):
        with pytest.raises((TypeError, ValueError), match="rng"):
            p.layer.forward(p.x, rng=wrong)
    with pytest.raises(TypeError):
        p.layer(p.x, rng=3)


@EVERY
def test_lists(cell):
    p = problem(cell, (3, 5, 2))
    x = [p.x[:n, row] for row, n in enumerate((2, 5, 0))]
    for call in calls(p.layer):
        for name, value in (("lengths", [2, 5, 0]), ("mask", np.ones((5, 3), bool))):
            with pytest.raises(ValueError, match=name):
                call(x, **{name: value})
        refused((TypeError, ValueError), "x", "(2, 4)", call, [x[0], np.ones((2, 4))])
        refused((TypeError, ValueError), "x", "", call, [x[0], np.ones(3)])
        refused(TypeError, "x", "complex", call, [x[0], x[1] * 1j])
        refused(ValueError, "state", "", call, x, tuple(np.zeros((2, 2, 5)) for _ in p.state)
                if cell == "lstm" else np.zeros((2, 2, 5)))  # fmt: skip
    y, _, tape = p.layer.forward(x)
    for wrong in (y[:2], [*y[:2], np.zeros((1, 5))], [*y[:2], y[2][:, :4]], [*y, y[0]]):
        refused((TypeError, ValueError), "dy", "", p.layer.backward, tape, wrong)
    assert not np.any(p.layer.flat_grads)
    variational = LAYERS[cell](3, 5, 2, dropout=0.5, variational=True)
    with pytest.raises(ValueError, match="variational"):
        variational.forward(x)
    assert len(variational(x)[0]) == 3  # a plain call has no masks


@EVERY
def test_state_of_a_size_per_layer(cell):
    p = problem(cell, (3, (5, 6)), bidirectional=True)
    h = p.state[0]
    rest = p.state[1:]
    for wrong in (h[:1], (*h, h[0]), h[::-1], (h[0], h[1][:1]), (h[0], h[1][:, :2]), h[0],
                  np.zeros((4, 3, 5)), (h[0][0], h[1][0])):  # fmt: skip
        state = (wrong, *rest) if rest else wrong
        refused((TypeError, ValueError), "state", "", p.layer, p.x, state)
        tape = p.forward()[2]
        refused((TypeError, ValueError), "dstate", "", p.layer.backward, tape, p.dy, state)
    assert not np.any(p.layer.flat_grads)
    assert_same_bits(p.infer(), p.forward()[:2])
