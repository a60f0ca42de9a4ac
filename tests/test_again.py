"""A call like the one before runs on what that one has planned: the same bits, or the long way."""

import contextlib
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import DTYPES, LAYERS, assert_same_bits, joined, parts, refused

import cylstm
from cylstm.kernels import sequence

CELLS = ("lstm", "gru", "rnn_tanh")
EVERY = pytest.mark.parametrize("cell", CELLS)
SHAPES = [(1, 1), (3, 1), (4, 5)]
OPTIONS = [
    {}, {"num_layers": 3}, {"bidirectional": True}, {"bidirectional": True, "num_layers": 2},
    {"batch_first": True}, {"batch_first": True, "bidirectional": True, "num_layers": 2},
    {"go_backwards": True}, {"zoneout": 0.3}, {"clip": 0.2},
]  # fmt: skip
OF_ONE_CELL = [
    ("lstm", {"proj_size": 3, "num_layers": 2}), ("lstm", {"peepholes": True}),
    ("lstm", {"layer_norm": "haste"}), ("gru", {"reset_after": False}),
    ("gru", {"layer_norm": "haste", "bidirectional": True}), ("rnn_tanh", {"independent": True}),
]  # fmt: skip


def network(cell, *, sizes=(3, 17), dtype="float32", **options):
    return LAYERS[cell](*sizes, dtype=dtype, rng=0, **options)


def normal(layer, rng, *shape):
    return rng.normal(size=shape).astype(layer.dtype)


def values(layer, shape, seed=0, batched=True):
    """An input of (T, B) and a state for it, of random numbers."""
    rng, (steps, rows) = np.random.default_rng(seed), shape
    of_x = (rows, steps) if layer.batch_first else (steps, rows)
    n = layer.num_layers * layer.num_directions
    widths = {"h": layer.output_sizes[0], "c": layer.hidden_sizes[0]}
    x = normal(layer, rng, *of_x, layer.input_size)
    state = [normal(layer, rng, n, rows, widths[part]) for part in layer.states]
    if not batched:
        x, state = x.reshape(steps, -1), [part[:, 0] for part in state]
    return x, tuple(state) if len(state) > 1 else state[0]


def again(layer, x, state=None, num_threads=None):
    """The short way; None if it is not open."""
    stack = layer._packed
    return stack and stack.again(x, state, layer.batch_first, num_threads)


def long_way(layer, x, state=None):
    """By a layer that has not been called before."""
    other = type(layer).__new__(type(layer))
    other.__setstate__(layer.__getstate__())
    return other(x, state)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cell", "options"), [(c, o) for c in CELLS for o in OPTIONS] + OF_ONE_CELL, ids=str
)
def test_same_bits(cell, options, dtype, shape, batched):
    layer, shape = network(cell, dtype=dtype, **options), shape if batched else (shape[0], 1)
    assert again(layer, *values(layer, shape)) is None
    layer(*values(layer, shape, batched=batched))
    for seed in (1, 2):
        x, state = values(layer, shape, seed, batched)
        found = again(layer, x, state)
        assert_same_bits(found, long_way(layer, x, state))
        assert_same_bits(layer(x, state), found)
        assert all(a.flags.c_contiguous and a.flags.owndata for a in (found[0], *parts(found[1])))


@EVERY
def test_batched_and_not(cell):
    """One row may come with its axis or without, whatever the last one did."""
    layer = network(cell, num_layers=2)
    layer(*values(layer, (3, 1)))
    for batched in (False, True, False):
        x, state = values(layer, (3, 1), 1, batched)
        assert_same_bits(again(layer, x, state), long_way(layer, x, state))
    x, _ = values(layer, (3, 1), 1, False)
    _, state = values(layer, (3, 1), 1)
    with pytest.raises(ValueError, match=r"^state.*expected shape"):
        layer(x, state)


@EVERY
def test_no_state(cell):
    """Zeros, whatever the last call ended with."""
    layer = network(cell, num_layers=2)
    x, state = values(layer, (2, 3))
    layer(x, state)
    assert_same_bits(again(layer, x), long_way(layer, x))
    if cell == "lstm":
        for part in ((state[0], None), (None, state[1]), (None, None)):
            assert_same_bits(again(layer, x, part), long_way(layer, x, part))


def others(x):
    """The same numbers, and other ones, that do not come as the kernels read them."""

    class Array(np.ndarray):
        pass

    wide = np.zeros((*x.shape[:2], x.shape[2] + 1), x.dtype)
    wide[..., :-1] = x
    odd = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    odd[...] = x
    return {
        "list": x.tolist(), "float64": x.astype(float), "float16": x.astype("f2"),
        "integers": x.astype(int), "big-endian": x.astype(x.dtype.newbyteorder()),
        "Fortran": np.asfortranarray(x), "strided": np.repeat(x, 2, axis=0)[::2],
        "reversed": x[::-1], "part": wide[..., :-1], "subclass": x.view(Array), "misaligned": odd,
        "more steps": np.concatenate([x, x]), "fewer rows": x[:, :1].copy(),
        "broadcast": np.broadcast_to(x[:1, :1], x.shape),
    }  # fmt: skip


@EVERY
def test_other_inputs_go_the_long_way(cell):
    layer = network(cell)
    x, _ = values(layer, (4, 5))
    for name, other in others(x).items():
        layer(x)
        assert again(layer, x) is not None
        assert again(layer, other) is None, name
        assert_same_bits(layer(other), long_way(layer, other))


@EVERY
def test_other_states_go_the_long_way(cell):
    layer = network(cell, num_layers=2)
    x, state = values(layer, (4, 5))
    layer(x)
    for which, part in enumerate(parts(state)):
        for name, other in others(part).items():
            given = [*parts(state)]
            given[which] = other
            given = joined(tuple(given))
            assert again(layer, x, given) is None, name
            if name not in ("more steps", "fewer rows", "part"):
                assert_same_bits(layer(x, given), long_way(layer, x, given))
    if cell == "lstm":
        assert again(layer, x, list(state)) is None
        assert again(layer, x, (*state, None)) is None
        assert again(layer, x, state[0]) is None


def test_bad_input_is_refused_as_ever():
    layer = network("lstm")
    x, state = values(layer, (2, 3))
    for _ in range(2):
        y, _ = layer(x, state)
        refused(ValueError, "x", "(2, 3, 4)", layer, np.zeros((2, 3, 4), "f"))
        refused(ValueError, "x", "(1, 2, 3, 3)", layer, x[None])
        refused(ValueError, "x", "(3,)", layer, x[0, 0])
        refused(ValueError, "state h", "(1, 2, 17)", layer, x, (state[0][:, :2], state[1]))
        refused(ValueError, "state c", "(1, 3, 16)", layer, x, (state[0], state[1][..., :16]))
        refused(TypeError, "num_threads", "True", layer, x, state, num_threads=True)
        refused(ValueError, "num_threads", "0", layer, x, state, num_threads=0)
        refused(TypeError, "num_threads", "'2'", layer, x, state, num_threads="2")
        assert_same_bits(layer(x, state, num_threads=np.int64(3))[0], y)


@EVERY
def test_what_is_not_a_plain_call_is_not_kept(cell):
    x, _ = values(network(cell), (4, 5))
    for given in ({"lengths": [4, 4, 3, 4, 4]}, {"mask": np.ones((4, 5), bool)},
                  {"return_": "last"}, {"return_": 2}):  # fmt: skip
        layer = network(cell)
        layer(x, **given)
        assert again(layer, x) is None
    layer = network(cell)
    layer.forward(x)
    assert again(layer, x) is None
    for options in ({"merge_mode": "sum", "bidirectional": True}, {"sizes": (3, (17, 5))}):
        layer = network(cell, **options)
        expected = layer(x)
        assert again(layer, x) is None
        assert_same_bits(layer(x), expected)


def test_only_calls_of_little_memory_are_kept():
    layer = network("lstm", sizes=(4, 64))
    for steps, kept in ((100, True), (1000, False), (100, True)):
        x = np.zeros((steps, 1, 4), "f")
        layer(x)
        assert (again(layer, x) is not None) == kept
        assert layer.workspace_nbytes(steps, num_threads=1) < 2**18 or not kept


@EVERY
def test_changed_weights(cell):
    layer = network(cell)
    x, state = values(layer, (2, 3))
    before, _ = layer(x, state)
    layer(x, state)
    layer.assign(2 * layer.flat_params)
    assert_same_bits(layer(x, state), long_way(layer, x, state))
    assert not np.array_equal(layer(x, state)[0], before)


@EVERY
def test_results_are_new_arrays(cell):
    layer = network(cell, num_layers=2)
    first = [values(layer, (2, 3), seed) for seed in range(4)]
    expected = [long_way(layer, *given) for given in first]
    for found, result in zip([layer(*given) for given in first], expected, strict=True):
        assert_same_bits(found, result)


def test_nothing_of_the_caller_is_kept_alive():
    layer = network("lstm")
    for _ in range(3):
        x, state = values(layer, (2, 3))
        y, new = layer(x, state)
        references = [weakref.ref(a) for a in (x, y, *state, *new)]
        del x, y, state, new
        assert not any(r() is not None for r in references)


def test_old_weights_are_freed_at_once():
    """Not only when the garbage collector finds a cycle: a training loop packs at every step."""
    layer = network("lstm", num_layers=2)

    def packed():
        return sum(isinstance(o, sequence.Packed) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = packed()
        for _ in range(5):
            x, state = values(layer, (2, 3))
            for _ in range(3):
                layer(x, state)
            assert packed() == before + 2
            layer.assign(layer.flat_params)
    finally:
        gc.enable()


SHARED = ("lstm", "gru")  # of 256 units: one step is worth a second thread


def plan_for_two(layer, *given):
    """Call when no crowd has been noticed for longer than that keeps calls on one thread."""
    time.sleep(0.01)
    layer(*given, num_threads=2)


@pytest.mark.parametrize("cell", SHARED)
def test_two_threads(cell):
    layer = network(cell, sizes=(200, 256), num_layers=2)
    for seed in range(30):
        x, state = values(layer, (2, 1), seed)
        expected = long_way(layer, x, state)
        plan_for_two(layer, *values(layer, (2, 1), seed + 1))
        for threads in (2, 1, 2, None):
            assert_same_bits(layer(x, state, num_threads=threads), expected)


def test_two_threads_only_if_there_may_be_two():
    layer = network("lstm", sizes=(256, 256))
    given = values(layer, (1, 1))
    plan_for_two(layer, *given)
    with contextlib.ExitStack() as stack:
        stack.callback(cylstm.set_num_threads, None)
        cylstm.set_num_threads(1)
        assert (again(layer, *given) is None) == sequence.OPENMP


@pytest.mark.parametrize("sizes", [(5, 17), (200, 256)], ids=str)
@pytest.mark.parametrize("cell", SHARED)
def test_python_threads_share_a_layer(cell, sizes):
    layer = network(cell, sizes=sizes, num_layers=2)
    given = [values(layer, (1, 1), seed) for seed in range(8)]
    expected = [long_way(layer, *one) for one in given]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(40):
            found = pool.map(lambda one: [layer(*one, num_threads=2) for _ in range(10)], given)
            for results, result in zip(found, expected, strict=True):
                for one in results:
                    assert_same_bits(one, result)


def test_the_call_is_one_callers_from_the_first_look_on():
    """Asking for the number of threads lets others run: they can neither use it nor replace it."""
    layers, asked = network("lstm", sizes=(200, 256))._weights(False).layers, []

    def pass_of(steps):
        x = np.zeros((steps, 1, 200), "f")
        return [sequence.forward(layers[0], x, None, (None, None), None, False, 1)[2]]

    def number(given):
        asked.append(given)
        if given == 3:
            stack.keep(pass_of(5))
        if given == 4:
            assert stack.again(x, None, False, 1) is None
        return 1

    stack = sequence.Stack(layers, number)
    stack.keep(pass_of(2))
    x = np.zeros((2, 1, 200), "f")
    assert stack.again(x, None, False, 2)[0].shape == (2, 1, 256)
    for num_threads in (3, 4):
        assert stack.again(x, None, False, num_threads)[0].shape == (2, 1, 256)
    assert asked == [2, 3, 4]


def test_the_native_entry_takes_calls_of_its_own_weights_only():
    layer, other = network("lstm"), network("lstm")
    stack, (x, _) = layer._weights(False), values(layer, (2, 3))
    call = sequence.forward(other._weights(False).layers[0], x, None, (None, None), None, False, 1)
    for calls in ([], [None], [call[2]] * 2, [call[2]], [sequence.Call.__new__(sequence.Call)]):
        stack.keep(calls)
        assert again(layer, x) is None
    narrow = network("lstm", sizes=(5, 17))  # does not read what the other gives
    lists = [stack.layers[0], narrow._weights(False).layers[0]]
    pair = sequence.Stack(lists, lambda given: 1)
    pair.keep(
        [
            sequence.forward(
                packed, np.zeros((2, 3, size), "f"), None, (None, None), None, False, 1
            )[2]
            for packed, size in zip(lists, (3, 5), strict=True)
        ]
    )
    assert pair.again(x, None, False, None) is None
    mine = [sequence.forward(stack.layers[0], x, None, (None, None), None, False, 1)[2]]
    stack.keep(mine)
    mine.clear()
    assert again(layer, x) is not None
    with pytest.raises(TypeError):
        stack.keep(None)
    with pytest.raises(TypeError):
        stack.keep([layer])
    nothing = sequence.Stack.__new__(sequence.Stack)
    assert nothing.again(x, None, False, None) is None
    with pytest.raises(TypeError):
        nothing.keep([])
