"""What files must look like: one form for each, checked at the door, and checksums that notice what has changed since.

A form says types (no conversions), ranges and lengths; numbers are finite. What does not fit is one sentence that names
the file, the key and the way out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from io import FileIO
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from regrow.errors import UserError

CHECKSUM = "checksum"
_DIGEST_BYTES = 16
_CHUNK = 1 << 20
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python holds bytes that are no UTF-8, and JSON halves of a pair
# where pydantic's own words speak of classes
_SAID = {
    "missing": "is missing",
    "extra_forbidden": "does not belong there",
    "model_type": "should be a valid dictionary",
}


class Form(BaseModel):
    """An object with exactly these keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class OpenForm(Form):
    """An object with these keys; what else it has is not looked at."""

    model_config = ConfigDict(extra="ignore")


F = TypeVar("F", bound=Form)


def check(form: type[F], value: object, what: object, way_out: str) -> F:
    """The value as the form has it.

    Args:
        what: names the file, in messages.
        way_out: what to do about it.

    Raises:
        UserError: for the first key that does not fit.
    """
    try:
        return form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "string_unicode":  # a name in it is not UTF-8, which pydantic cannot hold
            return check(form, _utf8(value), what, way_out)
        key = ".".join(str(part) for part in first["loc"])
        own = first.get("ctx", {}).get("error")  # what a form's own check has raised
        said = _SAID.get(first["type"]) or str(own or first["msg"].removeprefix("Input "))
        place = f"{shown(key)} {said[:1].lower()}{said[1:]}" if key else said
        raise UserError(f"{what} is damaged: {place}: {way_out}") from error


def _utf8(value: Any) -> Any:
    """The same, with marks in the place of what is not UTF-8."""
    if isinstance(value, str):
        return _NOT_UTF8.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {_utf8(key): _utf8(item) for key, item in value.items()}
    return [_utf8(item) for item in value] if isinstance(value, list) else value


def shown(text: str, length: int = 100) -> str:
    """A text from outside in one line, not too long."""
    return repr(text if len(text) <= length else text[:length] + "...")[1:-1]


def parse_json(text: str | bytes, what: object, way_out: str) -> Any:
    """What a JSON text says.

    Raises:
        UserError: if it is none, e.g. as it was cut short.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{what} is not valid JSON{where}, perhaps cut short: {way_out}") from error


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content in JSON's own types, with a checksum of all of it.

    Raises:
        TypeError, ValueError, RecursionError: if JSON cannot hold it.
    """
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in content.items() if key != CHECKSUM}))
    return {**plain, CHECKSUM: _sum(plain)}


def check_seal(content: Mapping[str, Any], what: object, way_out: str) -> None:
    """Refuses content that is not what was sealed; what has no checksum passes.

    Raises:
        UserError: if anything has changed.
    """
    if CHECKSUM not in content:
        return
    try:
        intact = seal(content)[CHECKSUM] == content[CHECKSUM]
    except (ValueError, RecursionError):  # nested as deeply as could just be read
        intact = False
    if not intact:
        raise UserError(f"{what} is damaged, or was edited: its checksum differs: {way_out}")


def digest_of(file: IO[bytes] | FileIO) -> str:
    """Checksum of what is left to read of a file.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _sum(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
