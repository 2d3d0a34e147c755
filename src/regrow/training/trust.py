"""Code that recipes name: ``package.module:callable`` is imported and called, so whose recipe it is matters.

A recipe of the user's own, or a word on the command line, is theirs to answer for. A run directory may come from
anybody: what its recipe names is only imported once the user says so.
"""

from __future__ import annotations

from pathlib import Path

from regrow.data.named import NAMED
from regrow.errors import UserError
from regrow.training import own
from regrow.training.recipe import Recipe
from regrow.training.recipe_layers import Tree, at, layers

_LIBRARIES = ("timm", "torchvision", "hf")
# a directory with any of these beside its recipe was written by `regrow train` or `regrow compare`
_TRACES = ("metrics.jsonl", "results.json", "checkpoint", "model", "runs", "recipes", "structure.json", "latency.json")


def foreign(recipe: Recipe | Tree) -> dict[str, str]:
    """Dotted key → ``module:callable`` that a recipe names there, other than models and data sets by their names."""
    tree = recipe.resolved() if isinstance(recipe, Recipe) else recipe
    found: dict[str, str] = {}
    _add(found, "model.name", at(tree, "model", "name"), _LIBRARIES)
    _add(found, "data.name", at(tree, "data", "name"), tuple(NAMED))
    _add(found, "criterion", tree.get("criterion"), ())
    compare = tree.get("compare")
    for label, entry in compare.items() if isinstance(compare, dict) else ():
        _add(found, f"compare.{label}.recipe.criterion", at(entry, "recipe", "criterion"), ())
    methods = at(tree, "study", "methods")
    for word in methods if isinstance(methods, list) else [methods]:
        _add(found, "study.methods", word, ())
    for key, known in {
        "model.name": _LIBRARIES,
        "data.name": tuple(NAMED),
        "criterion": (),
        "pattern.name": (),
    }.items():
        for value in _values(at(tree, "study", "vary"), key):
            _add(found, f"study.vary.{key}", value, known)
    return found | own.classes_in(tree)


def require(
    source: str | Path, recipe: Recipe | Tree, trusted: bool, resumed: bool = False, shown_only: bool = False
) -> None:
    """Refuse code that a run directory names and the user does not; nothing has been imported then.

    Args:
        source: of the recipe, as in `regrow.training.recipe.load`
        recipe: what it says, with all that was changed on the command line
        trusted: the user trusts it
        resumed: its first file is that of a run directory, also where nothing else in there shows it
        shown_only: it is only looked at, for which its classes are imported, but nothing else

    Raises:
        UserError: naming what would be imported.
    """
    tree = recipe.resolved() if isinstance(recipe, Recipe) else recipe
    wanted = {} if trusted else own.classes_in(tree) if shown_only else foreign(tree)
    theirs: set[str] = set()
    place = None
    for layer in layers(source) if wanted else ():
        if place is None and (resumed or (layer.path is not None and _of_a_run(layer.path.absolute().parent))):
            place = layer.path
        if place is not None:  # also all that it is based on
            theirs |= set(foreign(layer.tree).values())
    if named := {key: spec for key, spec in wanted.items() if spec in theirs}:
        what = ", ".join(f"{spec} ({key})" for key, spec in named.items())
        raise UserError(
            f"{place} comes with a run, and names code that would be imported and called: {what}; add --trust if you "
            "trust whoever wrote it"
        )


def _of_a_run(directory: Path) -> bool:
    """Whether a run or a comparison has written a recipe in this directory."""
    places = [directory, directory.parent] if directory.name == "recipes" else [directory]
    return any((place / trace).exists() for place in places for trace in _TRACES)


def _add(found: dict[str, str], key: str, spec: object, known: tuple[str, ...]) -> None:
    if isinstance(spec, str) and ":" in spec and spec.partition(":")[0] not in known:
        found[key if found.get(key, spec) == spec else f"{key} {spec}"] = spec


def _values(vary: object, key: str) -> list[object]:
    values = vary.get(key) if isinstance(vary, dict) else None
    return values if isinstance(values, list) else [values]
