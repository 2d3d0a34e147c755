"""Numbers with bounds: how the sections of a recipe say what they accept, and the one place that checks it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from regrow.errors import UserError


def number(default: Any, low: float | None = None, high: float | None = None, *, above: float | None = None) -> Any:
    """A dataclass field with a default and bounds: ``low <= value <= high``, or ``value > above``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above})


def check(path: str, section: Any) -> None:
    """Check every bounded field of the dataclass ``section``; ``path`` is its place in the recipe (``"train"``).

    Raises:
        UserError: naming the key, its bounds and the value, for the first field that is out of bounds.
    """
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                _check_number(f"{path}.{field.name}" if path else field.name, item, **field.metadata)


def _check_number(
    key: str, value: float, low: float | None = None, high: float | None = None, above: float | None = None
) -> None:
    inside = (
        math.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
    if inside:
        return
    if low is not None and high is not None:
        bounds = f"between {low} and {high}"
    elif above is not None:
        bounds = f"greater than {above}" + (f" and at most {high}" if high is not None else "")
    elif low is not None:
        bounds = f"at least {low}"
    else:
        bounds = "a finite number"
    raise UserError(f"{key} must be {bounds}, not {value}")
