"""What the training took that a variant starts from: steps of a dense run of regrow, which count in equal time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrow import regular, schema
from regrow.errors import UserError, about
from regrow.training import rundir
from regrow.training.recipe import Recipe, differences
from regrow.training.recipe_layers import at
from regrow.training.records import ResultsForm

_WAY_OUT = "name the directory of a dense run, or use --match steps"
# in which a dense run's steps must be like those of the comparison, to take as long
_ALIKE = (
    ("model", "name"), ("model", "options"), ("data", "name"), ("data", "batch_size"), ("data", "augment"),
    ("data", "pool"), ("data", "size"), ("train", "precision"), ("train", "accumulate"), ("train", "compile"),
    ("train", "channels_last"), ("train", "ema"),
)  # fmt: skip


def dense_steps(recipe: Recipe, seeds: Sequence[int]) -> int:
    """Steps of the dense training that ``model.weights`` and ``distill.teacher`` come from, once where both name one
    run; 0 where there is neither.

    Args:
        recipe: of a variant.
        seeds: of its runs.

    Raises:
        UserError: where they come from anything but a finished dense run, whose steps take as long as here, or not all
            seeds from runs of the same length.
    """
    named = {} if recipe.distill is None else {"distill.teacher": recipe.distill.teacher}
    if recipe.model.weights is not None:
        named["model.weights"] = recipe.model.weights
    of_places = {_place_of(source, seeds[0]): (key, source) for key, source in named.items()}
    return sum(_of_all_seeds(key, source, recipe, seeds) for key, source in of_places.values())


def _place_of(source: str, seed: int) -> Path:
    """The directory of the run that a key names for a seed."""
    path = Path(source.replace("{seed}", str(seed))).expanduser()
    return path.parent if path.name == "model" else path


def _of_all_seeds(key: str, source: str, recipe: Recipe, seeds: Sequence[int]) -> int:
    with about(key):
        found = {seed: _steps_of(_place_of(source, seed), recipe) for seed in seeds}
        (seed, steps), *others = found.items()
        for other, more in others:
            if more != steps:
                raise UserError(
                    f"the runs of seeds {seed} and {other} have {steps:,} and {more:,} steps, but all must have the "
                    "same to be matched by time: train them alike, or use --match steps"
                )
    return steps


def _steps_of(place: Path, recipe: Recipe) -> int:
    results = place / rundir.RESULTS
    if not results.is_file():
        raise UserError(f"{place} is no finished run of regrow, so nobody knows how long its training took: {_WAY_OUT}")
    content = schema.parse_json(regular.read_bytes(results), results, _WAY_OUT)
    runs = schema.check(ResultsForm, content, results, _WAY_OUT).runs
    if len(runs) != 1 or runs[0].steps is None:
        raise UserError(f"{results} is not of one run: {_WAY_OUT}")
    if runs[0].method != "dense":
        raise UserError(
            f"{place} was trained by {runs[0].method}, and only steps of dense training are known to "
            f"take as long as here: {_WAY_OUT}"
        )
    for key in _unlike(content.get("recipe"), recipe):
        raise UserError(
            f"{place} was trained with another {key}, so its steps take another time than here: train it "
            "alike, or use --match steps"
        )
    return runs[0].steps


def _unlike(old: Any, recipe: Recipe) -> Iterator[str]:
    """Dotted keys in which the recipe of a run differs; what it started from is one."""
    old = rundir.completed(old, recipe)
    now = recipe.resolved()
    for section, key in _ALIKE:
        yield from differences(at(old, section, key), now[section][key], f"{section}.{key}")
    if isinstance(old, Mapping) and old.get("distill"):  # whose teacher computes
        yield "distill"
    if at(old, "model", "weights") is not None:
        yield "model.weights"
