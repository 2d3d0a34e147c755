"""Methods × seeds of one recipe, in all cells of a grid of its keys, as processes beside each other.

Every run is a run directory of its own, so that a comparison that was interrupted goes on where it was: finished runs
are kept, others continue, missing ones start.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow import atomic
from regrow.errors import UserError
from regrow.study import pilots, step_times
from regrow.study.grid import Variant, Vary, cells_of, check_size
from regrow.study.planning import Match, Plan, planned
from regrow.study.pool import Job, job_of, run_jobs, slots_of
from regrow.training import fields, own, rundir
from regrow.training.recipe import Recipe
from regrow.training.results import content_of, results
from regrow.training.statistics import label_of

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable

_OURS = {
    rundir.RECIPE,
    rundir.RESULTS,
    rundir.REPORT,
    rundir.LATENCY,
    rundir.STEP_TIMES,
    "runs",
    "recipes",
    pilots.FOLDER,
}
_OF_MATCH = ("train.cost_steps", "train.planned_seconds")  # keys that say how runs were matched


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        results: the content of ``results.json``, of the runs that finished
        failures: one sentence for each run that did not, and for a page that could not be written
        report: the page; None if it could not be written
    """

    results: dict[str, Any]
    failures: list[str] = field(default_factory=list)
    report: Path | None = None


def compare(
    recipe: Recipe,
    out: Path,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    match: Match = "steps",
    jobs: int | None = None,
    quiet: bool = False,
    vary: Vary | None = None,
) -> Comparison:
    """Train every method with every seed, in every cell of a grid, and write ``results.json`` and ``report.html``.

    Args:
        recipe: what all runs share
        out: the directory of the comparison; an earlier one of the same recipe is continued
        labels: methods (``package.module:Class`` for one of your own), or labels of the recipe's ``compare`` section;
            differences are against the first
        seeds: one run of each label for each seed
        match: ``"steps"``: all train equally long; ``"cost"``: all spend the training FLOPs of the recipe's method, and
            costs are multiples of dense training for as many steps as the recipe has (`regrow.study.pilots`);
            ``"time"``, for channels that are trained thin: all train for as long as the recipe's method does, in
            seconds of this machine, which are turned into steps before any run starts
        jobs: runs at a time; default: the cores (or GPUs) divided by what a run uses
        quiet: show no progress
        vary: dotted key of the recipe → its values; all combinations of them are compared, with every method

    Raises:
        UserError: for an unknown label, a method that cannot run, a key that cannot be varied, a seed out of bounds, or
            a directory that holds anything but a comparison of this recipe.
        Interrupted: after SIGINT or SIGTERM, once all runs have written their checkpoints.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    vary = vary or {}
    methods = own.labels(labels)
    _check_target(out, recipe)
    for seed in seeds:
        fields.check("", dataclasses.replace(recipe.top, seed=seed))
    check_size(vary, len(methods), len(seeds), _say)
    cells = cells_of(recipe, methods, vary, apart=match != "steps")
    plan = planned(cells, match, out, seeds, quiet)
    rundir.create(out / "recipes")
    with rundir.locked(out):
        _check_target(out, recipe)  # again: another comparison may have begun there meanwhile
        plan = pilots.settled(plan, out, seeds[0], jobs, quiet)
        for variant in plan.variants:
            _check_variant(out, variant)
        rundir.sweep(out / "runs")
        _write_plan(out, recipe, plan)
        todo = _jobs(out, plan, seeds)
        if plan.table is not None:
            _give(plan.table, out, todo)
        run_jobs(todo, slots=slots_of(jobs, plan.threads, len(todo)), threads=plan.threads, quiet=quiet)
        runs, failures = _gather(out, plan.variants, seeds, {job.name: job for job in todo})
        found = results(recipe, runs, plan.variants[0].label)
        if failures:
            found["failures"] = [{"run": f"runs/{name}", "reason": said} for name, said in failures.items()]
        atomic.write_json(out / rundir.RESULTS, found)
    return _shown(out, found, list(failures.values()))


def _shown(out: Path, found: dict[str, Any], failures: list[str]) -> Comparison:
    """What was found, with its page; a file that no page can be made of hides no result."""
    from regrow.report.page import write

    try:
        return Comparison(found, failures, write([out], out / rundir.REPORT))
    except UserError as error:
        return Comparison(found, [*failures, f"there is no new report: {error}"])


def _jobs(out: Path, plan: Plan, seeds: Sequence[int]) -> list[Job]:
    """All runs, seed by seed; what pilots have trained already is there then."""
    places = {(v.label, seed): out / "runs" / f"{v.file}-seed{seed}" for seed in seeds for v in plan.variants}
    for variant in plan.variants:
        for seed in seeds:
            pilots.adopt(out, variant.recipe, seed, places[variant.label, seed], variant.label)
    return [
        job_of(out / "recipes" / f"{variant.file}.yaml", seed, places[variant.label, seed], variant.label)
        for seed in seeds
        for variant in plan.variants
    ]


def _say(sentence: str) -> None:
    print(f"regrow: {sentence}", file=sys.stderr, flush=True)


def _write_plan(out: Path, recipe: Recipe, plan: Plan) -> None:
    if plan.times:
        step_times.write(out / rundir.STEP_TIMES, plan.times)
    atomic.write_text(out / rundir.RECIPE, recipe.to_yaml())
    for variant in plan.variants:
        atomic.write_text(out / "recipes" / f"{variant.file}.yaml", variant.recipe.to_yaml())


def is_unfinished(out: Path, recipe: Recipe) -> bool:
    """Whether ``out`` holds a comparison of this recipe that was interrupted, so that `compare` would continue it."""
    if not (out / rundir.RECIPE).is_file() or (out / rundir.RESULTS).exists():
        return False
    try:
        _check_target(out, recipe)
    except UserError:
        return False
    return True


def _check_target(out: Path, recipe: Recipe) -> None:
    if not out.exists():
        rundir.check_target(out, resume=False)
        return
    rundir.check_holds(out, _OURS, "a comparison")
    rundir.check_same_recipe(out, recipe)


def _check_variant(out: Path, variant: Variant) -> None:
    """Refuse to mix runs of a variant that were made with other options, or matched in another way."""
    path = out / "recipes" / f"{variant.file}.yaml"
    if not path.exists():  # it may be lost, but not its runs
        named = re.compile(re.escape(variant.file) + r"-seed\d+")
        runs = (path for path in sorted((out / "runs").glob(f"*/{rundir.RECIPE}")) if named.fullmatch(path.parent.name))
        path = next(runs, path)
    if not path.exists():
        return
    keys = _changes(rundir.read_recipe(path), variant)
    if keys:  # what is matched in another way has another length, too
        what = f"{keys[0]} of {variant.label}" if set(_OF_MATCH).isdisjoint(keys) else "--match"
        raise UserError(f"{what} differs from the runs that {out} already holds: choose another --out")


def _give(table: LatencyTable, out: Path, jobs: Sequence[Job]) -> None:
    """Leave the table where each run takes it for its own."""
    table.save(out / rundir.LATENCY)
    for directory in (job.directory for job in jobs):
        if not (directory / rundir.LATENCY).exists() and not rundir.is_finished(directory):
            rundir.create(directory)
            table.save(directory / rundir.LATENCY)


def _gather(
    out: Path, variants: Sequence[Variant], seeds: Sequence[int], jobs: Mapping[str, Job]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The results of all finished runs, and for each of the others by its name a sentence."""
    runs: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for variant in variants:
        grid = {"variant_of": variant.of, "cell": dict(variant.cell)} if variant.in_grid else {}
        for seed in seeds:
            name = f"{variant.file}-seed{seed}"
            path = out / "runs" / name / rundir.RESULTS
            if not path.is_file():
                failures[name] = f"the run {name} failed: {jobs[name].last_words()}"
                continue
            try:
                content = content_of(path)
                [run] = content["runs"]
                _check_whose(run, content.get("recipe"), variant, seed, path)
            except UserError as error:
                failures[name] = str(error)
                continue
            runs.append({**run, "run": f"runs/{name}", **grid})
    return runs, failures


def _check_whose(run: Mapping[str, Any], recipe: Any, variant: Variant, seed: int, path: Path) -> None:
    """Refuse the results of another run, or of one by another recipe, which somebody has put there."""
    way_out = f"delete {path.parent} and run the comparison again"
    if (label_of(run), run["method"], run["seed"]) != (variant.label, variant.recipe.method_name, seed):
        raise UserError(
            f"{path} is of {label_of(run)} with seed {run['seed']}, not of {variant.label} with seed {seed}: {way_out}"
        )
    for key in _changes(recipe, variant) if isinstance(recipe, dict) else ():
        raise UserError(f"{path} is of a run with another {key} than the comparison has: {way_out}")


def _changes(old: Any, variant: Variant) -> list[str]:
    """The keys in which a recipe in its plain form differs from a variant's, whatever its seed is."""
    return rundir.changes({**old, "seed": variant.recipe.seed} if isinstance(old, dict) else old, variant.recipe)
