"""A measurement must not depend on what its process has done before."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, statistics, sys, torch
from regrow.latency.clock import Clock
torch.set_num_threads(1)
if "measuring" in sys.argv:
    Clock(1)
x = torch.randn(1 << 20)  # 4 MiB, which a fresh process would page in anew for every result
work = lambda: ((x + 1) * 2).relu()
faults = [0]
for _ in range(41):
    work()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(b - a for a, b in zip(faults[20:], faults[21:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc's allocator")
def test_results_find_their_memory_where_a_clock_was_made() -> None:
    """What a work pages in anew (256 to 3072 pages otherwise) is what made a fresh process slower."""
    words = [sys.executable, "-c", FAULTS, "measuring"]
    assert float(subprocess.run(words, check=True, capture_output=True).stdout) < 16
