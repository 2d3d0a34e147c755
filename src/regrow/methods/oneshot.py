"""Prune once, then train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from regrow.actions import Action, Prune, Start
from regrow.criteria import Criterion
from regrow.methods.method import START_STEPS, Method, check_steps, register
from regrow.patterns.pattern import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, repeat


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

    @classmethod
    def snip(cls, h: int = 1, **options: Any) -> OneShot:
        """SNIP (Lee et al. 2019, arXiv:1810.02340): prunes at initialization by the sensitivity of connections; the
        paper ranks all layers together, as ``Weights(…, scope="global")`` does.

        Args:
            h: batches that it is estimated on, with which the dense network trains here.
            options: others of `OneShot`.
        """
        return cls(**{"h": h, "criterion": "snip", **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("h", self.h or 0, 0)
        if self.criterion is not None:
            Criterion.of(self.criterion)

    def resolve(self, pattern: Pattern, criterion: Criterion) -> OneShot:
        if self.h is not None:
            return self
        return dataclasses.replace(self, h=START_STEPS if criterion.uses_grad else 0)

    def ranks_by(self, criterion: Criterion) -> Criterion:
        return criterion if self.criterion is None else Criterion.of(self.criterion)

    def timeline(self, total_steps: int) -> Timeline:
        if not self.h:
            return Timeline(total_steps)
        return repeat(Phase("estimate", self.h), total_steps=total_steps, until=min(self.h, total_steps))

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion),)} if self.h else {}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(0.0 if self.h else target, "criterion")]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Prune(target)]
