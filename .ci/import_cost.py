"""Assert that ``import cylstm`` costs what ``import numpy`` costs and brings nothing else in."""

import statistics
import subprocess
import sys

PAIRS = 61
LIMIT = 1.15
ALLOWED = {"cylstm", "numpy", *sys.stdlib_module_names}
PROBE = """
import sys, time
start = time.perf_counter()
import {name}
print(time.perf_counter() - start, *{{module.partition(".")[0] for module in sys.modules}})
"""


def imported(name: str) -> tuple[float, set[str]]:
    """Return the seconds that importing a package takes in a new process, and all it loads."""
    command = [sys.executable, "-c", PROBE.format(name=name)]
    seconds, *roots = subprocess.check_output(command, text=True).split()
    return float(seconds), set(roots)


ratios = []
imported("cylstm")  # fills the file cache
for i in range(PAIRS):
    # In pairs and by turns, because the clock of a shared machine drifts.
    found = {name: imported(name) for name in ("cylstm", "numpy")[:: 1 if i % 2 else -1]}
    ratios.append(found["cylstm"][0] / found["numpy"][0])
ratio = statistics.median(ratios)
(seconds, roots), (_, present) = found["cylstm"], found["numpy"]
extra = {root for root in roots - present - ALLOWED if not root.startswith(("_cython_", "cython_"))}
print(f"import cylstm: {seconds:.3f} s, {ratio:.3f} times numpy's; also imports: {extra or '-'}")
if ratio > LIMIT or extra:
    sys.exit(f"expected at most {LIMIT} times numpy's and no other package")
