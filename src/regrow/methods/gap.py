"""GaP: one part of the layers after another is grown dense, trained, and pruned back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, Fill, How, Prune, Start
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods.method import Method, check_start, check_steps, register
from regrow.patterns.pattern import Pattern
from regrow.saliency import Scoring
from regrow.schedule import Boundary, Phase, Timeline, repeat, steps_of


@register
@dataclass(frozen=True)
class GaP(Method):
    """Grow-and-prune (Ma et al. 2021, arXiv:2106.09857), its cyclic form: one part of the layers is dense while the
    others stay sparse; where the part has trained, it is pruned back, and the next one becomes dense, what grows from
    zero. Ends sparse.

    A step costs 3·f at the density there is.

    Args:
        interval: steps that a part is dense.
        parts: of the layers, in their order and as even as can be; more than there are layers leaves some empty.
        update_end: when the last part has been pruned back, a share of training or a number of steps.
        start: the first structure: ``"random"``, or the best of a trained model by the ``"criterion"``.
        start_steps: that score a trained model before; None takes 20 for criteria that use gradients.

    Raises:
        UserError: for options out of range.
    """

    name: ClassVar[str] = "gap"
    repeats: ClassVar[bool] = True

    interval: int = 100
    parts: int = 4
    update_end: float | int = 0.75
    start: How = "random"
    start_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("interval", self.interval, 1)
        check_start(self.start, self.start_steps)
        if self.parts < 1:
            raise UserError(f"parts is {self.parts!r}, but must be a whole number, at least 1")

    def check_pattern(self, pattern: Pattern) -> None:
        super().check_pattern(pattern)
        if pattern.name == "channels":
            raise UserError("gap makes a part of the layers dense, but they share channels; use IEE")

    @property
    def ranks_at_start(self) -> bool:
        return self.start == "criterion"

    def timeline(self, total_steps: int) -> Timeline:
        until = steps_of("update_end", self.update_end, total_steps)
        return repeat(
            Phase("estimate", self.interval), total_steps=total_steps, until=until, start=self.start_steps or 0
        )

    def scorings(self, criterion: Criterion) -> Mapping[str, tuple[Scoring, ...]]:
        return {"estimate": (Scoring("prune", criterion),)}

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(target, self.start), Fill(0, self.parts)]

    def at_end(self, of: Boundary, target: float) -> Sequence[Action]:
        if of.update == of.updates - 1:
            return [Prune(target)]
        return [Prune(target), Fill((of.update + 1) % self.parts, self.parts)]
