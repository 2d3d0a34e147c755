"""The baseline: nothing is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regrow.methods.method import Method, register
from regrow.schedule import Timeline


@register
@dataclass(frozen=True)
class Dense(Method):
    """Plain training, in the frame of the others so that a comparison has its yardstick."""

    name: ClassVar[str] = "dense"
    sparsifies: ClassVar[bool] = False

    def timeline(self, total_steps: int) -> Timeline:
        return Timeline(total_steps)
