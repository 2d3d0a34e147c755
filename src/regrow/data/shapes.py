"""Coloured circles, squares and triangles with their boxes and masks, drawn on noise: images to detect things in that
need no download, and are the same everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regrow.data.boxes import BoxImages, Objects, boxed
from regrow.data.splits import DataSet, Settings
from regrow.errors import UserError

CLASSES = ("circle", "square", "triangle")
_SIDE = 64  # pixels of an image, where settings do not say
_MOST = 5  # objects in an image
_TRIES = 20  # places that are tried for each
_OVERLAP = 0.15  # of the smaller of two objects that may cover each other
_MOST_PIXELS = 2**31


def shapes(settings: Settings, text: str) -> DataSet:
    """The data set ``shapes:N``: N images to train on and a quarter as many to test on, 64 pixels a side, or
    ``settings.size``.

    Raises:
        UserError: ``text`` is no number of images, or they do not fit in memory.
    """
    n, side = checked("shapes", settings, text)
    train, test = (drawn(count, side, split) for split, count in (("train", n), ("test", max(1, n // 4))))
    return boxed(train, test, settings, classes=CLASSES, shape=(3, side, side), augmentation="flip", workers=0)


def checked(name: str, settings: Settings, text: str) -> tuple[int, int]:
    """The number of images and their side in pixels that a data set's name asks for.

    Raises:
        UserError: ``text`` is no number of images, or they do not fit in memory.
    """
    if not re.fullmatch(r"[1-9]\d{0,8}", text) or int(text) < 2:
        raise UserError(f"'{name}:{text[:60]}' is not {name}:N, with N at least 2 images")
    n, side = int(text), settings.size or _SIDE
    if side < 32:
        raise UserError(f"size={side} of the data set '{name}:{text}' is too small to draw in: at least 32 pixels")
    if (n + n // 4) * side * side > _MOST_PIXELS:
        raise UserError(f"'{name}:{text}' is too large to keep in memory: at most {_MOST_PIXELS:,} pixels")
    return n, side


@dataclass(frozen=True)
class Drawn:
    """One image.

    Attributes:
        image: uint8 (3, side, side).
        objects: with their boxes, and labels from 0 on.
        mask: uint8 (side, side): 0 for the background, 1 for the first class.
    """

    image: Tensor
    objects: Objects
    mask: Tensor


def drawn(count: int, side: int, split: str) -> BoxImages:
    """So many images with boxes."""
    made = [picture(k, side, split) for k in range(count)]
    return BoxImages([one.image for one in made], [one.objects for one in made])


def picture(k: int, side: int, split: str) -> Drawn:
    """Image k of a split, a pure function of these three."""
    return draw(np.random.default_rng([k, side, *split.encode()]), side)


def draw(random: np.random.Generator, side: int) -> Drawn:
    """One image with one to five objects that hardly cover each other."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    image = random.uniform(40, 215, 3)[:, None, None] + random.normal(0, 28, (3, side, side))
    boxes, labels = [], []
    taken: list[np.ndarray] = []
    classes = np.zeros((side, side), dtype=np.uint8)
    for _ in range(int(random.integers(1, _MOST + 1))):
        for _ in range(_TRIES):
            label = int(random.integers(len(CLASSES)))
            half = random.uniform(0.07, 0.2) * side
            x, y = random.uniform(half, side - half, 2)
            mask = _mask(label, rows - y, columns - x, half)
            if all((mask & other).sum() <= _OVERLAP * min(mask.sum(), other.sum()) for other in taken):
                break
        else:
            continue
        taken.append(mask)
        image[:, mask] = random.uniform(0, 255, 3)[:, None] + random.normal(0, 14, (3, int(mask.sum())))
        classes[mask] = label + 1
        boxes.append(_box(mask))
        labels.append(label)
    pixels = torch.from_numpy(image.clip(0, 255).astype(np.uint8))
    return Drawn(pixels, Objects.of(boxes, labels), torch.from_numpy(classes))


def _mask(label: int, dy: np.ndarray, dx: np.ndarray, half: float) -> np.ndarray:
    """The pixels of a shape around the origin, bool (side, side)."""
    if CLASSES[label] == "circle":
        return dx**2 + dy**2 <= half**2
    if CLASSES[label] == "square":
        return np.maximum(abs(dx), abs(dy)) <= 0.9 * half
    return (abs(dx) * 2 <= dy + half) & (dy <= half)  # as wide as it is high, the tip up


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the smallest box around the pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
