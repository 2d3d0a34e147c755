"""Data sets by name: a new one is a function and an entry of `NAMED`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from regrow.data.batches import BatchSource, generator
from regrow.data.coco import coco
from regrow.data.decode import data_root, folder_at, pool_images, read_folder
from regrow.data.masks import shape_masks, voc_masks
from regrow.data.shapes import shapes
from regrow.data.splits import DataSet, Settings, in_memory, stratified
from regrow.data.streams import imagenet, streamed
from regrow.data.texts import texts
from regrow.data.voc import voc
from regrow.errors import UserError, nearest
from regrow.importing import call_accepting, import_callable
from regrow.inputs import first_line

__all__ = ["BatchSource", "DataSet", "in_memory", "load"]

_OPTIONS = ("pool", "size", "length")  # that may follow a name
_DIGITS = 12  # of a whole number in a name; more are none that counts anything
_MOST_PIXELS, _MOST_CLASSES = 2**33, 2**20  # of images that are generated
_GENERATED = (3, 32, 32, 10, 0)  # channels, height, width, classes, images


def load(
    spec: str,
    *,
    batch_size: int,
    seed: int = 0,
    augment: Literal["standard", "none"] = "standard",
    val_fraction: float | None = None,
    split_seed: int = 0,
    workers: int | None = None,
    pool: int = 1,
    size: int | None = None,
    length: int | None = None,
    tokenizer: str | None = None,
    rank: int = 0,
    world: int = 1,
) -> DataSet:
    """Loads a data set by name, split into training, validation and test.

    Args:
        spec: ``digits``, ``cifar10``, ``fashion-mnist``, ``folder:PATH``, ``imagenet:PATH``, ``generated:N``,
            ``generated:CxHxW:CLASSES:N``, or ``package.module:callable``, which returns a `DataSet` or the torch data
            sets (train, test) or (train, val, test). With boxes: ``shapes:N``, ``voc:PATH``, ``coco:PATH``. With
            masks: ``shapes-masks:N``, ``voc-masks:PATH``. Texts: ``text:PATH``. ``pool``, ``size`` and ``length`` may
            follow it: ``cifar10,pool=2``.
        batch_size: examples per batch and process.
        seed: of order and augmentation.
        augment: ``"standard"``: shifts by up to an eighth of the image and flips (no flips for digits); random resized
            crops and flips for ``imagenet``; colours, zooming out, crops and flips as SSD has them for ``voc`` and
            ``coco``, flips for ``shapes``. ``"none"``: nothing. A callable's torch data sets augment by themselves.
        val_fraction: share of the training images that becomes the validation set, stratified by class; default 0.1.
            Left out where the set has a ``val/`` beside its ``test/``, which is used as it is.
        split_seed: of that split.
        workers: processes that decode images on the fly; default: one per core, at most 8. 0: in this process.
        pool: averages squares of this many pixels a side (CIFAR-10 at 16x16: 2).
        size: resizes images to squares of this side, cropping the longer one (not where there are boxes).
        length: tokens to which texts are cut and padded; default: 128.
        tokenizer: folder of the model's, for texts; images need none.
        rank, world: this process's number and the number of processes.

    Raises:
        UserError: unknown name or option, missing or unreadable data.
    """
    spec, suffix = _split_options(spec)
    pool, size, length = suffix.get("pool", pool), suffix.get("size", size), suffix.get("length", length)
    settings = Settings(
        batch_size, seed, augment, val_fraction, split_seed, workers, pool, size, length, tokenizer
    )  # fmt: skip
    data = _made(spec, settings)
    train, val, test = (source.shard(rank, world) for source in (data.train, data.val, data.test))
    if len(train) == 0:
        share = f" on each of {world} processes" if world > 1 else ""
        there = f"{train.examples} training {data.things}"
        raise UserError(f"batch_size={batch_size}{share} is more than the {there} of {spec!r}: lower it")
    return replace(data, train=train, val=val, test=test)


def _split_options(spec: str) -> tuple[str, dict[str, int]]:
    options: dict[str, int] = {}
    while match := re.fullmatch(r"(.*),([A-Za-z_]\w*)=([^,/]*)", spec):
        spec, key, value = match.groups()
        if key not in _OPTIONS:
            raise UserError(f"unknown option {key!r} of the data set {spec!r}{nearest(key, _OPTIONS)}")
        if not value.isdecimal() or len(value) > _DIGITS:
            raise UserError(f"{key}={value[:40]} of the data set {spec!r} is not a positive whole number")
        options[key] = int(value)
    return spec, options


def _made(spec: str, settings: Settings) -> DataSet:
    name, colon, rest = spec.partition(":")
    if not colon and name not in NAMED:
        raise UserError(
            f"unknown data set {spec!r}{nearest(name, NAMED)} (your own: folder:PATH or package.module:callable)"
        )
    named = NAMED.get(name) or Named(partial(_from_callable, module=name), needs="callable")
    if named.needs and not rest:
        raise UserError(f"the data set {name!r} needs a {named.needs}: {name}:…")
    if colon and not named.needs:
        raise UserError(f"the data set {name!r} takes nothing after its name, but {spec!r} was given")
    for option in _OPTIONS:
        value = getattr(settings, option)
        if value != getattr(Settings, option) and option not in named.options:
            raise UserError(f"{option}={value} does not apply to the data set {spec!r}: leave it out")
    return named.make(settings, rest) if named.needs else named.make(settings)


def _digits(settings: Settings) -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().byte().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    images = pool_images(images, settings.pool)
    # the test set is the same whatever the seeds
    train, test = stratified(labels, 0.2, seed=0)
    return in_memory((images[train], labels[train]), (images[test], labels[test]), settings, flip=False)


def _generated(settings: Settings, text: str) -> DataSet:
    match = re.fullmatch(r"(?:(\d{1,9})x(\d{1,9})x(\d{1,9}):(\d{1,9}):)?(\d{1,9})", text)
    channels, height, width, classes, n = (
        (int(g or d) for g, d in zip(match.groups(), _GENERATED, strict=True)) if match else [0] * 5
    )
    if min(channels, height, width) < 1 or classes < 2 or n < 2:
        raise UserError(
            f"'generated:{text[:60]}' is not generated:N or generated:CxHxW:CLASSES:N (at least 2 classes and images)"
        )
    count = n + max(1, n // 4)
    if count * channels * height * width > _MOST_PIXELS or classes > _MOST_CLASSES:
        raise UserError(
            f"'generated:{text}' is too large to keep in memory: at most {_MOST_PIXELS:,} pixels and {_MOST_CLASSES:,} "
            "classes"
        )
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator(0, text))
    images, labels = pool_images(images, settings.pool), torch.arange(count) % classes
    return in_memory(
        (images[:n], labels[:n]), (images[n:], labels[n:]), settings, classes=[str(i) for i in range(classes)]
    )


def _torchvision(settings: Settings, *, name: str, class_name: str) -> DataSet:
    root = data_root()
    if (root / name / "train").is_dir():
        return _folder(settings, str(root / name))
    import torchvision

    kind = getattr(torchvision.datasets, class_name)
    try:
        splits = [kind(str(root), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise UserError(
            f"{name} is not in {root} and cannot be downloaded ({first_line(error)}): set REGROW_DATA to the folder "
            "that has it, or use folder:PATH"
        ) from error
    train, test = ((pool_images(_as_images(s.data), settings.pool), torch.as_tensor(s.targets)) for s in splits)
    return in_memory(train, test, settings, classes=splits[0].classes)


def _as_images(data: Any) -> Tensor:
    images = torch.as_tensor(data)
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _folder(settings: Settings, path: str) -> DataSet:
    classes, splits = read_folder(folder_at(path), settings.size, settings.pool)
    test = splits.pop("test", None) or splits.pop("val")
    return in_memory(splits["train"], test, settings, val=splits.get("val"), classes=classes)


def _from_callable(settings: Settings, path: str, *, module: str) -> DataSet:
    spec = f"{module}:{path}"
    found = call_accepting(import_callable(spec), spec, {}, settings=settings)
    if isinstance(found, DataSet):
        return found
    if not isinstance(found, Sequence) or len(found) not in (2, 3):
        raise UserError(f"{spec!r} returned neither a DataSet nor the data sets (train, test) or (train, val, test)")
    return streamed(found[0], found[-1], settings, val=found[1] if len(found) == 3 else None)


@dataclass(frozen=True)
class Named:
    """A data set that has a name.

    Attributes:
        make: a function of the settings and, where something follows the name and a colon, of that.
        needs: what must follow, in a word; None: nothing may.
        options: those of ``pool``, ``size`` and ``length`` that change its examples.
    """

    make: Callable[..., DataSet]
    needs: str | None = None
    options: tuple[str, ...] = ()


NAMED: dict[str, Named] = {
    "digits": Named(_digits, options=("pool",)),
    "cifar10": Named(partial(_torchvision, name="cifar10", class_name="CIFAR10"), options=("pool",)),
    "fashion-mnist": Named(partial(_torchvision, name="fashion-mnist", class_name="FashionMNIST"), options=("pool",)),
    "generated": Named(_generated, needs="number", options=("pool",)),
    "folder": Named(_folder, needs="path", options=("pool", "size")),
    "imagenet": Named(imagenet, needs="path", options=("size",)),
    "shapes": Named(shapes, needs="number", options=("size",)),
    "shapes-masks": Named(shape_masks, needs="number", options=("size",)),
    "voc-masks": Named(voc_masks, needs="path", options=("size",)),
    "voc": Named(voc, needs="path", options=("size",)),
    "coco": Named(coco, needs="path", options=("size",)),
    "text": Named(texts, needs="path", options=("length",)),
}
