"""The same share of every group: the largest that is within the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

import numpy as np

from regrow.budgets.pricing import Prices
from regrow.budgets.terms import Floats, Ints
from regrow.errors import UserError

Counts = dict[str, int]

_UNITS = {"latency": "s", "flops": "FLOPs", "params": "parameters"}


@dataclass(frozen=True)
class _Shares:
    """The counts of one group at a share of its width.

    Attributes:
        points: shares from which on it has the counts
        counts: one more than points
    """

    points: Floats
    counts: Ints

    @classmethod
    def of(cls, size: int, floor: int, step: int) -> _Shares:
        # rounded to the nearest multiple from half a step on; the whole width comes with the whole share at the latest
        multiples = np.arange(step, size + step, step, dtype=np.int64)
        multiples = multiples[2 * multiples - step < 2 * size]
        points = np.append((2 * multiples - step) / (2 * size), 1.0)
        counts = np.minimum(np.concatenate([[0], multiples, [size]]), size)
        return cls(np.where(counts[1:] <= floor, -1.0, points), np.maximum(counts, floor))

    def at(self, share: float) -> int:
        return int(self.counts[np.searchsorted(self.points, share, side="right")])


def uniform(
    prices: Prices, floor: Mapping[str, int], round_to: int | Mapping[str, int], budgets: Mapping[str, float]
) -> Counts:
    """The largest common share of every group's width that is within all budgets.

    Args:
        prices: of the model.
        floor: group id → the least it keeps; groups that are not named stay whole.
        round_to: counts are the nearest multiples of it, for all groups or by group id (default there: 1); the whole
            width belongs to the whole share.
        budgets: kind of cost → what it may reach, in its unit; never exceeded.

    Raises:
        UserError: a budget cannot be met (with the smallest that can).
    """
    groups = {
        group: _Shares.of(prices.sizes[group], min(least, prices.sizes[group]), step_of(round_to, group))
        for group, least in floor.items()
    }
    points = np.unique(np.concatenate([[0.0], *(shares.points[shares.points > 0] for shares in groups.values())]))

    def counts_at(index: int) -> Counts:
        return {group: shares.at(float(points[index])) for group, shares in groups.items()}

    def over(index: int) -> dict[str, float]:
        """The costs that exceed their budgets."""
        cost = prices.cost(counts_at(index))
        return {kind: cost[kind] for kind, limit in budgets.items() if cost[kind] > limit}

    # measured times need not rise with the width, the other costs do
    top = _last(len(points), lambda index: not over(index).keys() - {"latency"})
    for index in range(top, -1, -1):
        if not over(index):
            return counts_at(index)
    kind, smallest = min(over(0).items())
    if kind == "latency":
        smallest = min(prices.cost(counts_at(index))[kind] for index in range(top + 1))
    raise impossible(prices, kind, budgets[kind], smallest)


def _last(number: int, holds: Callable[[int], bool]) -> int:
    """The last index for which it holds, where it holds up to some index (0 if it never does)."""
    low, high = 0, number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def step_of(round_to: int | Mapping[str, int], group: str) -> int:
    """What the counts of a group are multiples of."""
    return round_to if isinstance(round_to, int) else round_to.get(group, 1)


def impossible(prices: Prices, kind: str, asked: float, smallest: float) -> UserError:
    """The sentence for a budget that cannot be met."""
    unit, dense = _UNITS.get(kind, ""), prices.dense[kind] or 1.0
    return UserError(
        f"a {kind} budget of {asked:.6g} {unit} ({asked / dense:.4g} of dense) cannot be met: the smallest that can is "
        f"{_upwards(smallest)} {unit} ({_upwards(smallest / dense)} of dense)"
    )


def _upwards(number: float) -> str:
    """With few digits, and not below the number."""
    return f"{float(Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(number))):.6g}"
