"""The examples of the README and of docs/ run as they stand, and links lead somewhere."""

import re

import pytest
from helpers import run_python
from snippets import PACKAGES, PAGES, ROOT, anchors, blocks, examples

EXAMPLES = examples()
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_example(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run_python(example)
    if output.startswith("loss "):
        assert float(output.removeprefix("loss ")) < 0.05


@BY_PAGE
def test_no_example_is_left_out(page):
    """Each block of Python is one that this file or tests/peers/test_docs.py runs."""
    found = blocks(page)
    assert len(found) == len(re.findall(r"^ *(?:```|~~~) *py", page.read_text(), re.MULTILINE))
    for line, words, code in found:
        assert set(words) <= {*PACKAGES, "continued"}, line
        compile(code, f"{page.name}:{line}", "exec")


@BY_PAGE
def test_links_lead_somewhere(page):
    """To files that exist, and to headings in them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        assert not heading or heading in anchors(there), target


def test_every_page_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in text
