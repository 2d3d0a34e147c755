"""What every method says of itself: when its phases are, what they score, and what happens where one ends."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from regrow import hints
from regrow.actions import Action, How
from regrow.criteria import Criterion
from regrow.errors import UserError, percent
from regrow.patterns.pattern import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Span, Timeline

METHODS: dict[str, type[Method]] = {}
START_STEPS = 20  # that score a trained model where nobody says how many


class Method(ABC):
    """A frozen dataclass of options that holds no state: a timeline of phases, and a function from the end of a phase
    to what is done there (`regrow.actions`)."""

    name: ClassVar[str]
    sparsifies: ClassVar[bool] = True
    channels_only: ClassVar[bool] = False
    repeats: ClassVar[bool] = False  # whether it lives on many updates, each of them small
    shares_out: ClassVar[bool] = False  # whether layers do not keep the counts that the pattern gives them

    start_steps: int | None = None  # an option of methods that may start from a trained model

    def __post_init__(self) -> None:
        """Refuses options of other types than their annotations say, or outside their range.

        Raises:
            UserError: naming the option.
        """
        hints.check(self)

    @abstractmethod
    def timeline(self, total_steps: int) -> Timeline:
        """The phases of a run of this many steps.

        Raises:
            UserError: where not a single update fits.
        """

    def phase_lengths(self) -> dict[str, int]:
        """The options that say how long an update takes, in steps."""
        known = ("h", "j", "q", "interval")
        return {name: steps for name in known if isinstance(steps := getattr(self, name, None), int)}

    def ranks_by(self, criterion: Criterion) -> Criterion:
        """The criterion that the method ranks by: the run's, unless it has one of its own."""
        return criterion

    def resolve(self, pattern: Pattern, criterion: Criterion) -> Method:
        """The method with what its options leave open decided for this pattern and criterion."""
        if self.start_steps is None and self.ranks_at_start and criterion.uses_grad:
            return dataclasses.replace(cast(Any, self), start_steps=START_STEPS)
        return self

    def at_target(self, target: float) -> Method:
        """The method with what its options leave open decided for what the layers of a model add up to.

        Args:
            target: the sparsity that the run ends at, which a pattern alone may not say.
        """
        return self

    @property
    def ranks_at_start(self) -> bool:
        """Whether the criterion chooses the first structure, out of a trained model."""
        return False

    def check_pattern(self, pattern: Pattern) -> None:
        """Refuses a pattern that the method cannot work with.

        Raises:
            UserError: it is for channels only, or for single weights only.
        """
        if self.channels_only and pattern.name != "channels":
            raise UserError(f"{self.name} removes channels; use pattern=regrow.Channels(...) with it")
        if self.shares_out and pattern.name != "weights":
            raise UserError(
                f"{self.name} shares single weights out among layers; use pattern=regrow.Weights(...) with it"
            )

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        """What is scored in which phase, by its name."""
        return {}

    def at_start(self, target: float) -> Sequence[Action]:
        """What gives the model the structure to start with: when attaching, or once the steps that score it are done.

        Args:
            target: the sparsity that the run ends at.
        """
        return ()

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        """What is done where a phase of an update ends. The last update must reach the target.

        Args:
            of: the phase, and when.
            target: the sparsity that the run ends at.
        """
        raise UserError(f"{type(self).__name__} has updates, but no at_end() that says what to do where a phase ends")

    def dense_gradient_steps(self, criterion: Criterion, span: Span, start: int, end: int) -> int:
        """How many of the steps from `start` to `end` of a span use the gradient of every weight."""
        if span.outside or span.trains == "removed":
            return 0
        if span.trains == "all":
            return end - start
        if span.latent is not None:
            return span.latent.steps(start, end)
        windows = [
            span.end - span.start if scoring.window is None else scoring.window
            for scoring in self.scorings(criterion).get(span.phase, ())
            if scoring.role == "grow" and scoring.criterion.uses_grad
        ]
        return max(0, end - max(start, span.end - max(windows))) if windows else 0


def register(cls: type[Method]) -> type[Method]:
    """Makes a method known under its `name`."""
    METHODS[cls.name] = cls
    return cls


def check_start(start: How, steps: int | None) -> None:
    """Refuses steps that score for nothing."""
    check_steps("start_steps", steps or 0, 0)
    if steps and start == "random":
        raise UserError(f"start_steps={steps} score a trained model for start='criterion'; start='random' needs none")


def check_initial_sparsity(value: float) -> None:
    """Refuses what is no sparsity to start with."""
    if not 0 <= value < 1:
        raise UserError(f"initial_sparsity is {value}, but must lie in [0, 1){percent(value)}")


def check_ramp(value: float | None, end: float) -> None:
    """Refuses what is neither None nor a sparsity from which to rise to the target, and an end that is no share."""
    if not 0 < end <= 1:
        raise UserError(f"ramp_end is {end}, but must be a share of the updates{percent(end)}")
    if value is not None and not 0 <= value < 1:
        raise UserError(f"ramp is {value}, but must be a sparsity in [0, 1) to start with{percent(value)}")


def check_backward(value: float, pattern: Pattern) -> None:
    """Refuses a set of weights to train that is no larger than the structure."""
    sparsity = getattr(pattern, "sparsity", 1.0)
    if value and value >= sparsity:
        raise UserError(
            f"backward={value} is the sparsity of the weights that train, which must be below the pattern's "
            f"{sparsity:g}; 0 trains all of them"
        )


def check_steps(name: str, value: int, least: int) -> None:
    """Refuses too small a number of steps."""
    if value < least:
        raise UserError(f"{name} is {value!r}, but must be a whole number of steps, at least {least}")
