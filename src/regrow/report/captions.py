"""Write names beside marks where they do not collide with other marks, other names or the edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import plotly.graph_objects as go


class Side(NamedTuple):
    """A place for a name: its centre as fractions of the plot, its anchor, and its distance from the mark in pixels."""

    x: float
    y: float
    anchor: str
    dx: int
    dy: int


def name_points(
    figure: go.Figure,
    points: Mapping[str, tuple[float, float]],
    names: Mapping[str, str],
    struck: str | None = None,
    most: int = 8,
) -> None:
    """Write ``names[key]`` beside the mark at ``points[key]``, on the side with the fewest marks and names around.

    The figure's axis ranges must be set. ``struck`` is a point that a horizontal line goes through: its name stands
    above or below the line. More than ``most`` points are left to the legend.
    """
    if len(points) > most:
        return
    log = figure.layout.xaxis.type == "log"
    (x0, x1), (y0, y1) = figure.layout.xaxis.range, figure.layout.yaxis.range
    shown = {key: (math.log10(x) if log else x, y) for key, (x, y) in points.items()}
    place = {key: ((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for key, (x, y) in shown.items()}
    for key, own in place.items():
        wide = 0.022 * len(names[key]) + 0.03
        others = [at for other, at in place.items() if other != key]
        side = min(_sides(own, wide, key == struck), key=partial(_crowding, wide=wide, others=others))
        # the ends of a name are in the way as much as its middle
        place = {**place, **{f"{key}\0{i}": (side.x + i * wide / 3, side.y) for i in (-1, 0, 1)}}
        figure.add_annotation(
            text=names[key],
            x=shown[key][0],
            y=shown[key][1],
            xanchor=side.anchor,
            yanchor="middle",
            xshift=side.dx,
            yshift=side.dy,
            showarrow=False,
            font={"size": 12.5},
        )


def _sides(at: tuple[float, float], wide: float, struck: bool) -> list[Side]:
    x, y = at
    right, left = x + wide / 2 + 0.02, x - wide / 2 - 0.02
    if struck:
        heights = ((0.045, 11), (-0.045, -11))
        return [
            side
            for dy, px in heights
            for side in (Side(left, y + dy, "right", -9, px), Side(right, y + dy, "left", 9, px))
        ]
    beside = [Side(right, y, "left", 11, 0), Side(left, y, "right", -11, 0)]
    return [*beside, Side(x, y + 0.09, "center", 0, 24), Side(x, y - 0.09, "center", 0, -24)]


def _crowding(side: Side, wide: float, others: Sequence[tuple[float, float]]) -> float:
    outside = side.x + wide / 2 > 1 or side.x - wide / 2 < 0 or not 0 < side.y < 1
    near = sum(abs(x - side.x) < wide / 2 + 0.04 and abs(y - side.y) < 0.06 for x, y in others)
    return 2.0 * outside + near
