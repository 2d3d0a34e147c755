"""Small images on disk and in memory, and what is read off the sources that serve them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regrow.data.batches import generator
from regrow.data.splits import DataSet, Settings, in_memory


def image(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_folder(root: Path, splits=("train", "test"), classes=("cat", "dog"), count=6, **options) -> Path:
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image(1000 * s + 100 * c + i, **options).save(root / split / name / f"{i:03}.png")
    return root


def batches(source, k=0, start=0):
    return list(source.epoch(k, start))


def same(a, b) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def joined(source, k=0):
    found = batches(source, k)
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


def plain(examples=40, size=32, channels=3, **options) -> DataSet:
    """A data set whose pixel values survive unscaled: mean 0, deviation 1."""
    images = torch.randint(1, 256, (examples, channels, size, size), dtype=torch.uint8, generator=generator("test"))
    labels = torch.arange(examples) % 4
    settings = Settings(batch_size=8, val_fraction=0.0, **options)
    made = in_memory((images, labels), (images, labels), settings)
    for source in (made.train, made.test):
        source.mean, source.std = torch.zeros(channels), torch.ones(channels)
    return made
