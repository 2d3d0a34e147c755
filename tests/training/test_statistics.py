"""Paired intervals and summaries, against hand numbers and SciPy."""

from __future__ import annotations

from typing import Any

import pytest

from regrow.training.statistics import Paired, paired, reference_of, sample_std, summarise


def test_paired_by_hand() -> None:
    # differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302652729911275, half width 4.302652729911275 / sqrt(3)
    result = paired({0: 11.0, 1: 22.0, 2: 33.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert result.difference == 2.0
    assert result.n == 3
    assert result.ci_low == pytest.approx(2 - 2.4841377118, abs=1e-9)
    assert result.ci_high == pytest.approx(2 + 2.4841377118, abs=1e-9)
    assert not result.clear


def test_differences_of_a_grid_stay_in_their_cell() -> None:
    runs = [
        {"method": of, "variant_of": of, "cell": cell, "label": label, "seed": 0, "accuracy": accuracy}
        for label, of, cell, accuracy in (
            ("iee 1", "iee", {"lr": 1}, 0.5), ("rigl 1", "rigl", {"lr": 1}, 0.25), ("iee 2", "iee", {"lr": 2}, 1.0),
            ("rigl 2", "rigl", {"lr": 2}, 0.5), ("dense", "dense", {}, 1.0),
        )
    ]  # fmt: skip
    rows = summarise(runs)
    paired = {row["label"]: row["paired"] and (row["paired"]["reference"], row["paired"]["difference"]) for row in rows}
    assert paired == {
        "iee 1": None, "rigl 1": ("iee 1", -0.25), "iee 2": None, "rigl 2": ("iee 2", -0.5), "dense": None,
    }  # fmt: skip
    assert reference_of(rows) == "iee"
    assert [(row["variant_of"], row["cell"]) for row in rows][:2] == [("iee", {"lr": 1}), ("rigl", {"lr": 1})]
    alone = summarise([run for run in runs if run["method"] != "rigl"])  # against the first cell
    assert [row["paired"] and row["paired"]["reference"] for row in alone] == [None, "iee 1", "iee 1"]
    assert reference_of(alone) == "iee 1"


def test_paired_against_scipy() -> None:
    from scipy.stats import ttest_rel

    a = {0: 0.912, 1: 0.907, 2: 0.921, 3: 0.915, 4: 0.918}
    b = {0: 0.905, 1: 0.903, 2: 0.911, 3: 0.909, 4: 0.908}
    result = paired(a, b)
    interval = ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
    assert result.ci_low == pytest.approx(interval.low, rel=1e-9)
    assert result.ci_high == pytest.approx(interval.high, rel=1e-9)
    assert result.clear


def test_paired_uses_shared_seeds_only() -> None:
    assert paired({0: 1.0, 7: 5.0}, {7: 3.0, 9: 0.0}) == Paired(2.0, None, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) == Paired(None, None, None, 0)


def test_equal_differences_have_an_interval_of_no_width() -> None:
    assert paired({0: 3.0, 1: 5.0}, {0: 2.0, 1: 4.0}) == Paired(1.0, 1.0, 1.0, 2)
    assert not paired({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).clear


def test_spread() -> None:
    assert sample_std([1.0, 3.0]) == pytest.approx(2**0.5)
    assert sample_std([1.0]) is None


def run(label: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    return {"method": label.split("-")[0], "label": label, "seed": seed, "accuracy": accuracy, **more}


def test_summarise() -> None:
    matched = {"steps": 30, "cost_steps": 60}
    runs = [
        run("iee", 0, 0.9, training_cost=0.3, density=0.1, inference_flops=20.0, dense_flops=100.0, seconds=10.0),
        run("iee-h50", 0, 0.8, **matched),
        run("iee", 1, 0.8, training_cost=0.5, density=0.1, inference_flops=30.0, dense_flops=100.0, seconds=12.0),
        run("iee-h50", 1, 0.72),
    ]
    first, second = summarise(runs)
    assert first == {
        "label": "iee",
        "method": "iee",
        "mean": pytest.approx(0.85),
        "std": pytest.approx(0.0707106781),
        "n": 2,
        "training_cost": pytest.approx(0.4),
        "density": 0.1,
        "inference_flops": 25.0,
        "dense_flops": 100.0,
        "inference_ratio": 0.25,
        "seconds": 11.0,
        "steps": None,
        "cost_steps": None,
        "planned_seconds": None,
        "paired": None,
    }
    assert (second["label"], second["method"], second["n"]) == ("iee-h50", "iee", 2)
    assert second["paired"]["reference"] == "iee"
    assert second["paired"]["difference"] == pytest.approx(-0.09)
    assert second["paired"]["n"] == 2
    assert (second["steps"], second["cost_steps"]) == (30, 60)
    assert second["training_cost"] is second["inference_ratio"] is second["density"] is None


def test_summarise_against_a_named_reference() -> None:
    runs = [run("iee", 0, 0.9), run("dense", 0, 0.95)]
    iee, dense = summarise(runs, reference="dense")
    assert iee["paired"]["difference"] == pytest.approx(-0.05)
    assert iee["paired"]["ci_low"] is None
    assert dense["paired"] is None


def test_summarise_without_accuracies_labels_or_runs() -> None:
    assert summarise([]) == []
    only = summarise([{"method": "rigl", "seed": 0, "accuracy": None}])
    assert [(s["label"], s["mean"], s["std"], s["n"], s["paired"]) for s in only] == [("rigl", None, None, 0, None)]


def test_speed_where_it_was_measured():
    base = {"seed": 0, "accuracy": 0.5}
    timed = {"dense_latency": 4.0, "latency_predicted": 1.0, "throughput": 8.0}
    runs = [
        {**base, **timed, "method": "iee", "latency": 1.0, "train_seconds": 30.0},
        {**base, **timed, "method": "iee", "seed": 1, "latency": 3.0, "train_seconds": 50.0},
        {**base, **timed, "method": "dense", "latency": 4.0, "train_seconds": 80.0},
    ]
    iee, dense = summarise(runs)
    assert (iee["latency"], iee["latency_ratio"], iee["predicted_ratio"], iee["throughput"]) == (2.0, 0.5, 0.25, 8.0)
    assert (iee["train_seconds"], iee["train_ratio"], dense["train_ratio"]) == (40.0, 0.5, 1.0)
    assert summarise(runs[:2])[0]["train_ratio"] is None
    assert "latency" not in summarise([{**base, "method": "iee"}])[0]


def test_dense_networks_are_as_fast_as_what_others_were_timed_against():
    timed = {"seed": 0, "accuracy": 0.5, "method": "iee", "dense_flops": 10, "latency": 1.0, "throughput": 8.0}
    runs = [
        {"seed": 0, "accuracy": 0.5, "method": "dense", "dense_flops": 10},
        {**timed, "dense_latency": 4.0},
        {**timed, "dense_latency": 2.0, "seed": 1},
        {"seed": 0, "accuracy": 0.5, "method": "rigl", "dense_flops": 10},
    ]
    dense, iee, rigl = summarise(runs)
    assert (dense["latency"], dense["latency_ratio"], dense["throughput"]) == (3.0, 1.0, 3.0)
    assert (iee["latency_ratio"], rigl["latency"]) == (0.375, None)
    dense, *_ = summarise([{**runs[0], "dense_flops": 11}, *runs[1:]])  # another network
    assert (dense["latency"], dense["latency_ratio"], dense["throughput"]) == (None, None, None)
