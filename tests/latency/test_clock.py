"""A measurement must not depend on what its process has done before."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import statistics, sys, torch
from regrow.latency.clock import Clock
torch.set_num_threads(1)
if sys.argv[1] == "used":
    [torch.empty(31 << 20, dtype=torch.uint8) for _ in range(3)]
clock = Clock(1)
x = torch.randn(1 << 20)  # 4 MiB, which a fresh process would page in anew for every result
work = lambda: ((x + 1) * 2).relu()
print(statistics.median(clock.seconds(work) for _ in range(60)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc's allocator")
def test_fresh_and_used_processes_measure_alike() -> None:
    def seconds(state: str) -> float:
        words = [sys.executable, "-c", MEASURE, state]
        return min(float(subprocess.run(words, check=True, capture_output=True).stdout) for _ in range(3))

    assert 0.6 < seconds("fresh") / seconds("used") < 1.6
