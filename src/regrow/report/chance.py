"""Whether an accuracy is more than guessing would reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regrow.report.panels import judged
from regrow.report.runs import RunRecord

_SURE = 0.99


@dataclass(frozen=True)
class Chance:
    """Guessing one of ``classes`` on ``images`` test images (None: nobody knows how many)."""

    classes: int
    images: int | None
    things: str = "images"  # or texts

    @property
    def level(self) -> float:
        """The accuracy that guessing reaches on average."""
        return 1 / self.classes

    @property
    def most(self) -> float:
        """The accuracy that guessing stays within in 99 of 100 cases (binomial); its mean where images are unknown."""
        if not self.images:
            return self.level
        from scipy.special import bdtr, bdtrik  # the binomial; scipy.stats takes a second to import

        reached = math.ceil(bdtrik(_SURE, self.images, self.level))  # a real number of hits solves it there
        within = reached > 0 and bdtr(reached - 1, self.images, self.level) >= _SURE
        return (reached - 1 if within else reached) / self.images

    def explains(self, accuracy: float) -> bool:
        """Whether this accuracy is not above chance. That of several runs must be their mean: as they are of the same
        images, more runs make no smaller margin."""
        return self.classes > 1 and accuracy <= self.most


def chance_of(runs: Sequence[RunRecord]) -> Chance | None:
    """That of runs of the same data; None where they do not know their classes, or not all the same, and where they are
    judged by what no guess reaches."""
    if not judged(runs).guessed:
        return None
    known = {run.facts.builder.classes if run.facts.builder else None for run in runs}
    classes = known.pop() if len(known) == 1 else None
    images = [run.facts.test_images for run in runs if run.accuracy is not None]
    things = runs[0].facts.things if runs else "images"
    return None if classes is None else Chance(classes, min((n for n in images if n), default=None), things)
