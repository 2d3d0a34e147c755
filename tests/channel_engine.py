"""What the tests of channels in the engine share: a small network and its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regrow

IEE = regrow.IEE(h=4, j=3, q=3, update_end=0.8)
METHODS: dict[str, tuple[Any, str]] = {
    "iee-taylor": (IEE, "taylor"),
    "iee-magnitude": (IEE, "magnitude"),
    "iee-explored": (regrow.IEE(h=4, j=3, q=3, grown_init="explored"), "taylor"),
    "iee-zero": (regrow.IEE(h=4, j=3, q=3, grown_init="zero", reactivate="zero"), "l2"),
    "iee-ramp": (regrow.IEE(h=4, j=3, q=3, start="criterion", ramp=0.0), "taylor"),
    "iee-unfrozen": (regrow.IEE(h=4, j=3, q=3, freeze=False), "taylor"),
    "iee-start": (regrow.IEE(h=4, j=3, q=3, start="criterion", start_steps=5), "taylor"),
    "iee-start-magnitude": (regrow.IEE(h=4, j=3, q=3, start="criterion"), "magnitude"),
    "static-start": (regrow.Static(start="criterion"), "taylor"),
    "gmp-start": (regrow.GMP(interval=5, initial_sparsity=0.3), "gradient"),
    "halp": (regrow.HALP(prunings=5, interval=4), "taylor"),
    "oneshot": (regrow.OneShot(), "magnitude"),
    "oneshot-l2": (regrow.OneShot(criterion="l2"), "taylor"),
    "oneshot-taylor": (regrow.OneShot(), "taylor"),
    "uniform": (regrow.Uniform(), "magnitude"),
    "static": (regrow.Static(), "magnitude"),
    "gmp": (regrow.GMP(interval=5), "magnitude"),
    "set": (regrow.SET(interval=5), "magnitude"),
    "acdc": (regrow.ACDC(sparse=9, dense=4, warm_up=0.1), "magnitude"),
    "acdc-taylor": (regrow.ACDC(sparse=9, dense=4, warm_up=0.1), "taylor"),
    "mest": (regrow.MEST(interval=5), "magnitude"),
}


class Residual(nn.Module):
    """Two blocks with a shared stream, a depthwise convolution, a norm-free convolution and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.first = nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12),
        )  # fmt: skip
        self.second = nn.Conv2d(12, 10, 3, stride=2)
        self.head = nn.Linear(10 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.first(x)).relu()
        return self.head(self.second(x).relu().flatten(1))


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return Residual()


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 1, 6, 6, generator=source), torch.randint(0, 5, (8,), generator=source)) for _ in range(n)]


DATA = batches(60)
