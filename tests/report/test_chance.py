"""What guessing explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrow.report.chance import Chance, chance_of
from regrow.report.headline import Headline, compose
from regrow.report.outcome import Builder, Facts
from regrow.report.page import record
from regrow.report.runs import RunRecord
from regrow.training.statistics import summarise


def run(label: str, seed: int, accuracy: float | None, classes: int | None = 10, images: int | None = 360) -> RunRecord:
    builder = Builder("digits-cnn", {}, classes, 1) if classes else None
    facts: dict[str, Any] = {"density": 1.0 if label == "dense" else 0.1, "training_cost": 0.32, "finished": True}
    return RunRecord(
        directory=Path(label), label=label, method=label, seed=seed, accuracy=accuracy,
        facts=Facts(builder=builder, test_images=images), **facts,
    )  # fmt: skip


def head(*runs: RunRecord) -> Headline:
    records = [record(one) for one in runs]
    return compose(runs, records, summarise(records))


@pytest.mark.parametrize(
    ("classes", "images", "most"),
    # the smallest k with P(X ≤ k) ≥ 0.99, X binomial: from tables
    [(10, 100, 18 / 100), (2, 20, 15 / 20), (4, 16, 8 / 16), (10, 10_000, 1070 / 10_000), (5, None, 0.2)],
)
def test_the_margin_is_binomial(classes: int, images: int | None, most: float) -> None:
    chance = Chance(classes, images)
    assert chance.most == pytest.approx(most)
    assert chance.explains(most)
    assert chance.explains(1 / classes)
    assert chance.explains(0.0)
    assert not chance.explains(most + 0.01)


def test_one_class_is_no_guess() -> None:
    assert not Chance(1, 100).explains(1.0)


def test_whose_chance() -> None:
    assert chance_of([run("iee", 0, 0.1), run("iee", 1, 0.1)]) == Chance(10, 360)
    assert chance_of([run("iee", 0, 0.1), run("iee", 1, 0.1, images=90)]) == Chance(10, 90)
    assert chance_of([run("iee", 0, None)]) == Chance(10, None)  # its accuracy is one of other images
    assert chance_of([run("iee", 0, 0.1), run("iee", 1, 0.1, classes=5)]) is None
    assert chance_of([run("iee", 0, 0.1, classes=None)]) is None
    assert chance_of([]) is None


@pytest.mark.parametrize(
    ("classes", "images", "accuracy", "percent"),
    [(12, 240, 0.083, "8.3%"), (10, 360, 0.128, "12.8%"), (2, 1000, 0.51, "51.0%"), (1000, 50_000, 0.001, "0.1%")],
)
def test_an_accuracy_at_chance_is_no_headline(classes: int, images: int, accuracy: float, percent: str) -> None:
    result = head(run("iee", 0, accuracy, classes, images))
    assert result.title == f"IEE has learnt nothing: {percent} is no better than chance"
    assert f"Guessing one of {classes:,} classes" in result.lede
    assert f"of {images:,} test images" in result.lede
    assert result.tiles[0].note.startswith("chance is ")


def test_no_difference_between_guesses_is_praised() -> None:
    result = head(run("iee", 0, 0.12), run("rigl", 0, 0.08), run("dense", 0, 0.97))
    assert "rival" not in result.lede
    assert "Dense training reaches 97.0%." in result.lede
    assert not [tile for tile in result.tiles if tile.title.startswith("Against")]
    assert "Dense training is no better." in head(run("iee", 0, 0.12), run("dense", 0, 0.1)).lede
    assert head(run("dense", 0, 0.1)).title.startswith("Dense training has learnt nothing")


def test_a_rival_at_chance_is_named() -> None:
    result = head(run("iee", 0, 0.9), run("rigl", 0, 0.1), run("set", 0, 0.09))
    assert result.title == "IEE reaches 90.0% with 10% of the weights"
    assert "RigL and SET have learnt nothing: no better than chance." in result.lede


@pytest.mark.parametrize("accuracy", [0.15, 0.5, 1.0])
def test_more_than_chance_is(accuracy: float) -> None:
    assert head(run("iee", 0, accuracy)).title.startswith("IEE reaches")


def test_of_runs_that_do_not_know_their_classes_nothing_is_said() -> None:
    assert head(run("iee", 0, 0.083, classes=None)).title == "IEE reaches 8.3% with 10% of the weights"
