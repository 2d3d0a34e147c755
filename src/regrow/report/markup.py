"""The pieces of HTML that the page is made of."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from regrow.report import formats
from regrow.report.panels import Group


@dataclass(frozen=True)
class Part:
    """What `card` needs, for parts that may stand beside each other; ``content`` is HTML."""

    key: str
    title: str
    content: str
    caption: str = ""


def escape(text: object) -> str:
    return html.escape(str(text))


def method(group: Group) -> str:
    return f'<span class="dot" style="background:{group.look.color}"></span>{escape(formats.name(group.label))}'


def table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], label: str) -> str:
    """A table whose cells are HTML already, in a frame that scrolls sideways on narrow screens."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in (first, *columns))
    body = ""
    for name, cells in rows:
        body += f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
    whole = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{whole}</div>\n'


def card(key: str, title: str, content: str, caption: str = "", wide: bool = True, remark: str = "") -> str:
    """A titled part of the page around HTML; parts that are not wide stand two in a row."""
    kind, anchor = "card" if wide else "card half", f"title-{key}"
    note = f'<p class="caption">{escape(caption)}</p>\n' if caption else ""
    note += f'<p class="remark">{escape(remark)}</p>\n' if remark else ""
    heading = f'<h2 id="{anchor}">{escape(title)}</h2>'
    return f'<section class="{kind}" aria-labelledby="{anchor}">\n{heading}\n{note}{content}</section>\n'
