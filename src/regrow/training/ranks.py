"""Ranks of methods over the cells of a grid, or over several comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from regrow.training.cells import cell_name, within
from regrow.training.statistics import label_of, sample_std

_DIGITS = 12  # accuracies that differ by less are the same but for the order of a sum


@dataclass(frozen=True)
class Ranking:
    """Who is how far ahead, and how often.

    Attributes:
        scores: cell → method → mean accuracy (a fraction), also of cells that some methods lack
        ranks: cell → method → rank, 1 for the highest accuracy; only of the cells that all methods have
        mean: method → mean of its ranks, the best first
        std: method → sample standard deviation of its ranks
    """

    scores: Mapping[str, Mapping[str, float]]
    ranks: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    std: Mapping[str, float]


def ranked(scores: Mapping[str, float]) -> dict[str, float]:
    """Method → rank by falling score; those with equal scores share the mean of the ranks that they take up.

    >>> ranked({"a": 0.5, "b": 0.9, "c": 0.5, "d": 0.1})
    {'a': 2.5, 'b': 1.0, 'c': 2.5, 'd': 4.0}
    """
    values = {method: round(score, _DIGITS) for method, score in scores.items()}
    above = {method: sum(other > value for other in values.values()) for method, value in values.items()}
    equal = {method: sum(other == value for other in values.values()) for method, value in values.items()}
    return {method: above[method] + (equal[method] + 1) / 2 for method in values}


def ranking(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Ranks over all cells that every method has; None where there are fewer than two of these, or of methods.

    Args:
        scores: cell → method → mean accuracy
    """
    methods = list(dict.fromkeys(method for cell in scores.values() for method in cell))
    ranks = {cell: ranked(found) for cell, found in scores.items() if len(found) == len(methods)}
    if len(methods) < 2 or len(ranks) < 2:
        return None
    own = {method: [cell[method] for cell in ranks.values()] for method in methods}
    mean = {method: fmean(found) for method, found in own.items()}
    order = sorted(methods, key=lambda method: mean[method])
    std = {method: sample_std(own[method]) or 0.0 for method in order}
    return Ranking(scores, ranks, {method: mean[method] for method in order}, std)


def scores_of(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Cell → method → mean accuracy, of runs as in ``results.json`` but for the dense ones, which are not ranked.

    Args:
        runs: with ``variant_of`` and ``cell``, and ``place`` where they are of several comparisons
    """
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run["method"] != "dense" and run.get("accuracy") is not None:
            members = found.setdefault(cell_of(run), {}).setdefault(method_of(run), [])
            members.append(float(run["accuracy"]))
    return {cell: {method: fmean(values) for method, values in members.items()} for cell, members in found.items()}


def dense_scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Cell → mean accuracy of the dense runs that belong to it: those of its place that have its values, as far as
    these matter to them."""
    known = [run for run in runs if run["method"] == "dense" and run.get("accuracy") is not None]
    found = {}
    for run in runs:
        own = [r["accuracy"] for r in known if _place(r) == _place(run) and within(r.get("cell") or {}, _values(run))]
        if own and run["method"] != "dense":
            found[cell_of(run)] = fmean(own)
    return found


def method_of(run: Mapping[str, Any]) -> str:
    """What a run's method is called in the comparison, whatever the cell."""
    return str(run.get("variant_of") or label_of(run))


def cell_of(run: Mapping[str, Any]) -> str:
    """What the cell of a run is called: its place, its values, or both."""
    return ", ".join(part for part in (_place(run), cell_name(_values(run))) if part)


def _place(run: Mapping[str, Any]) -> str:
    return str(run.get("place") or "")


def _values(run: Mapping[str, Any]) -> Mapping[str, Any]:
    return run.get("cell") or {}


def entry(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The ranks of a comparison as ``results.json`` has them; None where there is nothing to rank."""
    found = ranking(scores_of(runs))
    if found is None:
        return None
    cells = {cell_of(run): dict(_values(run)) for run in runs}
    return {
        "cells": [
            {"name": name, "cell": cells[name], "means": dict(means), "ranks": found.ranks.get(name)}
            for name, means in found.scores.items()
        ],
        "methods": [
            {"label": method, "mean": mean, "std": found.std[method], "n": len(found.ranks)}
            for method, mean in found.mean.items()
        ],
    }
