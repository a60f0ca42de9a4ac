"""Before PyTorch is imported."""

import os

# How MKL sums depends on the processor, and with it PyTorch's rounding errors: they are compared on
# a path that every machine has.
os.environ.setdefault("MKL_CBWR", "AVX2")
