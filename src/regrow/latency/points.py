"""Where each kind of unit is measured: over a grid of channel counts, as fine as the time allows, and between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from regrow.latency.network import ATTENTION, Key, Network, Unit
from regrow.latency.runtime import Runtime

PASSES = 3  # over all points
REPEATS = 2  # of a point in each pass

_DENSITIES = (8, 6, 4, 3, 2)  # points along each axis of a grid, the finest that the time allows is taken
_PLACES = (0.15, 0.3, 0.5, 0.7)  # of probes, along an axis


@dataclass(frozen=True)
class Axes:
    """Where a kind of unit is measured: ``c_out`` is (0,) where it is as wide as the input; ``step`` as in `Grid`."""

    c_in: tuple[int, ...]
    c_out: tuple[int, ...]
    step: int

    def points(self) -> list[tuple[int, int]]:
        return [(a, b or a) for a in self.c_in for b in self.c_out]


Point = tuple[Key, int, int]  # a kind of unit, and its channels in and out


@dataclass(frozen=True)
class Points:
    """All points to measure: of the grids, and between their steps."""

    axes: dict[Key, Axes]
    probes: dict[Key, list[tuple[int, int]]]

    def all(self) -> list[Point]:
        grids = [(key, a, b) for key, axes in self.axes.items() for a, b in axes.points()]
        return grids + [(key, a, b) for key, pairs in self.probes.items() for a, b in pairs]


def axes(units: Sequence[Unit], density: int) -> Axes:
    """Where to measure a kind of unit that has these instances: multiples of a step, and all dense widths.

    Args:
        density: how many points up to the largest width; widths that no layer sets are only measured as they are
    """
    key = units[0].key
    groups = max(1, key.groups, key.per_group)
    free_in = {unit.c_in for unit in units if not unit.own}
    free_out = {unit.c_out for unit in units if not unit.fixed}
    step = 16 if max(u.c_in for u in units) >= 48 or max(u.c_out for u in units) >= 48 else 4
    step = 1 if key.kind == ATTENTION else step
    step = step * groups // math.gcd(step, groups)
    c_in = _axis(free_in, {u.c_in for u in units}, density, step)
    c_out = _axis(free_out, {u.c_out for u in units}, density, step) if key.two_sided else (0,)
    return Axes(c_in, c_out, step)


def _axis(free: set[int], widths: set[int], density: int, step: int) -> tuple[int, ...]:
    points = set(widths)
    if free and max(free) > step:
        top = max(free)
        points |= {step} | {max(step, round(top * i / density / step) * step) for i in range(1, density)}
    return tuple(sorted(points))


def points_of(network: Network, runner: Runtime, time_limit: float) -> Points:
    """The finest grids that can be visited `PASSES` times within the time limit."""
    kinds: dict[Key, list[Unit]] = {}
    for unit in network.units:
        kinds.setdefault(unit.key, []).append(unit)
    pilot: dict[Key, tuple[float, float]] = {}  # seconds of a visit at the largest and the smallest widths
    for key, units in kinds.items():
        coarse = axes(units, 2)
        large, small = coarse.points()[-1], coarse.points()[0]
        pilot[key] = tuple(visit_seconds(runner, key, *point) for point in (large, small))  # type: ignore[assignment]
    for density in _DENSITIES:
        made = {key: axes(units, density) for key, units in kinds.items()}
        seconds = sum(_estimate(pilot[key], a) for key, a in made.items()) * PASSES
        if seconds <= 0.9 * time_limit or density == _DENSITIES[-1]:
            break
    return Points(made, {key: _probes(key, a) for key, a in made.items()})


def visit_seconds(runner: Runtime, key: Key, c_in: int, c_out: int) -> float:
    start = time.perf_counter()
    runner.sample(key, c_in, c_out, REPEATS)
    return time.perf_counter() - start


def _estimate(pilot: tuple[float, float], axes: Axes) -> float:
    """Seconds of visiting a grid once: between the smallest and the largest point with the product of the widths."""
    large, small = pilot
    top = axes.c_in[-1] * max(axes.c_out[-1], 1)
    shares = [a * max(b, 1) / top for a in axes.c_in for b in axes.c_out]
    return sum(small + share * max(0.0, large - small) for share in shares)


def _probes(key: Key, axes: Axes) -> list[tuple[int, int]]:
    """Points in the middle of a step, which show whether a started step costs as much as a whole one."""
    if axes.step % 2 or axes.step < 8 or key.groups > 1 or key.per_group > 1:
        return []
    half = axes.step // 2

    def middle(points: tuple[int, ...], place: float) -> int:
        target = points[0] + place * (points[-1] - points[0])
        return max(int(target // axes.step) * axes.step + half, points[0])

    wide_in, wide_out = len(axes.c_in) > 1, len(axes.c_out) > 1
    found: list[tuple[int, int]] = []
    for number in range(2 * len(_PLACES)):
        place = _PLACES[number // 2]
        on = axes.c_out if number % 2 == 0 else axes.c_in
        nearest_point = on[min(range(len(on)), key=lambda i: abs(on[i] - place * on[-1]))]
        if number % 2 == 0 and wide_in:
            c = middle(axes.c_in, place)
            found.append((c, nearest_point or c))
        elif number % 2 == 1 and wide_out:
            found.append((nearest_point, middle(axes.c_out, place)))
    return found
