"""The command line: `python -m cylstm demo`, `info`, `inspect FILE` and `convert IN OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cylstm
from cylstm.examples import japanese_vowels as demo
from cylstm.io.convert import READERS, WRITERS, convert
from cylstm.io.describe import DESCRIBERS, lines


def at_least(least: int) -> Callable[[str], int]:
    """Return a reader of integers of at least `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    return integer


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser("python -m cylstm", description=cylstm.__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "demo",
        help="train on the Japanese Vowels data, then stream an utterance",
        description="Train a bidirectional layer to name the speakers of the Japanese Vowels data, "
        "print accuracy and times, then stream one test utterance frame by frame.",
    )
    add = command.add_argument
    add("--cell", choices=("lstm", "gru", "rnn"), default="lstm", help="default: %(default)s")
    add("--seed", type=at_least(0), default=0, help="weights, batches, noise; default: %(default)s")
    add("--epochs", type=at_least(1), default=demo.EPOCHS, help="default: %(default)s")
    # A second thread gains a third of these small batches when it is idle and costs a multiple
    # when another program wants its core.
    add("--threads", type=at_least(1), default=1, help="most threads used; default: %(default)s")
    add("--plot", type=Path, metavar="FILE.png", help="draw curves, gates and gradient flow")
    add(
        "--assert-accuracy",
        type=fraction,
        default=0.0,
        metavar="FRACTION",
        help="exit with status 1 below this test accuracy, for example 0.97",
    )
    commands.add_parser("info", help="print the configuration: instruction sets, threads")
    command = commands.add_parser(
        "inspect",
        help="print what is in a file",
        description="Print metadata, configuration and arrays of a file, without running it or "
        "making room for its weights.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help=", ".join(DESCRIBERS))
    command = commands.add_parser(
        "convert",
        help="make a file of another kind from one",
        description="Read a network from one file and write it to another; suffixes say of which "
        "kind they are.",
    )
    command.add_argument("source", type=Path, metavar="IN", help=", ".join(READERS))
    command.add_argument("target", type=Path, metavar="OUT", help=", ".join(WRITERS))
    command.add_argument(
        "--check",
        type=Path,
        metavar="SAMPLE.npz",
        help="run both on the input x in it, print the largest difference of their outputs, and "
        "exit with status 1 if it is more than rounding",
    )
    return top


def with_files(options: argparse.Namespace) -> int:
    """Inspect a file or convert one; return the exit status."""
    try:
        if options.command == "inspect":
            text, status = list(lines(options.file)), 0
        else:
            check = convert(options.source, options.target, options.check)
            text = [] if check is None else [f"largest difference: {check.difference:.3g}"]
            status = 0 if check is None or check.close else 1
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"cylstm: {error}", file=sys.stderr)
        return 2
    for line in text:
        print(line)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: `sys.argv` without the name of the program.

    Returns
    -------
    int
        Exit status. Wrong usage is 2, by `SystemExit` if the parser finds it.
    """
    options = parser().parse_args(arguments)
    if options.command == "info":
        cylstm.show_config()
        return 0
    if options.command in ("inspect", "convert"):
        return with_files(options)
    cylstm.set_num_threads(options.threads)
    try:
        return demo.run(
            options.cell,
            seed=options.seed,
            epochs=options.epochs,
            plot=options.plot,
            assert_accuracy=options.assert_accuracy,
        )
    except demo.DemoError as error:
        print(f"cylstm: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
