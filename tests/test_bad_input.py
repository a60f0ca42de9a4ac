"""Bad arguments: the message names the argument, what was expected and what came."""

import re

import numpy as np
import pytest
from helpers import CELLS, LAYERS, assert_same_bits, joined, problem, refused

import cylstm

BIG = 10**30


BAD_NUMBERS = [
    (0, ValueError, "0"),
    (-3, ValueError, "-3"),
    (2.0, TypeError, "2.0"),
    (np.nan, TypeError, "nan"),
    ("4", TypeError, "4"),
    (None, TypeError, "None"),
    (True, TypeError, "True"),
]


@pytest.mark.parametrize(("value", "error", "got"), BAD_NUMBERS)
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, name, value, error, got):
    if name == "num_layers" and value is None:
        return  # not given
    sizes = {"input_size": 2, "hidden_size": 3, "num_layers": 1, name: value}
    refused(error, name, got, LAYERS[cell], **sizes)


@pytest.mark.parametrize("cell", CELLS)
def test_sizes_beyond_any_memory(cell):
    for size in (2**31, 2**62, BIG):
        with pytest.raises((ValueError, MemoryError, OverflowError)):
            LAYERS[cell](1, size)
        with pytest.raises((ValueError, MemoryError, OverflowError)):
            LAYERS[cell](size, 2**31)


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [(-0.1, ValueError, "-0.1"), (1.5, ValueError, "1.5"), (np.nan, ValueError, "nan"),
     (np.inf, ValueError, "inf"), ("0.5", TypeError, "0.5"), (None, TypeError, "None"),
     (0.5j, TypeError, "0.5j"), (np.zeros(2), TypeError, "")],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("cell", CELLS)
def test_dropout(cell, value, error, got):
    refused(error, "dropout", got, LAYERS[cell], 2, 3, 2, dropout=value)


@pytest.mark.parametrize("value", ["float16", "int32", "complex64", "object", "none", "<U3", int])
@pytest.mark.parametrize("cell", CELLS)
def test_dtype(cell, value):
    got = value if isinstance(value, str) else "int"
    refused((TypeError, ValueError), "dtype", got, LAYERS[cell], 2, 3, dtype=value)


@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional"])
@pytest.mark.parametrize("value", ["no", 2, None, 0.5])
@pytest.mark.parametrize("cell", CELLS)
def test_flags(cell, name, value):
    refused(TypeError, name, str(value), LAYERS[cell], 2, 3, **{name: value})


def test_options_of_one_cell():
    refused(ValueError, "nonlinearity", "sigmod", cylstm.RNN, 2, 3, nonlinearity="sigmod")
    refused((TypeError, ValueError), "nonlinearity", "None", cylstm.RNN, 2, 3, nonlinearity=None)
    refused(ValueError, "forget_bias", "nan", cylstm.LSTM, 2, 3, forget_bias=np.nan)
    refused(ValueError, "forget_bias", "inf", cylstm.LSTM, 2, 3, forget_bias=np.inf)
    refused(TypeError, "forget_bias", "1", cylstm.LSTM, 2, 3, forget_bias="1")
    refused(ValueError, "forget_bias", "1", cylstm.LSTM, 2, 3, forget_bias=1.0, bias=False)
    with pytest.raises(TypeError):
        cylstm.GRU(2, 3, nonlinearity="tanh")
    with pytest.raises(TypeError):
        cylstm.RNN(2, 3, 1, "relu")  # options are keyword-only


def unreal(array):
    """The same numbers in dtypes that are refused, and what the message says of each."""
    return [
        (array.astype("complex64"), "complex64"),
        (array.astype(object), "object"),
        (array.astype("U8"), "U"),
        (array.astype(bool), "bool"),
        (array.astype("M8[s]"), "datetime64"),
        (None, "object"),
    ]


def both_calls(layer):
    return [layer, layer.forward, layer.trace]


@pytest.mark.parametrize("cell", CELLS)
def test_x(cell):
    p = problem(cell, (4, 5), bidirectional=True)
    for call in both_calls(p.layer):
        for wrong, got in unreal(p.x):
            refused(TypeError, "x", got, call, wrong)
        for shape in [(), (4,), (2, 3, 4, 4), (2, 3, 5), (2, 3, 0), (3, 5), (0, 0)]:
            refused(ValueError, "x", f"got {shape}" if shape else "()", call, np.zeros(shape))
        with pytest.raises((TypeError, ValueError)):
            call([[1.0, 2.0], [3.0]])
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths(cell, batch_first):
    p = problem(cell, (4, 5), steps=3, rows=3, batch_first=batch_first)
    cases = [
        (np.array([1.0, 2, 3]), TypeError, "float64"),
        (np.array([True, False, True]), TypeError, "bool"),
        (np.array(["1", "2", "3"]), TypeError, "U1"),
        ([1, 2, None], TypeError, "object"),
        ([1, 2, -1], ValueError, "-1"),
        ([1, 4, 2], ValueError, "4"),
        (np.array([1, 2, 2**64 - 1], np.uint64), ValueError, str(2**64 - 1)),
        (np.array([1, 2, -(2**63)]), ValueError, str(-(2**63))),
        ([1, 2], ValueError, "(2,)"),
        ([1, 2, 3, 3], ValueError, "(4,)"),
        ([[1, 2, 3]], ValueError, "(1, 3)"),
        (2, ValueError, "()"),
    ]
    for call in both_calls(p.layer):
        for wrong, error, got in cases:
            refused(error, "lengths", got, call, p.x, lengths=wrong)


def bad_states(cell, parts):
    """Wrong values of a state argument with the error and what the message says came."""
    shapes = [(2, 3, 4), (1, 3, 5), (2, 2, 5), (2, 5), (3, 2, 5), (1, 2, 3, 5), ()]
    wrong_shapes = [np.zeros(shape, np.float32) for shape in shapes]
    if cell == "lstm":
        h, c = parts
        yield from ((wrong, (TypeError, ValueError), "") for wrong in
                    [h, (h,), (h, c, c), {"h": h, "c": c}, "hc", 3])  # fmt: skip
        for wrong in wrong_shapes:
            yield (wrong, c), ValueError, str(wrong.shape)
            yield (h, wrong), ValueError, str(wrong.shape)
        for wrong, got in unreal(c)[:-1]:
            yield (wrong, c), TypeError, got
            yield (h, wrong), TypeError, got
    else:
        (h,) = parts
        yield (h, h), (TypeError, ValueError), ""
        yield (h,), (TypeError, ValueError), ""
        yield from ((wrong, ValueError, str(wrong.shape)) for wrong in wrong_shapes)
        yield from ((wrong, TypeError, got) for wrong, got in unreal(h)[:-1])


@pytest.mark.parametrize("cell", CELLS)
def test_state(cell):
    p = problem(cell, (4, 5), bidirectional=True)
    for call in both_calls(p.layer):
        for wrong, error, got in bad_states(cell, p.state):
            refused(error, "state", got, call, p.x, wrong)
    if cell == "lstm":  # as for x of shape (T, I): states (L*D, H)
        refused(ValueError, "state", "(2, 3, 5)", p.layer, p.x[:, 0], joined(p.state))


@pytest.mark.parametrize("cell", CELLS)
def test_out(cell):
    p = problem(cell, (4, 5), bidirectional=True)
    right = np.full((5, 3, 10), 7, np.float32)
    read_only = right.copy()
    read_only.flags.writeable = False
    cases = [
        (right.astype(np.float64), (TypeError, ValueError), "f"),
        (right.astype(np.int32), (TypeError, ValueError), "i"),
        (right[:4], ValueError, "(4, 3, 10)"),
        (right[..., :5], ValueError, "(5, 3, 5)"),
        (right[0], ValueError, "(3, 10)"),
        (right.tolist(), TypeError, "list"),
        (read_only, ValueError, "writeable"),
    ]
    for call in both_calls(p.layer)[:2]:
        for wrong, error, got in cases:
            refused(error, "out", got, call, p.x, out=wrong)
        refused(ValueError, "lengths", "6", call, p.x, lengths=[1, 2, 6], out=right)
    assert np.all(right == 7) and np.all(read_only == 7)


BAD_THREADS = [
    (0, ValueError, "0"),
    (-1, ValueError, "-1"),
    (2.0, TypeError, "2.0"),
    (True, TypeError, "True"),
    ("2", TypeError, "2"),
]


@pytest.mark.parametrize(("value", "error", "got"), BAD_THREADS)
@pytest.mark.parametrize("cell", CELLS)
def test_num_threads(cell, value, error, got):
    p = problem(cell, (4, 5))
    tape = p.forward()[2]
    refused(error, "num_threads", got, p.layer, p.x, num_threads=value)
    refused(error, "num_threads", got, p.layer.forward, p.x, num_threads=value)
    refused(error, "num_threads", got, p.layer.backward, tape, p.dy, num_threads=value)
    before = cylstm.get_num_threads()
    with pytest.raises(error, match=re.escape(got)):
        cylstm.set_num_threads(value)
    assert cylstm.get_num_threads() == before


@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell):
    p = problem(cell, (4, 5), bidirectional=True)
    tape = p.forward()[2]
    p.backward(tape)
    before = p.layer.flat_grads.copy()
    for wrong, got in unreal(p.dy)[:-1]:
        refused(TypeError, "dy", got, p.layer.backward, tape, wrong)
    for shape in [(), (5,), (5, 3), (5, 3, 5), (4, 3, 10), (3, 5, 10), (5, 1, 10), (1, 5, 3, 10)]:
        refused(ValueError, "dy", str(shape), p.layer.backward, tape, np.zeros(shape))
    one_row = joined(tuple(part[:, :1] for part in p.dstate))
    refused(ValueError, "dstate", "(2, 1, 5)", p.layer.backward, tape, p.dy, one_row)
    for wrong, error, got in bad_states(cell, p.dstate):
        refused(error, "dstate", got, p.layer.backward, tape, p.dy, wrong)
    assert_same_bits(p.layer.flat_grads, before)


@pytest.mark.parametrize("cell", CELLS)
def test_tape(cell):
    p = problem(cell, (4, 5))
    tape = p.forward()[2]
    for wrong in (None, p.dy, "tape", (tape,)):
        refused(TypeError, "tape", type(wrong).__name__, p.layer.backward, wrong, p.dy)
    others = [LAYERS[cell](4, 5, bidirectional=True), LAYERS[cell](4, 6), LAYERS[cell](4, 5, 2),
              LAYERS[cell](3, 5), LAYERS[cell](4, 5, dtype="float64")]  # fmt: skip
    others += [LAYERS[other](4, 5) for other in CELLS if other != cell]
    for other in others:
        with pytest.raises(ValueError, match=r"^tape: "):
            other.backward(tape, np.zeros((5, 3, other.num_directions * other.hidden_size)))
        assert not np.any(other.flat_grads)


@pytest.mark.parametrize("cell", CELLS)
def test_parameters(cell):
    layer = LAYERS[cell](4, 5)
    before = layer.flat_params.copy()
    good = layer.state_dict()
    first, *_, last = good
    cases = [
        (KeyError, {**good, "weight_ho_l0": good[first]}, "weight_ho_l0"),
        (KeyError, {k: v for k, v in good.items() if k != last}, last),
        (ValueError, {**good, last: good[last][:-1]}, last),
        (ValueError, {**good, last: good[last][:, None]}, last),
        (TypeError, {**good, last: good[last] * 1j}, last),
        (TypeError, {**good, last: None}, last),
    ]
    for error, state, name in cases:
        state[first] = good[first] + 1 if first in state else None
        with pytest.raises(error, match=name):
            layer.load_state_dict(state)
    with pytest.raises(KeyError, match="unknown"):
        layer.assign({first: good[first] + 1, "unknown": good[last]})
    with pytest.raises(ValueError, match="expected shape"):
        layer.assign(before[:-1])
    with pytest.raises(TypeError, match="expected real numbers"):
        layer.assign(before.astype(complex))
    assert_same_bits(layer.flat_params, before)


@pytest.mark.parametrize(
    ("attention", "error", "got"),
    [
        (np.zeros((3, 2)), ValueError, "(3, 2)"),
        (np.zeros(3), ValueError, "(3,)"),
        (np.zeros((2, 3), bool), TypeError, "bool"),
        ("ab", TypeError, "U2"),
        (None, ValueError, "None"),
    ],
    ids=str,
)
def test_attention_is_one_number_for_each_step(attention, error, got):
    layer = cylstm.AUGRU(4, 5, rng=0)
    for call in (layer, layer.forward, layer.trace):
        refused(error, "attention", got, call, np.zeros((2, 3, 4)), attention=attention)
        with pytest.raises(TypeError, match="attention"):
            call(np.zeros((2, 3, 4)))
    rows = [np.zeros((2, 4)), np.zeros((3, 4))]
    refused(ValueError, "attention", "1", layer, rows, attention=[np.zeros(2)])
    with pytest.raises(ValueError, match=r"attention\[1\]: expected shape \(3,\), got \(2,\)"):
        layer(rows, attention=[np.zeros(2)] * 2)
