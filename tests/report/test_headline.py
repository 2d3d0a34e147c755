"""The result in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regrow.report.headline import Headline, compose
from regrow.report.page import record
from regrow.report.runs import RunRecord
from regrow.training.records import MetricForm
from regrow.training.statistics import summarise


def run(label: str, seed: int, accuracy: float | None, **more: Any) -> RunRecord:
    method = label.split("-")[0]
    facts: dict[str, Any] = {"density": 1.0 if method == "dense" else 0.1, "training_cost": 0.32, "steps": 100}
    facts |= {"finished": True, "inference_flops": 13.0, "dense_flops": 100.0} | more
    return RunRecord(directory=Path(label), label=label, method=method, seed=seed, accuracy=accuracy, **facts)


def head(*runs: RunRecord) -> Headline:
    records = [record(r) for r in runs if r.finished]
    return compose(runs, records, summarise(records))


def three(label: str, *accuracies: float) -> list[RunRecord]:
    return [run(label, seed, accuracy) for seed, accuracy in enumerate(accuracies)]


def test_a_clear_win() -> None:
    result = head(
        *three("dense", 0.98, 0.982, 0.984), *three("rigl", 0.96, 0.962, 0.964), *three("iee", 0.97, 0.9722, 0.9738)
    )
    assert result.title == "IEE reaches 97.2% with 10% of the weights"
    assert result.lede == (
        "That is 1.0 points above RigL, the best rival (95% interval +0.9 to +1.1), "
        "1.0 points below dense training, for 0.32× the training FLOPs of a dense network."
    )
    tiles = [(tile.title, tile.value) for tile in result.tiles]
    assert tiles == [
        ("Accuracy, IEE", "97.2%"),
        ("Against RigL", "+1.0"),
        ("Against dense", "−1.0"),
        ("Weights kept", "10%"),
        ("Training cost", "0.32×"),
        ("Inference cost", "0.13×"),
    ]


def test_noise_is_called_noise() -> None:
    result = head(*three("rigl", 0.97, 0.95, 0.96), *three("iee", 0.96, 0.97, 0.965))
    assert "within the noise of 3 seeds" in result.lede


def test_the_rival_is_another_method_not_another_variant() -> None:
    result = head(run("iee", 0, 0.97), run("iee-h50", 0, 0.969), run("rigl", 0, 0.96))
    assert "1.0 points above RigL, the best rival (one seed: no interval)" in result.lede
    assert "above iee-h50" in head(run("iee", 0, 0.97), run("iee-h50", 0, 0.96)).lede


def test_a_rival_with_another_density_says_so() -> None:
    assert "above RigL with 20% of the weights, the" in head(run("iee", 0, 0.97), run("rigl", 1, 0.9, density=0.2)).lede


def test_one_run() -> None:
    result = head(run("iee", 0, 0.97))
    assert result.title == "IEE reaches 97.0% with 10% of the weights"
    assert result.lede == "It took 0.32× the training FLOPs of a dense network."


def test_dense_only() -> None:
    result = head(run("dense", 0, 0.97, training_cost=1.0, seconds=75.0))
    assert (result.title, result.lede) == ("Dense training reaches 97.0%", "")
    assert [tile.title for tile in result.tiles] == ["Accuracy, Dense", "Training cost", "Time"]


def test_without_accuracy() -> None:
    assert head(run("iee", 0, None)).title == "IEE with 10% of the weights: accuracy was not measured"
    assert head(run("iee", 0, None), run("rigl", 0, None)).title == "IEE and RigL: accuracy was not measured"


def test_validation_accuracy_stands_in_for_a_missing_test_accuracy() -> None:
    assert head(run("iee", 0, None, validation_accuracy=0.9)).title.startswith("IEE reaches 90.0%")


def test_unfinished() -> None:
    begun = run("iee", 0, None, finished=False, steps=40, metrics=(MetricForm(step=40, accuracy=0.5),))
    assert head(begun).title == "This run is unfinished"
    assert "IEE, 50.0% at step 40" in head(begun).lede
    assert head(begun, begun).title == "None of 2 runs is finished yet"
    assert head(begun, run("rigl", 0, 0.9)).lede.endswith("1 run is unfinished.")
    assert head(run("iee", 0, None, finished=False, steps=None)).tiles[0].value == "0"


def test_thin_networks_are_not_compared_with_sparse_ones():
    from regrow.report.headline import _of_one_kind

    sparse = [{"label": "iee"}, {"label": "rigl", "latency_ratio": None}, {"label": "channels", "latency_ratio": 0.6}]
    assert [s["label"] for s in _of_one_kind(sparse)] == ["iee", "rigl"]
    assert [s["label"] for s in _of_one_kind(sparse[2:])] == ["channels"]
    assert _of_one_kind([]) == []
