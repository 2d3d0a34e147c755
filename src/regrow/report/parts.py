"""The parts of the page as plain text and numbers; ``templates/`` makes them HTML and escapes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regrow.report import formats
from regrow.report.panels import RunGroup


@dataclass(frozen=True)
class Part:
    """A titled part of the page; parts that are not ``wide`` stand two in a row.

    ``kind`` names the macro of ``templates/contents.html`` that draws ``content``: ``table`` takes a `Table`, ``plot``
    a `Plot`, ``list`` pairs of texts, ``pictures`` framed pictures, ``recipes`` recipes, ``code`` and ``empty`` a text.
    """

    key: str
    title: str
    kind: str
    content: Any
    caption: str = ""
    remark: str = ""
    wide: bool = True


@dataclass(frozen=True)
class Cell:
    """A text in a table, a dimmer one after it, and the colour of a dot before it."""

    text: str = ""
    dim: str = ""
    strong: bool = False
    badge: bool = False
    dot: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows of as many cells; ``label`` says what it is to those who cannot see it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    label: str


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a legend: the traces of ``group`` are shown or hidden by it."""

    label: str
    group: str
    color: str
    symbol: str


@dataclass(frozen=True)
class Plot:
    """A figure as JSON that is safe inside a script element, its height in pixels, its legend, and what it shows for
    those who cannot see it."""

    json: str
    height: int
    key: Sequence[LegendEntry]
    alt: str


def method(group: RunGroup) -> Cell:
    """The first cell of a row: a dot in the label's colour, and its name."""
    return Cell(formats.name(group.label), dot=group.look.color)
