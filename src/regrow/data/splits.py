"""A data set's splits: their settings, the validation images that are taken off the training ones, images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regrow.data.batches import BatchSource, Labelled, TensorSource, generator
from regrow.errors import UserError, nearest, thing_of


@dataclass(frozen=True)
class Settings:
    """How a data set is split and served; a user's callable that makes one is given it as ``settings``.

    The fields are the arguments of `regrow.data.named.load`.

    Raises:
        UserError: a value is out of its range.
    """

    batch_size: int
    seed: int = 0
    augment: Literal["standard", "none"] = "standard"
    val_fraction: float | None = None
    split_seed: int = 0
    workers: int | None = None
    pool: int = 1
    size: int | None = None
    length: int | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "pool", "size", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is not a positive whole number")
        if self.augment not in ("standard", "none"):
            raise UserError(f"unknown augmentation {self.augment!r}{nearest(self.augment, ('standard', 'none'))}")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction={self.val_fraction} is not a share of the training images (0 to below 1)")


@dataclass
class DataSet:
    """A data set ready to train on; ``val`` is split off the training images (or the set's own) and never the test set.

    Attributes:
        shape: (channels, height, width) of an image; (length,) in tokens of a text.
        val: a source without examples where ``val_fraction`` is 0.
        classes: the names of the classes, in the order of their labels.
        task: what its examples are for: ``"classification"``, or ``"detection"`` where they have boxes,
            ``"segmentation"`` where they have masks; ``"text-classification"`` of texts.
    """

    num_classes: int
    shape: tuple[int, ...]
    train: BatchSource
    val: BatchSource
    test: BatchSource
    classes: tuple[str, ...] = ()
    task: str = "classification"

    @property
    def things(self) -> str:
        """What its examples are, in messages."""
        return f"{thing_of(self.shape)}s"


def in_memory(
    train: Labelled,
    test: Labelled,
    settings: Settings,
    *,
    val: Labelled | None = None,
    classes: Sequence[str] = (),
    flip: bool = True,
) -> DataSet:
    """A data set of images in memory: uint8 (N, C, H, W) with labels int64 (N,), for each split.

    Args:
        train, test, val: images and labels; without ``val`` it is split off ``train``.
        settings: batch size, seeds, augmentation and validation split.
        classes: names; default: the numbers.
        flip: whether the mirror image of an example is one of its class.

    Raises:
        UserError: ``val_fraction`` is given beside ``val``.
    """
    images, labels = train
    kept, held_out = validation_split(labels, settings, has_val=val is not None)
    mean, std = _channel_statistics(images, kept)
    names = class_names(classes, labels)
    augmented = settings.augment == "standard"
    pad = max(1, min(images.shape[-2:]) // 8) if augmented else 0

    def source(pair: Labelled, indices: Tensor | None = None, training: bool = False) -> TensorSource:
        chosen = torch.arange(len(pair[1])) if indices is None else indices
        return TensorSource(
            batch_size=settings.batch_size,
            seed=settings.seed,
            training=training,
            images=pair[0],
            labels=pair[1],
            indices=chosen,
            mean=mean,
            std=std,
            pad=pad if training else 0,
            flip=flip and augmented and training,
        )

    return DataSet(
        len(names),
        (images.shape[1], images.shape[2], images.shape[3]),
        train=source(train, kept, training=True),
        val=source(val) if val is not None else source(train, held_out),
        test=source(test),
        classes=names,
    )


def class_names(classes: Iterable[object], labels: Tensor) -> tuple[str, ...]:
    """The names of the classes; where there are none, their numbers."""
    return tuple(map(str, classes)) or tuple(map(str, range(int(labels.max()) + 1)))


def validation_split(labels: Tensor, settings: Settings, has_val: bool) -> tuple[Tensor, Tensor]:
    """Indices of the training images that stay, and of those held out; none where there are validation images already.

    Raises:
        UserError: ``val_fraction`` is given though there are.
    """
    everything, nothing = torch.arange(len(labels)), torch.arange(0)
    if has_val:
        if settings.val_fraction is not None:
            raise UserError("the data set has a validation set of its own: leave val_fraction out")
        return everything, nothing
    fraction = 0.1 if settings.val_fraction is None else settings.val_fraction
    return stratified(labels, fraction, settings.split_seed) if fraction else (everything, nothing)


def random_split(train: int, test: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """`validation_split` of so many training images that have no label of their own, beside so many test images.

    Raises:
        UserError: there is nothing to train or to test on.
    """
    if not train or not test:
        raise UserError(f"the data set has no image to {'test' if train else 'train'} on")
    return validation_split(torch.zeros(train, dtype=torch.int64), settings, has_val=False)


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off round(fraction · N) examples (at least one), as evenly over the classes as can be.

    Every class keeps an example. Returns the indices that stay and those split off, both ascending.
    """
    shuffled = torch.randperm(len(labels), generator=generator(seed, "split"))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    exact = counts.double() * fraction
    quota = exact.floor().long()
    missing = max(1, round(fraction * len(labels))) - int(quota.sum())
    remainder = torch.where(quota < counts - 1, exact - quota, -1.0)
    first = torch.argsort(remainder, descending=True, stable=True)[:missing]
    quota[first[remainder[first] >= 0]] += 1
    place_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    taken = place_in_class < quota.repeat_interleave(counts)
    return by_class[~taken].sort().values, by_class[taken].sort().values


def _channel_statistics(images: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the chosen images, in chunks that fit the processor's cache."""
    total = square = torch.zeros(images.shape[1], dtype=torch.float64)
    for chunk in indices.split(128):
        x = images[chunk].flatten(2).float()
        total = total + x.mean(2).double().sum(0)
        square = square + x.square_().mean(2).double().sum(0)
    mean = total / len(indices)
    std = (square / len(indices) - mean.square()).clamp(min=1.0).sqrt()  # at least one grey level
    return mean.float(), std.float()
