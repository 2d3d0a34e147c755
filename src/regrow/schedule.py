"""What happens when: phases and budgets as pure functions of the step, so that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from regrow import hints
from regrow.errors import UserError, percent
from regrow.latent import Latent

# What the optimizer changes while a phase lasts, and what the network computes with meanwhile:
#   active   the active structure, as which the network computes
#   removed  what is not in it; all of it computes, the active structure stands still, to the bit
#   all      everything, as which the network computes
#   latent   latent weights, all of them; the network computes as their projection
Trains = Literal["active", "removed", "all", "latent"]
_RECORDS = 10_000  # about as many updates are recorded at most
START = -1  # the update that takes the first structure
Shape = Literal["cosine", "exponential", "linear", "constant"]

_DECAY = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t: 0.01**t,
    "linear": lambda t: 1 - t,
    "constant": lambda t: 1.0,
}


@dataclass(frozen=True)
class Budget:
    """Ω: the share of the active units that an update replaces, over time.

    Args:
        shape: ``"cosine"`` is RigL's α/2·(1+cos(π·t/T)); ``"exponential"`` falls to a hundredth;
            ``"linear"`` falls to zero; ``"constant"`` stays.
        start: the share at step 0, above 0 and below 1.

    Raises:
        UserError: for an unknown shape or a start outside (0, 1).

    >>> Budget("linear", 0.5).fraction(50, 100)
    0.25
    """

    shape: Shape = "cosine"
    start: float = 0.3

    def __post_init__(self) -> None:
        hints.check(self)
        if not 0 < self.start < 1:
            raise UserError(
                f"budget start is {self.start}, but must lie between 0 and 1 (a share of the active "
                f"units){percent(self.start)}"
            )

    def fraction(self, step: int, end: int) -> float:
        """The share at `step`, where updates end at step `end`."""
        return self.start * _DECAY[self.shape](min(step / end, 1.0))


def cubic(step: float, initial: float, final: float) -> float:
    """GMP's sparsity s_i + (s_f − s_i)·(1 − (1 − t)³) after the share `step` of the way (Zhu & Gupta 2017)."""
    return initial + (final - initial) * (1 - (1 - min(max(step, 0.0), 1.0)) ** 3)


@dataclass(frozen=True)
class Phase:
    """A stretch of steps under one rule; of no steps at all where a method leaves it out."""

    name: str
    steps: int
    trains: Trains = "active"
    latent: Latent | None = None  # where it trains latent weights, how

    def __post_init__(self) -> None:
        """Refuses what is no phase.

        Raises:
            UserError: naming the option.
        """
        hints.check_value("a phase's steps", self.steps, int)
        if self.steps < 0:
            raise UserError(f"phase {self.name!r} has {self.steps} steps, but must have a whole number, at least 0")
        hints.check_value("a phase's trains", self.trains, Trains)
        if (self.latent is None) == (self.trains == "latent"):
            raise UserError(
                f"phase {self.name!r} trains {self.trains!r} with latent={self.latent}, but trains='latent' goes with "
                "latent=regrow.latent.Latent(...) and with nothing else"
            )


@dataclass(frozen=True)
class Span:
    """The phase around a step: it holds from step `start` up to, not including, step `end`."""

    phase: str  # its name
    start: int
    end: int
    update: int | None  # which update, from 0; START before the first structure is taken; None outside all of them
    trains: Trains = "active"
    latent: Latent | None = None

    @property
    def explores(self) -> bool:
        """Whether what is removed trains for a preview."""
        return self.trains in ("removed", "all")

    @property
    def outside(self) -> bool:
        """Whether it belongs to no update."""
        return self.update is None or self.update == START


@dataclass(frozen=True)
class Boundary:
    """The end of a phase, named `ended`, of an update, or (update START) of the steps that score a model before its
    first structure is taken.

    Attributes:
        ended: the name of the phase.
        update: which, from 0.
        step: how many steps are done.
        last: whether it ends the update, too.
        updates: how many the run has.
        until: the step by which updates must have ended.
    """

    ended: str
    update: int
    step: int
    last: bool
    updates: int = 0
    until: int = 0

    @property
    def is_recorded(self) -> bool:
        """Whether its update is among those whose records are kept: every n-th, and the last."""
        spacing = max(1, math.ceil(self.updates / _RECORDS))
        return (self.update + 1) % spacing == 0 or self.update + 1 == self.updates

    @property
    def progress(self) -> float:
        """The share of all updates that are done with this one."""
        return (self.update + 1) / self.updates


@dataclass(frozen=True)
class Timeline:
    """`updates` repetitions of a cycle of phases from step `begin` on; before them "estimate", after them "fixed".

    `until` is the step by which updates must have ended: budgets decay towards it. `start` is the step at which the
    first structure is taken, at most `begin`: before it the model is dense and is scored; at 0 it is taken at once.
    """

    total_steps: int
    cycle: tuple[Phase, ...] = ()
    updates: int = 0
    begin: int = 0
    until: int = 0
    start: int = 0

    @property
    def length(self) -> int:
        """Steps of one cycle."""
        return sum(phase.steps for phase in self.cycle)

    @property
    def end(self) -> int:
        """The step at which the last update ends, or where there is none, the first structure is taken."""
        return self.begin + self.updates * self.length if self.updates else self.start

    def prune_step(self, update: int) -> int:
        """The step at which an update prunes: the end of its first phase."""
        return self.begin + update * self.length + self.cycle[0].steps

    def phase_at(self, step: int) -> Span:
        """The phase in which the step with this number (from 0) runs."""
        if step >= self.end:
            return Span("fixed", self.end, max(self.total_steps, step + 1), None)
        if step < self.start:
            return Span("estimate", 0, self.start, START)
        if step < self.begin:
            return Span("estimate", self.start, self.begin, None)
        return next(span for span in self.spans_of((step - self.begin) // self.length) if step < span.end)

    def spans_of(self, update: int) -> list[Span]:
        """The phases of an update, in order, but for those without steps."""
        start = self.begin + update * self.length
        spans = []
        for phase in self.cycle:
            if phase.steps:
                spans.append(Span(phase.name, start, start + phase.steps, update, phase.trains, phase.latent))
            start += phase.steps
        return spans

    def ended_at(self, step: int) -> list[Boundary]:
        """The phases that have ended once `step` steps are done, in their order; empty between boundaries."""
        if 0 < step == self.start:
            return [Boundary("estimate", START, step, last=False, updates=self.updates, until=self.until)]
        if not self.begin < step <= self.end:
            return []
        update = (step - self.begin - 1) // self.length  # of the step just done
        position = step - self.begin - update * self.length
        ended, found = 0, []
        for i, phase in enumerate(self.cycle):
            ended += phase.steps
            if ended == position:
                last = i == len(self.cycle) - 1
                found.append(Boundary(phase.name, update, step, last, self.updates, self.until))
        return found

    def spans(self) -> Iterator[Span]:
        """All phases of a run, in order."""
        step = 0
        while step < self.total_steps:
            span = self.phase_at(step)
            yield span
            step = span.end


def fixed(total_steps: int, start: int = 0) -> Timeline:
    """No updates: the structure that is taken at step `start` stays.

    Raises:
        UserError: where no step is left to train it.
    """
    if 0 < total_steps <= start:
        raise UserError(
            f"total_steps={total_steps} leaves no step to train what start_steps={start} choose; train longer, or give "
            "fewer start_steps"
        )
    return Timeline(total_steps, begin=start, start=start)


class TooShort(UserError):
    """A run in which not even one update fits: why, with a way out that every method has.

    Args:
        total_steps: of the run.
        length: of a cycle, in steps.
        begin: the step at which the first cycle would begin.
        until: the step by which updates must have ended.

    Attributes:
        reason: why, alone.
        never: whether updates must end before they begin, whatever their length is.
    """

    def __init__(self, total_steps: int, length: int, begin: int, until: int) -> None:
        after = f", begins after {begin}" if begin else ""
        self.never = until <= begin
        self.reason = (
            f"total_steps={total_steps} is too short for one update: a cycle takes {length} steps{after} but updates "
            f"must end by step {until}"
        )
        way_out = "let updates end later, or begin earlier" if self.never else "shorten the phases or train longer"
        super().__init__(f"{self.reason}; {way_out}")


def repeat(*phases: Phase, total_steps: int, until: int, begin: int = 0, start: int = 0) -> Timeline:
    """As many whole cycles as end by step `until`: one that would not end by then is not begun.

    Args:
        phases: of one cycle.
        total_steps: of the run.
        until: the step by which updates must have ended.
        begin: the step at which the first cycle begins, or `start` if that is later.
        start: the step at which the first structure is taken.

    Raises:
        TooShort: where not even one cycle fits.
        UserError: where a cycle has no steps, or updates end after the run.
    """
    if until > total_steps:
        raise UserError(f"updates are to end by step {until}, but the run has {total_steps}")
    begin = max(begin, start)
    length = sum(phase.steps for phase in phases)
    if length < 1:
        raise UserError("the phases of a cycle have no steps; give at least one of them some")
    updates = max(0, until - begin) // length
    if updates == 0:
        raise TooShort(total_steps, length, begin, until)
    return Timeline(total_steps, phases, updates, begin, until, start)


def steps_of(name: str, value: float, total_steps: int) -> int:
    """A point in training given as a share (a float up to 1.0) or as a number of steps (an int), in steps.

    Raises:
        UserError: for a value that is negative or beyond the end.
    """
    counts = isinstance(value, int) and not isinstance(value, bool)
    if not 0 <= value <= (total_steps if counts else 1):
        raise UserError(
            f"{name}={hints.show(value)} lies outside the run of {total_steps} steps; give a share (0.75) or a number "
            f"of steps{percent(value)}"
        )
    return int(value) if counts else int(value * total_steps)
