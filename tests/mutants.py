"""Plant one error at a time in the sources and see the tests find it.

    python tests/mutants.py [--all | --count N] [--written N] [--seed N] [--jobs N] [--no-peers]
                            [words]

Builds a copy of the tree with one instruction set, and then, for one mutant after another,
rebuilds what depends on its file and runs that file's tests; mutants written by hand are compiled
all together where that can be (`mutation/joined.py`). A test kills only if it passes without any
mutant, which is tried once for each that does. There are
mutants written by hand, which know the mathematics (`mutation/written`), and mutants made by rule
from every line of code (`mutation/generate.py`), of which `--count` take part, always the same ones
for a seed. Words choose mutants by their file or reason.

Exit status 1 if a mutant survives. A generated one may survive if `mutation/survivors` says why:
then it is not run. What does not compile, or compiles to the same code, is no mutant.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from multiprocessing import connection
from pathlib import Path

from mutation import generate, joined, patches, trial

SOURCES = trial.ROOT / "src" / "cylstm"
# A fixed sample, so that each of its survivors has been looked at once. More come to light by hand.
SEED, COUNT = 1, 40
NONE = "no_such_test"  # selects none: a file of tests can be read
# No mathematics in them.
LEFT_OUT = {"__main__.py", "japanese_vowels.py", "japanese_vowels_figure.py", "chaos.h", "chaos.c"}
# The tests of a source file, those that find its errors soonest first: NAME or DIRECTORY/NAME of a
# test_NAME.py, or one of its functions, NAME::FUNCTION. A Python module that is not here has the
# test of its own name.
FIRST = (
    "variants::test_against_the_oracle steps::test_returned_outputs "
    "steps::test_masked_steps_are_as_if_they_were_not_there reset::test_as_the_oracle trace"
)
KERNELS = (
    f"{FIRST} sequences topology::test_merging regularisation terms reset steps variants "
    "gradients::test_reference initial_states"
)
CALLS = (
    f"native steps::test_lists_of_little sequences {FIRST} topology::test_merging reset steps "
    "gradients::test_reference initial_states terms"
)
LAYERS = (
    "options init variants::test_activations_against_the_oracle "
    "variants::test_forget_bias_of_every_variant variants"
)
TESTS = {
    "activations.h": (
        "variants::test_activations_against_the_oracle terms::test_no_digits_cancel "
        "terms::test_a_nan_passes_every_activation activations "
        "variants::test_against_the_oracle variants terms"
    ),
    "simd.h": "activations sequences variants gradients::test_reference",
    "tile.h": "forward variants gradients::test_reference",
    "dense.h": "linear dense",
    "digest.h": "digest",
    "engine.py": "peers/torch_twin",
    "function.py": "peers/torch_twin",
    "modules.py": "peers/torch_twin",
    "swapping.py": "peers/torch_twin",
    "torch.py": "peers/from_torch",
    "dense.pxi": "linear dense",
    "linear.pxi": "linear dense embedding",
    "guard.h": "dense linear",
    "machine.h": "floating_point machine",
    "plans.pxi": "plans",
    "request.pxi": "plans",
    "memory.pxi": "native plans variants machine",
    "memory.c": "machine",
    "team.h": "terms plans machine",
    "team.c": "terms plans machine",
    "__init__.py": "options import",
    "activations.py": "variants::test_activations_against_the_oracle options variants",
    "activation.py": "stateless",
    "container.py": "sequential branches norm network_streams",
    "conv.py": "conv network_streams",
    "drawing.py": "stateless dropout",
    "dropout.py": "stateless",
    "flow.py": "sequential stateless pool conv norm",
    "network.py": "network_streams sequential branches",
    "network_pool.py": "network_pool",
    "steppers.py": "network_streams",
    "sequential.py": "sequential pool",
    "augru.py": "bad_input::test_attention_is_one_number_for_each_step pairs variants",
    "batches.py": (
        "steps::test_a_list_has_the_bits_of_lengths sequences "
        "steps::test_returned_outputs_of_a_list_and_of_a_row_alone "
        "steps::test_masked_steps_are_as_if_they_were_not_there "
        "topology reset steps arrays bad_input"
    ),
    "cells.py": "variants",
    "certificate.py": "files",
    "checks.py": "bad_input arrays options steps init linear losses optim",
    "convert.py": "files",
    "describe.py": "files hostile_files",
    "dispatch.py": "activations build",
    "elements.py": "losses::test_formulas losses",
    "classification.py": "losses::test_formulas losses",
    "regression.py": "losses::test_formulas losses",
    "algorithms.py": "optim::test_formulas optim",
    "clipping.py": "optim",
    "optimizer.py": "optim::test_formulas optim",
    **dict.fromkeys(
        (
            "builder.py",
            "error.py",
            "functions.py",
            "hdf5.py",
            "importer.py",
            "layer_line.py",
            "recurrence.py",
            "sources.py",
        ),
        "peers/from_keras",
    ),
    "gated.py": LAYERS,
    "gru.py": LAYERS,
    "linear.py": "linear dense",
    "lstm.py": LAYERS,
    "rnn.py": LAYERS,
    "state_dict.py": "loading module",
    "emitting.py": "peers/to_onnx peers/from_onnx",
    "errors.py": "peers/from_onnx",
    "evaluators.py": "peers/from_onnx",
    "line.py": "peers/to_onnx",
    "masks.py": "regularisation dropout variants",
    "onnx/network.py": "peers/from_onnx",
    "nodes.py": "peers/from_onnx",
    "plan.py": "peers/from_onnx",
    "reading.py": "peers/from_onnx",
    "writing.py": "peers/to_onnx",
    "outputs.py": "topology steps reset",
    "module.py": (
        "module config optim::test_frozen_parameters_are_left_alone files hostile_files options"
    ),
    "networks.py": "files hostile_files",
    "npz.py": "files hostile_files",
    "ragged.py": "linear embedding",
    "runtime.py": "threads",
    "recurrent.py": (
        "options dropout regularisation topology variants sequences initial_states arrays"
    ),
    "segments.py": "reset",
    "states.py": "initial_states reset::test_as_the_oracle topology reset variants bad_input",
    "structure.py": (
        "options dropout regularisation topology variants sequences initial_states arrays"
    ),
    "snapshots.py": "streams::test_what_is_wrong_with_a_snapshot_is_said streams pools",
    "state_files.py": "files hostile_files",
    "state_rows.py": "streams pools",
    "suffixes.py": "files",
    "tensors.py": "files hostile_files",
    "stream.py": "streams",
    "pool.py": "pools pool",
    "streams.pxi": "streams pools",
    "pools.pxi": "pools",
    "stored.py": "dense linear embedding module",
    "tape.py": "trace",
    "weights.py": "variants::test_against_the_oracle initial_states variants",
}


def tests_of(mutant):
    """The tests of a mutant by name, in the order in which they are run."""
    file = mutant.file
    path = Path(file)
    names = TESTS.get(f"{path.parent.name}/{path.name}", TESTS.get(path.name, "")).split()
    if not names and path.suffix == ".py":
        names = [path.stem] * (trial.ROOT / "tests" / f"test_{path.stem}.py").exists()
    elif not names:
        levels = any(module.startswith("level_") for module in trial.modules(file))
        names = (KERNELS if levels else CALLS).split()
    if not names:
        raise SystemExit(f"{file}: no tests are known for it: add them to TESTS in {__file__}")
    return mutant.tests.split() + names


def written():
    """The mutants written by hand; ends the process where one has no place any more."""
    mutants, lost = [], []
    for patch in patches.read("written"):
        try:
            mutants.append(patch.mutant((SOURCES / patch.file).read_text()))
        except (OSError, ValueError) as error:
            lost.append(f"mutation/written/{patch.file}.txt: {patch.why}: {error}")
    if lost:
        raise SystemExit("\n".join([*lost, f"{len(lost)} patches must be mended or removed"]))
    return mutants


def generated():
    """All mutants that the rules make, without those known to survive."""
    known = {(p.file, p.old, p.new) for p in patches.read("survivors")}
    mutants = []
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix not in (".py", ".pyx", ".pxi", ".h", ".c") or path.name in LEFT_OUT:
            continue
        if path.suffix == ".c" and path.parent.name != "threads":
            continue  # Cython's, of an earlier build
        file = path.relative_to(SOURCES).as_posix()
        mutants += generate.mutants_of(file, path.read_text())
    for stale in known - {(m.file, m.old, m.new) for m in mutants}:
        print("mutation/survivors: no longer there: {}: {!r} to {!r}".format(*stale))
    return [m for m in mutants if (m.file, m.old, m.new) not in known]


class Run:
    """Trials side by side, on a base that has been built and tested."""

    def __init__(self, scratch, jobs):
        self.scratch, self.jobs = scratch, jobs
        self.base, self.joined = scratch / "base", scratch / "joined"

    def prepare(self, mutants):
        """Build the base, and mutants in one copy of it."""
        log = self.scratch / "build.log"
        if trial.ended(trial.started(log, trial.build_base, self.base)) != trial.PASSED:
            raise SystemExit(f"{log.read_text()}\nthe sources do not build")
        self.numbers = self.join(mutants)
        print(f"{len(self.numbers)} mutants built together", flush=True)

    def check_killers(self, killers):
        """See that tests pass without any mutant, and within the time that they had with one."""
        folder = self.joined if self.numbers else self.base
        work = [
            (trial.run_tests, folder, [path], words, trial.BASE_SECONDS)
            for path, words in killers.items()
        ]
        slowest = 0.0
        for (_, _, [path], words, _), status, log, seconds in self.results(work):
            if status != (trial.NO_TESTS if words == NONE else trial.PASSED):
                raise SystemExit(f"{log.read_text()}\n{path} fails without any mutant")
            if seconds > trial.TEST_SECONDS:
                raise SystemExit(
                    f"{path}: {seconds:.0f} s without any mutant: too slow to judge by"
                )
            slowest = max(slowest, seconds)
        print(f"{len(work)} tests that kill pass without any mutant, in {slowest:.0f} s at most")

    def join(self, mutants):
        """Build many mutants at once; the numbers of those that can be tried so."""
        texts, numbers = {}, []
        for file in sorted({m.file for m in mutants if not m.file.endswith(".py")}):
            own = [(i, m) for i, m in enumerate(mutants, 1) if m.file == file]
            source = (SOURCES / file).read_text()
            text, joint = joined.join(source, own, file)
            if joint:
                in_c = file.endswith((".h", ".c"))
                texts[file] = joined.with_choice(text, file) if in_c else text
                numbers += joint
        if not texts:
            return set()
        for file in ("kernels/level.pxi", "kernels/sequence.pyx"):
            text = texts.get(file, (SOURCES / file).read_text())
            texts[file] = joined.with_choice(text, file)
        log = self.scratch / "joined.log"
        work = trial.started(log, trial.build_joined, self.base, self.joined, texts)
        if trial.ended(work) != trial.PASSED:
            raise SystemExit(f"{log.read_text()}\nthe mutants do not build together")
        return set(numbers)

    def results(self, work):
        """Do pieces of work in processes; yield each with exit status, log and seconds."""
        waiting, running = list(enumerate(work)), {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                number, (function, *arguments) = waiting.pop(0)
                log = self.scratch / f"{function.__name__}-{number}.log"
                process = trial.started(log, function, *arguments)
                running[process.sentinel] = process, work[number], log, time.perf_counter()
            for sentinel in connection.wait(running):
                process, piece, log, start = running.pop(sentinel)
                yield piece, trial.ended(process), log, time.perf_counter() - start

    def survivors(self, mutants):
        """Try mutants, say what became of each, and return those that live."""
        alive, killed, none, killers = [], 0, 0, {}
        work = [
            (trial.try_joined, self.joined, i, m, tests_of(m)) if i in self.numbers
            else (trial.try_mutant, self.base, self.scratch / str(i), m, tests_of(m))
            for i, m in enumerate(mutants, 1)
        ]  # fmt: skip
        for (_, _, _, mutant, _), status, log, seconds in self.results(work):
            verdict = verdict_of(status, log)
            print(f"{seconds:4.1f} s  {mutant.described()}: {verdict}", flush=True)
            alive += [mutant] * (verdict == "SURVIVED")
            if verdict.startswith("killed"):
                killed += 1
                begun = re.findall(rf"^{trial.BEGINS}(.*)$", log.read_text(errors="replace"), re.M)
                path = f"{trial.ROOT}/{begun[-1]}" if begun else trial.path_of(tests_of(mutant)[0])
                killers[path] = "" if begun else NONE
            none += verdict.startswith("no mutant")
        self.check_killers(killers)
        print(f"{killed} of {killed + len(alive)} mutants killed, {none} were none")
        return alive


def verdict_of(status, log):
    output = log.read_text(errors="replace")
    if status == trial.PASSED:
        return "SURVIVED"
    if status == trial.NOT_BUILT:
        return "no mutant, it does not compile"
    if status == trial.UNCHANGED:
        return "no mutant, it compiles to the same"
    if status < 0:
        return f"killed by signal {-status}"
    failed = [x for x in output.splitlines() if x.startswith(("FAILED", "ERROR"))]
    if status in trial.FAILED and failed:
        return f"killed by {failed[0].split(' - ')[0].partition('test_')[2]}"
    raise SystemExit(f"{log}: exit status {status}\n{output}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="of the files or reasons of the mutants to try")
    parser.add_argument("--all", action="store_true", help="all generated mutants")
    parser.add_argument("--count", type=int, default=COUNT, help="so many generated ones")
    parser.add_argument("--written", type=int, help="so many written by hand; default all")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-peers", action="store_true", help="none that need other libraries")
    parser.add_argument("--list", action="store_true", help="only print the mutants")
    given = parser.parse_args()

    by_hand, rest = (
        [
            m
            for m in mutants
            if all(word in m.described() for word in given.words)
            and not (given.no_peers and any(test.startswith("peers/") for test in tests_of(m)))
        ]
        for mutants in (written(), generated())
    )
    if given.written is not None:
        by_hand = generate.sample(by_hand, given.seed, given.written)
    chosen = by_hand + (rest if given.all else generate.sample(rest, given.seed, given.count))
    if given.list or not chosen:
        print(*(f"{m.described()}\n- {m.old}\n+ {m.new}" for m in chosen), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), given.jobs)
        run.prepare(by_hand)
        alive = run.survivors(chosen)
    for mutant in alive:
        print(f"\nSURVIVED {mutant.described()}\n- {mutant.old}\n+ {mutant.new}")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
