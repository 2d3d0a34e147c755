"""What a comparison of channels settles before its runs: one latency table for all, and that each of them can start."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regrow.latency.clock import torch_threads
from regrow.sparsifier import Sparsifier
from regrow.training.recipe import Recipe
from regrow.training.run import Run, check_thin, criterion_of, pattern_of
from regrow.training.speed import needs_table, read_table, table_of

if TYPE_CHECKING:
    from regrow.latency.table import LatencyTable


def shared_table(variants: Mapping[str, Recipe], example: Run, path: Path, quiet: bool) -> LatencyTable | None:
    """The latency table of all runs that need one and name none: what is in ``path``, or measured now.

    Args:
        variants: label → recipe
        example: a dense run of the same model
        path: where an earlier session may have left it
        quiet: show no progress

    Raises:
        UserError: if it cannot be read or measured.
    """
    needing = [recipe for recipe in variants.values() if needs_table(recipe)]
    if not needing:
        return None
    found = read_table(path)
    if found is None:
        with torch_threads(needing[0].train.threads or 1):  # as the runs
            found = table_of(needing[0], example.model, example.data.shape, progress=not quiet)
    return found


def attach(recipe: Recipe, example: Run, table: LatencyTable | None, steps: int) -> None:
    """Attach to a copy of the model, to see that it can be done: the method fits the pattern, the budget can be met.

    Args:
        recipe: of the run
        example: a dense run of the same model
        table: of latencies, where the recipe names none
        steps: that the run will have

    Raises:
        UserError: if it cannot.
    """
    check_thin(recipe)
    model = copy.deepcopy(example.model)
    Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.1), pattern=pattern_of(recipe, table), method=recipe.method,
        criterion=criterion_of(recipe), total_steps=steps, example_inputs=example.example,
        on_resize=lambda: None, **example.measured_by(recipe),
    )  # fmt: skip
