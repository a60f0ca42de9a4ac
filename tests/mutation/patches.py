"""Mutants as text: what to change in a source file, and why.

`written/FILE.txt` has those written by hand for src/cylstm/FILE, `survivors/FILE.txt` those that
the generator made and that no test can or need kill. Both are blocks, an empty line between them:

    why the change is wrong, or why it is not
    ? tests that find it, to be run before those of its file
    @ the name of its function or class, where the old text occurs elsewhere, too
    - old text, one line or several, whole or in part
    + new text

Any white space matches any other, so that a patch outlives new line breaks and indentation. Lines
after the first of the new text are indented from the line where the old text was found.
"""

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Mutant(NamedTuple):
    file: str  # in src/cylstm
    line: int  # the first that changes, from 1
    why: str
    old: str
    new: str
    text: str  # of the whole file with the change
    tests: str = ""  # to be run before those of the file

    def described(self):
        """Why alone for one written by hand; the change itself for a generated one."""
        return f"{self.file}:{self.line}: {self.why}"


class Patch(NamedTuple):
    file: str
    why: str
    tests: str
    within: str
    old: str
    new: str

    def mutant(self, source):
        """The source file's text with the change; ValueError if its place is not there once."""
        start, end = region(source, self.within) if self.within else (0, len(source))
        words = r"\s+".join(map(re.escape, self.old.split()))
        found = list(re.compile(words).finditer(source, start, end))
        if len(found) != 1:
            raise ValueError(f"{self.old!r} occurs {len(found)} times, not once")
        first, last = found[0].span()
        begin = source.rfind("\n", 0, first) + 1
        indent = re.match(r"[ \t]*", source[begin:])[0]
        new = self.new.replace("\n", "\n" + indent)
        changed = source[:first] + new + source[last:]
        line = source.count("\n", 0, first) + 1
        return Mutant(self.file, line, self.why, found[0][0], new, changed, self.tests)


def region(source, name):
    """Start and end of a function or class: up to the next line that is not further indented."""
    begins = rf"^([ \t]*)(?:def|cdef|cpdef|class|static|INLINE)\b[^\n=]*\b{re.escape(name)}\b"
    found = list(re.finditer(begins, source, re.MULTILINE))
    if len(found) != 1:
        raise ValueError(f"{name!r} is defined {len(found)} times, not once")
    body = source.index("\n", found[0].end()) + 1
    after = re.compile(rf"^[ \t]{{0,{len(found[0][1])}}}[^ \t\n]", re.MULTILINE).search(
        source, body
    )
    return found[0].start(), after.start() if after else len(source)


def read(kind):
    """All patches of a kind, "written" or "survivors"."""
    folder, patches = FOLDER / kind, []
    for path in sorted(folder.rglob("*.txt")):
        file = path.relative_to(folder).as_posix().removesuffix(".txt")
        for block in path.read_text().strip().split("\n\n"):
            patches.append(parsed(file, block))
    return patches


def parsed(file, block):
    parts = {"": [], "? ": [], "@ ": [], "- ": [], "+ ": []}
    for line in block.splitlines():
        sign = next((sign for sign in parts if sign and line.startswith(sign.strip())), "")
        parts[sign].append(line[len(sign) :])
    why, tests, within, old, new = ("\n".join(lines) for lines in parts.values())
    if not (why and old.strip() and parts["+ "]) or "\n" in tests + within:
        raise ValueError(f"{file}.txt: expected why, maybe '? ' and '@ ', '- ', '+ ', got\n{block}")
    return Patch(file, why, tests, within, old, new)
