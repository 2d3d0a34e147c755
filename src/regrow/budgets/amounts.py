"""What a budget says: a share of the dense model's cost, or an amount with its unit."""

from __future__ import annotations

import math
import re
import sys

from regrow import hints
from regrow.errors import UserError, nearest, percent

_UNITS: dict[str, dict[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "flops": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zµ]*|%)\s*", re.IGNORECASE)


def amount(kind: str, value: float | str, dense: float) -> float:
    """What a budget allows, in the unit of `Prices` (seconds, FLOPs, parameters).

    Args:
        kind: latency, flops or params.
        value: a share of dense up to 1, or an amount.
        dense: the dense model's.

    Raises:
        UserError: a value that is neither.
    """
    units = _UNITS[kind]
    example = {"latency": "'12 ms'", "flops": "'1.1 G'", "params": "'5 M'"}[kind]
    wrong = f"{kind} is {hints.show(value)}, but must be a share of dense in (0, 1] or an amount such as {example}"
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value)
        if match is None:
            raise UserError(wrong)
        try:
            number = float(match[1])
        except ValueError as error:
            raise UserError(wrong) from error
        unit = match[2].lower()
        if unit in ("", "%"):
            return _amount(kind, number / 100 if unit else number, dense, wrong)
        if unit not in units:
            raise UserError(f"{kind} is {hints.show(value)}, but {match[2]!r} is no unit of it{nearest(unit, units)}")
        if not 0 < number < math.inf:
            raise UserError(wrong)
        return number * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(wrong)
    return _amount(kind, value, dense, wrong)


def written(kind: str, number: float) -> str:
    """An amount as a budget may say it, in three digits.

    >>> written("latency", 0.0123), written("flops", 1.126e9), written("params", 512)
    ('12.3 ms', '1.13 G', '512')
    """
    sizes = {"s": 1.0, "ms": 1e-3, "us": 1e-6} if kind == "latency" else {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
    for unit, size in sizes.items():
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / sizes['us']:.3g} us" if kind == "latency" else f"{number:.3g}"


def _amount(kind: str, number: float, dense: float, wrong: str) -> float:
    """The same, of a plain number."""
    if not 0 < number <= sys.float_info.max:
        raise UserError(wrong)
    if number <= 1:
        return number * dense
    # no network has so few operations or parameters: per cent are meant
    if kind == "latency" or number <= 100:
        raise UserError(f"{wrong}{percent(number)}")
    return float(number)
