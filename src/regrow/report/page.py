"""Write the report: one HTML page that holds everything it needs and asks no network for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from regrow import atomic
from regrow.errors import UserError
from regrow.report import about, channels, formats, headline, panels, tables
from regrow.report.markup import Part, card, escape
from regrow.report.panels import Drawing, Group, Panel
from regrow.report.runs import Collection, Recipe, Run, read
from regrow.report.statistics import summarise

# nothing may be fetched, whatever a label or a script says
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def write(run_dirs: Sequence[Path], out: Path) -> Path:
    """Read run and compare directories and write the page to ``out`` (its folders are made); returns ``out``.

    The page is written at once or not at all. Raises UserError, in one sentence, for a directory that holds no run,
    for truncated or foreign files, and where ``out`` cannot be written. Unfinished runs are shown as such.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a directory; give the report a file name, for example {out / 'report.html'}")
    text = render(read([Path(directory) for directory in run_dirs]))
    try:
        atomic.write_text(out, text)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {out}: {error.strerror}; choose another place with --out"
        ) from None
    return out


def render(collection: Collection) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    runs = collection.runs
    records = [record(run) for run in runs if run.finished]
    summaries = summarise(records)
    head = headline.compose(runs, records, summaries, collection.failures)
    groups = panels.group(runs)
    assets = files("regrow.report") / "assets"
    body = [
        _top(head, collection, groups),
        tables.failures(collection.failures),
        tables.summary(summaries, groups) if summaries else "",
        *([_figures(groups), _beside(tables.sizes(groups), about.machine(runs, collection.version))] if runs else []),
        tables.runs(groups, collection.failures) if runs else "",
        about.loading(_shown(runs, summaries)),
        _recipes(collection.recipes),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(head.title)} · regrow report</title>
<style>
{(assets / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{"".join(body)}<script>{get_plotlyjs()}</script>
<script>
{(assets / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    return formats.printable(page)


def record(run: Run) -> dict[str, Any]:
    """A finished run as an entry of ``results.json``; its accuracy falls back to that on the validation set."""
    keys = ["label", "method", "seed", "density", "training_cost", "inference_flops", "dense_flops", "seconds"]
    keys += ["steps", "cost_steps"]
    if run.latency is not None:
        keys += ["latency", "latency_predicted", "dense_latency", "throughput", "train_seconds"]
    return {**{key: getattr(run, key) for key in keys}, "accuracy": panels.score(run)}


# ---- the parts of the page, from top to bottom ----


def _top(head: headline.Headline, collection: Collection, groups: Sequence[Group]) -> str:
    seeds = {run.seed for run in collection.runs}
    methods = formats.plural(len({g.method for g in groups}), "method")
    if len(groups) > len({g.method for g in groups}):
        methods = f"{formats.plural(len(groups), 'variant')} of {methods}"
    facts = [formats.plural(len(collection.runs), "run"), methods, formats.plural(len(seeds), "seed")]
    facts = facts if collection.runs else [formats.plural(len(collection.failures), "run")]
    steps = max((run.steps or 0 for run in collection.runs), default=0)
    facts += [f"{formats.count(steps)} steps"] if steps else []
    facts += [when] if (when := about.finished(collection.runs, "%Y-%m-%d")) else []
    tiles = "".join(_tile(tile) for tile in head.tiles)
    tiles = f'<dl class="tiles">\n{tiles}</dl>\n' if tiles else ""
    lede = f'<p class="lede">{escape(head.lede)}</p>\n' if head.lede else ""
    version = f" {collection.version}" if collection.version else ""
    return f"""<header>
<p class="brand">{_LOGO}<span>regrow{escape(version)}</span><span class="facts">{escape(" · ".join(facts))}</span></p>
<h1>{escape(head.title)}</h1>
{lede}{tiles}</header>
<main>
"""


def _tile(tile: headline.Tile) -> str:
    value, note = f'<dd class="value">{escape(tile.value)}</dd>', f'<dd class="note">{escape(tile.note)}</dd>'
    return f'<div class="tile"><dt>{escape(tile.title)}</dt>{value}{note}</div>\n'


_LOGO = (
    '<svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" fill="none" stroke="currentColor" '
    'stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"><path d="M10 18V9"/>'
    '<path d="M10 11C10 7 7 5 3 5c0 4 3 6 7 6z"/><path d="M10 9c0-4 3-6.5 7-6.5C17 6.5 14 9 10 9z"/></svg>'
)


def _beside(*parts: Part | None) -> str:
    """Parts in one row, as far as there are any."""
    there = [part for part in parts if part is not None]
    return "".join(card(one.key, one.title, one.content, one.caption, wide=len(there) == 1) for one in there)


def _figures(groups: Sequence[Group]) -> str:
    drawn = [(panel, panel.draw(groups)) for panel in channels.panels_of(groups)]
    parts: list[str] = []
    while drawn:
        row, drawn = (drawn[:1], drawn[1:]) if drawn[0][0].wide else (drawn[:2], drawn[2:])
        # an empty panel does not stand beside a full one, nor two empty ones side by side
        row = [(panel, drawing) for panel, drawing in row if drawing is not None] or row[:1]
        parts += [_figure(panel, drawing, wide=len(row) == 1) for panel, drawing in row]
    return "".join(parts)


def _figure(panel: Panel, drawing: Drawing | None, wide: bool) -> str:
    if drawing is None:
        return card(panel.key, panel.title, f'<p class="empty">{escape(panel.empty)}</p>\n')
    figure, place = drawing.figure, f"plot-{panel.key}"
    key = _key(figure)
    figure.update_layout(showlegend=False)
    style = f"height:{figure.layout.height}px"
    content = (
        f'{key}<div class="plot" id="{place}" role="img" aria-label="{escape(drawing.alt)}" style="{style}"></div>\n'
        f'<script type="application/json" data-plot="{place}">{inert(figure.to_json(engine="json"))}</script>\n'
    )
    return card(panel.key, panel.title, content, drawing.caption, wide, drawing.remark)


def _key(figure: Any) -> str:
    """The legend as real buttons: they wrap on narrow screens, follow the page's type, and hide or show a label."""
    named = [trace for trace in figure.data if trace.showlegend is not False and trace.name]
    if len(named) < 2:
        return ""
    entries = []
    for trace in named:
        shape = _GLYPHS.get(getattr(trace.marker, "symbol", None) or "square", _GLYPHS["circle"])
        svg = f'<svg viewBox="0 0 12 12" width="11" height="11" aria-hidden="true" fill="{escape(trace.marker.color)}">'
        # the figures escape the names already, as plotly takes them for HTML
        label = f"{svg}{shape}</svg>{trace.name}"
        group = escape(trace.legendgroup)
        entries.append(f'<li><button type="button" aria-pressed="true" data-group="{group}">{label}</button></li>')
    return f'<ul class="key" aria-label="Legend; select to hide or show">{"".join(entries)}</ul>\n'


_GLYPHS = {
    "circle": '<circle cx="6" cy="6" r="5.2"/>',
    "square": '<rect x="1.2" y="1.2" width="9.6" height="9.6" rx="1"/>',
    "diamond": '<path d="M6 0l6 6-6 6-6-6z"/>',
    "triangle-up": '<path d="M6 .6l6 10.4H0z"/>',
    "triangle-down": '<path d="M6 11.4L0 1h12z"/>',
    "cross": '<path d="M4 0h4v4h4v4H8v4H4V8H0V4h4z"/>',
    "star": '<path d="M6 0l1.5 4.3 4.5.1-3.6 2.8 1.3 4.4L6 9l-3.7 2.6 1.3-4.4L0 4.4l4.5-.1z"/>',
    "hexagon": '<path d="M6 0l5.3 3v6L6 12 .7 9V3z"/>',
}


def inert(text: str) -> str:
    """JSON that cannot close its script element or start a comment in it; it parses to the same value."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _shown(runs: Sequence[Run], summaries: Sequence[Mapping[str, Any]]) -> Run | None:
    """The run whose network is worth loading first: the first of the method that the headline names."""
    label = headline.named(summaries)
    return next((run for run in runs if run.finished and run.label == label), None)


def _recipes(recipes: Sequence[Recipe]) -> str:
    blocks = ""
    for recipe in recipes:
        text = f'<pre tabindex="0"><code>{escape(recipe.text)}</code></pre>'
        blocks += f"<details><summary>{escape(recipe.title)}</summary>\n{text}</details>\n"
    title = "Recipe" if len(recipes) == 1 else "Recipes"
    return (card("recipes", title, blocks) if recipes else "") + "</main>\n"
