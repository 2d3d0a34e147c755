"""Layers that are not run: the branch of a residual sum of which no channel is left costs nothing and adds zero.

A skipped layer stays where it is, with its parameters, of which nothing is left in a thin model. In the place of its
``forward`` stands a `Skipped`, which gives what the layer would give without any input channel: zeros of the shape that
the layer's own numbers say. Between the layers of a branch there are no channels, so that whatever else is computed
there costs nothing.

Where a module does nothing but add the branch to its input, it is passed through in eval mode without gradients: a
`PassedThrough` in the place of its ``forward`` returns the input, so that no zeros are written and added.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regrow.groups import Block

SKIPPED = "regrow_skipped"  # the attribute of a module that is skipped, and its word in the note of a thin model
# Its values: the layer returns zeros of its width (a norm what it is given, as that is zero); or, a norm whose result
# only layers read that are skipped, no channels, or zeros, where its class does not say along which dimension they lie.
WIDE, EMPTY, ZEROS = WAYS = 1, 2, 3
THROUGH, ACTIVATED = HOLDERS = 4, 5  # of a module around a branch: it returns its input, or the ReLU of that

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_OTHERS = (_ConvNd, nn.Linear, nn.MultiheadAttention)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm that can be skipped."""
    return isinstance(module, _NORMS)


def can_skip(module: nn.Module) -> bool:
    """Whether it is known what shape the layer returns without being run: of norms that of what they are given, of
    others only where their class is one of torch's, as one of the user's may compute more."""
    if "forward" in vars(module) and not is_skipped(module):  # somebody has replaced it, and would lose that
        return False
    plain = type(module).forward.__module__.startswith("torch.nn.")
    return is_norm(module) or (plain and isinstance(module, _OTHERS) and not isinstance(module, _ConvTransposeNd))


def how(module: nn.Module, name: str, block: Block) -> int:
    """In which way a layer of a block, of this name, is skipped."""
    if name not in block.within:
        return WIDE
    one = len(getattr(module, "normalized_shape", (1,))) == 1
    return EMPTY if one and type(module).forward.__module__.startswith("torch.nn.") else ZEROS


def skip(module: nn.Module, how: int) -> None:
    """Stops running a layer; once more changes nothing.

    Args:
        how: one of `WAYS`, which only norms tell apart, or of `HOLDERS`.
    """
    if not is_skipped(module):
        setattr(module, SKIPPED, how)
        module.forward = PassedThrough(module) if how in HOLDERS else Skipped(module)


def run_again(module: nn.Module) -> None:
    """Takes `skip` back."""
    if is_skipped(module):
        delattr(module, SKIPPED)
        del module.forward


def put_back(module: nn.Module, before: int | None) -> None:
    """Runs or skips a layer as before: one of `WAYS`, None where it was run."""
    if before is None:
        run_again(module)
    else:
        skip(module, before)


def can_pass(module: nn.Module) -> bool:
    """Whether a module can be passed through: nobody else has replaced its ``forward``."""
    return "forward" not in vars(module) or is_skipped(module)


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
        """Zeros of the layer's shape, or of a norm without channels, in a tensor of its own, as what follows may change
        it in place; of a norm at the end of its branch the zeros that it is given."""
        module, given = self.module, (*args, *kwargs.values())
        x = args[0] if args else kwargs.get("query", given[0])
        nothing = self._nothing(given, x.dtype)
        if isinstance(module, nn.MultiheadAttention):
            return _zeros(x, (*x.shape[:-1], module.out_proj.out_features), nothing), None
        if isinstance(module, nn.Linear):
            return _zeros(x, (*x.shape[:-1], module.out_features), nothing)
        if isinstance(module, _ConvNd):
            return _zeros(x, _shape(module, x), nothing)
        way = getattr(module, SKIPPED)
        if way == WIDE:
            return x if nothing is None else x + nothing
        shape = list(x.shape)
        if way == EMPTY:
            shape[-1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1] = 0
        return _zeros(x, tuple(shape), nothing)

    def _nothing(self, given: Iterable[Any], kind: torch.dtype) -> Tensor | None:
        """Zero, made of all that is left of the layer's parameters, and of nothing of what it is given: so these have
        gradients, without entries or of zeros, as those of all other layers do. Optimizers count their steps by that,
        and DistributedDataParallel waits for them."""
        if not torch.is_grad_enabled() or is_tracing():
            return None
        read = (*self.module.parameters(), *(t for t in given if isinstance(t, Tensor)))
        parts = [t.reshape(-1)[:0].sum() for t in read if t.requires_grad]
        return sum(parts[1:], parts[0]).to(kind) if parts else None


class PassedThrough:
    """In the place of the ``forward`` of a module that adds a branch to its input, while there is none.

    In training, and wherever gradients may be asked for, the module's own runs: what is left of parameters gets
    gradients, and nothing that autograd keeps is changed in place.

    Args:
        module: of which all layers in the branch are skipped.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The input, which is the only tensor among the arguments."""
        if self.module.training or (torch.is_grad_enabled() and not is_tracing()):
            return type(self.module).forward(self.module, *args, **kwargs)
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return x.relu() if getattr(self.module, SKIPPED) == ACTIVATED else x


def _zeros(x: Tensor, shape: tuple[int, ...], nothing: Tensor | None) -> Tensor:
    """A tensor of zeros, on the device and of the type of another, that may be changed in place."""
    return x.new_zeros(shape) if nothing is None else nothing.expand(shape).clone()


def _shape(conv: _ConvNd, x: Tensor) -> tuple[int, ...]:
    """What a convolution returns, of an example or a batch."""
    n = len(conv.kernel_size)
    if conv.padding == "same":
        return (*x.shape[: -n - 1], conv.out_channels, *x.shape[-n:])
    padding = (0,) * n if isinstance(conv.padding, str) else conv.padding
    sides = zip(x.shape[-n:], conv.kernel_size, conv.stride, padding, conv.dilation, strict=True)
    places = ((side + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for side, k, stride, pad, dilation in sides)
    return (*x.shape[: -n - 1], conv.out_channels, *places)
