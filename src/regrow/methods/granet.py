"""GraNet: gradual pruning that regrows a part of what it drops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Grow, How, Prune, Start
from regrow.methods.method import check_initial_sparsity, register
from regrow.methods.rigl import DropAndGrow
from regrow.schedule import Boundary, Budget, cubic


@register
@dataclass(frozen=True)
class GraNet(DropAndGrow):
    """Prunes along GMP's cubic and at each update replaces a share of what is left by what the dense gradient says
    (Liu et al. 2021, arXiv:2106.10404).

    Args:
        initial_sparsity: to start with; 0 starts dense, 0.5 is the paper's sparse-to-sparse setting.
    """

    name: ClassVar[str] = "granet"
    growth: ClassVar[str] = "gradient"

    budget: Budget = Budget("cosine", 0.5)
    start: How = "criterion"
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_initial_sparsity(self.initial_sparsity)

    @property
    def ranks_at_start(self) -> bool:
        return super().ranks_at_start and self.initial_sparsity > 0

    def _sparsity(self, progress: float, target: float) -> float:
        return cubic(progress, min(self.initial_sparsity, target), target)

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(self._sparsity(0.0, target), self.start)]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        sparsity = self._sparsity(of.progress, target)
        return [Prune(sparsity, self.budget.fraction(of.step, of.until)), Grow(sparsity, "zero")]
