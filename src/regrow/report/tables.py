"""The tables of the page: the methods side by side, the sizes of their networks, all runs, and those that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from regrow.report import formats
from regrow.report.outcome import Facts, Failure
from regrow.report.panels import RunGroup, judged_in
from regrow.report.parts import Cell, Part, Table, method
from regrow.report.runs import RunRecord
from regrow.training.measures import measure_of
from regrow.training.statistics import reference_of

_Summary = Mapping[str, Any]


def summary(summaries: Sequence[_Summary], groups: Sequence[RunGroup]) -> Part | None:
    """A row for each method; None where there is none."""
    if not summaries:
        return None
    by_label = {g.label: g for g in groups}
    columns = _columns(summaries)
    rows = [[method(by_label[s["label"]]), *(cell(s) for cell in columns.values())] for s in summaries]
    content = Table(["Method", *columns], rows, "Summary of the methods")
    return Part("summary", "Summary", "table", content, _caption(summaries))


def _columns(summaries: Sequence[_Summary]) -> dict[str, Callable[[_Summary], str | Cell]]:
    """Heading → what a summary has there."""
    best = max((s["mean"] for s in summaries if s["mean"] is not None), default=None)
    speed = any(s.get("latency") is not None for s in summaries)
    thin_only = speed and all(s.get("latency") is not None for s in summaries)
    compared = len(summaries) > 1

    def accuracy(s: _Summary) -> Cell:
        spread = f"± {s['std'] * 100:.1f}" if s["std"] is not None else ""
        return Cell(formats.accuracy(s["mean"]), spread, strong=s["mean"] == best and compared)

    columns: dict[str, Callable[[_Summary], str | Cell]] = {measure_of(summaries).title: accuracy}
    if any(s.get("mAP50") is not None for s in summaries):
        columns["mAP50"] = lambda s: formats.accuracy(s.get("mAP50"))
    if compared:
        columns[f"Difference to {formats.name(reference_of(summaries))}"] = lambda s: _difference(s["paired"])
    columns["Seeds"] = lambda s: str(s["n"])
    if not thin_only:
        columns["Weights kept"] = lambda s: formats.share(s["density"])
    if speed:
        columns["Latency"] = lambda s: formats.times(s["latency_ratio"])
        columns["Images/s"] = lambda s: formats.count(s["throughput"])
    columns["Inference FLOPs"] = lambda s: formats.times(s["inference_ratio"])
    if _dense_steps(summaries) is not None:
        columns["Steps"] = lambda s: formats.count(s["steps"])
    columns["Training FLOPs"] = lambda s: formats.times(s["training_cost"])
    if _by_time(summaries):
        columns["Planned"] = lambda s: formats.seconds(s.get("planned_seconds"))
        columns["Trained"] = lambda s: formats.seconds(s.get("train_seconds"))
    if any(s.get("train_ratio") is not None for s in summaries):
        columns["Training time"] = lambda s: formats.times(s["train_ratio"])
    columns["Time per run"] = lambda s: formats.seconds(s["seconds"])
    return columns


def _dense_steps(summaries: Sequence[_Summary]) -> float | None:
    """The steps of the dense training that costs are multiples of, where runs were matched by cost."""
    return next((s["cost_steps"] for s in summaries if s["cost_steps"] is not None), None)


def _by_time(summaries: Sequence[_Summary]) -> bool:
    """Whether runs were matched by time."""
    return any(s.get("planned_seconds") is not None for s in summaries)


def _caption(summaries: Sequence[_Summary]) -> str:
    said = ["FLOPs are multiples of the dense network’s; a multiply-add counts as two."]
    if any(s.get("latency") is not None for s in summaries):
        said.append("So is latency, measured on the machine of the run.")
        if any(s.get("latency") is None for s in summaries):
            said.append(
                "It is only timed of thin networks: removed single weights make none faster on ordinary hardware."
            )
    if any(s.get("train_ratio") is not None for s in summaries):
        said.append("Training time, the wall clock of all steps, is a multiple of the dense runs’.")
    dense_steps = _dense_steps(summaries)
    if _by_time(summaries):
        said.append(
            "Matched by training time: planned from steps that were timed before, less what the training that a run "
            "starts from takes; trained is what its steps took."
        )
        said.append(f"1× in training FLOPs is dense training for {formats.count(dense_steps)} steps.")
    elif dense_steps is not None:
        said.append(f"Matched by training FLOPs: 1× is dense training for {formats.count(dense_steps)} steps.")
    if any(s["paired"] and s["paired"]["ci_low"] is not None for s in summaries):
        said.append("Differences are in points, paired by seed, with their 95% confidence interval.")
    elif len(summaries) > 1:
        said.append("Differences are in points.")
    return " ".join(said)


def _difference(result: Mapping[str, Any] | None) -> Cell:
    if result is None:
        return Cell(dim=formats.NOTHING)
    known = result["ci_low"] is not None
    interval = f"{formats.signed(result['ci_low'])} to {formats.signed(result['ci_high'])}" if known else ""
    return Cell(formats.signed(result["difference"]), interval)


def sizes(groups: Sequence[RunGroup]) -> Part | None:
    """How large the networks are, in parameters and in megabytes; None where no run says."""
    known = [(g, found) for g in groups if (found := [r.facts for r in g.runs if r.facts.parameters is not None])]
    if not known:
        return None
    rows: list[list[str | Cell]] = []
    for g, found in known:
        parameters, whole = _mean(found, "parameters"), _mean(found, "dense_parameters")
        share = formats.share(parameters / whole) if parameters is not None and whole else formats.NOTHING
        files = [formats.megabytes(_mean(found, key)) for key in ("bytes", "saved_bytes")]
        rows.append([method(g), Cell(formats.count(parameters), share), *files])
    caption = (
        "Parameters in use, and the file that holds them. torch.save writes zeros like any other number, so removed "
        "weights make its file no smaller; regrow.save leaves them out. Removed channels are missing from both."
    )
    dense = {(f.dense_parameters, f.dense_bytes) for _, found in known for f in found if f.dense_parameters}
    if len(dense) == 1 and not any(g.dense for g, _ in known):
        ((count, size),) = dense
        caption += f" Dense: {formats.count(count)} parameters, {formats.megabytes(size)}."
    content = Table(["Method", "Parameters", "torch.save", "regrow.save"], rows, "Sizes of the networks")
    return Part("sizes", "Size", "table", content, caption)


def _mean(facts: Sequence[Facts], key: str) -> float | None:
    values = [value for one in facts if (value := getattr(one, key)) is not None]
    return fmean(values) if values else None


def runs(groups: Sequence[RunGroup], failures: Sequence[Failure]) -> Part | None:
    """A row for each run; None where there is none."""
    if not groups:
        return None
    shown = [(g, run) for g in groups for run in g.runs]
    failed = {failure.directory for failure in failures}
    validated = any(run.validation_accuracy is not None for _, run in shown)
    exploring = any(run.explore_steps for _, run in shown)
    judge = judged_in(groups)
    columns = ["Method", "Seed", judge.title, *(["Validation"] if validated else []), "Weights kept", "Training FLOPs"]
    columns += ["Inference FLOPs", "Steps", *(["Exploring"] if exploring else []), "Time", "State"]
    rows: list[list[str | Cell]] = []
    for g, run in shown:
        ratio = run.inference_flops / run.dense_flops if run.inference_flops is not None and run.dense_flops else None
        numbers = [formats.accuracy(run.validation_accuracy)] if validated else []
        numbers += [formats.share(run.density), formats.times(run.training_cost), formats.times(ratio)]
        numbers += [formats.count(run.steps), *([formats.count(run.explore_steps)] if exploring else [])]
        numbers.append(formats.seconds(run.seconds))
        rows.append([method(g), str(run.seed), _accuracy(run), *numbers, _state(run, failed)])
    things = shown[0][1].facts.things if shown else "images"
    said = [f"Validation is the {judge.name} on {things} that were held out of training."] if validated else []
    said += ["Exploring: the steps that trained only what had been removed."] if exploring else []
    return Part("runs", "All runs", "table", Table(columns, rows, "All runs"), " ".join(said))


def _state(run: RunRecord, failed: set[Path]) -> str | Cell:
    if run.finished:
        return "done"
    return Cell("failed" if run.directory in failed else "unfinished", badge=True)


def _accuracy(run: RunRecord) -> str | Cell:
    if run.finished or run.last_accuracy is None:
        return formats.accuracy(run.accuracy)
    return Cell(dim=f"{formats.accuracy(run.last_accuracy)} so far")


def failures(found: Sequence[Failure]) -> Part | None:
    """What each run that failed said; None where none did."""
    if not found:
        return None
    said = [(one.name, one.reason.removeprefix(f"the run {one.name} failed: ")) for one in found]
    title = "The run that failed" if len(found) == 1 else "Runs that failed"
    return Part("failures", title, "list", said, "The same regrow compare command runs them again, and only them.")
