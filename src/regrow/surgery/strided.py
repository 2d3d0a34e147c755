"""Keeps thin networks from a fault of oneDNN, with which PyTorch computes convolutions on CPUs.

Its gradient of the weight of a strided 1×1 convolution writes past its memory where the input has fewer channels than
a vector has numbers (8 with AVX2, 16 with AVX-512) and lies in memory with channels last: wrong numbers, or a crash
(https://github.com/uxlfoundation/oneDNN/issues/6035). Dense networks hardly have such layers, thin ones do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS = 16  # in the widest vector
_PLACE = "_conv_forward"  # what a convolution calls with its input, weight and bias


def guard(model: nn.Module) -> None:
    """Lets the strided 1×1 convolutions of a model leave out by themselves what they stride over, wherever the fault
    could come: they compute the same."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_strided(module) and _PLACE not in vars(module):
            setattr(module, _PLACE, Strided(module))


def unguard(model: nn.Module) -> None:
    """Takes `guard` back."""
    for module in model.modules():
        if isinstance(vars(module).get(_PLACE), Strided):
            delattr(module, _PLACE)


def _is_strided(conv: nn.Conv2d) -> bool:
    return set(conv.kernel_size) == {1} and set(conv.stride) != {1} and conv.padding in ((0, 0), "valid")


class Strided:
    """In the place of ``_conv_forward``.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.conv
        if x.device.type != "cpu" or weight.shape[1] >= _CHANNELS:
            return type(conv)._conv_forward(conv, x, weight, bias)
        down, right = conv.stride
        return F.conv2d(x[..., ::down, ::right], weight, bias, groups=conv.groups)
