"""What is said of how good a model is: the name of the number that a run is judged by.

Every file of a run has that number under ``accuracy``, as a fraction; where it is another one than accuracy, ``metric``
beside it names which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A number that models are judged by, a fraction of which more is better.

    Attributes:
        name: in files and sentences.
        title: at the head of a column.
        guessed: whether guessing a class reaches some of it, so that it can be no better than chance.
    """

    name: str
    title: str
    guessed: bool = False

    @property
    def entry(self) -> dict[str, str]:
        """What a file says of it beside the number; nothing of accuracy, which is what files speak of otherwise."""
        return {} if self == ACCURACY else {"metric": self.name}


ACCURACY = Measure("accuracy", "Accuracy", guessed=True)
MAP = Measure("mAP", "mAP")
MIOU = Measure("mIoU", "mIoU")
SEVERAL = Measure("score", "Score")  # of runs that are judged by different numbers

MEASURES = {measure.name: measure for measure in (ACCURACY, MAP, MIOU)}


def measure_of(rows: Iterable[Mapping[str, Any]]) -> Measure:
    """The one that runs, summaries or lines of metrics share; `SEVERAL` where they do not. Without a ``metric`` they
    have the accuracy.

    >>> measure_of([{"seed": 0}]).title, measure_of([{"metric": "mAP"}]).title
    ('Accuracy', 'mAP')
    """
    names = {str(row.get("metric") or ACCURACY.name) for row in rows}
    if len(names) > 1:
        return SEVERAL
    name = names.pop() if names else ACCURACY.name
    return MEASURES.get(name, Measure(name, name))
