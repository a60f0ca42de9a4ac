"""`summary`: shapes, parameters and work without computing anything."""

import re

import numpy as np
import pytest

import cylstm


def network(**options):
    embedding = cylstm.Embedding(50, 8)
    return cylstm.Sequential(
        embedding,
        cylstm.Conv1d(8, 6, 3, stride=2, activation="relu"),
        cylstm.Residual(cylstm.Sequential(cylstm.LayerNorm(6), cylstm.GRU(6, 6, **options))),
        cylstm.Concat(cylstm.LSTM(6, 4, bidirectional=True, **options), cylstm.Dropout(0.5)),
        cylstm.Pool("mean"),
        cylstm.Linear(14, 8),
        cylstm.Linear(8, 50, tied_to=embedding),
    )


@pytest.mark.parametrize("batch_first", [False, True])
def test_rows(batch_first):
    net = network(batch_first=batch_first)
    shape = (3, 21) if batch_first else (21, 3)
    found = net.summary(shape)
    steps = (3, 10) if batch_first else (10, 3)
    assert [row[:3] for row in found.rows] == [
        ("0", "Embedding", (*shape, 8)),
        ("1", "Conv1d", (*steps, 6)),
        ("2.module.0", "LayerNorm", (*steps, 6)),
        ("2.module.1", "GRU", (*steps, 6)),
        ("3.0", "LSTM", (*steps, 8)),
        ("3.1", "Dropout", (*steps, 6)),
        ("4", "Pool", (3, 14)),
        ("5", "Linear", (3, 8)),
        ("6", "Linear", (3, 50)),
    ]
    assert found.output_shape == net(np.zeros(shape, int))[0].shape == (3, 50)
    assert found.parameters == net.flat_params.size and found.nbytes == net.flat_params.nbytes
    assert [row.multiply_adds for row in found.rows] == [
        0, 30 * 8 * 6 * 3, 30 * 6, 30 * 18 * 12, 30 * 2 * 16 * 10, 0, 0, 3 * 14 * 8, 3 * 8 * 50,
    ]  # fmt: skip
    assert found.multiply_adds == sum(row.multiply_adds for row in found.rows)


def test_table():
    net = cylstm.Sequential(cylstm.LSTM(3, 400), cylstm.Linear(400, 2, dtype="float32"))
    lines = str(net.summary((7, 3))).splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters", "multiply-adds", "bytes"]
    assert lines[2].split() == ["0", "LSTM", "(7,", "400)", "648,000", "4,513,600", "2,592,000"]
    assert lines[-1].split() == ["total", "(7,", "2)", "648,802", "4,519,200", "2,595,208"]
    assert len({len(line) for line in lines}) == 1


def test_a_module_that_comes_again_counts_once():
    shared = cylstm.Linear(4, 4)
    found = cylstm.Sequential(shared, shared).summary((5, 4))
    assert [row.parameters for row in found.rows] == [20, 0]
    assert found.multiply_adds == 2 * 5 * 16
    assert cylstm.Sequential().summary((2, 3)).output_shape == (2, 3)
    both = cylstm.Concat(shared, cylstm.Residual(shared))
    assert both.summary((5, 4)).output_shape == (5, 8)


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 2, 3), (), 3, "a", (5, -1, 3), (5.0, 3)])
def test_errors(shape):
    net = cylstm.Sequential(cylstm.GRU(3, 4))
    with pytest.raises(ValueError, match=re.escape("shape: expected")):
        net.summary(shape)
