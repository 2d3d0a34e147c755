"""Cuts at places that numbers of the module name: channels on both sides of them can go, and the numbers follow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import regrow
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple
from regrow.surgery import resize

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Cut(nn.Module):
    """A wide layer whose outputs are cut into parts; the first gates what the others have joined (Gated CNN)."""

    def __init__(self, kind: type[tuple[int, ...] | list[int]] = tuple, lengths: tuple[int, ...] = (12, 8, 4)) -> None:
        super().__init__()
        self.parts = kind(lengths)
        self.wide, self.inner = nn.Linear(6, sum(lengths)), nn.Linear(lengths[-1], lengths[-1])
        self.narrow = nn.Linear(lengths[0], 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, *others, last = self.wide(x).split(self.parts, -1)
        out: Tensor = self.narrow(gate.relu() * torch.cat([*others, self.inner(last)], -1))
        return out


@pytest.mark.parametrize("kind", [tuple, list])
def test_lengths_that_an_attribute_lists(kind: type[tuple[int, ...] | list[int]], tmp_path) -> None:
    torch.manual_seed(0)
    model = Cut(kind).double()
    coupling = couple(model, X.double())
    assert {group.id: group.size for group in coupling.groups} == {"wide": 8, "wide#2": 4, "wide#3": 4}
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (X.double(),), steps=1) < 1e-12
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    free, gated, held = (int(keep[name].sum()) for name in ("wide", "wide#2", "wide#3"))
    assert thin.parts == kind((free + gated, free, held))
    assert model.parts == kind((12, 8, 4))
    regrow.save(thin, tmp_path)
    loaded = regrow.load(Cut(kind).double(), tmp_path)
    assert loaded.parts == thin.parts
    assert type(loaded.parts) is kind
    assert torch.equal(loaded(X.double()), thin(X.double()))


def test_equal_lengths_that_an_attribute_lists() -> None:
    torch.manual_seed(0)
    model = Cut(list, (8, 8)).double()
    coupling = couple(model, X.double())
    assert {group.id: group.size for group in coupling.groups} == {"wide": 8}
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (X.double(),), steps=1) < 1e-12
    assert resize.compact(model, coupling, keep).parts == [int(keep["wide"].sum())] * 2


class Rest(nn.Module):
    """Some channels are worked on, the rest is what is left of the width."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.worked, self.narrow = nn.Linear(6, 16), nn.Linear(4, 4), nn.Linear(16, 5)
        self.some, self.width = 4, 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x).relu()
        some, rest = x.split([self.some, self.width - self.some], -1)
        out: Tensor = self.narrow(torch.cat([self.worked(some), rest], -1))
        return out


def test_what_is_left_of_a_width_that_an_attribute_counts() -> None:
    torch.manual_seed(0)
    model = Rest().double()
    coupling = couple(model, X.double())
    keep = random_keep(coupling, 0.5)
    assert sorted(group.size for group in coupling.groups) == [4, 4, 12]
    assert deviation(model, coupling, keep, (X.double(),), steps=1) < 1e-12


class Query(nn.Module):
    """One channel of scores beside keys, as in MobileViT V2."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.narrow, self.width = nn.Linear(6, 9), nn.Linear(8, 5), 8

    def forward(self, x: Tensor) -> Tensor:
        score, keys = self.both(x).split([1, self.width], -1)
        out: Tensor = self.narrow(score.sigmoid() * keys)
        return out


def test_a_part_of_a_plain_length_stays() -> None:
    torch.manual_seed(0)
    model = Query().double()
    coupling = couple(model, X.double())
    (group,) = coupling.groups
    assert group.size == 8
    assert next(part for part in group.slices if part.name == "both.weight").channel.tolist() == [-1, *range(8)]
    assert deviation(model, coupling, random_keep(coupling, 0.5), (X.double(),), steps=1) < 1e-12


class Cell(nn.Module):
    """The hidden state of a recurrence, whose width it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.width = nn.Linear(12, 8), 8

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        out: Tensor = hidden + self.mixed(torch.cat([hidden, given], -1)).tanh()
        return out


class Recurrent(nn.Module):
    """One layer makes a hidden state and what its updates are given (RAFT)."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.cell, self.last = nn.Linear(6, 12), Cell(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        hidden, given = both.split([self.cell.width, both.shape[-1] - self.cell.width], -1)
        hidden = hidden.tanh()
        for _ in range(2):
            hidden = self.cell(hidden, given)
        out: Tensor = self.last(hidden)
        return out


def test_a_length_that_a_module_inside_knows() -> None:
    torch.manual_seed(0)
    model = Recurrent().double()
    coupling = couple(model, X.double())
    assert {group.id: group.size for group in coupling.groups} == {"both": 8}
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (X.double(),), steps=1) < 1e-12
    assert resize.compact(model, coupling, keep).cell.width == int(keep["both"].sum())
