"""Channels of what is written under a mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """A hidden layer into whose outputs something is written where a mask says so."""

    def __init__(self, write: Callable[[Masked, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.first, self.last, self.token = nn.Linear(6, 16), nn.Linear(16, 5), nn.Parameter(torch.randn(16))
        self.other = nn.Linear(6, 16)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.write(self, x, y)
        out: Tensor = self.last(y)
        return out


def _token(model: Masked, x: Tensor, y: Tensor) -> None:
    y[x.sum(-1) > 0] = model.token


def _number(model: Masked, x: Tensor, y: Tensor) -> None:
    y[y < 0.1] = 0.3


def _entries(model: Masked, x: Tensor, y: Tensor) -> None:
    y[y < 0.1] = model.other(x).sum()


def _rows(model: Masked, x: Tensor, y: Tensor) -> None:
    places = x.sum(-1) > 0
    y[places] = model.other(x)[places]


def _after(model: Masked, x: Tensor, y: Tensor) -> None:
    y[:, x.sum((0, 2)) > 0] = model.token


def _beside_a_number(model: Masked, x: Tensor, y: Tensor) -> None:
    y[x.sum((1, 2)) < 9, 2] = model.token


@pytest.mark.parametrize("write", [_token, _number, _entries, _rows, _after, _beside_a_number])
def test_writes_under_a_mask(write: Callable[[Masked, Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    model = Masked(write).double()
    coupling = couple(model, X)
    assert {group.id: group.size for group in coupling.groups if group.id != "other"} == {"first": 16}
    with_token = write in (_token, _after, _beside_a_number)
    assert ("token" in {part.name for part in coupling.groups[0].slices}) == with_token
    assert deviation(model, coupling, random_keep(coupling, 0.5), (X,), steps=1) < 1e-12


def _columns(model: Masked, x: Tensor, y: Tensor) -> None:
    y[:, :, torch.arange(16) % 3 == 0] = 0.5


def test_places_among_the_channels_stay() -> None:
    torch.manual_seed(0)
    coupling = couple(Masked(_columns).double(), X)
    assert coupling.groups == ()
    assert "fixed" in coupling.dense["first.weight"]
