"""Measures how long each kind of unit of a model takes on this machine, over a grid of channel counts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from regrow.errors import UserError, nearest
from regrow.inputs import Inputs
from regrow.latency.clock import torch_threads, typical
from regrow.latency.eager import Eager
from regrow.latency.network import Key, Network, Unit, network_of
from regrow.latency.onnxruntime import OnnxRuntime
from regrow.latency.runtime import Runtime
from regrow.latency.table import Grid, LatencyTable, Machine
from regrow.latency.whole import bar, in_turns, prepared, settled
from regrow.quiet import evaluating

RUNTIMES: dict[str, type[Eager] | type[OnnxRuntime]] = {"eager": Eager, "onnxruntime": OnnxRuntime}

_DENSITIES = (8, 6, 4, 3, 2)  # points along each axis of a grid, the finest that the time allows is taken
_PASSES = 3
_REPEATS = 2
_BETWEEN = 5  # measurements of the whole models in each pass
_PLACES = (0.15, 0.3, 0.5, 0.7)  # of probes, along an axis


@dataclass(frozen=True)
class Axes:
    """Where a kind of unit is measured: ``c_out`` is (0,) where it is as wide as the input; ``step`` as in `Grid`."""

    c_in: tuple[int, ...]
    c_out: tuple[int, ...]
    step: int

    def points(self) -> list[tuple[int, int]]:
        return [(a, b or a) for a in self.c_in for b in self.c_out]


@dataclass
class _Plan:
    """All points to measure, with their samples in seconds."""

    axes: dict[Key, Axes]
    probes: dict[Key, list[tuple[int, int]]]
    samples: dict[tuple[Key, int, int], list[float]] = field(default_factory=dict)

    def points(self) -> list[tuple[Key, int, int]]:
        grids = [(key, a, b) for key, axes in self.axes.items() for a, b in axes.points()]
        return grids + [(key, a, b) for key, pairs in self.probes.items() for a, b in pairs]


def measure(
    model: nn.Module,
    example: Any,
    *,
    runtime: str = "eager",
    threads: int = 1,
    thin: Sequence[nn.Module] = (),
    time_limit: float = 300.0,
    progress: bool = True,
    seed: int = 0,
) -> LatencyTable:
    """Measures every kind of unit of a model over a grid of its input and output channels.

    All points are visited several times over, in a new random order each time, so that a machine whose speed drifts
    slows all of them alike. The dense model itself is measured in between.

    Args:
        model: takes tensors; measured in eval mode, left as it was
        example: a batch of inputs on the CPU, in any form that `regrow.inputs.Inputs.of` takes; its shapes say
            batch and image size
        runtime: "eager" (PyTorch) or "onnxruntime"
        threads: for the runtime
        thin: thin copies of the model, at best from hardly to strongly thinned, which show how units run among others
            and what every call costs; measured in between
        time_limit: seconds that it should take; grids become coarser and visits fewer to meet it
        progress: show a progress bar on a terminal
        seed: of the order

    Raises:
        UserError: for an unknown runtime, one that is not installed, or a model that cannot be run.
    """
    start = time.monotonic()
    inputs = Inputs.of(example)
    if elsewhere := [t.device for t in inputs.tensors if t.device.type != "cpu"]:
        raise UserError(f"latency is measured on the CPU, but the example is on {elsewhere[0]}")
    runner = make_runtime(runtime, inputs.batch, threads)
    network = network_of(model, inputs)
    if not network.units:
        raise UserError("the model has no layers whose latency could be measured: no convolution, linear layer or pool")
    with torch_threads(threads), evaluating(model):
        wholes = prepared(runner, (model, *thin), inputs, progress)
        warming = time.monotonic()
        for whole in wholes:
            whole()
        now = time.monotonic()
        left = start + time_limit - now
        plan = _plan(network, runner, max(left - (now - warming) * _PASSES * _BETWEEN, 0.3 * left))
        shuffle = random.Random(seed)
        measured = [typical(times) for times in _run(plan, runner, wholes, start + time_limit, shuffle, progress)]
    grids = {key: _grid(plan, key) for key in plan.axes}
    table = LatencyTable(Machine.here(runtime), inputs.batch, threads, network, grids, measured=measured[0])
    summed = [table.model(), *(table.predict(network_of(net, inputs)) for net in thin)]
    return _fitted(table, summed, measured)


def make_runtime(name: str, batch: int, threads: int) -> Runtime:
    """A runtime by its name.

    Raises:
        UserError: if there is no such runtime, or it is not installed.
    """
    if name not in RUNTIMES:
        raise UserError(f"there is no runtime {name!r}{nearest(name, RUNTIMES)}")
    return RUNTIMES[name](batch, threads)


def verify(
    table: LatencyTable, models: Iterable[nn.Module], example: Any, *, rounds: int = 9, progress: bool = False
) -> list[tuple[float, float]]:
    """Predicted and measured latency of whole models, in seconds per batch.

    Args:
        table: measured on this machine; its batch size and threads are used
        models: made of the kinds of units that the table knows; measured in turns, in eval mode, and left as they were
        example: a batch of inputs of the table's batch size, in any form that `regrow.inputs.Inputs.of` takes
        rounds: how often each is measured; the lower quartile counts
        progress: show a progress bar on a terminal

    Raises:
        UserError: if a model has a unit that the table does not know, or the batch is another.
    """
    inputs = Inputs.of(example)
    if inputs.batch != table.batch:
        raise UserError(f"the table holds for batches of {table.batch}, the example has {inputs.batch}")
    listed = list(models)
    predicted = [table.predict(network_of(model, inputs)) for model in listed]
    runner = make_runtime(table.machine.runtime, table.batch, table.threads)
    measured = in_turns(runner, listed, inputs, rounds=rounds, progress=progress)
    return list(zip(predicted, measured, strict=True))


def _fitted(table: LatencyTable, summed: Sequence[float], measured: Sequence[float]) -> LatencyTable:
    """Sets correction and constant by whole models, the dense one first.

    With three or more, both follow from least squares of the relative errors. With fewer one has to be chosen: the
    factor, or where operations are not priced the constant.
    """
    ratio, inverse = np.array(summed) / np.array(measured), 1.0 / np.array(measured)
    if len(summed) > 2:
        factor, constant = np.linalg.lstsq(np.stack([ratio, inverse], axis=1), np.ones(len(summed)), rcond=None)[0]
        if 0.0 <= constant <= min(measured) and factor > 0.0:
            return replace(table, correction=float(factor), other=float(constant))
    if summed[0] <= 0.0 or (table.network.unpriced and measured[0] > summed[0]):
        return replace(table, other=measured[0] - summed[0])
    return replace(table, correction=float(ratio.sum() / (ratio**2).sum()))


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


def _plan(network: Network, runner: Runtime, time_limit: float) -> _Plan:
    """The finest grids that can be visited `_PASSES` times within the time limit."""
    kinds: dict[Key, list[Unit]] = {}
    for unit in network.units:
        kinds.setdefault(unit.key, []).append(unit)
    pilot: dict[Key, tuple[float, float]] = {}  # seconds of a visit at the largest and the smallest widths
    for key, units in kinds.items():
        coarse = axes(units, 2)
        large, small = coarse.points()[-1], coarse.points()[0]
        pilot[key] = tuple(_visit_seconds(runner, key, *point) for point in (large, small))  # type: ignore[assignment]
    for density in _DENSITIES:
        made = {key: axes(units, density) for key, units in kinds.items()}
        seconds = sum(_estimate(pilot[key], a) for key, a in made.items()) * _PASSES
        if seconds <= 0.9 * time_limit or density == _DENSITIES[-1]:
            break
    return _Plan(made, {key: _probes(key, a) for key, a in made.items()})


def _visit_seconds(runner: Runtime, key: Key, c_in: int, c_out: int) -> float:
    start = time.perf_counter()
    runner.sample(key, c_in, c_out, _REPEATS)
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


def _run(
    plan: _Plan,
    runner: Runtime,
    wholes: Sequence[Callable[[], object]],
    deadline: float,
    shuffle: random.Random,
    progress: bool,
) -> list[list[float]]:
    """Fills in the samples, for all passes or, after the first, until the deadline; gives those of whole models."""
    points = plan.points()
    measured: list[list[float]] = [[] for _ in wholes]
    every = max(1, math.ceil(len(points) / _BETWEEN))
    with bar(progress, len(points) * _PASSES, "measuring") as advance:
        for turn in range(_PASSES):
            shuffle.shuffle(points)
            for number, (key, c_in, c_out) in enumerate(points):
                if turn and time.monotonic() > deadline:
                    return measured
                if number % every == 0:
                    for whole, times in zip(wholes, measured, strict=True):
                        times.append(settled(runner.clock, whole))
                plan.samples.setdefault((key, c_in, c_out), []).extend(runner.sample(key, c_in, c_out, _REPEATS))
                advance()
    return measured


def _grid(plan: _Plan, key: Key) -> Grid:
    axes = plan.axes[key]
    measured: Mapping[tuple[int, int], float] = {
        (a, b): typical(times) for (k, a, b), times in plan.samples.items() if k == key
    }
    seconds = np.array([[measured[a, b or a] for b in axes.c_out] for a in axes.c_in])
    best, least = (0.0, 0.0), np.inf
    for first in np.linspace(0, 2, 11) if len(axes.c_in) > 1 else (0.0,):
        for second in np.linspace(0, 2, 11) if len(axes.c_out) > 1 else (0.0,):
            grid = Grid(axes.c_in, axes.c_out, seconds, axes.step, (float(first), float(second)))
            # bounded, as a single disturbed probe should not decide
            off = [abs(np.log(grid.at(a, b) / measured[a, b])) for a, b in plan.probes[key]]
            error = float(np.mean(np.minimum(off, 0.3))) if off else 0.0
            if error < least - 1e-9:
                best, least = grid.stairs, error
    return Grid(axes.c_in, axes.c_out, seconds, axes.step, best)
