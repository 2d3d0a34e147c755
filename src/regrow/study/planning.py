"""What is settled before the runs of a comparison: that each can start, how long each is, and the table they share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow.errors import UserError, about
from regrow.study import step_times
from regrow.study.grid import GridCell, Variant
from regrow.study.stretching import of_length
from regrow.training import rundir
from regrow.training.cells import cell_name
from regrow.training.recipe import Recipe
from regrow.training.recipe_layers import NAMED

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.plan import StepTimes
    from regrow.training.run import Run

Match = Literal["steps", "cost", "time"]
_BUDGET = "the recipe's own method"  # which sets it


@dataclass(frozen=True)
class Unknown:
    """Lengths of a cell that depend on what pilots cost.

    Attributes:
        pilots: label → the recipe of a pilot, at the length that the layers' first shares ask for.
        settle: makes of what these cost, in dense steps, the recipe of every variant of the cell, by its label.
    """

    pilots: Mapping[str, Recipe]
    settle: Callable[[Mapping[str, float]], Mapping[str, Recipe]]


@dataclass(frozen=True)
class Plan:
    """What is known before anything is written.

    Attributes:
        variants: all of them, with their lengths
        table: of latencies, which all runs share; None if they need none, or name one
        times: of training steps, where lengths depend on them
        unknown: lengths that pilots are to tell; until then those of the layers' first shares stand there
    """

    variants: Sequence[Variant]
    table: LatencyTable | None = None
    times: Mapping[str, StepTimes] = field(default_factory=dict)
    unknown: Sequence[Unknown] = ()

    @property
    def threads(self) -> int:
        """CPU threads of each run."""
        return max(variant.recipe.train.threads or 1 for variant in self.variants)


@dataclass(frozen=True)
class _Asked:
    """What is asked of all cells, and what has been measured for them so far."""

    match: Match
    out: Path
    seeds: Sequence[int]
    quiet: bool
    times: dict[str, StepTimes]


def planned(
    cells: Sequence[GridCell], match: Match, out: Path, seeds: Sequence[int], quiet: bool
) -> Plan:  # fmt: skip
    """Checks that each variant of a grid can run.

    Args:
        cells: of the grid; cells with the same model, data and length are planned with one model
        match: as in `compare`
        out: the comparison's directory, where an earlier session may have left what it has measured
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
    asked = _Asked(match, out, seeds, quiet, step_times.read(out / rundir.STEP_TIMES) if match == "time" else {})
    found: list[Variant] = []
    unknown: list[Unknown] = []
    table = None
    for what in dict.fromkeys(settings):
        own = [cell for cell, other in zip(cells, settings, strict=True) if other == what]
        # dense, so that what is wrong with a method is found below, where its label is known
        with about(cell_name(own[0].cell)):
            example = Run(dataclasses.replace(own[0].recipe, method_name="dense", method=Dense()), "plan")
        if match == "steps":  # which the cells have in common
            own = [GridCell(own[0].recipe, own[0].cell, [variant for cell in own for variant in cell.variants])]
        for cell in own:
            variants = {variant.label: variant.recipe for variant in cell.variants}
            lengths, needed, open_ = _planned(cell.recipe, variants, example, asked)
            unknown += [] if open_ is None else [open_]
            found += [dataclasses.replace(variant, recipe=lengths[variant.label]) for variant in cell.variants]
            table = table or needed
    order = {variant.label: place for place, variant in enumerate(v for cell in cells for v in cell.variants)}
    return Plan(sorted(found, key=lambda variant: order[variant.label]), table, asked.times, unknown)


def _setting(recipe: Recipe) -> str:
    """What a dense run depends on, beside its optimizer."""
    apart = (*NAMED, "criterion", "compare", "study")
    return json.dumps({key: value for key, value in recipe.resolved().items() if key not in apart}, sort_keys=True)


def _planned(
    recipe: Recipe, variants: Mapping[str, Recipe], example: Run, asked: _Asked
) -> tuple[dict[str, Recipe], LatencyTable | None, Unknown | None]:
    """The variants of a cell by their labels, with their lengths, the latency table that they need, and what of the
    lengths is not known."""
    from regrow.patterns import EntryPattern
    from regrow.study import equal_time, preparation
    from regrow.training.speed import is_channels

    if asked.match == "time":
        equal_time.check(recipe)
        _each(variants, equal_time.check)
    _each(variants, lambda variant: _check(variant, asked.match, asked.seeds, example))
    if asked.match == "cost" and any(one.distill for one in (recipe, *variants.values())):
        raise UserError("--match cost does not count the forward passes of distill.teacher: use --match steps")
    others = [one for one in (recipe, *variants.values()) if not isinstance(one.pattern, EntryPattern)]
    if not others:
        planned, unknown = _of_weights(recipe, variants, example, asked.match)
        return planned, None, unknown
    if asked.match == "cost":
        channels = is_channels(others[0])
        what, found = ("channels", "widths") if channels else (others[0].pattern_name, "structures")
        raise UserError(
            f"--match cost cannot be planned for {what}, as a step costs what the {found} that training finds cost: "
            f"use {'--match time, or ' if channels else ''}--match steps"
        )
    needing = variants if asked.match == "steps" else {**variants, "": recipe}  # whose own method sets the budget
    table = preparation.shared_table(needing, example, asked.out / rundir.LATENCY, asked.quiet)
    lengths = variants if asked.match == "steps" else _of_time(recipe, variants, example, asked, table)
    _each(lengths, lambda one: preparation.attach(one, example, table, one.total_steps(example.steps_per_epoch)))
    return dict(lengths), table, None


def _of_time(
    recipe: Recipe, variants: Mapping[str, Recipe], example: Run, asked: _Asked, table: LatencyTable | None
) -> dict[str, Recipe]:
    """The variants of a cell, all of which train for as many seconds as its own recipe does."""
    from regrow.study import equal_time

    equal_time.complete(asked.times, {**variants, "": recipe}, table, asked.quiet)
    with about(recipe.method_name):
        budget = equal_time.budget_of(recipe, asked.times, example.total_steps, asked.seeds)
    planned = {}
    for label, variant in variants.items():
        with about(label):
            planned[label] = equal_time.in_time(variant, asked.times, budget, asked.seeds, example)
    return planned


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
) -> tuple[dict[str, Recipe], Unknown | None]:
    """The variants with their lengths, and what of these pilots are to tell."""
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

    def matched(budget: float, among: Mapping[str, Recipe]) -> dict[str, Recipe]:
        planned = {}
        for label, variant in among.items():
            with about(label):
                own = counts_of(variant.pattern)
                steps = matching_steps(*method_of(variant), own, example.flops, budget)
            planned[label] = of_length(variant, steps, example)
        return planned

    counts = counts_of(recipe.pattern)
    if match == "steps":
        _each(variants, lambda variant: counts_of(variant.pattern))
        return dict(variants), None
    with about(recipe.method_name):
        budget = planned_cost(*method_of(recipe), counts, example.flops, example.total_steps)
    planned = matched(budget, variants)
    tried = {_BUDGET: of_length(recipe, example.total_steps, example)} if _drifts(recipe) else {}
    tried |= {label: planned[label] for label, variant in variants.items() if _drifts(variant)}

    def settle(costs: Mapping[str, float]) -> dict[str, Recipe]:
        spent = costs.get(_BUDGET, budget)
        lengths = matched(spent, {label: one for label, one in variants.items() if label not in tried})
        for label in tried.keys() - {_BUDGET}:
            steps = max(1, round(tried[label].total_steps(1.0) * spent / costs[label]))
            lengths[label] = of_length(variants[label], steps, example)
            with about(label):
                _check_length(lengths[label], steps)
        return lengths

    return planned, Unknown(tried, settle) if tried else None


def _drifts(recipe: Recipe) -> bool:
    """Whether what a step costs depends on in which layers training leaves weights."""
    from regrow.training.run import method_of

    method, _ = method_of(recipe)
    return method.shares_out or (method.sparsifies and getattr(recipe.pattern, "ranks_globally", False))


def _check_length(recipe: Recipe, steps: int) -> None:
    """Refuse a length in which no update fits."""
    from regrow import lengths
    from regrow.training.run import method_of

    lengths.timeline_of(method_of(recipe)[0], steps)


def _each(variants: Mapping[str, Recipe], what: Callable[[Recipe], object]) -> None:
    """Do something with each variant, under its label."""
    for label, variant in variants.items():
        with about(label):
            what(variant)
