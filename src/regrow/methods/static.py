"""A fixed structure, the lower bar for every method that moves one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regrow.actions import Action, How, Start
from regrow.methods.method import Method, check_start, register
from regrow.schedule import Timeline, fixed


@register
@dataclass(frozen=True)
class Static(Method):
    """Trains the structure it starts with, to the end.

    Args:
        start: ``"random"``, or ``"criterion"`` to keep the best units of the model as it is.
        start_steps: steps that score the trained model, still dense, before ``start="criterion"`` chooses from it. None
            takes 20 for criteria that use gradients and 0 for others, which choose when attaching.
    """

    name: ClassVar[str] = "static"

    start: How = "random"
    start_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.start, self.start_steps)

    @property
    def ranks_at_start(self) -> bool:
        return self.start == "criterion"

    def timeline(self, total_steps: int) -> Timeline:
        return fixed(total_steps, self.start_steps or 0)

    def at_start(self, target: float) -> Sequence[Action]:
        return [Start(target, self.start)]
