"""Write the report: one HTML page that holds everything it needs and asks no network for anything."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from regrow import atomic
from regrow.errors import UserError
from regrow.report import about, formats, headline, panels, pictures, standing, tables, widths
from regrow.report.headline import Headline
from regrow.report.panels import Drawing, Panel, RunGroup, judged
from regrow.report.parts import LegendEntry, Part, Plot
from regrow.report.runs import Collection, RecipeText, RunRecord, read
from regrow.training.statistics import summarise

_BESIDE = 8  # labels, of which more make bars of training cost that are taller than what stands beside them


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
    runs = collection.runs
    records = [record(run) for run in runs if run.finished]
    summaries = summarise(records)
    groups = panels.group(runs)
    parts = [
        tables.failures(collection.failures),
        tables.summary(summaries, groups),
        pictures.part(_shown(runs, summaries)),
        *_standing(records, groups),
        *(_figures(groups) if runs else []),
        *_beside(tables.sizes(groups), about.machine(runs, collection.version)),
        tables.runs(groups, collection.failures),
        about.loading(_shown(runs, summaries)),
        _recipes(collection.recipes),
    ]
    head = headline.compose(runs, records, summaries, collection.failures)
    there = [part for part in parts if part is not None]
    return page(head, there, _facts(collection, groups), collection.version)


def page(head: Headline, parts: Sequence[Part], facts: Sequence[str], version: str | None) -> str:
    """A page of these parts, with everything that it needs in it."""
    from plotly.offline import get_plotlyjs

    # whatever a file holds is text: every value is escaped, and none may be missing
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("regrow.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = templates.get_template("page.html").render(
        head=head, version=version, facts=facts, parts=parts, plotly=get_plotlyjs()
    )
    return formats.printable(f"{text}\n")


def record(run: RunRecord) -> dict[str, Any]:
    """A finished run as an entry of ``results.json``; its accuracy falls back to that on the validation set."""
    keys = ["label", "method", "seed", "density", "training_cost", "inference_flops", "dense_flops", "seconds"]
    keys += ["steps", "cost_steps", "planned_seconds", "variant_of", "cell", "place"]
    if run.latency is not None:
        keys += ["latency", "latency_predicted", "latency_margin", "dense_latency", "throughput", "train_seconds"]
    keys += ["mAP50"] if run.mAP50 is not None else []
    return {**{key: getattr(run, key) for key in keys}, **judged([run]).entry, "accuracy": panels.score(run)}


# ---- the parts of the page, from top to bottom ----


def _facts(collection: Collection, groups: Sequence[RunGroup]) -> list[str]:
    """How much there is to see, and from when."""
    seeds = {run.seed for run in collection.runs}
    methods = formats.plural(len({g.method for g in groups}), "method")
    if len(groups) > len({g.method for g in groups}):
        methods = f"{formats.plural(len(groups), 'variant')} of {methods}"
    facts = [formats.plural(len(collection.runs), "run"), methods, formats.plural(len(seeds), "seed")]
    facts = facts if collection.runs else [formats.plural(len(collection.failures), "run")]
    steps = max((run.steps or 0 for run in collection.runs), default=0)
    facts += [f"{formats.count(steps)} steps"] if steps else []
    return facts + ([when] if (when := about.finished(collection.runs, "%Y-%m-%d")) else [])


def _standing(records: Sequence[Mapping[str, Any]], groups: Sequence[RunGroup]) -> list[Part]:
    """The diagram of ranks and its table, where there is anything to rank."""
    drawing, table = standing.drawing(records), standing.table(records, groups)
    if drawing is None or table is None:
        return []
    return [figure(Panel("ranks", "Mean rank of each method", "", lambda _: drawing), drawing, wide=True), table]


def _beside(*parts: Part | None) -> list[Part]:
    """Parts in one row, as far as there are any."""
    there = [part for part in parts if part is not None]
    return [replace(part, wide=len(there) == 1) for part in there]


def _figures(groups: Sequence[RunGroup]) -> list[Part]:
    title = panels.judged_in(groups).title
    shown = [replace(panel, title=panel.title.format(measure=title)) for panel in widths.panels_of(groups)]
    if len(groups) > _BESIDE:
        shown = [replace(panel, wide=True) if panel.key in ("tradeoff", "phases") else panel for panel in shown]
    drawn = [(panel, panel.draw(groups)) for panel in shown]
    parts: list[Part] = []
    while drawn:
        row, drawn = (drawn[:1], drawn[1:]) if drawn[0][0].wide else (drawn[:2], drawn[2:])
        # an empty panel does not stand beside a full one, nor two empty ones side by side
        row = [(panel, drawing) for panel, drawing in row if drawing is not None] or row[:1]
        parts += [figure(panel, drawing, wide=len(row) == 1) for panel, drawing in row]
    return parts


def figure(panel: Panel, drawing: Drawing | None, wide: bool) -> Part:
    """What shows a drawing, or says why there is none."""
    if drawing is None:
        return Part(panel.key, panel.title, "empty", panel.empty)
    drawn = drawing.figure
    key = _legend(drawn)
    drawn.update_layout(showlegend=False)
    data = htmlsafe_json_dumps(drawn, dumps=lambda whole: whole.to_json(engine="json"))
    content = Plot(data, drawn.layout.height, key, drawing.alt)
    return Part(panel.key, panel.title, "plot", content, drawing.caption, drawing.remark, wide)


def _legend(figure: Any) -> list[LegendEntry]:
    """What the legend names, where it tells several apart."""
    named = [trace for trace in figure.data if trace.showlegend is not False and trace.name]
    if len(named) < 2:
        return []
    return [  # plotly takes names for HTML, so that the figures have escaped them
        LegendEntry(html.unescape(t.name), t.legendgroup, t.marker.color, getattr(t.marker, "symbol", None) or "square")
        for t in named
    ]


def _shown(runs: Sequence[RunRecord], summaries: Sequence[Mapping[str, Any]]) -> RunRecord | None:
    """The run whose network is worth loading first: the first of the method that the headline names."""
    label = headline.named(summaries)
    return next((run for run in runs if run.finished and run.label == label), None)


def _recipes(recipes: Sequence[RecipeText]) -> Part | None:
    title = "Recipe" if len(recipes) == 1 else "Recipes"
    return Part("recipes", title, "recipes", recipes) if recipes else None
