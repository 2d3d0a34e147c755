"""Channels of what a pool took, put back at its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
