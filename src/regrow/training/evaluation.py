"""How good the model is: always as its active structure, in eval mode, on data that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.inputs import Inputs
from regrow.quiet import evaluating

Batches = Iterable[tuple[Any, Tensor]]


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
        model: inputs → logits; it is put into eval mode meanwhile
        batches: pairs of inputs, in any form that `regrow.inputs.Inputs.of` takes, and labels
        device: where the model is
        reduce: adds up a tensor over all processes
    """
    right = torch.zeros(2, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    with evaluating(model), torch.no_grad():
        for inputs, labels in batches:
            labels = labels.to(device, non_blocking=True)
            moved = Inputs.of(inputs).map(lambda t: t.to(device, non_blocking=True))
            predicted = moved(model).argmax(1)
            right += torch.stack([(predicted == labels).sum(), torch.tensor(len(labels), device=device)]).to(right)
    correct, total = reduce(right).tolist()
    return float(correct / total) if total else 0.0


def moving_average(model: nn.Module, decay: float) -> nn.Module:
    """An exponential moving average of a model's weights and buffers, to begin with the first that it takes in.

    Args:
        model: the model that trains, dense and not wrapped
        decay: share of the average that a step keeps
    """
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
