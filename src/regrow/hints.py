"""Type hints that are kept: what an option may be is said once, by its annotation."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence, Set
from typing import Any

from regrow.errors import UserError

WORDS = {int: "a whole number", float: "a number", str: "a name", bool: "True or False", type(None): "None"}
_SEVERAL = {"a whole number": "whole numbers", "a number": "numbers", "a name": "names"}
LARGEST = 10**18  # no count is larger: it must fit into what tensors hold


def check(instance: Any) -> None:
    """Refuses an option of a dataclass that is not of the type that its annotation says; a list is as good as a tuple.

    Raises:
        UserError: naming the option.
    """
    for name, hint in options(instance.__class__).items():
        check_value(name, getattr(instance, name), hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuses a value that is not of the type that a hint says. Numbers are Python's own, and no truth values.

    Args:
        name: of the option, for the message.

    Raises:
        UserError: naming the option.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_value(f"{name}[{show(key)}]", item, _item_hint(hint))
    if not _fits(value, hint):
        plain = "; give a plain one, such as its .item()" if getattr(value, "shape", None) == () else ""
        if is_literal(hint):
            *others, last = map(repr, typing.get_args(hint))
            raise UserError(f"{name} {show(value)} is unknown; use {', '.join(others)} or {last}")
        raise UserError(f"{name} is {show(value)}, but must be {describe(hint)}{plain}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{name} is {show(value)}, but must be at most {LARGEST:.0e}")


def show(value: object, limit: int = 60) -> str:
    """A value in a message: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _fits(value: Any, hint: Any) -> bool:
    if type(value) is hint:  # without pydantic, which takes long to import
        return True
    if is_literal(hint):
        return isinstance(value, str) and value in typing.get_args(hint)
    from pydantic import ValidationError

    if hasattr(value, "item") and not isinstance(value, float):  # of NumPy or torch, which pydantic takes for a number
        return hint is Any
    if isinstance(value, list | Set):
        value = tuple(value)
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _item_hint(hint: Any) -> Any:
    """What a mapping may hold."""
    for option in typing.get_args(hint) if is_union(hint) else (hint,):
        if isinstance(typing.get_origin(option), type) and issubclass(typing.get_origin(option), Mapping):
            return typing.get_args(option)[-1]
    return Any


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(hint)
    except PydanticUserError:  # it knows no such type
        return TypeAdapter(Any)


@functools.cache
def options(cls: Any) -> dict[str, Any]:
    """What the options of a dataclass may be: name → annotation; nothing where one is of a type that only type checkers
    import."""
    try:
        known = typing.get_type_hints(cls)
    except NameError:
        return {}
    return {field.name: known[field.name] for field in dataclasses.fields(cls)}


def describe(hint: Any, words: Mapping[type, str] = WORDS) -> str:
    """A type in words: ``"a number or None"``."""
    if hint in words:
        return words[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_literal(hint):
        return "one of " + ", ".join(str(a) for a in args)
    if is_list(hint):
        items = [describe(a, words) for a in args if a is not Ellipsis]
        several = _SEVERAL.get(items[0]) if len(set(items)) == 1 else None
        if several and len(items) == 2:  # as (16, 1)
            return f"two {several}"
        return f"a list of {several or ' and '.join(items) or 'any'}"
    if is_union(hint):
        said = [describe(a, words) for a in args]
        return " or ".join(w for i, w in enumerate(said) if not (w == words[int] and words[float] in said[i:] + said))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping to lists" if args and is_list(args[-1]) else "a mapping"
    return f"a {hint.__name__}" if isinstance(hint, type) else "of another type"


def is_list(hint: Any) -> bool:
    """Whether it is of a sequence."""
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def is_union(hint: Any) -> bool:
    """Whether it is of several types."""
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def is_literal(hint: Any) -> bool:
    """Whether it is of a few words."""
    return typing.get_origin(hint) is typing.Literal and all(isinstance(a, str) for a in typing.get_args(hint))
