"""Channels of convolutions that read at places which are computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple

X = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Deformed(nn.Module):
    """A deformable convolution between two plain ones, with modulation (DCN v2) or without."""

    def __init__(self, groups: int, places: int, modulated: bool) -> None:
        super().__init__()
        self.modulated, self.before, self.after = modulated, nn.Conv2d(3, 12, 3), nn.Conv2d(8, 5, 1)
        self.norm, self.places = nn.BatchNorm2d(12), nn.Conv2d(12, places * 18, 3, stride=2, padding=1)
        self.amounts = nn.Conv2d(12, places * 9, 3, stride=2, padding=1)
        self.deformed = DeformConv2d(12, 8, 3, stride=2, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.before(x)).relu()
        amounts = self.amounts(x).sigmoid() if self.modulated else None
        out: Tensor = self.after(self.deformed(x, self.places(x), amounts).relu())
        return out


@pytest.mark.parametrize(
    ("groups", "places", "modulated", "widths"),
    [
        (1, 1, False, {"before": 12, "deformed": 8}),
        (1, 3, True, {"before": 4, "deformed": 8}),  # one channel of each of three groups of places
        (2, 1, True, {"before": 6, "deformed": 4}),
        (4, 1, False, {"before": 4}),  # whole groups
    ],
)
def test_deformable_convolutions(groups: int, places: int, modulated: bool, widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = Deformed(groups, places, modulated).double()
    coupling = couple(model, X)
    assert {group.id: group.size for group in coupling.groups} == widths
    assert "reads" in coupling.dense["places.weight"]
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (X,), steps=1) < 1e-12
