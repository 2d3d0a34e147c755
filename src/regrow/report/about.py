"""Where and when runs were trained, and how to load what they left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from regrow.report import formats
from regrow.report.outcome import Builder
from regrow.report.parts import Part
from regrow.report.runs import RunRecord

_ROWS = {
    "torch": "PyTorch",
    "python": "Python",
    "system": "System",
    "device": "Device",
    "cpu": "Processor",
    "threads": "Threads",
    "processes": "Processes",
    "precision": "Precision",
}


def machine(runs: Sequence[RunRecord], version: str | None) -> Part | None:
    """The environment of the runs; None where none is known."""
    said = [run.facts.environment for run in runs if run.facts.environment]
    rows = {"regrow": formats.listing(_distinct([one.get("regrow", "") for one in said])) or version or ""}
    rows |= {name: formats.listing(_distinct([one.get(key, "") for one in said])) for key, name in _ROWS.items()}
    rows["Device"] = "CPU" if rows["Device"] == "cpu" else rows["Device"]
    if rows["Processes"] == "1":
        del rows["Processes"]
    rows["Finished"] = finished(runs, "%Y-%m-%d %H:%M UTC")
    if not said and not rows["Finished"]:
        return None
    caption = "Where several values stand, runs differ." if any(" and " in value for value in rows.values()) else ""
    return Part("machine", "Where and when", "list", [row for row in rows.items() if row[1]], caption)


def finished(runs: Iterable[RunRecord], form: str) -> str:
    """When the runs finished, from the first to the last, each as ``form`` (of strftime) says; nothing if unknown."""
    times = []
    for run in runs:
        try:
            times.append(datetime.fromisoformat(run.facts.finished or ""))
        except ValueError:
            continue
    ends = _distinct([f"{min(times):{form}}", f"{max(times):{form}}"]) if times else []
    return " to ".join(ends)


def loading(run: RunRecord | None) -> Part | None:
    """The Python that loads the network of this run; None if it left none, or nobody knows what builds it."""
    if run is None or run.facts.builder is None or run.facts.saved is None:
        return None
    place = run.facts.saved.as_posix()
    code = f"""import regrow
from regrow.zoo.models import build

model = build({_arguments(run.facts.builder)})
regrow.load(model, {_literal(place)})
model.eval()
"""
    name = f"{formats.name(run.label)}, seed {run.seed}"
    caption = f"This is {name}; every run has its own, in its model/ directory."
    if run.widths:
        caption += " regrow.load takes the removed channels out of the dense network that build makes."
    return Part("load", "Load this model", "code", code, caption)


def _arguments(builder: Builder) -> str:
    words = [_literal(builder.name), f"num_classes={builder.classes}", f"in_channels={builder.channels}"]
    options = {
        key: value for key, value in builder.options.items() if key != "pretrained"
    }  # regrow.load has the weights
    named = {key: value for key, value in options.items() if key.isidentifier()}
    words += [f"{key}={_literal(value)}" for key, value in named.items()]
    others = {key: value for key, value in options.items() if key not in named}
    return ", ".join([*words, *([f"**{_literal(others)}"] if others else [])])


def _literal(value: object) -> str:
    """A value of a recipe as Python writes it; text in double quotes."""
    if not isinstance(value, str):
        return repr(value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a path that is no text
        return ascii(value)
    return json.dumps(value, ensure_ascii=False)


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]
