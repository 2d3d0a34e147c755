"""Heads that lose width: queries and keys together, values with what takes them, all heads of a layer alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from masked_and_thin import deviation, random_keep
from regrow.budgets.pricing import Prices
from regrow.coupling.couple import couple
from regrow.surgery import resize, scale
from regrow.tracing.flops import count_flops

X = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    """Attention with a layer for queries, for keys and for values, and a number for its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def cut(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(self.cut(self.q(x)), self.cut(self.k(x)), self.cut(self.v(x)))
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class OfTorch(Attention):
    """The scale is that of the function."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Einsum(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhnd,bhmd->bhnm", q, k) * self.scale
        return torch.einsum("bhnm,bhmd->bhnd", weights.softmax(-1), v)


class ByShape(Attention):
    """The scale is read off the queries."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


class ByAttribute(OfTorch):
    """One attribute counts the width of queries, keys and values, another all heads together."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.whole = WIDTH // HEADS, WIDTH

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(len(x), -1, self.heads, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        out: Tensor = self.out(self.attend(q, k, v).transpose(1, 2).reshape(len(x), -1, self.whole))
        return out


class FromInput(Attention):
    """The width of heads is what the input's is divided by their number."""

    def cut(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.heads, WIDTH // self.heads).transpose(1, 2)


class Around(OfTorch):
    """Attention that calls other attention, whose heads have another width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.after = OfTorch(), nn.Linear(WIDTH, WIDTH)
        self.inner.q, self.inner.k = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + self.after(self.inner(x).relu())
        return out


class Fused(nn.Module):
    """One layer for all three."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Turned(OfTorch):
    """Rotary embeddings: pairs of indices of queries and keys, with a buffer of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.rand(WIDTH // HEADS // 2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(q.shape[-2])[:, None] * self.frequency
        cos, sin = (torch.cat((part, part), -1) for part in (angle.cos(), angle.sin()))

        def turn(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat((-second, first), -1) * sin

        return super().attend(turn(q), turn(k), v)


class Normed(OfTorch):
    """Queries are normalised inside of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH // HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(self.norm(q), k, v)


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Net(nn.Module):
    """Two layers of attention and two hidden ones around a residual stream, as a ViT has them."""

    def __init__(self, attention: Callable[[], nn.Module] = OfTorch) -> None:
        super().__init__()
        self.stem, self.position = nn.Linear(10, WIDTH), nn.Parameter(torch.randn(1, 6, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.attention = nn.ModuleList(attention() for _ in range(2))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        for i, (attention, hidden) in enumerate(zip(self.attention, self.hidden, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + hidden(self.norms[2 * i + 1](x))
        out: Tensor = self.head(x.mean(1))
        return out


def built(attention: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Net(attention).double()


# what the groups of one layer of attention are called → their channels, and how many indices each has
APART = {"q": (8, HEADS), "v": (8, HEADS)}
FOUND: dict[type[nn.Module], dict[str, tuple[int, int]]] = {
    Attention: APART, OfTorch: APART, Einsum: APART, ByShape: {"v": (8, HEADS)}, ByAttribute: {"q": (8, HEADS)},
    FromInput: {}, Fused: {"qkv": (8, 3 * HEADS)}, Turned: {"q": (4, 2 * HEADS), "v": (8, HEADS)},
    Normed: {"v": (8, HEADS)}, Multihead: {},
}  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
def test_groups_are_indices_of_all_heads(kind: type[nn.Module]) -> None:
    model = built(kind)
    coupling = couple(model, X, heads="width")
    widths = {g.id: (g.size, g.each) for g in coupling.groups if g.id.startswith("attention")}
    assert widths == {f"attention.{i}.{name}": found for i in range(2) for name, found in FOUND[kind].items()}
    assert {g.id: g.size for g in coupling.groups if g.id not in widths} == {"hidden.0.0": 24, "hidden.1.0": 24}
    if kind is OfTorch:  # of each head the same indices
        for part in coupling["attention.0.v"].slices:
            assert torch.equal(part.channel, torch.arange(8).repeat(HEADS))


@pytest.mark.parametrize("kind", FOUND)
def test_masked_is_thin_and_costs_what_is_priced(kind: type[nn.Module]) -> None:
    model = built(kind)
    coupling = couple(model, X, heads="width")
    keep = random_keep(coupling, 0.5)
    assert deviation(model, coupling, keep, (X,)) < 1e-12
    assert deviation(model, coupling, keep, (X,), steps=2) < 1e-12
    prices = Prices.of(model, coupling, kinds=["flops", "params"], flops=count_flops(model, X))
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    assert prices.cost({name: int(mask.sum()) for name, mask in keep.items()}) == {
        "flops": count_flops(thin, X).total, "params": sum(p.numel() for p in thin.parameters()),
    }  # fmt: skip


def test_what_keeps_its_width_says_why() -> None:
    def reason(kind: type[nn.Module], layer: str, **options: Any) -> str:
        return couple(built(kind), X, heads="width", **options).dense[f"attention.0.{layer}.weight"]

    assert "computes something else with fewer channels" in reason(ByShape, "q")
    assert "does not run with fewer channels" in reason(FromInput, "q")
    assert "normalised together" in reason(Normed, "q")
    said = couple(built(Multihead), X, heads="width", normalised=True).dense["attention.0.inner.in_proj_weight"]
    assert said == "MultiheadAttention takes the width of its heads from that of its input (attention.0.inner)"


def test_the_hidden_size_goes_beside_it() -> None:
    model = built(OfTorch)
    coupling = couple(model, X, heads="width", normalised=True)
    exact = {group.id: group.exact for group in coupling.groups}
    assert exact == {"stem": False} | {name: True for name in exact if name != "stem"}
    assert len(exact) == 7
    assert not {name for name in coupling.dense if not name.startswith("head.")}


def test_the_scale_is_that_of_the_full_width_and_is_let_go_again() -> None:
    model = built(OfTorch)
    coupling = couple(model, X, heads="width")
    assert [dict(group.scaled) for group in coupling.groups[:2]] == [{"attention.0": 8}, {}]
    before, keys = model(X), {name: vars(module).keys() for name, module in model.named_modules()}
    keep = random_keep(coupling, 0.5)
    remainder = resize.shrink(model, coupling, keep)
    thin = model.attention[0]
    y = X[:, :, :1] + torch.arange(WIDTH)
    q, k, v = (thin.cut(layer(y)) for layer in (thin.q, thin.k, thin.v))
    expected = thin.out((q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(thin(y), expected)
    assert scale.is_held(thin)
    resize.expand(model, remainder)
    assert torch.equal(model(X), before)
    assert {name: vars(module).keys() for name, module in model.named_modules()} == keys


def test_attention_inside_of_other_attention_keeps_its_own_scale() -> None:
    model = built(Around)
    coupling = couple(model, X, heads="width")
    assert coupling["attention.0.q"].scaled == {"attention.0": 8, "attention.0.inner": 16}
    assert coupling["attention.0.inner.q"].scaled == {"attention.0.inner": 16}
    for group in coupling.groups:  # one by itself, as its scale must not be that of the others
        assert deviation(model, coupling, {group.id: torch.arange(group.size) < group.size // 2}, (X,)) < 1e-12


def test_a_thin_model_can_become_thinner() -> None:
    model = built(OfTorch)
    coupling = couple(model, X, heads="width")
    resize.compact(model, coupling, {g.id: torch.arange(g.size) < g.size * 3 // 4 for g in coupling.groups})
    again = couple(model, X, heads="width")
    assert {group.id: group.size for group in again.groups} == {g.id: g.size * 3 // 4 for g in coupling.groups}
    assert deviation(model, again, random_keep(again, 0.5), (X,)) < 1e-12
    assert model.attention[0].regrow_scaled == 8


def trained(**options: Any) -> tuple[nn.Module, regrow.Sparsifier, set[int]]:
    torch.manual_seed(0)
    model = built(OfTorch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pattern = regrow.Channels(flops=0.6, round_to=4, heads="width", **options)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=regrow.IEE(h=3, j=2, q=2), total_steps=24, example_inputs=X
    )
    seen = set()
    for _ in range(24):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        seen.add(model.attention[0].q.out_features)
    return model.eval(), sparsifier, seen


def test_trained_by_iee_thin_as_masked_saved_and_exported(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, sparsifier, seen = trained()
    masked, other, _ = trained(thin=False)
    assert sparsifier.widths() == other.widths()
    assert len(seen) > 1
    assert max(seen) == WIDTH  # while it explores
    before = model(X)
    torch.testing.assert_close(before, masked(X), rtol=0, atol=1e-12)
    thin = sparsifier.compact()
    torch.testing.assert_close(other.compact()(X), before, rtol=0, atol=1e-12)
    assert torch.equal(thin(X), before)
    assert torch.equal(copy.deepcopy(thin)(X), before)
    regrow.save(thin, tmp_path / "thin")
    assert torch.equal(regrow.load(built(OfTorch), tmp_path / "thin").eval()(X), before)
    regrow.export(thin.float(), tmp_path / "thin.onnx", example_inputs=X.float())
    session = onnxruntime.InferenceSession(tmp_path / "thin.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(out), before.float(), rtol=0, atol=1e-5)
