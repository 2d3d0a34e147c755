"""PASCAL VOC's folders: images in JPEGImages, an XML file for each in Annotations, lists of names in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from regrow import regular
from regrow.data import listed
from regrow.data.boxes import BoxImages, Objects, box_in, boxed
from regrow.data.decode import folder_at, open_image
from regrow.data.splits import DataSet, Settings
from regrow.errors import UserError, nearest

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_NAMES = "classes.txt"  # of a folder with classes of its own


def voc(settings: Settings, path: str) -> DataSet:
    """The data set ``voc:PATH``: a folder of PASCAL VOC, or one that holds several years' (VOC2007, VOC2012).

    Trains on ``trainval`` of all years, and tests on ``test`` of those that have it; where none has, on ``train`` and
    ``val``. Objects marked as difficult are trained on, and count neither as found nor as missed. A file
    ``classes.txt`` in the folder, a name a line, replaces the 20 classes of VOC.

    Raises:
        UserError: naming the file that is missing or wrong.
    """
    root = folder_at(path)
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist: give one of PASCAL VOC, with JPEGImages and Annotations")
    years = [root] if (root / "Annotations").is_dir() else sorted(p.parent for p in root.glob("*/Annotations"))
    if not years:
        raise UserError(f"{root} is no folder of PASCAL VOC: it has no Annotations/, nor does a folder in it")
    classes = _classes(root / _NAMES)
    tested = any(_list(year, "test").is_file() for year in years)
    names = ("trainval", "test") if tested else ("train", "val")
    train, test = (_read(years, name, classes, settings.size) for name in names)
    shape = (3, settings.size, settings.size) if settings.size else _shape_of(train)
    return boxed(train, test, settings, classes=classes, shape=shape, augmentation="ssd")


def _shape_of(images: BoxImages) -> tuple[int, int, int]:
    """Of the first image, where all stay as they are."""
    width, height = open_image(str(images.images[0]))[0].size
    return 3, height, width


def _classes(file: Path) -> Sequence[str]:
    if not file.is_file():
        return CLASSES
    names = listed.lines(file)
    if not names or len(set(names)) != len(names):
        raise UserError(f"{file} must name each class on a line of its own, and once")
    return names


def _list(year: Path, name: str) -> Path:
    return year / "ImageSets" / "Main" / f"{name}.txt"


def _read(years: Sequence[Path], name: str, classes: Sequence[str], size: int | None) -> BoxImages:
    """The images that the lists of this name have, over all years."""
    lists = [(year, _list(year, name)) for year in years if _list(year, name).is_file()]
    if not lists:
        raise UserError(f"{_list(years[0], name)} does not exist: it lists the images of this split, one a line")
    images: list[str] = []
    objects: list[Objects] = []
    for year, file in lists:
        for stem in listed.lines(file):
            images.append(str(listed.inside(year, year / "JPEGImages", f"{stem}.jpg", file)))
            objects.append(read_annotation(year / "Annotations" / f"{stem}.xml", classes))
    if not images:
        raise UserError(f"{lists[0][1]} lists no images")
    return BoxImages(images, objects, size, trains_on_ignored=True)


def read_annotation(file: Path, classes: Sequence[str]) -> Objects:
    """The objects of one XML file. Its pixels count from 1 and include the last, so that a box of the whole of an image
    of 4 x 2 pixels is (1, 1, 4, 2) there, and (0, 0, 4, 2) here.

    Raises:
        UserError: it is not there, is no annotation, or has an unknown class or a box outside the image.
    """
    try:
        root = ElementTree.fromstring(regular.read_bytes(file))
    except OSError as error:
        raise UserError(f"the annotation {file} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two of encodings that it declares
        raise UserError(f"the annotation {file} is no XML: {error}") from error
    size = (_number(root, "size/width", file), _number(root, "size/height", file))
    boxes, labels, difficult = [], [], []
    for number, entry in enumerate(root.iter("object"), 1):
        name = (entry.findtext("name") or "").strip()
        where = f"object {number} of {file}"
        if name not in classes:
            raise UserError(
                f"{where} has the unknown class {name!r}{nearest(name, classes)} (classes of your own: one a line in "
                f"{_NAMES}, in the folder that is given)"
            )
        x1, y1, x2, y2 = (_number(entry, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append(box_in((x1 - 1, y1 - 1, x2, y2), size, where))
        labels.append(classes.index(name))
        difficult.append(_flag(entry, "difficult", where))
    return Objects.of(boxes, labels, difficult)


def _flag(entry: ElementTree.Element, key: str, where: str) -> bool:
    text = (entry.findtext(key) or "0").strip()
    if text not in ("0", "1"):
        raise UserError(f"{where} has {text[:40]!r} as {key}, where 0 or 1 is due")
    return text == "1"


def _number(entry: ElementTree.Element, path: str, file: Path) -> float:
    text = entry.findtext(path) or ""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e7:
        raise UserError(f"the annotation {file} has {text.strip()[:40]!r} as {path}, where a number of pixels is due")
    return value
