"""Steps with `out=` allocate nothing: Python's allocations and the C library's are counted."""

import os
import shlex
import subprocess
import sys
import sysconfig

import pytest

# In the place of the C library's allocator. Python's own is off: its objects come from here, too.
COUNTER = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_memalign(size_t, size_t), *__libc_realloc(void *, size_t);
static unsigned long count;
#define COUNTED __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED)
unsigned long allocations(void) { return count; }
void *malloc(size_t n) { COUNTED; return __libc_malloc(n); }
void *calloc(size_t n, size_t size) { COUNTED; return __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { COUNTED; return __libc_realloc(p, n); }
void *memalign(size_t align, size_t n) { COUNTED; return __libc_memalign(align, n); }
void *aligned_alloc(size_t align, size_t n) { COUNTED; return __libc_memalign(align, n); }
int posix_memalign(void **p, size_t align, size_t n) {
    return COUNTED, (*p = __libc_memalign(align, n)) ? 0 : 12;
}
"""
STEPS = 10
# Prints how many allocations there are in so many steps more than in none.
PROGRAM = """
import ctypes
from itertools import repeat
import numpy as np
import cylstm

layer = cylstm.{cell}(8, {hidden}, 2, rng=0)
x, y, attention = np.ones(({rows}, 8), "f"), np.empty(({rows}, {hidden}), "f"), np.ones({rows}, "f")
stream, pool = layer.stream({rows}, num_threads={threads}), layer.pool({rows})
ids = np.array([pool.open() for _ in range({rows})])
step = {kind}.step
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_ulong


def counted(steps):
    before = allocations()
    for _ in repeat(None, steps):
        step({arguments})
    return allocations() - before


counted({steps}), counted(0)
none, some = counted(0), counted({steps})
print(some - none)
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counter")
    (folder / "counter.c").write_text(COUNTER)
    library = folder / "counter.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-fno-builtin", "-o", library, folder / "counter.c"],
        check=True,
    )
    return library


@pytest.mark.parametrize("kind", ["stream", "pool"])
@pytest.mark.parametrize(
    ("cell", "rows", "hidden", "threads"),
    [("LSTM", 1, 64, 1), ("AUGRU", 5, 20, 1), ("LSTM", 70, 384, 3), ("GRU", 70, 384, None)],
)
def test_a_step_allocates_nothing(counter, kind, cell, rows, hidden, threads):
    arguments = "x" if kind == "stream" else f"ids, x, num_threads={threads}"
    arguments += ", attention=attention" * (cell == "AUGRU")
    for more, expected in (", out=y", 0), ("", STEPS):
        program = PROGRAM.format(
            cell=cell, hidden=hidden, rows=rows, threads=threads, kind=kind, steps=STEPS,
            arguments=arguments + more,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=100,
            env=os.environ | {"LD_PRELOAD": str(counter), "PYTHONMALLOC": "malloc"},
        )  # fmt: skip
        assert min(int(done.stdout), STEPS) == expected
