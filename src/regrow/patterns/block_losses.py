"""What the branches of residual sums are worth: how much the loss grows where one of them is skipped.

A first-order estimate says little of a whole branch, as its removal is no small change. So each branch is skipped by
itself, and the loss is measured, as it is done to remove the layers of language models (Kim et al. 2024,
arXiv:2402.02834).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from regrow import names, processes
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.groups import Block, Coupling
from regrow.losses import MeanLoss, left_as_it_was
from regrow.surgery import resize


class BlockLosses:
    """Measures the loss with each of a model's blocks skipped, and puts the model back as it was.

    Args:
        model: at full width whenever it is measured.
        coupling: its groups and blocks.
        measure: the mean loss of the model as it is.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, measure: MeanLoss) -> None:
        self._model, self._coupling, self._measure = model, coupling, measure

    @staticmethod
    def check(criterion: Criterion) -> None:
        """Refuses a criterion by which channels are worth something that losses cannot be compared with.

        Raises:
            UserError: naming it.
        """
        if criterion.signed is None:
            raise UserError(
                "blocks='loss' weighs blocks, by the loss without them, against channels, whose scores by criterion "
                f"{criterion.name!r} are no changes of the loss: use criterion='taylor', or blocks=True"
            )

    def __call__(self, keep: Mapping[str, Tensor], blocks: Sequence[Block]) -> dict[Block, float]:
        """By how much the loss grows without each of some blocks; below zero where it falls.

        The network is measured in the modes in which it trains, with norms that go by the batch if they do so then,
        but without dropout, and with the same dice each time. All are finite numbers: a loss that is not counts as the
        largest that is, and where that of the whole network is none, nothing is said. Of several processes it is the
        first one's, on all.

        Args:
            keep: group id → bool [channels], what the network computes with.
            blocks: each is skipped by itself.
        """
        if not blocks:
            return {}
        with _as_it_trains(self._model):
            without = ({member: torch.zeros_like(keep[member]) for member in block.members} for block in blocks)
            found = [self._loss(keep), *(self._loss({**keep, **gone}) for gone in without)]
        whole, *others = self._agreed(found)
        grown = [loss - whole for loss in others]
        finite = [change for change in grown if math.isfinite(change)]
        if not finite:
            return {}
        return {b: change if math.isfinite(change) else max(finite) for b, change in zip(blocks, grown, strict=True)}

    def _loss(self, keep: Mapping[str, Tensor]) -> float:
        """That of the model with these channels, of which nothing else is computed."""
        torch.clear_autocast_cache()  # whoever steps inside autocast has weights of full width there
        remainder = resize.shrink(self._model, self._coupling, keep)
        try:
            return self._measure().loss
        finally:
            resize.expand(self._model, remainder)
            torch.clear_autocast_cache()

    def _agreed(self, losses: list[float]) -> list[float]:
        if not processes.together():
            return losses
        device = next(iter(names.parameters(self._model).values())).device
        agreed: list[float] = processes.agree(torch.tensor(losses, dtype=torch.float64, device=device)).tolist()
        return agreed


def shared_out(
    scores: Mapping[str, Tensor], among: Mapping[str, Tensor], losses: Mapping[Block, float]
) -> dict[str, Tensor]:
    """Scores of which those of each block's members, together, are by how much the loss grows without it, at least 0.

    What the channels inside are worth by themselves stays as it is, and the rest falls to the block's own group; where
    they are worth more together than the block, each is worth the same share less.

    Args:
        scores: group id → [channels], none negative.
        among: group id → bool [channels], those that are in question; of the others the scores do not count.
        losses: block → by how much the loss grows without it.
    """
    result = dict(scores)
    for block, loss in losses.items():
        inner = sum(float(scores[name][among[name]].double().clamp(min=0).sum()) for name in block.inner)
        whole = max(0.0, loss)
        result[block.id] = torch.full_like(scores[block.id], max(0.0, whole - inner), dtype=torch.float64)
        if inner > whole:
            result |= {name: scores[name].double() * (whole / inner) for name in block.inner}
    return result


@contextmanager
def _as_it_trains(model: nn.Module) -> Iterator[None]:
    """Inside it, all modules but those of dropout are in the modes that they had, and without gradients; afterwards all
    of the model is as it was."""
    modes = {module: module.training for module in model.modules()}
    with torch.inference_mode(False), left_as_it_was(model):
        for module, mode in modes.items():
            module.training = mode and not isinstance(module, _DropoutNd)
        yield
