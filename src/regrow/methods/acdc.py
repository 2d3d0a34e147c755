"""AC/DC: dense and sparse training in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Grow, Prune, Start
from regrow.criteria import Criterion
from regrow.errors import UserError, percent
from regrow.methods.method import Method, check_steps, register
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, repeat, steps_of


@register
@dataclass(frozen=True)
class ACDC(Method):
    """Prunes to the target, trains, brings everything back at zero, trains all of it, prunes again (Peste et al. 2021,
    arXiv:2106.12379); ends sparse.

    Args:
        sparse: steps of a sparse phase.
        dense: steps of a dense phase.
        warm_up: of dense training before the first sparse phase, a share of training or a number of steps.
        update_end: when the last dense phase ends, likewise.

    Raises:
        UserError: for options out of range.
    """

    name: ClassVar[str] = "acdc"
    repeats: ClassVar[bool] = True

    sparse: int = 100
    dense: int = 100
    warm_up: float | int = 0.1
    update_end: float | int = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("sparse", self.sparse, 1)
        check_steps("dense", self.dense, 1)
        if not self.warm_up > 0:
            raise UserError(f"warm_up is {self.warm_up!r}, but must be above 0: a share of training, or steps")
        if isinstance(self.warm_up, float) and self.warm_up >= 1:
            raise UserError(
                f"warm_up is {self.warm_up}, but must be a share of training below 1{percent(self.warm_up)}"
            )

    def phase_lengths(self) -> dict[str, int]:
        return {"sparse": self.sparse, "dense": self.dense}

    def timeline(self, total_steps: int) -> Timeline:
        return repeat(
            Phase("sparse", self.sparse),
            Phase("dense", self.dense),
            total_steps=total_steps,
            until=steps_of("update_end", self.update_end, total_steps),
            start=max(1, steps_of("warm_up", self.warm_up, total_steps)),
        )

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"dense": (Scoring("prune", criterion),)}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(target, "criterion")]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Grow(0.0, "zero")] if of.ended == "sparse" else [Prune(target)]
