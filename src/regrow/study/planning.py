"""What is settled before the runs of a comparison: that each can start, how long each is, and the table they share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow.errors import UserError
from regrow.study.grid import GridCell, Variant
from regrow.training.cells import cell_name
from regrow.training.optimizers import POINTS
from regrow.training.recipe import Recipe, Tree, parse
from regrow.training.recipe_layers import NAMED

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.training.run import Run

Match = Literal["steps", "cost"]


@dataclass(frozen=True)
class Plan:
    """What is known before anything is written.

    Attributes:
        variants: all of them, with their lengths
        table: of latencies, which all runs share; None if they need none, or name one
    """

    variants: Sequence[Variant]
    table: LatencyTable | None = None


def planned(
    cells: Sequence[GridCell], match: Match, latency: Path, seeds: Sequence[int], quiet: bool
) -> Plan:  # fmt: skip
    """Checks that each variant of a grid can run.

    Args:
        cells: of the grid; cells with the same model, data and length are planned with one model
        match: as in `compare`
        latency: where an earlier session has left the latency table
        seeds: of the runs
        quiet: show no progress

    Raises:
        UserError: naming the variant.
    """
    from regrow.methods import Dense
    from regrow.training.run import Run
    from regrow.training.speed import needs_table

    settings = [_setting(cell.recipe) for cell in cells]
    timed = {
        what for what, cell in zip(settings, cells, strict=True) if any(needs_table(v.recipe) for v in cell.variants)
    }
    if len(timed) > 1:
        raise UserError(
            "a comparison measures one latency table, but this grid has several models, batches or lengths: give "
            "pattern.table, or compare them one by one"
        )
    found: list[Variant] = []
    table = None
    for what in dict.fromkeys(settings):
        own = [cell for cell, other in zip(cells, settings, strict=True) if other == what]
        # dense, so that what is wrong with a method is found below, where its label is known
        with _naming(cell_name(own[0].cell)):
            example = Run(dataclasses.replace(own[0].recipe, method_name="dense", method=Dense()), "plan")
        if match == "steps":  # which the cells have in common
            own = [GridCell(own[0].recipe, own[0].cell, [variant for cell in own for variant in cell.variants])]
        for cell in own:
            variants = {variant.label: variant.recipe for variant in cell.variants}
            lengths, needed = _planned(cell.recipe, variants, match, latency, seeds, quiet, example)
            found += [dataclasses.replace(variant, recipe=lengths[variant.label]) for variant in cell.variants]
            table = table or needed
    order = {variant.label: place for place, variant in enumerate(v for cell in cells for v in cell.variants)}
    return Plan(sorted(found, key=lambda variant: order[variant.label]), table)


def _setting(recipe: Recipe) -> str:
    """What a dense run depends on, beside its optimizer."""
    apart = (*NAMED, "criterion", "compare", "study")
    return json.dumps({key: value for key, value in recipe.resolved().items() if key not in apart}, sort_keys=True)


def _planned(
    recipe: Recipe, variants: Mapping[str, Recipe], match: Match, latency: Path, seeds: Sequence[int], quiet: bool,
    example: Run,
) -> tuple[dict[str, Recipe], LatencyTable | None]:  # fmt: skip
    """The variants of a cell by their labels, with their lengths, and the latency table that they need."""
    from regrow.patterns import EntryPattern
    from regrow.study import preparation
    from regrow.training.speed import is_channels

    for label, variant in variants.items():
        with _naming(label):
            _check(variant, match, seeds, example)
    if match == "cost" and any(one.distill for one in (recipe, *variants.values())):
        raise UserError("--match cost does not count the forward passes of distill.teacher: use --match steps")
    others = [one for one in (recipe, *variants.values()) if not isinstance(one.pattern, EntryPattern)]
    if not others:
        return _of_weights(recipe, variants, example, match), None
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
    return dict(variants), table


def _check(variant: Recipe, match: Match, seeds: Sequence[int], example: Run) -> None:
    """Refuse a variant whose method does not fit the pattern or the length, or that starts from what is not there."""
    from regrow import attach, lengths
    from regrow.training.run import method_of, model_of, teacher_of

    method, criterion = method_of(variant)
    scorings = method.scorings(criterion)
    if match == "steps":
        lengths.timeline_of(method, example.total_steps)
    attach.check_together(variant.pattern, method, scorings, example.total_steps, example.example)
    variant.schedule.check(example.total_steps, example.steps_per_epoch)
    if variant.optimizer != example.recipe.optimizer:
        variant.optimizer.build(example.model.named_parameters())
    for seed in seeds if variant.model.weights or variant.distill else ():
        seeded = dataclasses.replace(variant, top=dataclasses.replace(variant.top, seed=seed))
        teacher_of(seeded, example.data, example.device)
        if variant.model.weights:
            model_of(seeded, example.data)


def _of_weights(
    recipe: Recipe, variants: Mapping[str, Recipe], example: Run, match: Match
) -> dict[str, Recipe]:  # fmt: skip
    """The variants with their lengths."""
    from regrow.attach import check_weights
    from regrow.plan import matching_steps, planned_cost
    from regrow.training.run import method_of

    check_weights(recipe.pattern.parameters(example.model, example.example))
    found: list[tuple[Any, dict[str, tuple[int, int]]]] = []  # most variants have one pattern

    def counts_of(pattern: Any) -> dict[str, tuple[int, int]]:
        known = next((counts for other, counts in found if other == pattern), None)
        if known is None:
            found.append((pattern, known := pattern.counts(example.model, example.example)))
        return known

    counts = counts_of(recipe.pattern)
    if match == "steps":
        for label, variant in variants.items():
            with _naming(label):
                counts_of(variant.pattern)
        return dict(variants)
    with _naming(recipe.method_name):
        budget = planned_cost(*method_of(recipe), counts, example.flops, example.total_steps)
    planned = {}
    for label, variant in variants.items():
        with _naming(label):
            own = counts_of(variant.pattern)
            steps = matching_steps(*method_of(variant), own, example.flops, budget)
        planned[label] = _of_length(variant, steps, example)
    return planned


@contextmanager
def _naming(label: str) -> Iterator[None]:
    """Errors inside it say which variant or cell of the comparison they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{label}: {error}" if label else str(error)) from error


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
