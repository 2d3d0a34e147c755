"""Costs as functions of channel counts: products of widths, and times looked up in a table.

Every cost is a sum of terms, each a function of an input and an output width; a width is a constant plus a multiple of
the channels of each group that has a part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regrow.latency.table import Grid, LatencyTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = list[Any]  # of all groups in order; ints, or arrays that broadcast against each other
Pair = tuple[int, int]


@dataclass(frozen=True)
class Extent:
    """How many indices of a dimension stay.

    Attributes:
        const: those that belong to no group
        parts: index of a group → how many indices each of its channels has
    """

    const: int
    parts: Mapping[int, float]

    def at(self, counts: Counts) -> Any:
        """The width at these counts, which may be arrays."""
        total: Any = self.const
        for group, each in self.parts.items():
            total = total + each * counts[group]
        return total


class Price(Protocol):
    """One kind of cost as a function of the counts of all groups."""

    def cost(self, counts: Counts) -> float:
        """Of the whole model."""

    def change(self, counts: Counts, group: int, levels: Ints) -> Floats:
        """What it adds to the cost if this group alone goes to each of these levels."""

    def pairs(self) -> Iterator[Pair]:
        """The groups that meet as input and output, smaller index first."""

    def meeting(self, counts: Counts, pair: Pair, first: Ints, second: Ints) -> Floats:
        """What going to two levels at once adds beside the two single changes, (first levels, second levels)."""

    def output(self, counts: Counts, group: int, levels: Ints) -> Floats:
        """The cost at each level of all whose output width the group sets, with all inputs at the counts."""


class Products:
    """A sum of products of widths, collected into one polynomial of the counts."""

    def __init__(self, groups: int) -> None:
        self.const = 0.0
        self.ends = np.zeros((2, groups))  # coefficients by input and by output width
        self.square = np.zeros((groups, groups))  # (input, output)
        self.higher: list[tuple[float, list[Extent]]] = []

    def add(self, factor: float, inputs: Sequence[Extent], outputs: Sequence[Extent]) -> None:
        """Adds factor × the product of all these widths."""
        if len(inputs) + len(outputs) > 2:
            self.higher.append((factor, [*inputs, *outputs]))
            return
        if len(outputs) == 2:
            inputs, outputs = outputs[:1], outputs[1:]
        one = Extent(1, {})
        a, b = (side[0] if side else one for side in (inputs, outputs))
        self.const += factor * a.const * b.const
        for group, each in a.parts.items():
            self.ends[0, group] += factor * each * b.const
            for other, every in b.parts.items():
                self.square[group, other] += factor * each * every
        for group, each in b.parts.items():
            self.ends[1, group] += factor * each * a.const

    def finish(self) -> Products:
        """To be called when everything is added."""
        self.linear = self.ends.sum(axis=0)
        self.diagonal = self.square.diagonal().copy()
        self.cross = self.square + self.square.T
        np.fill_diagonal(self.cross, 0.0)
        self._pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(self.cross))]
        self._higher_of = [[t for t in self.higher if any(g in w.parts for w in t[1])] for g in range(len(self.linear))]
        return self

    def cost(self, counts: Counts) -> float:
        n = np.asarray(counts, dtype=np.float64)
        more = sum(factor * math.prod(w.at(counts) for w in widths) for factor, widths in self.higher)
        return float(self.const + self.linear @ n + n @ self.square @ n + more)

    def change(self, counts: Counts, group: int, levels: Ints) -> Floats:
        n = np.asarray(counts, dtype=np.float64)
        rate = self.linear[group] + self.cross[group] @ n
        result = (levels - n[group]) * rate + self.diagonal[group] * (levels * levels - n[group] ** 2)
        moved = [*counts[:group], levels, *counts[group + 1 :]]
        for factor, widths in self._higher_of[group]:
            result = result + factor * (
                math.prod(w.at(moved) for w in widths) - math.prod(w.at(counts) for w in widths)
            )
        return np.asarray(result, dtype=np.float64)

    def pairs(self) -> Iterator[Pair]:
        yield from self._pairs

    def meeting(self, counts: Counts, pair: Pair, first: Ints, second: Ints) -> Floats:
        a, b = pair
        return self.cross[a, b] * np.outer(first - counts[a], second - counts[b])

    def output(self, counts: Counts, group: int, levels: Ints) -> Floats:
        rate = self.ends[1, group] + self.square[:, group] @ np.asarray(counts, dtype=np.float64)
        return np.asarray(levels * rate, dtype=np.float64)


@dataclass(frozen=True)
class Timed:
    """A unit of the latency table: its grid, the seconds found so far, its widths (one for both: no input), and the
    group without which it is not run, if there is one."""

    grid: Grid
    seen: dict[Pair, float]
    source: Extent | None
    target: Extent
    gate: int | None = None

    def groups(self) -> set[int]:
        gates = () if self.gate is None else (self.gate,)
        return {*self.target.parts, *(self.source.parts if self.source else ()), *gates}

    def is_run(self, counts: Counts) -> Any:
        """Whether it is, at counts which may be arrays."""
        return self.gate is None or counts[self.gate] > 0


class Times:
    """The latency of a model: its units in their order, as `LatencyTable.model` adds them."""

    def __init__(
        self, table: LatencyTable, widths: Sequence[tuple[Extent | None, Extent]], groups: int,
        gates: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.other, self.correction = table.other, table.correction
        seen: dict[int, dict[Pair, float]] = {}
        self.units = []
        for unit, (source, target) in zip(table.network.units, widths, strict=True):
            table.latency(unit.key, unit.c_in, unit.c_out)  # raises if the table has no such unit
            grid = table.grids[unit.key]
            self.units.append(Timed(grid, seen.setdefault(id(grid), {}), source, target, gates.get(unit.name)))
        self.of = [[u for u in self.units if g in u.groups()] for g in range(groups)]
        self.met: dict[Pair, list[Timed]] = {}
        for timed in self.units:
            sources = timed.source.parts if timed.source else ()
            pairs = {(a, b) for a in sources for b in timed.target.parts}
            pairs |= {(timed.gate, b) for b in timed.groups()} if timed.gate is not None else set()
            for pair in {(min(a, b), max(a, b)) for a, b in pairs if a != b}:
                self.met.setdefault(pair, []).append(timed)

    def cost(self, counts: Counts) -> float:
        total = self.other
        for timed in self.units:
            total += self._seconds(timed, counts)
        return total

    def change(self, counts: Counts, group: int, levels: Ints) -> Floats:
        result = np.zeros(len(levels))
        for timed in self.of[group]:
            result += self._row(timed, counts, group, levels) - self._seconds(timed, counts)
        return result

    def pairs(self) -> Iterator[Pair]:
        yield from self.met

    def meeting(self, counts: Counts, pair: Pair, first: Ints, second: Ints) -> Floats:
        a, b = pair
        both, only_a, only_b = list(counts), list(counts), list(counts)
        both[a] = only_a[a] = first[:, None]
        both[b] = only_b[b] = second[None, :]
        result = np.zeros((len(first), len(second)))
        for timed in self.met[pair]:
            single = self._table(timed, only_a, (len(first), 1)) + self._table(timed, only_b, (1, len(second)))
            result += self._table(timed, both, result.shape) - single + self._seconds(timed, counts)
        return result

    def output(self, counts: Counts, group: int, levels: Ints) -> Floats:
        result = np.zeros(len(levels))
        for timed in self.of[group]:
            if group not in timed.target.parts:
                continue
            source = None if timed.source is None else Extent(round(timed.source.at(counts)), {})
            held = replace(timed, source=source)
            result += self._row(held, counts, group, levels)
            if len(timed.target.parts) > 1 or timed.target.const:  # of a shared width what the group adds to it
                result -= self._row(held, counts, group, [0])
        return result

    def _seconds(self, timed: Timed, counts: Counts) -> float:
        if not timed.is_run(counts):
            return 0.0
        c_out = int(timed.target.at(counts) + 0.5)
        return self._look(timed, c_out if timed.source is None else int(timed.source.at(counts) + 0.5), c_out)

    def _row(self, timed: Timed, counts: Counts, group: int, levels: Iterable[int]) -> Floats:
        moved = list(counts)
        row = []
        for level in levels:
            moved[group] = int(level)
            row.append(self._seconds(timed, moved))
        return np.array(row)

    def _table(self, timed: Timed, counts: Counts, shape: tuple[int, ...]) -> Floats:
        c_out = np.broadcast_to(np.floor(timed.target.at(counts) + 0.5) * timed.is_run(counts), shape)
        c_in = c_out if timed.source is None else np.broadcast_to(np.floor(timed.source.at(counts) + 0.5), shape)
        pairs = zip(c_in.astype(np.int64).flat, c_out.astype(np.int64).flat, strict=True)
        return np.array([self._look(timed, int(a), int(b)) for a, b in pairs]).reshape(shape)

    def _look(self, timed: Timed, c_in: int, c_out: int) -> float:
        if not c_in or not c_out:  # it is not run
            return 0.0
        found = timed.seen.get((c_in, c_out))
        if found is None:
            found = timed.seen[c_in, c_out] = self.correction * timed.grid.at(c_in, c_out)
        return found
