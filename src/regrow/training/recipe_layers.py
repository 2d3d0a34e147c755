"""What a recipe is made of before it is checked: files, shipped recipes and overrides, merged to one tree.

A recipe is merged from layers, each over the one before: the recipe that ``base`` names, the file itself, the
overrides. A layer that names another method, optimizer, schedule or pattern than the layer before replaces that section
instead of merging with it, so options of the old one never linger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from regrow.errors import UserError, nearest
from regrow.training.typed import join, require_mapping, show

Tree = dict[str, Any]

NAMED = ("method", "pattern", "optimizer", "schedule")  # sections whose options depend on their name
# mappings that a later layer replaces instead of merging
WHOLE = ("pattern.distribution", "pattern.round_to", "model.options")
VARIANT = "recipe"  # key of an entry of `compare`: what is different about its recipe, beside the method
_MAX_BYTES = 1_000_000


def shipped() -> list[str]:
    """Names of the recipes that the package ships."""
    files = resources.files("regrow").joinpath("recipes").iterdir()
    return sorted(
        f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml") and not f.name.startswith("_")
    )


def tree_of(source: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Tree:
    """The merged layers of a recipe, not yet checked."""
    layer = dict(overrides) if isinstance(overrides, Mapping) else override_tree(overrides)
    return merge(_read(str(source)), layer)


def merge(below: Mapping[str, Any], above: Mapping[str, Any], path: str = "") -> Tree:
    """``above`` over ``below``, as the module's docstring says."""
    if not path:
        below = _with_changes(below, above)
    result = dict(below)
    if not path and ({"epochs", "steps"} & above.keys()):
        result = {key: value for key, value in result.items() if key not in ("epochs", "steps")}
    for key, value in above.items():
        name, old = join(path, str(key)), result.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping) or name in WHOLE:
            result[key] = value
        elif name in NAMED and value.get("name", old.get("name")) != old.get("name"):
            variant = _entry(below, value["name"]) if name == "method" else {}
            variant = {option: given for option, given in variant.items() if option != VARIANT}
            result[key] = merge(variant, value, name) if variant else value
        else:
            result[key] = merge(old, value, name)
    return result


def _entry(tree: Mapping[str, Any], label: object) -> Mapping[str, Any]:
    """The entry of ``compare`` for a label; empty where there is none."""
    variants = tree.get("compare")
    entry = variants.get(label) if isinstance(variants, Mapping) and isinstance(label, str) else None
    return entry if isinstance(entry, Mapping) else {}


def _with_changes(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """``below``, with what its ``compare`` says of the recipe of the method that ``above`` changes to."""
    old, new = (tree["method"] if isinstance(tree.get("method"), Mapping) else {} for tree in (below, above))
    if "name" not in new or new["name"] == old.get("name"):
        return below
    changes = _entry(below, new["name"]).get(VARIANT)
    return merge(below, changes) if isinstance(changes, Mapping) and "method" not in changes else below


def override_tree(arguments: Sequence[str]) -> Tree:
    """``["--method.h", "20", "--seed=1"]`` as a nested mapping.

    Raises:
        UserError: if an argument is no ``--key value`` or ``--key=value``.
    """
    tree: Tree = {}
    words = iter(arguments)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key or "" in key.split("."):
            raise UserError(f"cannot read {show(word)}: overrides look like --method.h 20")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"--{key} needs a value, as in --{key}=VALUE")
        branch = tree
        *sections, last = key.split(".")
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise UserError(f"--{key} contradicts an earlier override of a part of it")
        branch[last] = _override_value(key, value)
    return tree


def _read(source: str, seen: tuple[str, ...] = ()) -> Tree:
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file() or "/" in source:
        text, here = _file_text(path), path.parent
    else:
        text, here = _shipped_text(source), None
    tree = dict(require_mapping(_parse_yaml(text, source), ""))
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str) or not base:
        raise UserError(f"base must be the name or path of a recipe, not {show(base)}")
    beside = here / base if here is not None else None
    base = str(beside) if beside is not None and beside.is_file() else base
    if base in seen or base == source:
        raise UserError(f"recipe {source} is its own base")
    return merge(_read(base, (*seen, source)), tree)


def _file_text(path: Path) -> str:
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= _MAX_BYTES else ""
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a recipe: it is no text file") from error
    if size > _MAX_BYTES:
        raise UserError(f"{path} is too large for a recipe")
    return text


def _shipped_text(name: str) -> str:
    file = resources.files("regrow").joinpath("recipes", f"{name}.yaml")
    if not name or not file.is_file():
        raise UserError(f"there is no recipe file and no shipped recipe {name!r}{nearest(name, shipped())}")
    return file.read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key_node.value!r} is given twice",
                                                            problem_mark=key_node.start_mark)  # fmt: skip
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise UserError(f"{source}{place} is not valid YAML: {' '.join(str(problem).split())}") from error
    except (ValueError, RecursionError, OverflowError, TypeError) as error:  # impossible dates, endless nesting
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def _override_value(key: str, value: str) -> Any:
    if not value.startswith(("{", "[")):
        return value
    return _parse_yaml(value, f"the value of --{key}")
