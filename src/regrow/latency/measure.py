"""Measures how long each kind of unit of a model takes on this machine, over a grid of channel counts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from regrow.errors import UserError, nearest
from regrow.inputs import Inputs
from regrow.latency.busy import refuse_if_busy
from regrow.latency.clock import torch_threads
from regrow.latency.compiled import Compiled
from regrow.latency.cuda import CompiledCuda, EagerCuda, TensorRT
from regrow.latency.eager import Eager
from regrow.latency.machine import Machine
from regrow.latency.network import Key, network_of
from regrow.latency.onnxruntime import OnnxRuntime
from regrow.latency.points import PASSES, REPEATS, Point, Points, points_of
from regrow.latency.reference import Reference
from regrow.latency.runtime import Runtime
from regrow.latency.spread import Spread, fit_error, typical, typical_error
from regrow.latency.table import Grid, LatencyTable
from regrow.latency.whole import bar, in_turns, prepared, settled
from regrow.quiet import evaluating

RUNTIMES: dict[str, Callable[[int, int], Runtime]] = {
    "eager": Eager, "onnxruntime": OnnxRuntime, "compile": Compiled,
    "eager-cuda": EagerCuda, "compile-cuda": CompiledCuda, "tensorrt": TensorRT,
}  # fmt: skip

_BETWEEN = 5  # measurements of the whole models in each pass
_TICKS = 40  # of the reference in each pass, at most
_MORE = 6  # passes over points whose time is not known to within _UNSURE
_UNSURE = 0.05


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
    allow_busy: bool = False,
) -> LatencyTable:
    """Measures every kind of unit of a model over a grid of its input and output channels.

    All points are visited several times over, in a new random order each time, so that a machine whose speed drifts
    slows all of them alike. The dense model itself is measured in between, and a reference kernel, whose drift is
    divided out.

    Args:
        model: takes tensors; measured in eval mode, left as it was
        example: a batch of inputs on the CPU, in any form that `regrow.inputs.Inputs.of` takes; its shapes say
            batch and image size
        runtime: "eager", "onnxruntime", "compile"; on a GPU "eager-cuda", "compile-cuda" or "tensorrt"
        threads: for the runtime
        thin: thin copies of the model, at best from hardly to strongly thinned, which show how units run among others
            and what every call costs; measured in between
        time_limit: seconds that it should take; grids become coarser and visits fewer to meet it
        progress: show a progress bar on a terminal
        seed: of the order
        allow_busy: take what was measured on a machine that is too busy for a table that can be trusted

    Raises:
        UserError: for an unknown runtime, one that is not installed, a model that cannot be run, or a busy machine.
    """
    start = time.monotonic()
    inputs = Inputs.of(example)
    if elsewhere := [t.device for t in inputs.tensors if t.device.type != "cpu"]:
        raise UserError(f"latency is measured from the CPU, but the example is on {elsewhere[0]}: give it on the CPU")
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
        plan = points_of(network, runner, max(left - (now - warming) * PASSES * _BETWEEN, 0.3 * left))
        taken = _run(plan, runner, wholes, start + time_limit, random.Random(seed), progress)
    samples, whole_samples = taken.evened()
    grids = {key: _grid(plan, samples, key) for key in plan.axes}
    measured = [typical(times) for times in whole_samples]
    table = LatencyTable(Machine.here(runtime), inputs.batch, threads, network, grids, measured=measured[0])
    if not allow_busy:
        refuse_if_busy(whole_samples[0], table.error(), taken.reference, threads)
    summed = [table.model(), *(table.predict(network_of(net, inputs)) for net in thin)]
    spread = Spread(taken.reference.spread, taken.reference.drift, typical_error(whole_samples[0]))
    return _fitted(replace(table, spread=spread), summed, measured)


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
    factor, or where operations are not priced the constant. What remains of the errors goes into the spread.
    """
    fitted, numbers = _closest(table, summed, measured)
    predicted = [fitted.correction * seconds + fitted.other for seconds in summed]
    wholes, freedom = fit_error(predicted, measured, numbers)
    return replace(fitted, spread=replace(fitted.spread or Spread(), wholes=wholes, freedom=freedom))


def _closest(table: LatencyTable, summed: Sequence[float], measured: Sequence[float]) -> tuple[LatencyTable, int]:
    """The table with correction and constant, and how many of the two were fitted."""
    ratio, inverse = np.array(summed) / np.array(measured), 1.0 / np.array(measured)
    if len(summed) > 2:
        factor, constant = np.linalg.lstsq(np.stack([ratio, inverse], axis=1), np.ones(len(summed)), rcond=None)[0]
        if 0.0 <= constant <= min(measured) and factor > 0.0:
            return replace(table, correction=float(factor), other=float(constant)), 2
    if summed[0] <= 0.0 or (table.network.unpriced and measured[0] > summed[0]):
        return replace(table, other=measured[0] - summed[0]), 1
    return replace(table, correction=float(ratio.sum() / (ratio**2).sum())), 1


@dataclass
class _Samples:
    """What was measured: each sample with the number of the reference's last tick before it.

    Attributes:
        points: of each point
        wholes: of each whole model
    """

    reference: Reference
    points: dict[Point, list[tuple[int, float]]]
    wholes: list[list[tuple[int, float]]]

    def evened(self) -> tuple[dict[Point, list[float]], list[list[float]]]:
        """Seconds of the points and the whole models, without the drift of the machine."""
        slowness = self.reference.slowness()

        def even(samples: list[tuple[int, float]]) -> list[float]:
            return [seconds / float(slowness[tick]) for tick, seconds in samples]

        return {point: even(samples) for point, samples in self.points.items()}, [even(s) for s in self.wholes]


def _run(
    plan: Points,
    runner: Runtime,
    wholes: Sequence[Callable[[], object]],
    deadline: float,
    shuffle: random.Random,
    progress: bool,
) -> _Samples:
    """Visits all points in all passes, then those again whose repeats differ; after the first, until the deadline."""
    points = plan.all()
    reference = Reference(runner.clock, runner.reference())
    taken = _Samples(reference, {}, [[] for _ in wholes])
    every, tick_every = (max(1, math.ceil(len(points) / times)) for times in (_BETWEEN, _TICKS))
    with bar(progress, len(points) * PASSES, "measuring") as advance:
        for turn in range(PASSES + _MORE):
            if turn >= PASSES:
                points = [p for p in points if typical_error([seconds for _, seconds in taken.points[p]]) > _UNSURE]
            shuffle.shuffle(points)
            for number, point in enumerate(points):
                if turn and time.monotonic() > deadline:
                    return taken
                if number % tick_every == 0:
                    reference.tick()
                if number % every == 0:
                    for whole, times in zip(wholes, taken.wholes, strict=True):
                        times.append((reference.now, settled(runner.clock, whole)))
                samples = runner.sample(*point, REPEATS)
                taken.points.setdefault(point, []).extend((reference.now, seconds) for seconds in samples)
                advance()
    return taken


def _grid(plan: Points, samples: Mapping[Point, Sequence[float]], key: Key) -> Grid:
    axes = plan.axes[key]
    of_key = {(a, b): times for (k, a, b), times in samples.items() if k == key}
    measured = {place: typical(times) for place, times in of_key.items()}
    seconds = np.array([[measured[a, b or a] for b in axes.c_out] for a in axes.c_in])
    error = float(np.mean([typical_error(of_key[point]) for point in axes.points()]))
    best, least = (0.0, 0.0), np.inf
    for first in np.linspace(0, 2, 11) if len(axes.c_in) > 1 else (0.0,):
        for second in np.linspace(0, 2, 11) if len(axes.c_out) > 1 else (0.0,):
            grid = Grid(axes.c_in, axes.c_out, seconds, axes.step, (float(first), float(second)))
            # bounded, as a single disturbed probe should not decide
            wrong = [abs(np.log(grid.at(a, b) / measured[a, b])) for a, b in plan.probes[key]]
            loss = float(np.mean(np.minimum(wrong, 0.3))) if wrong else 0.0
            if loss < least - 1e-9:
                best, least = grid.stairs, loss
    return Grid(axes.c_in, axes.c_out, seconds, axes.step, best, error)
