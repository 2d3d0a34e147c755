"""Read run directories and compare directories into plain records, and refuse in one sentence what is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from regrow import regular, schema
from regrow.errors import UserError
from regrow.report.outcome import Facts, Failure, facts_of
from regrow.report.plain import whole
from regrow.training.records import LayerForm, MetricForm, RecordForm, ResultsForm, StructureForm, UpdateForm, WidthForm

_WAY_OUT = "restore it or delete it"
_SEED = re.compile(r"^seed:.*$", re.MULTILINE)
_FILES = ("results.json", "metrics.jsonl", "structure.json", "recipe.yaml")


@dataclass(frozen=True)
class RunRecord:
    """One run. ``finished`` means that it has results; an unfinished run has curves, and perhaps its structure.

    In a grid, ``variant_of`` is what its method is called there, and ``cell`` the values of the varied keys. ``place``
    names its comparison, where the page is of several that do not go together. ``metric`` says what ``accuracy`` is,
    where it is something else. ``recipe`` is the text of its own.
    """

    directory: Path
    label: str
    method: str
    seed: int
    finished: bool
    metric: str | None = None
    accuracy: float | None = None
    mAP50: float | None = None
    validation_accuracy: float | None = None
    density: float | None = None
    training_cost: float | None = None
    inference_flops: float | None = None
    dense_flops: float | None = None
    seconds: float | None = None
    latency: float | None = None
    latency_predicted: float | None = None
    latency_margin: float | None = None
    dense_latency: float | None = None
    throughput: float | None = None
    train_seconds: float | None = None
    steps: int | None = None
    explore_steps: int | None = None
    cost_steps: int | None = None
    planned_seconds: float | None = None
    variant_of: str | None = None
    cell: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    by_phase: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[MetricForm, ...] = ()
    layers: tuple[LayerForm, ...] = ()
    updates: tuple[UpdateForm, ...] = ()
    widths: tuple[WidthForm, ...] = ()
    facts: Facts = field(default_factory=Facts)
    recipe: str | None = None

    @property
    def last_accuracy(self) -> float | None:
        """The latest accuracy in the metrics."""
        return next((m.accuracy for m in reversed(self.metrics) if m.accuracy is not None), None)


@dataclass(frozen=True)
class RecipeText:
    """The text of a ``recipe.yaml``, and whose it is."""

    title: str
    text: str


@dataclass(frozen=True)
class Collection:
    """Everything a report shows."""

    runs: tuple[RunRecord, ...]
    recipes: tuple[RecipeText, ...]
    version: str | None = None
    failures: tuple[Failure, ...] = ()


def read(directories: Sequence[Path]) -> Collection:
    """Read run and compare directories, in the order given; a run that is in several of them is read once.

    Where two directories hold the same label and seed, or the same label with other recipes, the label of the later
    ones gets the directory's name.
    Raises UserError for no directory at all, one that holds no run, and files that are truncated or not regrow's.
    """
    unique = {directory.resolve(): directory for directory in map(Path, directories)}
    if not unique:
        raise UserError("there is nothing to report: give at least one run directory")
    runs: list[RunRecord] = []
    recipes: list[RecipeText] = []
    versions: list[str] = []
    failures: list[Failure] = []
    seen: set[tuple[Path, str, int]] = set()
    for directory in unique.values():
        found = _read_directory(directory)
        keys = {(run.directory.resolve(), run.label, run.seed): run for run in found.runs}
        runs += _distinct([run for key, run in keys.items() if key not in seen], runs, directory)
        seen |= keys.keys()
        recipes += [r for r in found.recipes if r.text not in {known.text for known in recipes}]
        versions += [found.version] if found.version and found.version not in versions else []
        failures += found.failures
    if len({run.place for run in runs}) == 1:
        runs = [replace(run, place="") for run in runs]
    return Collection(tuple(runs), tuple(recipes), ", ".join(versions) or None, tuple(failures))


def _read_directory(directory: Path) -> Collection:
    if not directory.is_dir():
        problem = "is a file, not a run directory" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {problem}; give a directory that `regrow train` or `regrow compare` wrote")
    # what begins with a dot is half of a copy, or none of ours
    children = sorted(p for p in directory.glob("runs/[!.]*") if p.is_dir() and _is_run(p))
    if not children and not _is_run(directory):
        raise UserError(
            f"{directory} holds no run (no results.json, no metrics.jsonl, no runs/); "
            "give a directory that `regrow train` or `regrow compare` wrote"
        )
    results = _results(directory / "results.json")
    failures = tuple(Failure(directory / "runs" / one.run.rpartition("/")[2], one.reason) for one in results.failures)
    if not children and not failures:
        return _read_run_directory(directory)
    parts = _parts(children, {failure.directory for failure in failures})
    order = {(_label(r), r.seed): i for i, r in enumerate(results.runs)}
    runs = _named_alike([run for part in parts for run in part.runs])
    runs = [run for run in runs if _is_of(run, results, directory)]
    failures = tuple(one for one in failures if one.directory not in {run.directory for run in runs if run.finished})
    grid = {(_label(r), r.seed): r for r in results.runs if r.variant_of is not None}
    runs = [
        replace(run, variant_of=of.variant_of, cell=of.cell) if (of := grid.get((run.label, run.seed))) else run
        for run in runs
    ]
    known = {(run.label, run.seed) for run in runs}
    runs += [_from_record(directory, r) for r in results.runs if (_label(r), r.seed) not in known]
    runs.sort(key=lambda run: order.get((run.label, run.seed), len(order)))
    own = _recipe_text(directory)
    recipes = (RecipeText(directory.name, own),) if own else tuple(r for part in parts for r in part.recipes)
    version = results.regrow or next((p.version for p in parts if p.version), None)
    return Collection(tuple(runs), recipes, version, failures)


def _parts(children: Sequence[Path], failed: set[Path]) -> list[Collection]:
    """What is in the runs of a comparison; those that cannot be read must be among its failures, which say why."""
    found = []
    for child in children:
        try:
            found.append(_read_run_directory(child))
        except UserError:
            if child not in failed:
                raise
    return found


def _named_alike(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Unfinished runs, which know their label from the name of their directory, get that of finished ones beside them,
    which in a grid is another."""
    known = {_stem(run): run.label for run in runs if run.finished}
    return [run if run.finished else replace(run, label=known.get(_stem(run), run.label)) for run in runs]


def _stem(run: RunRecord) -> str:
    """The name of the run's directory without its seed."""
    return run.directory.name.removesuffix(f"-seed{run.seed}")


def _is_of(run: RunRecord, results: ResultsForm, directory: Path) -> bool:
    """Whether a comparison's page shows a run: its results are of it, or cannot be, as it has not finished, or since.

    A later command may have compared fewer methods or seeds.
    """
    if not run.finished or not (results.runs or results.failures):
        return True
    for record in results.runs:
        if (_label(record), record.seed) == (run.label, run.seed):
            place = (record.model_extra or {}).get("run")
            return place is None or place == f"runs/{run.directory.name}"
    ended, told = (place / "results.json" for place in (run.directory, directory))
    return ended.stat().st_mtime_ns > told.stat().st_mtime_ns


def _is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _FILES)


def _read_run_directory(directory: Path) -> Collection:
    results = _results(directory / "results.json")
    path = directory / "structure.json"
    structure = schema.check(StructureForm, _object(path), path, _WAY_OUT)
    metrics = _metrics(directory / "metrics.jsonl")
    text = _recipe_text(directory)
    if len(results.runs) > 1:  # the results of a compare whose runs/ was not kept
        runs = [_from_record(directory, record) for record in results.runs]
    elif results.runs:
        runs = [_with_details(_from_record(directory, results.runs[0]), structure, metrics)]
    else:
        runs = [_with_details(_unfinished(directory, structure, text, metrics), structure, metrics)]
    runs = [replace(run, recipe=text) for run in runs] if len(runs) == 1 else runs
    return Collection(tuple(runs), (RecipeText(directory.name, text),) if text else (), results.regrow)


def _with_details(run: RunRecord, structure: StructureForm, metrics: tuple[MetricForm, ...]) -> RunRecord:
    return replace(
        run,
        metrics=metrics,
        layers=tuple(layer for layer in structure.layers if layer.total),
        updates=tuple(structure.history),
        widths=tuple(width for width in structure.widths if width.before),
        by_phase=run.by_phase or _phases(structure.training_cost),
    )


def _from_record(directory: Path, record: RecordForm) -> RunRecord:
    values = {key: getattr(record, key) for key in RecordForm.model_fields if key not in ("label", "by_phase")}
    return RunRecord(
        directory=directory,
        label=_label(record),
        finished=True,
        by_phase=_phases(record.by_phase),
        facts=facts_of(record.model_extra or {}, directory),
        **values,
    )


def _unfinished(
    directory: Path, structure: StructureForm, recipe: str | None, metrics: Sequence[MetricForm]
) -> RunRecord:
    """A run without results: named by its structure, its directory (LABEL-seedK) or its recipe, in this order."""
    named = re.fullmatch(r"(.+)-seed(\d+)", directory.name)
    settings = _settings(recipe)
    method = settings.get("method")
    if isinstance(method, Mapping):
        method = method.get("name") or str(method.get("class_path", "")).rpartition(".")[2].lower()
    method = method if isinstance(method, str) else None
    from regrow.training.own import label_of

    called = label_of(method) if method else directory.name
    label = structure.label or (named.group(1) if named else None) or called
    seeds = (structure.seed, int(named.group(2)) if named else None, settings.get("seed"))
    seed = next((whole(seed) for seed in seeds if whole(seed) is not None), None)
    latest = {key: _last(metrics, key) for key in ("density", "cost", "step")}
    return RunRecord(
        directory=directory,
        label=str(label),
        method=str(structure.method or method or label),
        seed=seed or 0,
        finished=False,
        metric=_last(metrics, "metric"),
        density=latest["density"],
        training_cost=latest["cost"],
        steps=whole(latest["step"]),
    )


def _last(metrics: Sequence[MetricForm], key: str) -> Any:
    return next((getattr(m, key) for m in reversed(metrics) if getattr(m, key) is not None), None)


def _settings(recipe: str | None) -> Mapping[str, Any]:
    from regrow.training.recipe_layers import parse_yaml

    try:
        settings = parse_yaml(recipe or "", "the recipe")
    except UserError:  # the recipe is shown as text anyway; here it only helps to name an unfinished run
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _distinct(found: Sequence[RunRecord], known: Sequence[RunRecord], directory: Path) -> list[RunRecord]:
    """The runs of one more directory, with labels that none of another method or recipe has, nor of the same seed.
    Where none is taken, they belong to the place of the first."""
    taken = {(run.label, run.seed) for run in known}
    first = {run.label: run for run in reversed(known)}
    if not any((run.label, run.seed) in taken or _differ(first.get(run.label, run), run) for run in found):
        place = known[0].place if known else directory.resolve().name
        return [replace(run, place=place) for run in found]
    labels = {run.label for run in known}
    suffix, number = directory.resolve().name, 2
    while any(f"{run.label} ({suffix})" in labels for run in found):
        suffix, number = f"{directory.resolve().name} {number}", number + 1
    renamed = [(run, f"{run.label} ({suffix})") for run in found]
    return [replace(run, label=label, variant_of=run.variant_of or run.label, place=suffix) for run, label in renamed]


def _differ(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs cannot be two seeds of the same: they have other methods, or recipes, as far as these are
    known."""
    return one.method != other.method or bool(
        one.recipe and other.recipe and _recipes_differ(_SEED.sub("", one.recipe), _SEED.sub("", other.recipe))
    )


@cache
def _recipes_differ(one: str, other: str) -> bool:
    from regrow.training import rundir
    from regrow.training.recipe import differences

    return one != other and any(differences(*(rundir.completed(_settings(text)) for text in (one, other))))


# ---- the files ----


def _text(path: Path) -> str | None:
    try:
        return regular.read_bytes(path).decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; it was not written by regrow") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _object(path: Path) -> Mapping[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    value = schema.parse_json(text, path, _WAY_OUT)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a regrow file: it holds a {type(value).__name__}, not an object")
    return value


def _results(path: Path) -> ResultsForm:
    value = _object(path)
    if not value:
        return ResultsForm(runs=[])
    if not isinstance(value.get("runs"), list):
        raise UserError(f'{path} is not a regrow file: it needs a list "runs"')
    return schema.check(ResultsForm, value, path, _WAY_OUT)


def _metrics(path: Path) -> tuple[MetricForm, ...]:
    lines = (_text(path) or "").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[MetricForm] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # a killed run leaves half a line
                break
            raise UserError(f"{path} is damaged: line {number} is not valid JSON; delete that line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} is not a regrow file: its line {number} is not an object")
        found = schema.check(MetricForm, row, f"line {number} of {path}", "delete that line")
        while rows and rows[-1].step > found.step:  # resumed from an earlier checkpoint: the new lines replace the old
            rows.pop()
        rows.append(found)
    return tuple(rows)


def _phases(costs: Mapping[str, float | None] | None) -> dict[str, float]:
    return {phase: cost for phase, cost in (costs or {}).items() if phase != "total" and cost is not None}


def _recipe_text(directory: Path) -> str | None:
    text = _text(directory / "recipe.yaml")
    return text.strip() or None if text else None


def _label(record: RecordForm) -> str:
    return record.label or record.method
