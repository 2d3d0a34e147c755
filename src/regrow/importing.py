"""Callables of the user's, named as ``package.module:callable``."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from regrow.errors import UserError, closest, nearest
from regrow.inputs import first_line

_CALLABLE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def import_callable(spec: str) -> Callable[..., Any]:
    """The object that ``package.module:callable`` names; the current directory can be imported from.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    if not _CALLABLE.fullmatch(spec):
        raise UserError(f"{spec!r} is not of the form package.module:callable")
    module_name, _, path = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        libraries = ["timm", "torchvision"]
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        near = closest(module_name, libraries) if missing else None
        hint = "" if near is None else f"; did you mean '{near}:{path}'?"
        raise UserError(
            f"{spec!r}: the module {module_name!r} cannot be imported: {first_line(error)}{hint}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"{spec!r}: there is no {part!r} in {module_name!r}{_hint(part, vars(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{spec!r} is a {type(found).__name__} and cannot be called")
    return found


def call_accepting(function: Callable[..., Any], spec: str, options: dict[str, Any], **offered: Any) -> Any:
    """Calls with all ``options``, and with those of ``offered`` that the function accepts by name.

    A function with ``**kwargs`` is offered ``num_classes`` and ``in_channels`` but not the alias ``in_chans``.

    Raises:
        UserError: an option is not a parameter of the function.
    """
    parameters = inspect.signature(function).parameters
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in named and not takes_all:
            raise UserError(f"{spec!r} has no option {name!r}{nearest(name, named - set(offered))}")
    accepted = {n: v for n, v in offered.items() if n in named or (takes_all and n != "in_chans")}
    return function(**accepted | options)


def _hint(word: str, names: Iterable[str]) -> str:
    close = closest(word, [n for n in names if not n.startswith("_")])
    return "" if close is None else f"; did you mean {close!r}?"
