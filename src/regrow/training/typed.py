"""From plain YAML values to typed dataclasses: every key known, every value of its type, every error one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from regrow.errors import UserError, nearest
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
    from jsonargparse import ArgumentError, ArgumentParser

    hints = dict(leaves(cls))
    values = _known(options, hints, path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        config = parser.parse_object(values)
    except ArgumentError as error:
        raise UserError(_sentence(str(error), values, hints, path)) from error
    try:
        instance = parser.instantiate(config)
        arguments = {field.name: instance[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name, hint in hints.items():  # jsonargparse makes a float of an int that may be either
            if _allows(hint, int) and _allows(hint, float) and isinstance(values.get(name), int):
                arguments[name] = values[name]
        built = cls(**arguments)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    fields.check(path, built)
    return built


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
    close = difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1)
    return f"; did you mean {by_last[close[0]]!r}?" if close else f"; valid keys are {', '.join(valid)}"


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


def show(value: object, limit: int = 60) -> str:
    """A value in a message: on one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _known(options: object, hints: Mapping[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """A copy of ``options`` with plain values, after checking that every key is one of ``hints``."""
    result: dict[str, Any] = {}
    for key, value in require_mapping(options, join(path, prefix.rstrip("."))).items():
        name = prefix + key
        if name in hints:
            result[key] = _coerce(_plain_value(value, join(path, name)), hints[name], join(path, name))
        elif any(known.startswith(name + ".") for known in hints):
            if not isinstance(value, Mapping):
                inner = sorted(known for known in hints if known.startswith(name + "."))
                example = ", ".join(known.removeprefix(name + ".") for known in inner)
                raise UserError(f"{join(path, name)} must be a mapping with {example}, not {show(value)}")
            result[key] = _known(value, hints, path, name + ".")
        else:
            valid = [join(path, known) for known in hints]
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


def _coerce(value: Any, hint: Any, path: str) -> Any:
    """What YAML and the command line leave open: null only where it is allowed, one word for a list of words."""
    if value is None and not _allows(hint, type(None)):
        raise UserError(f"{path} must be {describe(hint)}, not null")
    if isinstance(value, str) and _is_list(hint) and not value.startswith("["):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, str) and value.isdecimal() and _allows(hint, int) and not _allows(hint, str):
        return int(value)
    return value


def _allows(hint: Any, kind: type) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or _is_union(hint) else (hint,)
    return kind in options or Any in options


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union


def describe(hint: Any) -> str:
    """A type in words: ``"a number or null"``."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if _is_list(hint):
        items = "any" if not args else " and ".join(describe(a) for a in args if a is not Ellipsis)
        return f"a list of {items}"
    if _is_union(hint) or isinstance(hint, types.UnionType):
        words = [describe(a) for a in args]
        return " or ".join(
            w for i, w in enumerate(words) if not (w == _WORDS[int] and _WORDS[float] in words[i:] + words)
        )
    return "a mapping" if isinstance(origin, type) and issubclass(origin, Mapping) else "of another type"


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _sentence(message: str, values: Mapping[str, Any], hints: Mapping[str, Any], path: str) -> str:
    """jsonargparse's message, in one line and with the full dotted key."""
    if found := re.search(r"[Pp]arser key [\"']([^\"']+)[\"']", message):
        key = found[1]
        value = _at(values, key)
        if key in hints:
            word = nearest(str(value), typing.get_args(hints[key])) if _is_literal(hints[key]) else ""
            hint = word if word.startswith("; did") else ""
            return f"{join(path, key)} must be {describe(hints[key])}, not {show(value)}{hint}"
    if found := re.search(r"required: ([\w.]+)", message):
        return f"{join(path, found[1])} is missing: give {describe(hints.get(found[1], Any))}"
    return f"{path or 'the recipe'}: {' '.join(message.split())}"


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal and all(isinstance(a, str) for a in typing.get_args(hint))
