"""The manifest of a saved model: its form, and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from regrow import regular, schema
from regrow.errors import UserError
from regrow.schema import Form

FORMAT = "regrow-model"
VERSION = 2  # 1 had no checksums
NAME = "manifest.json"
WAY_OUT = "restore it from a copy, or save the model again"

Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class TensorForm(Form):
    """A tensor."""

    shape: list[Annotated[int, Field(ge=0)]]
    dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    encoding: Literal["dense", "bitmask"]
    density: Annotated[float, Field(ge=0, le=1)] | None = None


class Manifest(Form):
    """All of it; ``weights`` is the checksum of the file of tensors, ``checksum`` that of the manifest itself."""

    format: Literal["regrow-model"]
    version: Literal[1, 2]
    regrow: str
    tensors: dict[str, TensorForm]
    tied: dict[str, str]
    thin: Any = None  # see regrow.surgery.refit
    extra: dict[str, Any] = Field(default_factory=dict)
    weights: Checksum | None = None
    checksum: Checksum | None = None

    @model_validator(mode="after")
    def _has_checksums(self) -> Manifest:
        if self.version > 1 and (self.weights is None or self.checksum is None):
            raise ValueError("its checksums are missing")
        return self


def read(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest of a saved model, and the file's bytes.

    Raises:
        UserError: if there is none, it is damaged, or of a newer version of the format.
    """
    path = directory / NAME
    try:
        text = regular.read_bytes(path)
    except OSError as error:
        raise UserError(f"{directory} holds no saved model: {NAME} cannot be read ({error.strerror})") from error
    return parse(text, path), text


def parse(text: str | bytes, path: Path) -> dict[str, Any]:
    """The manifest in a JSON text.

    Args:
        path: where it stands, for messages

    Raises:
        UserError: if it is none, damaged, or of a newer version of the format.
    """
    content = schema.parse_json(text, path, WAY_OUT)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a model saved by regrow")
    version = content.get("version")
    if version not in (1, 2):
        raise UserError(
            f"{path} has format version {schema.shown(str(version))}, this regrow reads 1 and {VERSION}: update regrow"
        )
    schema.check(Manifest, content, path, WAY_OUT)
    schema.check_seal(content, path, WAY_OUT)
    return content
