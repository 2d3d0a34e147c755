"""Whether a coupling is right: a model with channels zeroed must compute the same as one that has lost them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.coupling.kept_norms import KeptNorms
from regrow.coupling.seen import difference
from regrow.groups import Coupling
from regrow.inputs import Inputs, output_tensors
from regrow.surgery import resize
from regrow.tracing.trace import ModuleStack, Recorder


def random_keep(coupling: Coupling, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Masks that keep each channel with about this probability (and at least one of each group): group id → bool."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in coupling.groups:
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (), generator=generator)] = True
        if group.multiple > 1:  # which a kernel demands
            count = max(1, int(mask.sum()) // group.multiple) * group.multiple
            order = mask.to(torch.uint8).argsort(descending=True, stable=True)
            mask = torch.zeros_like(mask).index_fill(0, order[:count], True)
        keep[group.id] = mask
    return keep


def deviation(
    model: nn.Module,
    coupling: Coupling,
    keep: Mapping[str, Tensor],
    inputs: tuple[Any, ...],
    steps: int = 0,
    lr: float = 1e-3,
) -> float:
    """How far the thin model is from the masked one: the largest difference of any output in eval mode, divided by the
    largest number in the same output.

    Args:
        model: stays as it is; copies are compared.
        keep: group id → bool [channels], True for those that stay.
        inputs: positional arguments.
        steps: training steps (SGD on the mean square of all outputs, without dropout) on both before they are compared.
        lr: of these steps; the gradients are scaled to a norm of at most 1.
    """
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    b = _result(thin, inputs, steps, lr, None)
    del thin
    masked = copy.deepcopy(model)
    resize.zero(masked, coupling, keep)
    a = _result(masked, inputs, steps, lr, (coupling, keep))
    return difference(a, b)


def normed_deviation(
    model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor], inputs: tuple[Any, ...], training: bool = False
) -> float:
    """`deviation` from a masked model whose norms, and means over channels, leave out those that are removed: so a thin
    model is right whose channels are normalised together.

    Args:
        training: in training mode (without dropout) instead of eval mode.
    """
    thin, masked = resize.compact(copy.deepcopy(model), coupling, keep), copy.deepcopy(model)
    resize.zero(masked, coupling, keep)
    for one in (thin, masked):
        _training_mode(one) if training else one.eval()
    stack = ModuleStack(masked)
    narrow = coupling.heads == "width"
    norms = KeptNorms(
        masked, coupling.groups, keep, Inputs(inputs, {}), stack, lambda f, args, kwargs: f(*args, **kwargs), narrow
    )
    with torch.no_grad():
        b = _outputs(thin(*inputs))
        with Recorder(norms.see, norms, stack):
            a = _outputs(masked(*inputs))
    return difference(a, b)


def _result(
    model: nn.Module,
    inputs: tuple[Any, ...],
    steps: int,
    lr: float,
    masks: tuple[Coupling, Mapping[str, Tensor]] | None,
) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        _training_mode(model)
        losses = [y.square().mean() for y in _outputs(model(*inputs))]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        if masks:
            resize.zero(model, *masks, gradients=True)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if masks:
            resize.zero(model, *masks)
    with torch.no_grad():
        return _outputs(model.eval()(*inputs))


def _training_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():  # random numbers would differ between the two widths
        if any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth")):
            module.eval()
        for name in ("drop_rate", "dropout", "attention_dropout"):
            if type(getattr(module, name, None)) is float:
                setattr(module, name, 0.0)


def _outputs(out: Any) -> list[Tensor]:
    return [t for t in output_tensors(out) if t.is_floating_point()]
