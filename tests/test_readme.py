"""The README's examples run, and what they assert holds."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"## (\w+)\n+```python\n(.*?)```", README, re.DOTALL)


def test_every_example_is_found():
    assert len(EXAMPLES) == README.count("```python") > 0


@pytest.mark.parametrize("code", [pytest.param(code, id=title) for title, code in EXAMPLES])
def test_example(code):
    exec(code, {})
