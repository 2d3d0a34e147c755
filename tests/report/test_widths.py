"""The page of runs that removed channels, and that pages of other runs do not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run
from test_page import Page

from regrow.report import headline, panels
from regrow.report import widths as channels
from regrow.report.page import record, write
from regrow.report.runs import read
from regrow.report.style import looks
from regrow.training.statistics import summarise

Make = Callable[..., Path]
WIDTHS = [
    {"group": "stem", "before": 16, "start": 8, "after": 16},
    {"group": "blocks.0.conv1", "before": 64, "start": 32, "after": 24},
]


def write_channels(directory: Path, method: str, seed: int, latency: float, **more: Any) -> Path:
    """A run with widths (but for dense) and its speed."""
    speed = {"latency": latency, "latency_predicted": 0.9 * latency, "dense_latency": 0.04, "latency_batch": 8}
    speed |= {"throughput": 8 / latency, "train_seconds": 10.0 if method == "dense" else 4.0}
    run = write_run(directory / f"{method}-{seed}", method, seed, 200, **(speed | more))
    if method != "dense":
        structure = json.loads((run / "structure.json").read_text())
        (run / "structure.json").write_text(json.dumps({**structure, "widths": WIDTHS}))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_channels(tmp_path, "dense", 0, 0.04),
        write_channels(tmp_path, "iee", 0, 0.01),
        write_channels(tmp_path, "iee", 1, 0.03),
        write_channels(tmp_path, "static", 0, 0.02),
    ]


def test_what_is_read(runs: list[Path]) -> None:
    run = read(runs[1:2]).runs[0]
    assert [(w.group, w.before, w.at_start, w.after) for w in run.widths][1] == ("blocks.0.conv1", 64, 32, 24)
    assert (run.latency, run.latency_predicted, run.dense_latency) == (0.01, 0.9 * 0.01, 0.04)
    assert (run.throughput, run.train_seconds) == (800.0, 4.0)
    assert read(runs[:1]).runs[0].widths == ()


def test_the_front() -> None:
    assert channels.pareto([(1, 5), (2, 4), (0.5, 3), (1, 2), (3, 6), (4, 6)]) == [(0.5, 3), (1, 5), (3, 6)]


def test_the_figures_hold_the_numbers(runs: list[Path]) -> None:
    groups = panels.group(read(runs).runs)
    drawn = {panel.key: panel.draw(groups) for panel in channels.panels_of(groups)}
    assert list(drawn) == ["tradeoff", "phases", "latency", "prediction", "widths", "curves", "iou", "survival"]
    figure = drawn["latency"].figure
    marks = [trace for trace in figure.data if trace.legendgroup == "iee"]
    assert marks[0].x == (0.25, 0.75)
    assert marks[1].x == (0.5,)
    assert figure.layout.xaxis.title.text == "Measured latency, × dense"
    figure = drawn["prediction"].figure
    [dots] = [trace for trace in figure.data if trace.legendgroup == "iee"]
    assert (dots.x, dots.y) == (pytest.approx((9.0, 27.0)), pytest.approx((10.0, 30.0)))
    assert "IEE: off by 10% on average" in drawn["prediction"].alt
    figure = drawn["widths"].figure
    assert figure.data[0].x == (16, 64)
    rings, dots = (trace for trace in figure.data if trace.legendgroup == "iee")
    assert (rings.x, dots.x) == ((8, 32), (16, 24))
    assert dots.customdata[1] == "IEE<br>blocks.0.conv1<br>32 of 64 channels at the start, 24 now"
    assert "IEE: 50% of all channels" in drawn["widths"].alt


def test_labels_are_escaped() -> None:
    label = "<b>"
    look = looks({label: "iee"})
    for figure in (
        channels.widths({"<i>": 8}, {label: {"<i>": (4, 2)}}, look),
        channels.predicted_and_measured({label: [(1, 2)]}, look),
    ):
        assert "<b>" not in figure.to_json().replace('"legendgroup":"<b>"', "")
        assert "<i>" not in figure.to_json()


def test_predictions_have_bars_where_the_table_says_how_far_it_may_be_off(tmp_path: Path) -> None:
    known = write_channels(tmp_path, "iee", 0, 0.01, latency_margin=0.002)
    unknown = write_channels(tmp_path, "iee", 1, 0.01, latency_margin=None)
    (panel,) = [p for p in channels.panels_of(panels.group(read([known, unknown]).runs)) if p.key == "prediction"]
    drawing = panel.draw(panels.group(read([known, unknown]).runs))
    assert list(drawing.figure.data[1].error_x.array) == [2.0, 0.0]
    assert "Bars are where nine of ten networks lie" in drawing.caption
    without = panel.draw(panels.group(read([unknown]).runs))
    assert without.figure.data[1].error_x.array is None
    assert "Bars" not in without.caption


def test_a_figure_without_a_neighbour_is_wide(tmp_path: Path) -> None:
    run = write_channels(tmp_path, "iee", 0, 0.01)
    groups = panels.group(read([run]).runs)
    shown = {panel.key: panel.wide for panel in channels.panels_of(groups)}
    assert (shown["prediction"], shown["widths"], "latency" in shown) == (True, True, False)


def test_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write(runs, tmp_path / "report.html"))
    assert {"plot-latency", "plot-prediction", "plot-widths"} <= page.plots().keys()
    assert "plot-layers" not in page.plots()
    columns = page.texts["th"][:10]
    assert columns == [
        "Method", "Accuracy", "Difference to Dense", "Seeds", "Latency", "Images/s", "Inference FLOPs",
        "Training FLOPs", "Training time", "Time per run",
    ]  # fmt: skip
    assert "at 0.50× the latency" in page.text("h1")
    assert "and 0.40× its training time" in page.text("p")


def test_the_headline(runs: list[Path]) -> None:
    records = [record(run) for run in read(runs).runs]
    found = headline.compose(read(runs).runs, records, summarise(records))
    assert found.title.endswith("at 0.50× the latency")
    assert ("Latency", "0.50×") in [(tile.title, tile.value) for tile in found.tiles]
    assert "Weights kept" not in [tile.title for tile in found.tiles]
    assert "above Static, the best rival (" in found.lede  # which is as fast


def test_pages_of_weights_have_their_panels(make_compare: Make, tmp_path: Path) -> None:
    groups = panels.group(read([make_compare(tmp_path / "c", ["dense", "iee"], [0])]).runs)
    assert channels.panels_of(groups) == list(panels.PANELS)
    assert "latency" not in record(groups[0].runs[0])


def test_damaged_widths_are_refused(runs: list[Path]) -> None:
    (runs[1] / "structure.json").write_text('{"widths": 3}')
    with pytest.raises(ValueError, match=r"structure\.json is damaged: widths should be a valid list"):
        read(runs[1:2])


# ---- what is shown where only some of the runs have it ----


def drawn(directories: list[Path]) -> dict[str, Any]:
    groups = panels.group(read(directories).runs)
    return {panel.key: panel.draw(groups) for panel in channels.panels_of(groups)}


@pytest.mark.parametrize("methods", [["iee"], ["static", "rigl"], ["dense", "static", "set"]])
def test_densities_of_layers_stay_beside_runs_of_channels(tmp_path: Path, methods: list[str]) -> None:
    sparse = [write_run(tmp_path / f"{m}-sparse", m, 0, 100, label=f"{m}-sparse") for m in methods]
    found = drawn([*sparse, write_channels(tmp_path, "iee", 0, 0.01)])
    labels = {trace.legendgroup for trace in found["layers"].figure.data}
    assert labels == {f"{m}-sparse" for m in methods if m != "dense"}
    assert "widths" in found


def test_no_empty_place_for_densities_where_no_run_has_them(tmp_path: Path) -> None:
    dense = write_run(tmp_path / "dense", "dense", 0, 100)
    assert "layers" not in drawn([dense, write_channels(tmp_path, "iee", 0, 0.01)])


def marks_of(drawing: Any, label: str) -> list[tuple[float, ...]]:
    return [trace.x for trace in drawing.figure.data if trace.legendgroup == label]


def test_a_dense_run_that_was_not_timed_is_what_others_were_timed_against(tmp_path: Path) -> None:
    thin = [write_channels(tmp_path, "iee", seed, 0.01) for seed in (0, 1)]
    dense = write_run(tmp_path / "plain", "dense", 0, 100)
    drawing = drawn([*thin, dense])["latency"]
    assert marks_of(drawing, "dense") == [(1.0,)]
    assert "Dense: 98" in drawing.alt
    assert "The dotted line is dense training." in drawing.caption
    assert not [shape for shape in drawing.figure.layout.shapes if shape.x0 == shape.x1 == 1.0]
    other = write_run(tmp_path / "larger", "dense", 0, 100, dense_flops=9e9, label="larger")
    assert marks_of(drawn([*thin, other])["latency"], "larger") == []


def test_a_dense_run_that_was_timed_stands_where_it_was_measured(tmp_path: Path) -> None:
    runs = [write_channels(tmp_path, "iee", 0, 0.01), write_channels(tmp_path, "dense", 0, 0.042)]
    assert marks_of(drawn(runs)["latency"], "dense") == [(pytest.approx(1.05),)]


def test_without_a_dense_run_its_latency_is_a_line(tmp_path: Path) -> None:
    drawing = drawn([write_channels(tmp_path, "iee", seed, 0.01) for seed in (0, 1)])["latency"]
    [line] = drawing.figure.layout.shapes
    assert (line.x0, line.x1) == (1.0, 1.0)
    assert drawing.figure.layout.xaxis.range[1] > 1.0
    assert "its accuracy is not known here" in drawing.caption


def test_dense_runs_alone_are_no_comparison_of_latency(tmp_path: Path) -> None:
    assert "latency" not in drawn([write_channels(tmp_path, "dense", seed, 0.04) for seed in (0, 1)])


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ({"iee": [(2.5, 3.4), (2.5, 4.8)]}, "What was measured is 1.64× the prediction for IEE."),
        ({"iee": [(10.0, 8.0)], "halp": [(10.0, 12.0)]}, "is 0.80× the prediction for IEE and 1.20× the pred"),
        ({"iee": [(10.0, 10.2)], "halp": [(10.0, 20.0)]}, "is 2.00× the prediction for HALP."),
    ],
)  # fmt: skip
def test_a_prediction_that_is_far_off_is_remarked_upon(points: dict[str, Any], said: str) -> None:
    remark = channels.off_prediction(points)
    assert said in remark
    assert "docs/latency.md" in remark


@pytest.mark.parametrize(
    "points", [{"iee": [(10.0, 11.4)]}, {"iee": [(10.0, 8.6), (10.0, 11.4)]}, {"iee": [(0.0, 1.0)]}]
)
def test_one_that_is_not_is_not(points: dict[str, Any]) -> None:
    assert channels.off_prediction(points) == ""


def test_the_remark_is_on_the_page(tmp_path: Path) -> None:
    run = write_channels(tmp_path, "iee", 0, 0.02, latency_predicted=0.01)
    page = Page(write([run], tmp_path / "report.html"))
    assert "What was measured is 2.00× the prediction for IEE." in page.text("p")


def test_weights_kept_and_latency_stand_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "rigl", "rigl", 0, 100), write_channels(tmp_path, "iee", 0, 0.01)]
    columns = Page(write(runs, tmp_path / "report.html")).texts["th"][:9]
    assert columns == [
        "Method", "Accuracy", "Difference to RigL", "Seeds", "Weights kept", "Latency", "Images/s", "Inference FLOPs",
        "Training FLOPs",
    ]  # fmt: skip
