"""Numbers with bounds: how the sections of a recipe say what they accept, and the one place that checks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from regrow.errors import UserError

LARGEST = 10**18  # no number of a recipe is larger, whatever it counts: it must fit into what tensors hold


def number(
    default: Any, low: float | None = None, high: float | None = None, *, above: float | None = None,
    cap: float = LARGEST,
) -> Any:  # fmt: skip
    """A dataclass field with a default and bounds.

    Args:
        default: its default
        low, high: ``low <= value <= high``
        above: ``value > above``
        cap: ``abs(value) <= cap``, where more makes no sense, but would overflow something
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above, "cap": cap})


def check(path: str, section: Any) -> None:
    """Check every number of the dataclass ``section``, also where it has no bounds of its own.

    Args:
        path: its place in the recipe (``"train"``)
        section: an instance

    Raises:
        UserError: naming the key, its bounds and the value, for the first field that is out of bounds.
    """
    for field in dataclasses.fields(section):
        check_value(f"{path}.{field.name}" if path else field.name, getattr(section, field.name), field.metadata)


def check_value(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Check one value, or all that it holds.

    Args:
        key: its place in the recipe
        value: of a field
        bounds: metadata of that field (see `number`)

    Raises:
        UserError: naming the key, its bounds and the value.
    """
    if dataclasses.is_dataclass(value):
        check(key, value)
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            check_value(key, item, bounds)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(key, value, **bounds)


def _check_number(
    key: str, value: float, low: float | None = None, high: float | None = None, above: float | None = None,
    cap: float = LARGEST,
) -> None:  # fmt: skip
    # comparisons alone, which hold for whole numbers of any size, and never for NaN
    inside = (
        -cap <= value <= cap
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
    if inside:
        return
    if low is not None and high is not None:
        bounds = f"between {low} and {high}"
    elif value > cap and high is None and cap != LARGEST:
        bounds = f"at most {cap}"
    elif above is not None and (value <= cap or high is not None):
        bounds = f"greater than {above}" + (f" and at most {high}" if high is not None else "")
    elif low is not None and value <= cap:
        bounds = f"at least {low}"
    else:
        bounds = f"a number between ±{cap:.0e}"
    raise UserError(f"{key} must be {bounds}, not {shown(value)}")


def shown(value: float) -> str:
    """A number in a message: one that is too long to read, by its length."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return str(value)
