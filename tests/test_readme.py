"""The examples of the README and of docs/ run as they stand."""

import re
from pathlib import Path

import pytest
from helpers import run_python

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}": found[1]
    for page in PAGES
    for found in re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_example(example):
    output = run_python(example)
    if output.startswith("loss "):
        assert float(output.removeprefix("loss ")) < 0.05


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Files exist, and headings of the page itself."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target
