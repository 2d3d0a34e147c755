"""Channels of what a pool took, put back at its place, and of lengths to which those that are zero add nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple


class SegNet(nn.Module):
    """A pool whose places the unpooling of another tensor takes."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[rank - 2]
        self.first, self.norm, self.inner, self.last = conv(3, 8, 3), norm(8), conv(8, 8, 1), conv(8, 5, 3)
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[rank - 2](2, return_indices=True)
        self.unpool = (nn.MaxUnpool2d, nn.MaxUnpool3d)[rank - 2](2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        small, places = self.pool(x)
        out: Tensor = self.last(self.unpool(self.inner(small), places, output_size=x.shape))
        return out


def test_unpooling() -> None:
    for rank in (2, 3):
        torch.manual_seed(0)
        model = SegNet(rank).double()
        x = torch.randn(2, 3, *(7,) * rank, dtype=torch.float64)
        coupling = couple(model, x)
        assert {group.id: group.size for group in coupling.groups} == {"first": 8}
        assert deviation(model, coupling, random_keep(coupling, 0.5), (x,), steps=1) < 1e-12


class Scaled(nn.Module):
    """Channels of length one together (SSD), behind activations and pools that keep zeros."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Parameter(torch.randn(8, 1, 1))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.activation(self.first(x)), 2)
        out: Tensor = self.last(self.scale * F.normalize(x) * x.abs().pow(2).sum(1, keepdim=True).sqrt())
        return out


@pytest.mark.parametrize("activation", [F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, torch.tanh])
def test_zeros_add_nothing_to_a_length(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Scaled(activation).double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    coupling = couple(model, x)
    assert {group.id: group.size for group in coupling.groups} == {"first": 8}
    assert deviation(model, coupling, random_keep(coupling, 0.5), (x,), steps=1) < 1e-12


def test_what_makes_no_zeros_is_not_left_out_of_a_length() -> None:
    torch.manual_seed(0)
    coupling = couple(Scaled(torch.sigmoid).double(), torch.randn(2, 3, 9, 9, dtype=torch.float64))
    assert coupling.groups == ()
    assert coupling.dense["first.weight"].startswith("it is reduced over (linalg_vector_norm")
