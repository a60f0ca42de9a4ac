"""Build a copy of the tree with a mutant in it and run the tests, in a forked process."""

import contextlib
import os
import platform
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

# What a build and a run of pytest import: the processes forked below have it already.
import Cython.Build
import Cython.Compiler.ModuleNode
import Cython.Compiler.Optimize
import Cython.Compiler.ParseTreeTransforms  # noqa: F401
import hypothesis  # noqa: F401
import pytest
import setuptools.command.build_ext  # noqa: F401

ROOT = Path(__file__).parents[2]
KERNELS = Path("src", "cylstm", "kernels")
LEVEL = "neon" if platform.machine() in ("aarch64", "arm64") else "avx2"
# One instruction set, and float64 alone except for what differs between the two.
REALS = ("f64", "f32")
BOTH_REALS = {"simd.h", "states.pxi"}
SAME_IN_BOTH = {
    "activations.py", "batches.py", "cells.py", "gated.py", "gru.py", "lstm.py", "masks.py",
    "outputs.py", "recurrent.py", "rnn.py", "segments.py", "states.py",
    "structure.py", "tape.py", "truncated.py", "weights.py",
}  # fmt: skip
# A million steps take long without optimisation.
QUICK, OF_ONE_REAL = "not 1000000", "not 1000000 and not float32"
# For one build, and for one test with a mutant and without; beside other work.
BUILD_SECONDS, TEST_SECONDS, BASE_SECONDS = 120, 60, 300
MEMORY = 8 << 30
PROCESSOR_SECONDS = 300  # of a trial, also where a test takes the alarm clock for itself
CHAOS_SEEDS = "20"
BEGINS = "begins: "  # before the name of a test, in the log of a run
# Exit statuses: 0 to 5 are pytest's own, for tests that pass, fail, or cannot be collected.
PASSED, FAILED, NO_TESTS, NOT_BUILT, UNCHANGED, BROKEN = 0, (1, 2), 5, 97, 98, 99


def modules(file):
    """The compiled modules, without those of float32, that a source file is part of."""
    path = Path(file)
    if path.suffix == ".py":
        return []
    levels = [f"level_{LEVEL}_{real}" for real in REALS[: 1 + (path.name in BOTH_REALS)]]
    roots = {name: "level.pxi" for name in levels} | {
        p.stem: p.name for p in (ROOT / KERNELS).glob("*.pyx")
    }
    return [unit for unit, root in roots.items() if path.name in included(root)]


def included(name):
    """The names of a source file, of all that it includes, and of what implements a header."""
    found = {Path(name).name}
    for path in (ROOT / KERNELS).rglob(name):
        found |= {p.name for p in path.parent.glob(f"{path.stem}.c") if path.suffix == ".h"}
        for inner in re.findall(
            r'^(?:#include|include|cdef extern from) "([^"]+)"', path.read_text(), re.MULTILINE
        ):
            found |= included(inner)
    return found


def copy_of_the_tree(folder):
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=unbuilt)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)


def build():
    """Compile what is out of date in the current folder; whether that was possible."""
    # With the delays of tests/chaos, which are off in all other tests.
    os.environ |= {"CYLSTM_BUILD_ISA": LEVEL, "CYLSTM_CFLAGS_OPT": "-O0", "CYLSTM_CHECKS": "chaos"}
    sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
    try:
        runpy.run_path("setup.py")
    except BaseException:  # Cython, the compiler or setuptools, each with its own
        traceback.print_exc()
        return False
    return True


def build_base(folder):
    copy_of_the_tree(folder)
    os.chdir(folder)
    if not build():
        return NOT_BUILT
    for built in [*(folder / "build").rglob("*.c"), *folder.rglob("*.so")]:
        # In copies it stays up to date, whatever setup.py says it depends on.
        os.utime(built, (time.time() + 3600,) * 2)
    return PASSED


def build_joined(base, folder, texts):
    """A copy of the base with other texts of some source files."""
    shutil.copytree(base, folder)
    os.chdir(folder)
    for file, text in texts.items():
        Path("src", "cylstm", file).write_text(text)
    for built in [*(folder / "build").rglob("*.c"), *folder.rglob("*.so")]:  # those in build, too
        built.unlink()
    return PASSED if build() else NOT_BUILT


def try_joined(folder, number, mutant, tests):
    """Exit status of the tests with one of the mutants of a joined build."""
    os.environ["CYLSTM_MUTANT"] = str(number)
    return run_tests(folder, map(path_of, tests), words_for(mutant))


def words_for(mutant):
    """Which of its tests a mutant is tried with: of float64 alone where the two are alike."""
    path = Path(mutant.file)
    alike = path.name in SAME_IN_BOTH if path.suffix == ".py" else path.name not in BOTH_REALS
    return OF_ONE_REAL if alike else QUICK


class Watch:
    """A plugin of pytest: says which test begins, and ends the process where one takes too long."""

    def __init__(self, seconds):
        self.seconds, self.output = seconds, os.dup(1)  # which pytest does not capture

    def pytest_runtest_setup(self, item):
        os.write(self.output, f"{BEGINS}{item.nodeid}\n".encode())
        signal.alarm(self.seconds)


def path_of(name):
    """What pytest calls a test: from [DIRECTORY/]NAME[::FUNCTION] to a path."""
    file, colons, function = name.partition("::")
    folder, slash, file = file.rpartition("/")
    return f"{ROOT}/tests/{folder}{slash}test_{file}.py{colons}{function}"


def run_tests(folder, paths, words, seconds=TEST_SECONDS):
    """Run test files or tests, and of those what `words` select, until one test fails."""
    os.chdir(folder)
    os.environ |= {"CYLSTM_ISA": LEVEL, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ["CYLSTM_SEEDS"] = CHAOS_SEEDS
    sys.path.insert(0, os.path.abspath("src"))
    sys.dont_write_bytecode = True
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-k", words]
    for path in paths:  # in this order, in which pytest would not run them
        status = pytest.main([*options, path], plugins=[Watch(seconds)])
        if status not in (PASSED, NO_TESTS):
            return status
    return PASSED


def try_mutant(base, folder, mutant, tests):
    """Exit status of the tests; NOT_BUILT, or UNCHANGED where a mutant compiles to the same."""
    shutil.copytree(base, folder)
    os.chdir(folder)
    path = Path("src", "cylstm", mutant.file)
    path.write_text(mutant.text)
    if path.suffix == ".py":
        try:
            compile(mutant.text, path.name, "exec")
        except SyntaxError:
            return NOT_BUILT
        return run_tests(folder, map(path_of, tests), words_for(mutant))
    touched = modules(mutant.file)
    # What C includes does not change what Cython makes; it copies what is C already.
    names = [path.name] if path.suffix == ".c" else []
    names += [] if path.suffix in (".h", ".c") else [f"{unit}.c" for unit in touched]
    copies = [p for name in names for p in (folder / "build").rglob(name)]
    for built in [*copies, *(p for unit in touched for p in folder.rglob(f"{unit}.*.so"))]:
        built.unlink()
    if not build():
        return NOT_BUILT
    libraries = [p for unit in touched for p in KERNELS.glob(f"{unit}.*.so")]
    if all(p.read_bytes() == (base / p).read_bytes() for p in libraries):
        return UNCHANGED
    return run_tests(folder, map(path_of, tests), words_for(mutant))


def started(log, work, *arguments):
    """A process forked to do some work, which returns its exit status."""

    def body():
        os.setsid()
        signal.alarm(BUILD_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            status = work(*arguments)
        except BaseException:
            traceback.print_exc()
            status = BROKEN
        sys.stdout.flush()
        os._exit(status)

    process = get_context("fork").Process(target=body)
    process.start()
    return process


def ended(process):
    """Wait for a process, end what it left running, and return its exit status."""
    process.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode
