"""Every option of the cells alone: outputs, states, gradients and parameters by the oracle."""

import numpy as np
import pytest
import reference
from helpers import (
    DTYPES,
    LAYERS,
    assert_as_the_oracle,
    assert_gradients_close,
    assert_gradients_match_differences,
    problem,
    replayed,
    smooth_problem,
)
from variants import (
    ACTIVATION_VARIANTS,
    ACTIVATIONS,
    CELL_VARIANTS,
    EVERY_VARIANT,
    GATES,
    REGULARISED_VARIANTS,
    named,
)

# steps, rows, which steps
SHAPES = [
    (0, 3, {}),
    (4, 0, {"mask": "holes"}),
    (1, 3, {"mask": "holes"}),
    (2, 1, {}),
    (7, 4, {"lengths": "random"}),
    (7, 5, {"mask": "holes"}),
    (7, 3, {"mask": "left"}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS + REGULARISED_VARIANTS))
def test_against_the_oracle(cell, options, dtype):
    for i, (steps, rows, chosen) in enumerate(SHAPES):
        for sizes, bidirectional in (((3, 5, 2), True), ((4, 17, 1), False)):
            if i % 2 and not bidirectional:
                continue
            p = smooth_problem(
                cell, sizes, steps=steps, rows=rows, masks=replayed, bidirectional=bidirectional,
                dtype=dtype, **chosen, **options,
            )  # fmt: skip
            assert_as_the_oracle(p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "options"), **named(ACTIVATION_VARIANTS))
def test_activations_against_the_oracle(cell, options, dtype):
    p = smooth_problem(
        cell, (3, 9, 1), rows=4, dtype=dtype, bidirectional=True, least=3e-6, **options
    )
    assert_as_the_oracle(p)


@pytest.mark.parametrize(("cell", "options"), **named(EVERY_VARIANT))
def test_finite_differences(cell, options):
    many = "activations" not in options and "nonlinearity" not in options
    p = smooth_problem(
        cell, (3, 5, 1 + many), steps=4, mask="holes", bidirectional=many, masks=replayed, **options
    )
    gradients = p.gradients(p.forward(rng=7)[2])
    assert_gradients_match_differences(p, gradients, lambda q: q.forward(rng=7)[:2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS + REGULARISED_VARIANTS))
def test_gradients_clipped_at_every_step(cell, options, dtype):
    p = smooth_problem(
        cell, (3, 5, 2), rows=4, masks=replayed, mask="holes", bidirectional=True, dtype=dtype,
        **options,
    )  # fmt: skip
    tape = p.forward(rng=7)[2]
    whole, clipped = p.gradients(tape), p.gradients(tape, clip_step=0.2)
    assert np.any(whole["weight_ih_l0"] != clipped["weight_ih_l0"])
    assert_as_the_oracle(p, clip_step=0.2)
    assert_gradients_close(p.gradients(tape, clip_step=1e9), whole, 0)


@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS))
def test_clips_act_on_some_elements(cell, options):
    """Of the problems above: the tests of the clips would be void otherwise."""
    p = problem(cell, (3, 5, 2), steps=7, bidirectional=True, dtype="float64", **options)
    for gates in reference.trace(p.oracle()[2]).values():
        if "clip" in options:
            for name, a in gates.items():
                beyond = np.abs(a) > options["clip"]
                assert not name.endswith("_preactivation") or 0 < beyond.mean() < 1
        if "cell_clip" in options:
            assert 0 < (np.abs(gates["cell"]) == options["cell_clip"]).mean() < 1


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "options"), **named(CELL_VARIANTS))
def test_parameters_and_their_initial_values(cell, options, bidirectional):
    p = problem(cell, (3, 5, 2), bidirectional=bidirectional, **options)
    layer = LAYERS[cell](3, 5, 2, bidirectional=bidirectional, rng=0, **options)
    assert {n: v.shape for n, v in layer.params.items()} == p.network.shapes()
    assert list(layer.params) == list(p.network.shapes())
    for name, value in layer.params.items():
        if "_ln" in name:
            assert np.all(value == (0 if name.startswith("bias") else 1))
        else:
            assert np.all(np.abs(value) <= 5**-0.5) and len(np.unique(value)) == value.size


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_activations_that_are_the_defaults_change_no_bit(cell):
    given = {
        "lstm": {"activations": ("Sigmoid", "Tanh", "tanh")},
        "gru": {"activations": {"reset": "SIGMOID", "candidate": "Tanh"}},
        "rnn_tanh": {"nonlinearity": "TANH"},
    }[cell]
    p, q = problem(cell, (3, 5)), problem(cell, (3, 5), **given)
    np.testing.assert_array_equal(q.infer()[0], p.infer()[0])


KINKS = [
    ("Relu", 0.0, 0.0),
    (("LeakyRelu", 0.3), 0.0, 0.3),
    (("ThresholdedRelu", 0.25), 0.25, 0.0),
    (("HardSigmoid", 0.5, 0.5), -1.0, 0.0),
    (("HardSigmoid", 0.5, 0.5), 1.0, 0.0),
    (("Elu", 0.3), 0.0, 1.0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "at", "slope"), KINKS, ids=str)
def test_derivative_at_a_kink(activation, at, slope, dtype):
    """Exactly at the kink: with a weight of 1 and no other, dx is the derivative."""
    layer = LAYERS["rnn_tanh"](1, 1, nonlinearity=activation, dtype=dtype)
    layer.assign({name: np.full(v.shape, 1.0 * (name == "weight_ih_l0"))
                  for name, v in layer.params.items()})  # fmt: skip
    tape = layer.forward(np.full((1, 1, 1), at))[2]
    assert layer.backward(tape, np.ones((1, 1, 1)))[0] == np.array(slope, dtype)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_clip_at_its_bound_lets_the_gradient_through(cell, sign):
    """All weights 0 but W's: every pre-activation is exactly the bound, 0.5."""
    layer = LAYERS[cell](1, 1, clip=0.5, dtype="float64")
    layer.assign({name: np.full(v.shape, 1.0 * (name == "weight_ih_l0"))
                  for name, v in layer.params.items()})  # fmt: skip
    for x, moves in ((0.5, True), (0.5 + 2**-40, False)):
        tape = layer.forward(np.full((1, 1, 1), sign * x))[2]
        assert (layer.backward(tape, np.ones((1, 1, 1)))[0] != 0) == moves


def test_activations_cover_every_gate():
    """The rotation of the table puts each activation at each gate."""
    for cell, gates in GATES.items():
        met = {(gate, a) for _, c, o in ACTIVATION_VARIANTS if c == cell
               for gate, a in o["activations"].items()}  # fmt: skip
        assert len(met) == len(gates) * len(ACTIVATIONS)


def test_forget_bias_of_every_variant():
    for _, cell, options in CELL_VARIANTS:
        if cell != "lstm" or "coupled" in options or options.get("bias") is False:
            continue
        plain, biased = (LAYERS[cell](3, 5, 2, rng=0, forget_bias=value, **options)
                         for value in (None, 1.5))  # fmt: skip
        for name, value in plain.params.items():
            expected = value.copy()
            if name.startswith("bias_ih"):
                expected[5:10] += np.float32(1.5)
            np.testing.assert_array_equal(biased.params[name], expected)
