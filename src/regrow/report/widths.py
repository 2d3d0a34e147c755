"""What the page shows of runs that removed channels: widths, latency predicted and measured, accuracy for latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import plotly.graph_objects as go

from regrow.report import figures, formats
from regrow.report.figures import Points, escaped, shown
from regrow.report.panels import (
    PANELS,
    Drawing,
    Panel,
    RunGroup,
    dense_of,
    judged_in,
    look_of,
    score,
    several,
    spoken,
    spoken_accuracies,
)
from regrow.report.style import MUTED, Look, blank, heading, translucent

_LATENCY = "Measured latency, × dense"
_FAR = 0.15  # as a share of the predicted latency


def panels_of(groups: Sequence[RunGroup]) -> list[Panel]:
    """The panels of a page: where runs have widths or latencies, those that show them too, and densities of layers
    where other runs have them."""
    own = [panel for panel in _PANELS if panel.draw(groups) is not None]
    halves = [panel for panel in own if not panel.wide]
    if len(halves) == 1:  # it stands alone
        own = [replace(panel, wide=True) for panel in own]
    thin = any(panel.key == "widths" for panel in own)
    kept = [panel for panel in PANELS if panel.key != "layers" or not thin or panel.draw(groups) is not None]
    place = next(i for i, panel in enumerate(kept) if panel.key == "curves")
    return [*kept[:place], *own, *kept[place:]]


# ---- figures ----


def accuracy_against_latency(
    points: Mapping[str, Points],
    looks: Mapping[str, Look],
    dense: str | None = None,
    accuracy_name: str = "Accuracy",
) -> go.Figure:
    """As `figures.accuracy_against_cost`, with a line through the means that none of the others beats in both. Where no
    label is ``dense``, a line stands at the dense network's latency."""
    also = () if dense in points else (1.0,)
    figure = figures.accuracy_against_cost(points, looks, dense, _LATENCY, also, accuracy_name)
    front = pareto(list(figures.means_of(points).values()))
    line = {"color": translucent(MUTED, 0.6), "width": 1.5, "shape": "hv"}
    quiet = {"showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=[x for x, _ in front], y=[y for _, y in front], mode="lines", line=line, **quiet)
    if dense not in points:
        at = 0.0 if figure.layout.xaxis.type == "log" else 1.0
        figure.add_vline(x=at, line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    return figure


def pareto(points: Points) -> list[tuple[float, float]]:
    """The points that no other beats, by a lower x and at least as high a y or the other way round; by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def predicted_and_measured(
    points: Mapping[str, Points], looks: Mapping[str, Look], margins: Mapping[str, Sequence[float]] | None = None
) -> go.Figure:
    """A mark per run at (predicted, measured) latency in milliseconds, and the line on which both are equal.

    Args:
        margins: label → by how much each prediction may be off, shown as a bar; 0 where that is not known
    """
    figure = blank(400)
    most = max(value for found in points.values() for point in found for value in point) * 1.1
    equal = {"color": MUTED, "width": 1.5, "dash": "dot"}
    figure.add_scatter(x=[0, most], y=[0, most], mode="lines", line=equal, showlegend=False, hoverinfo="skip")
    for label, found in points.items():
        hover = "%{fullData.name}<br>%{x:.3g} ms predicted, %{y:.3g} ms measured<extra></extra>"
        mark = {"color": looks[label].color, "symbol": looks[label].symbol, "size": 11}
        figure.add_scatter(
            x=[x for x, _ in found], y=[y for _, y in found], mode="markers", marker=mark, name=shown(label),
            legendgroup=label, hovertemplate=hover, error_x=_bars((margins or {}).get(label, ()), looks[label]),
        )  # fmt: skip
    figure.update_xaxes(range=[0, most], nticks=7, title_text="Predicted, ms per batch")
    figure.update_yaxes(range=[0, most], nticks=7)
    heading(figure, "Measured, ms per batch")
    return figure


def _bars(margins: Sequence[float], look: Look) -> dict[str, object] | None:
    return {"array": list(margins), "color": look.color, "thickness": 1.5} if any(margins) else None


def widths(
    dense: Mapping[str, int], kept: Mapping[str, Mapping[str, tuple[float, float]]], looks: Mapping[str, Look]
) -> go.Figure:
    """Per group of channels (top to bottom) a bar of its dense width, and per label a ring at the width that it started
    with and a dot at the one that it has now.

    Args:
        dense: group → number of channels
        kept: label → group → channels at the start and now
    """
    names = list(dense)
    pitch = max(14, min(12 + 9 * len(kept), 1500 // len(names)))
    figure = blank(pitch * len(names) + 80, barmode="overlay", bargap=0.25)
    figure.add_bar(
        x=list(dense.values()), y=list(range(len(names))), orientation="h", showlegend=False,
        marker={"color": translucent(MUTED, 0.18), "line": {"width": 0}}, customdata=[escaped(name) for name in names],
        hovertemplate="%{customdata}<br>%{x:,} channels when dense<extra></extra>",
    )  # fmt: skip
    for i, (label, counts) in enumerate(kept.items()):
        shift = (i - (len(kept) - 1) / 2) * 0.6 / max(len(kept), 2)
        rows = [names.index(group) + shift for group in counts]
        color = looks[label].color
        ring = {"color": "rgba(0,0,0,0)", "size": 8, "line": {"color": color, "width": 1.5}}
        common = {"y": rows, "mode": "markers", "legendgroup": label}
        starts = [start for start, _ in counts.values()]
        figure.add_scatter(x=starts, marker=ring, showlegend=False, hoverinfo="skip", **common)
        said = [
            f"{shown(label)}<br>{escaped(group)}<br>"
            f"{start:,.4g} of {dense[group]:,} channels at the start, {now:,.4g} now"
            for group, (start, now) in counts.items()
        ]
        figure.add_scatter(
            x=[now for _, now in counts.values()], marker={"color": color, "size": 6}, name=shown(label),
            customdata=said, hovertemplate="%{customdata}<extra></extra>", **common,
        )  # fmt: skip
    short = [escaped(figures.cut(name, 26)) for name in names]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=short, tickfont={"size": 11.5}, showgrid=False,
                        range=[len(names) - 0.45, -0.55])  # fmt: skip
    figure.update_xaxes(side="top", range=[0, max(dense.values()) * 1.05], nticks=8, title_text="Channels")
    return figure


# ---- runs to drawings ----


def _tradeoff(groups: Sequence[RunGroup]) -> Drawing | None:
    points = {g.label: found for g in groups if (found := _at_latency(g, groups))}
    if sum(len(found) for found in points.values()) < 2 or all(g.dense for g in groups if g.label in points):
        return None
    dense, judge = dense_of(groups, points), judged_in(groups)
    caption = "Up and to the left is better; the line joins the means that no other beats in both."
    if several(groups):
        caption += " Large marks are means ± one standard deviation, faint marks single runs."
    if dense is None:
        caption += f" The dotted line is the dense network’s latency; its {judge.name} is not known here."
    else:
        caption += " The dotted line is dense training."
    figure = accuracy_against_latency(points, look_of(groups), dense, judge.title)
    alt = f"Scatter plot of {judge.name} against measured latency. {spoken_accuracies(points)}."
    return Drawing(figure, caption, alt)


def _at_latency(group: RunGroup, groups: Sequence[RunGroup]) -> list[tuple[float, float]]:
    """(latency × dense, accuracy) of each run that was timed, and of dense runs that were not: these are what others
    were timed against, if their networks are the same size."""
    timed = {run.dense_flops for g in groups for run in g.runs if run.dense_latency}
    points = []
    for run in group.runs:
        value = score(run)
        if value is None:
            continue
        if run.latency is not None and run.dense_latency:
            points.append((run.latency / run.dense_latency, value))
        elif group.dense and run.dense_flops in timed:
            points.append((1.0, value))
    return points


def _prediction(groups: Sequence[RunGroup]) -> Drawing | None:
    points: dict[str, list[tuple[float, float]]] = {}
    margins: dict[str, list[float]] = {}
    for g in groups:
        for run in g.runs:
            if run.latency is not None and run.latency_predicted is not None:
                points.setdefault(g.label, []).append((1e3 * run.latency_predicted, 1e3 * run.latency))
                margins.setdefault(g.label, []).append(1e3 * (run.latency_margin or 0.0))
    if not points:
        return None
    errors = {label: fmean([abs(x / y - 1) for x, y in found if y]) for label, found in points.items()}
    said = {label: f"off by {formats.share(error)} on average" for label, error in errors.items()}
    caption = "Below the dotted line, a network is faster than its latency table says; above it, slower."
    if any(any(found) for found in margins.values()):
        caption += " Bars are where nine of ten networks lie, by the table."
    figure = predicted_and_measured(points, look_of(groups), margins)
    alt = f"Scatter plot of measured against predicted latency. {spoken(said)}."
    return Drawing(figure, caption, alt, off_prediction(points))


def off_prediction(points: Mapping[str, Points]) -> str:
    """A remark on the labels whose measured latency is far from the predicted one, on average; nothing where none is.

    Args:
        points: label → (predicted, measured) milliseconds of each run
    """
    sums = {label: (sum(x for x, _ in found), sum(y for _, y in found)) for label, found in points.items()}
    far = {label: y / x for label, (x, y) in sums.items() if x > 0 and abs(y / x - 1) > _FAR}
    if not far:
        return ""
    said = formats.listing([f"{formats.times(ratio)} the prediction for {formats.name(k)}" for k, ratio in far.items()])
    return (
        f"What was measured is {said}. The prediction adds up layers that were timed one by one before training. It is "
        "off where the machine was busier at one of the two times, and in networks of a few milliseconds, where calls "
        "between the layers count as much as the layers. Measure again with little else running; docs/latency.md says "
        "how."
    )


def _widths(groups: Sequence[RunGroup]) -> Drawing | None:
    dense: dict[str, int] = {}
    kept: dict[str, dict[str, tuple[float, float]]] = {}
    for g in groups:
        found: dict[str, list[tuple[int, int]]] = {}
        for width in (width for run in g.runs for width in run.widths):
            dense.setdefault(width.group, width.before)
            found.setdefault(width.group, []).append((width.at_start, width.after))
        if found:
            kept[g.label] = {
                name: (fmean([a for a, _ in pairs]), fmean([b for _, b in pairs])) for name, pairs in found.items()
            }
    if not kept:
        return None
    total = sum(dense.values())
    said = {k: f"{formats.share(sum(now for _, now in v.values()) / total)} of all channels" for k, v in kept.items()}
    caption = "First group on top. The bar is the dense width, a ring the width at the start, a dot the width now"
    caption += " (means over seeds)." if several(groups) else "."
    figure = widths(dense, kept, look_of(groups))
    return Drawing(figure, caption, f"Bar and dot chart of the channels kept in each group. {spoken(said)}.")


_PANELS = (
    Panel("latency", "{measure} against latency", "", _tradeoff, wide=False),
    Panel("prediction", "Latency, predicted and measured", "", _prediction, wide=False),
    Panel("widths", "Channels per group", "", _widths),
)
