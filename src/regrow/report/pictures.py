"""Images of a run with what its model has found in them, drawn as SVG around the image itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from regrow import regular, schema
from regrow.errors import UserError
from regrow.report import formats
from regrow.report.parts import Part
from regrow.report.runs import RunRecord
from regrow.schema import OpenForm
from regrow.training.records import Word

FILE = "pictures.json"
_MOST = 2**22  # characters of an image
_COLORS = (
    "#ff5252",
    "#40c4ff",
    "#ffd740",
    "#69f0ae",
    "#ff80ff",
    "#ffab40",
    "#b388ff",
    "#ffffff",
)  # seen on photographs
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")

Pixel = Annotated[float, Field(ge=-1e6, le=1e6)]


class MarkedForm(OpenForm):
    """A box in an image, in its pixels: x1, y1, x2, y2; with a score where a model has found it."""

    box: Annotated[list[Pixel], Field(min_length=4, max_length=4)]
    label: Annotated[int, Field(ge=0, le=2**20)]
    score: Annotated[float, Field(ge=0, le=1)] | None = None


class PictureForm(OpenForm):
    """An image as PNG in base64, what was found in it and what there is."""

    width: Annotated[int, Field(ge=1, le=2**16)]
    height: Annotated[int, Field(ge=1, le=2**16)]
    png: Annotated[str, Field(max_length=_MOST)]
    found: Annotated[list[MarkedForm], Field(max_length=1000)]
    truth: Annotated[list[MarkedForm], Field(max_length=1000)]

    @field_validator("png")
    @classmethod
    def _is_base64(cls, text: str) -> str:
        if not _BASE64.fullmatch(text):
            raise ValueError("should be base64")
        return text


class PicturesForm(OpenForm):
    """``pictures.json``."""

    split: Word
    classes: list[Word]
    images: Annotated[list[PictureForm], Field(max_length=100)]


@dataclass(frozen=True)
class Rectangle:
    """A box to draw, in pixels of the image; ``dashed`` for what there is, where solid ones are what was found."""

    x: float
    y: float
    width: float
    height: float
    color: str
    label: str
    dashed: bool


@dataclass(frozen=True)
class Framed:
    """An image to show: a data URI, its size in pixels, the boxes in it, and what they are for those who cannot see."""

    uri: str
    width: int
    height: int
    stroke: float
    boxes: Sequence[Rectangle]
    alt: str


def part(run: RunRecord | None) -> Part | None:
    """The pictures of a run; None where it has none.

    Raises:
        UserError: its file is damaged.
    """
    if run is None or not (run.directory / FILE).is_file():
        return None
    found = _read(run.directory / FILE)
    shown = [_framed(picture, found.classes) for picture in found.images]
    if not shown:
        return None
    which = {"val": "validation", "test": "test"}.get(found.split, found.split)
    caption = (
        f"The first {which} images of {formats.name(run.label)}, seed {run.seed}: solid boxes were found with a score "
        "of 0.3 and more, dashed ones are what there is to find."
    )
    return Part("pictures", "What it sees", "pictures", shown, caption)


def _read(path: Path) -> PicturesForm:
    way_out = "restore it or delete it"
    try:
        content = schema.parse_json(regular.read_bytes(path), path, way_out)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return schema.check(PicturesForm, content, path, way_out)


def _framed(picture: PictureForm, classes: Sequence[str]) -> Framed:
    boxes = [_rectangle(mark, classes, dashed=True) for mark in picture.truth]
    found = [_rectangle(mark, classes, dashed=False) for mark in picture.found]
    alt = f"Found: {formats.listing([box.label for box in found]) or 'nothing'}. "
    alt += f"There: {formats.listing([box.label for box in boxes]) or 'nothing'}."
    stroke = max(picture.width, picture.height) / 110
    return Framed(
        f"data:image/png;base64,{picture.png}", picture.width, picture.height, stroke, [*boxes, *found], alt
    )  # fmt: skip


def _rectangle(mark: MarkedForm, classes: Sequence[str], dashed: bool) -> Rectangle:
    x1, y1, x2, y2 = mark.box
    name = classes[mark.label] if mark.label < len(classes) else str(mark.label)
    label = name if mark.score is None else f"{name} {mark.score:.2f}"
    color = _COLORS[mark.label % len(_COLORS)]
    return Rectangle(x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1), color, label, dashed)
