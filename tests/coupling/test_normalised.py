"""Channels that are normalised together: the thin network's norms see the channels that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from masked_and_thin import deviation, normed_deviation, random_keep
from regrow.budgets.pricing import Prices
from regrow.coupling.couple import couple
from regrow.errors import UserError
from regrow.surgery import resize
from regrow.tracing.flops import count_flops

X = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0))


class Root(nn.Module):
    """RMSNorm, written by hand as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class ByHand(nn.Module):
    """LayerNorm, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / (centred.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() + self.shift


class ByNumber(Root):
    """RMSNorm times a number that the code takes from the width."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y * x.shape[-1] ** -0.5


class First(nn.Module):
    """Group norm of one group, over channels that come first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return out


class Transformer(nn.Module):
    """One block with heads and a hidden layer around a residual stream, as a ViT has it."""

    def __init__(
        self, width: int = 16, heads: int = 4, hidden: int = 24, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.heads = heads
        self.stem, self.position = nn.Linear(10, width), nn.Parameter(torch.randn(1, 6, width))
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * 16), nn.Linear(16, width)
        self.up, self.down, self.head = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        out: Tensor = self.head(self.norms[2](x).mean(1))
        return out


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, Root, ByHand, First])
def test_the_hidden_size_is_one_group(norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Transformer(norm=norm)
    plain = {group.id: (group.size, group.exact) for group in couple(model, X).groups}
    assert plain == {"qkv": (4, True), "up": (24, True)}
    widened = {group.id: (group.size, group.exact) for group in couple(model, X, normalised=True).groups}
    assert widened == {"stem": (16, False), "qkv": (4, True), "up": (24, True)}


@pytest.mark.parametrize("norm", [nn.LayerNorm, Root, First])
def test_the_thin_network_is_the_one_that_was_built_at_its_widths(norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Transformer(norm=norm).double()
    coupling = couple(model, X.double(), normalised=True)
    keep = random_keep(coupling, 0.5)
    width, heads, hidden = (int(keep[name].sum()) for name in ("stem", "qkv", "up"))
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    built = Transformer(width, heads, hidden, norm).double()
    inner = 4 * heads
    built.qkv, built.project = nn.Linear(width, 3 * inner).double(), nn.Linear(inner, width).double()
    built.load_state_dict(thin.state_dict())
    assert torch.equal(built(X.double()), thin(X.double()))


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 over what each output takes, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        rows = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-8)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, self.stride, self.padding)


def test_standardised_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        Standardised(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), Standardised(8, 8, 3), nn.ReLU(), Standardised(8, 5, 1)
    ).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    plain = couple(model, images)
    assert plain.groups == ()
    assert "normalised together" in plain.dense["0.weight"]
    assert plain.dense["0.weight"].endswith("; Channels(normalised=True) may let them go")
    coupling = couple(model, images, normalised=True)
    assert {group.id: (group.size, group.exact) for group in coupling.groups} == {"0": (8, False), "3": (8, False)}
    keep = random_keep(coupling, 0.5)
    for training in (False, True):
        assert normed_deviation(model, coupling, keep, (images,), training) < 1e-12
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    assert (thin[3].in_channels, thin[3].out_channels) == (int(keep["0"].sum()), int(keep["3"].sum()))
    assert deviation(model, coupling, keep, (images,)) > 1e-3  # zeros count in its means


def test_a_norm_that_takes_a_number_from_the_width_keeps_its_channels() -> None:
    torch.manual_seed(0)
    coupling = couple(Transformer(norm=ByNumber), X, normalised=True)
    assert {group.id for group in coupling.groups} == {"qkv", "up"}
    assert "computes something else with fewer channels" in coupling.dense["stem.weight"]


def test_flops_follow_all_widths() -> None:
    torch.manual_seed(0)
    model = Transformer()
    coupling = couple(model, X, normalised=True)
    prices = Prices.of(model, coupling, kinds=["flops"], flops=count_flops(model, X))
    keep = random_keep(coupling, 0.5)
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    counted = count_flops(thin, X)
    assert counted.other > 0  # products of queries and keys, and with values
    assert prices.cost({name: int(mask.sum()) for name, mask in keep.items()})["flops"] == counted.total


def test_masking_is_refused() -> None:
    with pytest.raises(UserError, match="normalised=True needs thin=True"):
        regrow.Channels(flops=0.5, normalised=True, thin=False)


def test_trained_by_iee_and_loaded_again(tmp_path) -> None:
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pattern = regrow.Channels(params=0.5, round_to=4, normalised=True)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=regrow.IEE(h=2, j=2, q=2), total_steps=24, example_inputs=X
    )
    widths = set()
    for _ in range(24):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        widths.add(model.stem.out_features)
    assert max(widths) == 16  # while it explores
    thin = sparsifier.compact()
    assert thin.stem.out_features == thin.norms[0].normalized_shape[0] < 16
    regrow.save(thin, tmp_path / "thin")
    loaded = regrow.load(Transformer(), tmp_path / "thin")
    assert torch.equal(thin.eval()(X), loaded.eval()(X))
