"""What a run says while it goes: a progress bar on a terminal, a line for each evaluation elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from regrow.training.measures import measure_of


class Interrupted(Exception):
    """What was running has been asked to stop, and has: it can be continued."""


class Progress:
    """A rich progress bar with step, epoch, phase, loss, accuracy (or what the task has in its place) and time left.

    Args:
        total: steps of the run
        start: steps that are done already
        quiet: show nothing at all
    """

    def __init__(self, total: int, start: int = 0, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._bar = Bar(
            TextColumn("{task.fields[phase]:>8}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("epoch {task.fields[epoch]:.1f}  {task.fields[loss]}  {task.fields[accuracy]}"),
            TimeRemainingColumn(), console=self._console, disable=not self._live, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=start, phase="", epoch=0.0, loss="", accuracy="")
        self._total = total

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        """A step is done."""
        if self._live:
            self._bar.update(self._task, completed=step)

    def logged(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""
        shown: dict[str, Any] = {
            "epoch": record["epoch"],
            "phase": record["phase"],
            "loss": f"loss {record['loss']:.3f}",
        }
        if "accuracy" in record:
            shown["accuracy"] = f"{measure_of([record]).name} {record['accuracy']:.2%}"
        self._bar.update(self._task, **shown)
        if not self._live and "accuracy" in record:
            self._console.print(
                f"step {record['step']}/{self._total}  epoch {record['epoch']:.1f}  {record['phase']}  "
                f"loss {record['loss']:.4f}  {record['split']} "
                f"{measure_of([record]).name} {record['accuracy']:.2%}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip


class Stopwatch:
    """Adds up the seconds spent inside of it.

    Args:
        seconds: what there is already
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._entered = 0.0

    def __enter__(self) -> Stopwatch:
        self._entered = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._entered


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish to stop after this step; a second one acts as usual.

    Args:
        launched: a launcher has started this process: it passes signals on, so that Ctrl-C comes twice, and ends by
            force what takes too long. So a second one is the same wish.
    """

    def __init__(self, launched: bool = False) -> None:
        self.wanted = False
        self._launched = launched
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        if not self._launched:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
