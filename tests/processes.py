"""Real processes: which of them belong to a test, whatever they have become of."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from regrow.study.pool import Server


class Marked:
    """An environment whose processes can be found, and those that they have started."""

    def __init__(self) -> None:
        self.mark = f"REGROW_TEST_{uuid.uuid4().hex}"
        self.environment = {**os.environ, self.mark: "1"}

    def alive(self) -> list[str]:
        """The command lines of those that are left (Linux only)."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # ended meanwhile, or somebody else's
                continue
        return found


def fork(words: list[str], log: Path) -> Any:
    """Starts the command in a process of its own, a `multiprocessing.Process`, as a comparison does: forked from a
    server that has imported torch already (with the fixture ``one_server``, once for all tests).

    Args:
        words: of the command line.
        log: for all that it says.
    """
    with Server(1) as server:
        process = server.context.Process(target=_command, args=(words, str(log)))
        process.start()  # waits until the server is there
    return process


def _command(words: list[str], log: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))  # which the server does not hear
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv[1:] = words
    runpy.run_module("regrow", run_name="__main__")
