"""Batch-norm statistics that fit the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn


def norm_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a model's batch (and instance) norms, by name."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> None:
    """Re-estimates the running statistics of batch norms, which pruning leaves stale.

    Statistics are the plain mean over the batches; everything else (weights, modes, other buffers) stays as it is.

    Args:
        model: on any device. A model without such norms is left alone.
        loader: yields batches, or tuples or lists whose first element is the batch (labels are not used).
        batches: how many to take; None takes them all.

    Raises:
        ValueError: where the loader yields nothing; the old statistics are kept.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    saved = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for batch in islice(loader, batches):
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            assert isinstance(inputs, Tensor)
            model(inputs.to(device))
            seen += 1
    finally:
        for norm, momentum, buffers in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            if not seen:
                for name, value in buffers.items():
                    getattr(norm, name).copy_(value)
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("the loader yielded no batch to re-estimate batch-norm statistics from")
