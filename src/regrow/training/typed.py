"""From plain YAML values to typed dataclasses: every key known, every value of its type, every error one sentence."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from regrow.errors import UserError, closest, nearest, percent
from regrow.hints import describe, is_list, is_literal, is_union, show
from regrow.training import fields

T = TypeVar("T")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_MAX_DEPTH = 12


def typed(cls: type[T], options: object, path: str = "") -> T:
    """Build the dataclass ``cls`` from plain values; text is read as a number, truth value or list where one is due.

    Args:
        cls: a dataclass whose fields are scalars, tuples, mappings or dataclasses again
        options: the values by field name
        path: dotted place of ``options`` in the recipe, for the messages

    Raises:
        UserError: naming the dotted key that is unknown, missing, of another type or out of bounds.
    """
    values = _known(options, dict(leaves(cls)), path)
    try:
        return _instance(cls, values, path)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error


def _instance(cls: type[T], values: Mapping[str, Any], path: str, default: T | None = None) -> T:
    """The dataclass with these values, already of their types; the others are those of ``default``, or the class's."""
    hints = typing.get_type_hints(cls)
    arguments = {} if default is None else {f.name: getattr(default, f.name) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint, place = hints[field.name], join(path, field.name)
        if field.name in values and dataclasses.is_dataclass(hint):
            inner = None if field.default is dataclasses.MISSING else field.default
            arguments[field.name] = _instance(typing.cast("type[Any]", hint), values[field.name], place, inner)
        elif field.name in values:
            fields.check_value(place, values[field.name], field.metadata)
            arguments[field.name] = values[field.name]
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{place} is missing: give {describe(hint, _WORDS)}")
    return cls(**arguments)


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of all fields of a dataclass that are not dataclasses themselves, with their types."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def plain(instance: Any) -> dict[str, Any]:
    """A dataclass as plain YAML values; `typed` reads them back to an equal instance."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(instance))))


def join(path: str, key: str) -> str:
    """Two dotted names, either of which may be empty."""
    return f"{path}.{key}" if path and key else path or key


def suggest(key: str, valid: Sequence[str]) -> str:
    """The hint for an unknown dotted key: the valid key whose last word is nearest, or all valid keys."""
    by_last: dict[str, str] = {}
    for name in valid:
        by_last.setdefault(name.rpartition(".")[2], name)
    close = closest(key.rpartition(".")[2], by_last)
    return f"; valid keys are {', '.join(valid)}" if close is None else f"; did you mean {by_last[close]!r}?"


def require_mapping(value: object, path: str) -> Mapping[str, Any]:
    """``value`` if it is a mapping whose keys are text; None counts as empty.

    Raises:
        UserError: otherwise.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{path or 'a recipe'} must be a mapping of keys to values, not {show(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{path or 'a recipe'} has the key {show(key)}, but keys must be text")
    return value


def _known(options: object, hints: Mapping[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """A copy of ``options`` with plain values, after checking that every key is one of ``hints``."""
    result: dict[str, Any] = {}
    for key, value in require_mapping(options, join(path, prefix.rstrip("."))).items():
        name = prefix + key
        if name in hints:
            result[key] = _converted(_plain_value(value, join(path, name)), hints[name], join(path, name))
        elif any(known.startswith(name + ".") for known in hints):
            if not isinstance(value, Mapping):
                inner = sorted(known for known in hints if known.startswith(name + "."))
                example = ", ".join(known.removeprefix(name + ".") for known in inner)
                raise UserError(f"{join(path, name)} must be a mapping with {example}, not {show(value)}")
            result[key] = _known(value, hints, path, name + ".")
        else:
            valid = [join(path, known) for known in hints]
            if valid and closest(name, ["name"]):  # of a class, which is read before its options
                valid.append(join(path, "name"))
            hint = suggest(join(path, name), valid) if valid else f"; {path} takes no options"
            raise UserError(f"unknown key {join(path, name)!r}{hint}")
    return result


def _plain_value(value: object, path: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise UserError(f"{path} is nested too deeply")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} must be a finite number, not {value}")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain_value(item, path, depth + 1) for item in value]
    if isinstance(value, Mapping):
        items = require_mapping(value, path).items()
        return {key: _plain_value(item, join(path, key), depth + 1) for key, item in items}
    raise UserError(f"{path} must be a number, text, a list or a mapping, not {show(value)}")


def _converted(value: Any, hint: Any, path: str) -> Any:
    """A plain value as one of type ``hint``.

    Raises:
        UserError: naming its key, and what must be there.
    """
    for option in _options(value, hint):
        try:
            found = _adapter(option).validate_python(_prepared(value, option))
        except (ValueError, OverflowError):  # pydantic's ValidationError is one of the former
            continue
        return tuple(found) if isinstance(found, list) and is_list(option) else found
    word = nearest(str(value), typing.get_args(hint)) if is_literal(hint) else ""
    near = word if word.startswith("; did") else ""
    near = near or percent(value if isinstance(value, str) else None)
    raise UserError(f"{path} must be {describe(hint, _WORDS)}, not {'null' if value is None else show(value)}{near}")


def _options(value: Any, hint: Any) -> list[Any]:
    """The types that a value may be read as, best first: its own, then those of the hint in their order."""
    options = list(typing.get_args(hint)) if is_union(hint) else [hint]
    whole = isinstance(value, str) and value.isascii() and value.isdecimal() and int in options
    own: type = int if whole else type(value)
    if value == "null" and type(None) in options:  # before text, which it would be as well
        own = type(None)
    return sorted(options, key=lambda option: option is not own or own is str)


def _prepared(value: Any, hint: Any) -> Any:
    """What YAML and the command line leave open: null as a word, lists as one word, words where anything may be.

    Raises:
        ValueError: where there is a truth value, or a word for what is no finite number, and a number is due; those
            would be taken for one.
    """
    if _takes_anything(hint):
        return _loose(value)
    if value == "null" and hint is type(None):
        return None
    if isinstance(value, str) and hint is float and not math.isfinite(float(value)):
        raise ValueError
    if isinstance(value, bool) and hint is not bool:
        raise ValueError
    if isinstance(value, str) and is_list(hint):
        return [item.strip() for item in value.strip().removeprefix("[").removesuffix("]").split(",") if item.strip()]
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _prepared(item, typing.get_args(hint)[-1] if typing.get_args(hint) else hint)
    return value


def _loose(value: Any) -> Any:
    """Where anything may be: the number, truth value or null that a word stands for, or the word."""
    if isinstance(value, Mapping):
        return {key: _loose(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_loose(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:  # also of more digits than Python reads
            continue
        return number if math.isfinite(number) else value
    return {"true": True, "false": False, "null": None}.get(value.lower(), value)


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def check_hint(hint: Any) -> bool:
    """Whether values of this type can be read from a recipe."""
    from pydantic.errors import PydanticUserError

    try:
        return all(bool(_adapter(option)) for option in _options(None, hint))
    except PydanticUserError:  # it knows no such type
        return False


def _takes_anything(hint: Any) -> bool:
    return hint is Any or Any in typing.get_args(hint)
