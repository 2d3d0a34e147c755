"""The same share of every width: what thinning a network by hand does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Start
from regrow.methods.method import Method, register
from regrow.schedule import Timeline


@register
@dataclass(frozen=True)
class Uniform(Method):
    """Scales the width of all groups of channels by one factor, the largest that meets the budget, and trains that
    network from its initial weights, to the end: the lower bar for every method that moves widths."""

    name: ClassVar[str] = "uniform"
    channels_only: ClassVar[bool] = True

    def timeline(self, total_steps: int) -> Timeline:
        return Timeline(total_steps)

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(target, "random")]
