"""Timing that other programs on the machine disturb as little as possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np


class Clock:
    """Seconds of a piece of work.

    On one thread it is the thread's CPU time, which stands still while another program has the processor; on several it
    is the time on the wall.

    Args:
        threads: how many threads the work uses
    """

    def __init__(self, threads: int) -> None:
        _settle_allocator()
        self._read = time.thread_time if threads == 1 else time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        """How long one call takes."""
        start = self._read()
        work()
        return self._read() - start


def _settle_allocator() -> None:
    """Brings a fresh process into the state of one that has worked for a while.

    Until glibc has seen a large block freed (up to 32 MiB count), it returns freed memory to the system at once, and
    every activation is paged in anew: that made a dense WideResNet-16-2 1.6 times slower, but not its thin copies.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8)


def typical(samples: Sequence[float]) -> float:
    """The lower quartile: whatever disturbs a measurement makes it longer, never shorter."""
    return float(np.quantile(samples, 0.25))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """PyTorch's number of threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
