"""Which channels to keep: the most valuable selection whose cost stays within its budgets.

`grouped` is the grouped knapsack with one cost for each level of each group (the inputs of every layer held at their
present width). `joint` prices every (c_in, c_out) pair of each layer, for any number of budgets at once. Both take
plain arrays; a *level* i of a group stands for keeping its i-th choice of channels, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regrow.budgets.program import Floats, LayerCosts, Program, above
from regrow.errors import UserError

__all__ = ["LayerCosts", "Solution", "grouped", "joint"]

Ints = NDArray[np.int64]

_BEAM = 256  # states of the first, rough pass, which only has to find a good selection to prune against


@dataclass(frozen=True)
class _Options:
    """The undominated levels of all groups, padded with +inf costs and -inf values.

    Attributes:
        level: the level that each option stands for, (groups, options)
        value, cost: of that level, (groups, options); options are sorted by cost and by value at once
    """

    level: Ints
    value: Floats
    cost: Floats


@dataclass
class _Frontier:
    """Partial selections of the groups met so far: no one is as cheap and as valuable as another.

    Attributes:
        cost, value: (states,), both strictly increasing
        trace: for each group met, the state it came from and the option it chose, each (states,)
    """

    cost: Floats
    value: Floats
    trace: list[tuple[Ints, Ints]]


def grouped(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    *,
    max_states: int = 20_000,
) -> list[int]:
    """How many units of each group to keep, for the highest total value at a total cost within the budget.

    Partial selections are extended group by group; those that another one dominates (no dearer, no less valuable) or
    that a Lagrangian bound excludes are dropped, so the answer is optimal for real costs too. Should more than
    ``max_states`` partial selections remain, the costs are put on as many cells and only the best of each cell is
    kept: the answer may then be suboptimal by a fraction of a cell, but is never over budget.

    Args:
        values: ``values[g][i]`` is the total value of keeping the i best units of group g; groups may differ in length
        costs: ``costs[g][i]``, the total cost of the same, in the unit of the budget; it may fall with i, be zero or
            negative; ``inf`` forbids a level
        budget: what the sum of the costs may reach; sums are those of `math.fsum`, without rounding errors
        max_states: where exactness ends for the sake of time and memory

    Returns:
        The level of each group. Of equally valuable selections the cheapest is taken, always the same one.

    Raises:
        UserError: if no selection is within the budget (it names the smallest that can be met), or a number is NaN.
    """
    if not values and not costs and budget >= 0:
        return []
    options = _options(values, costs, budget)
    if (smallest := math.fsum(options.cost[:, 0])) > budget:
        raise UserError(f"a budget of {budget:.6g} cannot be met: the smallest that can is {above(smallest)}")
    rows = np.arange(len(options.level))
    best = (options.cost < np.inf).sum(axis=1) - 1
    if math.fsum(options.cost[rows, best]) <= budget:  # everything of value fits
        return [int(level) for level in options.level[rows, best]]
    rate, choice = _multiplier(options, best, budget)
    floor = math.fsum(options.value[rows, choice])
    solver = _Solver(options, budget, rate, choice, floor)
    if (rough := solver.solve(min(_BEAM, max_states))) is not None:
        choice = rough
        solver.floor = max(floor, math.fsum(options.value[rows, choice]))
    if (exact := solver.solve(max_states)) is not None:
        choice = exact
    return [int(level) for level in options.level[rows, choice]]


def _options(values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> _Options:
    """Checks the numbers and keeps the levels that are not dominated within their group."""
    if len(values) != len(costs) or any(len(v) != len(c) for v, c in zip(values, costs, strict=True)):
        raise ValueError("values and costs must have the same groups and levels")
    if math.isnan(budget):
        raise UserError("the budget is not a number")
    kept: list[tuple[Ints, Floats, Floats]] = []
    for group, (v, c) in enumerate(zip(values, costs, strict=True)):
        value, cost = np.asarray(v, dtype=np.float64), np.asarray(c, dtype=np.float64)
        allowed = np.flatnonzero(cost < np.inf)
        if np.isnan(cost).any() or (cost == -np.inf).any() or not np.isfinite(value[allowed]).all():
            raise UserError(f"group {group} has a value or cost that is not a finite number")
        if not len(allowed):
            raise UserError(f"no level of group {group} is allowed: each one has an infinite cost")
        order = allowed[np.lexsort((allowed, -value[allowed], cost[allowed]))]
        front = order[_rises(value[order])]
        kept.append((front, value[front], cost[front]))
    width = max(len(level) for level, _, _ in kept)
    shape = (len(kept), width)
    result = _Options(np.zeros(shape, np.int64), np.full(shape, -np.inf), np.full(shape, np.inf))
    for row, (level, value, cost) in enumerate(kept):
        result.level[row, : len(level)] = level
        result.value[row, : len(level)] = value
        result.cost[row, : len(level)] = cost
    return result


def _rises(value: Floats) -> NDArray[np.bool_]:
    """Where a sequence exceeds everything before it."""
    rises = np.ones(len(value), dtype=bool)
    rises[1:] = value[1:] > np.maximum.accumulate(value)[:-1]
    return rises


def _multiplier(options: _Options, best: Ints, budget: float) -> tuple[float, Ints]:
    """The price of a unit of cost at which the best options just fit, and a feasible choice beside it.

    ``best`` are the most valuable options, which do not fit; the cheapest ones do. The minimum of the Lagrangian dual
    is found by cutting the line through a feasible and an infeasible choice.
    """
    rows = np.arange(len(best))
    fits, exceeds = np.zeros(len(rows), np.int64), best
    cost = np.where(np.isinf(options.cost), 0.0, options.cost)  # padding has a value of -inf, whatever its cost
    rate = 0.0
    for _ in range(100):
        low, high = options.cost[rows, fits].sum(), options.cost[rows, exceeds].sum()
        gain = options.value[rows, exceeds].sum() - options.value[rows, fits].sum()
        if high <= low or gain <= 0.0:
            break
        rate = float(gain / (high - low))
        reduced = options.value - rate * cost
        choice = reduced.argmax(axis=1)
        top = reduced[rows, choice]
        # nothing is above the line through the two choices
        if top.sum() - reduced[rows, fits].sum() <= 1e-12 * np.abs(top).sum():
            break
        if math.fsum(options.cost[rows, choice]) <= budget:
            if (choice == fits).all():
                break
            fits = choice
        else:
            if (choice == exceeds).all():
                break
            exceeds = choice
    return rate, fits


class _Solver:
    """The dynamic program over the groups, with a bound from the price ``rate`` of a unit of cost.

    Args:
        options: of all groups
        budget: of the total cost
        rate: price of cost, > 0; the bound is valid for any price and tight for the right one
        base: a feasible choice, completed from which partial selections become whole ones
        floor: value of the best selection known
    """

    def __init__(self, options: _Options, budget: float, rate: float, base: Ints, floor: float) -> None:
        rows = np.arange(len(base))
        self.options, self.budget, self.rate, self.floor = options, budget, rate, floor
        cost = np.where(np.isinf(options.cost), 0.0, options.cost)
        # value lost by an option against the best one at the price `rate`
        reduced = options.value - rate * cost
        self.loss = reduced.max(axis=1, keepdims=True) - reduced
        self.bound = float(reduced.max(axis=1).sum()) + rate * budget
        sizes = np.abs(cost).max(axis=1).sum() + abs(budget)
        self.cost_error = 4 * len(rows) * np.finfo(float).eps * float(sizes)
        worth = np.where(np.isinf(options.value), 0.0, np.abs(options.value)).max(axis=1).sum()
        self.value_error = 4 * len(rows) * np.finfo(float).eps * float(worth + rate * sizes)
        # groups with close alternatives first: they bring good selections, hence tight bounds, early
        self.order = np.lexsort((rows, np.sort(self.loss, axis=1)[:, : min(2, self.loss.shape[1])][:, -1]))
        self.base_cost = _remaining(cost[rows, base][self.order])
        self.base_value = _remaining(options.value[rows, base][self.order])
        self.least_cost = _remaining(options.cost[self.order, 0])
        self.best_reduced = _remaining(reduced.max(axis=1)[self.order])

    def solve(self, max_states: int) -> Ints | None:
        """The best choice of an option for each group; None if none is better than the floor's own."""
        front = _Frontier(np.zeros(1), np.zeros(1), [])
        for place, group in enumerate(self.order):
            front = self._extend(front, place, int(group), max_states)
            if not len(front.cost):
                return None
        return self._best(front)

    def _extend(self, front: _Frontier, place: int, group: int, max_states: int) -> _Frontier:
        near = np.flatnonzero(self.loss[group] <= self.bound - self.floor + self.value_error)
        cost = (front.cost[:, None] + self.options.cost[group, near]).ravel()
        value = (front.value[:, None] + self.options.value[group, near]).ravel()
        whole = cost + self.base_cost[place + 1] <= self.budget - self.cost_error
        if whole.any():
            self.floor = max(self.floor, float(value[whole].max()) + self.base_value[place + 1])
        hope = value + self.best_reduced[place + 1] + self.rate * (self.budget - cost)
        may = (hope >= self.floor - self.value_error) & (
            cost + self.least_cost[place + 1] <= self.budget + self.cost_error
        )
        index = np.flatnonzero(may)
        if len(index) > 4 * max_states:
            index = index[_best_of_cells(cost[index], hope[index], max_states)]
        index = index[np.lexsort((-value[index], cost[index]))]
        index = index[_rises(value[index])]
        if len(index) > max_states:
            index = index[_best_of_cells(cost[index], hope[index], max_states)]
        trace = [*front.trace, (index // len(near), near[index % len(near)])]
        return _Frontier(cost[index], value[index], trace)

    def _best(self, front: _Frontier) -> Ints | None:
        # near the budget the sums of the program may be wrong in the last bits: the exact sum decides
        for state in reversed(range(len(front.cost))):
            choice = np.zeros(len(self.order), np.int64)
            at = state
            for group, (parent, option) in zip(self.order[::-1], front.trace[::-1], strict=True):
                choice[group] = option[at]
                at = int(parent[at])
            if math.fsum(self.options.cost[np.arange(len(choice)), choice]) <= self.budget:
                return choice
        return None


def _best_of_cells(cost: Floats, hope: Floats, cells: int) -> Ints:
    """The indices of the most promising states in each of so many equal cells of the cost."""
    low, high = cost.min(), cost.max()
    if high == low:
        return np.array([hope.argmax()])
    cell = np.minimum((cost - low) * (cells / (high - low)), cells - 1).astype(np.int64)
    best = np.full(cells, -np.inf)
    np.maximum.at(best, cell, hope)
    tops = np.flatnonzero(hope == best[cell])
    _, first = np.unique(cell[tops], return_index=True)  # of equals the first
    return tops[first]


def _remaining(numbers: Floats) -> Floats:
    """Sums of what comes from each place on, with a final 0."""
    return np.append(np.cumsum(numbers[::-1])[::-1], 0.0)


@dataclass(frozen=True)
class Solution:
    """What `joint` found.

    Attributes:
        levels: the level of each group
        value: total value of them
        costs: total cost for each budget, none above it
        gap: proven bound on (best possible value − value) relative to the span of the values; 0 is optimal
        proven: whether ``gap`` is within what was asked for (False only if the limit of nodes came first)
    """

    levels: list[int]
    value: float
    costs: dict[str, float]
    gap: float
    proven: bool


def joint(
    values: Sequence[Sequence[float]],
    layers: Sequence[LayerCosts],
    budgets: Mapping[str, float],
    *,
    gap: float = 1e-5,
    nodes: int | None = None,
    together: Sequence[Sequence[int]] = (),
) -> Solution:
    """The most valuable level of each group, every layer priced at its pair of input and output width.

    Solved as a mixed-integer program by HiGHS. The result is checked against the tables themselves: what exceeds a
    budget within the solver's tolerance is excluded and the problem solved again.

    Args:
        values: ``values[g][i]`` is the value of level i of group g
        layers: their groups and cost tables
        budgets: name → what the sum of the costs of that name may reach; any number of them
        gap: relative gap to the proven bound at which the solver may stop
        nodes: of a search tree at most; the best selection found by then is returned. None sets no limit.
        together: groups of which all are at their level 0, or none is.

    Raises:
        UserError: if a budget cannot be met, by itself or beside those named before it (with the smallest value that
            can), if no selection was found within so many nodes, or if a number is not finite.
    """
    problem = Program(values, layers, budgets, together)
    excluded: list[list[int]] = []
    margin = 0.0
    while True:
        levels, bound, done = problem.solve(problem.objective, list(budgets), gap, nodes, excluded, margin)
        if levels is None:
            if not done:
                raise UserError(f"no channel selection was found within {nodes} nodes: allow more")
            raise UserError(problem.why_infeasible(nodes))
        costs = problem.costs(levels)
        over = [name for name, limit in budgets.items() if costs[name] > limit]
        if not over:
            break
        excluded.append(levels)
        if len(excluded) > 20:  # many ties at the edge of the tolerance: step back from it
            margin = max(2.0 * margin, 1e-9)
    value = math.fsum(v[i] for v, i in zip(values, levels, strict=True))
    reached = problem.span_gap(levels, bound)
    return Solution(levels, value, costs, reached, done and reached <= gap + 1e-9)
