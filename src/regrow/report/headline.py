"""The result in words: a headline, a sentence that puts it in proportion, and the tiles below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regrow.report import formats
from regrow.report.chance import Chance, chance_of
from regrow.report.outcome import Failure
from regrow.report.panels import judged
from regrow.report.runs import RunRecord
from regrow.training.measures import ACCURACY, measure_of
from regrow.training.statistics import Paired, accuracies, by_label, paired

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Tile:
    """One number: what it is, its value, and a note that puts it in proportion."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """Plain text, not yet escaped."""

    title: str
    lede: str
    tiles: tuple[Tile, ...]


def compose(
    runs: Sequence[RunRecord],
    records: Sequence[Mapping[str, Any]],
    summaries: Sequence[Summary],
    failures: Sequence[Failure] = (),
) -> Headline:
    """Say what came out. ``records`` and ``summaries`` are those of the finished runs (format of ``results.json``)."""
    note = _missing(runs, failures)
    if not summaries:
        return _without_results(failures, note) if failures else _unfinished(runs)
    ranked, sparse = _ranked(summaries)
    if not ranked:
        return _without_accuracy(summaries, note)
    judge = measure_of(summaries)
    dense = next((s for s in ranked if _is_dense(s)), None)
    best = sparse[0] if sparse else ranked[0]
    guessed = _no_better_than_chance(runs, ranked)
    if best["label"] in guessed:
        return _at_chance(best, dense, guessed, note)
    rival = _rival(best, sparse)
    versus = {s["label"]: _compare(records, best, s) for s in (rival, dense) if s is not None and s is not best}
    reached = formats.accuracy(best["mean"]) + ("" if judge == ACCURACY else f" {judge.name}")
    title = f"{_name(best)} reaches {reached}{_with_weights(best)}"
    parts = [_against_rival(best, rival, versus), _against_dense(dense, versus), _for_cost(best, dense)]
    lede = _sentence([part for part in parts if part])
    lede = " ".join(filter(None, (lede, _others_at_chance(guessed), note)))
    return Headline(title, lede, _tiles(best, rival, dense, versus))


def named(summaries: Sequence[Summary]) -> str | None:
    """The label that the headline is about; None where there is no summary."""
    ranked, sparse = _ranked(summaries)
    return next((str(s["label"]) for s in (*sparse, *ranked, *summaries)), None)


def _ranked(summaries: Sequence[Summary]) -> tuple[list[Summary], list[Summary]]:
    """Those with an accuracy, best first; and of them the sparse ones that compare."""
    ranked = sorted((s for s in summaries if s["mean"] is not None), key=lambda s: -s["mean"])
    return ranked, _of_one_kind([s for s in ranked if not _is_dense(s)])


def _missing(runs: Sequence[RunRecord], failures: Sequence[Failure]) -> str:
    """What is said of runs without results."""
    failed = {failure.directory for failure in failures}
    waiting = [run for run in runs if not run.finished and run.directory not in failed]
    counts = [(len(waiting), "unfinished"), (len(failed), "failed")]
    said = []
    for number, word in counts:
        if number:
            verb = "" if word == "failed" else "is " if number == 1 else "are "
            said.append(f"{formats.plural(number, 'run')} {verb}{word}.")
    return " ".join(said)


def _no_better_than_chance(runs: Sequence[RunRecord], summaries: Sequence[Summary]) -> dict[str, Chance]:
    """The labels whose accuracy guessing explains."""
    found = {s["label"]: chance_of([r for r in runs if r.finished and r.label == s["label"]]) for s in summaries}
    means = {s["label"]: s["mean"] for s in summaries}
    return {label: chance for label, chance in found.items() if chance is not None and chance.explains(means[label])}


def _others_at_chance(guessed: Mapping[str, Chance]) -> str:
    if not guessed:
        return ""
    names = formats.listing([formats.name(label) for label in guessed])
    return f"{names} {'has' if len(guessed) == 1 else 'have'} learnt nothing: no better than chance."


def _at_chance(best: Summary, dense: Summary | None, guessed: Mapping[str, Chance], note: str) -> Headline:
    """Nothing to praise, and no differences to compare."""
    chance = guessed[best["label"]]
    reached = formats.accuracy(best["mean"])
    title = f"{_name(best)} has learnt nothing: {reached} is no better than chance"
    lede = f"Guessing one of {chance.classes:,} classes is right in {formats.accuracy(chance.level)} of cases"
    if chance.images:
        lede += f", and with luck in {formats.accuracy(chance.most)} of {chance.images:,} test {chance.things}"
    lede += "."
    if dense is not None and dense is not best:
        other = "is no better" if dense["label"] in guessed else f"reaches {formats.accuracy(dense['mean'])}"
        lede += f" Dense training {other}."
    lede += " The training loss below shows whether it needs more steps or another learning rate."
    tiles = _tiles(best, None, None, {})
    first = Tile(tiles[0].title, reached, f"chance is {formats.accuracy(chance.level)}")
    return Headline(title, " ".join(filter(None, (lede, note))), (first, *tiles[1:]))


def _without_results(failures: Sequence[Failure], note: str) -> Headline:
    """Of a comparison without a single result."""
    number = len(failures)
    title = {1: "The only run failed", 2: "Both runs failed"}.get(number, f"All {number:,} runs failed")
    if "unfinished" in note:
        title = f"No run is finished, and {formats.plural(number, 'run')} failed"
    return Headline(
        title, f"There is no result to show. What {'it' if number == 1 else 'each'} said last is below.", ()
    )


def _of_one_kind(sparse: Sequence[Summary]) -> list[Summary]:
    """Networks without single weights do not compare with those without channels: the kind that has more entries."""
    thin = [s for s in sparse if s.get("latency_ratio") is not None]
    others = [s for s in sparse if s.get("latency_ratio") is None]
    return thin if len(thin) > len(others) else others


def _is_dense(summary: Summary) -> bool:
    return summary["method"] == "dense" or (summary["density"] is not None and summary["density"] > 0.9999)


def _rival(best: Summary, sparse: Sequence[Summary]) -> Summary | None:
    """The best of another method; where all are variants of one method, the best other variant."""
    others = [s for s in sparse if s is not best]
    return next((s for s in others if s["method"] != best["method"]), others[0] if others else None)


def _name(summary: Summary) -> str:
    name = formats.name(summary["label"])
    return "Dense training" if name == "Dense" else name


def _with_weights(summary: Summary) -> str:
    if not _is_dense(summary) and summary.get("latency_ratio") is not None:
        return f" at {formats.times(summary['latency_ratio'])} the latency"
    return (
        ""
        if _is_dense(summary) or summary["density"] is None
        else f" with {formats.share(summary['density'])} of the weights"
    )


def _compare(records: Sequence[Mapping[str, Any]], a: Summary, b: Summary) -> Paired:
    """Seed by seed where seeds are shared; otherwise the difference of the means, without an interval."""
    groups = by_label(records)
    result = paired(accuracies(groups[a["label"]]), accuracies(groups[b["label"]]))
    return result if result.n else Paired(a["mean"] - b["mean"], None, None, 0)


def interval(result: Paired) -> str:
    """``95% interval −0.2 to +1.0``, or nothing where there is none."""
    if result.ci_low is None:
        return ""
    return f"95% interval {formats.signed(result.ci_low)} to {formats.signed(result.ci_high)}"


def _against_rival(best: Summary, rival: Summary | None, versus: Mapping[str, Paired]) -> str:
    if rival is None:
        return ""
    result = versus[rival["label"]]
    ahead = result.difference or 0.0
    size = "density" if best.get("latency_ratio") is None else "latency_ratio"
    elsewhere = "" if _alike(best[size], rival.get(size)) else _with_weights(rival)
    gap = f"{formats.points(ahead)} {'above' if ahead >= 0 else 'below'}" if round(abs(ahead), 5) else "level with"
    remark = interval(result)
    if remark and not result.clear:
        remark += f": within the noise of {formats.plural(result.n, 'seed')}"
    elif not remark:
        remark = "one seed: no interval" if result.n == 1 else "no seeds in common: no interval"
    return f"{gap} {formats.name(rival['label'])}{elsewhere}, the best rival ({remark})"


def _alike(a: float | None, b: float | None) -> bool:
    return a is None or b is None or abs(a - b) <= 0.05 * max(a, b)


def _against_dense(dense: Summary | None, versus: Mapping[str, Paired]) -> str:
    if dense is None or dense["label"] not in versus:
        return ""
    gap = versus[dense["label"]].difference or 0.0
    if not round(abs(gap), 5):
        return "level with dense training"
    return f"{formats.points(gap)} {'above' if gap > 0 else 'below'} dense training"


def _for_cost(best: Summary, dense: Summary | None) -> str:
    cost = best["training_cost"]
    if cost is None or best is dense:
        return ""
    text = f"for {formats.times(cost)} the training FLOPs of a dense network"
    clock = best.get("train_ratio")
    return text if clock is None else f"{text} and {formats.times(clock)} its training time"


def _sentence(parts: Sequence[str]) -> str:
    if not parts:
        return ""
    if parts[0].startswith("for"):
        return f"It took {parts[0].removeprefix('for ')}."
    text = (
        parts[0]
        if len(parts) == 1
        else f"{', '.join(parts[:-1])}, {'' if parts[-1].startswith('for') else 'and '}{parts[-1]}"
    )
    return f"That is {text}."


def _tiles(
    best: Summary, rival: Summary | None, dense: Summary | None, versus: Mapping[str, Paired]
) -> tuple[Tile, ...]:
    spread = (
        f"± {best['std'] * 100:.1f} over {formats.plural(best['n'], 'seed')}" if best["std"] is not None else "one run"
    )
    tiles = [Tile(f"{measure_of([best]).title}, {formats.name(best['label'])}", formats.accuracy(best["mean"]), spread)]
    for other, word in ((rival, None), (dense, "dense")):
        if other is not None and other["label"] in versus:
            result = versus[other["label"]]
            title = f"Against {word or formats.name(other['label'])}"
            note = (
                f"points, {formats.signed(result.ci_low)} to {formats.signed(result.ci_high)}"
                if result.ci_low is not None
                else "points"
            )
            tiles.append(Tile(title, formats.signed(result.difference), note))
    if best is not dense and best.get("latency_ratio") is not None:
        tiles.append(Tile("Latency", formats.times(best["latency_ratio"]), "of dense, measured"))
    elif best is not dense:
        tiles.append(Tile("Weights kept", formats.share(best["density"]), "of all sparsified weights"))
    tiles.append(Tile("Training cost", formats.times(best["training_cost"]), "of dense FLOPs"))
    if best["inference_ratio"] is not None and best is not dense:
        tiles.append(Tile("Inference cost", formats.times(best["inference_ratio"]), "of dense FLOPs"))
    elif best["seconds"] is not None:
        tiles.append(Tile("Time", formats.seconds(best["seconds"]), "per run"))
    return tuple(tiles)


def _unfinished(runs: Sequence[RunRecord]) -> Headline:
    title = (
        "This run is unfinished" if len(runs) == 1 else f"None of {formats.plural(len(runs), 'run')} is finished yet"
    )
    known = [run for run in runs if run.last_accuracy is not None]
    best = max(known, key=lambda run: run.last_accuracy or 0.0, default=None)
    lede = "The curves show what has been logged so far."
    if best is not None:
        latest = f"{formats.accuracy(best.last_accuracy)} at step {formats.count(best.steps)}"
        lede += f" Latest {judged([best]).name}: {formats.name(best.label)}, {latest}."
    tiles = [Tile("Steps so far", formats.count(max((run.steps or 0 for run in runs), default=0)), "most of any run")]
    if best is not None:
        tiles.append(
            Tile(f"{judged([best]).title} so far", formats.accuracy(best.last_accuracy), formats.name(best.label))
        )
    return Headline(title, lede, tuple(tiles))


def _without_accuracy(summaries: Sequence[Summary], note: str) -> Headline:
    first = summaries[0]
    names = formats.listing([formats.name(s["label"]) for s in summaries[:4]]) + (
        " and others" if len(summaries) > 4 else ""
    )
    title = (
        f"{names}{_with_weights(first) if len(summaries) == 1 else ''}: {measure_of(summaries).name} was not measured"
    )
    tiles = (
        Tile("Weights kept", formats.share(first["density"]), formats.name(first["label"])),
        Tile("Training cost", formats.times(first["training_cost"]), "of dense FLOPs"),
    )
    return Headline(title, note, tiles)
