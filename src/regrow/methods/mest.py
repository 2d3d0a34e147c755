"""MEST: drop by magnitude and gradient, grow at random, before dropping if memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from regrow.actions import Action, Grow, Prune
from regrow.criteria import CRITERIA, Criterion
from regrow.errors import UserError
from regrow.hints import LARGEST
from regrow.methods.method import register
from regrow.methods.rigl import DropAndGrow
from regrow.saliency import Scoring
from regrow.schedule import Boundary


class SoftBound(DropAndGrow):
    """Grows first, and prunes to size when both have trained (MEST's soft memory bound): between updates each layer
    has the share of the budget more than the target. The last update only prunes."""

    layers: ClassVar[Literal["fixed", "all"]] = "fixed"  # whether all are ranked together

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        pruned = Prune(target, layers=self.layers)
        if of.update == of.updates - 1:
            return [pruned]
        return [pruned, Grow(target, "zero", self.budget.fraction(of.step, of.until), self.layers)]


@register
@dataclass(frozen=True)
class MEST(SoftBound):
    """MEST (Yuan et al. 2021, arXiv:2110.14032): drops by \\|w\\| + λ·\\|∂w\\| and grows at random, with its soft
    memory bound (EM&S): new weights train beside the old ones before both are ranked, so that the network is a little
    larger than the target while updates go on.

    A step costs 3·f_S at the density there is.

    Args:
        gradient: λ, of the gradient of the step at which it updates; the paper gives no value that all of its code
            shares.
        soft: whether growing comes first; False replaces at the target's size (EM).
    """

    name: ClassVar[str] = "mest"
    growth: ClassVar[str] = "random"

    gradient: float = 0.01
    soft: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gradient <= LARGEST:
            raise UserError(f"gradient is {self.gradient!r}, but must be a finite factor, at least 0")

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion, window=1), Scoring("grow", Criterion.of(self.growth)))}

    def ranks_by(self, criterion: Criterion) -> Criterion:
        if criterion != CRITERIA["magnitude"]:  # somebody's own choice
            return criterion
        score = partial(_magnitude_and_gradient, self.gradient)
        return Criterion("magnitude + gradient", score, uses_grad=True, uses_generator=False)

    def at_start(self, target: float) -> Sequence[Action]:
        return [*super().at_start(target), *([Grow(target, "zero", beyond=self.budget.start)] if self.soft else [])]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        return super().at_end(of, target) if self.soft else DropAndGrow.at_end(self, of, target)


def _magnitude_and_gradient(factor: float, weight: Tensor, grad: Tensor) -> Tensor:
    return weight.abs() + factor * grad.abs()
