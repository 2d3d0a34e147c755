"""Small models with made-up latency tables, for the tests of pricing and allocation."""

import numpy as np
import torch
from torch import Tensor, nn

from channel_models import Attention, Chain, Dense, Flatten, Residual, scramble
from regrow.budgets.pricing import Prices
from regrow.coupling.couple import couple
from regrow.latency.machine import Machine
from regrow.latency.network import network_of
from regrow.latency.table import Grid, LatencyTable
from regrow.patterns.gates import gated
from regrow.tracing.flops import count_flops

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


class Concatenated(nn.Module):
    """Three widths in one dimension, with a norm and a pool over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(5, 4, 3, padding=1)
        self.c = nn.Conv2d(9, 6, 1)
        self.bn = nn.BatchNorm2d(15)
        self.last = nn.Conv2d(15, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(torch.cat([a, b], 1))
        y = torch.relu(self.bn(torch.cat([a, b, c], 1)))
        return self.head(self.last(nn.functional.max_pool2d(y, 2)).mean((2, 3)))


class Stream(nn.Module):
    """A square weight inside a residual stream: one group on both of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.up = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(torch.relu(x + self.up(x)))


class Blocks(nn.Module):
    """Two residual blocks, of one inner width and of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a, self.b = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.Conv2d(5, 4, 1)
        self.c, self.d, self.e = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        x = x + self.bn(self.e(self.d(self.c(x).relu()).relu()))
        return self.head(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Two residual blocks whose first norms and activations stand alone, the second with another norm at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.n1, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 1)
        self.n2, self.c, self.d = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.pool, self.n3 = nn.MaxPool2d(1), nn.BatchNorm2d(4)
        self.n4, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(self.n1(x).relu()).relu())
        x = x + self.n3(self.pool(self.d(self.c(nn.functional.silu(self.n2(x))))))
        return self.head(self.n4(x).relu().mean((2, 3)))


MODELS = {
    "residual": (Residual, IMAGE),
    "flatten": (Flatten, IMAGE),
    "concatenation": (Dense, IMAGE),
    "three widths": (Concatenated, IMAGE),
    "heads": (Attention, TOKENS),
    "stream": (Stream, TOKENS),
    "grouped": (lambda: Chain(nn.Conv2d(8, 12, 3, padding=1, groups=2), out=12), IMAGE),
    "groups that go": (lambda: Chain(nn.Conv2d(8, 8, 3, padding=1, groups=4)), IMAGE),
    "depthwise": (lambda: Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), IMAGE),
    "blocks": (Blocks, IMAGE),
    "norms": (PreActivation, IMAGE),
    "transposed": (lambda: Chain(nn.ConvTranspose2d(8, 6, 3, padding=1), out=6), IMAGE),
}


def made_up(model, inputs, seed=0, wild=False):
    """A table for the model with random times: rising with the channels, or of any kind."""
    rng = np.random.default_rng(seed)
    network = network_of(model, inputs)
    grids = {}
    for unit in network.units:
        c_in = tuple(int(c) for c in np.unique([1, 3, 5, 8, unit.c_in]))
        c_out = tuple(int(c) for c in np.unique([1, 2, 6, unit.c_out])) if unit.key.two_sided else (0,)
        seconds = rng.uniform(0.5, 2.0, (len(c_in), len(c_out)))
        if not wild:
            seconds = seconds.cumsum(0).cumsum(1)
        grids[unit.key] = Grid(c_in, c_out, seconds * 1e-3, step=4, stairs=(0.5, 0.25))
    return LatencyTable(Machine.here("eager"), len(inputs), 1, network, grids, 1.1, 2e-3, 0.0)


def priced(name, kinds=("latency", "flops", "params"), heads="count", **options):
    """Model, coupling, inputs, table and prices."""
    torch.manual_seed(0)
    kind, inputs = MODELS[name]
    model = scramble(kind())
    coupling = couple(model, inputs, blocks=name in ("blocks", "norms"), heads=heads)
    table = made_up(model, inputs, **options)
    return model, coupling, inputs, table, Prices.of(
        model, coupling, kinds=kinds, flops=count_flops(model, inputs), table=table,
        gated=gated(model, inputs, coupling, table),
    )  # fmt: skip
