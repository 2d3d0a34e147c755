"""Decoded images on disk, with what tells whether they are still those that were decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from regrow import atomic

_CONTENT = "content"


def write(file: Path, images: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
    """Keeps the images of each split, uint8 (N, C, H, W); ``labels``, int64 (N,), are not stored, only vouched for.

    Raises:
        OSError: there is no place for them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.replacing(file) as temporary:
            save_file(dict(images), temporary, metadata={_CONTENT: _digest(file, images, labels)})
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error


def read(file: Path, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The images of each split, as they were written.

    Raises:
        Exception: of many kinds, where the file is damaged, or holds other images, splits or labels than asked for.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        content = (opened.metadata() or {}).get(_CONTENT)
        images = {split: opened.get_tensor(split) for split in opened.keys()}  # noqa: SIM118
    if images.keys() != labels.keys() or content != _digest(file, images, labels):
        raise ValueError("it holds something else than these images")
    return images


def _digest(file: Path, images: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> str:
    """Of every byte of images and labels, and of the file's name, which stands for the folder that was decoded."""
    digest = hashlib.blake2b(file.name.encode(), digest_size=16)
    for split in sorted(images):
        for part in (images[split], labels[split]):
            digest.update(repr((split, part.dtype, tuple(part.shape))).encode())
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()
