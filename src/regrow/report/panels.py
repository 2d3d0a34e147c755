"""What the page shows: the list of figures, and how runs become the plain data that each figure takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from regrow.report import figures, formats
from regrow.report.figures import LayerChange, Points, Trace
from regrow.report.runs import RunRecord
from regrow.report.style import DENSE_GRADIENTS, Look, looks
from regrow.training.measures import ACCURACY, Measure, measure_of
from regrow.training.records import MetricForm

if TYPE_CHECKING:
    import plotly.graph_objects as go

# so many points per run are drawn; of more logged lines, the means of equal stretches of steps
_MOST_POINTS = {"loss": 100, "density": 200, "accuracy": 400}


@dataclass(frozen=True)
class RunGroup:
    """All runs of one label."""

    label: str
    method: str
    look: Look
    runs: Sequence[RunRecord]

    @property
    def dense(self) -> bool:
        """True for the baseline that keeps every weight."""
        return self.method == "dense"


def group(runs: Iterable[RunRecord]) -> list[RunGroup]:
    """Runs by label, in order of first appearance, each with its look."""
    members: dict[str, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(run.label, []).append(run)
    look = looks({label: found[0].method for label, found in members.items()})
    return [RunGroup(label, found[0].method, look[label], found) for label, found in members.items()]


@dataclass(frozen=True)
class Drawing:
    """A figure, how to read it (one or two short sentences), what it shows for those who cannot see it, and what is odd
    about it, if anything."""

    figure: go.Figure
    caption: str
    alt: str
    remark: str = ""


@dataclass(frozen=True)
class Panel:
    """A place on the page: ``draw`` returns None where the runs hold nothing to draw, and ``empty`` then says why.
    ``{measure}`` in its title stands for what runs are judged by.

    Panels that are not ``wide`` stand two in a row.
    """

    key: str
    title: str
    empty: str
    draw: Callable[[Sequence[RunGroup]], Drawing | None]
    wide: bool = True


# ---- runs to data ----


def score(run: RunRecord) -> float | None:
    """The accuracy to show for a run: on the test set, or on the validation set where there is no other."""
    return run.accuracy if run.accuracy is not None else run.validation_accuracy


def judged(runs: Iterable[RunRecord]) -> Measure:
    """What the runs are judged by."""
    return measure_of({"metric": run.metric} for run in runs)


def judged_in(groups: Iterable[RunGroup]) -> Measure:
    """The same of groups."""
    return judged(run for g in groups for run in g.runs)


def series(run: RunRecord, key: str, split: str | None = None) -> list[tuple[float, float]]:
    """(step, value) of one metric, in the order logged; of the accuracies only those on ``split``."""
    rows = [(m.step, getattr(m, key)) for m in run.metrics if key != "accuracy" or m.split == split]
    return [(float(step), float(value)) for step, value in rows if value is not None]


def thinned(points: Points, width: float) -> Points:
    """The means of points over stretches of ``width`` steps; the points themselves where width is 0."""
    if not width:
        return points
    buckets: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        buckets.setdefault(math.floor(point[0] / width), []).append(point)
    return [(fmean([x for x, _ in inside]), fmean([y for _, y in inside])) for inside in buckets.values()]


def mean_line(lines: Sequence[Points], complete: Sequence[bool]) -> Points:
    """The mean over the complete runs (all, where none is) at the steps that all of them have.

    So the mean does not jump where an unfinished run stops.
    """
    whole = [dict(line) for line, done in zip(lines, complete, strict=True) if done]
    whole = whole or [dict(line) for line in lines]
    shared = set(whole[0]).intersection(*whole[1:]) if whole else set()
    return [(x, fmean([line[x] for line in whole])) for x in sorted(shared)]


def traces(
    groups: Sequence[RunGroup], points_of: Callable[[RunRecord], Points], most: int | None = None
) -> dict[str, Trace]:
    """A trace per label that has points; runs with more than ``most`` points are thinned, all by the same steps."""
    found = {g.label: [(points, run.finished) for run in g.runs if (points := points_of(run))] for g in groups}
    every = [points for members in found.values() for points, _ in members]
    width = 0.0
    if most and any(len(points) > most for points in every):
        width = (max(points[-1][0] for points in every) + 1) / most
    result = {}
    for label, members in found.items():
        lines = [thinned(points, width) for points, _ in members]
        if lines:
            result[label] = Trace(lines, mean_line(lines, [finished for _, finished in members]))
    return result


def explored(metrics: Sequence[MetricForm]) -> list[tuple[float, float]]:
    """The stretches of steps that were logged as exploration: a line speaks for the steps since the line before."""
    spans: list[tuple[float, float]] = []
    before = 0
    for row in metrics:
        if row.phase == "explore" and row.step > before:
            start = spans.pop()[0] if spans and spans[-1][1] == before else before
            spans.append((start, row.step))
        before = row.step
    return spans


def look_of(groups: Sequence[RunGroup]) -> dict[str, Look]:
    return {g.label: g.look for g in groups}


def spoken(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{formats.name(label)}: {value}" for label, value in values.items())


def spoken_accuracies(points: Mapping[str, Points]) -> str:
    """The mean accuracy of each label, and at which cost, from (cost, accuracy) of its runs."""
    means = figures.means_of(points)
    return spoken({label: f"{formats.accuracy(a)} at {formats.times(cost)}" for label, (cost, a) in means.items()})


def dense_of(groups: Iterable[RunGroup], points: Mapping[str, Points]) -> str | None:
    """The first label of dense training that has points."""
    return next((g.label for g in groups if g.dense and g.label in points), None)


def several(groups: Iterable[RunGroup]) -> bool:
    return any(len(g.runs) > 1 for g in groups)


# ---- one drawing per figure ----


def _tradeoff(groups: Sequence[RunGroup]) -> Drawing | None:
    points: dict[str, list[tuple[float, float]]] = {}
    for g in groups:
        found = [(run.training_cost, score(run)) for run in g.runs if run.finished]
        known = [(cost, value) for cost, value in found if cost is not None and value is not None]
        if known:
            points[g.label] = known
    if sum(len(found) for found in points.values()) < 2:
        return None
    dense = dense_of(groups, points)
    caption = "Up and to the left is better."
    if several(groups):
        caption += " Large marks are means ± one standard deviation, faint marks single runs."
    if dense is not None:
        caption += " The dotted line is dense training."
    judge = judged_in(groups)
    figure = figures.accuracy_against_cost(points, look_of(groups), dense, accuracy_name=judge.title)
    alt = f"Scatter plot of {judge.name} against training cost. {spoken_accuracies(points)}."
    return Drawing(figure, caption, alt)


def _phases(groups: Sequence[RunGroup]) -> Drawing | None:
    costs: dict[str, dict[str, float]] = {}
    for g in groups:
        found = [parts_of_cost(run) for run in g.runs if run.by_phase]
        names = dict.fromkeys(part for parts in found for part in parts)
        sums = {name: fmean([parts.get(name, 0.0) for parts in found]) for name in names}
        if any(value > 0 for value in sums.values()):
            costs[g.label] = {name: value for name, value in sums.items() if value > 0}
    if not costs:
        return None
    there = {name for parts in costs.values() for name in parts}
    caption = "Training FLOPs, as a multiple of those of dense training."
    caption += "".join(f" {said}" for name, said in _SAID_OF_PARTS.items() if name in there)
    said = {k: ", ".join(f"{part} {formats.times(v)}" for part, v in parts.items()) for k, parts in costs.items()}
    alt = f"Stacked bars of training cost by phase. {spoken(said)}."
    return Drawing(figures.cost_by_phase(costs), caption, alt)


_SAID_OF_PARTS = {
    DENSE_GRADIENTS: "Dense gradients: computed for what was removed, to preview it (IEE) or to choose growth (RigL).",
    "explore": "Explore: training what was removed.",
    "estimate": "Estimate: training while what is in use is scored.",
    "improve": "Improve: training on after pruning.",
    "fixed": "Fixed: training once updates have ended.",
}


def parts_of_cost(run: RunRecord) -> dict[str, float]:
    """The training cost by phase, without the gradients of removed weights, which are a part of their own."""
    apart = {phase: part for phase, part in run.facts.dense_gradients.items() if 0 < part <= run.by_phase.get(phase, 0)}
    parts = {phase: cost - apart.get(phase, 0.0) for phase, cost in run.by_phase.items()}
    return parts | ({DENSE_GRADIENTS: sum(apart.values())} if apart else {})


def _curves(groups: Sequence[RunGroup]) -> Drawing | None:
    splits = [m.split for g in groups for run in g.runs for m in run.metrics if m.accuracy is not None]
    split = max(dict.fromkeys(splits), key=splits.count, default=None)
    accuracy = traces(groups, lambda run: series(run, "accuracy", split), _MOST_POINTS["accuracy"])
    loss = traces(groups, lambda run: series(run, "loss"), _MOST_POINTS["loss"])
    if not accuracy and not loss:
        return None
    density = traces(groups, lambda run: series(run, "density"), _MOST_POINTS["density"])
    lines = [line for trace in density.values() for line in trace.runs]
    if not any(max(y for _, y in line) - line[-1][1] > 0.005 for line in lines):
        density = {}  # without a descent the line says nothing that the table does not
    bands = {g.label: max((explored(run.metrics) for run in g.runs), key=len) for g in groups}
    bands = {label: spans for label, spans in bands.items() if spans}
    caption = "Strong lines are means over seeds, thin lines single runs." if several(groups) else ""
    if bands:
        caption += " Shaded: exploration, with the active weights frozen; its loss is that of the reactivated network."
    judge = judged_in(groups)
    word = {"val": f"Validation {judge.name}", "test": f"Test {judge.name}"}.get(split or "", judge.title)
    last = {label: formats.accuracy((trace.mean or trace.runs[0])[-1][1]) for label, trace in accuracy.items()}
    shown = " and ".join(
        name for name, there in ((word[:1].lower() + word[1:], accuracy), ("training loss", loss)) if there
    )
    alt = f"Line chart of {shown} against the training step." + (f" Last values: {spoken(last)}." if last else "")
    figure = figures.curves(accuracy, loss, density, look_of(groups), bands, word)
    lowest = min((y for trace in accuracy.values() for run in trace.runs for _, y in run), default=1.0)
    if accuracy and lowest < figure.layout.yaxis.range[0]:
        low = "accuracies" if judge == ACCURACY else "values"
        caption += f" Low {low} fall below the axis."
    return Drawing(figure, caption.strip(), alt)


def _over_updates(
    key: str,
    draw: Callable[[Mapping[str, Trace], Mapping[str, Look]], go.Figure],
    what: str,
    caption: str,
) -> Callable[[Sequence[RunGroup]], Drawing | None]:
    def points_of(run: RunRecord) -> Points:
        values = [(float(u.step), getattr(u, key)) for u in run.updates]
        return [(step, value) for step, value in values if value is not None]

    def drawing(groups: Sequence[RunGroup]) -> Drawing | None:
        lines = traces(groups, points_of, 100)
        if not lines:
            return None
        ends = {label: trace.mean or trace.runs[0] for label, trace in lines.items()}
        said = {k: f"{line[0][1]:.2f} at first, {line[-1][1]:.2f} at last" for k, line in ends.items()}
        alt = f"Line chart of {what} against the training step. {spoken(said)}."
        return Drawing(draw(lines, look_of(groups)), caption, alt)

    return drawing


def _layers(groups: Sequence[RunGroup]) -> Drawing | None:
    changes: dict[str, list[LayerChange]] = {}
    for g in groups:
        by_name: dict[str, list[tuple[float, float, int]]] = {}
        for layer in (layer for run in g.runs if not run.widths for layer in run.layers):
            densities = (layer.at_start / layer.total, layer.active / layer.total, layer.total)
            by_name.setdefault(layer.name, []).append(densities)
        rows = [LayerChange(n, fmean([r[0] for r in v]), fmean([r[1] for r in v]), v[0][2]) for n, v in by_name.items()]
        if any(change.start < 1 or change.now < 1 for change in rows):
            changes[g.label] = rows
    if not changes:
        return None
    ends = {label: sorted(change.now for change in rows) for label, rows in changes.items()}
    said = {k: f"{len(v)} layers from {formats.share(v[0])} to {formats.share(v[-1])}" for k, v in ends.items()}
    caption = "First layer on top. A ring is the density at the start, a dot the density now"
    caption += " (means over seeds)." if several(groups) else "."
    figure = figures.layer_density(changes, look_of(groups))
    return Drawing(figure, caption, f"Dot chart of the density of each layer now. {spoken(said)}.")


PANELS: tuple[Panel, ...] = (
    Panel(
        "tradeoff",
        "{measure} against training cost",
        "Nothing to compare yet: fewer than two finished runs have an accuracy and a training cost.",
        _tradeoff,
        wide=False,
    ),
    Panel(
        "phases",
        "Where the training cost goes",
        "These runs have no record of their training cost.",
        _phases,
        wide=False,
    ),
    Panel(
        "curves",
        "Training curves",
        "No step has been logged.",
        _curves,
    ),
    Panel(
        "iou",
        "Does the structure settle?",
        "No updates: these runs keep one structure from start to end.",
        _over_updates(
            "iou",
            figures.structure_iou,
            "the overlap between the structures of successive updates",
            "Of what was in use before or after an update, the share in use both before and after. At 1 it changed "
            "nothing; a rising line is a structure that settles.",
        ),
        wide=False,
    ),
    Panel(
        "survival",
        "Was the growth worth it?",
        "No weights were grown by one update and judged by a later one.",
        _over_updates(
            "survival",
            figures.survival,
            "the share of grown weights kept at the next update",
            "Of the weights that an update grew, the share that the next pruning kept. Low: growth guessed wrong.",
        ),
        wide=False,
    ),
    Panel(
        "layers",
        "Density per layer",
        "No sparse layers: these runs keep every weight, or did not record their structure.",
        _layers,
    ),
)
