"""How many channels each group keeps: the most valuable counts within the budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from regrow.budgets import knapsack
from regrow.budgets.pricing import Prices
from regrow.budgets.rows import Row, row_of, rows_of
from regrow.budgets.shares import impossible, step_of, uniform
from regrow.budgets.terms import Floats, Ints
from regrow.errors import UserError

__all__ = ["allocate", "uniform"]

Counts = dict[str, int]

_LEVELS = 14  # of a group, in one mixed-integer program
_PAIRS = 8_000  # entries in its tables of pairs of groups: more take much longer, and the answer is no better
_GAP = 1e-3
_NODES = 100  # of its search tree; where the root does not settle it, rounds around its answer find more than nodes
_ROUNDS = 3  # programs around better and better counts
_TRIES = 4  # programs whose answer turns out to be over a budget


def allocate(
    prices: Prices,
    values: Mapping[str, np.ndarray],
    levels_between: Mapping[str, tuple[int, int]],
    budgets: Mapping[str, float],
    *,
    now: Mapping[str, int],
    round_to: int | Mapping[str, int] = 8,
    solver: Literal["joint", "grouped"] = "joint",
    together: Sequence[Sequence[str]] = (),
) -> Counts:
    """The counts of the highest total value whose cost is within all budgets.

    They depend on the arguments alone, not on the machine: the work of the mixed-integer programs of "joint" is
    limited, not their time, and the best answer found by then is improved step by step.

    Args:
        prices: of the model.
        values: group id → scores of its channels, best first, none negative (as many as its highest count, or more);
            keeping n channels is worth the sum of the first n.
        levels_between: group id → lowest and highest count allowed. These and the multiples of ``round_to`` between
            them are the legal counts.
        budgets: kind of cost → what ``prices.cost(result)`` may reach, in its unit; never exceeded.
        now: group id → present count, around which the search begins; groups without values stay there.
        round_to: what counts should be multiples of, for all groups or by group id (default there: 1).
        solver: "joint" prices input and output widths together, for any number of budgets; "grouped" is the grouped
            knapsack for one budget, which holds the inputs of every layer as they are now.
        together: groups that may have the count 0 beside those of ``levels_between``: all of such a row, or none of it;
            their present counts are so, too.

    Returns:
        group id → count, for the groups of ``values`` and of ``now``.

    Raises:
        UserError: a budget cannot be met (with the smallest that can), or "grouped" is given several budgets.
    """
    problem = _Problem(prices, values, levels_between, dict(budgets), now, round_to, together)
    if solver == "grouped" and len(budgets) > 1:
        raise UserError(
            f'solver="grouped" takes one budget, not {" and ".join(budgets)}; use solver="joint", or give only one'
        )
    if problem.fits(problem.highest):  # nothing is worth more
        return problem.result(problem.highest)
    cheapest = _cheapest(problem)
    if cheapest == problem.lowest:  # costs rise with the counts, so there is nothing cheaper
        _check_possible(problem, cheapest)
    found = _grouped(problem, now) if solver == "grouped" else _apart(problem) or _joint(problem)
    if found is None:
        _check_possible(problem, cheapest)
        found = _fill(problem, cheapest)
    return problem.result(found)


class _Problem:
    """What `allocate` is asked for.

    Attributes:
        legal: group id → its legal counts, rising
        worth: group id → value of keeping 0, 1, 2, … channels
        start, lowest, highest: legal counts, nearest to the present ones and at the ends
        together: rows of groups of which all have the count 0, or none has
    """

    def __init__(
        self,
        prices: Prices,
        values: Mapping[str, np.ndarray],
        between: Mapping[str, tuple[int, int]],
        budgets: dict[str, float],
        now: Mapping[str, int],
        round_to: int | Mapping[str, int],
        together: Sequence[Sequence[str]] = (),
    ) -> None:
        if unknown := [kind for kind in budgets if kind not in prices.kinds]:
            raise ValueError(f"there is a budget for {unknown[0]!r}, but only {', '.join(prices.kinds)} have prices")
        self.prices, self.budgets = prices, budgets
        self.fixed = {group: count for group, count in now.items() if group not in values}
        self.together = [tuple(row) for row in together]
        self._tied = {group: row for row in self.together for group in row}
        self.legal: dict[str, Ints] = {}
        self.worth: dict[str, Floats] = {}
        for group, scores in values.items():
            low, high = between[group]
            scores = np.asarray(scores, dtype=np.float64)
            if not 0 <= low <= high <= len(scores):
                raise ValueError(f"group {group!r}: {len(scores)} values do not fit counts from {low} to {high}")
            if not (np.isfinite(scores).all() and (scores >= 0).all()):
                raise ValueError(f"group {group!r} has a value that is negative or not finite")
            steps = _legal(low, high, step_of(round_to, group))
            self.legal[group] = np.union1d([0], steps) if group in self._tied else steps
            self.worth[group] = np.append(0.0, np.cumsum(scores))
        self.lowest = {group: int(steps[0]) for group, steps in self.legal.items()}
        self.highest = {group: int(steps[-1]) for group, steps in self.legal.items()}
        self.start = {g: self._nearest_to(g, now.get(g, prices.sizes[g])) for g in self.legal}

    def _nearest_to(self, group: str, count: int) -> int:
        steps = self.side(group, count)
        return int(steps[_nearest(steps, count)])

    def side(self, group: str, count: int) -> Ints:
        """The legal counts that a group may change to from this one without others: none, or all others."""
        steps = self.legal[group]
        return steps[(steps > 0) == (count > 0)] if group in self._tied else steps

    def result(self, counts: Mapping[str, int]) -> Counts:
        """With the groups that stay as they are."""
        return {**self.fixed, **counts}

    def excess(self, counts: Mapping[str, int]) -> dict[str, float]:
        """By how much each budget is exceeded; those that are not are left out."""
        cost = self.prices.cost(self.result(counts))
        return {kind: cost[kind] - limit for kind, limit in self.budgets.items() if cost[kind] > limit}

    def fits(self, counts: Mapping[str, int]) -> bool:
        """Whether it is within all budgets."""
        return not self.excess(counts)

    def value(self, counts: Mapping[str, int]) -> float:
        """The total value."""
        return math.fsum(float(self.worth[group][count]) for group, count in counts.items())

    def next(self, counts: Mapping[str, int], step: int) -> Counts:
        """The next legal counts upwards (step 1) or downwards (-1), of the groups that have them."""
        found = {}
        for group in self.legal:
            steps = self.side(group, counts[group])
            index = int(np.searchsorted(steps, counts[group])) + step
            if 0 <= index < len(steps):
                found[group] = int(steps[index])
        return found

    def moves(self, counts: Mapping[str, int], step: int) -> list[_Move]:
        """Single steps up or down; down to nothing, or up from there, of those that go together."""
        to = self.next(counts, step)
        changes = self.prices.changes(self.result(counts), {group: [n] for group, n in to.items()})
        result = []
        for i, (group, n) in enumerate(to.items()):
            gain = float(self.worth[group][n] - self.worth[group][counts[group]])
            result.append(_Move({group: n}, gain, {kind: float(changes[kind][i][0]) for kind in self.budgets}))
        before = self.prices.cost(self.result(counts)) if self.together else {}
        for row in self.together:
            if (counts[row[0]] > 0) == (step < 0):
                whole = {group: 0 if step < 0 else int(self.legal[group][1]) for group in row}
                after = self.prices.cost(self.result({**counts, **whole}))
                gain = math.fsum(float(self.worth[g][n] - self.worth[g][counts[g]]) for g, n in whole.items())
                result.append(_Move(whole, gain, {kind: after[kind] - before[kind] for kind in self.budgets}))
        return result


@dataclass(frozen=True)
class _Move:
    """A small change: group → count, what it adds to the value, and to each cost that has a budget."""

    to: Counts
    gain: float
    costs: dict[str, float]


def _legal(low: int, high: int, step: int) -> Ints:
    inner = range(-(-low // step) * step, high + 1, step)
    return np.unique(np.array([low, *inner, high], dtype=np.int64))


def _nearest(steps: Ints, count: int) -> int:
    return int(np.abs(steps - count).argmin())


def _cheapest(problem: _Problem) -> Counts:
    """The lowest counts, or cheaper ones where measured times fall with more channels; group by group, for each budget
    that is exceeded."""
    counts = dict(problem.lowest)
    for _ in range(100):
        excess = problem.excess(counts)
        if not excess:
            break
        kind = next(iter(excess))
        sides = {g: problem.side(g, counts[g]) for g in problem.legal}
        changes = problem.prices.changes(problem.result(counts), {g: steps.tolist() for g, steps in sides.items()})
        least = [float(row.min()) for row in changes[kind]]
        best = int(np.argmin(least)) if least else 0
        if not least or least[best] >= -1e-12 * problem.prices.dense[kind]:
            break
        group = list(problem.legal)[best]
        counts[group] = int(sides[group][int(changes[kind][best].argmin())])
    return counts


def _check_possible(problem: _Problem, cheapest: Counts) -> None:
    if excess := problem.excess(cheapest):
        kind = next(iter(excess))
        smallest = problem.prices.cost(problem.result(cheapest))[kind]
        raise impossible(problem.prices, kind, problem.budgets[kind], smallest)


def _joint(problem: _Problem) -> Counts | None:
    """The mixed-integer program over some levels of every group, again around its answer as long as that is better."""
    best = max(filter(problem.fits, (problem.start, problem.lowest)), key=problem.value, default=None)
    center, last = problem.start, problem.start
    levels = {g: _spread(steps, center[g]) for g, steps in problem.legal.items()}
    # what the tables sum to may differ from the cost in the last bits, either way
    slack = {kind: -1e-12 * abs(limit) for kind, limit in problem.budgets.items()}
    rounds = tries = 0
    while rounds < _ROUNDS and tries < _TRIES:
        found = _program(problem, center, levels, slack)
        if found is None:
            break
        last, exact = found
        if excess := problem.excess(last):
            tries += 1
            slack = {kind: max(slack[kind], 0.0) + excess[kind] if kind in excess else slack[kind] for kind in slack}
        else:
            rounds += 1
            whole = all(len(levels[g]) == len(steps) for g, steps in problem.legal.items())
            better = best is None or problem.value(last) > problem.value(best) * (1 + _GAP)
            if best is None or problem.value(last) > problem.value(best):
                best = last
            if (whole and exact) or (rounds > 1 and not better):
                break
            slack = {kind: -1e-12 * abs(limit) for kind, limit in problem.budgets.items()}
        center = last
        levels = {
            g: _spread(steps, center[g], _reach(levels[g], center[g], steps)) for g, steps in problem.legal.items()
        }
    if not rounds:
        repaired = _repair(problem, last)
        if repaired is not None and (best is None or problem.value(repaired) > problem.value(best)):
            best = repaired
    return None if best is None else _fill(problem, best)


def _program(
    problem: _Problem, center: Counts, levels: Mapping[str, Ints], slack: Mapping[str, float]
) -> tuple[Counts, bool] | None:
    """The best choice of levels by the costs expanded around a center, and whether those are its real costs."""
    layers = problem.prices.layers(
        problem.result(center), {g: steps.tolist() for g, steps in levels.items()}, most=_PAIRS
    )
    wanted = set(problem.budgets)
    layers = [knapsack.LayerCosts(x.source, x.target, {k: x.costs[k] for k in wanted & x.costs.keys()}) for x in layers]
    values = [problem.worth[group][steps].tolist() for group, steps in levels.items()]
    limits = {kind: limit - slack[kind] for kind, limit in problem.budgets.items()}
    try:
        together = [[list(levels).index(group) for group in row] for row in problem.together]
        found = knapsack.joint(values, layers, limits, gap=_GAP, nodes=_NODES, together=together)
    except UserError:  # impossible at these levels, or not found with so little work
        return None
    counts = {group: int(steps[i]) for (group, steps), i in zip(levels.items(), found.levels, strict=True)}
    cost = problem.prices.cost(problem.result(counts))
    exact = all(math.isclose(found.costs[kind], cost[kind], rel_tol=1e-9) for kind in problem.budgets)
    return counts, exact


def _spread(steps: Ints, center: int, reach: tuple[int, int] | None = None) -> Ints:
    """A few of the legal counts: the center and both ends, and others ever farther from the center.

    Args:
        reach: how many steps down and up they go; default: to the ends
    """
    last = len(steps) - 1
    if last < _LEVELS:
        return steps
    at = _nearest(steps, center)
    down, up = (at, last - at) if reach is None else (min(reach[0], at), min(reach[1], last - at))
    room = _LEVELS - 3
    below = min(down, max(room // 2, room - up))
    chosen = {0, at, last} | ({1} if not steps[0] else set())  # the least where anything is kept, too
    chosen |= {at - offset for offset in _offsets(down, below)} | {at + offset for offset in _offsets(up, room - below)}
    return steps[sorted(chosen)]


def _offsets(reach: int, number: int) -> Iterable[int]:
    """So many steps from 1 to the reach, in a geometric row."""
    if reach <= number:
        return range(1, reach + 1)
    return {round(offset) for offset in np.geomspace(1, reach, number)} if number > 0 else ()


def _reach(levels: Ints, center: int, steps: Ints) -> tuple[int, int]:
    """Twice as far, in steps, as the levels beside the center are."""
    place = int(np.searchsorted(levels, center))
    at, low, high = (
        int(np.searchsorted(steps, levels[i])) for i in (place, max(place - 1, 0), min(place + 1, len(levels) - 1))
    )
    return max(1, 2 * (at - low)), max(1, 2 * (high - at))


def _grouped(problem: _Problem, now: Mapping[str, int]) -> Counts | None:
    """The grouped knapsack with the inputs of every layer held as they are now."""
    ((kind, budget),) = problem.budgets.items()
    present = {group: now.get(group, problem.prices.sizes[group]) for group in problem.legal}
    full = problem.result(present)
    rows, own = rows_of(problem.prices, full, problem.legal, problem.worth, problem.together, kind)
    return _knapsack(problem, rows, budget - (problem.prices.cost(full)[kind] - own))


def _apart(problem: _Problem) -> Counts | None:
    """The best of all legal counts, where there is one budget and no two groups meet in a layer or go together, so that
    each has a price of its own (transformers of which the residual stream stays whole); otherwise None."""
    if len(problem.budgets) > 1 or problem.together:
        return None
    ((kind, budget),) = problem.budgets.items()
    full = problem.result(problem.start)
    ends = {group: [steps[0], steps[-1]] for group, steps in problem.legal.items()}
    if any(layer.source is not None and kind in layer.costs for layer in problem.prices.layers(full, ends)):
        return None
    legal = {group: steps.tolist() for group, steps in problem.legal.items()}
    changes = problem.prices.changes(full, legal)[kind]
    costs = zip(problem.legal.items(), changes, strict=True)
    rows = [row_of(group, steps, problem.worth[group], change) for (group, steps), change in costs]
    # what the rows sum to may differ from the cost in the last bits, either way
    return _knapsack(problem, rows, budget + 1e-12 * abs(budget) - problem.prices.cost(full)[kind])


def _knapsack(problem: _Problem, rows: Sequence[Row], limit: float) -> Counts | None:
    """The grouped knapsack over all legal counts, with a smaller limit while the real cost is over the budget."""
    values, costs = [one.values.tolist() for one in rows], [one.costs.tolist() for one in rows]
    last = problem.start
    for _ in range(20):
        try:
            chosen = knapsack.grouped(values, costs, limit)
        except UserError:  # at these costs it cannot be met
            break
        last = {group: n for one, i in zip(rows, chosen, strict=True) for group, n in one.at(i).items()}
        excess = problem.excess(last)
        if not excess:
            return last
        limit -= max(excess.values())
    return _repair(problem, last)


def _repair(problem: _Problem, counts: Counts) -> Counts | None:
    """Takes away the steps that are worth least for what they save, until all budgets are met."""
    counts = dict(counts)
    while excess := problem.excess(counts):
        least: tuple[float, float, Counts] | None = None
        for move in problem.moves(counts, -1):
            saved = -sum(max(move.costs[kind] / by, -1.0) for kind, by in excess.items())
            rate = -move.gain / saved if saved > 0 else math.inf
            if least is None or (rate, -move.gain) < least[:2]:
                least = rate, -move.gain, move.to
        if least is None:
            return None
        counts |= least[2]
    return counts


def _fill(problem: _Problem, counts: Counts) -> Counts:
    """Adds the steps that are worth most for what they cost, as long as the budgets allow."""
    counts = dict(counts)
    tried: list[Counts] = []
    while True:
        cost = problem.prices.cost(problem.result(counts))
        room = {kind: limit - cost[kind] for kind, limit in problem.budgets.items()}
        best: tuple[float, Counts] | None = None
        for move in problem.moves(counts, 1):
            dear = max((change / problem.prices.dense[kind] for kind, change in move.costs.items()), default=0.0)
            if move.gain <= 0 or move.to in tried or any(move.costs[kind] > room[kind] for kind in room):
                continue
            rate = move.gain / max(dear, 1e-12)
            if best is None or rate > best[0]:
                best = rate, move.to
        if best is None:
            return counts
        if problem.fits({**counts, **best[1]}):
            counts |= best[1]
        else:
            tried.append(best[1])
