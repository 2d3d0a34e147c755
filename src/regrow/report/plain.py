"""Numbers in JSON that somebody else may have written: what is none counts as missing."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A whole number, also written as 3.0, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) else None
