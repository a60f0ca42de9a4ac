"""What counts as an array, and what the message says of what does not."""

import array
import collections
import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import LAYERS, assert_same_bits, joined, problem, refused

import cylstm
from cylstm import checks

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)


class ByArray:
    """Something that NumPy reads by `__array__`, with a shape, as most libraries' arrays."""

    def __init__(self, a):
        self.a, self.shape, self.ndim, self.dtype = a, a.shape, a.ndim, a.dtype

    def __array__(self, dtype=None, copy=None):
        return self.a


class ByDLPack:
    """Something that only DLPack reads."""

    def __init__(self, a):
        self.a, self.shape = a, a.shape

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


class Tensor:
    """A tensor that refuses to be read, in another library's words."""

    def __init__(self, error=None, **attributes):
        self.error = error or RuntimeError("words of another library\nand more")
        self.shape = (2, 3)
        vars(self).update(attributes)

    def __array__(self, dtype=None, copy=None):
        raise self.error


class Device:
    def __init__(self, kind):
        self.type = kind

    def __str__(self):
        return f"{self.type}:0"


KINDS = {"array": ByArray, "dlpack": ByDLPack, "list": lambda a: a.tolist(),
         "subclass": lambda a: a.view(type("Own", (np.ndarray,), {})),
         "list of lists of vectors": lambda a: [list(rows) for rows in a]}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@EVERY
def test_everywhere(cell, kind):
    p = problem(cell, (3, 5, 2), bidirectional=True, mask="holes", reset=0.3)
    make = KINDS[kind]
    y, state, tape = p.forward()
    expected = tuple(p.gradients(tape).values())
    made = tuple(make(s) if "vectors" not in kind else s for s in p.state)
    vectors = make if "vectors" not in kind else np.asarray
    y_made, state_made, tape = p.layer.forward(
        make(p.x), joined(made), mask=vectors(p.mask), reset=vectors(p.reset)
    )
    assert_same_bits((y_made, p.parts(state_made)), (y, state))
    p.layer.zero_grad()
    dstate = tuple(vectors(d) for d in p.dstate)
    dx, dstate = p.layer.backward(tape, make(p.dy), joined(dstate))
    assert_same_bits((dx, *p.parts(dstate), *p.layer.grads.values()), expected)
    lengths = np.array([5, 0, 3])
    assert_same_bits(p.layer(make(p.x), lengths=vectors(lengths))[0],
                     p.layer(p.x, lengths=lengths)[0])  # fmt: skip


@pytest.mark.parametrize("kind", [np.asarray, ByArray, ByDLPack])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 2, 3), (1, 1), (3,), (0, 4)], ids=str)
@EVERY
def test_a_list_of_matrices_is_rows(cell, lengths, kind):
    """Of equal lengths, too, and whatever the matrices are."""
    layer, rng = LAYERS[cell](3, 5, rng=0), np.random.default_rng(0)
    rows = [rng.normal(size=(n, 3)).astype("f") for n in lengths]
    expected = [layer(row)[0] for row in rows]
    for make in (list, tuple, collections.deque):
        for x in (rows, [row[:, None] for row in rows], [row.astype(float) for row in rows]):
            y, _, tape = layer.forward(make(kind(row) for row in x))
            assert_same_bits(tuple(y), tuple(expected))
            dx, _ = layer.backward(tape, [kind(row) for row in y])
            assert [d.shape for d in dx] == [row.shape for row in rows]
    first = LAYERS[cell](3, 5, batch_first=True)
    first.assign(layer.flat_params)
    for x in (rows, [row[None] for row in rows]):
        assert_same_bits(tuple(first([kind(row) for row in x])[0]), tuple(expected))


@EVERY
def test_nested_lists(cell):
    """They are one array if they can be, and rows if they can only be rows."""
    layer, rng = LAYERS[cell](3, 5, rng=0), np.random.default_rng(0)
    x = rng.normal(size=(4, 2, 3)).astype("f")
    assert_same_bits(layer(x.tolist())[0], layer(x)[0])
    assert_same_bits(layer(x[:, 0].tolist())[0], layer(x[:, 0])[0])
    for rows in ([x[:, 0], x[:2, 1]], [x[:0, 0], x[:2, 1]], [x[:0, 0], x[:0, 1]], []):
        y, _ = layer([row.tolist() for row in rows])
        assert_same_bits(tuple(y), tuple(layer(row)[0] for row in rows))
    mixed = [x[:, 0], x[:2, 1].tolist(), ByArray(x[:3, 1]), []]
    expected = tuple(layer(row)[0] for row in (x[:, 0], x[:2, 1], x[:3, 1], x[:0, 0]))
    assert_same_bits(tuple(layer(mixed)[0]), expected)


@EVERY
def test_lists_that_are_no_rows(cell):
    layer = LAYERS[cell](3, 5)
    ones = np.ones
    cases = [
        ([ones((2, 3)), ones((2, 4))], ValueError, "x[1]: expected shape (T, 3), got (2, 4)"),
        ([ones((2, 3)), ones(3)], ValueError, "x[1]: expected shape (T, 3), got (3,)"),
        ([ones((2, 2, 3)), ones((2, 3))], ValueError, "x[0]: expected shape (T, 3), got (2, 2, 3)"),
        ([ones((2, 3)), None], TypeError, "x[1]: expected real numbers, got dtype object"),
        ([ones((2, 3)), "word"], TypeError, "x[1]: expected real numbers, got dtype <U4"),
        ([[[1.0, 2, 3]], [[1.0, 2], [3, 4, 5]]], ValueError, "x[1]: expected an array"),
        ([[1.0, 2, 3], [4.0]], ValueError, "x: expected an array"),
        ([ones((2, 3)), Tensor()], ValueError, "x[1]: expected an array in this machine's memory"),
    ]
    for call in (layer, layer.forward):
        for x, error, message in cases:
            with pytest.raises(error) as raised:
                call(x)
            assert str(raised.value).startswith(message)


WORDS = [
    ({"requires_grad": True}, "a tensor that requires grad: pass its .detach()"),
    ({"device": Device("cuda")}, "a tensor on device cuda: pass its .cpu()"),
    ({"device": Device("meta")}, "a tensor on the meta device, which has no values"),
    ({"layout": "torch.sparse_coo"}, "of layout torch.sparse_coo: pass its .to_dense()"),
    ({"dtype": "torch.bfloat16"}, "of dtype torch.bfloat16: pass its .float()"),
    ({"dtype": "torch.bfloat16", "requires_grad": True, "device": Device("xpu")},
     "a tensor that requires grad, on device xpu, of dtype torch.bfloat16: "
     "pass its .detach().cpu().float()"),
    ({}, "got words of another library"),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "words"), WORDS)
@EVERY
def test_tensors_that_cannot_be_read(cell, attributes, words):
    p = problem(cell, (3, 5))
    tape = p.forward()[2]
    for error in (
        RuntimeError("words of another library\n"),
        TypeError("words of another library"),
    ):
        wrong = Tensor(error, **attributes)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        for call in (p.layer, p.layer.forward, p.layer.trace):
            refused(kind, "x", words, call, wrong)
            refused(kind, "x", words, call, [[p.x[0, 0], wrong]])
            for name in ("lengths", "mask", "reset"):
                refused(kind, name, words, call, p.x, **{name: wrong})
                refused(kind, name, words, call, p.x, **{name: [1, wrong, 1]})
            state = (wrong, None) if cell == "lstm" else wrong
            refused(kind, "state h", words, call, p.x, state)
        refused(kind, "dy", words, p.layer.backward, tape, wrong)


@EVERY
def test_no_numbers(cell):
    layer = LAYERS[cell](3, 5)
    cases = [
        ((i for i in range(3)), "dtype object, from generator"), (None, "dtype object, from None"),
        ({1: 2}, "dtype object, from dict"), ("word", "dtype <U4"), (b"word", "dtype |S4"),
        (object(), "dtype object, from object"), (np.ones((2, 3), complex), "dtype complex128"),
        (np.array([[None] * 3]), "dtype object"),
        (np.array([np.ones((2, 3)), np.ones((1, 3))], object), "of arrays: pass its .tolist()"),
    ]  # fmt: skip
    for wrong, got in cases:
        refused(TypeError, "x", got, layer, wrong)
    masked = np.ma.masked_array(np.ones((2, 3)), [[0, 0, 1], [0, 0, 0]])
    refused(TypeError, "x", "masked values: pass its .filled", layer, masked)
    assert_same_bits(layer(np.ma.masked_array(np.ones((2, 3))))[0], layer(np.ones((2, 3)))[0])
    assert layer(array.array("f", [1, 2, 3]) and memoryview(np.ones((2, 3))))[0].shape == (2, 5)


def test_a_tensor_of_weights():
    ones = np.ones((2, 3), "f")
    for value in (ones, ByArray(ones), ByDLPack(ones), ones.tolist(), ones.astype("f2")):
        assert np.array_equal(checks.tensor("w", value), ones)

    class Parameter(Tensor):
        requires_grad, dtype = True, "torch.bfloat16"

        def detach(self):
            return Parameter(requires_grad=False)

        def float(self):
            assert not self.requires_grad
            return ByArray(ones)

    assert np.array_equal(checks.tensor("w", Parameter()), ones)
    for kind in ("i1", "u1"):
        refused(TypeError, "w", "int8: multiply quantised weights by their scale",
                checks.tensor, "w", ones.astype(kind))  # fmt: skip
    refused(TypeError, "w", "complex64", checks.tensor, "w", ones.astype("c8"))
    refused(ValueError, "w", "meta", checks.tensor, "w", Tensor(device=Device("meta")))


# Arguments that do not go together


@EVERY
def test_integers_go_through_an_embedding(cell):
    layer = LAYERS[cell](3, 5)
    for kind in (int, np.int32, np.uint8):
        refused(ValueError, "x", "(4, 2); integers that name things go through an Embedding first",
                layer, np.ones((4, 2), kind))  # fmt: skip
    assert layer(np.ones((4, 3), np.int16))[0].shape == (4, 5)  # raw audio


@EVERY
def test_a_step_of_rows_needs_an_axis_of_time(cell):
    p = problem(cell, (3, 5, 2))
    for batch_first, shape in ((False, "(1, B, I)"), (True, "(B, 1, I)")):
        layer = LAYERS[cell](3, 5, 2, batch_first=batch_first)
        refused(ValueError, "state h", f"(2, 3, 5); x of shape (T, I) is T steps of one row: a "
                f"step of B rows has shape {shape}", layer, p.x[0], joined(p.state))  # fmt: skip


@EVERY
def test_a_forgotten_batch_first(cell):
    p = problem(cell, (3, 5, 2), steps=4, rows=7)
    for batch_first in (False, True):
        layer = LAYERS[cell](3, 5, 2, batch_first=batch_first)
        x = p.x if batch_first else p.x.swapaxes(0, 1)  # as it would be with the other value
        got = f"with batch_first={batch_first} x has 7 steps of 4 rows"
        refused(ValueError, "state h", got, layer, x, joined(p.state))
        refused(ValueError, "lengths", got, layer, x, lengths=[4] * 7)
        for name in ("mask", "reset"):
            flags = np.ones((7, 4) if batch_first else (4, 7), bool)
            refused(ValueError, name, got, layer, x, **{name: flags})
    turned = joined(tuple(s.swapaxes(0, 1) for s in p.state))
    refused(ValueError, "state h", "(7, 2, 5); the rows of a state are its second axis",
            LAYERS[cell](3, 5, 2), p.x, turned)  # fmt: skip


@EVERY
def test_empty_lists(cell):
    first = LAYERS[cell](3, 5, batch_first=True)
    layer = LAYERS[cell](3, 5)
    x = np.zeros((4, 0, 3))
    assert layer(x, lengths=[], reset=[[]] * 4)[0].shape == (4, 0, 5)
    assert layer(x, mask=[])[0].shape == (4, 0, 5)
    assert first(x.swapaxes(0, 1), mask=[], reset=[])[0].shape == (0, 4, 5)
    refused(TypeError, "lengths", "float64", layer, x, lengths=np.zeros(0))
    refused(ValueError, "lengths", "(0,)", layer, np.zeros((4, 1, 3)), lengths=[])
    refused(ValueError, "mask", "(0,)", layer, np.zeros((4, 1, 3)), mask=[])


@EVERY
def test_words_and_seeds(cell):
    layer, x = LAYERS[cell](3, 5, 2, dropout=0.5), np.ones((4, 3))
    for wrong in ("", "sqr", b"sqrt"):
        error = TypeError if isinstance(wrong, bytes) else ValueError
        refused(error, "checkpoint", repr(wrong), layer.forward, x, checkpoint=wrong)
    for wrong in (True, np.True_, "seed", 1.5):
        refused(TypeError, "rng", repr(wrong), layer.forward, x, rng=wrong)
        refused(TypeError, "rng", repr(wrong), LAYERS[cell], 3, 5, rng=wrong)
    refused(TypeError, "return_", "None", layer, x, return_=None)


# Memory that is shared


def places(x, shape):
    """Copies of x with places of this shape for y that lie in their memory, each at its own."""
    width, wide = shape[-1], x.shape[-1]
    for offset in (0, wide - 1):
        buffer = np.zeros((*x.shape[:-1], wide + width), x.dtype)
        buffer[..., :wide] = x
        whole = buffer[..., offset : offset + width]
        yield buffer[..., :wide], whole[tuple(map(slice, shape))]
    if shape == x.shape:
        for later, order in ((1, 1), (0, 1), (0, -1)):
            buffer = np.zeros((x.shape[0] + 1, *x.shape[1:]), x.dtype)
            buffer[later:][: len(x)] = x
            yield buffer[later:][: len(x)], buffer[: len(x)][::order]


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@EVERY
def test_out_may_be_part_of_x_in_a_plain_call_only(cell, layers, batch_first, merge_mode):
    for bidirectional in {True, merge_mode != "concat"}:
        layer = LAYERS[cell](10, 5, layers, bidirectional=bidirectional, rng=0,
                             batch_first=batch_first, merge_mode=merge_mode)  # fmt: skip
        p = problem(cell, (10, 5), steps=6, rows=3)
        for options in ({}, {"lengths": [2, 6, 0] if not batch_first else [2, 3, 0, 1, 1, 3]},
                        {"reset": np.eye(6, 3, 2, bool)}, {"return_": 2}):  # fmt: skip
            y, state = layer(p.x, **options)
            for x, out in places(p.x, y.shape):
                before = x.copy()
                refused(ValueError, "out", "some of x, which the tape keeps", layer.forward, x,
                        out=out, **options)  # fmt: skip
                assert_same_bits(x, before)
                got, got_state = layer(x, out=out, **options)
                assert got is out
                assert_same_bits((np.ascontiguousarray(got), got_state), (y, state))


@EVERY
def test_out_beside_x_in_one_buffer_and_over_the_state(cell):
    p = problem(cell, (4, 5), steps=6, rows=3, bidirectional=True)
    y, state, tape = p.forward()
    expected = p.gradients(tape)
    buffer = np.zeros((6, 3, 14), "f")
    buffer[..., :4] = p.x
    got = p._replace(x=buffer[..., :4]).forward(out=buffer[..., 4:])
    assert_same_bits((np.ascontiguousarray(got[0]), got[1]), (y, state))
    for name, value in p._replace(x=buffer[..., :4]).gradients(got[2]).items():
        assert_same_bits(np.ascontiguousarray(value), expected[name])
    for call in (p.layer, p.layer.forward):
        out = np.zeros_like(y)
        h = out.reshape(-1)[: p.state[0].size].reshape(p.state[0].shape)
        h[...] = p.state[0]
        assert_same_bits(call(p.x, joined((h, *p.state[1:])), out=out)[0], y)
        twice = np.lib.stride_tricks.as_strided(out, out.shape, (0, *out.strides[1:]))
        refused(ValueError, "out", "strides (0, ", call, p.x, out=twice)


@EVERY
def test_arguments_written_by_another_thread_during_the_call(cell):
    """They are copied first: whatever comes is refused, or is a result of valid values."""
    p = problem(cell, (3, 8), steps=30, rows=40)
    lengths, mask = np.full(40, 30), np.ones((30, 40), np.int64)
    reset, stop = np.zeros((30, 40), np.uint8), threading.Event()

    def write():
        rng = np.random.default_rng(0)
        while not stop.is_set():
            lengths[...] = rng.integers(0, 31, 40)
            mask[...] = rng.integers(0, 2, (30, 40))
            reset[...] = rng.integers(0, 2, (30, 40))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(30):
            for given in ({"lengths": lengths}, {"mask": mask}, {"reset": reset}):
                y, _, tape = p.layer.forward(p.x, num_threads=1, **given)
                assert np.isfinite(y).all()
                p.layer.backward(tape, y)
    finally:
        stop.set()
        thread.join()
    given = checks.lengths(lengths, 40, 30)
    assert not np.shares_memory(given, lengths)
    assert not np.shares_memory(checks.booleans("mask", reset.view(bool), (30, 40)), reset)


@EVERY
def test_a_tape_is_neither_pickled_nor_copied(cell):
    layer = LAYERS[cell](3, 5)
    tape = layer.forward(np.ones((2, 3)))[2]
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(
            TypeError, match=r"^a tape cannot be pickled or copied: .*forward again"
        ):
            act(tape)
    (window,) = cylstm.truncated_bptt(layer, np.ones((2, 3)), 2)
    with pytest.raises(TypeError, match=r"^a tape cannot be pickled or copied: "):
        pickle.dumps(window)


OVERLAPPING = [(0, 16, 4), (16, 0, 4), (4, 4, 4), (16, 16, 4), (16, 8, 4), (-16, 16, 4)]


@pytest.mark.parametrize("strides", OVERLAPPING)
def test_out_whose_elements_share_memory_is_refused(strides):
    layer, x = cylstm.LSTM(3, 4, rng=0), np.ones((6, 2, 3), np.float32)
    memory = np.zeros(400, np.float32)
    out = np.lib.stride_tricks.as_strided(memory[200:], (6, 2, 4), strides)
    for call in (layer, layer.forward):
        with pytest.raises(ValueError, match=r"^out: expected elements of its own, got strides"):
            call(x, out=out)
    assert not memory.any()


@pytest.mark.parametrize("strides", [(32, 16, 4), (16, 96, 4), (-32, 16, 4), (64, 20, 4)])
def test_out_of_any_layout_without_shared_elements(strides):
    layer, x = cylstm.LSTM(3, 4, rng=0), np.ones((6, 2, 3), np.float32)
    out = np.lib.stride_tricks.as_strided(np.zeros(400, np.float32)[200:], (6, 2, 4), strides)
    y, _ = layer(x, out=out)
    assert y is out
    assert np.array_equal(out, layer(x)[0])
