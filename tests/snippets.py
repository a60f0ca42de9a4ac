"""The examples in the README and in docs/, by what they need to run.

A block opened by ```python needs nothing but cylstm, so it runs in the plain suite. One opened by
```python torch (or keras, onnx) needs that package as well, so it runs in tests/peers. A last word
"continued" says that it goes on from the block before it.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("torch", "keras", "onnx")
BLOCK = re.compile(r"^```python *([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page):
    """Of each example of a page: its line, the words after "python", and the code to run."""
    found, before, text = [], "", page.read_text()
    for match in BLOCK.finditer(text):
        words, code = match[1].split(), match[2]
        before = before + code if "continued" in words else code
        found.append((text[: match.start()].count("\n") + 1, words, before))
    return found


def examples(*packages):
    """Code by page and line of the examples that need one of the packages, or none at all."""
    return {
        f"{page.name}:{line}": code
        for page in PAGES
        for line, words, code in blocks(page)
        if any(package in words for package in packages)
        or not (packages or set(words) & set(PACKAGES))
    }


def anchors(page):
    """What links to headings of a page may name."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {
        re.sub(r"[^a-z0-9_ -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
