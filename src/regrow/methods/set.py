"""SET: drop by magnitude, grow at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regrow.methods.method import register
from regrow.methods.rigl import DropAndGrow


@register
@dataclass(frozen=True)
class SET(DropAndGrow):
    """Drops by the criterion (\\|w\\| in the paper) and grows at random (Mocanu et al. 2018, arXiv:1707.04780)."""

    name: ClassVar[str] = "set"
    growth: ClassVar[str] = "random"
