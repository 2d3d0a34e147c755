"""Runs that tell what training costs where nobody can know it beforehand, for comparisons at equal training FLOPs.

Where weights move between layers, what a step costs depends on where they go. A pilot of the first seed is trained to
its end, and the length of all runs of its method follows from what it has cost a step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

from regrow import atomic, regular, schema
from regrow.errors import UserError
from regrow.study.planning import Plan
from regrow.study.pool import Job, job_of, run_jobs, slots_of
from regrow.training import own, rundir
from regrow.training.recipe import HARMLESS, Recipe
from regrow.training.recipe_layers import without
from regrow.training.results import result_of

FOLDER = "pilots"


def settled(plan: Plan, out: Path, seed: int, jobs: int | None, quiet: bool) -> Plan:
    """The plan with the lengths that follow from pilots, which are trained now where an earlier session has not.

    Args:
        plan: of the comparison.
        out: its directory, which the caller has locked.
        seed: of the pilots, but of those that there are already.
        jobs: runs at a time; None for as many as there are cores.
        quiet: show no progress.

    Raises:
        UserError: where a pilot fails, naming it.
        Interrupted: after SIGINT or SIGTERM.
    """
    todo = {_name(recipe): (label, recipe) for cell in plan.unknown for label, recipe in cell.pilots.items()}
    if not todo:
        return plan
    if not quiet:
        labels = ", ".join(dict.fromkeys(label for label, _ in todo.values()))
        print(
            f"regrow: weights of {labels} move between layers, so that what a step costs is known only afterwards: "
            f"pilots of seed {seed} come first",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    rundir.create(out / FOLDER)
    runs = [_job(out / FOLDER, name, label, recipe, seed) for name, (label, recipe) in todo.items()]
    run_jobs(runs, slots=slots_of(jobs, plan.threads, len(runs)), threads=plan.threads, quiet=quiet)
    costs = {job.name: _cost(job) for job in runs}
    lengths: dict[str, Recipe] = {}
    for cell in plan.unknown:
        lengths |= cell.settle({label: costs[_name(recipe)] for label, recipe in cell.pilots.items()})
    variants = [dataclasses.replace(one, recipe=lengths.get(one.label, one.recipe)) for one in plan.variants]
    return dataclasses.replace(plan, variants=variants, unknown=())


def adopt(out: Path, recipe: Recipe, seed: int, directory: Path, label: str) -> None:
    """Takes the pilot of a recipe and a seed, where there is a finished one, for a run of this directory, if that is
    not there, and calls it so."""
    pilot = out / FOLDER / _name(recipe)
    if rundir.is_finished(pilot) and not directory.exists() and result_of(pilot / rundir.RESULTS)["seed"] == seed:
        with atomic.new_directory(directory) as place:
            shutil.copytree(pilot, place, dirs_exist_ok=True)
            _call(place, label)


def _call(directory: Path, label: str) -> None:
    """Give a finished run another label: it may have been trained as what only set the budget."""
    for path in (directory / rundir.RESULTS, directory / rundir.STRUCTURE):
        content = schema.parse_json(regular.read_bytes(path), path, "delete it and run the comparison again")
        for entry in (content, *content.get("runs", ()), *content.get("summary", ())):
            if "label" in entry:
                entry["label"] = label
        atomic.write_json(path, content)


def _name(recipe: Recipe) -> str:
    """Of a pilot: another recipe has another one, unless it only differs in what changes nothing about training."""
    text = json.dumps(without(recipe.resolved(), HARMLESS), sort_keys=True)
    return f"{own.label_of(recipe.method_name)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _job(folder: Path, name: str, label: str, recipe: Recipe, seed: int) -> Job:
    path, directory = folder / f"{name}.yaml", folder / name
    if (directory / rundir.RECIPE).exists():  # begun with other seeds: lengths stay what they were
        seed = rundir.read_recipe(directory / rundir.RECIPE)["seed"]
    atomic.write_text(path, recipe.to_yaml())
    return job_of(path, seed, directory, label)


def _cost(job: Job) -> float:
    """What a pilot has cost, in dense steps."""
    path = job.directory / rundir.RESULTS
    if not path.is_file():
        raise UserError(f"the pilot {job.name} failed: {job.last_words()}")
    run = result_of(path)
    return float(run["training_cost"]) * float(run["cost_steps"])
