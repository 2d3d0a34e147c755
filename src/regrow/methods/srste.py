"""SR-STE: straight-through, and what is removed is pulled towards zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regrow.latent import Latent
from regrow.methods.method import register
from regrow.methods.ste import Straight


@register
@dataclass(frozen=True)
class SRSTE(Straight):
    """Trains all weights by the gradients of the active ones as they are, plus λ·w for the removed ones, so that these
    settle, and selects the largest anew (Zhou et al. 2021, arXiv:2102.04010). Made for `NM`.

    Args:
        pull: λ.
    """

    name: ClassVar[str] = "srste"

    pull: float = 2e-4

    def _latent(self) -> Latent:
        return Latent(pull=self.pull)
