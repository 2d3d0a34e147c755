"""Numbers of channels that code takes from elsewhere: the width of a tensor that it is given, tuples and lists."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from masked_and_thin import deviation, random_keep
from regrow.coupling.couple import couple
from regrow.surgery import resize

X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Heads, as wide together as what comes in, which the code takes for granted (as in Swin and BEiT)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        q = q * (width // self.num_heads) ** -0.5
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.project(y.transpose(1, 2).reshape(batch, length, width))
        return out


class Last(Attention):
    """Attention of the last token, by a class of its own (as in CaiT)."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)[:, -1:]
        return out


class Reading(nn.Module):
    """Two blocks of attention and a hidden layer around a residual stream."""

    def __init__(self, width: int = 24, heads: int = 6, kinds: tuple[type[Attention], ...] = (Attention,) * 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, width), nn.Linear(width, 5)
        self.attend = nn.ModuleList(kind(width, heads) for kind in kinds)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(kinds) + 1))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, attend in zip(self.norms, self.attend, strict=False):
            x = x + attend(norm(x))
        out: Tensor = self.head((x + self.down(F.gelu(self.up(self.norms[-1](x))))).mean(1))
        return out


@pytest.mark.parametrize("kinds", [(Attention,) * 2, (Attention, Last)], ids=["one class", "two classes"])
def test_channels_go_with_the_heads_that_are_as_wide_as_they(kinds: tuple[type[Attention], ...]) -> None:
    torch.manual_seed(0)
    model = Reading(kinds=kinds).double()
    coupling = couple(model, X.double(), normalised=True)
    assert {group.id: (group.size, group.each, group.exact) for group in coupling.groups} == {
        "stem": (6, 4, False), "up": (96, 1, True),
    }  # fmt: skip
    keep = random_keep(coupling, 0.5)
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    heads = int(keep["stem"].sum())
    assert thin.attend[0].num_heads == heads
    built = Reading(4 * heads, heads, kinds).double()
    built.up, built.down = copy.deepcopy(thin.up), copy.deepcopy(thin.down)
    built.load_state_dict(thin.state_dict())
    assert torch.equal(built(X.double()), thin(X.double()))


def test_where_the_stream_stays_the_heads_do() -> None:
    torch.manual_seed(0)
    assert couple(Reading(), X).ids == ("up",)


class Scaled(nn.Module):
    """A number for each channel, in a shape that stands in an attribute (as in PoolFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (12, 1)
        self.scale = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


class Parted(nn.Module):
    """Channels in parts of which a list says how long they are (as in MixNet)."""

    def __init__(self, parts: list[int]) -> None:
        super().__init__()
        self.parts = parts
        self.layers = nn.ModuleList(nn.Conv1d(n, n, 2 * k + 1, padding=k, groups=n) for k, n in enumerate(parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(y) for layer, y in zip(self.layers, x.split(self.parts, 1), strict=True)], 1)


def between(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(6, 12, 3), make(), nn.ReLU(), nn.Conv1d(12, 8, 1), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize(
    ("make", "numbers", "sizes"),
    [
        (Scaled, ("shape", (12, 1)), [12, 8]),
        (lambda: Parted([6, 6]), ("parts", [6, 6]), [6, 8]),
        (lambda: Parted([5, 4, 3]), ("parts", [5, 4, 3]), [5, 4, 3, 8]),
        (lambda: Parted([4, 4, 2, 2]), ("parts", [4, 4, 2, 2]), [4, 4, 2, 2, 8]),
    ],
    ids=["tuple", "equal parts", "other parts", "both"],
)
def test_tuples_and_lists_of_numbers_follow(
    make: Callable[[], nn.Module], numbers: tuple[str, tuple[int, ...] | list[int]], sizes: list[int], tmp_path: Path
) -> None:
    attribute, dense = numbers
    model = between(make)
    coupling = couple(model, X)
    assert [group.size for group in coupling.groups] == sizes
    keep = random_keep(coupling, 0.5)
    assert deviation(copy.deepcopy(model).double(), coupling, keep, (X.double(),)) < 1e-10
    remainder = resize.shrink(model, coupling, keep)
    thin = getattr(model[1], attribute)
    assert type(thin) is type(dense)
    assert sum(thin) < sum(dense)
    out = model(X)
    regrow.save(model, tmp_path / "thin")
    loaded = regrow.load(between(make), tmp_path / "thin")
    assert getattr(loaded[1], attribute) == thin
    assert type(getattr(loaded[1], attribute)) is type(dense)
    assert torch.equal(loaded(X), out)
    resize.expand(model, remainder)
    assert getattr(model[1], attribute) == dense


class Peeking(nn.Module):
    """Picks a channel, for its shape alone (as in BART) or its numbers too."""

    def __init__(self, numbers: bool) -> None:
        super().__init__()
        self.numbers = numbers
        self.take, self.give = nn.Linear(10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.take(x)
        last = y[:, :, -1]
        out: Tensor = self.give(y) + torch.ones(last.shape, dtype=y.dtype)[..., None]
        return out + last.unsqueeze(-1) if self.numbers else out


@pytest.mark.parametrize("numbers", [False, True])
def test_what_is_picked_for_its_shape_alone_may_go(numbers: bool) -> None:
    torch.manual_seed(0)
    coupling = couple(Peeking(numbers), X)
    assert coupling.ids == (() if numbers else ("take",))
    if numbers:
        assert "picked by a fixed index" in coupling.dense["take.weight"]
