"""Every pair of options together, in a covering set of cases, against the oracle."""

import itertools
import random

import pytest
from helpers import assert_close, assert_gradients_close, inside, joined, problem

SEQUENCES = {
    "all": {},
    "lengths": {"lengths": "random"},
    "holes": {"mask": "holes"},
    "left": {"mask": "left"},
    "list": {"lengths": "random"},
}
WAYS = {
    "one": {},
    "backwards": {"go_backwards": True},
    "concat": {"bidirectional": True},
    "sum": {"bidirectional": True, "merge_mode": "sum"},
    "mul": {"bidirectional": True, "merge_mode": "mul"},
    "ave": {"bidirectional": True, "merge_mode": "ave"},
    "separate": {"bidirectional": True, "merge_mode": "separate"},
}
DROPOUT = {
    "none": {},
    "fresh": {"dropout": 0.4},
    "variational": {"dropout": 0.4, "variational": True},
}
# Of each factor its values; those of the call come first.
FACTORS = {
    "sequence": list(SEQUENCES),
    "return_": ["all", "last", 2, "mean", "max"],
    "shape": [(7, 3), (2, 1), (1, 4), (0, 2), (5, 0)],
    "checkpoint": [None, 1, "sqrt"],
    "clip_step": [None, 0.2],
    "num_threads": [1, 3],
    "ways": list(WAYS),
    "sizes": [(3, 5, 1), (3, 5, 2), (4, 17, 2), (3, (5, 9))],
    "drop": list(DROPOUT),
    "batch_first": [False, True],
    "bias": [True, False, "single"],
    "recurrent_dropout": [0.0, 0.3],
    "zoneout": [0.0, 0.3],
    "dropconnect": [0.0, 0.3],
    "clip": [None, 0.5],
}
OWN = {
    "lstm": {
        "proj_size": [0, 3],
        "peepholes": [False, True],
        "coupled": [False, True],
        "cell_clip": [None, 0.2],
        "layer_norm": [None, "haste", "tflite"],
        "activations": [None, ("HardSigmoid", ("Elu", 0.5), "Softsign"),
                        {"output": ("LeakyRelu", 0.1), "cell": ("ScaledTanh", 0.9, 1.2)}],
        "zoneout_cell": [0.0, 0.4],
        "forget_bias": [None, 1.0],
    },
    "gru": {
        "reset_after": [True, False],
        "layer_norm": [None, "haste"],
        "activations": [None, (("HardSigmoid", 0.5, 0.4), "Softsign"),
                        {"reset": ("Affine", 0.3, 0.4)}],
    },
    "augru": {"reset_after": [True, False], "layer_norm": [None, "haste"]},
    "slstm": {"forget_gate": ["sigmoid", "exp"], "forget_bias": [None, 1.0]},
    # Options of all that these have not: one value, that of a layer without.
    "mingru": {"bias": [True, False], "recurrent_dropout": [None], "dropconnect": [None]},
    "minlstm": {"bias": [True, False], "recurrent_dropout": [None], "dropconnect": [None],
                "forget_bias": [None, 1.0]},
    "rnn_tanh": {
        "nonlinearity": ["tanh", "relu", ("Elu", 0.7)],
        "independent": [False, True],
    },
}  # fmt: skip


ABSENT = ("recurrent_dropout", "dropconnect")


def clash(a, b):
    """Whether the layers refuse two (factor, value) together."""
    pair = dict((a, b))
    return (
        (pair.get("ways") == "separate" and pair.get("sizes", (0, 0, 1))[-1] != 1)
        or (pair.get("sequence") == "list" and pair.get("drop") == "variational")
        or (pair.get("independent") and pair.get("dropconnect"))
        or (pair.get("layer_norm") and pair.get("reset_after") is False)
        or (pair.get("forget_bias") and (pair.get("bias") is False or pair.get("coupled")))
    )  # fmt: skip


def key(item):
    return repr(item)


def covering(factors, seed=0):
    """Cases, as dicts, such that each pair of values that do not clash is in one of them.

    Greedy: a case starts with a pair that is missing and takes for one factor after another the
    value that adds most of the missing pairs.
    """
    rng = random.Random(seed)
    items = {name: [(name, value) for value in values] for name, values in factors.items()}
    missing = {
        frozenset((key(a), key(b)))
        for one, two in itertools.combinations(items.values(), 2)
        for a, b in itertools.product(one, two) if not clash(a, b)
    }  # fmt: skip
    everything = {key(item): item for values in items.values() for item in values}
    cases = []
    while missing:
        case = [everything[k] for k in sorted(min(missing, key=sorted))]
        rest = [name for name in items if name not in dict(case)]
        rng.shuffle(rest)
        for name in rest:
            fitting = [i for i in items[name] if not any(clash(i, other) for other in case)]
            rng.shuffle(fitting)
            case.append(max(fitting, key=lambda i, case=case: sum(
                frozenset((key(i), key(other))) in missing for other in case)))  # fmt: skip
        missing -= {frozenset((key(a), key(b))) for a, b in itertools.combinations(case, 2)}
        cases.append(dict(case))
    return cases


CASES = [
    (cell, case, i) for cell, own in OWN.items() for i, case in enumerate(covering(FACTORS | own))
]


def arranged(arrays, case, lengths):
    """(T, B, .) arrays as the layer takes and gives them, by the case's layout."""
    if isinstance(arrays, tuple):
        return tuple(arranged(a, case, lengths) for a in arrays)
    if arrays.ndim < 3:
        return arrays
    if case["sequence"] == "list" and lengths is not None:
        return [arrays[:n, row] for row, n in enumerate(lengths)]
    return arrays.swapaxes(0, 1) if case["batch_first"] else arrays


def by_step(array, case, lengths):
    """(T, B) numbers as the layer takes and gives them."""
    if case["sequence"] == "list":
        return [array[:n, row] for row, n in enumerate(lengths)]
    return array.T if case["batch_first"] else array


@pytest.mark.parametrize(
    ("cell", "case", "seed"), CASES, ids=[f"{cell}-{i}" for cell, _, i in CASES]
)
def test_pairs(cell, case, seed):
    case = dict(case)
    steps, rows = case["shape"]
    options = WAYS[case["ways"]] | DROPOUT[case["drop"]]
    options |= {n: v for n, v in case.items() if n in [*FACTORS][9:] or n in OWN[cell]}
    options = {n: v for n, v in options.items() if n not in ABSENT or v is not None}
    p = problem(
        cell, case["sizes"], steps=steps, rows=rows, seed=seed, dtype="float64",
        return_=case["return_"], **SEQUENCES[case["sequence"]], **options,
    )  # fmt: skip
    lengths = p.lengths
    every = case["return_"] if isinstance(case["return_"], int) else 1
    kept = None if lengths is None else lengths // every
    call = {"return_": case["return_"]}
    if p.attention is not None:
        call["attention"] = by_step(p.attention, case, lengths)
    if case["sequence"] == "lengths":
        call["lengths"] = lengths
    elif p.mask is not None:
        call["mask"] = by_step(p.mask, case, lengths)
    y, state, tape = p.layer.forward(
        arranged(p.x, case, lengths), joined(p.state), rng=seed, checkpoint=case["checkpoint"],
        num_threads=case["num_threads"], **call,
    )  # fmt: skip
    masks = inside(tape.masks, lengths, steps) if case["sequence"] == "list" else tape.masks
    y_expected, state_expected, _ = p.oracle(masks)
    assert_close(y, arranged(y_expected, case, kept), 1e-12)
    assert_close(p.parts(state), state_expected, 1e-12)
    dx, dstate, *more = p.layer.backward(
        tape, arranged(p.dy, case, kept), joined(p.dstate), clip_step=case["clip_step"],
        num_threads=case["num_threads"],
    )  # fmt: skip
    expected = p.oracle_gradients(masks, case["clip_step"])
    for d in more:
        assert_close(d, by_step(expected.pop("attention"), case, lengths), 1e-11)
    assert_close(dx, arranged(expected.pop("x"), case, lengths), 1e-11)
    states = dict(zip(list(expected), (a for a in flattened(p.parts(dstate))), strict=False))
    assert_gradients_close(states | dict(p.layer.grads), expected, 1e-11)
    y, state = p.layer(arranged(p.x, case, lengths), joined(p.state), **call)
    y_expected, state_expected, _ = p.oracle()
    assert_close(y, arranged(y_expected, case, kept), 1e-12)
    assert_close(p.parts(state), state_expected, 1e-12)


def flattened(state):
    for part in state:
        yield from part if isinstance(part, tuple) else (part,)


@pytest.mark.parametrize("cell", OWN)
def test_the_cases_cover_every_pair(cell):
    factors = FACTORS | OWN[cell]
    cases = [case for c, case, _ in CASES if c == cell]
    for (one, values), (two, others) in itertools.combinations(factors.items(), 2):
        for a, b in itertools.product(values, others):
            met = any(case[one] == a and case[two] == b for case in cases)
            assert met != bool(clash((one, a), (two, b))), (one, a, two, b)
