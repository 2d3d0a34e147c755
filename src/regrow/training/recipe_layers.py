"""What a recipe is made of before it is checked: files, shipped recipes and overrides, merged to one tree.

A recipe is merged from layers, each over the one before: the recipe that ``base`` names, the file itself, the
overrides. A layer that names another method, optimizer, schedule or pattern than the layer before replaces that section
instead of merging with it, so options of the old one never linger.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from regrow import regular
from regrow.errors import UserError, nearest
from regrow.hints import show
from regrow.training.typed import join, require_mapping

Tree = dict[str, Any]

NAMED = ("method", "pattern", "optimizer", "schedule")  # sections whose options depend on their name
# mappings that a later layer replaces instead of merging
WHOLE = ("pattern.distribution", "pattern.round_to", "model.options", "study.vary")
VARIANT = "recipe"  # key of an entry of `compare`: what is different about its recipe, beside the method
_MAX_BYTES = 250_000
_MAX_VALUES = 50_000
_MAX_DEPTH = 32
_MAX_BASES = 16


def shipped() -> list[str]:
    """Names of the recipes that the package ships."""
    files = resources.files("regrow").joinpath("recipes").iterdir()
    return sorted(
        f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml") and not f.name.startswith("_")
    )


def tree_of(source: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Tree:
    """The merged layers of a recipe, not yet checked."""
    layer = dict(overrides) if isinstance(overrides, Mapping) else override_tree(overrides)
    tree: Tree = {}
    for below in reversed(layers(source)):
        tree = merge(tree, below.tree)
    return merge(tree, layer)


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


def at(tree: object, section: str, key: str) -> Any:
    """What a recipe's plain form, which nobody has checked, has at section.key; None where it has nothing there."""
    inner = tree.get(section) if isinstance(tree, Mapping) else None
    return inner.get(key) if isinstance(inner, Mapping) else None


def without(tree: Mapping[str, Any], keys: Iterable[str]) -> Tree:
    """A recipe's plain form as a copy that lacks these dotted keys, as far as it has them."""
    found: Tree = copy.deepcopy(dict(tree))
    for key in keys:
        *sections, last = key.split(".")
        branch: Any = found
        for section in sections:
            branch = branch.get(section, {})
        branch.pop(last, None)
    return found


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
        if len(sections) > _MAX_DEPTH:
            raise UserError(f"{show(word)} is nested too deeply")
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise UserError(f"--{key} contradicts an earlier override of a part of it")
        branch[last] = override_value(key, value)
    return tree


@dataclass(frozen=True)
class RecipeFile:
    """One file of a recipe: where it is (None for one that the package ships), and what it says, without its base."""

    path: Path | None
    tree: Tree


def layers(source: str | Path) -> list[RecipeFile]:
    """The files of a recipe: its own first, then the one that it names as its base, and so on.

    Raises:
        UserError: naming a file that cannot be read, is no recipe, or is its own base.
    """
    found: list[RecipeFile] = []
    seen: list[str] = []
    following: str | None = str(source)
    while following is not None:
        if following in seen or len(seen) > _MAX_BASES:
            raise UserError(
                f"recipe {source} is its own base" if following in seen
                else f"recipe {source} has more than {_MAX_BASES} bases, one of the other"
            )  # fmt: skip
        seen.append(following)
        path = _file_of(following)
        text = _shipped_text(following) if path is None else read_text(path)
        tree = dict(require_mapping(parse_yaml(text, following), ""))
        base = tree.pop("base", None)
        found.append(RecipeFile(path, tree))
        following = None if base is None else _base_of(base, path)
    return found


def _file_of(source: str) -> Path | None:
    """The file that is meant by a path; None for the name of a recipe that the package ships."""
    path = Path(source)
    if not (path.suffix in (".yaml", ".yml") or path.is_file() or "/" in source):
        return None
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else path


def _base_of(base: object, path: Path | None) -> str:
    if not isinstance(base, str) or not base:
        raise UserError(f"base must be the name or path of a recipe, not {show(base)}")
    beside = None if path is None else path.parent / base
    return str(beside) if beside is not None and beside.is_file() else base


def read_text(path: Path) -> str:
    """A file's text, if it is a regular file of modest size.

    Raises:
        UserError: otherwise.
    """
    try:
        with regular.opened(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte in the path
        raise UserError(f"cannot read the recipe {show(str(path))}: {error}") from error
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path} is too large for a recipe, which has at most {_MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8")
    except ValueError as error:
        raise UserError(f"{path} is not a recipe: it is no text file") from error


def _shipped_text(name: str) -> str:
    file = resources.files("regrow").joinpath("recipes", f"{name}.yaml")
    if not name or not file.is_file():
        raise UserError(f"there is no recipe file and no shipped recipe {name!r}{nearest(name, shipped())}")
    return file.read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last, and says where a value is that its
    tag does not fit (``!!int ''``)."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            problem = f"{node.value!r:.40} cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key_node.value!r} is given twice",
                                                            problem_mark=key_node.start_mark)  # fmt: skip
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, source: str) -> Any:
    """A YAML document as plain values; nothing that it could name is made, and its aliases cannot make it large.

    Args:
        text: the document
        source: what it is called in messages

    Raises:
        UserError: if it is none, gives a key twice, is nested too deeply, or has too many values once its aliases
            (``*name``) stand for what they name.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_extent(node, source)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise UserError(f"{source}{place} is not valid YAML: {' '.join(str(problem).split())}") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply") from error
    except UserError:
        raise
    except (ValueError, OverflowError, TypeError) as error:  # impossible dates, numbers of endless length
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def _check_extent(root: yaml.Node, source: str) -> None:
    """Counts the values of a document as if every alias was written out, without writing any out."""
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    open_ones: set[int] = set()
    todo: list[tuple[yaml.Node, bool]] = [(root, False)]
    while todo:  # parts before the whole; no recursion, which the depth of a document could exhaust
        node, parts_done = todo.pop()
        parts = _parts(node)
        if parts_done:
            open_ones.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
            depths[id(node)] = 1 + max((depths[id(part)] for part in parts), default=0)
        elif id(node) in open_ones:
            raise UserError(f"{source}, line {node.start_mark.line + 1}: a value contains itself")
        elif id(node) not in sizes:
            open_ones.add(id(node))
            todo.append((node, True))
            todo += [(part, False) for part in parts if id(part) not in sizes]
    if depths[id(root)] > _MAX_DEPTH:
        raise UserError(f"{source} is nested too deeply: {_MAX_DEPTH} levels are enough for any recipe")
    if sizes[id(root)] > _MAX_VALUES:
        raise UserError(f"{source} has more than {_MAX_VALUES:,} values, once its aliases are written out")


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def override_value(key: str, value: str) -> Any:
    """What a word of the command line gives a key: lists and mappings in YAML, otherwise text that its type reads.

    Raises:
        UserError: naming the key, if it is no YAML.
    """
    if not value.startswith(("{", "[")):
        return value
    return parse_yaml(value, f"the value of --{key}")
