"""Runs as processes beside each other, with an overview of all of them.

The processes are forked from a server that has imported torch already, which takes longer than a small run's epochs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow.report.plain import number
from regrow.training import rundir
from regrow.training.measures import measure_of
from regrow.training.progress import Interrupted, StopRequest

_POLL = 0.2  # seconds
_PATIENCE = 120.0  # seconds that runs get to write their checkpoints
_TAIL = 4096  # bytes at the end of a metrics file that hold its last line
# what every run imports sooner or later; torch._dynamo comes with its first optimizer
_PRELOAD = [
    "torch._dynamo", "regrow.training.loop", "regrow.study.pool", "regrow.commands.train", "regrow.report.page",
    "accelerate", "sklearn.datasets",
]  # fmt: skip
_OURS = (signal.SIGINT, signal.SIGTERM)  # signals that the comparison answers for all of its processes
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Job:
    """A run to do: ``words`` for the command line, where it writes, and what has become of it."""

    name: str
    words: list[str]
    directory: Path
    log: Path
    state: str = "waiting"  # then running, and finished, failed or stopped
    process: Any = None
    slot: int = -1
    last: dict[str, Any] = field(default_factory=dict)

    def last_words(self) -> str:
        """The last line that the run wrote to its log; where a signal ended it, which."""
        code = 0 if self.process is None else self.process.exitcode or 0
        if code < 0:
            why = ", as systems do where memory is short" if -code == signal.SIGKILL else ""
            return f"{signal.Signals(-code).name} ended it{why} ({self.log})"
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        said = lines[-1].removeprefix("regrow: ") if lines else "it said nothing"
        return f"{said} ({self.log})"

    def look(self) -> None:
        """Read the newest line of the run's metrics."""
        try:
            with (self.directory / rundir.METRICS).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().split(b"\n")[:-1]
            newest = json.loads(lines[-1]) if lines else {}
        except (OSError, ValueError, RecursionError):  # nothing there yet, or damaged
            return
        if isinstance(newest, dict):
            self.last |= newest

    def shown(self, key: str, form: str) -> str:
        """A number of that line, in a form of `format`; nothing where there is none."""
        value = number(self.last.get(key))
        return "" if value is None else format(value, form)


def job_of(recipe: Path, seed: int, directory: Path, label: str) -> Job:
    """A run of a recipe's file into a directory, which goes on where it was."""
    words = ["train", str(recipe), "--seed", str(seed), "--out", str(directory), "--trust"]
    if (directory / rundir.RECIPE).exists():
        words.append("--resume")
    return Job(
        name=directory.name,
        words=[*words, "--label", label, "--quiet", "--no-report"],
        directory=directory,
        log=directory.parent / f"{directory.name}.log",
    )


def slots_of(jobs: int | None, threads: int, runs: int) -> list[dict[str, str]]:
    """The environment of each run that goes on at the same time: one GPU each, where there are any.

    Args:
        jobs: how many; None for as many as there are GPUs, or cores for the threads of each.
        threads: CPU threads of each run.
        runs: that there are to do, of which no more can go on at once.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(jobs or gpus or max(1, cores // threads), max(1, runs))
    if not gpus:
        return [{} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return [{"CUDA_VISIBLE_DEVICES": visible[i % len(visible)]} for i in range(count)]


def run_jobs(jobs: Sequence[Job], *, slots: Sequence[Mapping[str, str]], threads: int, quiet: bool = False) -> None:
    """Do all jobs that are not finished yet, ``len(slots)`` at a time; returns when all have ended, however they did.

    Args:
        jobs: their ``state`` is kept up to date
        slots: what the environment of a process has besides ours, for each that runs at the same time
        threads: CPU threads of each process
        quiet: show nothing

    Raises:
        Interrupted: after SIGINT or SIGTERM, when all processes have ended.
    """
    for job in jobs:
        if rundir.is_finished(job.directory):
            job.state = "finished"
            job.look()
    if all(job.state == "finished" for job in jobs):
        return
    free = list(range(len(slots)))
    begun = time.monotonic()
    with StopRequest() as stop, Overview(jobs, quiet) as overview, Server(threads) as server:
        try:
            while any(job.state in ("waiting", "running") for job in jobs) and not stop.wanted:
                for job in jobs:
                    if job.state == "waiting" and free and server.ready and not _is_busy(job, begun):
                        _start(server.context, job, free.pop(0), slots)
                        overview.changed(job)
                time.sleep(_POLL)
                for job in _ended(jobs):
                    free.append(job.slot)
                    overview.changed(job)
                overview.refresh()
        finally:
            _stop_all(jobs)
        if stop.wanted:
            done = sum(job.state == "finished" for job in jobs)
            raise Interrupted(f"stopped with {done} of {len(jobs)} runs finished")


class Server:
    """The process that runs are forked from, for as long as the block lasts; none where the system has no such.

    What a terminal sends to all processes does not reach it: it must not end in the middle of an import, with runs
    waiting for it.

    Args:
        threads: CPU threads of each run

    Attributes:
        context: what makes processes
    """

    def __init__(self, threads: int) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        for variable in _THREAD_VARIABLES:  # must be known before torch is imported
            os.environ[variable] = str(threads)
        self._first: threading.Thread | None = None
        if forks:
            self.context.set_forkserver_preload(_PRELOAD)
            self._first = threading.Thread(target=self._try, daemon=True)

    def __enter__(self) -> Server:
        if self._first is not None:
            from multiprocessing import forkserver, resource_tracker

            resource_tracker.ensure_running()  # before: it would let the signals through
            signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)  # what is started inherits it; ours wait, and are not lost
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
            self._first.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._first is None:
            return
        from multiprocessing import forkserver

        pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if pid is not None:  # asked to end, it would first finish its imports
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._first.join()

    @property
    def ready(self) -> bool:
        """Whether it has imported all, so that starting a process does not wait."""
        return self._first is None or not self._first.is_alive()

    def _try(self) -> None:
        first = self.context.Process(target=os.getpid, daemon=True)
        with suppress(OSError, EOFError):  # it was ended meanwhile
            first.start()
            first.join()


def _is_busy(job: Job, begun: float) -> bool:
    """Whether a run is still being written to, as after kill -9 of an earlier session, whose runs end after it."""
    return time.monotonic() - begun < _PATIENCE and rundir.is_locked(job.directory)


def _start(context: Any, job: Job, slot: int, slots: Sequence[Mapping[str, str]]) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.process = context.Process(target=_child, args=(job.words, str(job.log), dict(slots[slot])), name=job.name)
    job.slot, job.state = slot, "running"
    job.process.start()


def _child(words: list[str], log: str, environment: dict[str, str]) -> None:
    """What a process does: the command line, with a log for all that it says."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C on the terminal is for the parent, which asks each run to stop
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv[1:] = words
    runpy.run_module("regrow", run_name="__main__")


def _end_with_parent() -> None:
    """Waits for the comparison to die (of kill -9, say): a run that nobody waits for writes its checkpoint and ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _ended(jobs: Sequence[Job]) -> list[Job]:
    ended = []
    for job in jobs:
        if job.state == "running":
            job.look()
            if job.process.exitcode is not None:
                job.state = "finished" if rundir.is_finished(job.directory) else "failed"
                ended.append(job)
    return ended


def _stop_all(jobs: Sequence[Job]) -> None:
    """Asks all runs to end, and waits until they have; a further Ctrl-C ends them at once."""
    running = [job for job in jobs if job.state == "running" and job.process.pid is not None]
    try:
        for job in running:
            job.process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for job in running:
            job.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for job in running:
            if job.process.exitcode is None:
                job.process.kill()
                job.process.join()
            job.state = "finished" if rundir.is_finished(job.directory) else "stopped"


class Overview:
    """A live table of all runs on a terminal, a line for each change elsewhere."""

    def __init__(self, jobs: Sequence[Job], quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._jobs = jobs
        self._console = Console(quiet=quiet, markup=False, emoji=False, highlight=False)  # names are no markup
        live = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> Overview:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, job: Job) -> None:
        """A job has started or ended."""
        if self._live is not None:
            return
        done = sum(j.state in ("finished", "failed") for j in self._jobs)
        reached = job.shown("accuracy", ".2%") if job.state == "finished" else ""
        accuracy = f"  {measure_of([job.last]).name} {reached}" if reached else ""
        self._console.print(f"[{done}/{len(self._jobs)}] {job.name}: {job.state}{accuracy}")

    def refresh(self) -> None:
        """Show the newest state."""
        if self._live is None:
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        judged = measure_of(job.last for job in self._jobs if "accuracy" in job.last).name
        for heading in ("run", "", "step", "phase", "loss", judged):
            table.add_column(heading)
        for job in self._jobs:
            numbers = [job.shown(key, form) for key, form in (("loss", ".4f"), ("accuracy", ".2%"))]
            step, phase = (str(job.last.get(key) or "") for key in ("step", "phase"))
            table.add_row(job.name, job.state, step, phase, *numbers)
        self._live.update(table, refresh=True)
