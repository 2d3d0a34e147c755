"""How long whole models take, timed in turns so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from regrow.inputs import Inputs
from regrow.latency.clock import Clock, torch_threads
from regrow.latency.runtime import Runtime
from regrow.latency.spread import typical
from regrow.quiet import evaluating

_SMALL = 0.02  # seconds of a model that may fit into the caches
_LEAST = 5  # turns, whatever they take


def in_turns(
    runner: Runtime,
    models: Sequence[nn.Module],
    example: Any,
    *,
    rounds: int,
    time_limit: float | None = None,
    progress: bool = False,
) -> list[float]:
    """Seconds of a forward pass of each model.

    The lower quartile of its turns counts: other programs only ever lengthen a turn, so that a median drifts with what
    else the machine does. The units of a latency table are timed by it too, and predictions have to compare.

    Args:
        runner: executes the models
        models: on the CPU; measured in eval mode, and left as they were
        example: a batch of inputs on the CPU, in any form that `regrow.inputs.Inputs.of` takes
        rounds: how often each is timed, after a first turn that warms up
        time_limit: seconds after which there are no more rounds, once there are 5
        progress: show a progress bar on a terminal
    """
    with ExitStack() as stack:
        stack.enter_context(torch_threads(runner.threads))
        for model in models:
            stack.enter_context(evaluating(model))
        runs = prepared(runner, models, Inputs.of(example), progress)
        advance = stack.enter_context(bar(progress, (rounds + 1) * len(runs), "checking"))
        samples: list[list[float]] = [[] for _ in runs]
        start = time.monotonic()
        for turn in range(rounds + 1):
            if time_limit is not None and turn > _LEAST and time.monotonic() - start > time_limit:
                break
            for run, times in zip(runs, samples, strict=True):
                seconds = settled(runner.clock, run)
                advance()
                if turn:  # the first warms up
                    times.append(seconds)
    return [typical(times) for times in samples]


def settled(clock: Clock, whole: Callable[[], object]) -> float:
    """Seconds of a pass of a model that runs over and over, as models do: a small one finds all of itself in the caches
    then, whatever ran before."""
    seconds = clock.seconds(whole)
    for _ in range(3 if seconds < _SMALL else 0):
        seconds = clock.seconds(whole)
    return seconds


def prepared(
    runner: Runtime, models: Sequence[nn.Module], inputs: Inputs, progress: bool
) -> list[Callable[[], object]]:
    """A forward pass of each model; exporting them takes seconds."""
    found = []
    with bar(progress, len(models), "preparing") as advance:
        for model in models:
            found.append(runner.whole(model, inputs))
            advance()
    return found


@contextmanager
def bar(shown: bool, total: int, doing: str) -> Iterator[Callable[[], Any]]:
    """A progress bar on a terminal; inside it, a function that moves it on by one."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:  # the core does without rich
        with _counter(shown and sys.stderr.isatty(), total, doing) as advance:
            yield advance
        return
    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _counter(shown: bool, total: int, doing: str) -> Iterator[Callable[[], None]]:
    """The same in plain text, which is gone afterwards."""
    done = itertools.count(1)

    def advance() -> None:
        if shown:
            print(f"\r{doing} {next(done)}/{total}", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
