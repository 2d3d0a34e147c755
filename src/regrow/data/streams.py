"""Images that worker processes decode on the fly: torch data sets, ImageNet."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from regrow.data.batches import BatchSource, Labelled, normalise
from regrow.data.decode import check_same_classes, folder_at, open_image
from regrow.data.splits import DataSet, Settings, class_names, validation_split
from regrow.errors import UserError
from regrow.inputs import first_line

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class SeededSource(BatchSource):
    """Batches of a data set that worker processes decode, each example by a seed of its own.

    Attributes:
        dataset: map-style.
        indices: which of its examples belong to this source.
        workers: number of processes; 0: this one.
    """

    dataset: Dataset[Any]
    indices: Tensor
    workers: int = 0

    @property
    def examples(self) -> int:
        return len(self.indices)

    def _items(self, k: int, start: int) -> Iterator[list[tuple[int, int]]]:
        """Seed and index of each example, a list for each batch of this process."""
        for positions, mine, randomness in self._batches(k, start):
            seeds = torch.randint(2**62, (len(positions),), generator=randomness)[mine]
            yield list(zip(seeds.tolist(), self.indices[positions[mine]].tolist(), strict=True))


@dataclass(kw_only=True)
class StreamSource(SeededSource):
    """Batches of a torch data set; randomness inside it (torch, random, NumPy) is seeded.

    Attributes:
        dataset: map-style, with examples (image, label): a tensor (C, H, W), and a whole number.
        statistics: mean and std of each channel, in the units of the images; None: images are taken as they come.
    """

    statistics: Labelled | None = None

    def normalisation(self) -> Labelled | None:
        return self.statistics

    def epoch(self, k: int, start: int = 0) -> Iterator[Labelled]:
        for x, y in loaded(_Seeded(self.dataset), self._items(k, start), self.workers):
            yield (normalise(x, *self.statistics) if self.statistics else x.float()), y


def loaded(
    dataset: Dataset[Any],
    items: Iterable[list[Any]],
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches of a data set, made by worker processes.

    Args:
        dataset: item → example.
        items: those of each batch.
        workers: number of processes; 0: this one.
        collate: examples → batch; default: torch's.

    Raises:
        UserError: of the data set's own, wherever it was raised.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=items,
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw from the global one
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
    )
    try:
        yield from loader
    except UserError as error:
        # a worker's error arrives with its traceback
        sentence = str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]
        raise UserError(sentence) from error


class _Seeded(Dataset[Labelled]):
    """A data set whose example depends on a seed and its index alone."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> Labelled:
        seed, index = item
        with randomness(seed):
            example = self.dataset[index]
        if not (
            isinstance(example, Sequence)
            and len(example) == 2
            and isinstance(example[0], Tensor)
            and example[0].dim() == 3
        ):
            raise UserError("an example of the data set must be (image, label), the image a tensor (C, H, W)")
        return example[0], torch.as_tensor(example[1]).long()


@contextmanager
def randomness(seed: int) -> Iterator[None]:
    """Everything drawn inside (torch, random, NumPy) depends on the seed alone; outside nothing changes."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def streamed(
    train: Dataset[Any],
    test: Dataset[Any],
    settings: Settings,
    *,
    val: Dataset[Any] | None = None,
    plain_train: Dataset[Any] | None = None,
    statistics: Labelled | None = None,
) -> DataSet:
    """A data set of torch data sets, which decode and augment by themselves.

    Args:
        train, test, val: map-style, with examples (image tensor (C, H, W), label); without ``val`` it is split off
            ``train``. Labels are read from ``targets``, ``labels`` or the tensors of the data set, else by walking it.
        settings: batch size, seeds, validation split and workers.
        plain_train: ``train`` without augmentation, for the validation split; default: ``train`` itself.
        statistics: mean and std of each channel, in the units of the images; default: images are taken as they come.

    Raises:
        UserError: an example is not of that form, or ``val_fraction`` is given beside ``val``.
    """
    labels = _labels(train)
    kept, held_out = validation_split(labels, settings, has_val=val is not None)
    classes = class_names(getattr(train, "classes", None) or (), labels)
    workers = default_workers(settings)

    def source(dataset: Dataset[Any], indices: Tensor, training: bool = False) -> StreamSource:
        return StreamSource(
            batch_size=settings.batch_size,
            seed=settings.seed,
            training=training,
            dataset=dataset,
            indices=indices,
            statistics=statistics,
            workers=workers,
        )

    def whole(dataset: Dataset[Any]) -> Tensor:
        return torch.arange(len(dataset))  # type: ignore[arg-type]

    shape = _Seeded(train)[0, 0][0].shape
    return DataSet(
        len(classes),
        (shape[0], shape[1], shape[2]),
        train=source(train, kept, training=True),
        val=source(val, whole(val)) if val is not None else source(plain_train or train, held_out),
        test=source(test, whole(test)),
        classes=classes,
    )


def default_workers(settings: Settings) -> int:
    """Processes that decode images: those of the settings, or one for each core, at most 8."""
    return min(8, os.cpu_count() or 1) if settings.workers is None else settings.workers


def _labels(dataset: Any) -> Tensor:
    if isinstance(dataset, Subset):
        return _labels(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1].long()
    for name in ("targets", "labels"):
        if (labels := getattr(dataset, name, None)) is not None:
            return torch.as_tensor(labels).long()
    return torch.stack([_Seeded(dataset)[0, i][1] for i in range(len(dataset))])


def imagenet(settings: Settings, path: str) -> DataSet:
    """ImageNet, or any folder with train/ and val/ that have a folder per class; val/ is the test set.

    Raises:
        UserError: the folder has neither those nor ImageNet's archives, or the classes of the two differ.
    """
    from torchvision import datasets
    from torchvision.transforms import v2

    root = folder_at(path)
    size = settings.size or 224
    plain = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
    varied = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    try:
        if not ((root / "train").is_dir() and (root / "val").is_dir()):
            for split in ("train", "val"):
                datasets.ImageNet(str(root), split=split)  # unpacks the archives
        plain_train, test = (datasets.ImageFolder(str(root / s), plain, loader=_open_rgb) for s in ("train", "val"))
    except Exception as error:
        raise UserError(
            f"{root} has neither train/ and val/ folders of class folders nor ImageNet's archives: {first_line(error)}"
        ) from error
    check_same_classes(root / "train", plain_train.classes, root / "val", test.classes)
    train = copy.copy(plain_train)
    if settings.augment == "standard":
        train.transform = varied
    statistics = torch.tensor(_IMAGENET_MEAN) * 255, torch.tensor(_IMAGENET_STD) * 255
    return streamed(train, test, settings, plain_train=plain_train, statistics=statistics)


def _open_rgb(file: str) -> Any:
    return open_image(file)[0]
