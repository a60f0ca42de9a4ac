"""Plant one error at a time in the sources and see the tests find it.

    python tests/mutants.py [words that must occur in a mutant's file or reason]

Builds a copy of the tree with one instruction set and -O1, then for each of `mutations.py` changes
one place, rebuilds what depends on it and runs its tests. Exit status 1 if a mutant survives.
"""

import os
import platform
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing import connection, get_context
from pathlib import Path

# What a build and a run of pytest import: the processes forked below have it already.
import Cython.Build
import Cython.Compiler.ModuleNode
import Cython.Compiler.Optimize
import Cython.Compiler.ParseTreeTransforms  # noqa: F401
import hypothesis  # noqa: F401
import pytest
import setuptools.command.build_ext  # noqa: F401
from mutations import MUTANTS

ROOT = Path(__file__).parent.parent
LEVEL = "neon" if platform.machine() in ("aarch64", "arm64") else "avx2"
F64, F32 = f"level_{LEVEL}_f64", f"level_{LEVEL}_f32"
# Modules to compile again after a change of a file; none after one of a .py file. For the kernels
# float64 is enough, except for the functions that differ.
COMPILED = {
    "activations.h": [F64],
    "simd.h": [F64, F32],
    "tile.h": [F64],
    "states.pxi": [F64],
    "cells.pxi": [F64],
    "products.pxi": [F64],
    "norms.pxi": [F64],
    "packing.pxi": [F64],
    "packed.pxi": ["sequence"],
    "call.pxi": ["sequence"],
    "memory.pxi": ["sequence"],
    "timeloop.pxi": ["sequence"],
    "sequence.pyx": ["sequence"],
    "stack.pxi": ["sequence"],
    "machine.h": ["sequence"],
    "team.h": ["sequence"],
}
AT_ONCE = len(os.sched_getaffinity(0))
SECONDS = 60  # after which a process is stopped


def build():
    """Compile what is out of date in the current folder."""
    os.environ |= {"CYLSTM_BUILD_ISA": LEVEL, "CYLSTM_CFLAGS_OPT": "-O1", "CYLSTM_CHECKS": "chaos"}
    sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
    runpy.run_path("setup.py")


def run_tests(tests):
    """Run tests on the package in the current folder until one fails."""
    os.environ |= {
        "CYLSTM_ISA": LEVEL,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CYLSTM_SEEDS": "150",
    }
    sys.path.insert(0, os.path.abspath("src"))
    sys.dont_write_bytecode = True
    paths = [str(ROOT / "tests" / test) for test in tests]
    return pytest.main(["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *paths])


def try_original(folder, tests):
    unbuilt = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=unbuilt)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    os.chdir(folder)
    build()
    for built in [*folder.rglob("*.c"), *folder.rglob("*.so")]:
        # In copies it stays up to date, whatever setup.py says it depends on.
        os.utime(built, (time.time() + 3600,) * 2)
    return run_tests(tests)


def try_mutant(base, folder, mutant):
    shutil.copytree(base, folder)
    os.chdir(folder)
    path = Path("src", "cylstm", mutant.file)
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    for module in COMPILED[path.name] if path.suffix != ".py" else []:
        for built in folder.rglob(f"{module}.*"):
            # What C includes does not change what Cython makes.
            if built.suffix == ".so" or (built.suffix == ".c" and path.suffix != ".h"):
                built.unlink()
    if path.suffix != ".py":
        build()
    return run_tests(mutant.tests)


def started(log, work, *arguments):
    """A process forked to do some work, which returns its exit status."""

    def body():
        signal.alarm(SECONDS)
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            status = work(*arguments)
        except BaseException:
            traceback.print_exc()
            status = 100
        sys.stdout.flush()
        os._exit(status)

    process = get_context("fork").Process(target=body)
    process.start()
    return process


def failure(process, log):
    """How the tests failed in a process; None if they passed."""
    process.join()
    output = log.read_text()
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    if failed:
        return failed[0].partition("::")[2].partition(" - ")[0]
    if process.exitcode < 0:
        return f"signal {-process.exitcode}"
    if process.exitcode > 0:
        raise SystemExit(f"{log}:\n{output}")
    return None


def try_all(mutants, scratch):
    """How many of the mutants are killed."""
    waiting, running, killed = list(enumerate(mutants)), {}, 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, mutant = waiting.pop(0)
            folder, log = scratch / str(number), scratch / f"{number}.log"
            process = started(log, try_mutant, scratch / "base", folder, mutant)
            running[process.sentinel] = process, folder, log, mutant, time.perf_counter()
        for sentinel in connection.wait(running):
            process, folder, log, mutant, start = running.pop(sentinel)
            found = failure(process, log)
            shutil.rmtree(folder)
            verdict = f"killed by {found}" if found else "SURVIVED"
            seconds = time.perf_counter() - start
            print(f"{seconds:4.1f} s  {mutant.file:21}  {mutant.why}: {verdict}", flush=True)
            killed += found is not None
    return killed


def main(words):
    wrong = False
    for mutant in MUTANTS:
        found = (ROOT / "src" / "cylstm" / mutant.file).read_text().count(mutant.old)
        if found != 1:
            print(f"{mutant.file}, {mutant.why}: {mutant.old!r} occurs {found} times, not once")
            wrong = True
    if wrong:
        return 1
    chosen = [m for m in MUTANTS if all(word in f"{m.file} {m.why}" for word in words)]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tests = dict.fromkeys(test for mutant in chosen for test in mutant.tests)
        process = started(scratch / "log", try_original, scratch / "base", tests)
        if found := failure(process, scratch / "log"):
            raise SystemExit(f"{found} fails without any mutant")
        killed = try_all(chosen, scratch)
    print(f"{killed} of {len(chosen)} mutants killed")
    return killed < len(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
