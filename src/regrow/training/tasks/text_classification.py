"""Texts with one label each: cross-entropy, and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.inputs import first_line
from regrow.quiet import evaluating
from regrow.training.evaluation import accuracy
from regrow.training.measures import ACCURACY, Measure
from regrow.training.tasks.task import Batch, Task, Teach, check_output, register

if TYPE_CHECKING:
    from regrow.training.sections import TrainSection


@register
class TextClassification(Task):
    """Batches of inputs (a dict of ``input_ids`` and ``attention_mask``) and labels (B,); models are called with the
    former by name, and give logits (B, classes)."""

    name: ClassVar[str] = "text-classification"
    measure: ClassVar[Measure] = ACCURACY
    loss_in_eval: ClassVar[bool] = True

    def check(self, settings: TrainSection) -> None:
        for key, said in (
            ("channels_last", "numbers of tokens are no images"),
            ("recalibrate", "encoders of texts have no batch norms"),
        ):
            if getattr(settings, key):
                raise UserError(f"train.{key} does not apply to task: {self.name}, as {said}: leave it out")

    def check_model(self, model: nn.Module, example: Any, classes: int, name: str) -> None:
        try:
            with evaluating(model), torch.no_grad():
                output = model(**example)
        except Exception as error:  # whatever the model's own code raises
            raise UserError(f"the model {name!r} does not take texts: {first_line(error)}") from error
        check_output(output, (1, classes), name, "text")

    def loss(
        self, forward: Any, batch: Batch, device: torch.device, settings: TrainSection, teach: Teach | None = None
    ) -> Tensor:
        inputs, labels = batch
        logits = forward(**_on(device, inputs))
        labels = labels.to(device, non_blocking=True)
        return nn.functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch], device: torch.device, accelerator: Any
    ) -> dict[str, Any]:
        return {"accuracy": accuracy(model, batches, device, lambda t: accelerator.reduce(t, "sum"))}


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
