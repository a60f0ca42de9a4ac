"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
from helpers import run_python

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["inference", "training", "streaming"])
def test_example(example):
    output = run_python(example)
    if "loss" in example:
        assert float(output.removeprefix("loss ")) < 0.05
