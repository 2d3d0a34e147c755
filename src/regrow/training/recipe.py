"""Recipes: YAML files (or the names of shipped ones) with dotted overrides, checked completely before anything runs.

How their layers are merged is said in `regrow.training.recipe_layers`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from regrow.errors import UserError, closest, nearest
from regrow.hints import show
from regrow.training import own
from regrow.training.optimizers import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from regrow.training.recipe_layers import NAMED, VARIANT, WHOLE, Tree, merge, override_tree, shipped, tree_of
from regrow.training.sections import (
    DataSection,
    DistillSection,
    ModelSection,
    StudySection,
    TopSection,
    TrainSection,
)
from regrow.training.typed import join, leaves, plain, require_mapping, suggest, typed

if TYPE_CHECKING:
    from regrow.training.tasks import Task

__all__ = [
    "HARMLESS", "VARIANT", "WHOLE", "Recipe", "Tree", "differences", "load", "merge", "override_tree", "parse",
    "registries", "shipped", "tree_of", "with_method",
]  # fmt: skip

_PLAIN: dict[str, type] = {
    "model": ModelSection, "data": DataSection, "train": TrainSection, "distill": DistillSection, "study": StudySection,
}  # fmt: skip
_DEFAULT_NAMES = {"pattern": "weights", "optimizer": "sgd", "schedule": "cosine"}
_LABEL = re.compile(r"[A-Za-z0-9][\w.+-]*")  # labels become file names
# what an entry of `compare` may change about its recipe, beside the method
_VARIABLE = ("model.options", "model.weights", "criterion", "pattern", "optimizer", "schedule", "distill")
# keys that may differ between a run and its continuation: they change what is seen, not what is computed
HARMLESS = (
    "train.log_every", "train.eval_every", "train.checkpoint_minutes", "train.checkpoint_steps", "train.tensorboard",
    "train.trackers", "train.threads", "train.latency_seconds", "data.workers", "compare", "study",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A complete, checked recipe. ``resolved()`` is its plain form, from which `parse` makes an equal recipe again."""

    model: ModelSection
    data: DataSection
    top: TopSection
    method_name: str
    method: Any
    pattern_name: str
    pattern: Any
    optimizer_name: str
    optimizer: Optimizer
    schedule_name: str
    schedule: Schedule
    train: TrainSection
    compare: Mapping[str, Mapping[str, Any]]
    distill: DistillSection | None = None
    study: StudySection = dataclasses.field(default_factory=StudySection)

    @property
    def seed(self) -> int:
        return self.top.seed

    @property
    def criterion(self) -> str:
        return self.top.criterion

    @property
    def task(self) -> Task:
        """What a batch becomes, and how the model is judged."""
        from regrow.training.tasks import TASKS

        return TASKS[self.top.task]

    def total_steps(self, steps_per_epoch: float) -> int:
        """Optimizer steps of the whole run, where an epoch has ``steps_per_epoch`` of them."""
        if self.top.steps is not None:
            return self.top.steps
        assert self.top.epochs is not None
        return max(1, math.floor(self.top.epochs * steps_per_epoch + 1e-6))

    def resolved(self) -> Tree:
        """The whole recipe as plain YAML values, with every default written out."""
        length = {"steps": self.top.steps} if self.top.steps is not None else {"epochs": self.top.epochs}
        task = {"task": self.top.task} if self.top.task != TopSection().task else {}
        return {
            **task,
            "model": plain(self.model),
            "data": plain(self.data),
            **length,
            "seed": self.seed,
            "method": {"name": self.method_name, **plain(self.method)},
            "pattern": {"name": self.pattern_name, **plain(self.pattern)},
            "criterion": self.criterion,
            "optimizer": {"name": self.optimizer_name, **plain(self.optimizer)},
            "schedule": {"name": self.schedule_name, **plain(self.schedule)},
            "train": plain(self.train),
            **({"distill": plain(self.distill)} if self.distill is not None else {}),
            "compare": {label: dict(options) for label, options in self.compare.items()},
            **({"study": plain(self.study)} if self.study != StudySection() else {}),
        }

    def to_yaml(self) -> str:
        """`resolved` as YAML text."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)

    def variant(self, label: str) -> tuple[str, Tree]:
        """The method and its options that ``compare`` uses for ``label``: the recipe's own, a variant, or the defaults.

        A variant that bears the name of the recipe's own method is for recipes of other methods that share it.

        Raises:
            UserError: if ``label`` is neither a variant of this recipe nor a method, of regrow's or the user's.
        """
        options = dict(self.compare.get(label, {}))
        options.pop(VARIANT, None)
        name = str(options.pop("name", label))
        if label == name == self.method_name:
            return label, plain(self.method)
        if label in self.compare:
            return name, options
        if label not in registries()["method"] and not own.is_class("method", label):
            known = {*registries()["method"], *self.compare}
            raise UserError(f"unknown method {label!r}{nearest(label, known)}")
        return label, {}


def registries() -> dict[str, Mapping[str, type]]:
    """The classes that each named section can have, by name."""
    from regrow.methods import METHODS
    from regrow.patterns import PATTERNS

    return {"method": METHODS, "pattern": PATTERNS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def load(source: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: path of a YAML file, or the name of a shipped recipe
        overrides: ``["--method.h", "20", "--seed=1"]``, or a nested mapping

    Raises:
        UserError: if there is no such recipe, or anything in it is wrong.
    """
    return parse(tree_of(source, overrides))


def parse(tree: Mapping[str, Any]) -> Recipe:
    """Check a recipe's plain form and make it typed.

    Raises:
        UserError: naming the first key that is unknown, missing or wrong.
    """
    tree = require_mapping(tree, "")
    _known_sections(tree)
    _check_sections(tree)
    top = typed(TopSection, {k: tree[k] for k in _top_keys() if k in tree})
    if (top.epochs is None) == (top.steps is None):
        raise UserError("a recipe needs its length: give either epochs or steps" + (", not both" if top.steps else ""))
    _check_criterion(top.criterion)
    _check_task(top.task)
    named = {section: _named(section, tree.get(section), section) for section in NAMED}
    sections: dict[str, Any] = {}
    for section, (name, built) in named.items():
        sections |= {f"{section}_name": name, section: built}
    return Recipe(
        model=typed(ModelSection, tree.get("model"), "model"),
        data=typed(DataSection, tree.get("data"), "data"),
        train=typed(TrainSection, tree.get("train"), "train"),
        top=top,
        compare=_compared(tree.get("compare")),
        distill=None if tree.get("distill") is None else typed(DistillSection, tree["distill"], "distill"),
        study=typed(StudySection, tree.get("study"), "study"),
        **sections,
    )


def _compared(section: object) -> dict[str, Mapping[str, Any]]:
    """The section ``compare``: its labels and methods, checked by themselves. Whether what an entry changes fits the
    rest of the recipe matters to who compares (`with_method`)."""
    compare = {
        label: require_mapping(options, f"compare.{label}")
        for label, options in require_mapping(section, "compare").items()
    }
    for label, options in compare.items():
        if not _LABEL.fullmatch(label):
            yours = f"; a class of your own is compare.LABEL.name: {label}" if ":" in label else ""
            raise UserError(
                f"compare has the key {show(label)}, but it names files: start with a letter or digit, and go on with "
                f"those or any of _ . + -{yours}"
            )
        method = {key: value for key, value in options.items() if key != VARIANT}
        _named("method", {"name": label, **method}, f"compare.{label}")
        _check_changes(options.get(VARIANT), f"compare.{label}.{VARIANT}")
    return compare


def _check_changes(changes: object, path: str) -> None:
    """Refuse what an entry of ``compare`` must not change about the recipe."""
    changes = require_mapping(changes, path)
    for section, value in changes.items():
        keys = [f"{section}.{key}" for key in value] if isinstance(value, Mapping) and section == "model" else [section]
        for key in keys:
            if key not in _VARIABLE:
                raise UserError(
                    f"{path} has the key {show(key)}, but runs that are compared may only differ in "
                    f"{', '.join(_VARIABLE)}, and in their method"
                )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Dotted keys at which two plain recipes differ, without the harmless ones."""
    if path in HARMLESS:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(key), new.get(key), join(path, str(key)))
    elif old != new:
        yield path


def with_method(recipe: Recipe, label: str, **changes: Any) -> Recipe:
    """The recipe with the method that ``label`` names (see `Recipe.variant`) and other top-level ``changes``,
    without its section ``study``.

    Raises:
        UserError: for an unknown label, or where what its entry of ``compare`` changes does not fit the recipe.
    """
    name, options = recipe.variant(label)
    unchanged = label == name == recipe.method_name
    differing = {} if unchanged else require_mapping(recipe.compare.get(label, {}).get(VARIANT), label)
    tree = {**merge(recipe.resolved(), differing), "method": {"name": name, **options}}
    tree.pop("study", None)  # of the comparison, not of its runs
    if {"epochs", "steps"} & changes.keys():
        tree = {key: value for key, value in tree.items() if key not in ("epochs", "steps")}
    try:
        return parse({**tree, **changes})
    except UserError as error:
        raise UserError(f"compare.{label}.{VARIANT}: {error}" if differing else str(error)) from error


def _top_keys() -> list[str]:
    return [field.name for field in dataclasses.fields(TopSection)]


def _known_sections(tree: Mapping[str, Any]) -> None:
    sections = ["model", "data", *NAMED, "train", "distill", "compare", "study"]
    for key in tree:
        if key not in sections and key not in _top_keys():
            valid = [*_top_keys(), *sections]
            inner = [f"{name}.{leaf}" for name, cls in _PLAIN.items() for leaf, _ in leaves(cls)]
            inner += [
                f"{name}.{leaf}" for name in NAMED for cls in registries()[name].values() for leaf, _ in leaves(cls)
            ]
            exact = [name for name in inner if name.rpartition(".")[2] == key]
            raise UserError(f"unknown key {key!r}{suggest(key, exact or valid)}")


def _check_sections(tree: Mapping[str, Any]) -> None:
    """Refuse a bare value in the place of a section, as ``--method rigl``."""
    for section in ("model", "data", *NAMED, "train", "distill", "compare", "study"):
        value = tree.get(section)
        if value is None or isinstance(value, Mapping):
            continue
        way_out = f"write --{section}.KEY VALUE (--help after a recipe lists all keys)"
        if section not in ("train", "distill", "compare", "study") and isinstance(value, str):
            word = _name_meant(section, value)
            way_out = f"write --{section}.name {word}, or in a file {section}: {{name: {word}}}"
        raise UserError(f"{section} is {show(value)}, but must be a mapping of keys to values: {way_out}")


def _name_meant(section: str, word: str) -> str:
    """The name of a section's class that a word stands for.

    Raises:
        UserError: it is near none of those that there are.
    """
    known = registries().get(section)
    if known is None or own.is_class(section, word):
        return show(word)[1:-1]
    found = closest(word, known)
    if found is None:
        raise UserError(f"unknown {section} {show(word)}{nearest(word, known)}; write --{section}.name NAME")
    return found


def _check_criterion(name: str) -> None:
    from regrow.criteria import CRITERIA

    if ":" not in name and name not in CRITERIA:  # a module of the user's is imported once it is needed, as its model
        raise UserError(f"unknown criterion {name!r}{nearest(name, CRITERIA)}")


def _check_task(name: str) -> None:
    from regrow.training.tasks import TASKS

    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}")


def _named(section: str, options: object, path: str) -> tuple[str, Any]:
    """The name and the typed options of a section whose class its name decides."""
    values = dict(require_mapping(options, path))
    name = values.pop("name", _DEFAULT_NAMES.get(section))
    if own.is_class(section, name):
        return name, own.made(own.load(section, name, path), values, path)
    classes = registries()[section]
    if name is None:
        raise UserError(f"{path}.name is missing: give one of {', '.join(sorted(classes))}")
    if not isinstance(name, str) or name not in classes:
        raise UserError(f"unknown {section} {show(name)} in {path}.name{nearest(str(name), classes)}")
    return name, typed(classes[name], values, path)
