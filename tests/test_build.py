"""What the build chose, against what the machine says of itself."""

import os
import platform
import re
import sys
from pathlib import Path

import pytest

import cylstm

NEEDS = {
    "base": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"},
}


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="asks Linux about x86-64"
)
def test_usable_instruction_sets_are_those_linux_reports():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    config = cylstm.config()
    expected = [isa for isa in config["isa_built"] if NEEDS[isa] <= set(flags[1].split())]
    assert config["isa_usable"] == expected
    assert config["isa"] == os.environ.get("CYLSTM_ISA", expected[0])
