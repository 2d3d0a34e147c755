"""SNFS: drop by magnitude, grow by momentum, in the layers whose momentum is largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Grow, Prune
from regrow.criteria import Criterion
from regrow.methods.method import register
from regrow.methods.rigl import DropAndGrow
from regrow.saliency import Scoring
from regrow.schedule import Boundary


@register
@dataclass(frozen=True)
class SNFS(DropAndGrow):
    """Sparse networks from scratch (Dettmers & Zettlemoyer 2019, arXiv:1907.04840): every layer drops the same share
    by the criterion, and what was dropped is shared out in proportion to the layers' mean momentum, to the weights
    whose momentum is largest. Momentum is the mean gradient of the steps since the last update, where the paper lets
    it fade exponentially.

    Every step uses the dense gradient: 2·f_S + f_D.
    """

    name: ClassVar[str] = "snfs"
    shares_out: ClassVar[bool] = True
    growth: ClassVar[str] = "momentum"

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion), Scoring("grow", Criterion.of(self.growth)))}

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        churn = self.budget.fraction(of.step, of.until)
        return [Prune(target, churn, layers="now"), Grow(target, "zero", layers="scores")]
