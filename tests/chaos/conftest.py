"""These tests need a build with CYLSTM_CHECKS=chaos; elsewhere they are not there.

CYLSTM_SEEDS is the number of seeds that each of the long ones runs (default 1500).
"""

import pytest

from cylstm.kernels import sequence

collect_ignore_glob = [] if hasattr(sequence, "chaos") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _no_delays_afterwards():
    yield
    sequence.chaos(0)
