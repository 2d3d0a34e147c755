"""The figures: one function each, from plain data to a plotly Figure.

Common arguments: ``looks`` maps a label to its colour and symbol; labels are shown escaped, so they may hold anything.
Accuracies and densities are fractions, costs are multiples of dense training, steps are optimizer steps.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from regrow.report import formats
from regrow.report.captions import name_points
from regrow.report.style import CLEAR, MUTED, PHASES, Look, blank, heading, log_ticks, nice_range, template, translucent
from regrow.training.statistics import sample_std

Points = Sequence[tuple[float, float]]
_COST = "Training cost, × dense training"


@dataclass(frozen=True)
class Trace:
    """Something over time for one label: a line per run, and the mean over the runs."""

    runs: Sequence[Points]
    mean: Points


@dataclass(frozen=True)
class LayerChange:
    """The density of one layer at the start and now, and the layer's number of entries."""

    layer: str
    start: float
    now: float
    total: int


# ---- accuracy against cost ----


def accuracy_against_cost(
    points: Mapping[str, Points],
    looks: Mapping[str, Look],
    dense: str | None = None,
    axis: str = _COST,
    also: Sequence[float] = (),
    accuracy_name: str = "Accuracy",
) -> go.Figure:
    """One faint mark per run at (cost, accuracy), and the mean with ± one standard deviation.

    ``dense`` names the label whose mean accuracy becomes a reference line; ``axis`` says what the cost is, and is long
    enough for the costs in ``also`` too; ``accuracy_name`` what runs are judged by.
    """
    figure = blank(400)
    means = means_of(points)
    if dense in means:
        figure.add_hline(y=means[dense][1], line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    extent = [accuracy for runs in points.values() for _, accuracy in runs]
    for label, runs in points.items():
        look = looks[label]
        mark = {"color": look.color, "symbol": look.symbol}
        common = {"mode": "markers", "name": shown(label), "legendgroup": label, "cliponaxis": False}
        hover = "%{fullData.name}, WHAT<br>%{y:.1%} at %{x:.2f}× dense<extra></extra>"
        bars = None
        if len(runs) > 1:
            std = sample_std([accuracy for _, accuracy in runs]) or 0.0
            up, down = min(std, 1 - means[label][1]), min(std, means[label][1])  # there is nothing beyond 0 and 100%
            extent += [means[label][1] - down, means[label][1] + up]
            bars = {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down]}
            bars |= {"thickness": 1.6, "width": 5, "color": look.color}
            faint = {**mark, "size": 8, "opacity": 0.35}
            template = hover.replace("WHAT", "one run")
            figure.add_scatter(**_xy(runs), **common, marker=faint, showlegend=False, hovertemplate=template)
        strong = {**mark, "size": 13}
        template = hover.replace("WHAT", "mean" if bars else "one run")
        figure.add_scatter(**_xy([means[label]]), **common, marker=strong, error_y=bars, hovertemplate=template)
    figure.update_yaxes(tickformat=".1~%", range=nice_range(extent, pad=0.14), nticks=7)
    _cost_axis(figure, [*(cost for runs in points.values() for cost, _ in runs), *also], axis)
    name_points(figure, means, {label: shown(label) for label in means}, struck=dense)
    heading(figure, accuracy_name)
    return figure


def means_of(points: Mapping[str, Points]) -> dict[str, tuple[float, float]]:
    """Label → the mean of its points."""
    return {label: (fmean([x for x, _ in found]), fmean([y for _, y in found])) for label, found in points.items()}


def _cost_axis(figure: go.Figure, costs: Sequence[float], title: str) -> None:
    low, high = min(costs), max(costs)
    if low > 0 and high / low > 20:
        span = [math.log10(low) - 0.2, math.log10(high) + 0.3]
        ticks = log_ticks(10 ** span[0], 10 ** span[1], 6)
        names = [formats.times(tick) for tick in ticks]
        figure.update_xaxes(type="log", range=span, tickvals=ticks, ticktext=names, title_text=f"{title} (log scale)")
        return
    air = max((high - low) * 0.14, 0.05)
    figure.update_xaxes(ticksuffix="×", range=[max(low - air, -0.02), high + air], nticks=8, title_text=title)


# ---- over time ----


def curves(
    accuracy: Mapping[str, Trace],
    loss: Mapping[str, Trace],
    density: Mapping[str, Trace],
    looks: Mapping[str, Look],
    bands: Mapping[str, Points] | None = None,
    accuracy_name: str = "Accuracy",
) -> go.Figure:
    """Accuracy, training loss and density against the step, one panel each; those without data are left out.

    ``bands`` gives, per label, the (first, last) step of every stretch to shade: where that label explored.
    """
    panels = [(accuracy_name, accuracy, 3.0), ("Training loss", loss, 2.0), ("Density", density, 1.2)]
    panels = [panel for panel in panels if panel[1]]
    shares = [share for _, _, share in panels]
    gap = min(0.11, 0.24 / len(panels))
    figure = make_subplots(rows=len(panels), shared_xaxes=True, row_heights=shares, vertical_spacing=gap)
    figure.update_layout(template=template(), height=round(105 * sum(shares)) + 60, autosize=True)
    keyed: set[str] = set()
    for row, (title, traces, _) in enumerate(panels, 1):
        hover = _hover(".3f" if title == "Training loss" else ".1%")
        for label, trace in traces.items():
            _lines(figure, label, trace, looks[label], hover, row=row, showlegend=label not in keyed)
        keyed |= set(traces)
        heading(figure, title, row)
        _curve_axis(figure, title, traces, row)
    _shade(figure, bands or {}, looks, len(panels))
    last = max(step for _, traces, _ in panels for trace in traces.values() for run in trace.runs for step, _ in run)
    figure.update_xaxes(range=[0, last * 1.005 or 1], tickformat=",", nticks=9, ticklabeloverflow="hide past div")
    figure.update_xaxes(title_text="Training step", row=len(panels))
    return figure


def _curve_axis(figure: go.Figure, title: str, traces: Mapping[str, Trace], row: int) -> None:
    drawn = [point for trace in traces.values() for point in trace.mean or [p for run in trace.runs for p in run]]
    values = [value for _, value in drawn]
    if title == "Density":
        figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=4, row=row)
    elif title == "Training loss":
        figure.update_yaxes(nticks=5, row=row)
        if min(values) > 0 and max(values) / min(values) > 30:
            ticks = log_ticks(min(values), max(values), 5)
            figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], row=row)
    else:
        # the first climb and a rare dip would take the room of the differences that matter: they leave the axis below
        settled = max(step for step, _ in drawn) / 5
        late = sorted(value for step, value in drawn if step >= settled)
        every = [value for trace in traces.values() for run in trace.runs for step, value in run if step >= settled]
        span = nice_range([*late[len(late) // 10 :], *(value for value in every if value > late[-1])])
        figure.update_yaxes(tickformat=".1~%", range=span, nticks=6, row=row)


def _shade(figure: go.Figure, bands: Mapping[str, Points], looks: Mapping[str, Look], rows: int) -> None:
    spans: dict[tuple[float, float], str] = {}
    for label, found in sorted(bands.items(), key=lambda item: -len(item[1])):
        for span in found[:200]:  # labels that share a timetable would only darken each other's shade
            spans.setdefault(span, label)
    plain = {"type": "rect", "y0": 0, "y1": 1, "layer": "below", "line": {"width": 0}}
    shapes = []
    for row in range(1, rows + 1):
        axes = {"xref": f"x{row}", "yref": f"y{row} domain"} if row > 1 else {"xref": "x", "yref": "y domain"}
        for (start, end), label in spans.items():
            fill = translucent(looks[label].color, 0.1)
            shapes.append({**plain, **axes, "x0": start, "x1": end, "fillcolor": fill})
    figure.update_layout(shapes=shapes)


def _lines(
    figure: go.Figure, label: str, trace: Trace, look: Look, hover: str, row: int | None = None, **options: Any
) -> None:
    """Thin lines for the runs under a strong one for their mean; a lone run is drawn as the strong line."""
    common: dict[str, Any] = {"name": shown(label), "legendgroup": label}
    if row is not None:
        common |= {"row": row, "col": 1}
    lone = len(trace.runs) == 1
    thin = {"color": translucent(look.color, 0.35), "width": 1}
    for run in () if lone else trace.runs:
        figure.add_scatter(**_xy(run), mode="lines", line=thin, showlegend=False, hoverinfo="skip", **common)
    points = trace.runs[0] if lone else trace.mean
    options.setdefault("mode", "lines+markers" if len(points) == 1 else "lines")
    strong = {"color": look.color, "width": 2.25}
    mark = {"color": look.color, "symbol": look.symbol, "size": 7}
    figure.add_scatter(**_xy(points), line=strong, marker=mark, hovertemplate=hover, **options, **common)


def structure_iou(traces: Mapping[str, Trace], looks: Mapping[str, Look]) -> go.Figure:
    """Intersection over union of the active structure with that of the update before, against the step."""
    return _over_updates(traces, looks, "Overlap with the last structure (IoU)", "~g", _hover(".3f"))


def survival(traces: Mapping[str, Trace], looks: Mapping[str, Look]) -> go.Figure:
    """Share of the weights grown by one update that the next update's pruning kept, against the step."""
    return _over_updates(traces, looks, "Grown weights kept at the next update", ".1~%", _hover(".1%"))


def _over_updates(
    traces: Mapping[str, Trace], looks: Mapping[str, Look], title: str, ticks: str, hover: str
) -> go.Figure:
    figure = blank(320)
    for label, trace in traces.items():
        few = max(len(run) for run in trace.runs) <= 25
        mode = "lines+markers" if few else "lines"
        _lines(figure, label, trace, looks[label], hover, mode=mode, cliponaxis=False)  # a mark at 1 stays whole
    values = [value for trace in traces.values() for run in trace.runs for _, value in run]
    figure.update_yaxes(tickformat=ticks, range=nice_range(values, pad=0.1), nticks=6)
    figure.update_xaxes(title_text="Training step", tickformat=",", nticks=6, rangemode="tozero")
    heading(figure, title)
    return figure


# ---- per layer ----


def layer_density(layers: Mapping[str, Sequence[LayerChange]], looks: Mapping[str, Look]) -> go.Figure:
    """Per layer (top to bottom) a ring at the starting density and a dot at the density now, per label."""
    names = list(dict.fromkeys(change.layer for changes in layers.values() for change in changes))
    pitch = max(14, min(12 + 9 * len(layers), 1500 // len(names)))  # a row holds a ring per label
    ring = max(6.0, min(10.0, 0.9 * pitch / len(layers)))
    figure = blank(pitch * len(names) + 80)
    positive = [v for changes in layers.values() for c in changes for v in (c.start, c.now) if v > 0] or [1.0]
    # a log axis cannot show 0: such a layer stands at the left edge, and its real density in the hover text
    floor = min(positive) / 1.6 if min(positive) < 0.05 else 0.0
    for i, (label, changes) in enumerate(layers.items()):
        shift = (i - (len(layers) - 1) / 2) * 0.72 / max(len(layers), 2)
        rows = [names.index(change.layer) + shift for change in changes]
        _dumbbells(figure, label, changes, rows, looks[label], ring, floor)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[escaped(cut(name.removesuffix(".weight"), 26)) for name in names],
        tickfont={"size": 11.5},
        range=[len(names) - 0.45, -0.55],
        showgrid=False,
    )
    _density_axis(figure, floor, max(positive))
    if len(layers) > 1:
        rule = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "layer": "below"}
        faint = {"color": "rgba(128,140,150,0.16)", "width": 1}
        edges = [{**rule, "y0": i - 0.5, "y1": i - 0.5, "line": faint} for i in range(1, len(names))]
        figure.update_layout(shapes=edges)
    return figure


def _dumbbells(
    figure: go.Figure,
    label: str,
    changes: Sequence[LayerChange],
    rows: Sequence[float],
    look: Look,
    ring: float,
    floor: float,
) -> None:
    start, now = [max(c.start, floor) for c in changes], [max(c.now, floor) for c in changes]
    bars: dict[str, list[float | None]] = {"x": [], "y": []}
    for a, b, row in zip(start, now, rows, strict=True):
        bars["x"] += [a, b, None]
        bars["y"] += [row, row, None]
    quiet = {"legendgroup": label, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(**bars, mode="lines", line={"color": translucent(look.color, 0.5), "width": 2}, **quiet)
    hollow = {"color": CLEAR, "size": ring, "line": {"color": look.color, "width": 1.5}}
    figure.add_scatter(x=start, y=rows, mode="markers", marker=hollow, **quiet)
    dot = {"color": look.color, "size": 0.62 * ring, "symbol": "circle"}
    said = [_layer_hover(label, change) for change in changes]
    named = {"name": shown(label), "legendgroup": label, "hovertemplate": "%{customdata}<extra></extra>"}
    figure.add_scatter(x=now, y=rows, mode="markers", marker=dot, customdata=said, **named)


def _density_axis(figure: go.Figure, floor: float, top: float) -> None:
    title = "Density of the layer"
    figure.update_xaxes(side="top")
    if not floor:
        figure.update_xaxes(range=[0, top * 1.08], tickformat=".0%", nticks=8, title_text=title)
        return
    ticks = log_ticks(floor, 1.0, 6)
    span = [math.log10(floor * 0.85), math.log10(top * 1.25)]
    names = [formats.share(tick) for tick in ticks]
    figure.update_xaxes(type="log", range=span, tickvals=ticks, ticktext=names, title_text=f"{title} (log scale)")


def _layer_hover(label: str, change: LayerChange) -> str:
    kept = f"{formats.share(change.start)} at the start, {formats.share(change.now)} now"
    return f"{shown(label)}<br>{escaped(change.layer)}<br>{kept}<br>{formats.count(change.total)} entries"


# ---- cost by phase ----


def cost_by_phase(costs: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """A bar per label, × dense training, stacked by phase in the order of training."""
    phases = [phase for phase in PHASES if any(phase in cost for cost in costs.values())]
    phases += sorted({phase for cost in costs.values() for phase in cost} - set(phases))
    height = 62 * len(costs) + 90  # five bars are as tall as the neighbour on the page
    figure = blank(height, barmode="stack", bargap=0.5, margin={"t": 8})
    rows = list(range(len(costs)))  # not names: two long ones may be cut to the same text
    said = [shown(label) for label in costs]
    for phase in phases:
        figure.add_bar(
            x=[cost.get(phase, 0.0) for cost in costs.values()],
            y=rows,
            orientation="h",
            name=escaped(phase),
            legendgroup=phase,
            marker={"color": PHASES.get(phase, MUTED), "line": {"width": 0}},
            customdata=said,
            hovertemplate="%{customdata}, %{fullData.name}<br>%{x:.3f}× dense<extra></extra>",
        )
    sums = [sum(cost.values()) for cost in costs.values()]
    for row, total in zip(rows, sums, strict=True):
        text = formats.times(total)
        figure.add_annotation(x=total, y=row, text=text, xanchor="left", xshift=4, showarrow=False)
    names = [escaped(cut(formats.name(label), 20)) for label in costs]
    figure.update_xaxes(range=[0, max(sums) * 1.18 or 1], ticksuffix="×", nticks=6, title_text=_COST)
    figure.update_yaxes(tickvals=rows, ticktext=names, range=[len(rows) - 0.5, -0.5], showgrid=False)
    return figure


# ---- shared ----


def escaped(text: str) -> str:
    return html.escape(text, quote=False)  # plotly reads its texts as HTML, but knows no &quot;


def shown(label: str) -> str:
    return escaped(formats.name(label))


def cut(text: str, longest: int) -> str:
    """Long texts without their middle: names of layers and variants often differ at the end."""
    head = longest // 2 - 3
    return text if len(text) <= longest else f"{text[:head]}…{text[-(longest - head - 1) :]}"


def _hover(number: str) -> str:
    return f"%{{fullData.name}}<br>%{{y:{number}}} at step %{{x:,}}<extra></extra>"


def _xy(points: Points) -> dict[str, list[float]]:
    return {"x": [_compact(x) for x, _ in points], "y": [_compact(y) for _, y in points]}


def _compact(number: float) -> float:
    """Eight digits: more than a screen can show, in half the bytes."""
    return float(f"{number:.8g}")
