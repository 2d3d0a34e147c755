"""How long training steps take: the file of a comparison that is matched by time, so that lengths never change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from regrow import atomic, regular
from regrow.errors import UserError
from regrow.plan import StepTimes
from regrow.schema import Form, check, check_seal, parse_json, seal
from regrow.training.recipe import Recipe
from regrow.training.recipe_layers import without

_FORMAT = "regrow-step-times"
_WAY_OUT = "put it back as it was, or choose another --out"
# which are all the same to a step's time, or belong to the methods that are compared
_ASIDE = (
    "method", "compare", "study", "epochs", "steps", "seed", "schedule", "model.weights", "optimizer.lr",
    "optimizer.weight_decay", "train.cost_steps", "train.planned_seconds", "train.recalibrate", "train.log_every",
    "train.eval_every", "train.checkpoint_minutes", "train.checkpoint_steps", "train.tensorboard", "train.trackers",
    "train.latency_batch", "train.latency_seconds",
)  # fmt: skip
_OF_RANKING = ("criterion", "pattern.solver", "pattern.distribution")

_Seconds = Annotated[float, Field(gt=0, le=1e9)]
_More = Annotated[float, Field(ge=0, le=1e9)]


class _TimesForm(Form):
    dense: _Seconds
    even: _Seconds
    thin: _Seconds
    full: _Seconds
    scoring: _More
    prune: _More
    explore: _More
    grow: _More
    target: Annotated[float, Field(gt=0, le=1)]


class _FileForm(Form):
    """``times``: checksum of what a step depends on → how long it takes."""

    format: Literal["regrow-step-times"]
    version: Literal[1]
    times: dict[str, _TimesForm]
    checksum: str


def read(path: Path) -> dict[str, StepTimes]:
    """What an earlier session has measured, by `key_of`; nothing where there is no such file.

    Raises:
        UserError: if it cannot be read, is damaged or something else.
    """
    if not path.exists():
        return {}
    try:
        text = regular.read_bytes(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_WAY_OUT}") from error
    content = parse_json(text, path, _WAY_OUT)
    form = check(_FileForm, content, path, _WAY_OUT)
    check_seal(content, path, _WAY_OUT)
    return {key: StepTimes(**times.model_dump()) for key, times in form.times.items()}


def write(path: Path, times: Mapping[str, StepTimes]) -> None:
    """Keep them for a later session."""
    entries = {key: dataclasses.asdict(one) for key, one in times.items()}
    atomic.write_json(path, seal({"format": _FORMAT, "version": 1, "times": entries}))


def key_of(recipe: Recipe, ranking: bool = True) -> str:
    """Names all that the time of a step depends on.

    Args:
        recipe: of the run.
        ranking: False leaves out how channels are ranked and chosen, on which plain steps do not depend.
    """
    tree = without(recipe.resolved(), _ASIDE if ranking else (*_ASIDE, *_OF_RANKING))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
