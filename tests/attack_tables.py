"""Attacks on latency tables: damaged or edited files, read and then used to price and to thin a model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attack import changed, flip, garble
from regrow import Channels, Sparsifier, UserError, schema
from regrow.latency.machine import Machine
from regrow.latency.network import network_of
from regrow.latency.spread import Spread
from regrow.latency.table import Grid, LatencyTable

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A sum, a concatenation, a depthwise convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.side = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.deep(x)
        return self.head(torch.cat([x, self.side(x)], 1).mean((2, 3)))


def table() -> LatencyTable:
    """Made up, but of the model's units."""
    rng = np.random.default_rng(0)
    network = network_of(Small(), IMAGE)
    grids = {}
    for unit in network.units:
        c_in = tuple(int(c) for c in np.unique([1, 3, unit.c_in]))
        c_out = tuple(int(c) for c in np.unique([1, 2, unit.c_out])) if unit.key.two_sided else (0,)
        seconds = rng.uniform(0.5, 2.0, (len(c_in), len(c_out))).cumsum(0).cumsum(1)
        grids[unit.key] = Grid(c_in, c_out, seconds * 1e-3, step=4, stairs=(0.5, 0.25), error=0.03)
    return LatencyTable(
        Machine.here("eager"), len(IMAGE), 1, network, grids, 1.1, 2e-3, 0.1, Spread(0.02, 0.1, 0.01, 0.03, 3)
    )


def used(path: Path) -> dict[str, object]:
    """What comes of a table: prices, and the widths of a model under half the latency."""
    read = LatencyTable.load(path)
    prices = [read.model(), read.model({"stem": (3, 5)}), read.predict(network_of(Small(), IMAGE)), read.interval()]
    model = Small()
    sparsifier = Sparsifier(
        model, torch.optim.SGD(model.parameters(), 0.1), pattern=Channels(latency=0.8, table=read, round_to=1),
        method="uniform", total_steps=10, example_inputs=IMAGE,
    )  # fmt: skip
    return {"prices": prices, "widths": sparsifier.widths()}


def attack(count: int, kind: str, place: Path) -> list[str]:
    """Damages ("damaged": bytes, edits, and edits with a new checksum; "flipped": one bit) and uses so many tables."""
    path = place / "table.json"
    table().save(path)
    good = path.read_bytes()
    right = used(path)
    wrong = []
    for i in range(count):
        random_ = random.Random(i)
        how = "flipped" if kind == "flipped" else random_.choice(["bytes", "edited", "sealed", "sealed", "unsealed"])
        what = how
        if how == "flipped":
            path.write_bytes(flip(good, random_))
        elif how == "bytes":
            path.write_bytes(garble(good, random_))
        else:
            value, what = changed(json.loads(good), random_)
            if how == "sealed":
                value = schema.seal(value)
            elif how == "unsealed" and isinstance(value, dict):
                value.pop(schema.CHECKSUM, None)
            path.write_text("[" * 100_000 if random_.random() < 0.01 else json.dumps(value))
        try:
            found = used(path)
        except UserError as error:
            said = None if "\n" not in str(error) and len(str(error)) < 700 else f"no sentence: {str(error)[:200]!r}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        else:  # what somebody writes who makes a new checksum, or none, is an edit and counts
            said = None if found == right or how in ("sealed", "unsealed") else "was accepted, with another result"
        if said is not None:
            wrong.append(f"{i} {how}: {what}: {said}")
    return wrong
