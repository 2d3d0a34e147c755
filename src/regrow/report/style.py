"""How figures look: one colour and one symbol per label, and the plotly template that all figures share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

FONT = 'Inter, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif'
INK, MUTED, GRID = "#1d2328", "#7b8690", "rgba(128,140,150,0.22)"
CLEAR = "rgba(0,0,0,0)"

# Okabe and Ito's palette, which stays distinct under every common colour-vision deficiency, with the yellow replaced
# (it vanishes on white) and some of Tol's muted colours after it; all are legible on white and on near-black.
_BY_METHOD = {
    "iee": "#0a7abf",
    "rigl": "#d55e00",
    "set": "#009e73",
    "gmp": "#c667a0",
    "static": "#d99a00",
    "oneshot": "#4fafe0",
    "dense": "#7b8690",
    "halp": "#e0524d",
    "uniform": "#a08060",
}
_MORE = ("#9a5fc0", "#44aa99", "#b3475f", "#8a8f2a", "#6f7fd6", "#a3683a")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "hexagon")
_SYMBOL_BY_METHOD = dict(zip(("iee", "rigl", "set", "gmp", "static", "dense"), _SYMBOLS, strict=False))

# the phases of training, from "plain training" to "exploration": greys, and one accent for looking at what was removed,
# paler where that costs gradients only
DENSE_GRADIENTS = "dense gradients"
PHASES = {
    "estimate": "#a9b4bd",
    "improve": "#7f97aa",
    DENSE_GRADIENTS: "#eebb77",
    "explore": "#e08a1e",
    "fixed": "#566a7b",
}


@dataclass(frozen=True)
class Look:
    """What tells a label from the others in every figure."""

    color: str
    symbol: str


def looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """Label → look, for ``labels`` = label → method. The first label of a method gets the method's own look."""
    taken: set[str] = set()
    result: dict[str, Look] = {}
    for label, method in labels.items():
        color = _BY_METHOD.get(method)
        if color and color not in taken:
            result[label] = Look(color, _SYMBOL_BY_METHOD.get(method, "hexagon"))
            taken.add(color)
    methods_here = {_BY_METHOD.get(method) for method in labels.values()}
    free = [c for c in (*_MORE, *(v for v in _BY_METHOD.values() if v != _BY_METHOD["dense"])) if c not in methods_here]
    rest = [label for label in labels if label not in result]
    for i, label in enumerate(rest):
        result[label] = Look(free[i % len(free)], _SYMBOLS[(i % len(free) + i // len(free)) % len(_SYMBOLS)])
    return {label: result[label] for label in labels}


def translucent(color: str, alpha: float) -> str:
    """``#rrggbb`` as an rgba colour."""
    r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha:g})"


def template() -> go.layout.Template:
    """Transparent ground, quiet grid, margins that grow with the labels; the page recolours text for dark screens."""
    axis: dict[str, Any] = {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "",
        "ticklabelstandoff": 4,
        "tickfont": {"size": 12, "color": MUTED},
        "title": {"font": {"size": 12.5, "color": MUTED}, "standoff": 10},
        "fixedrange": False,
    }
    layout: dict[str, Any] = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 8, "r": 12, "t": 30, "b": 8},
        "hoverlabel": {"font": {"family": FONT, "size": 12.5}, "align": "left"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "dragmode": False,  # a finger that drags over a figure scrolls the page
        "hovermode": "closest",
        "xaxis": {**axis, "tickangle": 0},
        "yaxis": axis,
    }
    return go.layout.Template(layout=layout)


def blank(height: int, **layout: Any) -> go.Figure:
    """An empty figure in the house style."""
    return go.Figure(layout={"template": template(), "height": height, "autosize": True, **layout})


def heading(figure: go.Figure, text: str, row: int = 1) -> None:
    """Name a y axis above its top left corner, where it takes no width and needs no turned head."""
    axis = "y domain" if row == 1 else f"y{row} domain"
    style = {"size": 12.5, "color": MUTED}
    figure.add_annotation(
        text=text,
        xref="paper",
        yref=axis,
        x=0,
        y=1,
        xanchor="left",
        yanchor="bottom",
        yshift=6,
        showarrow=False,
        font=style,
    )


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5, 10, … between two positive numbers; only powers of ten where the others would be more than ``most``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for e in powers for m in (1, 2, 5) if low <= (tick := float(f"{m}e{e}")) <= high]
    whole = [tick for tick in ticks if math.log10(tick).is_integer()]
    return whole if len(ticks) > most and whole else ticks


def nice_range(values: Sequence[float], pad: float = 0.08, low: float = 0.0, high: float = 1.0) -> list[float]:
    """A range around fractions with some air, never beyond [low, high] and never narrower than 0.02."""
    bottom, top = max(min(values), low), min(max(values), high)
    air = max((top - bottom) * pad, (0.02 - (top - bottom)) / 2, 0.002)
    bottom, top = max(bottom - air, low), min(top + air, high)
    missing = max(0.02 - (top - bottom), 0.0)  # where one end is at its limit
    return [max(bottom - missing, low), min(top + missing, high)]
