"""The examples in the README and in docs/, by what they need to run.

A block opened by ```python needs nothing but cylstm, so it runs in the plain suite; one opened by
```python torch (or keras, onnx) needs that package as well, so it runs in tests/peers.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python *(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples(*packages):
    """Code of the examples by page and line: those that need one of the packages ("": none)."""
    return {
        f"{page.name}:{page.read_text()[: found.start()].count(chr(10)) + 1}": found[2]
        for page in PAGES
        for found in BLOCK.finditer(page.read_text())
        if found[1] in packages
    }


def anchors(page):
    """What links to headings of a page may name."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {
        re.sub(r"[^a-z0-9_ -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
