"""Methods × seeds of one recipe, as processes beside each other. Every run is a run directory of its own, so that a
comparison that was interrupted goes on where it was: finished runs are kept, others continue, missing ones start."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow import atomic
from regrow.errors import UserError
from regrow.study.pool import Job, run_jobs
from regrow.training import fields, own, rundir
from regrow.training.optimizers import POINTS
from regrow.training.recipe import Recipe, Tree, differences, parse, with_method
from regrow.training.results import result_of, results

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable
    from regrow.training.run import Run

Match = Literal["steps", "cost"]
_OURS = {rundir.RECIPE, rundir.RESULTS, rundir.REPORT, rundir.LATENCY, "runs", "recipes"}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        results: the content of ``results.json``, of the runs that finished
        failures: one sentence for each run that did not
    """

    results: dict[str, Any]
    failures: list[str] = field(default_factory=list)


def compare(
    recipe: Recipe,
    out: Path,
    labels: Sequence[str],
    seeds: Sequence[int],
    *,
    match: Match = "steps",
    jobs: int | None = None,
    quiet: bool = False,
) -> Comparison:
    """Train every method with every seed, and write ``results.json`` and ``report.html`` about all of them.

    Args:
        recipe: what all runs share
        out: the directory of the comparison; an earlier one of the same recipe is continued
        labels: methods (``package.module:Class`` for one of your own), or labels of the recipe's ``compare`` section;
            differences are against the first
        seeds: one run of each label for each seed
        match: ``"steps"``: all train equally long; ``"cost"``: all spend the training FLOPs of the recipe's method, and
            costs are multiples of dense training for as many steps as the recipe has
        jobs: runs at a time; default: the cores (or GPUs) divided by what a run uses
        quiet: show no progress

    Raises:
        UserError: for an unknown label, a method that cannot run, a seed out of bounds, or a directory that holds
            anything but a comparison of this recipe.
        Interrupted: after SIGINT or SIGTERM, once all runs have written their checkpoints.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    methods = own.labels(labels)
    labels = list(methods)
    _check_target(out, recipe)
    for seed in seeds:
        fields.check("", dataclasses.replace(recipe.top, seed=seed))
    threads = recipe.train.threads or 1
    variants = {label: with_method(recipe, word) for label, word in methods.items()}
    plan = _planned(recipe, variants, match, out / rundir.LATENCY, seeds, quiet)
    variants = plan.variants
    for label, variant in variants.items():
        _check_variant(out, label, variant)
    rundir.create(out / "recipes")
    with rundir.locked(out):
        atomic.write_text(out / rundir.RECIPE, recipe.to_yaml())
        for label, variant in variants.items():
            atomic.write_text(out / "recipes" / f"{label}.yaml", variant.to_yaml())
        todo = [_job(out, label, seed) for seed in seeds for label in labels]
        if plan.table is not None:
            plan.table.save(out / rundir.LATENCY)
            for job in todo:
                _give(plan.table, job.directory)
        run_jobs(todo, slots=_slots(jobs, threads), threads=threads, quiet=quiet)
        runs, failures = _gather(out, labels, seeds, {job.name: job for job in todo})
        found = results(recipe, runs, labels[0])
        if failures:
            found["failures"] = [{"run": f"runs/{name}", "reason": said} for name, said in failures.items()]
        atomic.write_json(out / rundir.RESULTS, found)
    from regrow.report.page import write

    write([out], out / rundir.REPORT)
    return Comparison(found, list(failures.values()))


def is_unfinished(out: Path, recipe: Recipe) -> bool:
    """Whether ``out`` holds a comparison of this recipe that was interrupted, so that `compare` would continue it."""
    if not (out / rundir.RECIPE).is_file() or (out / rundir.RESULTS).exists():
        return False
    try:
        _check_target(out, recipe)
    except UserError:
        return False
    return True


def print_table(summary: Sequence[Mapping[str, Any]], width: int | None = None) -> None:
    """Print a summary of results as a table, or below each other as several with some of the columns each.

    Args:
        summary: of `regrow.training.statistics.summarise`.
        width: characters that there are room for; default: the terminal's, and 140 in a pipe or a file.
    """
    from rich.console import Console
    from rich.table import Table

    title = "test accuracy, mean ± standard deviation over seeds"
    dense_steps = next((row["cost_steps"] for row in summary if row["cost_steps"] is not None), None)
    if dense_steps is not None:
        title += f"\nmatched by training FLOPs (1× is dense training for {dense_steps:,.0f} steps)"
    reference = summary[0]["label"] if summary else ""
    columns = {
        heading: cells
        for heading, show in _columns(reference, summary, steps=dense_steps is not None).items()
        if any(cells := [show(row) for row in summary])
    }
    caption = "×: of the dense network. Training cost and FLOPs are counted, not timed; time is that of a whole run."
    if "" in columns.get("latency", ()):
        caption += " –: not timed, as single weights that are removed make no network faster on ordinary hardware."
    labels = [str(row["label"]) for row in summary]
    terminal = Console().is_terminal
    console = Console(width=width or (None if terminal else 140))
    console.print(title, highlight=False)
    for part in _side_by_side(columns, max(map(len, ["method", *labels])), console.width):
        table = Table("method")
        for heading in part:
            table.add_column(heading, justify="right", no_wrap=True)
        for label, *cells in zip(labels, *(columns[heading] for heading in part), strict=True):
            table.add_row(label, *(cell or "–" for cell in cells))
        console.print(table)
    console.print(caption, highlight=False)


def _side_by_side(columns: Mapping[str, Sequence[str]], first: int, width: int) -> list[list[str]]:
    """Headings of as many columns as fit beside one of `first` characters, and then the others, line by line."""
    lines: list[list[str]] = [[]]
    taken = room = first + 4  # with the lines between them
    for heading, cells in columns.items():
        wide = max(map(len, [heading, *cells])) + 3
        if lines[-1] and taken + wide > width:
            lines.append([])
            taken = room
        lines[-1].append(heading)
        taken += wide
    return lines


def _columns(
    reference: str, summary: Sequence[Mapping[str, Any]], steps: bool
) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Heading → what a row of the summary has there; ``steps`` where they differ."""
    timed = [row.get("latency") is not None for row in summary]

    def number(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: "" if row.get(key) is None else form.format(row[key])

    columns = {
        "accuracy": _score,
        "runs": number("n", "{}"),
        f"difference to {reference} (95%)": lambda row: _difference(row["paired"]),
    }
    if not all(timed):
        columns["density"] = number("density", "{:.1%}")
    if any(timed):
        columns |= {"latency": number("latency_ratio", "{:.2f}×"), "images/s": number("throughput", "{:,.0f}")}
    if steps:
        columns["steps"] = number("steps", "{:,.0f}")
    columns |= {"training cost": number("training_cost", "{:.2f}×")}
    columns["wall clock"] = number("train_ratio", "{:.2f}×")
    return columns | {"FLOPs": number("inference_ratio", "{:.2f}×"), "time": number("seconds", "{:.0f} s")}


def _score(row: Mapping[str, Any]) -> str:
    mean, std = row["mean"], row["std"]
    return "" if mean is None else f"{mean:.2%}" + (f" ± {100 * std:.2f}" if std is not None else "")


def _difference(paired: Mapping[str, Any] | None) -> str:
    if paired is None or paired["difference"] is None:
        return ""
    text = f"{100 * paired['difference']:+.2f}"
    if paired["ci_low"] is not None:
        text += f" [{100 * paired['ci_low']:+.2f}, {100 * paired['ci_high']:+.2f}]"
    return text


def _check_target(out: Path, recipe: Recipe) -> None:
    if not out.exists():
        rundir.check_target(out, resume=False)
        return
    rundir.check_holds(out, _OURS, "a comparison")
    rundir.check_same_recipe(out, recipe)


def _check_variant(out: Path, label: str, variant: Recipe) -> None:
    """Refuse to mix runs of a label that were made with other options, or matched in another way."""
    path = out / "recipes" / f"{label}.yaml"
    if not path.exists():
        return
    old = rundir.read_recipe(path)
    for key in differences(rundir.completed(old, variant), variant.resolved()):
        what = "--match" if key == "train.cost_steps" else f"{key} of {label}"
        raise UserError(f"{what} differs from the runs that {out} already holds: choose another --out")


@dataclass(frozen=True)
class Plan:
    """What is known before anything is written.

    Attributes:
        variants: the recipes of all labels, with their lengths
        table: of latencies, which all runs share; None if they need none, or name one
    """

    variants: dict[str, Recipe]
    table: LatencyTable | None = None


def _planned(
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
                method.timeline(example.total_steps)
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

    selected = recipe.pattern.parameters(example.model, example.example)
    check_weights(selected)
    counts = recipe.pattern.counts_of(selected)
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


def _job(out: Path, label: str, seed: int) -> Job:
    directory = out / "runs" / f"{label}-seed{seed}"
    words = ["train", str(out / "recipes" / f"{label}.yaml"), "--seed", str(seed), "--out", str(directory), "--trust"]
    if (directory / rundir.RECIPE).exists():
        words.append("--resume")
    return Job(
        name=directory.name,
        words=[*words, "--label", label, "--quiet", "--no-report"],
        directory=directory,
        log=out / "runs" / f"{directory.name}.log",
    )


def _give(table: LatencyTable, directory: Path) -> None:
    """Leave the table where a run takes it for its own."""
    if not (directory / rundir.LATENCY).exists() and not rundir.is_finished(directory):
        rundir.create(directory)
        table.save(directory / rundir.LATENCY)


def _slots(jobs: int | None, threads: int) -> list[dict[str, str]]:
    """The environment of each run that goes on at the same time: one GPU each, where there are any."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = jobs or gpus or max(1, cores // threads)
    if not gpus:
        return [{} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return [{"CUDA_VISIBLE_DEVICES": visible[i % len(visible)]} for i in range(count)]


def _gather(
    out: Path, labels: Sequence[str], seeds: Sequence[int], jobs: Mapping[str, Job]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The results of all finished runs, and for each of the others by its name a sentence."""
    runs: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for label in labels:
        for seed in seeds:
            name = f"{label}-seed{seed}"
            path = out / "runs" / name / rundir.RESULTS
            if not path.is_file():
                failures[name] = f"the run {name} failed: {jobs[name].last_words()}"
                continue
            try:
                run = result_of(path)
            except UserError as error:
                failures[name] = str(error)
                continue
            runs.append({**run, "run": f"runs/{name}"})
    return runs, failures
