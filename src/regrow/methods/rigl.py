"""RigL: drop by magnitude, grow by gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from regrow.actions import Action, Grow, How, Prune, Start
from regrow.criteria import Criterion
from regrow.methods.method import Method, check_start, check_steps, register
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Budget, Phase, Timeline, repeat, steps_of


@dataclass(frozen=True)
class DropAndGrow(Method):
    """Every `interval` steps, drops the least important active units and grows as many, from zero, without momentum.

    Units that were just dropped may return (at zero, like the others).

    Args:
        interval: steps between updates (ΔT).
        budget: share of the active units that an update replaces (f(t); RigL's α is its start).
        update_end: when updates end (T_end), a share of training or a number of steps.
        start: ``"random"`` (from scratch) or ``"criterion"`` (the best units of a trained model).
        start_steps: steps that score the trained model, still dense, before ``start="criterion"`` chooses from it. None
            takes 20 for criteria that use gradients and 0 for others, which choose when attaching.
    """

    repeats: ClassVar[bool] = True

    interval: int = 100
    budget: Budget = Budget("cosine", 0.3)
    update_end: float | int = 0.75
    start: How = "random"
    start_steps: int | None = None

    growth: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("interval", self.interval, 1)
        check_start(self.start, self.start_steps)

    @property
    def ranks_at_start(self) -> bool:
        return self.start == "criterion"

    def timeline(self, total_steps: int) -> Timeline:
        until = steps_of("update_end", self.update_end, total_steps)
        return repeat(
            Phase("estimate", self.interval), total_steps=total_steps, until=until, start=self.start_steps or 0
        )

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        growth = Criterion.of(self.growth)
        return {"estimate": (Scoring("prune", criterion), Scoring("grow", growth, window=1))}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(target, self.start)]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Prune(target, self.budget.fraction(of.step, of.until)), Grow(target, "zero")]


@register
@dataclass(frozen=True)
class RigL(DropAndGrow):
    """Drops by the criterion (\\|w\\| in the paper) and grows by the dense gradient of the step at which it updates
    (Evci et al. 2020, arXiv:1911.11134).

    The gradient of that one step is all that is computed densely: (3·f_S·(ΔT − 1) + 2·f_S + f_D) / ΔT a step.
    """

    name: ClassVar[str] = "rigl"
    growth: ClassVar[str] = "gradient"

    @classmethod
    def itop(cls, interval: int = 1500, **options: Any) -> RigL:
        """In-time over-parameterization (Liu et al. 2021, arXiv:2102.02887): rarer updates that replace more, to the
        end of training.

        Args:
            interval: the paper's for CIFAR, of 250 epochs; 4000 for ImageNet.
            options: others of `RigL`.
        """
        return cls(**{"interval": interval, "budget": Budget("cosine", 0.5), "update_end": 1.0, **options})
