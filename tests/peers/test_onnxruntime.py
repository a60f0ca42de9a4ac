"""The same weights as an ONNX model in ONNX Runtime: outputs and final states, every option."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import CELLS, assert_close, problem
from variants import ACTIVATIONS, name_of

OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
# ONNX's gates in terms of the blocks of PyTorch's: i, o, f, c and z, r, h.
GATES = {"rnn_tanh": [0], "rnn_relu": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}
# Of the gates i, g, o of coupled=True; ONNX has the forget gate, too, and does not read it.
COUPLED = [0, 2, None, 1]
LENGTHS = np.array((3, 7, 1, 5), np.int32)
TOLERANCE = 2e-6


def arranged(value, order, gates, seed=0):
    """Blocks of an array, gate by gate, in another order; None stands for random numbers."""
    blocks = np.split(value, gates)
    noise = np.random.default_rng(seed).normal(size=blocks[0].shape).astype(value.dtype)
    return np.concatenate([noise if g is None else blocks[g] for g in order])


def onnx_weights(cell, layer, coupled):
    """W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H), P (D, 3*H) of the layer in ONNX's gate order."""
    suffixes = ["_l0", "_l0_reverse"][: layer.num_directions]
    order = COUPLED if coupled else GATES[cell]
    gates = len(order) - coupled

    def stacked(kind):
        return np.stack([arranged(layer.params[kind + s], order, gates) for s in suffixes])

    weights = {"W": stacked("weight_ih"), "R": stacked("weight_hh")}
    if layer.bias:
        weights["B"] = np.concatenate((stacked("bias_ih"), stacked("bias_hh")), axis=-1)
    if "weight_peephole_l0" in layer.params:  # i, f, o or i, o here; i, o, f in ONNX
        order, gates = ([0, 1, None], 2) if coupled else ([0, 2, 1], 3)
        weights["P"] = stacked("weight_peephole")
    return weights


def onnx_session(cell, layer, activations=None, coupled=False, **attributes):
    """A session of one operator with inputs X, sequence_lens and the initial states.

    activations: tuples (name, numbers...) of one direction, in ONNX's order.
    """
    weights = onnx_weights(cell, layer, coupled)
    if activations is None and cell.startswith("rnn"):
        activations = [(cell.removeprefix("rnn_").title(),)]
    if activations is not None:
        ways = layer.num_directions
        attributes["activations"] = [name for name, *_ in activations] * ways
        for k, numbers in enumerate(("activation_alpha", "activation_beta"), start=1):
            # Consumed in order by the activations that have one.
            if given := [float(a[k]) for a in activations if len(a) > k]:
                attributes[numbers] = given * ways
    if coupled:
        attributes["input_forget"] = 1
    direction = "bidirectional" if layer.bidirectional else "forward"
    states = ["initial_h", "initial_c"][: 1 + (cell == "lstm")]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    inputs = ["X", "W", "R", "B" if layer.bias else "", "sequence_lens", *states]
    node = onnx.helper.make_node(
        OPERATORS[cell],
        inputs + ["P"] * ("P" in weights),
        outputs,
        hidden_size=layer.hidden_size,
        **{"direction": direction, **attributes},
    )
    real, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32

    def values(names, kind):
        return [onnx.helper.make_tensor_value_info(name, kind, None) for name in names]

    graph = onnx.helper.make_graph(
        [node],
        "recurrent",
        values(["X"], real) + values(["sequence_lens"], integer) + values(states, real),
        values(outputs, real),
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 14)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def check(p, **attributes):
    """Compare outputs and final states of a problem."""
    if p.cell == "gru":
        attributes = {"linear_before_reset": 1} | attributes
    feeds = {"X": p.x, "sequence_lens": p.lengths}
    feeds |= dict(zip(("initial_h", "initial_c"), p.state, strict=False))
    y, *state = onnx_session(p.cell, p.layer, **attributes).run(None, feeds)  # y (T, D, B, H)
    y_actual, state_actual = p.infer()
    scale = max(1.0, np.abs(y).max())
    assert_close(y_actual / scale, y.transpose(0, 2, 1, 3).reshape(y_actual.shape) / scale,
                 TOLERANCE)  # fmt: skip
    for actual, expected in zip(state_actual, state, strict=True):
        assert_close(actual / scale, expected / scale, TOLERANCE)


def problem_of(cell, sizes=(6, 19), **options):
    return problem(cell, sizes, **{"steps": 7, "rows": 4, "lengths": LENGTHS} | options)


@pytest.mark.parametrize("lengths", [(7, 7, 7, 7), (3, 7, 1, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("sizes", [(6, 19), (12, 64)])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_states(cell, sizes, bidirectional, bias, lengths):
    check(problem_of(cell, sizes, lengths=np.array(lengths, np.int32),
                     bidirectional=bidirectional, bias=bias))  # fmt: skip


DIRECTIONS = {"forward": {}, "reverse": {"go_backwards": True}, "both": {"bidirectional": True}}


def both_ways(direction):
    """Options of the layer and attributes of the operator."""
    options = DIRECTIONS[direction]
    return options, {"direction": "reverse"} if "go_backwards" in options else {}


@pytest.mark.parametrize("cell", CELLS)
def test_reverse(cell):
    options, attributes = both_ways("reverse")
    check(problem_of(cell, **options), **attributes)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_reset_before_the_product(bias, direction):
    options, attributes = both_ways(direction)
    p = problem_of("gru", reset_after=False, bias=bias, **options)
    check(p, linear_before_reset=0, **attributes)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
def test_peepholes_coupled_gates_and_clip(peepholes, coupled, clip, direction):
    options, attributes = both_ways(direction)
    p = problem_of("lstm", peepholes=peepholes, coupled=coupled, clip=clip, **options)
    if clip is not None:
        attributes["clip"] = clip
    check(p, coupled=coupled, **attributes)


@pytest.mark.parametrize("options", [
    ("rnn_tanh", {}), ("rnn_relu", {}), ("gru", {}), ("gru", {"reset_after": False}),
], ids=str)  # fmt: skip
def test_clip(options):
    cell, options = options
    attributes = {"linear_before_reset": 0} if options else {}
    check(problem_of(cell, clip=0.3, **options), clip=0.3, **attributes)


# ONNX's names with every number written out; those of Keras are not ONNX's.
ONNX_ACTIVATIONS = {
    name_of(a): a
    for a in [("Tanh",), ("Sigmoid",), ("Relu",), ("Softsign",), ("Softplus",),
              ("Affine", 0.7, 0.2), ("LeakyRelu", 0.3), ("ThresholdedRelu", 0.2),
              ("ScaledTanh", 1.3, 0.7), ("HardSigmoid", 0.3, 0.4), ("Elu", 0.6)]
}  # fmt: skip
EVERY = list(ONNX_ACTIVATIONS.values())


def short(activation):
    return activation[0] if len(activation) == 1 else activation


@pytest.mark.parametrize("activation", EVERY, ids=name_of)
def test_activations_of_an_rnn(activation):
    p = problem_of("rnn_tanh", nonlinearity=short(activation), bidirectional=True)
    check(p, activations=[activation])


@pytest.mark.parametrize("first", range(len(EVERY)))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_activations_by_gate(cell, first):
    """Each activation in each place, together with others, so that the numbers find theirs."""
    places = 3 if cell == "lstm" else 2
    chosen = [EVERY[(first + 5 * k) % len(EVERY)] for k in range(places)]
    p = problem_of(cell, activations=tuple(map(short, chosen)), bidirectional=True)
    # Gates beyond 1 would make the state explode, where ONNX Runtime has no numbers.
    p.layer.assign({n: 0.3 * v for n, v in p.layer.params.items() if "weight_hh" in n})
    check(p, activations=chosen)


@pytest.mark.parametrize("name", ["LeakyRelu", "HardSigmoid", "Elu"])
@pytest.mark.parametrize("cell", CELLS[1:])
def test_default_numbers(cell, name):
    chosen = {"gru": ["Sigmoid", name], "lstm": ["Sigmoid", name, "Tanh"]}.get(cell, [name])
    options = {"activations": tuple(chosen)} if len(chosen) > 1 else {"nonlinearity": name}
    check(problem_of(cell, **options), activations=[(a,) for a in chosen])


# ONNX has no defaults for two of these; ONNX Runtime takes 0 for the third, the specification 1.
@pytest.mark.parametrize(
    "numbers", [("Affine", 1, 0), ("ScaledTanh", 1, 1), ("ThresholdedRelu", 1)]
)
def test_defaults_that_onnx_runtime_does_not_share(numbers):
    check(problem_of("rnn_tanh", nonlinearity=numbers[0]), activations=[numbers])


def test_every_activation_is_compared():
    names = {a if isinstance(a, str) else a[0] for a in ACTIVATIONS}
    compared = {name.lower() for name, *_ in EVERY}
    assert {name.lower() for name in names if "keras" not in name} == compared
