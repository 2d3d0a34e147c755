"""Cells of a grid: the values that recipe keys have in one part of a comparison, and how they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

Cell = Mapping[str, Any]  # dotted key of a recipe → its value, as in `Recipe.resolved`


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Dotted key → what it is called: its last word, or all of it where two of the keys end alike.

    >>> short_names(["pattern.sparsity", "optimizer.lr", "model.name"])
    {'pattern.sparsity': 'sparsity', 'optimizer.lr': 'lr', 'model.name': 'model'}
    >>> short_names(["method.interval", "method.budget.start", "schedule.start"])
    {'method.interval': 'interval', 'method.budget.start': 'method.budget.start', 'schedule.start': 'schedule.start'}
    """
    keys = list(keys)
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: last[key] if often[last[key]] == 1 else key for key in keys}


def value_text(value: Any) -> str:
    """A value in one line: numbers in their shortest form, lists and mappings as YAML.

    >>> value_text(0.0005), value_text(True), value_text(None), value_text([30, 60]), value_text("ema")
    ('0.0005', 'true', 'null', '[30, 60]', 'ema')
    """
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def cell_name(cell: Cell) -> str:
    """What a cell is called; nothing for one without keys.

    >>> cell_name({"pattern.sparsity": 0.95, "method.h": 25})
    'sparsity 0.95, h 25'
    """
    names = short_names(cell)
    return ", ".join(f"{names[key]} {value_text(value)}" for key, value in cell.items())


def within(part: Cell, cell: Cell) -> bool:
    """Whether a cell has all the values of another, which may say less: an empty one is part of every cell."""
    return all(key in cell and cell[key] == value for key, value in part.items())
