"""The bit contract of `test_bits.py` for every option of the layers."""

import itertools

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, joined, problem
from variants import (
    ACTIVATION_VARIANTS,
    CELL_VARIANTS,
    REGULARISED_VARIANTS,
    TOPOLOGIES,
    named,
)

TOPOLOGY_VARIANTS = [
    (f"{cell}-{name}", cell, options)
    for cell in ("lstm", "gru", "rnn_tanh") for name, options in TOPOLOGIES.items()
]  # fmt: skip
VARIANTS = CELL_VARIANTS + REGULARISED_VARIANTS + TOPOLOGY_VARIANTS
EVERY = pytest.mark.parametrize(("cell", "options"), **named(VARIANTS + ACTIVATION_VARIANTS))
SOME = pytest.mark.parametrize(("cell", "options"), **named(VARIANTS))
BOTH = pytest.mark.parametrize("dtype", DTYPES)
HIDDEN = itertools.cycle([5, 17, 33])
ROWS = 20


MASKS = {"dropout", "recurrent_dropout", "zoneout", "zoneout_cell", "dropconnect"}


def draws(options):
    """Whether `forward` is another function than a plain call."""
    return not MASKS.isdisjoint(options)


def of_rows(p, rows):
    """The problem of some of its rows."""

    def cut(state):
        return tuple(part[:, rows] for part in state)

    chosen = {name: None if getattr(p, name) is None else getattr(p, name)[..., rows]
              for name in ("lengths", "mask", "attention")}  # fmt: skip
    return p._replace(x=p.x[:, rows], dy=p.dy[:, rows], state=cut(p.state),
                      dstate=cut(p.dstate), **chosen)  # fmt: skip


def of_steps(p, times):
    """The problem of some of its steps."""
    return p._replace(x=p.x[times], attention=None if p.attention is None else p.attention[times])


def as_list(p):
    """The arguments of a call on each row by itself, cut to its length."""
    rows = [p.x[:n, b] for b, n in enumerate(p.lengths)], joined(p.state)
    if p.attention is None:
        return rows, {}
    return rows, {"attention": [p.attention[:n, b] for b, n in enumerate(p.lengths)]}


def outcome(p, tape=True, **options):
    """What belongs to each row on its second axis: outputs, state and the gradients of these."""
    if not tape:
        y, state = p.infer(**options)
        return (y, *state)
    y, state, tape = p.forward(**options)
    dx, dstate, *more = p.layer.backward(tape, p.dy, joined(p.dstate))
    return (y, *state, dx, *p.parts(dstate), *more)


@BOTH
@EVERY
def test_company(cell, options, dtype):
    """A row has the same bits alone, and among any others."""
    layers = 1 if "activations" in options else 2
    p = problem(cell, (7, next(HIDDEN), layers), steps=3, rows=ROWS, dtype=dtype, **options)
    tapes = (False,) if draws(options) else (False, True)
    for tape in tapes:
        together = outcome(p, tape)
        for start, stop in ((0, 1), (13, 14), (19, 20), (3, 5), (1, 4), (2, 9), (0, 16), (3, 20)):
            some = outcome(of_rows(p, slice(start, stop)), tape)
            assert_same_bits(some, tuple(a[:, start:stop] for a in together))


@pytest.mark.parametrize("where", ["x", "state", "dy", "dstate"])
@EVERY
def test_rows_never_touch_each_other(cell, options, where):
    """A row of NaN changes no bit of the others; its own outputs are NaN from there on."""
    p = problem(cell, (7, 17), steps=3, rows=9, **options)
    others = np.arange(9) != 4
    q = p._replace(x=p.x.copy(), dy=p.dy.copy(), state=tuple(s.copy() for s in p.state),
                   dstate=tuple(s.copy() for s in p.dstate))  # fmt: skip
    for array in {"x": (q.x[1:],), "dy": (q.dy,)}.get(where) or getattr(q, where):
        array[:, 4] = np.nan
    for tape in (False,) if draws(options) else (False, True):
        outcomes = outcome(p, tape), outcome(q, tape)
        sound, poisoned = (tuple(a[:, others] for a in o) for o in outcomes)
        assert_same_bits(poisoned, sound)
        if where in ("x", "state") and "backwards" not in repr(options):
            assert np.all(np.isnan(outcomes[1][0][1:, 4, :17]))


@BOTH
@SOME
def test_chunks_in_time(cell, options, dtype):
    if options.get("bidirectional") or options.get("go_backwards"):
        return  # what these read first is in the last chunk
    p = problem(cell, (7, next(HIDDEN), 2), steps=9, rows=4, dtype=dtype, **options)
    whole = p.infer()
    for stops in ([1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 4, 9], [8, 9]):
        state, ys = p.state, []
        for start, stop in zip([0, *stops], stops, strict=False):
            y, state = of_steps(p, slice(start, stop))._replace(state=state).infer()
            ys.append(y)
        assert_same_bits((np.concatenate(ys), state), whole)


@BOTH
@SOME
def test_tape_repetition_threads_and_checkpoints(cell, options, dtype):
    """On work large enough for a team of threads."""
    p = problem(cell, (33, 96), steps=20, rows=17, lengths="random", dtype=dtype, **options)
    expected = p.forward(rng=3, num_threads=1)
    gradients = tuple(p.gradients(expected[2], num_threads=1).values())
    calls = [{"num_threads": n} for n in (1, 2, 3, 4)] + [{"checkpoint": 7}, {"checkpoint": "sqrt"}]
    plain = p.infer(num_threads=1)
    if not draws(options):
        assert_same_bits(plain, expected[:2])
    for call in calls:
        y, state, tape = p.forward(rng=3, **call)
        assert_same_bits((y, state), expected[:2])
        threads = {"num_threads": call.get("num_threads", 2)}
        assert_same_bits(tuple(p.gradients(tape, **threads).values()), gradients)
        assert_same_bits(p.infer(**threads), plain)


@BOTH
@SOME
def test_padding_in_any_form(cell, options, dtype):
    """Lengths, a prefix mask, a list, and each row by itself."""
    p = problem(cell, (7, next(HIDDEN), 2), steps=7, rows=6, lengths="random", dtype=dtype,
                **options)  # fmt: skip
    masked = p._replace(lengths=None, mask=np.arange(7)[:, None] < p.lengths)
    y, state = p.infer()
    assert_same_bits(masked.infer(), (y, state))
    rows, more = as_list(p)
    y_list, state_list = p.layer(*rows, **more)
    assert_same_bits((*y_list,), tuple(y[:n, b].copy() for b, n in enumerate(p.lengths)))
    assert_same_bits(p.parts(state_list), state)
    for b, n in enumerate(p.lengths):
        alone = of_rows(of_steps(p, slice(n)), slice(b, b + 1))._replace(lengths=None).infer()
        assert_same_bits(alone, (y[:n, b : b + 1], tuple(s[:, b : b + 1] for s in state)))
    both = [q.forward(rng=3) for q in (p, masked)]
    assert_same_bits(both[1][:2], both[0][:2])
    gradients, of_masked = (tuple(p.gradients(tape).values()) for *_, tape in both)
    assert_same_bits(of_masked, gradients)
    if not draws(options):
        assert_same_bits(list_gradients(p), gradients)


def list_gradients(p):
    """The problem's gradients by way of a list of sequences, dx padded again."""

    def joined_rows(rows, like):
        found = np.zeros_like(like)
        for b, row in enumerate(rows):
            found[: len(row), b] = row
        return found

    rows, more = as_list(p)
    tape = p.layer.forward(*rows, **more)[2]
    p.layer.zero_grad()
    dy = [p.dy[:n, b] for b, n in enumerate(p.lengths)]
    dx, dstate, *d_more = p.layer.backward(tape, dy, joined(p.dstate))
    d_more = [joined_rows(d, p.attention) for d in d_more]
    grads = (g.copy() for g in p.layer.grads.values())
    return (joined_rows(dx, p.x), *p.parts(dstate), *grads, *d_more)


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}], ids=["", "proj"])
@BOTH
def test_a_size_per_layer(options, dtype):
    p = problem("lstm", (7, (5, 33, 17)), rows=ROWS, lengths="random", bidirectional=True,
                dtype=dtype, **options)  # fmt: skip
    y, state = p.infer()
    assert_same_bits(p.forward(num_threads=3)[:2], (y, state))
    for rows in (slice(0, 1), slice(7, 12)):
        state = tuple(tuple(a[:, rows] for a in part) for part in p.state)
        some = p._replace(x=p.x[:, rows], lengths=p.lengths[rows], state=state)
        assert_same_bits(some.infer()[0], y[:, rows])
