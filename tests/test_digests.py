"""Bits are what they were: see digests.py."""

import json

import digests
import pytest

import cylstm

ISA = cylstm.config()["isa"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", [ISA] if digests.stored(ISA).exists() else [])
def test_every_variant(isa, dtype):
    known = json.loads(digests.stored(isa).read_text())
    expected = {name: known[f"{name}-{dtype}"] for name in digests.cases()}
    found = {
        name: list(digests.digest(*case, dtype)) for name, case in digests.cases().items()
    }  # fmt: skip
    different = [name for name in found if found[name] != expected[name]]
    assert not different
