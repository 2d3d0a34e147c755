"""COCO's folders: ``annotations/instances_train*.json`` and ``..._val*.json``, with a folder of images for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from regrow import regular, schema
from regrow.data import listed
from regrow.data.boxes import BoxImages, Objects, box_in, boxed
from regrow.data.decode import folder_at
from regrow.data.splits import DataSet, Settings
from regrow.errors import UserError
from regrow.schema import OpenForm

_WAY_OUT = "restore it, or correct it"
_PREFIX = "instances_"

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Pixels = Annotated[float, Field(ge=-1e7, le=1e7)]
Box = Annotated[list[Pixels], Field(min_length=4, max_length=4)]


class ImageForm(OpenForm):
    """An image: its number, file and size in pixels."""

    id: int
    file_name: Name
    width: Annotated[int, Field(ge=1, le=2**24)]
    height: Annotated[int, Field(ge=1, le=2**24)]


class AnnotationForm(OpenForm):
    """An object: the number of its image and of its class, and its box as left, top, width and height in pixels."""

    image_id: int
    category_id: int
    bbox: Box
    iscrowd: Annotated[int, Field(ge=0, le=1)] = 0


class CategoryForm(OpenForm):
    """A class: its number and its name."""

    id: int
    name: Name


class InstancesForm(OpenForm):
    """A file of annotations."""

    images: list[ImageForm]
    annotations: list[AnnotationForm]
    categories: Annotated[list[CategoryForm], Field(min_length=1)]


def coco(settings: Settings, path: str) -> DataSet:
    """The data set ``coco:PATH``, as COCO is unpacked; ``val`` is the test set, as labels of COCO's own are not public.

    ``annotations/instances_NAME.json`` belongs to the folder NAME of images. Crowds are not trained on, and count
    neither as found nor as missed; boxes without an area, of which COCO has a few, are left out.

    Raises:
        UserError: naming the file that is missing or wrong.
    """
    root = folder_at(path)
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist: give one of COCO, with annotations/ and images")
    files = [_file_of(root, split) for split in ("train", "val")]
    forms = [_form(file) for file in files]
    classes, others = (_classes(form, file) for form, file in zip(forms, files, strict=True))
    if odd := sorted(set(classes.items()) ^ set(others.items())):
        raise UserError(f"the categories of {files[0]} and {files[1]} differ: only one of them has {odd[0][1]!r}")
    train, test = (_read(form, file, list(classes), settings.size) for form, file in zip(forms, files, strict=True))
    first = forms[0].images[0] if forms[0].images else None
    sides = (settings.size, settings.size) if settings.size else (first.height, first.width) if first else (1, 1)
    return boxed(train, test, settings, classes=[*classes.values()], shape=(3, *sides), augmentation="ssd")


def _file_of(root: Path, split: str) -> Path:
    found = sorted((root / "annotations").glob(f"{_PREFIX}{split}*.json"))
    if len(found) == 1:
        return found[0]
    what = "no file" if not found else f"{len(found)} files"
    raise UserError(f"{root / 'annotations'} has {what} {_PREFIX}{split}*.json, but exactly one is needed")


def _form(file: Path) -> InstancesForm:
    try:
        content: Any = schema.parse_json(regular.read_bytes(file), file, _WAY_OUT)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    return schema.check(InstancesForm, content, file, _WAY_OUT)


def _classes(form: InstancesForm, file: Path) -> dict[int, str]:
    """Number → name, in the order of the numbers, which is that of the labels."""
    classes = {category.id: category.name for category in sorted(form.categories, key=lambda one: one.id)}
    if len(classes) != len(form.categories):
        raise UserError(f"{file} gives two categories the same id")
    return classes


def _read(form: InstancesForm, file: Path, numbers: list[int], size: int | None) -> BoxImages:
    folder = file.parent.parent / file.stem.removeprefix(_PREFIX)
    label = {number: place for place, number in enumerate(numbers)}
    images = {image.id: image for image in form.images}
    if len(images) != len(form.images):
        raise UserError(f"{file} gives two images the same id")
    found: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {number: [] for number in images}
    for place, one in enumerate(form.annotations):
        where = f"annotation {place} of {file}"
        if one.image_id not in images:
            raise UserError(f"{where} is of image {one.image_id}, which the file does not have")
        if one.category_id not in label:
            raise UserError(f"{where} has the unknown category {one.category_id}")
        x, y, width, height = one.bbox
        if width == 0 or height == 0:
            continue
        image = images[one.image_id]
        box = box_in((x, y, x + width, y + height), (image.width, image.height), where)
        found[one.image_id].append((box, label[one.category_id], bool(one.iscrowd)))
    files = [listed.inside(file.parent.parent, folder, image.file_name, file) for image in form.images]
    objects = [
        Objects.of([box for box, *_ in own], [label for _, label, _ in own], [crowd for *_, crowd in own])
        for own in found.values()
    ]
    return BoxImages([*map(str, files)], objects, size)
