"""Means, spreads and paired differences of runs: what ``results.json``, the tables and the report share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from regrow.training.cells import within
from regrow.training.measures import measure_of


class Paired(NamedTuple):
    """Mean of a − b over the seeds that both have, with its 95% confidence interval (Student t).

    Everything is in the unit of the inputs. ``difference`` is None without a shared seed; ``ci_low`` and ``ci_high``
    are None with fewer than two, as one pair says nothing about the spread.
    """

    difference: float | None
    ci_low: float | None
    ci_high: float | None
    n: int

    @property
    def clear(self) -> bool:
        """True if there is an interval and zero lies outside it."""
        return self.ci_low is not None and self.ci_high is not None and (self.ci_low > 0 or self.ci_high < 0)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two methods seed by seed: ``a`` and ``b`` map a seed to an accuracy (fractions, or any other unit)."""
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    n = len(differences)
    if n == 0:
        return Paired(None, None, None, 0)
    centre = fmean(differences)
    spread = sample_std(differences)
    if spread is None:
        return Paired(centre, None, None, 1)
    from scipy.special import stdtrit  # Student's t; scipy.stats takes a second to import

    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return Paired(centre, centre - half, centre + half, n)


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n − 1 in the denominator); None for fewer than two numbers."""
    return stdev(values) if len(values) > 1 else None


def label_of(run: Mapping[str, Any]) -> str:
    """The name a run is grouped under: its ``label``, or its ``method`` where it has none."""
    return str(run.get("label") or run["method"])


def by_label(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs grouped by label, in order of first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(label_of(run), []).append(run)
    return groups


def accuracies(runs: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Seed → accuracy (fraction) of the runs that have one."""
    return {int(run["seed"]): float(run["accuracy"]) for run in runs if run.get("accuracy") is not None}


def summarise(runs: Sequence[Mapping[str, Any]], reference: str | None = None) -> list[dict[str, Any]]:
    """One summary per label, in order of first appearance, in the format of ``results.json``.

    ``runs`` are the run objects of ``results.json``. Keys of a summary: ``label``, ``method``, ``mean`` and ``std`` of
    the accuracy, or of what ``metric`` names in its place (fractions; ``std`` is the sample standard deviation), ``n``
    (runs with an accuracy), the means of ``training_cost`` (× dense), ``density``, ``inference_flops``,
    ``dense_flops``, ``steps`` and ``seconds``,
    ``cost_steps`` (the steps of the dense training that costs are multiples of; None: those of the run itself),
    ``planned_seconds`` (of training steps, where runs were matched by time),
    ``inference_ratio`` (inference FLOPs × dense), and ``paired``: ``{"reference", "difference", "ci_low", "ci_high",
    "n"}`` against the label ``reference`` (default: the first one), or None for that label itself and where no
    seed is shared. Of detection there is also the mean of ``mAP50``. What is not known is None (``mean`` without
    accuracies, ``std`` and interval of a single run).

    Runs of a grid (``variant_of`` and ``cell``) have these in their summaries, too, and differences are against the
    first method in the same cell; where there is only one method, against its first cell.

    Where the speed of a run was measured, there are also the means of ``latency``, ``latency_predicted`` and
    ``dense_latency`` (seconds per batch), ``latency_ratio`` and ``predicted_ratio`` (× dense), ``throughput`` (images a
    second), ``train_seconds`` (wall clock spent in training steps) and ``train_ratio`` (the same × the dense runs of
    the comparison). Dense networks that were not timed are as fast as what others of their size were timed against.
    """
    groups = by_label(runs)
    if reference not in groups:
        reference = next(iter(groups), None)
    references = _references(groups, reference)
    rows = [_summary(label, members, references[label], groups) for label, members in groups.items()]
    if any(run.get("latency") is not None for run in runs):
        dense = _mean_of((run for run in runs if run["method"] == "dense"), "train_seconds")
        for row, members in zip(rows, groups.values(), strict=True):
            row |= _speed(members, dense)
            if row["method"] == "dense" and row["latency"] is None:
                row |= _speed_of_dense(row, runs)
    return rows


def _references(groups: Mapping[str, Sequence[Mapping[str, Any]]], first: str | None) -> dict[str, str | None]:
    """Label → the label that its difference is against."""
    of = {label: members[0].get("variant_of") for label, members in groups.items()}
    places = {label: members[0].get("place") for label, members in groups.items()}
    cells = {label: members[0].get("cell") or {} for label, members in groups.items()}
    sparse = {of[label] for label, members in groups.items() if members[0]["method"] != "dense"}
    if first is None or of[first] is None or len(sparse | {of[first]}) < 2:
        return dict.fromkeys(groups, first)
    own = [label for label in groups if of[label] == of[first]]
    return {
        label: next((one for one in own if places[one] == places[label] and within(cells[one], cells[label])), None)
        for label in groups
    }


def reference_of(summaries: Sequence[Mapping[str, Any]]) -> str:
    """What differences are against: a label, or the method of a grid that is in all cells."""
    against = {row["paired"]["reference"] for row in summaries if row["paired"] is not None}
    first = summaries[0]
    return str(first["variant_of"] if len(against) > 1 and "variant_of" in first else first["label"])


def _summary(
    label: str,
    members: Sequence[Mapping[str, Any]],
    reference: str | None,
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    own = accuracies(members)
    scores = [float(run["accuracy"]) for run in members if run.get("accuracy") is not None]
    inference, dense = _mean_of(members, "inference_flops"), _mean_of(members, "dense_flops")
    against = None
    if reference is not None and label != reference:
        result = paired(own, accuracies(groups[reference]))
        if result.n:
            against = {"reference": reference, **result._asdict()}
    grid = {key: members[0][key] for key in ("variant_of", "cell") if members[0].get(key) is not None}
    return {
        "label": label,
        "method": str(members[0]["method"]),
        **grid,
        **measure_of(members).entry,
        "mean": fmean(scores) if scores else None,
        "std": sample_std(scores),
        "n": len(scores),
        "training_cost": _mean_of(members, "training_cost"),
        "density": _mean_of(members, "density"),
        "inference_flops": inference,
        "dense_flops": dense,
        "inference_ratio": inference / dense if inference is not None and dense else None,
        **({"mAP50": at_half} if (at_half := _mean_of(members, "mAP50")) is not None else {}),
        "seconds": _mean_of(members, "seconds"),
        "steps": _mean_of(members, "steps"),
        "cost_steps": _mean_of(members, "cost_steps"),
        "planned_seconds": _mean_of(members, "planned_seconds"),
        "paired": against,
    }


def _speed(members: Sequence[Mapping[str, Any]], dense_seconds: float | None) -> dict[str, float | None]:
    means = {key: _mean_of(members, key) for key in ("latency", "latency_predicted", "dense_latency", "throughput")}
    seconds = _mean_of(members, "train_seconds")
    return {
        **means,
        "latency_ratio": _mean_ratio(members, "latency", "dense_latency"),
        "predicted_ratio": _mean_ratio(members, "latency_predicted", "dense_latency"),
        "train_seconds": seconds,
        "train_ratio": seconds / dense_seconds if seconds is not None and dense_seconds else None,
    }


def _speed_of_dense(row: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What dense networks of the same size were timed at, beside the others."""
    timed = [run for run in runs if run.get("latency") and run.get("dense_latency")]
    timed = [run for run in timed if run.get("dense_flops") == row["dense_flops"]]
    if not timed:
        return {}
    latency = fmean(float(run["dense_latency"]) for run in timed)
    found = {"latency": latency, "dense_latency": latency, "latency_ratio": 1.0}
    rates = [run["throughput"] * run["latency"] / run["dense_latency"] for run in timed if run.get("throughput")]
    return {**found, "throughput": fmean(rates)} if rates else found


def _mean_ratio(runs: Iterable[Mapping[str, Any]], key: str, other: str) -> float | None:
    values = [float(run[key]) / float(run[other]) for run in runs if run.get(key) is not None and run.get(other)]
    return fmean(values) if values else None


def _mean_of(runs: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [float(run[key]) for run in runs if run.get(key) is not None]
    return fmean(values) if values else None
