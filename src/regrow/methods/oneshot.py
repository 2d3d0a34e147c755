"""Prune once, then train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from regrow.criteria import Criterion
from regrow.methods.base import START_STEPS, Method, check_steps, register
from regrow.patterns.base import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, PhaseName, Timeline, repeat
from regrow.units import Units


@register
@dataclass(frozen=True)
class OneShot(Method):
    """Prunes a trained model to the target at once, by the criterion.

    Args:
        h: steps that estimate importance before; 0 prunes when it is attached. None takes 20 for criteria that use
            gradients, which need some, and 0 for others.
        criterion: its own, such as ``"magnitude"`` (L1 for channels) or ``"l2"``; None uses the run's.
    """

    name: ClassVar[str] = "oneshot"

    h: int | None = None
    criterion: str | None = None

    def __post_init__(self) -> None:
        check_steps("h", self.h or 0, 0)
        if self.criterion is not None:
            Criterion.of(self.criterion)

    def suited(self, pattern: Pattern, criterion: Criterion) -> OneShot:
        if self.h is not None:
            return self
        return dataclasses.replace(self, h=START_STEPS if criterion.uses_grad else 0)

    def ranks_by(self, criterion: Criterion) -> Criterion:
        return criterion if self.criterion is None else Criterion.of(self.criterion)

    def timeline(self, total_steps: int) -> Timeline:
        if not self.h:
            return Timeline(total_steps)
        return repeat(Phase("estimate", self.h), total_steps=total_steps, until=min(self.h, total_steps))

    def scorings(self, criterion: Criterion) -> Mapping[PhaseName, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion),)} if self.h else {}

    def sparsity_at(self, update: int, updates: int, target: float) -> float:
        return 0.0 if self.h and update < 0 else target

    def begin(self, units: Units) -> None:
        units.start("criterion")

    def at_boundary(self, boundary: Boundary, units: Units) -> None:
        units.prune()
