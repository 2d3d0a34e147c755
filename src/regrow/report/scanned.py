"""The page about a scan: which layers can lose how much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from regrow import atomic
from regrow.report import formats
from regrow.report.figures import cut, escaped
from regrow.report.headline import Headline, Tile
from regrow.report.page import figure, page
from regrow.report.panels import Drawing, Panel
from regrow.report.parts import Part, Table
from regrow.report.style import MUTED, blank, heading
from regrow.sensitivity import LayerScan, Scan
from regrow.version import __version__

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CURVES = 8  # layers whose curves are drawn: more cannot be told apart
_COLOURS = ("#d55e00", "#0a7abf", "#009e73", "#c667a0", "#d99a00", "#9a5fc0", "#b3475f", "#6f7fd6")
# from nothing to a lot; opaque, so that plotly finds a legible colour for the numbers on any screen
_SCALE = [[0.0, "#dcefe6"], [0.35, "#f0cf86"], [0.7, "#d55e00"], [1.0, "#8a1c36"]]


def write(scan: Scan, out: Path) -> Path:
    """Writes the page of a scan to ``out``, at once or not at all; returns ``out``.

    Raises:
        OSError: if it cannot be written.
    """
    atomic.write_text(out, render(scan))
    return out


def render(scan: Scan) -> str:
    """The whole page as text, with everything that it needs in it."""
    parts = [
        figure(Panel("map", "What each costs by itself", "", lambda _: None), _map(scan), wide=True),
        figure(Panel("curves", "The most sensitive", "", lambda _: None), _curves(scan), wide=True),
        _table(scan),
    ]
    facts = [scan.model, f"{scan.pattern} by {scan.criterion}", formats.plural(scan.examples, "example")]
    return page(_headline(scan), parts, [fact for fact in facts if fact], __version__)


def increase(value: float) -> str:
    """A change of the loss: 0.123 → ``+0.123``; infinite where the loss was not finite."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "∞"


def unit_of(scan: Scan) -> str:
    """What is counted: weights, blocks or channels."""
    return scan.pattern if scan.pattern in ("blocks", "channels") else "weights"


def _headline(scan: Scan) -> Headline:
    ranked = _ranked(scan)
    middle = _middle(scan)
    least, most = ranked[-1], ranked[0]
    share = formats.share(scan.sparsities[middle])
    kind = "group" if scan.pattern == "channels" else "layer"
    title = f"{most.name} matters most of {formats.plural(len(scan.layers), kind)}"
    lede = (
        f"Without {share} of its {unit_of(scan)}, and nothing else removed or trained, {most.name} costs most "
        f"({increase(scan.increase(most)[middle])} of the loss) and {least.name} least "
        f"({increase(scan.increase(least)[middle])})."
    )
    norms = "re-estimated each time" if scan.recalibrated else "as they were"
    tiles = [Tile("loss of the whole network", f"{scan.loss:.3f}", f"{scan.batches:,} batches of held-out data")]
    if scan.accuracy is not None:
        tiles.append(Tile("its accuracy", formats.accuracy(scan.accuracy), formats.plural(scan.examples, "example")))
    tiles.append(Tile("ranked by", scan.criterion, f"statistics of batch norms {norms}"))
    return Headline(title, lede, tuple(tiles))


def _middle(scan: Scan) -> int:
    """The sparsity that layers are ranked at: the middle one, the higher of two."""
    return len(scan.sparsities) // 2


def _ranked(scan: Scan) -> list[LayerScan]:
    """The layers, the most sensitive first."""
    middle = _middle(scan)
    return sorted(scan.layers, key=lambda layer: -scan.increase(layer)[middle])


def _map(scan: Scan) -> Drawing:
    shown = [[max(0.0, value) for value in scan.increase(layer)] for layer in scan.layers]
    finite = [value for row in shown for value in row if math.isfinite(value)]
    top = max(finite, default=0.0) or 1.0
    names = [escaped(cut(layer.name.removesuffix(".weight"), 30)) for layer in scan.layers]
    drawn = blank(max(16, min(26, 1500 // len(names))) * len(names) + 90)
    columns = [f"{formats.share(share)} removed" for share in scan.sparsities]
    drawn.add_heatmap(
        # the root, as small changes matter most
        z=[[math.sqrt(min(value, top) / top) for value in row] for row in shown],
        x=list(range(len(columns))), y=list(range(len(names))), colorscale=_SCALE, zmin=0, zmax=1, showscale=False,
        xgap=2, ygap=2, customdata=[[_hover(scan, layer, i) for i in range(len(columns))] for layer in scan.layers],
        text=[[increase(value) for value in scan.increase(layer)] for layer in scan.layers], texttemplate="%{text}",
        textfont={"size": 11}, hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    drawn.update_xaxes(tickvals=list(range(len(columns))), ticktext=columns, side="top", showgrid=False)
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "tickfont": {"size": 11.5}}
    drawn.update_yaxes(**ticks, range=[len(names) - 0.5, -0.5], showgrid=False)
    caption = (
        "How much the loss grows when this much of the layer is removed at once, by itself; colours follow the root, "
        "so that small changes show. Layers as in the network, top to bottom."
    )
    spoken = "; ".join(f"{layer.name} {', '.join(map(increase, scan.increase(layer)))}" for layer in scan.layers)
    return Drawing(drawn, caption, f"Map of the loss's growth by layer and share removed. {spoken}.")


def _hover(scan: Scan, layer: LayerScan, i: int) -> str:
    lines = [
        escaped(layer.name),
        f"{layer.kept[i]:,} of {layer.units:,} {unit_of(scan)} kept",
        f"loss {layer.loss[i]:.4f} ({increase(scan.increase(layer)[i])})",
    ]
    if layer.accuracy:
        lines.append(f"accuracy {formats.accuracy(layer.accuracy[i])}")
    return "<br>".join(lines)


def _curves(scan: Scan) -> Drawing:
    drawn: go.Figure = blank(380)
    drawn.add_hline(y=0, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    ranked = _ranked(scan)[:_CURVES]
    for layer, colour in zip(ranked, _COLOURS, strict=False):
        values = [value if math.isfinite(value) else None for value in scan.increase(layer)]
        drawn.add_scatter(
            x=[0.0, *scan.sparsities], y=[0.0, *values], mode="lines+markers", legendgroup=layer.name,
            name=escaped(cut(layer.name.removesuffix(".weight"), 26)), marker={"color": colour, "size": 7},
            line={"color": colour, "width": 2},
            hovertemplate="%{fullData.name}<br>%{x:.0%} removed: %{y:+.3f}<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(tickformat=".0%", title_text=f"Share of the {unit_of(scan)} removed", range=[-0.02, 1.0])
    heading(drawn, "Growth of the loss")
    spoken = ", ".join(layer.name for layer in ranked)
    return Drawing(
        drawn, f"The {len(ranked)} that cost most at {formats.share(scan.sparsities[_middle(scan)])}.",
        f"Growth of the loss against the share removed, for {spoken}.",
    )  # fmt: skip


def _table(scan: Scan) -> Part:
    columns = ["group" if scan.pattern == "channels" else "layer", unit_of(scan)]
    columns += [f"{formats.share(share)} removed" for share in scan.sparsities]
    rows = [
        [layer.name, formats.count(layer.units), *(increase(value) for value in scan.increase(layer))]
        for layer in scan.layers
    ]
    caption = "Growth of the loss, by layer."
    return Part("table", "All numbers", "table", Table(columns, rows, "Growth of the loss by layer"), caption)
