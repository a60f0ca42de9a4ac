"""Time `cylstm.torch`'s layers against `torch.nn`'s: `python bench/torch_twin.py`.

float32, the same weights; calls of both by turns, so that what slows the machine down slows both.
On one thread the processor's time is taken, which others on the machine disturb least. A ratio is
PyTorch's time over the twin's, of the medians: more than 1 is ahead.
"""

import argparse
import copy
import statistics
import time

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cylstm
import cylstm.torch

# (B, T, I = H), and the share of steps that are real
INFERENCE = [(1, 1, 64, 1), (1, 1, 256, 1), (1, 100, 64, 1), (1, 100, 256, 1), (4, 100, 128, 1),
             (16, 100, 128, 1), (32, 100, 256, 1), (64, 50, 512, 1), (128, 50, 128, 1),
             (32, 100, 256, 0.6)]  # fmt: skip
TRAINING = [(1, 100, 64, 1), (8, 100, 64, 1), (16, 100, 128, 1), (32, 100, 256, 1),
            (64, 50, 512, 1), (128, 50, 128, 1), (32, 100, 256, 0.6)]  # fmt: skip


def runner(module, x, lengths, training):
    """A function that runs one step of inference or training."""
    given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    if not training:

        def infer():
            with torch.inference_mode():
                module(given)

        return infer
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    y = module(given)[0]
    y = y if lengths is None else y.data
    dy = torch.randn(y.shape) / y.numel()

    def train():
        y = module(given)[0]
        (y if lengths is None else y.data).backward(dy)
        optimizer.step()
        optimizer.zero_grad()

    return train


def measure(runs, seconds, clock):
    """Median time of each function, called by turns for so many seconds, at least five times."""
    times = [[] for _ in runs]
    for run in runs:
        run()
    begin = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() - begin < seconds:
        for run, found in zip(runs, times, strict=True):
            start = clock()
            run()
            found.append(clock() - start)
    return [statistics.median(found) for found in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each point")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, cylstm {cylstm.__version__}, {options.threads} threads")
    for name in ("LSTM", "GRU"):
        for training, grid in ((False, INFERENCE), (True, TRAINING)):
            for rows, steps, size, real in grid:
                other = getattr(torch.nn, name)(size, size)
                twin = cylstm.torch.accelerate(copy.deepcopy(other))
                x = torch.randn(steps, rows, size)
                lengths = None
                if real < 1:
                    lengths = torch.linspace(2 * real * steps - steps, steps, rows).round().long()
                theirs, ours = measure(
                    [runner(m, x, lengths, training) for m in (other, twin)],
                    options.seconds,
                    clock,
                )
                what = "training" if training else "inference"
                packed = "" if real == 1 else f" packed, {real:.0%} real"
                print(
                    f"{name:5}{what:10}{f'({rows},{steps},{size}){packed}':34}"
                    f"{theirs * 1e6:10.1f} us {ours * 1e6:10.1f} us   {theirs / ours:5.2f}"
                )


if __name__ == "__main__":
    main()
