"""Tests run on one thread: small tensors, and results that do not depend on the machine; and with Ctrl-C as a terminal
has it, also where the tests themselves run in the background, whose processes inherit that it is ignored."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(LONG))
