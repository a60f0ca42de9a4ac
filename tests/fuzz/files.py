"""Damaged files are refused by FormatError, or read: nothing else may happen.

    python tests/fuzz/files.py [--cases N] [--first N] [--folder FOLDER]

Each case is a good file damaged by its number. It fails if anything but FormatError is raised, if
memory of more than LIMIT beyond the program's own is asked for, or if it takes SECONDS. What fails
is kept in the folder.
"""

import argparse
import faulthandler
import io
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import cylstm
from cylstm.io import describe, npz

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.mutator import mutated

#: Bytes that no case of these small files may need.
LIMIT = 2**27
SECONDS = 20


def good_files():
    """Files of each kind, by name, and what reads them."""
    module = cylstm.LSTM(3, 4, 2, bidirectional=True, rng=0)
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    linear = cylstm.Linear(3, 2, rng=1, activation=("leakyrelu", 0.1))
    optimizer = cylstm.Adam([linear], lr=0.1)
    arrays = {"a": x, "b": np.arange(5), "c": np.asfortranarray(x[0].astype(np.float64))}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        module.save(path, probe={"x": x, "lengths": [4, 2]})
        yield "module", path.read_bytes(), [read_module, read_verified, read_lines]
        linear.save(path)
        yield "linear", path.read_bytes(), [read_module, read_mapped, read_lines]
        table = cylstm.Embedding(5, 3, rng=0)
        inner = cylstm.Sequential(cylstm.GRU(3, 3, rng=1), cylstm.Dropout(0.5), cylstm.LayerNorm(3))
        scores = cylstm.Linear(3, 5, tied_to=table, rng=2)
        cylstm.Sequential(table, inner, cylstm.Pool("max"), scores).save(path)
        yield "network", path.read_bytes(), [read_module, read_mapped, read_lines]
        cylstm.save_state(path, optimizer.state_dict() | {"best": float("inf"), "words": ["a"]})
        yield "state", path.read_bytes(), [cylstm.load_state, read_lines]
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        yield save.__name__, file.getvalue(), [npz.read]


def read_module(path):
    module = cylstm.load(path)
    assert module.flat_params.nbytes <= path.stat().st_size


def read_verified(path):
    cylstm.load(path, verify=True)


def read_mapped(path):
    module = cylstm.load(path, mapped=True)
    module.assign(-module.flat_params)


def read_lines(path):
    for line in describe.safetensors(str(path)):
        assert line.isprintable()


def fill(file, data):
    os.ftruncate(file, 0)
    os.pwrite(file, data, 0)


def run(first, cases, folder):
    """Try cases; return how many were read, refused and wrong."""
    cylstm.set_num_threads(1)
    file = os.memfd_create("damaged")  # a disk would take most of the time
    path = Path(f"/proc/self/fd/{file}")
    good = list(good_files())
    for name, data, readers in good:
        fill(file, data)
        for read in readers:  # all is imported, and good files are read
            read(path)
        print(f"{name}: {len(data)} bytes, {len(readers)} ways to read it")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
    warnings.simplefilter("ignore", UserWarning)  # of options that do nothing
    read_, refused, wrong = 0, 0, 0
    for number in range(first, first + cases):
        if number % 100 == 0:  # each starts a thread
            faulthandler.dump_traceback_later(SECONDS, exit=True)
        name, data, readers = good[number % len(good)]
        fill(file, mutated(data, number))
        try:
            readers[number // len(good) % len(readers)](path)
            read_ += 1
        except cylstm.FormatError:
            refused += 1
        except BaseException as error:
            wrong += 1
            (folder / f"{name}-{number}").write_bytes(path.read_bytes())
            print(f"case {number}, {name}: {type(error).__name__}: {str(error)[:200]!r}")
    faulthandler.cancel_dump_traceback_later()
    return read_, refused, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--folder", type=Path, help="where to keep what fails; default temporary")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        read, refused, wrong = run(given.first, given.cases, given.folder or Path(name))
    seconds = time.perf_counter() - start
    print(f"{read} read, {refused} refused, {wrong} wrong, in {seconds:.1f} s")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
