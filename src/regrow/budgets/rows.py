"""What the grouped knapsack chooses one level of: a group of channels, or the groups of a block, which go whole.

A group costs what its own layers do, with all inputs as they are at present. So does a block, by all combinations of
the widths of its groups; but what it saves to be without it is the real difference, as all of its layers go then,
whichever group their output belongs to. A block that is gone is priced as if its groups had the fewest channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regrow.budgets.pricing import Prices
from regrow.budgets.terms import Floats, Ints


@dataclass(frozen=True)
class Row:
    """Levels, of which one is chosen.

    Attributes:
        groups: that they are of.
        counts: of each level the count of each group, (levels, groups).
        values, costs: of each level.
    """

    groups: tuple[str, ...]
    counts: Ints
    values: Floats
    costs: Floats

    def at(self, level: int) -> dict[str, int]:
        """Group → count."""
        return dict(zip(self.groups, map(int, self.counts[level]), strict=True))


def row_of(group: str, steps: Ints, worth: Floats, costs: Sequence[float] | Floats) -> Row:
    """Of one group.

    Args:
        steps: its counts.
        worth: of 0, 1, 2, … channels.
        costs: of each of the counts.
    """
    return Row((group,), steps[:, None], worth[steps], np.asarray(costs, dtype=np.float64))


def rows_of(
    prices: Prices, full: Mapping[str, int], legal: Mapping[str, Ints], worth: Mapping[str, Floats],
    together: Sequence[Sequence[str]], kind: str,
) -> tuple[list[Row], float]:  # fmt: skip
    """The rows of all groups, and what all of them cost at the present counts.

    Args:
        prices: of the model.
        full: group → present count, of all.
        legal: group → the counts to choose from, rising.
        worth: group → the value of keeping 0, 1, 2, … channels.
        together: groups of which all have the count 0, or none has.
        kind: of cost.
    """
    tied = {group for members in together for group in members}
    rows, own = [], []
    for group, steps in legal.items():
        if group not in tied:
            costs, present = prices.grouped_costs(full, {group: steps.tolist()}, kind)[0], full[group]
            rows.append(row_of(group, steps, worth[group], costs))
            own += prices.grouped_costs(full, {group: [present]}, kind)[0]
    for members in together:
        least = {group: full[group] or int(legal[group][1]) for group in members}
        inside, without = {**full, **least}, {**full, **dict.fromkeys(members, 0)}
        there = math.fsum(c for g, n in least.items() for c in prices.grouped_costs(inside, {g: [n]}, kind)[0])
        gone = there - (prices.cost(inside)[kind] - prices.cost(without)[kind])
        found = Row((), np.zeros((1, 0), dtype=np.int64), np.zeros(1), np.zeros(1))
        for group in members:
            steps = legal[group][legal[group] > 0]
            costs = prices.grouped_costs(inside, {group: steps.tolist()}, kind)[0]
            found = _beside(found, row_of(group, steps, worth[group], costs))
        nothing = Row(found.groups, np.zeros((1, len(members)), dtype=np.int64), np.zeros(1), np.array([gone]))
        rows.append(_either(nothing, found))
        own.append(there if full[members[0]] else gone)
    return rows, math.fsum(own)


def _beside(first: Row, second: Row) -> Row:
    """All combinations but those that are no cheaper and worth no more than another."""
    a, b = np.divmod(np.arange(len(first.values) * len(second.values)), len(second.values))
    values, costs = first.values[a] + second.values[b], first.costs[a] + second.costs[b]
    order = np.lexsort((-values, costs))
    best = np.maximum.accumulate(values[order])
    order = order[np.append(True, best[1:] > best[:-1])]
    counts = np.concatenate([first.counts[a[order]], second.counts[b[order]]], axis=1)
    return Row((*first.groups, *second.groups), counts, values[order], costs[order])


def _either(first: Row, second: Row) -> Row:
    """The levels of two rows of the same groups."""
    return Row(
        first.groups,
        np.concatenate([first.counts, second.counts]),
        np.concatenate([first.values, second.values]),
        np.concatenate([first.costs, second.costs]),
    )
