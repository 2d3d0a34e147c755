"""Images with a class for every pixel: drawn shapes, and PASCAL VOC's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regrow.data import listed, shapes, voc
from regrow.data.decode import folder_at, open_image
from regrow.data.splits import DataSet, Settings, random_split
from regrow.data.streams import StreamSource, default_workers
from regrow.errors import UserError
from regrow.inputs import first_line

IGNORED = 255  # of pixels that count neither as right nor as wrong

_SIDE = 256  # pixels of an image of VOC, where settings do not say
_SCALE = (0.25, 1.0)  # share of an image's area that a training example shows
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MaskImages(Dataset[Any]):
    """Images and masks; index → uint8 (3, H, W), int64 (H, W).

    Attributes:
        images: tensors, or files to decode.
        masks: of each: tensors of classes, or files of palettes' indices.
        size: files are resized to squares of this side.
        classes: how many there are.
        varied: training examples are flipped, and those from files are crops of random size.
    """

    images: Sequence[Tensor | Path]
    masks: Sequence[Tensor | Path]
    size: int
    classes: int
    varied: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        image, mask = self.images[index], self.masks[index]
        steps: list[Any] = [v2.RandomHorizontalFlip()] if self.varied else []
        if isinstance(image, Path) and isinstance(mask, Path):
            crop = v2.RandomResizedCrop(self.size, scale=_SCALE, antialias=True)
            steps.append(crop if self.varied else v2.Resize([self.size, self.size], antialias=True))
            image, mask = self._decoded(image, mask)
        if steps:
            image, mask = v2.Compose(steps)(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert isinstance(image, Tensor)
        assert isinstance(mask, Tensor)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()

    def _decoded(self, image: Path, mask: Path) -> tuple[Tensor, Tensor]:
        from PIL import Image
        from torchvision.transforms.v2 import functional

        pixels = functional.pil_to_tensor(open_image(str(image))[0])
        try:
            with Image.open(mask) as opened:
                levels = np.array(opened)
        except Exception as error:
            raise UserError(f"the mask {mask} cannot be read: {first_line(error)}") from error
        if levels.dtype.kind not in "bui" or levels.min(initial=0) < 0:
            raise UserError(
                f"the mask {mask} holds {levels.dtype} or negative numbers, which are no indices of classes"
            )
        found = torch.from_numpy(levels.astype(np.int64))
        if found.shape != pixels.shape[1:]:
            raise UserError(
                f"the mask {mask} has the shape {tuple(found.shape)}, but its image {tuple(pixels.shape[1:])}: it must "
                "have the index of a class for each pixel, as PNG files with a palette have"
            )
        if bool(((found >= self.classes) & (found != IGNORED)).any()):
            raise UserError(
                f"the mask {mask} has class {int(found[found != IGNORED].max())}, but there are only {self.classes}"
            )
        return pixels, found


def shape_masks(settings: Settings, text: str) -> DataSet:
    """The data set ``shapes-masks:N``: the images of ``shapes:N`` with the class of each pixel, the background first.

    Raises:
        UserError: ``text`` is no number of images, or they do not fit in memory.
    """
    n, side = shapes.checked("shapes-masks", settings, text)
    names = ("background", *shapes.CLASSES)

    def made(count: int, split: str) -> MaskImages:
        drawn = [shapes.picture(k, side, split) for k in range(count)]
        return MaskImages([d.image for d in drawn], [d.mask for d in drawn], side, len(names))

    train, test = made(n, "train"), made(max(1, n // 4), "test")
    return masked(train, test, settings, classes=names, workers=0)


def voc_masks(settings: Settings, path: str) -> DataSet:
    """The data set ``voc-masks:PATH``: a folder of PASCAL VOC with ``SegmentationClass`` and the lists ``train`` and
    ``val`` in ``ImageSets/Segmentation``, of which the latter is the test set. Images become squares of 256 pixels, or
    ``settings.size``; training examples show a quarter to all of one.

    Raises:
        UserError: naming the file that is missing.
    """
    root = folder_at(path)
    names = ("background", *voc.CLASSES)
    size = settings.size or _SIDE

    def read(split: str) -> MaskImages:
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not file.is_file():
            raise UserError(f"{file} does not exist: it lists the images of this split, one a line")
        stems = listed.lines(file)
        images = [listed.inside(root, root / "JPEGImages", f"{stem}.jpg", file) for stem in stems]
        masks = [listed.inside(root, root / "SegmentationClass", f"{stem}.png", file) for stem in stems]
        return MaskImages(images, masks, size, len(names))

    return masked(read("train"), read("val"), settings, classes=names)


def masked(
    train: MaskImages, test: MaskImages, settings: Settings, *, classes: Sequence[str], workers: int | None = None
) -> DataSet:
    """A data set of images with masks; validation images are split off ``train``, at random.

    Args:
        train, test: images and masks, all of one size.
        settings: batch size, seeds, augmentation, validation split and workers.
        classes: names, in the order of their numbers in masks.
        workers: processes that decode images; default: those of the settings, or one for each core, at most 8.

    Raises:
        UserError: there is nothing to train or to test on.
    """
    kept, held_out = random_split(len(train), len(test), settings)
    varied = MaskImages(train.images, train.masks, train.size, train.classes, varied=settings.augment == "standard")

    def source(images: MaskImages, indices: Tensor, training: bool = False) -> StreamSource:
        return StreamSource(
            batch_size=settings.batch_size,
            seed=settings.seed,
            training=training,
            dataset=images,
            indices=indices,
            statistics=(torch.tensor(_MEAN) * 255, torch.tensor(_STD) * 255),
            workers=default_workers(settings) if workers is None else workers,
        )

    return DataSet(
        len(classes),
        (3, train.size, train.size),
        train=source(varied, kept, training=True),
        val=source(train, held_out),
        test=source(test, torch.arange(len(test))),
        classes=tuple(classes),
        task="segmentation",
    )
