"""Image folders as bytes in memory: decoded once, and read from a cache from then on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.data import cache
from regrow.data.batches import Labelled
from regrow.data.pixels import rgb
from regrow.errors import UserError
from regrow.inputs import first_line

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_IN_MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images


def data_root() -> Path:
    """Where data sets and decoded images are kept: the environment's REGROW_DATA, or ~/.cache/regrow/data.

    Raises:
        UserError: neither is known, as for a container's user without a home directory.
    """
    root = Path(os.environ.get("REGROW_DATA") or "~/.cache/regrow/data")
    try:
        return root.expanduser()
    except RuntimeError as error:
        raise UserError(f"no home directory is known for {root}: set REGROW_DATA to a folder for data sets") from error


def folder_at(path: str) -> Path:
    """The folder that a data set's name gives, ``~`` expanded.

    Raises:
        UserError: the home directory that it begins with is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"no home directory is known for {path}: give the folder's whole path") from error


@dataclass
class _Listing:
    """The images of one split: classes are the sub-folders, in alphabetical order."""

    classes: list[str]
    files: list[str]
    labels: Tensor


def read_folder(root: Path, size: int | None, pool: int) -> tuple[list[str], dict[str, Labelled]]:
    """The classes of an image folder, and its splits: images uint8 (N, C, H, W) and labels int64 (N,).

    Args:
        root: has train/ and test/ or val/ or both, each with a folder per class.
        size: resizes the images to squares of this side; None: all must have the same shape.
        pool: averages squares of this many pixels a side.

    Returns:
        The names of the classes, and ``"train"``, ``"val"``, ``"test"`` → images and labels, as far as they are there.

    Raises:
        UserError: the folder is not like that, an image cannot be read, or they do not fit in memory.
    """
    if not root.is_dir():
        raise UserError(f"the image folder {root} does not exist")
    found = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    if "train" not in found or len(found) < 2:
        raise UserError(f"the image folder {root} must have train/ and test/ (or val/), each with a folder per class")
    listings = {split: _list_images(root / split) for split in found}
    classes = listings["train"].classes
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} has only one class, {classes[0]!r}: there is nothing to tell apart")
    for split in found:
        check_same_classes(root / "train", classes, root / split, listings[split].classes)
    images = _decoded(root, listings, size, pool)
    return classes, {split: (images[split], listing.labels) for split, listing in listings.items()}


def check_same_classes(folder: Path, classes: Iterable[str], other: Path, others: Iterable[str]) -> None:
    """Refuses two folders whose classes differ.

    Raises:
        UserError: naming the first class that only one of them has.
    """
    if odd := sorted(set(classes) ^ set(others)):
        raise UserError(f"the classes of {folder} and {other} differ: only one of them has {odd[0]!r}")


def _list_images(folder: Path) -> _Listing:
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        own = [
            os.path.join(at, file)
            for at, _, inside in os.walk(folder / name)
            for file in inside
            if file.lower().endswith(_EXTENSIONS) and not file.startswith(".")
        ]
        if not own:
            raise UserError(f"there are no images in {folder / name}")
        files += sorted(own)
        labels += [label] * len(own)
    if not names:
        raise UserError(f"there are no class folders with images in {folder}")
    return _Listing(names, files, torch.tensor(labels))


def _decoded(root: Path, listings: dict[str, _Listing], size: int | None, pool: int) -> dict[str, Tensor]:
    """The images of each split as uint8 (N, C, H, W): from the cache, or decoded and then cached."""
    log = logging.getLogger(__name__)
    files = [file for listing in listings.values() for file in listing.files]
    labels = {split: listing.labels for split, listing in listings.items()}
    kept = _cache_file(root, files, size, pool)
    if kept is not None and kept.exists():
        try:
            return cache.read(kept, labels)
        except Exception as error:
            log.warning("the cache %s is damaged, and is made anew: %s", kept, first_line(error))
    images = pool_images(_decode_all(files, size), pool)
    parts = images.split([len(listing.files) for listing in listings.values()])
    # clones, as safetensors refuses tensors that share memory
    splits = {split: part.clone() for split, part in zip(listings, parts, strict=True)}
    if kept is not None:
        try:
            cache.write(kept, splits, labels)
        except OSError as error:
            log.warning("decoded images cannot be cached in %s: %s", kept.parent, error)
    return splits


def _cache_file(root: Path, files: list[str], size: int | None, pool: int) -> Path | None:
    """Where the decoded images of these files are kept; None where there is no place for it."""
    key = hashlib.blake2b(repr((2, str(root.resolve()), size, pool)).encode(), digest_size=16)
    for file in files:
        stat = os.stat(file)
        key.update(os.fsencode(file) + f"|{stat.st_mtime_ns}|{stat.st_size}\n".encode())
    try:
        return data_root() / "decoded" / f"{key.hexdigest()}.safetensors"
    except UserError as error:
        logging.getLogger(__name__).warning("decoded images are not cached: %s", error)
        return None


def _decode_all(files: list[str], size: int | None) -> Tensor:
    from rich.console import Console
    from rich.progress import Progress

    height, width, _ = _decode(files[0], size)[0].shape
    if len(files) * 3 * height * width > _IN_MEMORY_LIMIT:
        raise UserError(
            f"{len(files)} images of {height}x{width} do not fit in memory: use imagenet:PATH, which decodes on the "
            "fly, or a smaller size="
        )
    images = np.empty((len(files), height, width, 3), dtype=np.uint8)

    def fill(start: int) -> bool:
        grey = True
        for i in range(start, min(start + 256, len(files))):
            image, is_grey = _decode(files[i], size)
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"{files[i]} has {image.shape[0]}x{image.shape[1]} pixels and {files[0]} {height}x{width}: give a "
                    "size= for all"
                )
            images[i] = image
            grey = grey and is_grey
        return grey

    console = Console(stderr=True)
    executor = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            chunks = executor.map(fill, range(0, len(files), 256))
            total = -(-len(files) // 256)
            grey = list(progress.track(chunks, total=total, description="decoding images"))
    finally:
        executor.shutdown(cancel_futures=True)
    channels = 1 if all(grey) else 3
    return torch.from_numpy(images[..., :channels]).permute(0, 3, 1, 2).contiguous()


def _decode(file: str, size: int | None) -> tuple[np.ndarray, bool]:
    """An image as uint8 (H, W, 3), and whether it has no colours."""
    from PIL import Image, ImageOps

    image, grey = open_image(file)
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image), grey


def open_image(file: str) -> tuple[Any, bool]:
    """An image as PIL's, in RGB, and whether it has no colours.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return rgb(image)
    except Exception as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(f"the image {file} cannot be read: {reason}") from error


def pool_images(images: Tensor, factor: int) -> Tensor:
    """Averages squares of ``factor`` pixels a side: uint8 (N, C, H, W) to (N, C, H / factor, W / factor).

    Raises:
        UserError: the factor does not divide the sides.
    """
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise UserError(f"pool={factor} does not divide the images of {height}x{width} pixels")
    chunks = (torch.nn.functional.avg_pool2d(c.float(), factor).round_().byte() for c in images.split(128))
    return torch.cat(list(chunks))
