"""DSR: drop the least of all layers, grow at random where most has survived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Grow, Prune
from regrow.methods.method import register
from regrow.methods.rigl import DropAndGrow
from regrow.schedule import Boundary


@register
@dataclass(frozen=True)
class DSR(DropAndGrow):
    """Dynamic sparse reparameterization (Mostafa & Wang 2019, arXiv:1902.05967): one threshold over all layers drops
    the least, and as many grow at random, shared out in proportion to what each layer has left. The threshold is the
    one that drops exactly the budget, where the paper adapts one that comes near a constant number.
    """

    name: ClassVar[str] = "dsr"
    shares_out: ClassVar[bool] = True
    growth: ClassVar[str] = "random"

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        churn = self.budget.fraction(of.step, of.until)
        return [Prune(target, churn, layers="all"), Grow(target, "zero", layers="survivors")]
