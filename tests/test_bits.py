"""A row's bits do not depend on its company, the padding, the threads, the chunks or a tape."""

import itertools

import numpy as np
import pytest
from helpers import (
    CELLS,
    DTYPES,
    assert_close,
    assert_same_bits,
    joined,
    parts,
    problem,
    run_python,
)
from hypothesis import given
from hypothesis import strategies as st

import cylstm

# (input, hidden, layers), steps, rows: enough work for several threads, few rows and many.
LARGE = [((40, 256, 1), 12, 1), ((17, 200, 2), 8, 3), ((33, 96, 1), 20, 17), ((16, 64, 2), 9, 70)]


def run(p, rows=slice(None), steps=slice(None), *, tape=False, **options):
    """Output and state of some rows and steps of a problem, with its lengths unless given."""
    options.setdefault("lengths", None if p.lengths is None else p.lengths[rows])
    call = p.layer.forward if tape else p.layer
    state = joined(tuple(part[:, rows] for part in p.state))
    y, state = call(p.x[steps, rows], state, **options)[:2]
    return y, *parts(state)


def assert_row_alone_is_the_same(p, row, y, *state):
    steps = len(p.x) if p.lengths is None else p.lengths[row]
    alone = run(p, slice(row, row + 1), slice(steps), lengths=None, num_threads=1)
    assert_same_bits(y[:steps, row], alone[0][:, 0])
    assert_same_bits(tuple(s[:, row] for s in state), tuple(s[:, 0] for s in alone[1:]))
    assert not np.any(y[steps:, row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@given(
    rows=st.integers(1, 33),
    steps=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 2)),
    bidirectional=st.booleans(),
    padded=st.booleans(),
    threads=st.integers(1, 4),
    tape=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_company(cell, dtype, rows, steps, sizes, bidirectional, padded, threads, tape, seed):
    p = problem(
        cell, sizes, rows=rows, steps=steps, seed=seed, dtype=dtype, bidirectional=bidirectional
    )
    if padded:
        p = p._replace(lengths=np.random.default_rng(seed).integers(0, steps, rows))
    together = run(p, tape=tape, num_threads=threads)
    for row in {0, rows // 2, rows - 1}:
        assert_row_alone_is_the_same(p, row, *together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_batch_size(cell, dtype):
    p = problem(cell, (19, 37), rows=33, dtype=dtype)
    y, *state = run(p)
    for rows in range(1, 34):
        start = 33 - rows
        some = run(p, slice(start, 33))
        assert_same_bits(some, (y[:, start:], *(s[:, start:] for s in state)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@given(
    rows=st.integers(1, 20),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 2)),
    pieces=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    tape=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_chunks_in_time(cell, dtype, rows, sizes, pieces, tape, threads, seed):
    p = problem(cell, sizes, rows=rows, steps=sum(pieces), seed=seed, dtype=dtype)
    whole = run(p, num_threads=threads, tape=tape)
    stops = list(itertools.accumulate(pieces))
    for chunks in (zip([0, *stops], stops, strict=False), ((t, t + 1) for t in range(len(p.x)))):
        q, ys = p, [whole[0][:0]]
        for start, stop in chunks:
            y, *state = run(q, steps=slice(start, stop))
            q = q._replace(state=tuple(state))
            ys.append(y)
        assert_same_bits((np.concatenate(ys), *q.state), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_tape_in_large_calls(cell, case, dtype):
    sizes, steps, rows = case
    for lengths, bidirectional in ((None, False), ("random", True)):
        p = problem(
            cell, sizes, steps=steps, rows=rows, lengths=lengths, dtype=dtype,
            bidirectional=bidirectional,
        )  # fmt: skip
        serial = run(p, num_threads=1)
        for threads in (1, 2, 3, 4):
            assert_same_bits(run(p, num_threads=threads), serial)
            assert_same_bits(run(p, num_threads=threads, tape=True), serial)
        assert_row_alone_is_the_same(p, rows // 2, *serial)


@pytest.mark.parametrize("cell", CELLS)
def test_long_sequences(cell):
    p = problem(cell, (5, 24), steps=3000, rows=2, lengths=np.array([3000, 1234]))
    both = run(p)
    for row in (0, 1):
        assert_row_alone_is_the_same(p, row, *both)


OUTPUTS = """
import sys
import numpy as np
from helpers import CELLS, DTYPES, problem
from variants import ACTIVATION_VARIANTS, CELL_VARIANTS
import cylstm

arrays = {}
for name, cell, options in CELL_VARIANTS + ACTIVATION_VARIANTS:
    for dtype in DTYPES:
        p = problem(cell, (3, 37, 2), rows=5, steps=9, lengths="random", dtype=dtype,
                    bidirectional=True, **options)
        arrays[f"{name}, {dtype}"] = p.infer()[0]
for cell in CELLS:
    for dtype in DTYPES:
        for i, sizes in enumerate([(3, 5, 1), (17, 70, 2), (40, 128, 1)]):
            for rows in (1, 7, 33):
                p = problem(cell, sizes, rows=rows, seed=i, steps=9, lengths="random",
                            dtype=dtype, bidirectional=True)
                y, state = p.infer()
                for name, array in zip("yhc", (y, *state)):
                    arrays[f"{cell} {dtype} {i} {rows} {name}"] = array
np.savez(sys.argv[1], **arrays)
print(cylstm.config()["isa"])
"""


def test_instruction_sets(tmp_path):
    results = {}
    for isa in cylstm.config()["isa_usable"]:
        path = tmp_path / f"{isa}.npz"
        assert run_python(OUTPUTS, path, CYLSTM_ISA=isa).strip() == isa
        with np.load(path) as arrays:
            results[isa] = dict(arrays)
    fused = [isa for isa in results if isa != "base"]
    for isa, arrays in results.items():
        for name, array in arrays.items():
            if isa == "base" and fused:  # no fused multiply-add: other roundings, same function
                tolerance = 3e-6 if array.dtype == np.float32 else 1e-13
                if ", " in name:  # variants: norms of rows that hardly vary, unbounded gates
                    tolerance *= 1000
                assert_close(array, results[fused[0]][name], tolerance)
            elif fused:
                assert_same_bits(array, results[fused[0]][name])


FOREIGN = "neon" if "avx2" in cylstm.config()["isa_built"] else "avx2"


@pytest.mark.parametrize("isa", ["mmx", FOREIGN])
def test_impossible_instruction_set_is_refused(isa):
    code = "try:\n import cylstm\n cylstm.config()\nexcept Exception as error:\n print(error)"
    assert isa in run_python(code, CYLSTM_ISA=isa)
