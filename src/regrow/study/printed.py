"""The table that a comparison prints: a method a line, as many columns beside each other as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regrow.training.measures import measure_of
from regrow.training.statistics import reference_of


def print_table(summary: Sequence[Mapping[str, Any]], width: int | None = None) -> None:
    """Print a summary of results as a table, or below each other as several with some of the columns each.

    Args:
        summary: of `regrow.training.statistics.summarise`.
        width: characters that there are room for; default: the terminal's, and 140 in a pipe or a file.
    """
    from rich.console import Console
    from rich.table import Table

    title = f"test {measure_of(summary).name}, mean ± standard deviation over seeds"
    dense_steps = next((row["cost_steps"] for row in summary if row["cost_steps"] is not None), None)
    if any(row["planned_seconds"] is not None for row in summary):
        title += (
            "\nmatched by training time: planned from steps that were timed before, beside what training took "
            f"(1× in FLOPs is dense training for {dense_steps:,.0f} steps)"
        )
    elif dense_steps is not None:
        title += f"\nmatched by training FLOPs (1× is dense training for {dense_steps:,.0f} steps)"
    reference = reference_of(summary) if summary else ""
    columns = {
        heading: cells
        for heading, show in _columns(reference, summary, steps=dense_steps is not None).items()
        if any(cells := [show(row) for row in summary])
    }
    caption = "×: of the dense network. Training cost and FLOPs are counted, not timed; time is that of a whole run."
    if "" in columns.get("latency", ()):
        caption += " –: not timed, as single weights that are removed make no network faster on ordinary hardware."
    labels = [str(row["label"]) for row in summary]
    terminal = Console().is_terminal
    # whatever a label holds is text: [csv] is no style, and :x: no picture
    console = Console(width=width or (None if terminal else 140), markup=False, emoji=False, highlight=False)
    console.print(title)
    for part in _side_by_side(columns, max(map(len, ["method", *labels])), console.width):
        table = Table("method")
        for heading in part:
            table.add_column(heading, justify="right", no_wrap=True)
        for label, *cells in zip(labels, *(columns[heading] for heading in part), strict=True):
            table.add_row(label, *(cell or "–" for cell in cells))
        console.print(table)
    console.print(caption)


def _side_by_side(columns: Mapping[str, Sequence[str]], first: int, width: int) -> list[list[str]]:
    """Headings of as many columns as fit beside one of `first` characters, and then the others, line by line."""
    lines: list[list[str]] = [[]]
    taken = room = first + 4  # with the lines between them
    for heading, cells in columns.items():
        wide = max(map(len, [heading, *cells])) + 3
        if lines[-1] and taken + wide > width:
            lines.append([])
            taken = room
        lines[-1].append(heading)
        taken += wide
    return lines


def _columns(
    reference: str, summary: Sequence[Mapping[str, Any]], steps: bool
) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Heading → what a row of the summary has there; ``steps`` where they differ."""
    timed = [row.get("latency") is not None for row in summary]

    def number(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: "" if row.get(key) is None else form.format(row[key])

    columns = {
        measure_of(summary).name: _score,
        "mAP50": number("mAP50", "{:.2%}"),
        "runs": number("n", "{}"),
        f"difference to {reference} (95%)": lambda row: _difference(row["paired"]),
    }
    if not all(timed):
        columns["density"] = number("density", "{:.1%}")
    if any(timed):
        columns |= {"latency": number("latency_ratio", "{:.2f}×"), "images/s": number("throughput", "{:,.0f}")}
    if steps:
        columns["steps"] = number("steps", "{:,.0f}")
    columns |= {"training cost": number("training_cost", "{:.2f}×")}
    if any(row["planned_seconds"] is not None for row in summary):
        columns |= {"planned": number("planned_seconds", "{:,.1f} s"), "trained": number("train_seconds", "{:,.1f} s")}
    columns["wall clock"] = number("train_ratio", "{:.2f}×")
    return columns | {"FLOPs": number("inference_ratio", "{:.2f}×"), "time": number("seconds", "{:.0f} s")}


def _score(row: Mapping[str, Any]) -> str:
    mean, std = row["mean"], row["std"]
    return "" if mean is None else f"{mean:.2%}" + (f" ± {100 * std:.2f}" if std is not None else "")


def _difference(paired: Mapping[str, Any] | None) -> str:
    if paired is None or paired["difference"] is None:
        return ""
    text = f"{100 * paired['difference']:+.2f}"
    if paired["ci_low"] is not None:
        text += f" [{100 * paired['ci_low']:+.2f}, {100 * paired['ci_high']:+.2f}]"
    return text
