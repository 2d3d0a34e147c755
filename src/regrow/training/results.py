"""What a run leaves behind: ``results.json`` and ``structure.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow import names, regular
from regrow.cost import dense_gradient_cost
from regrow.errors import UserError
from regrow.training import provenance
from regrow.training.recipe import Recipe

if TYPE_CHECKING:
    from regrow.training.run import Run


def run_entry(run: Run, cost: Mapping[str, float], /, **measured: Any) -> dict[str, Any]:
    """One run in ``results.json``; ``measured`` are accuracy, validation_accuracy (fractions), seconds, steps and run,
    and what is known of its size and speed.

    Costs are multiples of dense training for ``cost_steps`` steps, or for as many as the run has where that is None.
    ``planned_seconds``, of its training steps, are known where a comparison matched runs by time.
    """
    recipe, sparsifier = run.recipe, run.sparsifier
    density = sparsifier.density()
    return {
        "method": recipe.method_name,
        "label": run.label,
        "seed": recipe.seed,
        **run.task.measure.entry,
        "accuracy": measured.pop("accuracy"),
        "density": density,
        "sparsity": 1.0 - density,
        "training_cost": cost["total"],
        "by_phase": {phase: value for phase, value in cost.items() if phase != "total"},
        "dense_gradients": dense_gradient_cost(run.flops, sparsifier.ledger, run.cost_steps),
        "inference_flops": run.flops.inference(sparsifier.layer_density()),
        "dense_flops": run.flops.total,
        "cost_steps": recipe.train.cost_steps,
        "planned_seconds": recipe.train.planned_seconds,
        "model": run.builder,
        "test_images": run.data.test.examples,
        "environment": provenance.environment(run.device, run.accelerator.num_processes, recipe.train.precision),
        "finished": provenance.now(),
        **measured,
    }


def results(recipe: Recipe, runs: Sequence[Mapping[str, Any]], reference: str | None = None) -> dict[str, Any]:
    """The content of ``results.json``; paired differences are against the label ``reference``, by default the first.

    Of a grid it has ``ranks``, where there are any: ``cells`` with ``means`` (method → mean accuracy) and ``ranks``
    (method → rank, or null where a method is missing), and ``methods`` with ``mean`` and ``std`` of their ranks."""
    from regrow.training import ranks
    from regrow.training.statistics import summarise
    from regrow.version import __version__

    return {
        "regrow": __version__,
        "recipe": recipe.resolved(),
        "runs": [dict(run) for run in runs],
        "summary": summarise(runs, reference),
        **({"ranks": found} if (found := ranks.entry(runs)) is not None else {}),
    }


def result_of(path: Path) -> dict[str, Any]:
    """The run in a ``results.json`` that `regrow.training.loop.train` wrote.

    Raises:
        UserError: as `content_of`.
    """
    run: dict[str, Any] = content_of(path)["runs"][0]
    return run


def content_of(path: Path) -> Any:
    """What is in such a file: the run, and its recipe in the plain form, which nobody has checked.

    Raises:
        UserError: if it cannot be read, is damaged, or of something else.
    """
    from regrow import schema
    from regrow.training.records import ResultsForm

    way_out = f"delete {path.parent} and run the comparison again"
    try:
        text = regular.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {way_out}") from error
    content = schema.parse_json(text, path, way_out)
    if len(schema.check(ResultsForm, content, path, way_out).runs) != 1:
        raise UserError(f"{path} is not of one run: {way_out}")
    return content


def structure(run: Run, cost: Mapping[str, float]) -> dict[str, Any]:
    """The content of ``structure.json``: the layers, the updates and the training cost of a run, and for channels the
    widths of all groups: dense, at the start and at the end."""
    sparsifier = run.sparsifier
    parameters = names.parameters(run.model)
    layers = [
        {
            "name": name,
            "shape": list(mask.shape),
            "total": mask.numel(),
            "start_active": int(run.start_active.get(name, mask.numel())),
            "active": int(mask.sum()),
            "flops": run.flops.by_parameter.get(name, 0.0),
        }
        for name, mask in sparsifier.masks.items()
        if name in parameters
    ]
    widths = [
        {"group": group, "before": size, "start": run.start_widths.get(group, size), "after": kept}
        for group, (kept, size) in sparsifier.widths().items()
    ]
    return {
        "layers": layers,
        "history": list(sparsifier.history),
        "training_cost": dict(cost),
        "method": run.recipe.method_name,
        "seed": run.recipe.seed,
        "label": run.label,
        **({"widths": widths} if widths else {}),
    }
