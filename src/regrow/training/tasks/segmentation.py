"""Images with a class for every pixel: cross-entropy over pixels, and the mean overlap of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.data.masks import IGNORED
from regrow.errors import UserError
from regrow.inputs import first_line
from regrow.quiet import evaluating
from regrow.training.measures import MIOU, Measure
from regrow.training.tasks.task import Batch, Task, Teach, check_output, register

if TYPE_CHECKING:
    from regrow.training.sections import TrainSection


@register
class Segmentation(Task):
    """Batches of images (B, 3, H, W) and masks (B, H, W); models map the former to logits (B, classes, H, W)."""

    name: ClassVar[str] = "segmentation"
    measure: ClassVar[Measure] = MIOU

    def check_model(self, model: nn.Module, example: Tensor, classes: int, name: str) -> None:
        wanted = (1, classes, *example.shape[-2:])
        try:
            with evaluating(model), torch.no_grad():
                output = model(example)
        except Exception as error:  # whatever the model's own code raises
            size = "x".join(map(str, example.shape[1:]))
            raise UserError(f"the model {name!r} does not take images of {size}: {first_line(error)}") from error
        check_output(output, wanted, name, "image")

    def loss(
        self, forward: Any, batch: Batch, device: torch.device, settings: TrainSection, teach: Teach | None = None
    ) -> Tensor:
        images, masks = (part.to(device, non_blocking=True) for part in batch)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        smoothing = settings.label_smoothing
        return nn.functional.cross_entropy(forward(images), masks, ignore_index=IGNORED, label_smoothing=smoothing)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], device: torch.device, accelerator: Any
    ) -> dict[str, Any]:
        counts: Tensor | None = None
        with evaluating(model), torch.no_grad():
            for images, masks in batches:
                logits = model(images.to(device, non_blocking=True))
                own = confusion(logits.argmax(1), masks.to(device, non_blocking=True), logits.shape[1])
                counts = own if counts is None else counts + own
        if counts is None:
            return {"accuracy": 0.0, **MIOU.entry, "pixels": 0.0}
        return overlaps(accelerator.reduce(counts, "sum"))


def confusion(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of class i were taken for class j: int64 (classes, classes); ignored pixels are left out.

    Args:
        found, truth: int64 (B, H, W).
        classes: how many there are.
    """
    seen = truth != IGNORED
    pairs = truth[seen] * classes + found[seen]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def overlaps(counts: Tensor) -> dict[str, Any]:
    """What such counts say of a model.

    Returns:
        ``accuracy``: the mean over classes of intersection over union, over those that occur in truth or prediction;
        ``metric``: its name; ``pixels``: the share of pixels whose class is right.

    >>> overlaps(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    {'accuracy': 0.7083333333333333, 'metric': 'mIoU', 'pixels': 0.8333333333333334}
    """
    counts = counts.double().cpu()
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    there = union > 0
    mean = float((right[there] / union[there]).mean()) if bool(there.any()) else 0.0
    total = float(counts.sum())
    return {"accuracy": mean, **MIOU.entry, "pixels": float(right.sum()) / total if total else 0.0}
