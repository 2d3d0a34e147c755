"""How good the model is: always as its active structure, in eval mode, on data that it was not trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import names
from regrow.quiet import evaluating

Batches = Iterable[tuple[Tensor, Tensor]]


@contextmanager
def averaged_weights(optimizer: Optimizer, back: bool = True) -> Iterator[None]:
    """Inside it, a schedule-free optimizer holds the weights to evaluate; for all others nothing changes. Without
    ``back`` it stays like that."""
    switches = [getattr(optimizer, name, None) for name in ("eval", "train")]
    if not all(callable(switch) for switch in switches):
        yield
        return
    to_eval, to_train = switches
    to_eval()  # type: ignore[misc]
    try:
        yield
    finally:
        if back:
            to_train()  # type: ignore[misc]


def accuracy(
    model: nn.Module, batches: Batches, device: torch.device, reduce: Callable[[Tensor], Tensor] = lambda t: t
) -> float:
    """Top-1 accuracy as a fraction.

    Args:
        model: images → logits; it is put into eval mode meanwhile
        batches: pairs of images and labels
        device: where the model is
        reduce: adds up a tensor over all processes
    """
    right = torch.zeros(2, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    with evaluating(model), torch.no_grad():
        for images, labels in batches:
            labels = labels.to(device, non_blocking=True)
            predicted = model(images.to(device, non_blocking=True)).argmax(1)
            right += torch.stack([(predicted == labels).sum(), torch.tensor(len(labels), device=device)]).to(right)
    correct, total = reduce(right).tolist()
    return float(correct / total) if total else 0.0


class Ema:
    """An exponential moving average of a sparse model's weights and buffers.

    Args:
        model: the model that trains, not wrapped
        decay: share of the average that a step keeps
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update(self, model: nn.Module) -> None:
        """Take in the model's values after a step."""
        self._average.update_parameters(model)

    def model(self, masks: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the average as the active structure: what a weight was before it was pruned fades only slowly
        from an average, so all that is outside the structure is left out."""
        averaged: nn.Module = copy.deepcopy(self._average.module)
        parameters = names.parameters(averaged)
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].masked_fill_(~mask, 0.0)
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """The average, as tensors."""
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._average.load_state_dict(state)
