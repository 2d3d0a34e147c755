"""Grids of recipe keys: the variants of a comparison, each a method in a cell, with its label and its recipe."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regrow.errors import UserError
from regrow.training.cells import Cell, cell_name, short_names, value_text
from regrow.training.recipe import Recipe, Tree, merge, parse, with_method
from regrow.training.recipe_layers import NAMED
from regrow.training.typed import leaves

MANY = 200  # runs, from which on a comparison says how many they are before it starts
_MOST = 100_000  # runs of one comparison
_LONGEST = 100  # characters of a file's name
_LONGEST_LABEL = 1000  # as results may have it
# sections that change nothing about training that keeps all weights
_OF_SPARSITY = ("method", "pattern", "criterion")
_ELSEWHERE = {"seed": "--seeds, or study.seeds", "method.name": "--methods, or study.methods"}
Vary = Mapping[str, Sequence[Any]]  # dotted key → its values, as a recipe or the command line gives them


@dataclass(frozen=True)
class Variant:
    """One line of a comparison.

    Attributes:
        label: what it is called: that of its method, and what its cell says
        of: label of its method
        recipe: what its runs do, but for their seeds
        cell: the values of the keys that are varied; without those that do not matter to it
        in_grid: whether any keys are varied
    """

    label: str
    of: str
    recipe: Recipe
    cell: Cell = field(default_factory=dict)
    in_grid: bool = False

    @property
    def file(self) -> str:
        """What its files are called. Labels that cannot be told apart by it have a checksum in it."""
        names = short_names(self.cell)
        name = "+".join([self.of, *(f"{names[key]}-{value_text(value)}" for key, value in self.cell.items())])
        safe = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)
        if safe == name and len(name) <= _LONGEST:
            return name
        return f"{safe[:_LONGEST]}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class GridCell:
    """The variants of a cell, and the comparison's own recipe in it, whose method sets the budget of matched costs."""

    recipe: Recipe
    cell: Cell
    variants: Sequence[Variant]


def cells_of(recipe: Recipe, methods: Mapping[str, str], vary: Vary, apart: bool = False) -> list[GridCell]:
    """All cells of a grid, in the order of its values.

    Args:
        recipe: what all runs share
        methods: label → method, or label of the recipe's ``compare`` section
        vary: dotted key → values; where it is empty, there is one cell, and variants are called as their methods
        apart: dense training differs between cells (in its length), also where only the sparsity does. Otherwise it has
            one variant for all cells whose keys mean nothing to it.

    Raises:
        UserError: for a key that cannot be varied, that one of the methods does not have, or whose values are none, the
            same, or refused by the recipe.
    """
    _check(vary)
    own = {label: with_method(recipe, word) for label, word in methods.items()}
    for label in own:
        _check_method(label, own, vary)
    base = [key for key in vary if not key.startswith("method.") or _has(recipe, key)]
    cells: list[GridCell] = []
    taken: dict[tuple[str, str], Sequence[Any]] = {}
    files: dict[str, str] = {}
    for values in itertools.product(*vary.values()):
        wanted = dict(zip(vary, values, strict=True))
        variants = []
        for label, one in own.items():
            found = _variant(one, label, wanted, apart)
            before = taken.setdefault((label, found.label), values)
            if before is values:
                if len(found.label) > _LONGEST_LABEL:
                    raise UserError(
                        f"the label {found.label[:40]!r}... would have {len(found.label):,} characters, of at most "
                        f"{_LONGEST_LABEL:,}: give the label or its values a shorter name"
                    )
                variants.append(found)
                if files.setdefault(found.file, found.label) != found.label:
                    raise UserError(f"{files[found.file]!r} and {found.label!r} would write the same files: rename one")
            elif one.method.sparsifies or apart:
                _refuse_repeated(vary, before, values)
        cells.append(GridCell(_changed(recipe, {key: wanted[key] for key in base}), wanted, variants))
    return cells


def check_size(vary: Vary, methods: int, seeds: int, show: Callable[[str], object] | None = None) -> int:
    """How many runs there are at most.

    Args:
        vary: dotted key → values
        methods, seeds: how many there are
        show: is called with a sentence that says it, where they are many

    Raises:
        UserError: they are more than anybody would wait for.
    """
    cells = 1
    for values in vary.values():
        cells *= len(values)
    runs = cells * methods * seeds
    said = f"{runs:,} runs ({methods} methods × {cells:,} cells × {seeds} seeds)"
    if runs > _MOST:
        raise UserError(f"this comparison would be {said}: at most {_MOST:,} can be compared at once")
    if show is not None and runs > MANY:
        show(f"this comparison is {said}")
    return runs


def _check(vary: Vary) -> None:
    """Refuse keys that cannot be varied, and values that are none."""
    for key, values in vary.items():
        section = key.partition(".")[0]
        if key in _ELSEWHERE:
            raise UserError(f"vary {key}: it is given by {_ELSEWHERE[key]}")
        if section in ("compare", "study", "base"):
            raise UserError(f"vary {key}: only keys that all runs have can be varied, not those of {section}")
        if "" in key.split("."):
            raise UserError(f"vary {key!r}: it must be a key of the recipe, dotted, such as pattern.sparsity")
        if key in (*NAMED, "model", "data", "train"):
            raise UserError(f"vary {key}: it is a section; name one of its keys, such as pattern.sparsity")
        if part := next((other for other in vary if other.startswith(f"{key}.")), None):
            raise UserError(f"vary {key}: {part}, which is a part of it, is varied, too")
        if not values:
            raise UserError(f"vary {key} has no values: give some, such as pattern.sparsity=0.9,0.95")
        texts = [value_text(value) for value in values]
        for text in texts:
            if not text:
                raise UserError(f"vary {key} has an empty value")
            if texts.count(text) > 1:
                raise UserError(f"vary {key} names {text} twice")


def _check_method(label: str, own: Mapping[str, Recipe], vary: Vary) -> None:
    """Refuse options that a method lacks, but another one has; those that none has, the recipe refuses."""
    for key in vary if own[label].method.sparsifies else ():
        if key.startswith("method.") and not _has(own[label], key):
            having = [name for name, one in own.items() if one.method.sparsifies and _has(one, key)]
            if having:
                raise UserError(
                    f"vary {key}: {label} has no such option; compare only methods that have it, such as --methods "
                    f"{','.join(having)}"
                )


def _has(recipe: Recipe, key: str) -> bool:
    """Whether a recipe's method has an option, or one that is a part of it or that it is a part of."""
    option = key.removeprefix("method.")
    known = [name for name, _ in leaves(type(recipe.method))]
    return any(name == option or name.startswith(f"{option}.") or option.startswith(f"{name}.") for name in known)


def _variant(recipe: Recipe, label: str, wanted: Mapping[str, Any], apart: bool) -> Variant:
    ours = wanted
    if not recipe.method.sparsifies:
        of_sparsity = ("method",) if apart else _OF_SPARSITY
        ours = {key: value for key, value in wanted.items() if key.partition(".")[0] not in of_sparsity}
    changed = _changed(recipe, ours)
    cell = {key: _value_at(changed.resolved(), key, value) for key, value in (wanted if apart else ours).items()}
    return Variant(", ".join(filter(None, (label, cell_name(cell)))), label, changed, cell, bool(wanted))


def _changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with other values of some keys, checked as every recipe is."""
    if not values:
        return recipe
    return parse(merge(recipe.resolved(), _nested(values)))


def _nested(values: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[last] = value
    return tree


def _value_at(tree: Any, key: str, otherwise: Any) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return otherwise
        tree = tree[part]
    return tree


def _refuse_repeated(vary: Vary, before: Sequence[Any], now: Sequence[Any]) -> None:
    """Two cells came out equal, as two values of one key mean the same."""
    for key, one, other in zip(vary, before, now, strict=True):
        if value_text(one) != value_text(other):
            raise UserError(f"vary {key} names {value_text(one)} and {value_text(other)}, which are the same")
