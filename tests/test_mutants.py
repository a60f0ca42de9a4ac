"""What `mutants.py` plants: by rule, by patches that outlive moves of code, many at once."""

import pytest
from mutation import generate, joined, patches

PYTHON = '''
def pick(rows: list[int], first, last=0):
    """Of 1 + 1 and not more."""
    if first < last and not rows:
        raise ValueError(f"rows: expected {first + 1} and more")  # or 0
    found = max(rows[first], combine(first, last))
    return found
'''
C = """
/* 1 + 1 */
static int pick(int n, const int *p) {
    int k = 0; // not < 1
    while (k <= n && p[k] > 1) k++;
    use(k, n);
    return k;
}
"""


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        (
            "a.py", PYTHON,
            ["< to <=", "0 to 1", "and to or", "arguments swapped", "index + 1", "index - 1",
             "max to min", "not dropped", "statement dropped"],
        ),
        (
            "a.h", C,
            ["&& to ||", "0 to 1", "1 to 0", "<= to <", "> to >=", "arguments swapped", "index + 1",
             "index - 1", "statement dropped"],
        ),
    ],
)  # fmt: skip
def test_rules_change_code_only(file, source, expected):
    mutants = list(generate.mutants_of(file, source))
    assert sorted(m.why for m in mutants) == sorted(expected)
    for mutant in mutants:
        before, after = source.splitlines(), mutant.text.splitlines()
        different = [i for i in range(len(before)) if before[i] != after[i]]
        assert len(before) == len(after) and different == [mutant.line - 1]
        assert mutant.old == before[different[0]].strip()
        assert mutant.new == after[different[0]].strip()


def test_a_sample_stays_when_code_moves():
    mutants = list(generate.mutants_of("a.py", PYTHON))
    moved = list(generate.mutants_of("a.py", "x = 1\n\n" + PYTHON))
    chosen = generate.sample(mutants, 3, 4)
    assert len(chosen) == 4 and chosen != generate.sample(mutants, 4, 4)
    again = [m for m in generate.sample(moved, 3, len(moved)) if m.old != "x = 1"]
    assert [(m.old, m.new) for m in again[:4]] == [(m.old, m.new) for m in chosen]


def test_patches_match_any_white_space():
    source = "def f(a):\n    if a:\n        g(a,\n          1)\n\n\ndef h(a):\n    g(a, 1)\n"
    block = "why\n? some::tests\n@ f\n- g(a, 1)\n+ if not a:\n+     g(a, 2)"
    mutant = patches.parsed("a.py", block).mutant(source)
    assert mutant.text == source.replace("g(a,\n          1)", "if not a:\n            g(a, 2)")
    assert (mutant.line, mutant.why, mutant.tests) == (3, "why", "some::tests")
    for wrong in ("why\n- g(a, 1)\n+", "why\n@ k\n- g(a, 1)\n+", "why\n- g(a, 2)\n+ 1"):
        with pytest.raises(ValueError, match="times, not once"):
            patches.parsed("a.py", wrong).mutant(source)
    for wrong in ("why\n+ new", "- old\n+ new", "why\n- old"):
        with pytest.raises(ValueError, match="expected why"):
            patches.parsed("a.py", wrong)


BOTH = """
def f(a, b):
    if a < b and (
            a > 0):
        return a + max(a,
                       b)
    c = a - b
    for _ in range(a):
        c += 1
    return c
"""


def outcome(source, a, b, chosen=0):
    names = {"chosen_mutant": chosen}
    exec(source, names)
    try:
        return names["f"](a, b)
    except UnboundLocalError:
        return "unbound"


def test_mutants_joined_are_those_alone():
    """Of Python, as of statements of Cython."""
    mutants = list(generate.mutants_of("a.pxi", BOTH))
    mutants.append(patches.parsed("a.pxi", "w\n- c += 1\n+ c += 2\n+ c += 3").mutant(BOTH))
    text, numbers = joined.join(BOTH, list(enumerate(mutants, 1)), "a.pxi")
    assert sorted(numbers) == list(range(1, len(mutants) + 1))
    for a in range(-2, 3):
        for b in range(-2, 3):
            assert outcome(text, a, b) == outcome(BOTH, a, b)
            for number, mutant in enumerate(mutants, 1):
                assert outcome(text, a, b, number) == outcome(mutant.text, a, b)


def test_joined_c_is_one_line():
    source = "#define CYLSTM_A_H\n    case 1: return f(a);\n    int k = 0;\n"
    blocks = ["w\n- f(a)\n+ g(a)", "w\n- f(a)\n+ a", "w\n- = 0\n+ = 1"]
    mutants = [patches.parsed("a.h", block).mutant(source) for block in blocks]
    text, numbers = joined.join(source, list(enumerate(mutants, 1)), "a.h")
    assert numbers == [1, 2]
    assert text.splitlines()[1:] == [
        "case 1: if (chosen_mutant() == 2) { return a; } else { if (chosen_mutant() == 1) "
        "{ return g(a); } else { return f(a); } }",
        "    int k = 0;",
    ]
