"""Ranks, against numbers by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regrow.training.ranks import dense_scores, entry, ranked, ranking, scores_of


def run(of: str, sparsity: float, accuracy: float | None, **more: Any) -> dict[str, Any]:
    cell = {"pattern.sparsity": sparsity}
    return {"method": of, "variant_of": of, "cell": cell, "label": f"{of}, {sparsity}", "accuracy": accuracy} | more


def test_ties_share_the_mean_of_their_ranks() -> None:
    assert ranked({"a": 0.1, "b": 0.3, "c": 0.3, "d": 0.3, "e": 0.9}) == {"a": 5, "b": 3, "c": 3, "d": 3, "e": 1}
    assert ranked({"a": 0.1 + 0.2, "b": 0.3}) == {"a": 1.5, "b": 1.5}  # equal but for the order of a sum
    assert ranked({}) == {}


def test_by_hand() -> None:
    found = ranking({
        "one": {"a": 0.9, "b": 0.8, "c": 0.7},  # 1 2 3
        "two": {"a": 0.9, "b": 0.9, "c": 0.7},  # 1.5 1.5 3
        "three": {"a": 0.7, "b": 0.9, "c": 0.8},  # 3 1 2
        "four": {"a": 0.9, "c": 0.95},  # not of all methods
    })  # fmt: skip
    assert found is not None
    assert found.ranks == {
        "one": {"a": 1, "b": 2, "c": 3}, "two": {"a": 1.5, "b": 1.5, "c": 3}, "three": {"a": 3, "b": 1, "c": 2},
    }  # fmt: skip
    assert list(found.mean.items()) == [("b", 1.5), ("a", pytest.approx(11 / 6)), ("c", pytest.approx(8 / 3))]
    # squared deviations of a: (5/6)^2 + (1/3)^2 + (7/6)^2 = 78/36, by two
    assert found.std == {"b": 0.5, "a": pytest.approx((39 / 36) ** 0.5), "c": pytest.approx((1 / 3) ** 0.5)}


@pytest.mark.parametrize(
    "scores",
    [{}, {"one": {"a": 1.0, "b": 0.5}}, {"one": {"a": 1.0}, "two": {"a": 0.5}}, {"one": {"a": 1.0}, "two": {"b": 1.0}}],
)
def test_one_cell_or_one_method_is_no_contest(scores: dict[str, dict[str, float]]) -> None:
    assert ranking(scores) is None


def test_of_runs() -> None:
    runs = [
        run("iee", 0.8, 0.7), run("iee", 0.8, 0.8), run("rigl", 0.8, 0.75), run("iee", 0.9, 0.5),
        run("rigl", 0.9, None),
        {"method": "dense", "variant_of": "dense", "cell": {}, "label": "dense", "accuracy": 0.95},
    ]  # fmt: skip
    expected = {"sparsity 0.8": {"iee": 0.75, "rigl": 0.75}, "sparsity 0.9": {"iee": 0.5}}
    assert scores_of(runs) == {cell: pytest.approx(found) for cell, found in expected.items()}
    assert dense_scores(runs) == {"sparsity 0.8": 0.95, "sparsity 0.9": 0.95}
    assert entry(runs) is None
    found = entry([*runs, run("rigl", 0.9, 0.75)])
    assert json.loads(json.dumps(found)) == {
        "cells": [
            {"name": "sparsity 0.8", "cell": {"pattern.sparsity": 0.8}, "means": {"iee": 0.75, "rigl": 0.75},
             "ranks": {"iee": 1.5, "rigl": 1.5}},
            {"name": "sparsity 0.9", "cell": {"pattern.sparsity": 0.9}, "means": {"iee": 0.5, "rigl": 0.75},
             "ranks": {"iee": 2.0, "rigl": 1.0}},
        ],
        "methods": [
            {"label": "rigl", "mean": 1.25, "std": pytest.approx(0.125**0.5), "n": 2},
            {"label": "iee", "mean": 1.75, "std": pytest.approx(0.125**0.5), "n": 2},
        ],
    }  # fmt: skip


def test_places_are_cells_and_have_their_own_dense_runs() -> None:
    runs = [
        {"method": method, "label": f"{method}{place}", "variant_of": method, "place": place, "accuracy": accuracy}
        for place, method, accuracy in (
            ("one", "dense", 0.9), ("one", "iee", 0.8), ("one", "rigl", 0.7), ("two", "iee", 0.5), ("two", "rigl", 0.6),
        )
    ]  # fmt: skip
    found = ranking(scores_of(runs))
    assert found is not None
    assert found.ranks == {"one": {"iee": 1, "rigl": 2}, "two": {"iee": 2, "rigl": 1}}
    assert dense_scores(runs) == {"one": 0.9}
