"""Timing that other programs on the machine disturb as little as possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_TIMES = 5  # as many executions as are wanted, where some are dropped
_PARALLEL = 0.8  # share of the processors a work had at best, or could have, below which others took some


@dataclass(frozen=True)
class Load:
    """What this process has had so far: processor seconds of all its threads, and how often one was interrupted."""

    cpu: float
    interruptions: int = 0


@dataclass(frozen=True)
class Timing:
    """Seconds of one execution, and whether it had the processors that it could use for itself."""

    seconds: float
    quiet: bool = True


class Clock:
    """Seconds of a piece of work.

    On one thread it is the thread's CPU time, which stands still while another program has the processor; on several it
    is the time on the wall. Then executions count in which no other program took a processor: the process had about as
    much CPU time a second as this work ever has, and was not interrupted (where the system tells) unless all threads
    were busy nevertheless.

    Args:
        threads: how many threads the work uses

    Attributes:
        dropped: executions that were disturbed, so far
    """

    def __init__(self, threads: int) -> None:
        _settle_allocator()
        self._threads = threads
        self._read = time.thread_time if threads == 1 else time.perf_counter
        self._parallel: dict[Hashable, float] = {}  # the most processors that a work has had
        self.dropped = 0

    def timed(self, work: Callable[[], object], of: Hashable = None) -> Timing:
        """One execution.

        Args:
            of: names works that are alike
        """
        before = load() if self._threads > 1 else None
        start = self._read()
        work()
        seconds = self._read() - start
        if before is None:
            return Timing(seconds)
        after = load()
        quiet = self._quiet(seconds, after.cpu - before.cpu, after.interruptions - before.interruptions, of)
        self.dropped += not quiet
        return Timing(seconds, quiet)

    def seconds(self, work: Callable[[], object], of: Hashable = None) -> float:
        """How long one execution takes: the first undisturbed one of a few, or the shortest."""
        taken = []
        for _ in range(MOST_TIMES):
            timing = self.timed(work, of)
            if timing.quiet:
                return timing.seconds
            taken.append(timing.seconds)
        return min(taken)

    def samples(self, make: Callable[[], Callable[[], object]], repeats: int, of: Hashable) -> list[float]:
        """Seconds of so many executions, after one that is not counted; what is dropped is done again, up to a limit.

        Args:
            make: gives the work anew for each execution, as its memory should be another
        """
        self.timed(make(), of)
        kept: list[float] = []
        dropped: list[float] = []
        while len(kept) < repeats and len(kept) + len(dropped) < MOST_TIMES * repeats:
            timing = self.timed(make(), of)
            (kept if timing.quiet else dropped).append(timing.seconds)
        return kept + sorted(dropped)[: repeats - len(kept)]

    def _quiet(self, wall: float, cpu: float, interruptions: int, of: Hashable) -> bool:
        had = min(cpu / wall, self._threads) if wall > 0 else float(self._threads)
        most = self._parallel[of] = max(had, self._parallel.get(of, 0.0))
        return had >= _PARALLEL * (self._threads if interruptions else most)


def load() -> Load:
    """Of this process, now."""
    try:
        import resource
    except ImportError:  # Windows
        return Load(time.process_time())
    return Load(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


def _settle_allocator() -> None:
    """Brings a fresh process into the state of one that has worked for a while.

    Until glibc has seen a large block freed (up to 32 MiB count), it returns freed memory to the system at once, and
    every activation is paged in anew: that made a dense WideResNet-16-2 1.6 times slower, but not its thin copies.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8)


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
