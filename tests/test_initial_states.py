"""Initial states: learned, one row for all, pairs by layer; and final states as the output."""

import copy
import pickle

import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYERS,
    assert_as_the_oracle,
    assert_close,
    assert_gradients_close,
    assert_gradients_match_differences,
    assert_same_bits,
    joined,
    problem,
    refused,
    smooth_problem,
)

import cylstm

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
READ = [{}, {"lengths": "random"}, {"mask": "holes"}, {"reset": 0.3}]
T, B = 7, 5


def some_given(p):
    """Problems in which nothing is given, all of it, one row, and h or c alone."""
    rows = tuple(part[:, :1] if not isinstance(part, tuple) else tuple(a[:, :1] for a in part)
                 for part in p.state)  # fmt: skip
    yield p._replace(state=(None,) * len(p.state))
    yield p
    yield p._replace(state=rows)
    if p.cell == "lstm":
        for state in ((p.state[0], None), (None, p.state[1]), (rows[0], p.state[1]),
                      (p.state[0], rows[1]), (rows[0], None)):  # fmt: skip
            yield p._replace(state=state)


# Learned


def test_parameters_of_learned_states():
    layer = cylstm.LSTM(3, (5, 4), proj_size=2, bidirectional=True, learn_initial_state=True)
    shapes = {n: v.shape for n, v in layer.params.items() if n.startswith("initial_")}
    assert shapes == {
        f"initial_{part}_l{k}{way}": ((5, 4)[k],) if part == "c" else (2,)
        for part in "hc" for k in (0, 1) for way in ("", "_reverse")
    }  # fmt: skip
    assert not any(layer.params[name].any() for name in shapes)
    names = list(cylstm.GRU(3, 5, learn_initial_state=True).params)
    assert names == [*cylstm.GRU(3, 5).params, "initial_h_l0"]
    assert not cylstm.GRU(3, 5).learn_initial_state
    refused(TypeError, "learn_initial_state", "1", cylstm.GRU, 3, 5, learn_initial_state=1)


@pytest.mark.parametrize("chosen", READ, ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sizes", [(3, 17, 2), (3, (9, 5))], ids=str)
@EVERY
def test_as_the_oracle(cell, sizes, learned, chosen):
    for options, dtype in (({"bidirectional": True}, "float64"),
                           ({"go_backwards": True}, "float32")):  # fmt: skip
        p = problem(cell, sizes, steps=T, rows=B, dtype=dtype, learn_initial_state=learned,
                    **chosen, **options)  # fmt: skip
        for q in some_given(p):
            assert_as_the_oracle(q)


@pytest.mark.parametrize(("steps", "rows"), [(0, 3), (3, 0), (1, 1)])
@EVERY
def test_empty_and_least(cell, steps, rows):
    p = problem(cell, (3, 5, 2), steps=steps, rows=rows, dtype="float64", bidirectional=True,
                learn_initial_state=True)  # fmt: skip
    for q in list(some_given(p))[: None if rows else 2]:
        assert_as_the_oracle(q)
    one_row = tuple(np.ones((part.shape[0], 1, part.shape[2])) for part in p.state)
    _, _, tape = p.layer.forward(p.x, joined(one_row))
    for d in p.parts(p.layer.backward(tape, p.dy)[1]):
        assert d.shape == (4, 1, 5) and (steps or not d.any())


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_finite_differences(cell, chosen):
    p = smooth_problem(cell, (3, 5, 2), steps=6, rows=4, bidirectional=True,
                       learn_initial_state=True, **chosen)  # fmt: skip
    for q in some_given(p):
        gradients = q.gradients(q.forward()[2])
        assert set(gradients) >= {"initial_h_l0", "initial_h_l1_reverse"}
        given = q._replace(state=tuple(s for s in q.state if s is not None))
        if len(given.state) not in (0, len(q.state)):
            continue  # by the oracle above
        names = [n for n in gradients if "0" in n[:2] and not given.state]
        gradients = {n: g for n, g in gradients.items() if n not in names}
        assert_gradients_match_differences(q, gradients, lambda q: q.infer())


@EVERY
def test_a_learned_state_is_that_state_given(cell):
    for dtype in DTYPES:
        p = problem(cell, (3, 17, 2), rows=B, bidirectional=True, learn_initial_state=True,
                    lengths="random", dtype=dtype)  # fmt: skip
        names = [[f"initial_{part}_l{k}{way}" for k in (0, 1) for way in ("", "_reverse")]
                 for part in "hc"[: len(p.state)]]  # fmt: skip
        state = tuple(np.stack([p.layer.params[n] for n in own])[:, None] for own in names)
        given, none = p._replace(state=state), p._replace(state=(None,) * len(p.state))
        for _ in range(3):  # calls of the same shape may be planned once
            assert_same_bits(none.infer(), given.infer())
            assert_same_bits(p.layer(p.x, lengths=p.lengths)[0], given.infer()[0])
        by_name, expected = none.gradients(none.forward()[2]), given.gradients(given.forward()[2])
        for part, own in zip(("h0", "c0"), names, strict=False):
            sums = np.stack([by_name[n] for n in own])[:, None]
            assert_close(sums, expected[part], 1e-6 if dtype == "float32" else 1e-13)
            assert not any(expected[n].any() for n in own)


@EVERY
def test_threads_and_copies(cell):
    p = problem(cell, (3, 40, 2), steps=20, rows=60, learn_initial_state=True, bidirectional=True)
    p = p._replace(state=(None,) * len(p.state))
    expected = tuple(p.gradients(p.forward(num_threads=1)[2], num_threads=1).values())
    for threads in (2, 3, None):
        tape = p.forward(num_threads=threads)[2]
        assert_same_bits(tuple(p.gradients(tape, num_threads=threads).values()), expected)
    for twin in (copy.deepcopy(p.layer), pickle.loads(pickle.dumps(p.layer))):
        assert_same_bits(twin(p.x)[0], p.layer(p.x)[0])
        twin.assign({"initial_h_l0": np.ones(40)})
        assert np.any(twin(p.x)[0] != p.layer(p.x)[0])


@EVERY
def test_a_learned_state_learns(cell):
    """To begin with what the first target is, before any input."""
    layer = LAYERS[cell](1, 8, learn_initial_state=True, rng=0)
    optimizer, x = cylstm.Adam([layer], lr=0.02), np.zeros((3, 4, 1), "f")
    before = layer.params["initial_h_l0"].copy()
    for _ in range(100):
        y, _, tape = layer.forward(x)
        loss, dy = cylstm.mse_loss(y, np.full_like(y, 0.7))
        layer.backward(tape, dy)
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.01 and np.any(layer.params["initial_h_l0"] != before)


# One row for all


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_one_row_has_the_bits_of_that_row_for_each(cell, chosen):
    for sizes in ((3, 17, 2), (3, (9, 5))):
        p = problem(cell, sizes, rows=B, bidirectional=True, **chosen)
        one = list(some_given(p))[2]

        def repeated(a):
            return np.repeat(a, B, axis=1)

        full = one._replace(state=tuple(
            tuple(map(repeated, part)) if isinstance(part, tuple) else repeated(part)
            for part in one.state
        ))  # fmt: skip
        for _ in range(3):
            assert_same_bits(one.infer(), full.infer())
        y, state, tape = one.forward()
        assert_same_bits((y, state), full.infer())
        actual, expected = one.gradients(tape), full.gradients(full.forward()[2])
        for name in expected:
            if name[:2] in ("h0", "c0"):
                assert actual[name].shape == (*expected[name].shape[:1], 1, expected[name].shape[2])
                expected[name] = expected[name].sum(1, keepdims=True, dtype=float).astype("f")
        assert_gradients_close(actual, expected, 0)


# Pairs by layer


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=str)
def test_pairs_by_layer_are_refused(options):
    layer = cylstm.LSTM(3, 5, **options)
    x, rng = np.ones((4, 2, 3), "f"), np.random.default_rng(0)
    for shape in ((2, 5), (1, 2, 5), (2, 1, 5)):
        pairs = [tuple(rng.normal(size=(2, *shape))) for _ in range(2)]
        for call in (layer, layer.forward, layer.trace):
            for kind in (list, tuple):
                wrong = kind(pairs)
                refused(TypeError, "state h", "map(np.stack, zip(*pairs))", call, x, wrong)
                wrong = kind([list(pair) for pair in pairs])
                refused(TypeError, "state h", "got a list of 2 values; of pairs", call, x, wrong)
                refused(TypeError, "state", "got 3 values; of pairs (h, c) by layer make", call, x,
                        kind([*pairs, pairs[0]]))  # fmt: skip
                refused(TypeError, "state", "got 1 values; of pairs", call, x, kind(pairs[:1]))
    h, c = rng.normal(size=(2, 2, 2, 5)).astype("f")
    expected = layer(x, (h, c))
    for right in ([h, c], (h.tolist(), c), [h.tolist(), c.tolist()]):
        assert_same_bits(layer(x, right), expected)
    stacked = (np.stack([h for h, _ in zip(h, c, strict=True)]), c)
    assert_same_bits(layer(x, stacked), expected)


# Final states


def test_final_outputs_are_those_of_keras():
    """The numbers that Keras 3 gives."""
    layer = cylstm.RNN(4, 2, bidirectional=True, batch_first=True)
    values = {"weight_ih": 0.01, "weight_hh": 0.02, "bias_ih_l": 0.03, "bias_hh_l": 0.0}
    layer.assign({n: np.full(v.shape, values[n[:9]]) for n, v in layer.params.items()})
    y, _ = layer(np.arange(24).reshape(2, 3, 4), return_="final")
    assert_close(y[:, 2:], np.repeat([[0.10004295], [0.53391594]], 2, axis=1), 1e-7)
    last, _ = layer(np.arange(24).reshape(2, 3, 4), return_="last")
    assert_close(last[:, 2:], np.repeat([[0.3884727], [0.71139365]], 2, axis=1), 1e-6)
    assert_close(last[:, :2], y[:, :2], 0)


@pytest.mark.parametrize("chosen", READ, ids=str)
@EVERY
def test_final_outputs_are_the_final_states(cell, chosen):
    for mode in ("concat", "sum", "mul", "ave", "separate"):
        p = problem(cell, (3, 17), rows=B, bidirectional=True, merge_mode=mode, return_="final",
                    zoneout=0.2, **chosen)  # fmt: skip
        y, (h, *_) = p.infer()
        half = np.float32(0.5)
        merged = {"concat": np.concatenate(h, -1), "sum": h[0] + h[1], "mul": h[0] * h[1],
                  "ave": (h[0] + h[1]) * half, "separate": tuple(h)}  # fmt: skip
        assert_same_bits(y, merged[mode])
        assert_as_the_oracle(p)
    p = problem(cell, (3, 17, 2), rows=B, go_backwards=True, return_="final", **chosen)
    y, (h, *_) = p.infer()
    assert_same_bits(y, h[1])
    assert np.any(y != p._replace(return_="last").infer()[0])
    assert_as_the_oracle(p)


def test_final_outputs_of_projections():
    p = problem("lstm", (3, 17, 2), rows=B, bidirectional=True, proj_size=4, return_="final",
                lengths="random", learn_initial_state=True)  # fmt: skip
    assert p.infer()[0].shape == (B, 8)
    assert_as_the_oracle(p)
    assert_as_the_oracle(p._replace(state=(None, None)))


@EVERY
def test_learned_states_in_state_dicts(cell):
    layer = LAYERS[cell](3, 5, 2, bidirectional=True, learn_initial_state=True, rng=0)
    layer.assign({n: np.full(v.shape, 0.5) for n, v in layer.params.items() if "initial" in n})
    kind, options = type(layer), {"nonlinearity": "tanh"} if cell == "rnn_tanh" else {}
    twin = kind.from_state_dict(layer.state_dict(), **options)
    assert twin.learn_initial_state and repr(twin) == repr(layer)
    x = np.ones((4, 2, 3), "f")
    assert_same_bits(twin(x)[0], layer(x)[0])
    plain = {n: v for n, v in layer.state_dict().items() if "initial" not in n}
    assert not kind.from_state_dict(plain, **options).learn_initial_state
