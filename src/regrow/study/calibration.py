"""Measures how long training steps take on this machine, each kind of them: dense, thin, exploring, and what scoring
and changes of the structure add."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from regrow.latency.clock import Clock, Timing, torch_threads
from regrow.methods import IEE, Dense, Static
from regrow.plan import StepTimes
from regrow.training.optimizers import Constant
from regrow.training.recipe import Recipe
from regrow.training.run import Run
from regrow.training.stepping import train_step

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable

_PHASE = 3  # steps of each phase of an update; the one in the middle is as all others of a long phase
_CYCLE = 3 * _PHASE
_PLAIN, _LAST = (1, 4, 7), (2, 5, 8)  # steps of a cycle: in the middle of its phases, and at their ends
_AHEAD = 5 * _CYCLE  # steps with updates, after which widths are taken for those that importance chooses
_TURN = 3  # steps of a probe without updates; the first one comes after another probe's, and does not count
_ROUNDS = (3, 25)  # that are counted: at least, at most
_SECONDS = 20.0  # after which no further round begins


class Probe:
    """A run that is only there to be timed.

    Args:
        recipe: whose model, data, optimizer and settings it has.
        method: that brings about the steps in question.
        table: of latencies, where budgets need one.
        ahead: steps that it trains first.
    """

    def __init__(self, recipe: Recipe, method: Any, table: LatencyTable | None, ahead: int = 0) -> None:
        self.run = Run(
            dataclasses.replace(
                recipe, method_name=method.name, method=method, schedule_name="constant",
                schedule=Constant(warmup=0.2),
                top=dataclasses.replace(recipe.top, epochs=None, steps=_AHEAD + (1 + _ROUNDS[1]) * _CYCLE),
                model=dataclasses.replace(recipe.model, weights=None),
            ),
            "probe", table,
        )  # fmt: skip
        self.run.forward.train()
        self.turns: list[list[Timing]] = []
        self._batches = self.run.stream.starting_at(0)
        threads = torch.get_num_threads()
        # what other processes or devices do in a step passes on the wall's clock only
        elsewhere = self.run.device.type != "cpu" or getattr(self.run.data.train, "workers", 0) > 0
        self._clock = Clock(max(threads, 2) if elsewhere else threads)
        while self.run.sparsifier.step_count < ahead:
            self._work()

    def turn(self, steps: int, counts: bool = True) -> None:
        """Trains so many steps more, whose times may count."""
        while self.run.sparsifier.step_count % steps:  # one that a gradient scaler has left out
            self._work()
        timings = [self._clock.timed(self._work, place) for place in range(steps)]
        if counts:
            self.turns.append(timings)

    def usual(self) -> float:
        """Seconds of a step that is like those before and after it."""
        return _seconds([step for turn in self.turns for step in turn[1:]])

    def steps_at(self, place: int) -> list[Timing]:
        """The steps at a place in the turns, which go in a circle."""
        return [turn[place % len(turn)] for turn in self.turns]

    def _work(self) -> None:
        train_step(self.run, self._batches)
        if self.run.device.type != "cpu":
            torch.accelerator.synchronize()


def measure(recipes: Sequence[Recipe], table: LatencyTable | None) -> list[StepTimes]:
    """How long steps take, for each of these recipes: medians of some steps, for which all kinds take turns, so that a
    machine that slows down slows all of them alike.

    Args:
        recipes: which differ in nothing but how channels are ranked and chosen.
        table: of latencies, where budgets need one.

    Raises:
        UserError: where a recipe's budget cannot be met, say.
    """
    first = recipes[0]
    with torch_threads(first.train.threads or 1):  # as the runs
        dense, even = Probe(first, Dense(), table), Probe(first, Static(), table)
        chosen = [Probe(one, _updating(until=_AHEAD), table, _AHEAD) for one in recipes]
        cycles = [Probe(one, _updating(until=1.0), table) for one in recipes]
        _take_turns({**dict.fromkeys([dense, even, *chosen], _TURN), **dict.fromkeys(cycles, _CYCLE)})
    target = 1 - even.run.sparsifier.target_sparsity
    dense_step, even_step, *thin_steps = [probe.usual() for probe in (dense, even, *chosen)]
    found = []
    for thin, cycle in zip(thin_steps, cycles, strict=True):
        scored, improved, full = [_seconds(cycle.steps_at(i)) for i in _PLAIN]
        prune, explore, grow = [
            max(0.0, _seconds(cycle.steps_at(last)) + _seconds(cycle.steps_at(last + 1)) - usual)
            for last, usual in zip(_LAST, (scored + improved, improved + full, full + scored), strict=True)
        ]
        found.append(
            StepTimes(dense_step, even_step, thin, full, max(0.0, scored - thin), prune, explore, grow, target)
        )
    return found


def _updating(until: float | int) -> IEE:
    """A method that goes through all that a step can be, in updates as short as can be."""
    return IEE(h=_PHASE, j=_PHASE, q=_PHASE, update_end=until, shadow_speed=0.0)


def _take_turns(probes: Mapping[Probe, int]) -> None:
    """Trains each probe so many steps, and again, until there are enough or time is over."""
    began = time.monotonic()
    least, most = _ROUNDS
    for done in range(-1, most):
        if done >= least and time.monotonic() - began > _SECONDS:
            return
        for probe, steps in probes.items():
            probe.turn(steps, counts=done >= 0)  # the first round warms up


def _seconds(steps: Sequence[Timing]) -> float:
    """The median of those that nothing disturbed, where there are any."""
    return median(step.seconds for step in [step for step in steps if step.quiet] or steps)
