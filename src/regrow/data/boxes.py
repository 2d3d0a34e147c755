"""Images with boxes around the objects in them: what data sets of detection have in common.

Order and augmentation of an example depend on (seed, epoch, batch) alone, as of all other sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from regrow.data.decode import open_image
from regrow.data.splits import DataSet, Settings, random_split
from regrow.data.streams import SeededSource, default_workers, loaded, randomness
from regrow.errors import UserError

BoxBatch = tuple[list[Tensor], list[dict[str, Tensor]]]
Augmentation = Literal["flip", "ssd"]

_MEAN = (123, 117, 104)  # colour of an average photograph, around images that are zoomed out
_LEAST = 1e-3  # pixels that a box has at least in each direction
_SLACK = 1.0  # pixels by which annotations that were rounded leave their image; such boxes are cut


@dataclass(frozen=True)
class Objects:
    """The objects in one image.

    Attributes:
        boxes: float32 (n, 4) as x1, y1, x2, y2 in pixels, x1 < x2 and y1 < y2.
        labels: int64 (n,), from 0 on.
        ignored: bool (n,): difficult objects and crowds, which count neither as found nor as missed.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor

    @classmethod
    def of(
        cls, boxes: Sequence[Sequence[float]], labels: Sequence[int], ignored: Sequence[bool] | None = None
    ) -> Objects:
        """From plain numbers; ``ignored`` is by default none of them."""
        return cls(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor([False] * len(labels) if ignored is None else ignored, dtype=torch.bool),
        )

    def without_ignored(self) -> Objects:
        """Those that count."""
        keep = ~self.ignored
        return Objects(self.boxes[keep], self.labels[keep], self.ignored[keep])


@dataclass(frozen=True)
class BoxImages(Dataset[Any]):
    """Images and their objects; index → uint8 (3, H, W), `Objects`.

    Attributes:
        images: tensors, or the files to decode; these may be of any size.
        objects: of each image.
        size: images from files are resized to squares of this side; None: they stay.
        trains_on_ignored: whether what counts neither as found nor as missed is an example to learn from all the same.
    """

    images: Sequence[Tensor | str]
    objects: Sequence[Objects]
    size: int | None = None
    trains_on_ignored: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Objects]:
        image, objects = self.images[index], self.objects[index]
        if isinstance(image, Tensor):
            return image, objects
        from torchvision.transforms.v2 import functional

        pixels = functional.pil_to_tensor(open_image(image)[0])
        height, width = pixels.shape[-2:]
        _check_inside(image, objects, width, height)
        if self.size is None:
            return pixels, objects
        boxes = objects.boxes * torch.tensor([self.size / width, self.size / height] * 2)
        resized = functional.resize(pixels, [self.size, self.size], antialias=True)
        return resized, Objects(boxes, objects.labels, objects.ignored)


def _check_inside(file: str, objects: Objects, width: int, height: int) -> None:
    """Refuses boxes that the file itself shows to be outside: annotations say a size, which may not be the image's."""
    if len(objects.boxes) and bool((objects.boxes[:, 2:] > torch.tensor([width, height]) + _SLACK).any()):
        raise UserError(
            f"the image {file} has {width}x{height} pixels, but a box that its annotation gives lies outside"
        )


def box_in(corners: Sequence[float], size: tuple[float, float], where: str) -> tuple[float, float, float, float]:
    """A box of an annotation, cut to its image where it leaves it by a pixel at most.

    Args:
        corners: x1, y1, x2, y2 in pixels.
        size: width and height of the image.
        where: names file and object, in messages.

    Raises:
        UserError: it is empty, or outside the image.
    """
    x1, y1, x2, y2 = corners
    width, height = size
    given = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not (x1 < x2 and y1 < y2):
        raise UserError(f"{where} has an empty box {given}: correct the annotation")
    if x1 < -_SLACK or y1 < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
        raise UserError(
            f"{where} has the box {given}, outside its image of {width:g}x{height:g} pixels: correct the annotation"
        )
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if x2 - x1 < _LEAST or y2 - y1 < _LEAST:  # single precision could not tell its sides apart
        raise UserError(
            f"{where} has the box {given}, of which next to nothing is in its image of {width:g}x{height:g} pixels: "
            "correct the annotation"
        )
    return x1, y1, x2, y2


@dataclass(kw_only=True)
class BoxSource(SeededSource):
    """Batches (images, targets): images float32 (3, H, W) in 0…1, each of its size; targets dicts of `Objects`' fields.

    Attributes:
        dataset: of all images.
        augmentation: of training images; None: none.
    """

    dataset: BoxImages
    augmentation: Augmentation | None = None

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Bytes of pixels become 0…1, whatever a detector makes of them."""
        return torch.zeros(3), torch.full((3,), 255.0)

    def epoch(self, k: int, start: int = 0) -> Iterator[BoxBatch]:
        varied = VARIATIONS[self.augmentation]() if self.training and self.augmentation else None
        dataset = _SeededBoxes(self.dataset, varied, self.training)
        for packed in loaded(dataset, self._items(k, start), self.workers, _packed):
            yield _unpacked(packed)


class _SeededBoxes(Dataset[Any]):
    """Examples that depend on a seed and an index alone."""

    def __init__(self, dataset: BoxImages, vary: Callable[[dict[str, Any]], dict[str, Any]] | None, training: bool):
        self.dataset, self.vary, self.training = dataset, vary, training

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Objects]:
        seed, index = item
        image, objects = self.dataset[index]
        if self.training and not self.dataset.trains_on_ignored:
            objects = objects.without_ignored()
        if self.vary is not None:
            with randomness(seed):
                image, objects = _varied(self.vary, image, objects)
        return image, objects


def _varied(
    vary: Callable[[dict[str, Any]], dict[str, Any]], image: Tensor, objects: Objects
) -> tuple[Tensor, Objects]:  # fmt: skip
    from torchvision import tv_tensors

    size: Any = tuple(image.shape[-2:])
    boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=size)
    sample = {"image": tv_tensors.Image(image), "boxes": boxes, "labels": objects.labels, "ignored": objects.ignored}
    out = vary(sample)
    plain = [torch.as_tensor(out[key]).as_subclass(Tensor) for key in ("image", "boxes", "labels", "ignored")]
    return plain[0], Objects(*plain[1:])


def _flips() -> Any:
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip()


def _ssd() -> Any:
    """As SSD trains (arXiv:1512.02325): colours, zooming out, crops that keep some overlap with objects, and flips."""
    from torchvision.transforms import v2

    return v2.Compose([
        v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=list(_MEAN)), v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(),
        v2.SanitizeBoundingBoxes(labels_getter=lambda sample: (sample["labels"], sample["ignored"])),
    ])  # fmt: skip


VARIATIONS: dict[Augmentation, Callable[[], Any]] = {"flip": _flips, "ssd": _ssd}


@dataclass(frozen=True)
class _Sizes:
    """What a packed batch is taken apart by: height and width of each image, and its number of objects."""

    images: tuple[tuple[int, int], ...]
    objects: tuple[int, ...]


_Packed = tuple[Tensor, Tensor, Tensor, Tensor, _Sizes]


def _packed(examples: Sequence[tuple[Tensor, Objects]]) -> _Packed:
    """A batch as four tensors: worker processes hold a file open for every tensor that they send."""
    images, objects = [image for image, _ in examples], [one for _, one in examples]
    sizes = _Sizes(tuple((i.shape[1], i.shape[2]) for i in images), tuple(len(one.labels) for one in objects))
    parts = [torch.cat([getattr(one, key) for one in objects]) for key in ("boxes", "labels", "ignored")]
    return torch.cat([image.flatten() for image in images]), parts[0], parts[1], parts[2], sizes


def _unpacked(packed: _Packed) -> BoxBatch:
    pixels, boxes, labels, ignored, sizes = packed
    each = pixels.float().div_(255).split([3 * height * width for height, width in sizes.images])
    images = [one.reshape(3, *size) for one, size in zip(each, sizes.images, strict=True)]
    parts = (part.split(list(sizes.objects)) for part in (boxes, labels, ignored))
    return images, [{"boxes": b, "labels": n, "ignored": i} for b, n, i in zip(*parts, strict=True)]


def boxed(
    train: BoxImages,
    test: BoxImages,
    settings: Settings,
    *,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    augmentation: Augmentation,
    workers: int | None = None,
) -> DataSet:
    """A data set of images with boxes; validation images are split off ``train``, at random.

    Args:
        train, test: images and objects.
        settings: batch size, seeds, augmentation, validation split and workers.
        classes: names, in the order of the labels.
        shape: (3, height, width) of an image, the one that costs are counted for.
        augmentation: what "standard" means here.
        workers: processes that decode images; default: those of the settings, or one for each core, at most 8.

    Raises:
        UserError: there is nothing to train on.
    """
    kept, held_out = random_split(len(train), len(test), settings)
    workers = default_workers(settings) if workers is None else workers

    def source(images: BoxImages, indices: Tensor, training: bool = False) -> BoxSource:
        return BoxSource(
            batch_size=settings.batch_size,
            seed=settings.seed,
            training=training,
            dataset=images,
            indices=indices,
            augmentation=augmentation if settings.augment == "standard" else None,
            workers=workers,
        )

    return DataSet(
        len(classes),
        shape,
        train=source(train, kept, training=True),
        val=source(train, held_out),
        test=source(test, torch.arange(len(test))),
        classes=tuple(classes),
        task="detection",
    )
