"""A fixed structure, the lower bar for every method that moves one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regrow.methods.base import Method, check_start, register
from regrow.schedule import Timeline
from regrow.units import Start, Units


@register
@dataclass(frozen=True)
class Static(Method):
    """Trains the structure it starts with, to the end.

    Args:
        start: ``"random"``, or ``"criterion"`` to keep the best units of the model as it is.
    """

    name: ClassVar[str] = "static"

    start: Start = "random"

    def __post_init__(self) -> None:
        check_start(self.start)

    def timeline(self, total_steps: int) -> Timeline:
        return Timeline(total_steps)

    def begin(self, units: Units) -> None:
        units.start(self.start)
