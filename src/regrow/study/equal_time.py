"""Lengths of the runs of a comparison that is matched by time: the recipe's own method sets the seconds, which are
turned into steps before any run starts, so that runs stay reproducible."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from regrow.errors import UserError, about
from regrow.plan import StepTimes, planned_seconds, steps_in_time
from regrow.study.calibration import measure
from regrow.study.starts import dense_steps
from regrow.study.step_times import key_of
from regrow.study.stretching import of_length
from regrow.training.recipe import Recipe
from regrow.training.run import method_of
from regrow.training.speed import is_channels

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.training.run import Run


def check(recipe: Recipe) -> None:
    """Refuse patterns for which all methods take as long for a step.

    Raises:
        UserError: naming the way out.
    """
    if not is_channels(recipe):
        raise UserError(
            f"--match time is for thin channels: with pattern {recipe.pattern_name}, steps under masks take as long as "
            "dense ones whatever the method is, so use --match steps"
        )
    if not recipe.pattern.thin:
        raise UserError(
            "--match time is for thin channels: with pattern.thin=false, steps under masks take as long as dense ones "
            "whatever the method is, so use --match steps, or leave pattern.thin out"
        )


def complete(
    times: MutableMapping[str, StepTimes], recipes: Mapping[str, Recipe], table: LatencyTable | None, quiet: bool
) -> None:  # fmt: skip
    """Measure what is not known yet of these recipes, those together that only rank channels in another way.

    Args:
        times: by `key_of`; is added to.
        recipes: label → recipe.
        table: of latencies, where budgets need one.
        quiet: do not say so.

    Raises:
        UserError: where a budget cannot be met, naming the label.
    """
    missing: dict[str, dict[str, tuple[str, Recipe]]] = {}
    for label, recipe in recipes.items():
        for one in (recipe, _untaught(recipe)):
            if (key := key_of(one)) not in times:
                missing.setdefault(key_of(one, ranking=False), {}).setdefault(key, (label, one))
    for group in missing.values():
        if not quiet:
            print("regrow: measuring how long training steps take on this machine ...", file=sys.stderr, flush=True)
        with about(next(label for label, _ in group.values())):
            times.update(zip(group, measure([recipe for _, recipe in group.values()], table), strict=True))


def budget_of(recipe: Recipe, times: Mapping[str, StepTimes], steps: int, seeds: Sequence[int]) -> float:
    """Seconds that the recipe's own method trains, with the dense training that it starts from.

    Args:
        recipe: of the comparison.
        times: by `key_of`.
        steps: that it has.
        seeds: of the runs.
    """
    own = planned_seconds(*method_of(recipe), times[key_of(recipe)], steps)
    return own + dense_steps(recipe, seeds) * times[key_of(_untaught(recipe))].dense


def _untaught(recipe: Recipe) -> Recipe:
    """The recipe without its teacher, as what it starts from was trained, and the teacher itself."""
    return dataclasses.replace(recipe, distill=None)


def in_time(
    variant: Recipe, times: Mapping[str, StepTimes], budget: float, seeds: Sequence[int], example: Run
) -> Recipe:  # fmt: skip
    """A variant with as many steps as it takes those seconds for, less those of the dense training that it starts from.

    Args:
        variant: of any length.
        times: by `key_of`.
        budget: in seconds.
        seeds: of its runs.
        example: a dense run of the length that all had before.

    Raises:
        UserError: where that leaves it too few steps.
    """
    known, (method, criterion) = times[key_of(variant)], method_of(variant)
    before = dense_steps(variant, seeds)
    taken = before * times[key_of(_untaught(variant))].dense
    left = budget - taken
    if left <= 0:
        raise UserError(
            f"the {before:,} dense steps that it builds on take {taken:.3g} seconds, but the budget "
            f"is {budget:.3g}: train the recipe for longer, or start from a shorter run"
        )
    steps = steps_in_time(method, criterion, known, left)
    return of_length(variant, steps, example, planned_seconds(method, criterion, known, steps))
