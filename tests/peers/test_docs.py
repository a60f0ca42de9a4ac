"""The examples of the README and of docs/ that need other packages run as they stand."""

import pytest
from helpers import run_python
from snippets import PACKAGES, examples

EXAMPLES = examples(*PACKAGES)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(example, KERAS_BACKEND="torch")


def test_there_are_some_of_each():
    for package in PACKAGES:
        assert examples(package)
