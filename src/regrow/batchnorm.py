"""Batch-norm statistics that fit the weights as they are: held while others are explored, or estimated anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow import names
from regrow.errors import UserError
from regrow.quiet import evaluating


def norm_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a model's batch (and instance) norms, by name."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in names.modules(model).items()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }


class HeldStatistics:
    """The running statistics of the active structure, kept while those in the model follow what is explored.

    Args:
        model: whose norms they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held: dict[str, Tensor] | None = None

    def hold(self) -> None:
        """Keeps them as they are now, if none are held already."""
        if self._held is None:
            self._held = {name: b.detach().clone() for name, b in norm_buffers(self._model).items()}

    def adopt(self) -> None:
        """Keeps them as they are now instead of those that are held, if any are."""
        if self._held is not None:
            self._held = None
            self.hold()

    def restore(self) -> None:
        """Puts back what is held, and holds nothing any more."""
        if self._held is not None:
            write(norm_buffers(self._model), self._held)
        self._held = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside it, the model has what is held; afterwards its own again, bit for bit."""
        if self._held is None:
            yield
            return
        buffers = norm_buffers(self._model)
        live = {name: b.detach().clone() for name, b in buffers.items()}
        write(buffers, self._held)
        try:
            yield
        finally:
            write(buffers, live)

    def state_dict(self) -> dict[str, Tensor] | None:
        """What is held, by name; None for nothing."""
        return self._held

    def load_state_dict(self, state: Mapping[str, Tensor] | None) -> None:
        """Holds what another has held."""
        self._held = None
        if state is not None:
            buffers = norm_buffers(self._model)
            self._held = {name: value.to(buffers[name].device).clone() for name, value in state.items()}


@torch.no_grad()
def write(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values into the tensors of the same names."""
    for name, value in values.items():
        targets[name].copy_(value)


def hold_still(model: nn.Module) -> None:
    """Puts norms with running statistics into eval mode, in which a batch changes nothing of them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> None:
    """Re-estimates the running statistics of batch norms, which pruning leaves stale.

    Statistics are the plain mean over the batches; everything else (weights, modes, other buffers) stays as it is.

    Args:
        model: on any device. A model without such norms is left alone.
        loader: yields batches, or tuples or lists whose first element is the batch (of detectors a list of images), or
            mappings whose first tensor is it (labels are not used).
        batches: how many to take; None takes them all.

    Raises:
        UserError: where the loader yields nothing, or something else; the old statistics are kept if it is the first
            batch.
    """
    if batches is not None and batches < 1:
        raise UserError(f"batches is {batches}, but must be at least 1; None takes them all")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    saved = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
                norm.train()
            for batch in islice(loader, batches):
                model(tree_map(lambda tensor: tensor.to(device), _inputs(batch)))
                seen += 1
    finally:
        for norm, momentum, buffers in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            if not seen:
                for name, value in buffers.items():
                    getattr(norm, name).copy_(value)
    if not seen:
        raise UserError("the loader yielded no batch to re-estimate batch-norm statistics from")


def _inputs(batch: Any) -> Tensor | list[Tensor]:
    found = batch
    if isinstance(batch, (tuple, list)):
        found = batch[0] if batch else None
        if isinstance(found, list) and found and all(isinstance(image, Tensor) for image in found):
            return found
    elif isinstance(batch, Mapping):
        found = next((value for value in batch.values() if isinstance(value, Tensor)), None)
    if not isinstance(found, Tensor):
        raise UserError(
            f"the loader yielded a {type(batch).__name__} without a tensor for the model; let it yield a tensor, "
            "a tuple or list that begins with one, or a mapping that holds one"
        )
    return found
