"""Distillation: a network that was trained before, which the one in training learns from beside the labels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regrow.errors import UserError
from regrow.tracing.flops import count_flops

if TYPE_CHECKING:
    from regrow.data.named import DataSet
    from regrow.training.recipe import Recipe
    from regrow.training.sections import DistillSection

PHASE = "teacher"  # under which its forward passes are in the training cost


class Teacher:
    """The network of a finished run, which stays as it is.

    Its share of the loss is T²·KL(softmax(z_T/T) ‖ softmax(z/T)), the mean over images, with its logits z_T and the
    student's z (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2); the labels' loss has the rest.

    Args:
        section: of the recipe
        recipe: of the student
        data: of the student
        device: to compute on

    Attributes:
        flops: of a forward pass for one image

    Raises:
        UserError: there is no such run, or it is of other images or classes.
    """

    def __init__(self, section: DistillSection, recipe: Recipe, data: DataSet, device: torch.device) -> None:
        try:
            self.network: nn.Module = _network(section, recipe, data).to(device).eval().requires_grad_(False)
        except UserError as error:
            raise UserError(f"distill.teacher: {error}") from error
        self.weight, self.temperature = section.weight, section.temperature
        example = torch.zeros(1, *data.shape, device=device)
        self.flops = count_flops(self.network, example).total

    def taught(self, loss: Tensor, logits: Tensor, images: Tensor, precision: AbstractContextManager[Any]) -> Tensor:
        """The loss of a batch, with the teacher's share.

        Args:
            loss: by the labels, a scalar
            logits: of the student, (B, classes)
            images: (B, C, H, W) as the student saw them
            precision: of the forward pass, e.g. autocast
        """
        with torch.no_grad(), precision:
            wanted = self.network(images)
        soft, found = (torch.log_softmax(z.float() / self.temperature, 1) for z in (wanted, logits))
        theirs = nn.functional.kl_div(found, soft, reduction="batchmean", log_target=True) * self.temperature**2
        return torch.lerp(loss, theirs, self.weight)


def _network(section: DistillSection, recipe: Recipe, data: DataSet) -> nn.Module:
    from regrow.training import finished, provenance, trust

    directory = Path(section.teacher.replace("{seed}", str(recipe.seed))).expanduser()
    found = finished.read(directory, trusted=True)
    foreign = trust.foreign({"model": {"name": found.builder.name}})
    if foreign and found.builder.name != recipe.model.name:  # of the recipe's own network the user has answered for it
        raise UserError(
            f"{directory} is of a network that {found.builder.name} builds, code that this recipe does not name itself"
        )
    mine, theirs = provenance.builder(recipe, data), found.record["model"]
    for key, what in (("classes", "classes"), ("shape", "images of (channels, height, width)")):
        if theirs[key] != mine[key]:
            raise UserError(f"{directory} is of {what} {theirs[key]}, but the data has {mine[key]}")
    for key in ("mean", "std"):
        if theirs.get(key) != mine.get(key):
            raise UserError(
                f"the images of {directory} are normalised by another {key} than this data's: train it on the same "
                "data, with the same data.val_fraction and data.split_seed"
            )
    return found.network()
