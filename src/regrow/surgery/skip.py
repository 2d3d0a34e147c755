"""Layers that are not run: the branch of a residual sum of which no channel is left costs nothing and adds zero.

A skipped layer stays where it is, with its parameters, of which nothing is left in a thin model. In the place of its
``forward`` stands a `Skipped`, which gives what the layer would give without any input channel: zeros of the shape that
the layer's own numbers say. Between the layers of a branch there are no channels, so that whatever else is computed
there costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regrow.groups import Block

SKIPPED = "regrow_skipped"  # the attribute of a module that is skipped, and its word in the note of a thin model
WIDE, EMPTY = 1, 2  # its values: the layer returns zeros of its width; or, a norm within the branch, no channels

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_OTHERS = (_ConvNd, nn.Linear, nn.MultiheadAttention)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm that can be skipped."""
    return isinstance(module, _NORMS)


def can_skip(module: nn.Module) -> bool:
    """Whether it is known what shape the layer returns without being run."""
    if isinstance(module, _ConvTransposeNd) or (isinstance(module, _ConvNd) and isinstance(module.padding, str)):
        return False
    plain = type(module).forward.__module__.startswith("torch.nn.")  # a class of the user's may compute more
    return plain and isinstance(module, (*_NORMS, *_OTHERS))


def how(module: nn.Module, name: str, block: Block) -> int:
    """In which way a layer of a block, of this name, is skipped."""
    ends = any(key.rpartition(".")[0] == name for key in block.ending)
    return EMPTY if is_norm(module) and not ends else WIDE


def skip(module: nn.Module, how: int) -> None:
    """Stops running a layer; once more changes nothing.

    Args:
        how: `WIDE` or `EMPTY`, which only norms tell apart.
    """
    if not is_skipped(module):
        setattr(module, SKIPPED, how)
        module.forward = Skipped(module)


def run_again(module: nn.Module) -> None:
    """Takes `skip` back."""
    if is_skipped(module):
        delattr(module, SKIPPED)
        del module.forward


def put_back(module: nn.Module, before: int | None) -> None:
    """Runs or skips a layer as before: `WIDE` or `EMPTY`, None where it was run."""
    if before is None:
        run_again(module)
    else:
        skip(module, before)


def is_skipped(module: nn.Module) -> bool:
    """Whether the layer is not run."""
    return SKIPPED in vars(module)


class Skipped:
    """In the place of a layer's ``forward``: what it would return if nothing came in and it added nothing.

    Args:
        module: the layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the layer's shape; of a norm at the end of its branch the zeros that it is given, of another one a
        tensor of its own without channels, as what follows may change it in place."""
        module, x = self.module, args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, nn.MultiheadAttention):
            return self._zeros(x, (*x.shape[:-1], module.out_proj.out_features)), None
        if isinstance(module, nn.Linear):
            return self._zeros(x, (*x.shape[:-1], module.out_features))
        if isinstance(module, _ConvNd):
            return self._zeros(x, _shape(module, x))
        if getattr(module, SKIPPED) == EMPTY:
            shape = list(x.shape)
            shape[-1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1] = 0
            return self._zeros(x, tuple(shape))
        nothing = self._nothing(x)
        return x if nothing is None else x + nothing

    def _zeros(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor of zeros, on the device and of the type of another, that may be changed in place."""
        nothing = self._nothing(x)
        return x.new_zeros(shape) if nothing is None else nothing.expand(shape).clone()

    def _nothing(self, x: Tensor) -> Tensor | None:
        """Zero, made of all that is left of the layer's parameters and of those before it: so these have gradients,
        without entries, as those of all other layers do. Optimizers count their steps by that, and
        DistributedDataParallel waits for them."""
        parts = [p.sum() for p in self.module.parameters() if p.requires_grad and not p.numel()]
        if parts and not x.numel():  # made by layers before this one that are not run either
            parts.append(x.sum())
        return sum(parts[1:], parts[0]).to(x.dtype) if parts and torch.is_grad_enabled() else None


def _shape(conv: _ConvNd, x: Tensor) -> tuple[int, ...]:
    """What a convolution returns, of an example or a batch."""
    n = len(conv.kernel_size)
    assert not isinstance(conv.padding, str)
    sides = zip(x.shape[-n:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    places = ((side + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for side, k, stride, pad, dilation in sides)
    return (*x.shape[: -n - 1], conv.out_channels, *places)
