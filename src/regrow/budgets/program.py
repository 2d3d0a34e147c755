"""The joint selection as a mixed-integer program, for HiGHS: what `regrow.budgets.knapsack.joint` solves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regrow.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SOLVED, _INFEASIBLE = 0, 2  # scipy's words for how it ended


@dataclass(frozen=True)
class LayerCosts:
    """What one layer costs at each pair of levels of the groups that set its input and output width.

    A layer whose input is a concatenation of groups is given as one of these for each of them. That is exact for what
    is a product of widths (FLOPs, parameters: sum over the parts of c_part × c_out) and an approximation for latency:
    split the time at the present widths, and let each part carry what it adds.

    Attributes:
        source: group that sets the input width; None if that is fixed
        target: group that sets the output width; None if that is fixed; may be the source (a depthwise convolution:
            only the diagonal of its costs counts)
        costs: for each budget the costs, (levels of source, levels of target), with 1 in place of a fixed side; may
            be negative; a budget that is missing here is not touched by the layer
    """

    source: int | None
    target: int | None
    costs: Mapping[str, ArrayLike]


def above(smallest: float) -> str:
    """A number of few digits that is not below ``smallest``, so that asking for it succeeds."""
    for digits in range(6, 17):
        text = f"{smallest:.{digits}g}"
        if float(text) >= smallest:
            return text
    return repr(smallest)


class Program:
    """The mixed-integer program: a binary for each level of each group, a share for each pair of levels of a layer.

    The shares of a layer sum to the binaries along both axes, so they are whole when those are, and the relaxation
    is the tightest that sees one layer at a time.

    Args:
        values, layers, budgets: as for `regrow.budgets.knapsack.joint`.
        together: groups of which all are at their first level, or none is.
    """

    def __init__(
        self, values: Sequence[Sequence[float]], layers: Sequence[LayerCosts], budgets: Mapping[str, float],
        together: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        self.sizes = [len(v) for v in values]
        if 0 in self.sizes:
            raise UserError(f"group {self.sizes.index(0)} has no level to choose")
        for group, row in enumerate(values):
            if not np.isfinite(np.asarray(row, dtype=np.float64)).all():
                raise UserError(f"group {group} has a value that is not a finite number")
        self.budgets = dict(budgets)
        if bad := [name for name, limit in budgets.items() if math.isnan(limit)]:
            raise UserError(f"the budget {bad[0]} is not a number")
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.tables = [self._tables(index, layer) for index, layer in enumerate(layers)]
        self.layers = list(layers)
        self.objective = np.concatenate([np.asarray(v, dtype=np.float64) - min(v) for v in values] or [np.zeros(0)])
        self.constant, self.rows, self.pairs = self._assemble()
        self.links = self._links(together)

    def _tables(self, index: int, layer: LayerCosts) -> dict[str, Floats]:
        """The layer's cost tables, checked."""
        shape = tuple(1 if g is None else self.sizes[g] for g in (layer.source, layer.target))
        tables = {}
        for name, table in layer.costs.items():
            if name not in self.budgets:
                raise ValueError(f"layer {index} has a cost {name!r} that has no budget")
            array = np.asarray(table, dtype=np.float64)
            if array.shape != shape:
                raise ValueError(f"layer {index}: costs of {name!r} have shape {array.shape}, not {shape}")
            if not np.isfinite(array).all():
                raise UserError(f"layer {index} has a cost of {name!r} that is not a finite number")
            tables[name] = array
        return tables

    def _assemble(self) -> tuple[dict[str, float], dict[str, Floats], dict[tuple[int, int], slice]]:
        """Constants, coefficients by budget and the variables of each pair of groups, layers of one pair summed."""
        constant = dict.fromkeys(self.budgets, 0.0)
        single = {name: np.zeros(self.starts[-1]) for name in self.budgets}
        coupled: dict[tuple[int, int], dict[str, Floats]] = {}
        for layer, tables in zip(self.layers, self.tables, strict=True):
            for name, table in tables.items():
                source, target = layer.source, layer.target
                if source is None and target is None:
                    constant[name] += float(table[0, 0])
                elif source == target:
                    single[name][self._of(source)] += table.diagonal()
                elif source is None or target is None:
                    single[name][self._of(target if source is None else source)] += table.ravel()
                elif source > target:
                    self._add(coupled, (target, source), name, table.T)
                else:
                    self._add(coupled, (source, target), name, table)
        pairs: dict[tuple[int, int], slice] = {}
        extra: dict[str, list[Floats]] = {name: [] for name in self.budgets}
        end = int(self.starts[-1])
        for pair, by_name in coupled.items():
            pairs[pair] = slice(end, end := end + self.sizes[pair[0]] * self.sizes[pair[1]])
            for name in self.budgets:
                extra[name].append(by_name[name].ravel() if name in by_name else np.zeros(end - pairs[pair].start))
        rows = {name: np.concatenate([single[name], *extra[name]]) for name in self.budgets}
        return constant, rows, pairs

    @staticmethod
    def _add(
        coupled: dict[tuple[int, int], dict[str, Floats]], pair: tuple[int, int], name: str, table: Floats
    ) -> None:
        by_name = coupled.setdefault(pair, {})
        by_name[name] = by_name[name] + table if name in by_name else table

    def _of(self, group: int | None) -> slice:
        assert group is not None
        return slice(int(self.starts[group]), int(self.starts[group + 1]))

    def _links(self, together: Sequence[Sequence[int]]) -> Any:
        """One level per group; the shares of a pair sum to the levels along both axes; first levels are chosen
        together. Sparse, and right-hand sides."""
        from scipy.sparse import coo_array

        rows: list[Ints] = []
        columns: list[Ints] = []
        entries: list[Floats] = []
        right: list[float] = []
        for group in range(len(self.sizes)):
            where = self._of(group)
            columns.append(np.arange(where.start, where.stop))
            rows.append(np.full(self.sizes[group], len(right)))
            entries.append(np.ones(self.sizes[group]))
            right.append(1.0)
        for (first, second), where in self.pairs.items():
            share = np.arange(where.start, where.stop).reshape(self.sizes[first], self.sizes[second])
            for group, block in ((first, share), (second, share.T)):
                n, other = block.shape
                row = len(right) + np.arange(n)
                rows += [np.repeat(row, other), row]
                columns += [block.ravel(), np.arange(n) + self.starts[group]]
                entries += [np.ones(block.size), -np.ones(n)]
                right += [0.0] * n
        for first, *others in together:
            for other in others:
                columns.append(self.starts[[first, other]])
                rows.append(np.full(2, len(right)))
                entries.append(np.array([1.0, -1.0]))
                right.append(0.0)
        width = max([int(self.starts[-1]), *(s.stop for s in self.pairs.values())])
        if not right:
            return coo_array((0, width)).tocsr(), np.zeros(0)
        data = (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns)))
        return coo_array(data, shape=(len(right), width)).tocsr(), np.array(right)

    def costs(self, levels: Sequence[int]) -> dict[str, float]:
        """The cost of a selection by the tables themselves, in exact sums."""
        parts: dict[str, list[float]] = {name: [] for name in self.budgets}
        for layer, tables in zip(self.layers, self.tables, strict=True):
            at = tuple(0 if g is None else levels[g] for g in (layer.source, layer.target))
            for name, table in tables.items():
                parts[name].append(float(table[at]))
        return {name: math.fsum(costs) for name, costs in parts.items()}

    def solve(
        self, objective: Floats, limited: Sequence[str], gap: float, nodes: int | None,
        excluded: Sequence[Sequence[int]] = (), margin: float = 0.0,
    ) -> tuple[list[int] | None, float, bool]:  # fmt: skip
        """Maximises over the selections within the budgets ``limited``.

        What is limited is work, never time, so that the answer does not depend on the machine.

        Args:
            nodes: of the search tree at most; None for no limit

        Returns:
            levels or None, the bound on the objective, and whether that is final (not cut short by ``nodes``)
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        matrix, right = self.links
        width = matrix.shape[1]
        if not width:
            fits = all(self.constant[name] <= self.budgets[name] for name in limited)
            return ([] if fits and not excluded else None), 0.0, True
        constraints = [LinearConstraint(matrix, right, right)]
        for name in limited:
            row, rest = self.rows[name], self.budgets[name] - self.constant[name]
            # scaled so that the solver's absolute tolerance of 1e-6 is a small part of the budget
            scale = 1e3 / max(float(np.abs(row).max()), abs(rest) if math.isfinite(rest) else 0.0, 1e-300)
            limit = rest * scale - margin * 1e3
            constraints.append(LinearConstraint(row[None] * scale, -np.inf, limit))
        for levels in excluded:
            cut = np.zeros((1, width))
            cut[0, self.starts[:-1] + np.asarray(levels)] = 1.0
            constraints.append(LinearConstraint(cut, -np.inf, len(levels) - 1.0))
        goal = np.zeros(width)
        goal[: len(objective)] = objective
        size = 1e3 / max(float(np.abs(goal).max()), 1e-300)
        whole = (np.arange(width) < self.starts[-1]).astype(np.int64)
        options = {"mip_rel_gap": gap} | ({} if nodes is None else {"node_limit": nodes})
        found = milp(-goal * size, integrality=whole, bounds=Bounds(0, 1), constraints=constraints, options=options)
        if found.x is None:
            return None, math.nan, found.status == _INFEASIBLE
        levels = [int(np.argmax(found.x[self._of(g)])) for g in range(len(self.sizes))]
        bound = -found.mip_dual_bound / size if found.mip_dual_bound is not None else math.inf
        return levels, bound, found.status == _SOLVED

    def span_gap(self, levels: Sequence[int], bound: float) -> float:
        """How far a selection may be from the best, relative to its own worth above the least valuable levels."""
        worth = float(self.objective[self.starts[:-1] + np.asarray(levels, dtype=np.int64)].sum())
        return max(0.0, bound - worth) / max(worth, 1e-300) if bound - worth > 0 else 0.0

    def why_infeasible(self, nodes: int | None) -> str:
        """Names the first budget that cannot be met beside those before it, and the smallest that can."""
        met: list[str] = []
        for name, limit in self.budgets.items():
            levels, _, _ = self.solve(-self.rows[name], met, 1e-9, nodes)
            smallest = -math.inf if levels is None else self.costs(levels)[name]  # None: not found so soon
            if smallest > limit:
                beside = " while " + " and ".join(f"{m} <= {self.budgets[m]:.6g}" for m in met) if met else ""
                least = f"the smallest that can is {above(smallest)}"
                return f"a budget of {limit:.6g} for {name} cannot be met{beside}: {least}"
            met.append(name)
        return "no selection of channels meets all budgets: raise one of " + ", ".join(self.budgets)
