"""A latency table of this machine, and how well it predicts whole models."""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.coupling.couple import Coupling, couple
from regrow.errors import UserError
from regrow.inputs import Inputs
from regrow.latency.measure import make_runtime, measure, verify
from regrow.latency.network import Network, network_of
from regrow.latency.table import LatencyTable, known_key
from regrow.surgery.resize import compact
from regrow.tracing.replica import replica_of

BATCH = 8
TIME_LIMIT = 120.0

_FITTED = (0.8, 0.6, 0.4, 0.2)  # levels of the thin copies that the table is fitted to
_SPREAD = 0.25  # how far the groups of a thin copy lie from its level
_MEASURING = 0.75  # share of the time that measuring gets; what remains is for the checks


@dataclass(frozen=True)
class Check:
    """One whole model, predicted and measured, in seconds per batch.

    Attributes:
        kept: share of its channels in the dense model's
        interval: of the prediction, as `LatencyTable.interval` has it
    """

    kept: float
    predicted: float
    measured: float
    interval: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        """Relative to what was measured; positive if the prediction was too slow."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class Profile:
    """A table and what it was checked with.

    Attributes:
        checks: of thin models that were not used for fitting
        note: why there are no thin models, if there are none; the only check is then the dense model, which the table
            was fitted to
    """

    table: LatencyTable
    checks: tuple[Check, ...]
    note: str = ""

    @property
    def median_error(self) -> float:
        """Of the checks, without signs."""
        return statistics.median(abs(check.error) for check in self.checks)


def profile(
    model: nn.Module,
    example: Any,
    *,
    runtime: str = "eager",
    threads: int = 1,
    time_limit: float = TIME_LIMIT,
    check: int = 3,
    progress: bool = True,
    seed: int = 0,
    allow_busy: bool = False,
) -> tuple[LatencyTable, list[tuple[float, float]]]:
    """Measures the latency table of a model on this machine, and checks it with thin models.

    Copies are measured: the model, its mode, gradients, the random state and the number of threads stay as they are.

    Args:
        model: on any device, in any mode; takes tensors
        example: a batch of inputs, in any form that `regrow.inputs.Inputs.of` takes; the table holds for its batch and
            image size
        runtime: as in `regrow.latency.measure.measure`
        threads: for the runtime
        time_limit: seconds that all of it should take; a large model takes what visiting each point once takes
        check: number of thin models to check the table with; none of them is used for fitting
        progress: show progress on a terminal
        seed: of the thin models and the order of measurements
        allow_busy: take what was measured on a machine that is too busy for a table that can be trusted

    Returns:
        The table, and of each check the predicted and the measured seconds per batch. Where no thin copies can be made
        a warning says why, and the only check is the dense model.

    Raises:
        UserError: for an unknown runtime, one that is not installed, numbers that are not positive, a model that
            cannot be run, or a machine that is too busy.
    """
    found = run(
        model, example, runtime=runtime, threads=threads, time_limit=time_limit, check=check, progress=progress,
        seed=seed, allow_busy=allow_busy,
    )  # fmt: skip
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found.table, [(one.predicted, one.measured) for one in found.checks]


def run(
    model: nn.Module, example: Any, *, runtime: str, threads: int, time_limit: float, check: int,
    progress: bool, seed: int, allow_busy: bool = False,
) -> Profile:  # fmt: skip
    """As `profile`, with all that there is to tell."""
    start = time.monotonic()
    check_numbers(threads=threads, check=check, time_limit=time_limit)
    x = _inputs(example)
    make_runtime(runtime, x.batch, threads)  # whether there is one comes before anything that takes time
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        dense = replica_of(model)
        x = x.map(torch.clone)
        levels = _FITTED + tuple(0.15 + 0.8 * (i + 0.5) / check for i in range(check))
        copies, note = thin_copies(dense, x, levels, seed=seed)
        fitted, checked = copies[: len(_FITTED)], copies[len(_FITTED) :]
        table = measure(
            dense, x, runtime=runtime, threads=threads, thin=fitted, progress=progress, seed=seed,
            time_limit=_MEASURING * (time_limit - (time.monotonic() - start)), allow_busy=allow_busy,
        )  # fmt: skip
        models = checked or [dense]
        networks = [network_of(copy, x) for copy in models]
        left = time_limit - (time.monotonic() - start)
        rounds = min(9, max(3, int(left / (len(models) * max(table.measured, 1e-9)))))
        pairs = verify(table, models, x, rounds=rounds, progress=progress)
        whole = _channels(network_of(dense, x))
    checks = [
        Check(_channels(network) / whole, *pair, table.interval(network))
        for network, pair in zip(networks, pairs, strict=True)
    ]
    return Profile(table, tuple(checks), note)


def thin_copies(
    model: nn.Module, example: Any, levels: Sequence[float], *, seed: int = 0
) -> tuple[list[nn.Module], str]:
    """Copies of a model with fewer channels, chosen at random.

    Args:
        model: on the CPU; left as it is
        example: a batch of inputs, in any form that `regrow.inputs.Inputs.of` takes
        levels: for each copy about which share of its channels stays; the groups of a copy lie up to 0.25 off
        seed: of the random choice

    Returns:
        The copies, and "". Where none can be made: none, and a sentence that says why.
    """
    inputs = Inputs.of(example)
    try:
        coupling = couple(model, inputs.first())
    except UserError as error:
        return [], f"no thin copies could be made to check the table with: {error}"
    if not coupling.groups:
        why = next(iter(coupling.dense.values()), "it has no layers with channels")
        return [], f"no thin copies could be made to check the table with, as nothing in the model can go: {why}"
    generator = torch.Generator().manual_seed(seed)
    network = network_of(model, inputs)
    units = {unit.name: unit for unit in network.units}
    keys = {unit.key for unit in network.units}
    copies = []
    for level in levels:
        copy = compact(replica_of(model), coupling, _keep(coupling, level, generator))
        for unit in network_of(copy, inputs).units:
            if known_key(unit, units, keys) not in keys:
                return [], f"the table cannot be checked with thin copies: {unit.name} is another kind of unit in them"
        copies.append(copy)
    return copies, ""


def _keep(coupling: Coupling, level: float, generator: torch.Generator) -> dict[str, Tensor]:
    keep = {}
    for group in coupling.groups:
        share = level + _SPREAD * (2 * float(torch.rand((), generator=generator)) - 1)
        count = max(0.1, min(1.0, share)) * group.size
        # widths as they are trained; a depthwise layer with a single channel would be another kind of layer
        count = max(8, round(count / 8) * 8) if group.size >= 16 else max(2, round(count))
        chosen = torch.randperm(group.size, generator=generator)[: min(count, group.size)]
        keep[group.id] = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, chosen, True)
    return keep


def _channels(network: Network) -> int:
    return sum(unit.c_out for unit in network.units if unit.key.kind in {"conv", "linear"} and not unit.fixed)


def _inputs(example: Any) -> Inputs:
    inputs = Inputs.of(example)
    if not inputs.tensors:
        raise UserError("latency needs a batch of inputs, but there is no tensor in the example")
    if inputs.tensors[0].dim() < 2 or any(t.numel() == 0 for t in inputs.tensors):
        raise UserError(f"latency needs a batch of inputs, but the example has the {inputs.shapes}")
    return inputs.map(lambda t: t.detach().cpu())


def check_numbers(prefix: str = "", **numbers: float) -> None:
    for name, number in numbers.items():
        shown = prefix + (name.replace("_", "-") if prefix else name)
        if name == "time_limit":
            if not 0.0 < number < math.inf:
                raise UserError(f"{shown} must be a positive number of seconds, not {number:g}")
        elif number < 1:
            raise UserError(f"{shown} must be at least 1, not {number}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if numbers.get("threads", 1) > cores:
        raise UserError(f"{prefix}threads must be at most {cores}, the cores of this machine, not {numbers['threads']}")


# --- the command
