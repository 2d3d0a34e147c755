"""What is settled before the runs of a comparison: that each can start, how long each is, and the table they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regrow.errors import UserError
from regrow.training.optimizers import POINTS
from regrow.training.recipe import Recipe, Tree, parse

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.training.run import Run

Match = Literal["steps", "cost"]


@dataclass(frozen=True)
class Plan:
    """What is known before anything is written.

    Attributes:
        variants: the recipes of all labels, with their lengths
        table: of latencies, which all runs share; None if they need none, or name one
    """

    variants: dict[str, Recipe]
    table: LatencyTable | None = None


def planned(
    recipe: Recipe, variants: Mapping[str, Recipe], match: Match, latency: Path, seeds: Sequence[int], quiet: bool
) -> Plan:
    """Checks that each of the variants can run.

    Args:
        recipe: what all runs share
        variants: label → recipe
        match: as in `compare`
        latency: where an earlier session has left the latency table
        seeds: of the runs
        quiet: show no progress

    Raises:
        UserError: naming the label.
    """
    from regrow import lengths
    from regrow.methods import Dense
    from regrow.patterns import EntryPattern
    from regrow.study import preparation
    from regrow.training.run import Run, method_of, model_of
    from regrow.training.speed import is_channels

    # dense, so that what is wrong with a method is found below, where its label is known
    example = Run(dataclasses.replace(recipe, method_name="dense", method=Dense()), "plan")
    for label, variant in variants.items():
        with _naming(label):
            method, criterion = method_of(variant)
            method.scorings(criterion)
            if match == "steps":
                lengths.timeline_of(method, example.total_steps)
            if method.sparsifies:
                method.check_pattern(variant.pattern)
            for seed in seeds if variant.model.weights else ():
                model_of(dataclasses.replace(variant, top=dataclasses.replace(variant.top, seed=seed)), example.data)
    others = [one for one in (recipe, *variants.values()) if not isinstance(one.pattern, EntryPattern)]
    if not others:
        return Plan(_of_weights(recipe, variants, example, match))
    if match == "cost":
        what, found = ("channels", "widths") if is_channels(others[0]) else (others[0].pattern_name, "structures")
        raise UserError(
            f"--match cost cannot be planned for {what}, as a step costs what the {found} that training finds cost: "
            "use --match steps"
        )
    table = preparation.shared_table(variants, example, latency, quiet)
    for label, variant in variants.items():
        with _naming(label):
            preparation.attach(variant, example, table)
    return Plan(dict(variants), table)


def _of_weights(
    recipe: Recipe, variants: Mapping[str, Recipe], example: Run, match: Match
) -> dict[str, Recipe]:  # fmt: skip
    """The variants with their lengths."""
    from regrow.attach import check_weights
    from regrow.plan import matching_steps, planned_cost
    from regrow.training.run import method_of

    check_weights(recipe.pattern.parameters(example.model, example.example))
    counts = recipe.pattern.counts(example.model, example.example)
    if match == "steps":
        return dict(variants)
    with _naming(recipe.method_name):
        budget = planned_cost(*method_of(recipe), counts, example.flops, example.total_steps)
    planned = {}
    for label, variant in variants.items():
        with _naming(label):
            own = variant.pattern.counts(example.model, example.example)
            steps = matching_steps(*method_of(variant), own, example.flops, budget)
        planned[label] = _of_length(variant, steps, example)
    return planned


@contextmanager
def _naming(label: str) -> Iterator[None]:
    """Errors inside it say which run of the comparison they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{label}: {error}") from error


def _of_length(variant: Recipe, steps: int, example: Run) -> Recipe:
    """The recipe with this many steps; what it gives in epochs stretches along, and costs are those of dense training
    for as long as before, so that they can be compared."""
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
    return parse({**tree, "steps": steps, "train": {**tree["train"], "cost_steps": example.cost_steps}})


def _stretched(point: float, stretch: float, epochs: float) -> float:
    """Epochs (from 1 on) stretch, as a fraction of the training where less than one is left; fractions stay."""
    if point < 1:
        return point
    return point * stretch if point * stretch >= 1 else min(point / epochs, 0.999999)
