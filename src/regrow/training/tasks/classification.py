"""Images with one label each: cross-entropy, and top-1 accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.quiet import evaluating
from regrow.training.evaluation import accuracy
from regrow.training.measures import ACCURACY, Measure
from regrow.training.tasks.task import Batch, Task, Teach, check_output, register

if TYPE_CHECKING:
    from regrow.training.sections import TrainSection


@register
class Classification(Task):
    """Batches of images (B, C, H, W) and labels (B,); models map the former to logits (B, classes)."""

    name: ClassVar[str] = "classification"
    measure: ClassVar[Measure] = ACCURACY
    has_teachers: ClassVar[bool] = True

    def check_model(self, model: nn.Module, example: Tensor, classes: int, name: str) -> None:
        shape = "x".join(str(n) for n in example.shape[1:])
        try:
            with evaluating(model), torch.no_grad():
                output = model(example)
        except Exception as error:  # whatever the model's own code raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"the model {name!r} does not take images of {shape}: {reason}") from error
        check_output(output, (1, classes), name, "image")

    def loss(
        self, forward: Any, batch: Batch, device: torch.device, settings: TrainSection, teach: Teach | None = None
    ) -> Tensor:
        images, labels = (part.to(device, non_blocking=True) for part in batch)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = forward(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        return loss if teach is None else teach(loss, logits, images)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], device: torch.device, accelerator: Any
    ) -> dict[str, Any]:
        return {"accuracy": accuracy(model, batches, device, lambda t: accelerator.reduce(t, "sum"))}
