"""How fast models are on this machine: the table that a latency budget needs, and the time of whole models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regrow.errors import UserError, is_out_of_memory
from regrow.inputs import Inputs
from regrow.patterns import Channels
from regrow.quiet import evaluating
from regrow.surgery.skip import is_skipped
from regrow.training.recipe import Recipe
from regrow.zoo.models import example_input

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable

_ROUNDS = 25  # forward passes that are timed, at most
_SECONDS = 5.0  # that timing whole models should take


def is_channels(recipe: Recipe) -> bool:
    """Whether runs of this recipe are about channels, also if their method removes nothing."""
    return isinstance(recipe.pattern, Channels)


def needs_table(recipe: Recipe) -> bool:
    """Whether a run has to measure a latency table, as its budget needs one and the recipe names none."""
    return is_channels(recipe) and recipe.method.sparsifies and "latency" in recipe.pattern.budgets \
        and recipe.pattern.table is None  # fmt: skip


def read_table(path: Path) -> LatencyTable | None:
    """The table that an earlier session of a run, or its comparison, has measured; None if there is none yet.

    It counts also on another machine, as the run must go on as it began.

    Raises:
        UserError: if the file is damaged.
    """
    from regrow.latency.table import LatencyTable

    return LatencyTable.load(path, allow_other_machine=True) if path.exists() else None


def table_of(
    recipe: Recipe, model: nn.Module, shape: Sequence[int], *, progress: bool = True
) -> LatencyTable | None:  # fmt: skip
    """The latency table of a recipe: the one that it names, or one that is measured now, if its budget needs one.

    Args:
        recipe: for measuring its ``train.latency_batch``, ``train.latency_seconds`` and ``train.threads`` count
        model: in full size; a copy of it is measured
        shape: of an example, as `regrow.data.splits.DataSet` has it
        progress: show progress on a terminal

    Raises:
        UserError: if it cannot be read or measured, or if several processes train together.
    """
    from regrow.latency.table import LatencyTable
    from regrow.profiling import profile

    if is_channels(recipe) and recipe.pattern.table is not None:
        return LatencyTable.load(recipe.pattern.table)
    if not needs_table(recipe):
        return None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise UserError(
            "several processes cannot measure latency at once: write a table with `regrow profile`, and give its path "
            "as pattern.table"
        )
    train = recipe.train
    example = example_input(model, shape, train.latency_batch, device="cpu")
    table, _ = profile(
        model, example, threads=threads_of(recipe), time_limit=train.latency_seconds, check=1, progress=progress,
        seed=recipe.seed,
    )  # fmt: skip
    return table


def check_batch(recipe: Recipe, model: nn.Module, shape: Sequence[int], table: LatencyTable | None) -> None:
    """Refuse a batch that does not fit into memory, before the training after which it would be measured.

    Args:
        recipe: for its ``train.latency_batch``
        model: in full size
        shape: of an example, as `regrow.data.splits.DataSet` has it
        table: of the run, if there is one, whose batch is used

    Raises:
        UserError: if one forward pass of it cannot be done.
    """
    if not is_channels(recipe):
        return
    batch = table.batch if table else recipe.train.latency_batch
    try:
        with evaluating(model), torch.no_grad():
            Inputs.of(example_input(model, shape, batch, device="cpu"))(copy.deepcopy(model).cpu())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"train.latency_batch: {batch} images do not fit into memory at once: give fewer") from error


def threads_of(recipe: Recipe) -> int:
    """CPU threads of a run."""
    return recipe.train.threads or torch.get_num_threads()


def whole_models(models: Sequence[nn.Module], example: Any, threads: int, runtime: str = "eager") -> list[float]:
    """Seconds that a forward pass of each of these models takes on the CPU (see `regrow.latency.whole.in_turns`).

    Args:
        models: on any device; copies are measured, in eval mode
        example: a batch of inputs on the CPU, in any form that `regrow.inputs.Inputs.of` takes
        threads: of the CPU
        runtime: "eager" or "onnxruntime"
    """
    from regrow.latency.measure import make_runtime
    from regrow.latency.whole import in_turns

    runner = make_runtime(runtime, Inputs.of(example).batch, threads)
    copies = [copy.deepcopy(model).cpu() for model in models]
    return in_turns(runner, copies, example, rounds=_ROUNDS, time_limit=_SECONDS)


def measured(
    recipe: Recipe, model: nn.Module, dense: nn.Module, shape: Sequence[int], table: LatencyTable | None
) -> dict[str, float | None]:
    """What ``results.json`` says of a model's speed on this machine: seconds per batch, and images a second.

    Args:
        recipe: of the run
        model: as it is saved
        dense: the same in full size
        shape: of an example, as `regrow.data.splits.DataSet` has it
        table: of the run, if there is one; its batch size, threads and runtime are used
    """
    from regrow.latency.network import network_of

    batch = table.batch if table else recipe.train.latency_batch
    threads = table.threads if table else threads_of(recipe)
    runtime = table.machine.runtime if table else "eager"
    example = example_input(model, shape, batch, device="cpu")
    own, whole = whole_models([model, dense], example, threads, runtime)
    predicted = margin = None
    if table is not None:
        network = network_of(copy.deepcopy(model).cpu(), example)
        if any(map(is_skipped, model.modules())):
            network = table.known(network)
        predicted, interval = table.predict(network), table.interval(network)
        margin = None if interval is None else interval[1] - predicted
    return {
        "latency": own,
        "latency_predicted": predicted,
        "latency_margin": margin,
        "dense_latency": whole,
        "latency_batch": batch,
        "throughput": batch / own,
    }
