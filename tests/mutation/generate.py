"""Mutants made by rule: one operator, constant, argument or statement of a line of code changed."""

import hashlib
import re

from mutation.patches import Mutant

# Comments and strings, whose characters are hidden before the rules look for a place.
HIDDEN = {
    "c": r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'",
    "python": r"(?:\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')|#[^\n]*",
}
# (what it does, what is replaced, by what); \1 and so on are groups of the place.
RULES = [
    ("+ to -", r"(?<=[\w)\]] )\+(?=[ =])", "-"),
    ("- to +", r"(?<=[\w)\]] )-(?=[ =])", "+"),
    ("< to <=", r"(?<= )<(?= )", "<="),
    ("<= to <", r"(?<= )<=(?= )", "<"),
    ("> to >=", r"(?<= )>(?= )", ">="),
    (">= to >", r"(?<= )>=(?= )", ">"),
    ("== to !=", r"(?<= )==(?= )", "!="),
    ("!= to ==", r"(?<= )!=(?= )", "=="),
    ("0 to 1", r"(?<![\w.])0(?![\w.])", "1"),
    ("1 to 0", r"(?<![\w.])1(?![\w.])", "0"),
    ("and to or", r"\band\b", "or"),
    ("or to and", r"\bor\b", "and"),
    ("&& to ||", r"&&", "||"),
    ("|| to &&", r"\|\|", "&&"),
    ("min to max", r"\b(v?)min(?=\()", r"\1max"),
    ("max to min", r"\b(v?)max(?=\()", r"\1min"),
    ("True to False", r"\bTrue\b", "False"),
    ("False to True", r"\bFalse\b", "True"),
    ("not dropped", r"\bnot (?!in\b)", ""),
    ("! dropped", r"!(?=[\w(])", ""),
    ("index + 1", r"(?<=\w\[)([a-z]\w*)(?=\])", r"\1 + 1"),
    ("index - 1", r"(?<=\w\[)([a-z]\w*)(?=\])", r"\1 - 1"),
    ("arguments swapped", r"(?<=\w\()([\w.]+), ([\w.]+)(?=[,)])", r"\2, \1"),
]
# Lines that say what exists rather than what happens, and messages.
DECLARATION = re.compile(
    r"\s*(?:@|#|from |import |cimport |include |ctypedef |cdef extern|raise |typedef |"
    r"const \w+ \w+$)"
)
SIGNATURE = re.compile(r"\s*(?:def|cdef|cpdef|class|static|INLINE)\b[^=]*\(")
# Types are no indices: list[int].
TYPES = re.compile(r"\[(?:int|float|bool|str|object|bytes)\]$")
# A statement that is dropped has as many of these on its line; in C a block may begin there.
BRACKETS = {"c": ("(", ")"), "python": ("([{", ")]}")}
STATEMENT = {
    "c": r"(?:\*?\w[\w.>\[\]-]* ?[-+*/|&]?= ?[^=].*|\w+\(.*\));$",
    "python": r"(?:[a-z][\w., *\[\]()-]* (?:[-+*/|&@]|//)?= .*|[a-z][\w.]*\(.*\))$",
}
KEYWORD = re.compile(
    r"(?:if|elif|for|while|with|return|yield|assert|del|else|case|switch|def|cdef|goto|do|not|"
    r"const|static|int|real|vec|double|float|ptrdiff_t|global|nonlocal)\b"
)


def mutants_of(file, source):
    """All mutants of one source file."""
    language = "c" if file.endswith((".h", ".c")) else "python"
    code = re.sub(
        HIDDEN[language], lambda m: re.sub(r"[^\n\"']", "~", m[0]), source, flags=re.DOTALL
    )
    lines, depth, start, signature = source.splitlines(), 0, 0, False
    for number, line in enumerate(code.splitlines()):
        signature = bool(SIGNATURE.match(line)) or (signature and depth > 0)
        opens, closes = (sum(map(line.count, side)) for side in BRACKETS[language])
        whole = depth == 0 and opens == closes
        depth += opens - closes
        for what, begin, end, new in changes(line, language, whole, signature):
            text = source[: start + begin] + new + source[start + end :]
            changed = lines[number][:begin] + new + lines[number][end:]
            yield Mutant(file, number + 1, what, lines[number].strip(), changed.strip(), text)
        start += len(line) + 1


def changes(line, language, whole, signature):
    """What can be done to one line: rule, start, end, replacement."""
    if DECLARATION.match(line):
        return
    for what, pattern, new in RULES:
        for place in re.finditer(pattern, line):
            if what.startswith("index") and TYPES.search(line[: place.end() + 1]):
                continue
            if what == "arguments swapped" and (signature or place[1] == place[2]):
                continue
            yield what, *place.span(), place.expand(new)
    text = line.strip()
    if whole and re.match(STATEMENT[language], text) and not KEYWORD.match(text):
        at = line.index(text)
        if at:
            yield "statement dropped", at, at + len(text), ";" if language == "c" else "pass"


def sample(mutants, seed, count):
    """So many of the mutants, which stay the same ones where the lines do, wherever those move."""
    met = {}

    def rank(mutant):
        key = seed, mutant.file, mutant.old, mutant.new
        met[key] = met.get(key, 0) + 1
        return hashlib.sha256(repr((key, met[key])).encode()).digest()

    return sorted(mutants, key=rank)[:count]
