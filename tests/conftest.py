"""Tests run on one thread: small tensors, and results that do not depend on the machine; and with Ctrl-C as a terminal
has it, also where the tests themselves run in the background, whose processes inherit that it is ignored."""

import gc
import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from sampling import positions

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_machine_is_too_busy() -> Iterator[None]:
    """No test depends on how steady the machine is; when a busy one is refused is seen in latency/test_busy.py."""
    from regrow.latency import busy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy, "LIMITS", busy.Limits(*[float("inf")] * 4))
        yield


@pytest.fixture(scope="session")
def one_server() -> Iterator[None]:
    """What is forked in this process comes from one server, which imports torch once; that a comparison ends its own
    is seen where the real command runs (study/test_pool.py)."""
    from multiprocessing import forkserver

    from regrow.study.pool import Server

    leave = Server.__exit__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "__exit__", lambda self, *_: self._first and self._first.join())
        yield
    if getattr(forkserver._forkserver, "_forkserver_pid", None) is not None:
        with Server(1) as server:
            leave(server)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as tests also wait: for processes of their own, and for files."""
    return (os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count() or 1) + 1


# what takes longest comes first, so that no worker is left with it at the end
LONG = (
    "study/test_comparison.py::test_demo", "study/test_comparison.py::test_interrupted_and_continued",
    "study/test_comparison.py::test_a_comparison", "study/test_comparison.py::test_killed_with_its_runs",
    "study/test_pool.py", "training/test_processes.py", "training/test_resume.py::test_killed",
    "training/test_resume.py::test_asked_to_stop", "training/test_loop.py::test_large_recipes",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """What all libraries have made while they were imported stays; to look through it again is a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="run also what the markers `sampled` and `thorough` leave out"
    )


def is_sampled_out(item: pytest.Item) -> bool:
    """Whether this is left to --thorough, by its own marker `thorough` or as one of the parameters' combinations that
    `sampled(n)` leaves out: it keeps those whose positions add up to a multiple of n, so that of a product every value
    is met, with n-ths of every other's."""
    if item.config.getoption("thorough"):
        return False
    if item.get_closest_marker("thorough") is not None:
        return True
    marker = item.get_closest_marker("sampled")
    if marker is None:
        return False
    assert isinstance(item, pytest.Function)
    marks = list(item.iter_markers("parametrize"))  # of which the first changes last
    first = marks[0].args[0]
    number = item.callspec.indices[first.partition(",")[0] if isinstance(first, str) else first[0]]
    return sum(positions(number, [len(mark.args[1]) for mark in marks])) % marker.args[0] != 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [item for item in items if is_sampled_out(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not is_sampled_out(item)]
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(LONG))
