"""HALP: prune a trained network to a latency, a little at a time, by a knapsack over Taylor importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Prune, Start
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method, check_steps, register
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, repeat


@register
@dataclass(frozen=True)
class HALP(Method):
    """Prunes channels `prunings` times, `interval` steps apart, to targets that fall exponentially from the dense
    network's cost to the budget, L_t = exp((t/n)·ln L_T + (1 − t/n)·ln L_0); then trains on (Shen et al. 2022).

    Start it from a trained model, and use it with criterion ``"taylor"`` and, as in the paper, with
    ``Channels(solver="grouped")``, whose knapsack holds every layer's input width.

    Args:
        prunings: n. A run that is too short for all of them is refused.
        interval: steps between two prunings, over which importance is averaged.
    """

    name: ClassVar[str] = "halp"
    channels_only: ClassVar[bool] = True

    prunings: int = 30
    interval: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("prunings", self.prunings, 1)
        check_steps("interval", self.interval, 1)

    def timeline(self, total_steps: int) -> Timeline:
        until = self.prunings * self.interval
        if until > total_steps:
            raise UserError(
                f"total_steps={total_steps} is too short for {self.prunings} prunings {self.interval} steps apart; "
                "train longer, or give fewer prunings or a shorter interval"
            )
        return repeat(Phase("estimate", self.interval), total_steps=total_steps, until=until)

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion),)}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(0.0, "criterion")]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return [Prune(target if of.progress == 1 else 1 - float((1 - target) ** of.progress))]
