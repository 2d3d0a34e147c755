"""Gradual magnitude pruning: dense to sparse along a cubic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Prune, Start
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method, check_initial_sparsity, check_steps, register
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, cubic, repeat, steps_of


@register
@dataclass(frozen=True)
class GMP(Method):
    """Prunes a little every `interval` steps: s_t = s_i + (s_f − s_i)·(1 − (1 − t)³) (Zhu & Gupta 2017).

    Args:
        interval: steps between prunings.
        begin_at: when pruning begins, a share of training or a number of steps.
        update_end: when the target is reached, likewise.
        initial_sparsity: s_i, the sparsity before the first pruning.
        start_steps: steps that score the model, still dense, before it is pruned to `initial_sparsity`. None takes 20
            for criteria that use gradients and 0 for others; nothing is chosen for an `initial_sparsity` of 0.
    """

    name: ClassVar[str] = "gmp"

    interval: int = 100
    begin_at: float | int = 0.0
    update_end: float | int = 0.75
    initial_sparsity: float = 0.0
    start_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("interval", self.interval, 1)
        check_initial_sparsity(self.initial_sparsity)
        check_steps("start_steps", self.start_steps or 0, 0)
        if self.start_steps and not self.initial_sparsity:
            raise UserError(f"start_steps={self.start_steps} choose nothing where initial_sparsity is 0; give only one")

    @property
    def ranks_at_start(self) -> bool:
        return self.initial_sparsity > 0

    def timeline(self, total_steps: int) -> Timeline:
        begin = steps_of("begin_at", self.begin_at, total_steps)
        until = steps_of("update_end", self.update_end, total_steps)
        cycle = Phase("estimate", self.interval)
        return repeat(cycle, total_steps=total_steps, until=until, begin=begin, start=self.start_steps or 0)

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion),)}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(min(self.initial_sparsity, target), "criterion")]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Prune(cubic(of.progress, min(self.initial_sparsity, target), target))]
