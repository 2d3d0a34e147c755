"""A measurement must not depend on what its process has done before, nor on what other programs do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from regrow.latency import clock
from regrow.latency.clock import Clock, Load, Timing

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


class Machine:
    """A wall clock, this process's processor time and its interruptions, as the works that are done say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.cpu, self.interruptions, self.done = 0.0, 0.0, 0, 0
        monkeypatch.setattr(clock, "load", lambda: Load(self.cpu, self.interruptions))
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.wall)
        self.clock = Clock(2)

    def work(self, *loads: tuple[float, float, int]) -> Callable[[], Callable[[], None]]:
        """Makes works of (wall seconds, processor seconds, interruptions), one after the other, the last ever after."""
        left = list(loads)

        def one() -> None:
            wall, cpu, interruptions = left.pop(0) if len(left) > 1 else left[0]
            self.wall += wall
            self.cpu += cpu
            self.interruptions += interruptions
            self.done += 1

        return lambda: one


QUIET, TAKEN, CUT, SERIAL = (1.0, 2.0, 0), (3.0, 3.0, 0), (2.0, 2.5, 4), (2.0, 2.0, 0)


def test_on_several_threads_disturbed_executions_are_dropped_and_done_again(monkeypatch):
    machine = Machine(monkeypatch)
    make = machine.work(QUIET, TAKEN, QUIET, CUT, CUT, QUIET)
    assert machine.clock.samples(make, 2, "a") == [1.0, 1.0]
    assert (machine.done, machine.clock.dropped) == (6, 3)


def test_where_all_are_disturbed_the_shortest_count_after_a_limit(monkeypatch):
    machine = Machine(monkeypatch)
    longer = [(3.0 + n, 3.0, 2) for n in range(20)]
    assert machine.clock.samples(machine.work(*longer), 2, "a") == [4.0, 5.0]
    assert machine.done == 1 + 5 * 2
    machine = Machine(monkeypatch)
    assert machine.clock.seconds(machine.work(*reversed(longer))()) == 18.0
    assert machine.done == 5


def test_a_work_that_uses_one_of_two_threads_is_not_disturbed(monkeypatch):
    machine = Machine(monkeypatch)
    assert machine.clock.samples(machine.work(SERIAL), 3, "serial") == [2.0] * 3
    assert machine.done == 4
    assert machine.clock.timed(machine.work((2.0, 2.0, 1))(), "serial") == Timing(2.0, False)  # interrupted
    assert machine.clock.timed(machine.work((1.0, 1.9, 3))(), "other") == Timing(1.0, True)  # yet both threads ran
    assert machine.clock.timed(machine.work((3.0, 3.0, 0))(), "other") == Timing(3.0, False)  # less than it can have


def test_on_one_thread_everything_counts(monkeypatch):
    monkeypatch.setattr(clock, "load", lambda: pytest.fail("not looked at"))
    ticks = iter([1.0, 4.0])
    monkeypatch.setattr(clock.time, "thread_time", lambda: next(ticks))
    assert Clock(1).timed(lambda: None) == Timing(3.0, True)


def test_the_load_of_this_process():
    before = clock.load()
    sum(range(200_000))
    after = clock.load()
    assert after.cpu > before.cpu
    assert after.interruptions >= before.interruptions >= 0
