"""Who ranks where, over the cells of a grid or several comparisons: a diagram of ranks, and the table behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from regrow.report import formats
from regrow.report.figures import escaped, shown
from regrow.report.panels import Drawing, RunGroup
from regrow.report.parts import Cell, Part, Table
from regrow.report.style import Look, blank, looks
from regrow.training.measures import ACCURACY, measure_of
from regrow.training.ranks import Ranking, dense_scores, method_of, ranking, scores_of

_ROW = 46  # pixels


def drawing(records: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """The diagram of ranks; None where there are fewer than two cells that all methods have, or fewer than two methods.

    Args:
        records: finished runs as in ``results.json``, with their ``place`` where they are of several comparisons
    """
    found = ranking(scores_of(records))
    if found is None:
        return None
    figure = diagram(found, looks({method_of(run): str(run["method"]) for run in records}))
    what = "comparisons" if _of_places(records) else "cells (combinations of the varied values)"
    caption = (
        f"Rank 1 is the highest mean {measure_of(records).name}; ties share their ranks. Large marks are means over "
        f"the {len(found.ranks)} {what} that all methods have, ± one standard deviation; rings are the ranks in each, "
        "larger where there are more."
    )
    said = "; ".join(f"{formats.name(method)}: {_mean(found, method)}" for method in found.mean)
    return Drawing(figure, caption, f"Dot chart of the mean rank of each method. {said}.")


def diagram(found: Ranking, looks: Mapping[str, Look]) -> go.Figure:
    """A row per method, the best on top: a ring at each of its ranks, a mark at their mean with its spread.

    Args:
        found: of `regrow.training.ranks.ranking`
        looks: method → its colour and symbol
    """
    figure = blank(_ROW * len(found.mean) + 70, margin={"t": 8, "r": 96})
    for row, method in enumerate(found.mean):
        cells: dict[float, list[str]] = {}
        for cell, ranks in found.ranks.items():
            cells.setdefault(ranks[method], []).append(cell)
        color = looks[method].color
        often = [8 + 16 * (len(inside) / len(found.ranks)) ** 0.5 for inside in cells.values()]
        said = [
            f"{shown(method)}<br>rank {rank:g} in {len(inside)} of {len(found.ranks)}<br>{_listed(inside)}"
            for rank, inside in cells.items()
        ]
        ring = {"size": often, "color": "rgba(0,0,0,0)", "line": {"color": color, "width": 1.3}, "opacity": 0.6}
        common = {"mode": "markers", "name": shown(method), "showlegend": False, "cliponaxis": False}
        figure.add_scatter(
            x=list(cells), y=[row] * len(cells), marker=ring, customdata=said,
            hovertemplate="%{customdata}<extra></extra>", **common,
        )  # fmt: skip
        mean, std = found.mean[method], found.std[method]
        bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 5, "color": color}
        bars |= {"array": [min(std, len(found.mean) - mean)], "arrayminus": [min(std, mean - 1)]}
        figure.add_scatter(
            x=[mean], y=[row], marker={"size": 13, "color": color, "symbol": looks[method].symbol}, error_x=bars,
            hovertemplate="%{fullData.name}, mean<br>rank %{x:.2f}<extra></extra>", **common,
        )  # fmt: skip
        figure.add_annotation(
            text=_mean(found, method), x=1, xref="paper", y=row, xanchor="left", xshift=14, showarrow=False,
            font={"size": 12.5},
        )  # fmt: skip
    most = len(found.mean)
    names = [escaped(formats.name(method)) for method in found.mean]
    figure.update_yaxes(tickvals=list(range(most)), ticktext=names, range=[most - 0.4, -0.6], showgrid=False)
    figure.update_xaxes(tickvals=list(range(1, most + 1)), range=[0.8, most + 0.2], title_text="Rank in a cell")
    return figure


def table(records: Sequence[Mapping[str, Any]], groups: Sequence[RunGroup]) -> Part | None:
    """Mean accuracies by cell and method, with their ranks; None where there is no diagram.

    Args:
        records: as for `drawing`
        groups: of the same runs, whose label of dense training heads its column
    """
    found = ranking(scores_of(records))
    if found is None:
        return None
    dense = dense_scores(records)
    methods = list(found.mean)
    rows: list[list[str | Cell]] = []
    for cell, scores in found.scores.items():
        ranks = found.ranks.get(cell, {})
        best = min(ranks.values(), default=None)
        row: list[str | Cell] = [cell]
        for method in methods:
            rank = ranks.get(method)
            text = formats.accuracy(scores.get(method))
            row.append(Cell(text, f"{rank:g}" if rank is not None else "", strong=rank is not None and rank == best))
        rows.append([*row, *([formats.accuracy(dense.get(cell))] if dense else [])])
    last = [Cell(f"{found.mean[method]:.2f}", f"± {found.std[method]:.2f}") for method in methods]
    rows.append(["Mean rank", *last, *([formats.NOTHING] if dense else [])])
    head = ["Comparison" if _of_places(records) else "Cell", *map(formats.name, methods), *(["Dense"] if dense else [])]
    judge = measure_of(records)
    what = "accuracies" if judge == ACCURACY else judge.name
    caption = f"Mean {what} over seeds, each with its rank among the methods."
    if len(found.ranks) < len(found.scores):
        caption += " Where a method is missing, nobody is ranked."
    caption += " Dense training is not ranked." if dense or any(g.dense for g in groups) else ""
    title = f"{judge.title} by cell"
    return Part("cells", title, "table", Table(head, rows, f"{title} and method"), caption)


def _of_places(records: Sequence[Mapping[str, Any]]) -> bool:
    return all(not run.get("cell") for run in records)


def _mean(found: Ranking, method: str) -> str:
    return f"{found.mean[method]:.2f} ± {found.std[method]:.2f}"


def _listed(cells: Sequence[str], most: int = 6) -> str:
    rest = len(cells) - most
    return "<br>".join([*map(escaped, cells[:most]), *([f"and {rest} more"] if rest > 0 else [])])
