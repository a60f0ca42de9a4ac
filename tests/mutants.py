"""Plant one error at a time in the sources and see the tests find it.

    python tests/mutants.py [words that must occur in a mutant's file or reason]

Builds a copy of the tree with one instruction set and -O1, then for each mutant changes one place,
rebuilds what depends on it and runs a quick part of the suite. Exit status 1 if a mutant survives.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LEVEL = "neon" if platform.machine() in ("aarch64", "arm64") else "avx2"
TESTS = [
    "test_forward.py",
    "test_dropout.py",
    "test_gradients.py",
    "test_sequences.py",
    "test_activations.py",
    "test_layers.py::test_a_changed_weight_is_never_ignored",
    "test_layers.py::test_floating_point_mode_is_left_alone",
    "test_bits.py::test_every_batch_size",
    "test_bits.py::test_chunks_in_time",
    "test_bits.py::test_threads_and_tape_in_large_calls",
]
# Modules to compile again after a change of a file; none after one of a .py file. For the kernels
# float64 is enough, except for the functions that differ.
COMPILED = {
    "cells.pxi": [f"level_{LEVEL}_f64"],
    "products.pxi": [f"level_{LEVEL}_f64"],
    "tile.h": [f"level_{LEVEL}_f64"],
    "simd.h": [f"level_{LEVEL}_f64", f"level_{LEVEL}_f32"],
    "timeloop.pxi": ["sequence"],
    "sequence.pyx": ["sequence"],
    "call.pxi": ["sequence"],
    "machine.h": ["sequence"],
}


class Mutant(NamedTuple):
    file: str  # in src/cylstm
    old: str  # must occur exactly once
    new: str
    why: str


CELLS, PRODUCTS, LOOP = "kernels/cells.pxi", "kernels/products.pxi", "kernels/timeloop.pxi"
NATIVE, CALL, SIMD = "kernels/sequence.pyx", "kernels/call.pxi", "kernels/simd.h"
LAYERS, RECURRENT = "layers.py", "recurrent.py"

MUTANTS = [
    # LSTM
    Mutant(CELLS, "cdef vec i = vsigmoid(vload(z))\n    cdef vec f = vsigmoid(vload(z + LANES))",
           "cdef vec f = vsigmoid(vload(z))\n    cdef vec i = vsigmoid(vload(z + LANES))",
           "LSTM: input and forget gate swapped"),
    Mutant(CELLS, "cdef vec g = vtanh(vload(z + 2 * LANES))\n"
           "    cdef vec o = vsigmoid(vload(z + 3 * LANES))",
           "cdef vec g = vtanh(vload(z + 3 * LANES))\n"
           "    cdef vec o = vsigmoid(vload(z + 2 * LANES))",
           "LSTM: candidate and output gate swapped"),
    Mutant(CELLS, "vfma(f, vload(state(s, s.c, step, row, block)), i * g)",
           "vfma(f, vload(state(s, s.c, step + 1, row, block)), i * g)",
           "LSTM: cell state of another step"),
    Mutant(CELLS, "vload(state(s, s.c, step, row, block)), i * g)",
           "vload(state(s, s.c, step, row, block)), vset(0) - i * g)", "LSTM: flipped sign"),
    Mutant(CELLS, "o * vtanh(c)", "o * c", "LSTM: no tanh of the cell state"),
    Mutant(CELLS, "cdef vec dc = vload(carry) + d_tanh(tanh_c, dh * o)",
           "cdef vec dc = vload(carry) + dh * o", "LSTM backward: derivative of tanh(c) dropped"),
    Mutant(CELLS, "cdef vec dc = vload(carry) + d_tanh", "cdef vec dc = d_tanh",
           "LSTM backward: gradient of the later cell state dropped"),
    Mutant(CELLS, "cdef vec c_before = vload(state(s, s.c, step, row, block))",
           "cdef vec c_before = vload(state(s, s.c, step + 1, row, block))",
           "LSTM backward: c_t for c_{t-1}"),
    Mutant(CELLS, "vstore(carry, dc * f)", "vstore(carry, dc)",
           "LSTM backward: forget gate dropped"),
    Mutant(CELLS, "d_tanh(g, dc * i)", "d_tanh(g, dc * f)", "LSTM backward: f for i"),
    Mutant(CELLS, "dy * (y * (vset(1) - y))", "dy * y", "d_sigmoid: factor dropped"),
    Mutant(CELLS, "dy * (vset(1) - y * y)", "dy * (vset(1) + y * y)", "d_tanh: flipped sign"),
    # GRU
    Mutant(CELLS, "vfma(r, vload(slots + 3 * LANES), vload(slots))",
           "vfma(r, vload(slots), vload(slots + 3 * LANES))",
           "GRU: reset gate on the input's part"),
    Mutant(CELLS, "cdef vec r = vsigmoid(vload(slots + LANES))\n"
           "    cdef vec z = vsigmoid(vload(slots + 2 * LANES))",
           "cdef vec z = vsigmoid(vload(slots + LANES))\n"
           "    cdef vec r = vsigmoid(vload(slots + 2 * LANES))",
           "GRU: reset and update gate swapped"),
    Mutant(CELLS, "vfma(z, vload(state(s, s.h, step, row, block)) - n, n)",
           "vfma(z, n - vload(state(s, s.h, step, row, block)),"
           " vload(state(s, s.h, step, row, block)))", "GRU: update gate inverted"),
    Mutant(CELLS, "vstore(d_h + 2 * LANES, dn * r)", "vstore(d_h + 2 * LANES, dn)",
           "GRU backward: reset gate dropped"),
    Mutant(CELLS, "d_sigmoid(r, dn * u)", "d_sigmoid(r, dn * n)", "GRU backward: n for U h"),
    Mutant(CELLS, "dh * (h_before - n)", "dh * (n - h_before)", "GRU backward: flipped sign"),
    Mutant(CELLS, "vstore(carried(s, s.dh, row, block), dh * z)",
           "vstore(carried(s, s.dh, row, block), vset(0))", "GRU backward: direct path dropped"),
    Mutant(LAYERS, "[n_x, r_x + r_h, z_x + z_h, n_h]", "[n_x + n_h, r_x + r_h, z_x + z_h, 0 * n_h]",
           "GRU: recurrent bias of the candidate outside the reset gate"),
    Mutant(PRODUCTS, "fill_panel(s, p, <real *>s.d_h, entries, block)",
           "fill_panel(s, p, <real *>s.d_x, entries, block)",
           "GRU backward: recurrent gradients from those of the input"),
    # RNN
    Mutant(CELLS, "cdef vec h = vload(state(s, s.h, step + 1, row, block))",
           "cdef vec h = vload(state(s, s.h, step, row, block))", "RNN backward: h_{t-1} for h_t"),
    Mutant(CELLS, "vstore(dz, vstep(h, dh))", "vstore(dz, dh)", "RNN backward: no step of ReLU"),
    Mutant(SIMD, "vmax(vset(0), x)", "vmax(x, vset(0))", "ReLU swallows NaN"),
    # Products
    Mutant(CELLS, "dh = dh + vload_part(", "dh = vload_part(",
           "backward: gradient of the next step dropped"),
    Mutant(PRODUCTS, "state(s, s.h, step, row, 0),", "state(s, s.h, step + 1, row, 0),",
           "backward: y_t for y_{t-1} in the recurrent weights' gradient"),
    Mutant(PRODUCTS, "outer(s, p, entries, &one, 0, 1, <real *>s.db_ih + block * size)", "pass",
           "backward: no bias gradient"),
    Mutant(RECURRENT, 'self.params[f"weight_hh_{suffix}"][None]',
           "np.concatenate([w.T for w in np.split("
           'self.params[f"weight_hh_{suffix}"], len(self.gates))])[None]',
           "recurrent matrices transposed"),
    Mutant(PRODUCTS, "    # What only the recurrent product",
           "    if n == 1:\n"
           "        at = p.block0 * size\n"
           "        vstore(<real *>p.out[0] + at,"
           " vload(<real *>p.out[0] + at) * vset(1 + 2.0 ** -52))\n"
           "    # What only the recurrent product", "a single step rounded differently"),
    Mutant(SIMD, "0x1.5554b0p-3", "0x1.5555b0p-3", "exponential in float32: a coefficient"),
    Mutant(SIMD, "0x1.5555555555539p-3", "0x1.5555555555739p-3",
           "exponential in float64: a coefficient"),
    # Sequences
    Mutant(PRODUCTS, "min(p.row1, s.active[step])", "p.row1", "steps beyond a row's length run"),
    Mutant(CALL, "at[b] += max(0, self.length[b] - 1) * view.outer",
           "at[b] += max(0, self.seq[d].steps - 1) * view.outer", "reverse starts at the padding"),
    Mutant(CALL, "(self.length[b] & ring)", "(self.seq[d].steps & ring)",
           "final state of the last step instead of the row's own"),
    Mutant(NATIVE, "range(call.length[b], steps)", "range(call.length[b] + 1, steps)",
           "first step beyond a length not zeroed"),
    Mutant(NATIVE, "call.copy_rows_in(d, s.h, initial[0],", "call.copy_rows_in(d, s.h, None,",
           "h0 ignored"),
    Mutant(NATIVE, "call.copy_rows_in(d, s.c, initial[1],", "call.copy_rows_in(d, s.c, None,",
           "c0 ignored"),
    Mutant(NATIVE, "call.copy_rows_in(d, s.dh, dfinal[0],", "call.copy_rows_in(d, s.dh, None,",
           "gradient of the final h ignored"),
    Mutant(NATIVE, "call.copy_rows_in(d, s.dc, dfinal[1],", "call.copy_rows_in(d, s.dc, None,",
           "gradient of the final c ignored"),
    Mutant(LOOP, "    fp_restore(mode)\n", "", "floating-point mode not restored"),
    # Layers
    Mutant(RECURRENT, "dx[0] += dx[1]", "pass", "dx of the reverse direction dropped"),
    Mutant(RECURRENT, "dy *= tape.masks[layer - 1]", "pass", "dropout ignored in backward"),
    Mutant(RECURRENT, "mask *= 1 / keep if keep else 0", "pass", "dropout not scaled"),
    Mutant(RECURRENT, "self.flat_grads += gradient", "self.flat_grads[...] = gradient",
           "gradients do not accumulate"),
]  # fmt: skip


def run(folder, *command, **environment):
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip


def build(folder):
    done = run(folder, "setup.py", "-q", "build_ext", "--inplace",
               CYLSTM_BUILD_ISA=LEVEL, CYLSTM_CFLAGS_OPT="-O1")  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{folder} does not build:\n{done.stdout}")


def first_failure(folder, *options):
    """Run the tests on the package in a folder; the first that fails, or None."""
    paths = os.pathsep.join(map(str, (folder / "src", ROOT / "tests")))
    tests = [str(ROOT / "tests" / test) for test in TESTS]
    done = run(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, *tests,
               PYTHONPATH=paths, CYLSTM_ISA=LEVEL, PYTHONDONTWRITEBYTECODE="1")  # fmt: skip
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if failed:
        return failed[0].partition("::")[2].partition(" - ")[0]
    if done.returncode < 0:
        return f"a crash, signal {-done.returncode}"
    if done.returncode != 0:
        raise SystemExit(f"{folder}:\n{done.stdout}")
    return None


def copy_of(base, folder, mutant):
    """A built tree with a mutant in it."""
    shutil.copytree(base, folder)
    path = folder / "src" / "cylstm" / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    stale = COMPILED.get(path.name, [])
    if not stale:
        return
    for built in [*folder.rglob("*.c"), *folder.rglob("*.so")]:
        if built.name.partition(".")[0] in stale:
            built.unlink()
        else:  # up to date, whatever setup.py says it depends on
            os.utime(built, (time.time() + 3600,) * 2)
    build(folder)


def try_mutant(base, scratch, number, mutant):
    started, folder = time.perf_counter(), scratch / str(number)
    copy_of(base, folder, mutant)
    failure = first_failure(folder, *([] if mutant.file == SIMD else ["-k", "not float32"]))
    shutil.rmtree(folder)
    seconds = time.perf_counter() - started
    verdict = f"killed by {failure}" if failure else "SURVIVED"
    print(f"{seconds:4.0f} s  {mutant.file:20}  {mutant.why}: {verdict}", flush=True)
    return failure is not None


def main(words):
    for mutant in MUTANTS:
        found = (ROOT / "src" / "cylstm" / mutant.file).read_text().count(mutant.old)
        if found != 1:
            raise SystemExit(f"{mutant.file}: {mutant.old!r} occurs {found} times, expected once")
    chosen = [m for m in MUTANTS if all(word in f"{m.file} {m.why}" for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        unbuilt = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", base / "src", ignore=unbuilt)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, base)
        build(base)
        if failure := first_failure(base):
            raise SystemExit(f"{failure} fails without any mutant")
        with ThreadPoolExecutor(2) as pool:
            tries = [pool.submit(try_mutant, base, Path(scratch), i, m)
                     for i, m in enumerate(chosen)]  # fmt: skip
            killed = [t.result() for t in tries]
    print(f"{sum(killed)} of {len(killed)} mutants killed")
    return not all(killed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
