"""Methods and patterns of the user's own in recipes: ``package.module:Class``, with typed options as ours have them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from regrow.errors import UserError
from regrow.training.typed import check_hint, leaves, plain, typed

SECTIONS = ("method", "pattern")  # whose name may be a class


def is_class(section: str, name: object) -> bool:
    """Whether a section's name is that of a class of the user's rather than a registered one."""
    return section in SECTIONS and isinstance(name, str) and ":" in name


def classes_in(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key → ``package.module:Class`` that a recipe in its plain form names there. Nothing is imported."""
    found = _named_in(tree, "")
    compare = tree.get("compare")
    for label, entry in compare.items() if isinstance(compare, Mapping) else ():
        if isinstance(entry, Mapping):
            found |= _named_in({"method": entry}, f"compare.{label}", whole=True)
            found |= _named_in(entry.get("recipe"), f"compare.{label}.recipe.")
    return found


def _named_in(tree: object, prefix: str, whole: bool = False) -> dict[str, str]:
    """The same for one set of sections; `whole` where a section's own place is the prefix."""
    found = {}
    for section in SECTIONS if isinstance(tree, Mapping) else ():
        options = tree.get(section)  # type: ignore[attr-defined]
        name = options.get("name") if isinstance(options, Mapping) else None
        if is_class(section, name):
            found[f"{prefix if whole else prefix + section}.name"] = str(name)
    return found


def load(section: str, spec: str, path: str) -> type:
    """The class that ``package.module:Class`` names; the current directory can be imported from.

    Args:
        section: ``"method"`` or ``"pattern"``
        spec: names it
        path: dotted place of the section in the recipe, for the messages

    Raises:
        UserError: if it cannot be imported, is no class of that kind, or has options that no recipe can give.
    """
    from regrow.importing import import_callable
    from regrow.inputs import first_line
    from regrow.methods import Method
    from regrow.patterns import Pattern

    base: type = {"method": Method, "pattern": Pattern}[section]
    try:
        found: Any = import_callable(spec)
    except UserError as error:
        raise UserError(f"{path}.name: {error}") from error
    what = f"{path}.name: {spec!r}"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{what} is no {section}: derive it from {base.__module__.rpartition('.')[0]}.{base.__name__}")
    if inspect.isabstract(found):
        raise UserError(f"{what} is not complete: it has no {', '.join(sorted(vars(found)['__abstractmethods__']))}")
    if "__dataclass_params__" not in vars(found) or not vars(found)["__dataclass_params__"].frozen:
        raise UserError(f"{what} does not say what its options are: write @dataclass(frozen=True) above the class")
    if not isinstance(getattr(found, "name", None), str):
        raise UserError(f"{what} has no name for messages: add name: ClassVar[str] = {found.__name__.lower()!r} to it")
    try:
        hints = dict(leaves(found))
    except (NameError, TypeError, AttributeError) as error:
        raise UserError(f"{what} has options of types that cannot be found: {first_line(error)}") from error
    given = {field.name: field.init for field in vars(found)["__dataclass_fields__"].values()}
    for option, hint in hints.items():
        if not (check_hint(hint) and given[option.partition(".")[0]]):
            raise UserError(f"{what} has an option {option!r} of a type that no recipe can give")
    return found


def made(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a class of the user's, whose own refusals become those of the recipe.

    Raises:
        UserError: for options that do not fit, that it refuses, or that cannot be written into a recipe.
    """
    from regrow.inputs import first_line

    try:
        instance: Any = typed(cls, values, path)
    except UserError:
        raise
    except Exception as error:  # whatever its own code raises
        raise UserError(f"{path}: {cls.__name__} refuses these options: {first_line(error)}") from error
    try:
        again: Any = typed(cls, plain(instance), path)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {cls.__name__} has an option that no recipe can hold: {first_line(error)}") from error
    changed = [name for name in plain(instance) if getattr(again, name) != getattr(instance, name)]
    if changed:
        raise UserError(
            f"{path}: {cls.__name__} has an option {changed[0]!r} that a recipe does not give back as it was"
        )
    return instance


def label_of(name: str, others: Sequence[str] = ()) -> str:
    """What runs of a method are called: the name of a registered one; of ``package.module:Class`` the class's own, or
    all of it where one of ours or one of ``others`` is called so, too.

    >>> label_of("mine:Gentle"), label_of("mine:RigL"), label_of("mine:Gentle", ["theirs:Gentle"]), label_of("rigl")
    ('Gentle', 'mine.RigL', 'mine.Gentle', 'rigl')
    """
    if not is_class("method", name):
        return name
    from regrow.methods import METHODS

    taken = {_short(other).casefold() for other in (*METHODS, *others)}  # labels name files
    return name.replace(":", ".") if _short(name).casefold() in taken else _short(name)


def labels(words: Sequence[str]) -> dict[str, str]:
    """Label → word of ``--methods``, in their order.

    Raises:
        UserError: if two of them get the same label.
    """
    found: dict[str, str] = {}
    for word in words:
        label = label_of(word, [other for other in words if other != word])
        if label in found:
            raise UserError(f"runs of {found[label]!r} and of {word!r} would both be called {label!r}: compare one")
        found[label] = word
    return found


def _short(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2] if ":" in name else name
