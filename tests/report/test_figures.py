"""The figures hold the numbers they are given."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from regrow.report import figures, panels
from regrow.report.figures import LayerChange, Trace
from regrow.report.runs import RunRecord
from regrow.report.style import log_ticks, looks, nice_range, translucent
from regrow.training.records import MetricForm

LOOKS = looks({"iee": "iee", "rigl": "rigl", "dense": "dense", "<b>": "iee"})


def named(figure, label: str):
    return [trace for trace in figure.data if trace.legendgroup == label]


def test_looks_are_stable_and_distinct() -> None:
    alone = looks({"iee": "iee"})
    assert alone["iee"] == LOOKS["iee"]
    labels = {m: m for m in ("iee", "rigl", "set", "gmp", "static", "oneshot", "dense")}
    labels |= {f"iee-{i}": "iee" for i in range(6)}
    assert len({look.color for look in looks(labels).values()}) == len(labels)
    many = looks({f"iee-{i}": "iee" for i in range(40)})
    assert len({(look.color, look.symbol) for look in many.values()}) == 40


def test_accuracy_against_cost() -> None:
    points = {"dense": [(1.0, 0.98)], "iee": [(0.3, 0.95), (0.3, 0.97)]}
    figure = figures.accuracy_against_cost(points, LOOKS, dense="dense")
    faint, strong = named(figure, "iee")
    assert (faint.x, faint.y, faint.showlegend) == ((0.3, 0.3), (0.95, 0.97), False)
    assert (strong.x, strong.y) == ((0.3,), (pytest.approx(0.96),))
    assert strong.error_y.array == (pytest.approx(0.0141421356),)
    assert figure.layout.shapes[0].y0 == 0.98
    assert [a.text for a in figure.layout.annotations] == ["Dense", "IEE", "Accuracy"]
    low, high = figure.layout.yaxis.range
    assert low < 0.945
    assert high > 0.98


def test_cost_axis_is_logarithmic_where_costs_differ_a_lot() -> None:
    figure = figures.accuracy_against_cost({"dense": [(1.0, 0.98)], "iee": [(0.01, 0.95)]}, LOOKS)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.ticktext == ("0.01×", "0.10×", "1.00×")


def test_curves_leave_out_empty_panels_and_shade_once() -> None:
    line = [(1.0, 0.5), (10.0, 0.9)]
    trace = {"iee": Trace([line, line], line), "<b>": Trace([line], line)}
    bands = {"<b>": [(2.0, 4.0)], "iee": [(2.0, 4.0), (6.0, 8.0)]}
    figure = figures.curves(trace, {}, {}, LOOKS, bands)
    assert [(s.x0, s.x1) for s in figure.layout.shapes] == [(2.0, 4.0), (6.0, 8.0)]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["IEE", "&lt;b&gt;"]
    both = figures.curves({}, trace, trace, LOOKS)
    assert [a.text for a in both.layout.annotations] == ["Training loss", "Density"]
    assert sum(bool(trace.showlegend) for trace in both.data) == 2


def test_layer_density_shows_a_layer_without_weights_at_the_edge() -> None:
    rows = [LayerChange("a.weight", 0.5, 0.4, 10), LayerChange("b.weight", 0.01, 0.0, 1000)]
    figure = figures.layer_density({"iee": rows}, LOOKS)
    _, start, now = named(figure, "iee")
    assert start.x == (0.5, 0.01)
    assert now.x == (0.4, 0.01 / 1.6)
    assert now.customdata[1] == "IEE<br>b.weight<br>1% at the start, 0% now<br>1,000 entries"
    assert figure.layout.yaxis.ticktext == ("a", "b")


def test_cost_by_phase_keeps_the_order_of_training() -> None:
    costs = {"iee": {"explore": 0.2, "fixed": 0.1, "estimate": 0.05}, "dense": {"fixed": 1.0}}
    figure = figures.cost_by_phase(costs)
    assert [(bar.name, bar.x) for bar in figure.data] == [
        ("estimate", (0.05, 0.0)),
        ("explore", (0.2, 0.0)),
        ("fixed", (0.1, 1.0)),
    ]
    assert [a.text for a in figure.layout.annotations] == ["0.35×", "1.00×"]
    heights = [figures.cost_by_phase({f"m{i}": {"fixed": 1.0} for i in range(n)}).layout.height for n in (1, 4, 12)]
    assert heights == [152, 338, 834]


def test_hostile_labels_are_escaped_in_every_text() -> None:
    label = '<a href="https://evil.example">x</a>'
    look = looks({label: "iee"})
    trace = {label: Trace([[(1.0, 0.5)]], [(1.0, 0.5)])}
    drawn = [
        figures.accuracy_against_cost({label: [(0.3, 0.9)]}, look),
        figures.curves(trace, trace, trace, look),
        figures.structure_iou(trace, look),
        figures.survival(trace, look),
        figures.layer_density({label: [LayerChange(label, 0.5, 0.5, 10)]}, look),
        figures.cost_by_phase({label: {label: 0.5}}),
    ]
    for figure in drawn:
        texts = [t.name for t in figure.data] + [a.text for a in figure.layout.annotations]
        texts += list(figure.layout.yaxis.ticktext or [])
        texts += [text for t in figure.data for text in (t.customdata if t.customdata is not None else [])]
        assert not any(text and "<a" in text for text in texts)


def test_mean_line_does_not_jump_where_a_run_stopped() -> None:
    whole, other, stopped = [(1.0, 2.0), (2.0, 4.0)], [(1.0, 4.0), (2.0, 8.0)], [(1.0, 100.0)]
    assert panels.mean_line([whole, other, stopped], [True, True, False]) == [(1.0, 3.0), (2.0, 6.0)]
    assert panels.mean_line([whole, stopped], [False, False]) == [(1.0, 51.0)]
    assert panels.mean_line([], []) == []


def test_thinned_keeps_the_mean() -> None:
    points = [(float(i), float(i)) for i in range(1, 9)]
    assert panels.thinned(points, 0.0) == points
    assert panels.thinned(points, 4.5) == [(2.5, 2.5), (6.5, 6.5)]


def test_explored_spans_are_the_steps_that_the_lines_speak_for() -> None:
    phases = ["estimate", "explore", "explore", "estimate", None, "explore"]
    metrics = [MetricForm(step=10 * i, phase=phase) for i, phase in enumerate(phases)]
    assert panels.explored(metrics) == [(0, 20), (40, 50)]
    doubled = [metrics[0], metrics[1], metrics[1], metrics[2], metrics[3]]  # a line for each split
    assert panels.explored(doubled) == [(0, 20)]
    assert panels.explored([]) == []


def test_curves_show_density_only_where_it_descends() -> None:
    def headings(densities: list[float]) -> list[str]:
        metrics = tuple(MetricForm(step=i, loss=1.0, density=d, accuracy=0.5) for i, d in enumerate(densities))
        run = RunRecord(Path("a"), "gmp", "gmp", 0, True, metrics=metrics)
        drawing = panels.PANELS[2].draw(panels.group([run]))
        return [a.text for a in drawing.figure.layout.annotations] if drawing else []

    assert headings([1.0, 0.5, 0.1]) == ["Accuracy", "Training loss", "Density"]
    assert headings([0.05, 0.035, 0.05]) == ["Accuracy", "Training loss"]  # IEE between pruning and growing
    assert headings([0.1, 0.1]) == ["Accuracy", "Training loss"]


def test_accuracy_axis_has_room_for_the_end_of_training() -> None:
    line = [(float(step), 0.1 if step == 50 else 0.98 + step / 10_000) for step in range(1, 101)]
    figure = figures.curves({"iee": Trace([line], line)}, {}, {}, LOOKS)
    low, high = figure.layout.yaxis.range
    assert 0.97 < low < 0.985
    assert 0.99 < high < 1.0


def test_a_name_avoids_other_marks_and_the_reference_line() -> None:
    points = {"dense": [(1.0, 0.98)], "iee": [(0.5, 0.95)], "rigl": [(0.52, 0.95)], "<b>": [(0.1, 0.9)]}
    figure = figures.accuracy_against_cost(points, LOOKS, dense="dense")
    dense, iee, rigl, _, _ = figure.layout.annotations
    assert (dense.text, dense.yshift) == ("Dense", 11)
    assert (iee.text, iee.xanchor, iee.yshift) == ("IEE", "center", 24)
    assert (rigl.text, rigl.xanchor, rigl.yshift) == ("RigL", "center", -24)


def test_axis_helpers() -> None:
    assert log_ticks(0.04, 1.0, 8) == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_ticks(0.0004, 1.0, 6) == [0.001, 0.01, 0.1, 1.0]
    assert nice_range([0.9, 0.9]) == pytest.approx([0.89, 0.91])
    assert nice_range([0.2, 0.7], pad=0.1) == pytest.approx([0.15, 0.75])
    assert translucent("#0a7abf", 0.5) == "rgba(10,122,191,0.5)"
    assert all(math.isfinite(tick) for tick in log_ticks(1e-12, 1e12, 5))


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0], [1.0], [0.001, 0.999], [0.998, 1.0], [0.0, 0.003], [0.083, 0.1]])
def test_no_axis_of_fractions_goes_beyond_them(values: list[float]) -> None:
    low, high = nice_range(values, pad=0.14)
    assert 0 <= low <= min(values)
    assert max(values) <= high <= 1
    assert high - low >= 0.02 - 1e-12


@pytest.mark.parametrize("accuracies", [[0.0, 0.02], [0.999, 0.9], [1.0, 1.0]])
def test_nor_does_a_standard_deviation(accuracies: list[float]) -> None:
    figure = figures.accuracy_against_cost({"iee": [(0.3, one) for one in accuracies]}, LOOKS)
    strong = named(figure, "iee")[1]
    assert strong.y[0] + strong.error_y.array[0] <= 1
    assert strong.y[0] - strong.error_y.arrayminus[0] >= 0
    low, high = figure.layout.yaxis.range
    assert 0 <= low < high <= 1


def test_the_accuracy_of_every_run_stays_below_the_top_of_its_axis() -> None:
    runs = [[(10.0, 0.1), (100.0, 0.1)], [(10.0, 0.1), (100.0, 0.3)]]
    trace = Trace(runs, [(10.0, 0.1), (100.0, 0.2)])
    figure = figures.curves({"iee": trace}, {}, {}, LOOKS)
    assert figure.layout.yaxis.range[1] > 0.3


def test_low_accuracies_below_the_axis_are_announced_where_there_are_any() -> None:
    def caption(values: list[float]) -> str:
        metrics = tuple(MetricForm(step=10 * i, accuracy=value, split="val") for i, value in enumerate(values, 1))
        run = RunRecord(directory=Path("x"), label="iee", method="iee", seed=0, finished=True, metrics=metrics)
        drawing = panels._curves(panels.group([run]))
        assert drawing is not None
        return drawing.caption

    assert "Low accuracies fall below the axis." in caption([0.1, *[0.9] * 40])
    assert caption([0.9] * 40) == ""
