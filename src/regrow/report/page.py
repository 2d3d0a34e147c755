"""Write the report: one HTML page that holds everything it needs and asks no network for anything."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from regrow import atomic
from regrow.errors import UserError
from regrow.report import channels, formats, headline, panels
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
    head = headline.compose(runs, records, summaries)
    groups = panels.group(runs)
    assets = files("regrow.report") / "assets"
    body = [
        _top(head, collection, groups),
        _summary_table(summaries, groups) if summaries else "",
        _figures(groups),
        _runs_table(groups),
        _recipes(collection.recipes),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_e(head.title)} · regrow report</title>
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


def _e(text: object) -> str:
    return html.escape(str(text))


# ---- the parts of the page, from top to bottom ----


def _top(head: headline.Headline, collection: Collection, groups: Sequence[Group]) -> str:
    seeds = {run.seed for run in collection.runs}
    methods = formats.plural(len({g.method for g in groups}), "method")
    if len(groups) > len({g.method for g in groups}):
        methods = f"{formats.plural(len(groups), 'variant')} of {methods}"
    facts = [formats.plural(len(collection.runs), "run"), methods, formats.plural(len(seeds), "seed")]
    steps = max((run.steps or 0 for run in collection.runs), default=0)
    facts += [f"{formats.count(steps)} steps"] if steps else []
    tiles = "".join(_tile(tile) for tile in head.tiles)
    lede = f'<p class="lede">{_e(head.lede)}</p>\n' if head.lede else ""
    version = f" {collection.version}" if collection.version else ""
    return f"""<header>
<p class="brand">{_LOGO}<span>regrow{_e(version)}</span><span class="facts">{_e(" · ".join(facts))}</span></p>
<h1>{_e(head.title)}</h1>
{lede}<dl class="tiles">
{tiles}</dl>
</header>
<main>
"""


def _tile(tile: headline.Tile) -> str:
    value, note = f'<dd class="value">{_e(tile.value)}</dd>', f'<dd class="note">{_e(tile.note)}</dd>'
    return f'<div class="tile"><dt>{_e(tile.title)}</dt>{value}{note}</div>\n'


_LOGO = (
    '<svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" fill="none" stroke="currentColor" '
    'stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"><path d="M10 18V9"/>'
    '<path d="M10 11C10 7 7 5 3 5c0 4 3 6 7 6z"/><path d="M10 9c0-4 3-6.5 7-6.5C17 6.5 14 9 10 9z"/></svg>'
)


def _summary_table(summaries: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> str:
    by_label = {g.label: g for g in groups}
    reference = summaries[0]["label"]
    compared = len(summaries) > 1
    dense_steps = next((s["cost_steps"] for s in summaries if s["cost_steps"] is not None), None)
    columns = ["Accuracy", "Seeds", "Weights kept", "Inference FLOPs", "Training FLOPs", "Time per run"]
    if compared:
        columns.insert(1, f"Difference to {formats.name(reference)}")
    best = max((s["mean"] for s in summaries if s["mean"] is not None), default=None)
    speed = any(s.get("latency") is not None for s in summaries)
    rows = []
    for s in summaries:
        spread = f' <span class="dim">± {s["std"] * 100:.1f}</span>' if s["std"] is not None else ""
        number = formats.accuracy(s["mean"])
        cells = [
            (f"<strong>{number}</strong>" if s["mean"] == best and compared else number) + spread,
            _e(s["n"]),
            formats.share(s["density"]),
            formats.times(s["inference_ratio"]),
            formats.times(s["training_cost"]),
            formats.seconds(s["seconds"]),
        ]
        if compared:
            cells.insert(1, _difference(s["paired"]))
        if speed:
            cells[2 + compared] = formats.times(s["latency_ratio"])
            cells.insert(3 + compared, formats.count(s["throughput"]))
            cells.insert(-1, formats.times(s["train_ratio"]))
        if dense_steps is not None:
            cells.insert(-2, formats.count(s["steps"]))
        rows.append((_method(by_label[s["label"]]), cells))
    if speed:
        columns[2 + compared : 3 + compared] = ["Latency", "Images/s"]
        columns.insert(-1, "Training time")
    if dense_steps is not None:
        columns.insert(-2, "Steps")
    caption = "FLOPs are multiples of the dense network’s; a multiply-add counts as two."
    if speed:
        caption += (
            " So are latency, measured on the machine of the run, and training time, the wall clock of its steps."
        )
    if dense_steps is not None:
        caption += f" Matched by training FLOPs: 1× is dense training for {formats.count(dense_steps)} steps."
    if any(s["paired"] and s["paired"]["ci_low"] is not None for s in summaries):
        caption += " Differences are in points, paired by seed, with their 95% confidence interval."
    elif compared:
        caption += " Differences are in points."
    return _card("summary", "Summary", _table("Method", columns, rows, "Summary of the methods"), caption)


def _difference(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f'<span class="dim">{formats.NOTHING}</span>'
    text = formats.signed(result["difference"])
    if result["ci_low"] is not None:
        text += f' <span class="dim">{formats.signed(result["ci_low"])} to {formats.signed(result["ci_high"])}</span>'
    return text


def _method(group: Group) -> str:
    return f'<span class="dot" style="background:{group.look.color}"></span>{_e(formats.name(group.label))}'


def _table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], label: str) -> str:
    """A table whose cells are HTML already, in a frame that scrolls sideways on narrow screens."""
    head = "".join(f'<th scope="col">{_e(column)}</th>' for column in (first, *columns))
    body = ""
    for name, cells in rows:
        body += f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{_e(label)}" tabindex="0">{table}</div>\n'


def _card(key: str, title: str, content: str, caption: str = "", wide: bool = True) -> str:
    kind, anchor = "card" if wide else "card half", f"title-{key}"
    note = f'<p class="caption">{_e(caption)}</p>\n' if caption else ""
    heading = f'<h2 id="{anchor}">{_e(title)}</h2>'
    return f'<section class="{kind}" aria-labelledby="{anchor}">\n{heading}\n{note}{content}</section>\n'


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
        return _card(panel.key, panel.title, f'<p class="empty">{_e(panel.empty)}</p>\n')
    figure, place = drawing.figure, f"plot-{panel.key}"
    key = _key(figure)
    figure.update_layout(showlegend=False)
    style = f"height:{figure.layout.height}px"
    content = (
        f'{key}<div class="plot" id="{place}" role="img" aria-label="{_e(drawing.alt)}" style="{style}"></div>\n'
        f'<script type="application/json" data-plot="{place}">{inert(figure.to_json(engine="json"))}</script>\n'
    )
    return _card(panel.key, panel.title, content, drawing.caption, wide)


def _key(figure: Any) -> str:
    """The legend as real buttons: they wrap on narrow screens, follow the page's type, and hide or show a label."""
    named = [trace for trace in figure.data if trace.showlegend is not False and trace.name]
    if len(named) < 2:
        return ""
    entries = []
    for trace in named:
        shape = _GLYPHS.get(getattr(trace.marker, "symbol", None) or "square", _GLYPHS["circle"])
        svg = f'<svg viewBox="0 0 12 12" width="11" height="11" aria-hidden="true" fill="{_e(trace.marker.color)}">'
        # the figures escape the names already, as plotly takes them for HTML
        label = f"{svg}{shape}</svg>{trace.name}"
        group = _e(trace.legendgroup)
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


def _runs_table(groups: Sequence[Group]) -> str:
    shown = [(g, run) for g in groups for run in g.runs]
    validated = any(run.validation_accuracy is not None for _, run in shown)
    exploring = any(run.explore_steps for _, run in shown)
    columns = ["Seed", "Accuracy", *(["Validation"] if validated else []), "Weights kept", "Training FLOPs"]
    columns += ["Inference FLOPs", "Steps", *(["Exploring"] if exploring else []), "Time", "State"]
    rows = []
    for g, run in shown:
        ratio = run.inference_flops / run.dense_flops if run.inference_flops is not None and run.dense_flops else None
        state = "done" if run.finished else '<span class="badge">unfinished</span>'
        cells = [_e(run.seed), _accuracy_cell(run)]
        cells += [formats.accuracy(run.validation_accuracy)] if validated else []
        cells += [
            formats.share(run.density),
            formats.times(run.training_cost),
            formats.times(ratio),
            formats.count(run.steps),
        ]
        cells += [formats.count(run.explore_steps)] if exploring else []
        rows.append((_method(g), [*cells, formats.seconds(run.seconds), state]))
    return _card("runs", "All runs", _table("Method", columns, rows, "All runs"))


def _accuracy_cell(run: Run) -> str:
    if run.finished or run.last_accuracy is None:
        return formats.accuracy(run.accuracy)
    return f'<span class="dim">{formats.accuracy(run.last_accuracy)} so far</span>'


def _recipes(recipes: Sequence[Recipe]) -> str:
    blocks = ""
    for recipe in recipes:
        text = f'<pre tabindex="0"><code>{_e(recipe.text)}</code></pre>'
        blocks += f"<details><summary>{_e(recipe.title)}</summary>\n{text}</details>\n"
    title = "Recipe" if len(recipes) == 1 else "Recipes"
    return (_card("recipes", title, blocks) if recipes else "") + "</main>\n"
