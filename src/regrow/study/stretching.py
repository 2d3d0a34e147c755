"""Recipes of another length: what they give in epochs stretches along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.training.optimizers import POINTS
from regrow.training.recipe import Recipe, Tree, parse

if TYPE_CHECKING:
    from regrow.training.run import Run


def of_length(variant: Recipe, steps: int, example: Run, planned_seconds: float | None = None) -> Recipe:
    """The recipe with this many steps; what it gives in epochs stretches along, and costs are those of dense training
    for as long as before, so that they can be compared.

    Args:
        variant: of any length.
        steps: that it is to have.
        example: a run of the length that all had before.
        planned_seconds: that these steps will take, if that is known.
    """
    tree: Tree = variant.resolved()
    for key in ("epochs", "steps"):
        tree.pop(key, None)
    stretch, epochs = steps / example.total_steps, example.total_steps / example.steps_per_epoch
    schedule = tree["schedule"]
    for key in POINTS:
        if isinstance(schedule.get(key), list):
            schedule[key] = [_stretched(value, stretch, epochs) for value in schedule[key]]
        elif key in schedule:
            schedule[key] = _stretched(schedule[key], stretch, epochs)
    train = {**tree["train"], "cost_steps": example.cost_steps, "planned_seconds": planned_seconds}
    return parse({**tree, "steps": steps, "train": train})


def _stretched(point: float, stretch: float, epochs: float) -> float:
    """Epochs (from 1 on) stretch, as a fraction of the training where less than one is left; fractions stay."""
    if point < 1:
        return point
    return point * stretch if point * stretch >= 1 else min(point / epochs, 0.999999)
