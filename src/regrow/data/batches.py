"""Sources of batches whose order and augmentation depend on (seed, epoch, batch index) alone.

So an interrupted run resumes exactly, and any number of processes can share the work.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Labelled = tuple[Tensor, Tensor]


@dataclass(kw_only=True)
class BatchSource(ABC):
    """Batches (x, y): x float32 (batch, C, H, W), normalised; y int64 (batch,). Of images with boxes, lists of both.

    Attributes:
        batch_size: examples per batch and process.
        seed: of order and augmentation.
        training: shuffled and augmented, the incomplete last batch dropped; otherwise in order, and every example once.
        rank, world: this process's number and the number of processes; together they see each example once, and all
            have the same number of batches.
    """

    batch_size: int
    seed: int
    training: bool
    rank: int = 0
    world: int = 1

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many examples there are, over all processes."""

    @abstractmethod
    def epoch(self, k: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of epoch ``k`` (0-based), from batch ``start`` on."""

    def normalisation(self) -> Labelled | None:
        """Mean and standard deviation of each channel that pixel values are normalised by; None: by nothing known."""
        return None

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        full, rest = divmod(self.examples, self.batch_size * self.world)
        # a rest too small to give every process an example joins the batch before it
        return full if self.training else full + (rest >= self.world or (rest > 0 and full == 0))

    def shard(self, rank: int, world: int) -> BatchSource:
        """The share of one of ``world`` processes."""
        return replace(self, rank=rank, world=world)

    def _batches(self, k: int, start: int) -> Iterator[tuple[Tensor, slice, torch.Generator]]:
        """For each batch: positions of the examples of all processes, which are ours, and the batch's randomness."""
        together, last = self.batch_size * self.world, len(self) - 1
        if self.training:
            order = torch.randperm(self.examples, generator=generator(self.seed, "order", k))
        else:
            order = torch.arange(self.examples)
        for b in range(start, len(self)):
            stop = (b + 1) * together if self.training or b < last else self.examples
            positions = order[b * together : stop]
            n = len(positions)
            mine = slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)
            yield positions, mine, generator(self.seed, "batch", k, b)


@dataclass(kw_only=True)
class TensorSource(BatchSource):
    """Batches of images that are in memory.

    Attributes:
        images: uint8 (N, C, H, W); labels: int64 (N,); indices: which of the N belong to this source.
        mean, std: float32 (C,), of pixel values 0…255.
        pad: random shift by up to this many pixels, black moving in. flip: left and right swapped for half the images.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mean: Tensor
    std: Tensor
    pad: int = 0
    flip: bool = False

    @property
    def examples(self) -> int:
        return len(self.indices)

    def normalisation(self) -> Labelled:
        return self.mean, self.std

    def epoch(self, k: int, start: int = 0) -> Iterator[Labelled]:
        for positions, mine, randomness in self._batches(k, start):
            chosen = self.indices[positions[mine]]
            x = self.images[chosen]
            if self.pad:
                x = shift(x, torch.randint(2 * self.pad + 1, (len(positions), 2), generator=randomness)[mine], self.pad)
            if self.flip:
                flipped = (torch.rand(len(positions), generator=randomness) < 0.5)[mine].nonzero()[:, 0]
                x[flipped] = x[flipped].flip(-1)
            yield normalise(x, self.mean, self.std), self.labels[chosen]


def shift(images: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Pads uint8 images (B, C, H, W) with black and crops each at its own corner, offsets (B, 2) from 0 to 2·pad."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)).numpy()
    # NumPy copies whole windows: three times as fast as torch's gather here
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = offsets.numpy().T
    return torch.from_numpy(windows[np.arange(len(images)), :, rows, columns])


def normalise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std per channel, as float32."""
    return x.float().sub_(mean.view(-1, 1, 1)).mul_((1 / std).view(-1, 1, 1))


def generator(*key: object) -> torch.Generator:
    """Randomness that depends on the key alone (numbers and strings)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
