"""Many mutants of compiled files in one build, of which CYLSTM_MUTANT chooses one at run time.

Mutant schemata (Untch, Offutt and Harrold 1993): a statement becomes a choice between itself and
its mutants, so that a mutant costs its tests and no build. Where that takes more than a change of
one statement (two at once, a loop's head, several variables declared together), it does not happen.
"""

import re

from mutation import generate

# What reads the choice: for modules in Cython, and for headers in C.
CYTHON = """
import os as mutant_os
cdef int chosen_mutant = int(mutant_os.environ.get("CYLSTM_MUTANT", "0"))
"""
C = """
#ifndef CHOSEN_MUTANT
#define CHOSEN_MUTANT
#include <stdlib.h>
static inline int chosen_mutant(void) {
    static int number = -1;
    if (number < 0) number = getenv("CYLSTM_MUTANT") ? atoi(getenv("CYLSTM_MUTANT")) : 0;
    return number;
}
#endif
"""
COMPOUND = re.compile(
    r"(?:def|cdef|cpdef|class|for|while|else|try|except|finally|with|@|include)\b"
)
DECLARED = re.compile(r"cdef ((?:const )?\w+ ?\**)(\w+) = (.*)", re.DOTALL)
STATEMENT_C = re.compile(r"(case \w+: |default: )?((?:return |\w+\(|[\w>\[\].-]+ [-+*/|&]?= ).*;)$")


def join(source, mutants, file):
    """The source with a choice of all mutants that have a number; those numbers may be fewer.

    `mutants` are pairs of number and mutant; returns the text and the numbers that are in it.
    """
    lines, found = source.splitlines(), {}
    logical = physical(lines) if file.endswith((".h", ".c")) else list(statements(source))
    for number, mutant in mutants:
        new = mutant.text.splitlines()
        begin = next(
            i for i, pair in enumerate(zip(lines, new, strict=False)) if pair[0] != pair[1]
        )
        end = len(lines)
        while (
            end > begin
            and len(new) - len(lines) + end > begin
            and (lines[end - 1] == new[len(new) - len(lines) + end - 1])
        ):
            end -= 1
        whole = [(a, b) for a, b in logical if a <= begin and max(end, begin + 1) <= b]
        if whole:
            a, b = whole[0]
            found.setdefault((a, b), []).append((number, new[a : b + len(new) - len(lines)]))
    joined, numbers = [], []
    at = 0
    for (a, b), choices in sorted(found.items()):
        made = (choice_c if file.endswith((".h", ".c")) else choice)(lines[a:b], choices)
        joined += lines[at:a] + (made or lines[a:b])
        numbers += [number for number, _ in choices] if made else []
        at = b
    return "\n".join([*joined, *lines[at:], ""]), numbers


def physical(lines):
    return [(i, i + 1) for i in range(len(lines))]


def statements(source):
    """First line and end of each logical line of Cython."""
    code = re.sub(generate.HIDDEN["python"], lambda m: re.sub(r"[^\n]", "~", m[0]), source,
                  flags=re.DOTALL)  # fmt: skip
    start = depth = 0
    for i, line in enumerate(code.splitlines()):
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        if depth == 0 and not line.endswith("\\"):
            yield start, i + 1
            start = i + 1


def choice(old, choices):
    """Lines that do one of several statements; None if they cannot be made."""
    indent = re.match(" *", old[0])[0]
    texts = [(n, " ".join(line.strip().removesuffix("\\") for line in new)) for n, new in choices]
    text = " ".join(line.strip().removesuffix("\\") for line in old)
    if not indent or any(not t or t.startswith("#") for t in (text, *(t for _, t in texts))):
        return None
    if word := re.match(r"(?:el)?if ", text):
        heads = [text, *(new for _, new in texts)]
        if any("#" in head or not re.fullmatch(rf"{word[0]}.*:", head) for head in heads):
            return None
        made = text[word.end() : -1]
        for n, new in texts:
            other = f"chosen_mutant == {n} and ({new[word.end() : -1]})"
            made = f"{other} or chosen_mutant != {n} and ({made})"
        return [f"{indent}{word[0]}{made}:"]
    first = []
    if declared := DECLARED.match(text):
        news = [DECLARED.match(new) for _, new in texts]
        if any(m is None or m[1] != declared[1] or m[2] != declared[2] or several(m[3])
               for m in (declared, *news)):  # fmt: skip
            return None
        first = [f"{indent}cdef {declared[1]}{declared[2]}"]
        choices = [(n, [f"{indent}{m[2]} = {m[3]}"])
                   for (n, _), m in zip(texts, news, strict=True)]  # fmt: skip
        old = [f"{indent}{declared[2]} = {declared[3]}"]
    elif COMPOUND.match(text):
        return None
    made = []
    for n, new in choices:
        made += [f"{indent}{'elif' if made else 'if'} chosen_mutant == {n}:"]
        made += ["    " + line for line in new]
    return [*first, *made, f"{indent}else:", *("    " + line for line in old)]


def several(expression):
    """Whether a comma outside of all brackets, or a comment, follows the first value."""
    while (inner := re.sub(r"[(\[{][^()\[\]{}]*[)\]}]", "", expression)) != expression:
        expression = inner
    return "," in expression or "#" in expression


def choice_c(old, choices):
    """The same in C, of one line."""
    whole = STATEMENT_C.match(old[0].strip())
    if not whole or old[0].count("(") != old[0].count(")"):
        return None
    label, made = whole[1] or "", whole[2]
    for n, new in choices:
        text = " ".join(line.strip() for line in new)
        if not text.startswith(label):
            return None
        made = f"if (chosen_mutant() == {n}) {{ {text[len(label) :]} }} else {{ {made} }}"
    return [label + made]


def with_choice(text, file):
    """The text of a file that others include, with what reads the choice."""
    if file.endswith(".c"):
        return C + text
    if file.endswith(".h"):
        at = text.index("\n", text.index("#define CYLSTM_")) + 1
        return text[:at] + C + text[at:]
    return text + CYTHON
