"""Calls that the kernels take as they are, on what earlier ones have planned: the same bits."""

import contextlib
import gc
import itertools
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
RETURNS = ("all", "last", "final", "mean", "max", 1, 2)


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


def run(layer, x, state=None, *, out=None, state_out=None, num_threads=None, **given):
    """The short way; None if it is not open."""
    given = {"lengths": None, "mask": None, "reset": None, "return_": "all"} | given
    return layer._weights(False).run(x, state, *given.values(), out, state_out, num_threads)


def long_way(layer, x, state=None, lengths=None, **given):
    """With every argument checked, and every layer planned by itself."""
    return layer._run(x, state, lengths, **given)[:2]


def plans(layer):
    """Those that are kept."""
    found = [o for o in gc.get_referents(layer._packed) if isinstance(o, list)]
    return [o for kept in found for o in kept if isinstance(o, sequence.Plan)]


def steps_read(layer, shape, seed, batched=True):
    """Arguments that say which steps are read: lengths as they come, and masks."""
    rng, (steps, rows) = np.random.default_rng(seed), shape
    lengths = rng.integers(0, steps + 1, rows)
    mask = rng.random((rows, steps) if layer.batch_first else (steps, rows)) < 0.6
    if not batched:
        mask = mask[:, 0] if not layer.batch_first else mask[0]
    strided = np.repeat(mask, 2, axis=0)[::2]
    return [
        {}, {"lengths": lengths}, {"lengths": lengths.tolist()},
        {"lengths": lengths.astype(np.int32)}, {"mask": mask}, {"mask": strided},
    ]  # fmt: skip


def some(a, b, seed):
    """Every third of all pairs, other ones by the seed."""
    return list(itertools.product(a, b))[seed % 3 :: 3]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cell", "options"), [(c, o) for c in CELLS for o in OPTIONS] + OF_ONE_CELL, ids=str
)
def test_same_bits(cell, options, dtype, shape, batched):
    layer, shape = network(cell, dtype=dtype, **options), shape if batched else (shape[0], 1)
    for seed in (1, 2):
        x, state = values(layer, shape, seed, batched)
        found = run(layer, x, state)
        assert_same_bits(found, long_way(layer, x, state))
        assert_same_bits(layer(x, state), found)
        assert all(a.flags.c_contiguous and a.flags.owndata for a in (found[0], *parts(found[1])))
        for return_, read in some(RETURNS, steps_read(layer, shape, seed, batched), seed):
            found = run(layer, x, state, return_=return_, **read)
            if return_ in ("all", *range(1, shape[0] + 1)) or isinstance(return_, str):
                assert found is not None
                expected = long_way(layer, x, state, return_=return_, **read)
                assert_same_bits(found, expected)
                assert_same_bits(layer(x, state, return_=return_, **read), expected)


@pytest.mark.parametrize(
    ("cell", "options"), [(c, o) for c in CELLS for o in OPTIONS] + OF_ONE_CELL, ids=str
)
def test_lists(cell, options):
    """Rows are read where they are."""
    layer = network(cell, **options)
    for seed, lengths in enumerate([(3, 1, 4), (0, 2), (5,), (2, 2, 2), (3, 0, 0, 6)]):
        _, state = values(layer, (1, len(lengths)), seed)
        rows = [normal(layer, np.random.default_rng(seed + i), n, 3)
                for i, n in enumerate(lengths)]  # fmt: skip
        rows[0] = np.repeat(rows[0], 2, axis=0)[::2].astype("f8")
        for return_ in RETURNS[: -1 if max(lengths) == 1 else None]:
            found = run(layer, rows, state, return_=return_)
            expected = long_way(layer, rows, state, return_=return_)
            if return_ in ("last", "final", "mean", "max"):
                assert_same_bits(found, expected)
            else:
                assert_same_bits((tuple(found[0]), found[1]), (tuple(expected[0]), expected[1]))
    for wrong in ([rows[0], None], [rows[0], rows[0][:, :2]], [rows[0][:, None]], [], (rows[0],)):
        assert run(layer, wrong) is None
    assert run(layer, rows, lengths=list(lengths)) is None
    assert run(layer, rows, out=np.zeros((6, 4, 17), "f")) is None


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": True}], ids=str)
@EVERY
def test_one_step_with_resets(cell, options):
    layer = network(cell, **options)
    for seed, batched in ((0, True), (1, True), (2, False)):
        x, state = values(layer, (1, 4 if batched else 1), seed, batched)
        reset = np.random.default_rng(seed).random(4 if batched else 1) < 0.5
        if batched:
            reset = reset[:, None] if layer.batch_first else reset[None]
        for more in ({}, {"return_": "last"}, {"return_": "final"}, {"lengths": [0, 1, 1, 0]}):
            if batched or "lengths" not in more:
                expected = long_way(layer, x, state, reset=reset, **more)
                assert_same_bits(run(layer, x, state, reset=reset, **more), expected)
                assert_same_bits(layer(x, state, reset=reset, **more), expected)
        for more in ({"return_": "mean"}, {"return_": 1}):
            assert run(layer, x, state, reset=reset, **more) is None
    x, state = values(layer, (2, 4))
    reset = np.zeros((4, 2) if layer.batch_first else (2, 4), bool)
    assert run(layer, x, state, reset=reset) is None
    back = network(cell, go_backwards=True)
    assert run(back, *values(back, (1, 4)), reset=np.ones((1, 4), bool)) is None


@pytest.mark.parametrize(
    ("cell", "options"), [(c, o) for c in CELLS for o in OPTIONS] + OF_ONE_CELL, ids=str
)
def test_tapes(cell, options):
    """Forward by the short way, and backward from it."""
    layer, shape = network(cell, **options), (4, 5)
    options = {k: v for k, v in options.items() if k != "zoneout"}
    layer = network(cell, **options)
    for seed, batched in ((0, True), (1, False)):
        shape = (4, 5) if batched else (4, 1)
        x, state = values(layer, shape, seed, batched)
        for return_, read in some(RETURNS, steps_read(layer, shape, seed, batched), seed):
            for given in (state, None):
                arguments = {"return_": return_} | read
                names = ("lengths", "mask")
                taken = layer._weights(True).record(
                    x, given, *[read.get(n) for n in names], return_, None, 1
                )
                assert taken is not None
                short = layer.forward(x, given, **arguments)
                long = layer._run(x, given, **{"lengths": None} | arguments, taped=True)
                assert_same_bits(short[:2], long[:2])
                dy = np.random.default_rng(3).normal(size=short[0].shape).astype("f")
                both = []
                for tape in (short[2], long[2]):
                    layer.zero_grad()
                    both.append((*layer.backward(tape, dy), layer.flat_grads.copy()))
                assert_same_bits(*both)


def test_a_tape_keeps_what_was_read():
    """Lengths and masks may be written over between forward and backward."""
    layer = network("lstm")
    x, _ = values(layer, (4, 3))
    for name, given in (("lengths", np.array([4, 0, 2])), ("mask", np.eye(4, 3, dtype=bool))):
        found = []
        for change in (False, True):
            mine = given.copy()
            y, _, tape = layer.forward(x, **{name: mine})
            if change:
                mine[...] = 1
            layer.zero_grad()
            found.append((layer.backward(tape, np.ones_like(y))[0], layer.flat_grads.copy()))
        assert_same_bits(*found)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@EVERY
def test_states_into_memory_of_the_callers(cell, options):
    layer = network(cell, num_layers=2, **options)
    x, state = values(layer, (4, 5))
    for more in ({}, {"lengths": [4, 0, 2, 1, 3]}, {"return_": "last"}):
        expected = long_way(layer, x, state, **more)
        for given in (None, state):
            into = joined(tuple(np.full_like(part, 7) for part in parts(state)))
            found = run(layer, x, given, state_out=into, **more)
            assert found[1] is into
            assert_same_bits(found, long_way(layer, x, given, **more))
        mine = joined(tuple(part.copy() for part in parts(state)))
        found = run(layer, x, mine, state_out=mine, **more)  # in place
        assert_same_bits(found, expected)
    wide = joined(tuple(np.repeat(part, 2, axis=0)[::2] for part in parts(state)))
    assert run(layer, x, state, state_out=wide) is None
    assert_same_bits(layer(x, state, state_out=wide), long_way(layer, x, state))
    shifted = [np.concatenate([part.ravel(), part.ravel()]) for part in parts(state)]
    given = joined(tuple(a[:n].reshape(p.shape) for a, n, p in
                         zip(shifted, (p.size for p in parts(state)), parts(state),
                             strict=True)))  # fmt: skip
    into = joined(tuple(a[1:][: p.size].reshape(p.shape)
                        for a, p in zip(shifted, parts(state), strict=True)))  # fmt: skip
    expected = long_way(layer, x, joined(tuple(part.copy() for part in parts(state))))
    assert run(layer, x, given, state_out=into) is None
    assert_same_bits(layer(x, given, state_out=into), expected)


def test_bad_state_out_is_refused_before_anything_is_written():
    layer = network("lstm", num_layers=2)
    x, (h, c) = values(layer, (2, 3))
    y = np.full((2, 3, 17), 7, "f")
    fixed = h.copy()
    fixed.flags.writeable = False
    for error, wrong, names in [
        (TypeError, h, ("state_out", "(h, c)", "ndarray")),
        (TypeError, (h,), ("state_out", "1 values")),
        (TypeError, (h, None), ("state_out c", "NoneType")),
        (ValueError, (h[:1], c), ("state_out h", "(2, 3, 17)", "(1, 3, 17)")),
        (TypeError, (h, c.astype("f8")), ("state_out c", "float32", "f8")),
        (ValueError, (fixed, c), ("state_out h", "writeable")),
        (ValueError, (h, h), ("state_out h", "state_out c")),
        (ValueError, (y.ravel()[:102].reshape(h.shape), c), ("state_out h", "out")),
    ]:
        for part in names[1:]:
            refused(error, names[0], part, layer, x, out=y, state_out=wrong)
    assert np.all(y == 7)
    uneven = network("lstm", sizes=(3, (17, 5)))
    y, (h, c) = uneven(x)
    into = tuple(tuple(np.zeros_like(part) for part in parts_of) for parts_of in (h, c))
    found = uneven(x, state_out=into)
    assert found[1] is into
    assert_same_bits(found, (y, (h, c)))
    twice = (into[0], (into[1][0], into[1][0]))
    with pytest.raises(ValueError, match=r"^state_out c\[1\]: expected .*got \(1, 3, 17\)"):
        uneven(x, state_out=twice)


@EVERY
def test_batched_and_not(cell):
    """One row may come with its axis or without, whatever the last one did."""
    layer = network(cell, num_layers=2)
    layer(*values(layer, (3, 1)))
    for batched in (False, True, False):
        x, state = values(layer, (3, 1), 1, batched)
        assert_same_bits(run(layer, x, state), long_way(layer, x, state))
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
    assert_same_bits(run(layer, x), long_way(layer, x))
    if cell == "lstm":
        for part in ((state[0], None), (None, state[1]), (None, None)):
            assert_same_bits(run(layer, x, part), long_way(layer, x, part))


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
def test_other_inputs_are_copied_or_go_the_long_way(cell):
    layer = network(cell)
    x, _ = values(layer, (4, 5))
    for name, other in others(x).items():
        found, expected = run(layer, other), long_way(layer, other)
        if name in ("list", "subclass"):
            assert found is None, name
        else:
            assert_same_bits(found, expected)
        assert_same_bits(layer(other), expected)
    for wrong in (x.astype(bool), x.astype(complex), x.astype(object)):
        assert run(layer, wrong) is None


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@EVERY
def test_results_into_memory_of_the_callers(cell, options):
    layer = network(cell, num_layers=2, **options)
    x, state = values(layer, (4, 5))
    y, final = layer(x, state)
    for num_threads in (None, 2):
        out = np.full_like(y, 7)
        found = run(layer, x, state, num_threads=num_threads, out=out)
        assert found[0] is out
        assert_same_bits(found, (y, final))
    wide = np.zeros((*y.shape[:2], y.shape[2] + 1), y.dtype)[..., 1:]
    fixed = y.copy()
    fixed.flags.writeable = False
    for other in (wide, fixed, y.astype("f8" if y.dtype == "f4" else "f4"), y[:1], y.tolist()):
        assert run(layer, x, state, out=other) is None
    assert_same_bits(layer(x, state, out=wide), (y, final))


@EVERY
def test_results_over_what_is_read_go_the_long_way(cell):
    layer = network(cell, sizes=(17, 17))
    x, state = values(layer, (4, 5))
    y, final = layer(x, state)
    memory = np.zeros(2 * x.size, x.dtype)
    inside = memory[: x.size].reshape(x.shape)
    inside[...] = x
    for first, free in ((0, False), (5, False), (x.size - 1, False), (x.size, True)):
        out = memory[first : first + x.size].reshape(x.shape)
        assert (run(layer, inside, state, out=out) is not None) == free
        inside[...] = x
    assert_same_bits(layer(inside, state, out=inside), (y, final))
    part = parts(state)[-1]
    memory = np.concatenate([part.ravel(), np.zeros_like(x).ravel()])
    given = (*parts(state)[:-1], memory[: part.size].reshape(part.shape))
    out = memory[part.size - 1 :][: x.size].reshape(x.shape)
    assert run(layer, x, joined(given), out=out) is None
    assert_same_bits(layer(x, joined(given), out=out), (y, final))


@EVERY
def test_shapes_by_turns(cell):
    """Four plans are kept, of which the one not used for the longest time is given up."""
    layer = network(cell)
    calls = [{}, {"lengths": [1, 0]}, {"return_": "last"}, {"return_": 2}]
    shapes = [(2, 1), (3, 2), (2, 3), (4, 1)]
    for seed in range(2):
        for more, shape in zip(calls, shapes, strict=True):
            x, state = values(layer, shape, seed)
            assert_same_bits(layer(x, state, **more), long_way(layer, x, state, **more))
    kept = plans(layer)
    assert len(kept) == 4
    for at, (more, shape) in enumerate(zip(calls, shapes, strict=True)):
        layer(*values(layer, shape), **more)
        assert plans(layer)[0] is kept[3 - at]
    layer(*values(layer, (5, 5)))
    assert plans(layer)[1:] == kept[:3]
    layer(*values(layer, (3, 5)), lengths=[3, 2, 1, 0, 3])  # whatever the shape
    assert plans(layer)[0] is kept[2]
    taped = layer.forward(values(layer, (2, 1))[0])
    assert len(plans(layer)) == 0
    del taped


@EVERY
def test_outputs_of_one_shape_by_turns(cell):
    """A plan for other outputs of the same shape of x is not used, nor one for whole rows."""
    layer = network(cell, bidirectional=True)
    x, state = values(layer, (4, 3))
    for seed in range(2):
        for more in [
            *({"return_": name} for name in RETURNS), {"lengths": [1, 4, 2]},
            {"mask": np.eye(4, 3, dtype=bool)}, {"lengths": [4, 1, 0], "return_": 3}, {},
        ]:  # fmt: skip
            for again in range(2):
                x, state = values(layer, (4, 3), 2 * seed + again)
                assert_same_bits(layer(x, state, **more), long_way(layer, x, state, **more))


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
            assert run(layer, x, given) is None, name
            if name not in ("more steps", "fewer rows", "part"):
                assert_same_bits(layer(x, given), long_way(layer, x, given))
    if cell == "lstm":
        assert run(layer, x, list(state)) is None
        assert run(layer, x, (*state, None)) is None
        assert run(layer, x, state[0]) is None


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
def test_what_needs_more_than_the_kernels_goes_the_long_way(cell):
    for options in (
        {"merge_mode": "sum", "bidirectional": True}, {"sizes": (3, (17, 5))},
        {"learn_initial_state": True},
    ):  # fmt: skip
        layer = network(cell, **options)
        x, _ = values(layer, (4, 5))
        assert run(layer, x) is None
        assert_same_bits(layer(x), long_way(layer, x))
    layer = network(cell)
    assert run(layer, np.zeros((0, 2, 3), "f")) is None
    assert run(layer, np.zeros((2, 0, 3), "f")) is None
    for wrong in (
        {"lengths": [4.0] * 5}, {"lengths": np.ones(5)}, {"lengths": [5] * 5},
        {"lengths": [4] * 4}, {"lengths": [-1] * 5}, {"lengths": [True] * 5},
        {"lengths": np.full(5, 5)}, {"lengths": np.full((5, 1), 4)},
        {"lengths": np.array([1] * 5, object)}, {"lengths": np.full(5, 2**63, np.uint64)},
        {"mask": np.ones((4, 5))}, {"mask": np.ones((5, 4), bool)}, {"mask": np.ones(4, bool)},
        {"lengths": [4] * 5, "mask": np.ones((4, 5), bool)}, {"return_": "every"},
        {"return_": 0}, {"return_": True}, {"return_": "x"}, {"return_": None}, {"return_": 5},
        {"reset": np.ones((4, 5), bool)},
    ):  # fmt: skip
        assert run(layer, x, **wrong) is None, wrong


def test_only_plans_of_little_memory_are_kept():
    layer = network("lstm", sizes=(4, 64))
    for steps, kept in ((100, 1), (1000, 1), (100, 1)):
        x = np.zeros((steps, 1, 4), "f")
        layer(x)
        assert len(plans(layer)) == kept
        assert layer.workspace_nbytes(steps, num_threads=1) < 2**18 or steps == 1000
    layer(np.zeros((1000, 1, 4), "f"), lengths=[1000])
    assert len(plans(layer)) == 1
    layer(np.zeros((100, 1, 4), "f"), lengths=[90])
    assert len(plans(layer)) == 2


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


def test_as_many_threads_as_there_may_be():
    layer = network("lstm", sizes=(256, 256))
    x, state = values(layer, (1, 1))
    plan_for_two(layer, x, state)
    expected = long_way(layer, x, state)
    with contextlib.ExitStack() as stack:
        stack.callback(cylstm.set_num_threads, None)
        for number in (1, 2, 1):
            cylstm.set_num_threads(number)
            time.sleep(0.01)
            assert_same_bits(run(layer, x, state), expected)


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


def test_a_plan_is_one_callers_from_the_first_look_on():
    """Asking for the number of threads lets others run: they can neither use it nor replace it."""
    layers, asked = network("lstm", sizes=(200, 256))._weights(False).layers, []
    x = np.random.default_rng(0).normal(size=(2, 1, 200)).astype("f")

    def by(stack, num_threads, x=x):
        return stack.run(x, None, None, None, None, "all", None, None, num_threads)

    def number(given):
        asked.append(given)
        if given == 3:
            assert by(stack, 1) is None
            assert by(stack, 1, x[:1]) is None
        if given == 4:
            raise RuntimeError("in the middle")
        return 1

    stack = sequence.Stack(layers, number)
    expected = by(stack, 2)
    assert_same_bits(by(stack, 3), expected)
    with pytest.raises(RuntimeError):
        by(stack, 4)
    assert_same_bits(by(stack, 2), expected)
    assert asked == [2, 3, 4, 2]


def test_the_native_entry_takes_layers_that_go_together_only():
    layer, narrow = network("lstm"), network("lstm", sizes=(5, 17))
    x, _ = values(layer, (2, 3))
    mine, other = layer._weights(False).layers[0], narrow._weights(False).layers[0]
    gru = network("gru", sizes=(17, 17))._weights(False).layers[0]
    for layers in ([mine, other], [mine, gru], [mine, [*other, *other]], []):
        stack = sequence.Stack(layers, lambda given: 1)
        assert stack.run(x, None, None, None, None, "all", None, None, None) is None
        assert stack.record(x, None, None, None, "all", None, None) is None
    for wrong in (None, [None], [[None]], [[]], [[layer]]):
        with pytest.raises((TypeError, ValueError)):
            sequence.Stack(wrong, lambda given: 1)
    stack = sequence.Stack([mine], lambda given: 1)
    expected = stack.run(x, None, None, None, None, "all", None, None, None)
    with pytest.raises(ValueError, match=r"^weights"):
        stack.record(x, None, None, None, "all", None, None)
    for mine_too in (mine, stack.layers, stack.layers[0]):
        mine_too.clear()
        found = stack.run(x, None, None, None, None, "all", None, None, None)
        assert_same_bits(found, expected)
    nothing = sequence.Stack.__new__(sequence.Stack)
    assert nothing.run(x, None, None, None, None, "all", None, None, None) is None
    assert nothing.layers == []
