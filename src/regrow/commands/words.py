"""The words that commands share: parsers, models and recipes, and how lists and shapes are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from regrow.errors import UserError, percent

MODEL = "wrn22-2, digits-cnn, shapes-ssd, timm:NAME, torchvision:NAME, hf:PATH, hf:TYPE or package.module:callable"
_DIGITS = 12  # of a whole number; more are none that counts anything
_SIDE = 2**16  # of an image
WITH_RECIPE = ("train", "compare", "scan")  # commands that take any key of a recipe
AS_WRITTEN = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print with its usage, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace(chr(10), ' ')} (see {self.prog} --help)")


def command_parser(
    group: argparse._SubParsersAction[Parser], name: str, about: str, examples: str, usage: str
) -> Parser:
    """The parser of a command, with examples below its options."""
    return group.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="examples:\n" + examples,
        usage=f"regrow {name} {usage}",
        formatter_class=AS_WRITTEN,
        allow_abbrev=False,
        add_help=name not in WITH_RECIPE,
    )


def refuse_empty(parser: Parser) -> None:
    """Has a parser refuse options that are given, but say nothing."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and action.type in (None, Path):
            action.type = _text if action.type is None else _path
            action.default = action.default or None  # as types are asked of defaults, too


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def whole(text: str) -> int:
    """A whole number of a length that counts something."""
    if len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} has more than {_DIGITS} digits")
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error


def share(text: str) -> float:
    """A number, of a share."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid float value: {text[:40]!r}{percent(text)}") from error


def pair(text: str) -> tuple[int, int]:
    """Two whole numbers, as in 2:4."""
    parts = text.split(":")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not two whole numbers with a colon between, as in 2:4")
    return whole(parts[0]), whole(parts[1])


def words_of(text: str, option: str = "") -> list[str]:
    """``a,b,c`` as a list of words; where an option is named, it must have some.

    Raises:
        UserError: there are none, or a word is there twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if option and not words:
        raise UserError(f"{option} is empty")
    if len(set(words)) < len(words):
        double = next(word for word in words if words.count(word) > 1)
        raise UserError(f"{option or 'a list'} names {double!r} twice")
    return words


def seeds_of(text: str) -> list[int]:
    """``0,1,2`` as numbers.

    Raises:
        UserError: it is something else.
    """
    words = words_of(text, "--seeds")
    for word in words:
        if not (word.isdecimal() and len(word) <= _DIGITS):
            raise UserError(f"--seeds must be whole numbers such as 0,1,2, not {word[:40]!r}")
    seeds = [int(word) for word in words]
    words_of(",".join(map(str, seeds)), "--seeds")  # 00 is 0
    return seeds


def vary_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``key=a,b,c``, each from a ``--vary``, as the values of each key. Commas inside of brackets are part of a value.

    Raises:
        UserError: it is something else, or names a key twice.
    """
    from regrow.training.recipe_layers import override_value

    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, words = text.partition("=")
        key = key.strip().removeprefix("--")
        if not equals or not key:
            raise UserError(f"--vary must be a key and its values such as pattern.sparsity=0.9,0.95, not {text[:40]!r}")
        if key in found:
            raise UserError(f"--vary gives {key} twice: write its values as one list")
        found[key] = [override_value(key, word) for word in _split(words)] if words.strip() else []
    return found


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    words, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += sign
    return [word.strip() for word in words]


def shape_of(text: str) -> tuple[int, ...]:
    """``3,32,32`` (or ``3x32x32``) as the shape of an image.

    Raises:
        UserError: it is something else.
    """
    parts = text.replace("x", ",").split(",")
    sides = [part.strip() for part in parts]
    if len(sides) != 3 or not all(s.isdecimal() and len(s) <= _DIGITS and 0 < int(s) <= _SIDE for s in sides):
        raise UserError(f"--data-shape must be channels, height and width such as 3,32,32, not {text[:40]!r}")
    return tuple(int(part) for part in parts)
