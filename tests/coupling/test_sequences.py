"""Channels of sequence models: recurrence, attention, rotary embeddings, experts, and operations that move entries."""

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
from regrow.coupling.couple import Coupling, couple
from regrow.coupling.seen import difference
from regrow.surgery import resize

TOKENS = torch.arange(14).reshape(2, 7)
X = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Embedding, recurrence, head."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.rnn = getattr(nn, kind)(12, 16, batch_first=True, **options)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.embed(x))[0][:, -1])
        return out


class Cell(nn.Module):
    """A cell that is called for one token after the other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(20, 12), getattr(nn, kind)(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size, dtype=self.head.weight.dtype)
        state = (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTMCell) else h
        for t in range(x.shape[1]):
            state = self.cell(self.embed(x[:, t]), state)
        out: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return out


class Rotary(nn.Module):
    """Grouped-query attention with rotary embeddings and a norm of queries and keys that all heads share."""

    def __init__(self, heads: int = 4, kv_heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.head_dim, self.repeats = width, heads // kv_heads
        self.q, self.k, self.v = (nn.Linear(10, n * width) for n in (heads, kv_heads, kv_heads))
        self.q_norm = nn.Parameter(torch.rand(width) + 0.5)
        self.out = nn.Linear(heads * width, 5)
        self.register_buffer("frequencies", 1 / 100 ** torch.linspace(0, 1, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * self.frequencies[None]
        cos, sin = (torch.cat([f, f], -1) for f in (angle.cos(), angle.sin()))

        def turned(linear: nn.Linear) -> Tensor:
            y = linear(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.q_norm
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat([-b, a], -1) * sin

        q, k = turned(self.q), turned(self.k)
        k, v = (
            t.repeat_interleave(self.repeats, 1)
            for t in (k, self.v(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(y)
        return out


class Conv1D(nn.Module):
    """A linear layer with the weight of transformers' layer of this name."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Fused(nn.Module):
    """Attention as in GPT-2: one layer for queries, keys and values, cut at an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.split_size, self.head_dim = 32, 8
        self.take, self.give, self.head = Conv1D(96, 10), Conv1D(24, 32), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.take(x).split(self.split_size, dim=2)
        q, k, v = (t.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1)
        out: Tensor = self.head(F.gelu(self.give(y)))
        return out


class Experts(nn.Module):
    """Two experts in one tensor, of which a gate takes one for each token."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped
        self.up, self.down = nn.Parameter(torch.randn(2, 64, 16) / 4), nn.Parameter(torch.randn(2, 16, 32) / 5)
        self.take, self.head = nn.Linear(10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.take(x).flatten(0, 1)
        if self.grouped:
            ends = torch.tensor([5, len(y)], dtype=torch.int32)
            a, b = F.grouped_mm(y, self.up.mT, offs=ends).chunk(2, -1)
            z = F.grouped_mm(F.silu(a) * b, self.down.mT, offs=ends)
        else:
            z = torch.zeros_like(y)
            for i in range(2):
                rows = torch.arange(i, len(y), 2)
                a, b = F.linear(y[rows], self.up[i]).chunk(2, -1)
                z[rows] = F.linear(F.silu(a) * b, self.down[i])
        out: Tensor = self.head(z)
        return out


class Moved(nn.Module):
    """A linear layer, something that moves or mixes entries, and another one."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.take, self.function, self.give = nn.Linear(10, 16), function, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.give(torch.relu(self.function(self.take(x))))
        return out


def _put(y: Tensor) -> Tensor:
    z = y.new_zeros(y.shape[0], y.shape[1] + 2, y.shape[2])
    z[:, torch.arange(y.shape[1]) + 1] = y
    return torch.empty(z.shape, dtype=z.dtype).copy_(z) + z.new_full((1, 1, y.shape[2]), 0.0)


def _along(y: Tensor) -> Tensor:
    z, places = torch.zeros_like(y), torch.arange(y.shape[1]).flip(0)
    z = z.index_copy(1, places, y).index_add(1, places, y).index_fill(1, places[:1], 0.5)
    z = torch.slice_scatter(z, y[:, :2], 1, 1, 3)
    z = torch.select_scatter(z, y[:, 0], 1, 4)
    return z.scatter(1, torch.zeros(len(y), 1, y.shape[2], dtype=torch.int64), y[:, :1])


def _fold(y: Tensor) -> Tensor:
    image = y.transpose(1, 2).unflatten(2, (2, 3))
    patches = F.unfold(image, (2, 1), padding=(1, 0))
    return F.fold(patches, (2, 3), (2, 1), padding=(1, 0)).flatten(2).transpose(1, 2)


def _restrided(y: Tensor) -> Tensor:
    turned = torch.as_strided(y, y.mT.shape, y.mT.stride())
    return turned.mT.clone().as_strided_(y.shape, y.stride())


def _fourier(y: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(y, dim=1), dim=1, n=y.shape[1]) + torch.fft.fft(y, dim=1).real


def _normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    layers = [Turned(), wrap(nn.Conv1d(10, 16, 3)), nn.ReLU(), wrap(nn.Conv1d(16, 12, 3)), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 5))


def check(model: nn.Module, coupling: Coupling, x: Tensor, tolerance: float = 1e-10) -> None:
    """A thin model computes what the masked one does, in double precision, before and after a step."""
    whole = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    keep = random_keep(coupling, 0.5)
    for steps in (0, 1):
        assert deviation(whole, coupling, keep, (x,), steps=steps) < tolerance


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}), ("LSTM", {"num_layers": 2, "bidirectional": True}), ("LSTM", {"proj_size": 8}),
        ("GRU", {"bidirectional": True}), ("RNN", {"num_layers": 2}),
    ],
)  # fmt: skip
def test_hidden_units_of_recurrent_layers(kind: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, **options)
    model(TOKENS)
    coupling = couple(model, TOKENS)
    sizes = {(part.attribute, group.size) for group in coupling.groups for part in group.sizes if part.module == "rnn"}
    hidden = {("hidden_size", 7), ("proj_size", 8)} if "proj_size" in options else {("hidden_size", 16)}
    assert sizes == {("input_size", 12)} | hidden  # 9 of 16 stay wider than a projection to 8
    check(model, coupling, TOKENS)


def test_a_projected_lstm_stays_wider_than_its_projection() -> None:
    torch.manual_seed(0)
    model = Recurrent("LSTM", proj_size=8)
    model(TOKENS)
    coupling = couple(model, TOKENS)
    keep = {"rnn.weight_ih_l0": torch.arange(7) == 0}
    thin = resize.compact(copy.deepcopy(model), coupling, keep)
    assert (thin.rnn.hidden_size, thin.rnn.proj_size) == (10, 8)  # torch takes equal widths for no projection
    assert deviation(model.double(), coupling, keep, (TOKENS,)) < 1e-10


def test_all_gates_lose_a_unit_together() -> None:
    model = Recurrent("LSTM")
    model(TOKENS)
    hidden = couple(model, TOKENS)["rnn.weight_ih_l0"]
    slices = {(part.name, part.dim): part.channel.tolist() for part in hidden.slices}
    assert slices["rnn.weight_ih_l0", 0] == slices["rnn.bias_hh_l0", 0] == [*range(16)] * 4
    assert slices["rnn.weight_hh_l0", 1] == slices["head.weight", 1] == [*range(16)]


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_hidden_units_of_cells(kind: str) -> None:
    torch.manual_seed(0)
    model = Cell(kind)
    coupling = couple(model, TOKENS)
    assert sorted(group.size for group in coupling.groups) == [12, 16]
    check(model, coupling, TOKENS)


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (Rotary, [2]), (Fused, [4, 24]), (lambda: Experts(False), [32, 16]),
        (lambda: Moved(_put), [16]), (lambda: Moved(_along), [16]), (lambda: Moved(_fold), [16]),
        (lambda: Moved(_fourier), [16]), (lambda: Moved(_restrided), [16]),
        (lambda: _normed(nn.utils.parametrizations.weight_norm), [16, 12]),
        (lambda: _normed(nn.utils.weight_norm), [16, 12]),
    ],
    ids=[
        "rotary", "fused", "experts", "put", "along", "fold", "fourier", "strides", "weight norm",
        "weight norm by hooks",
    ],
)  # fmt: skip
def test_groups_hold(make: Callable[[], nn.Module], widths: list[int]) -> None:
    torch.manual_seed(0)
    model = make()
    coupling = couple(model, X)
    assert [group.size for group in coupling.groups] == widths
    if make is not Rotary and not hasattr(getattr(model, "1", None), "weight_g"):
        check(model, coupling, X)


def test_experts_of_a_grouped_product_keep_multiples_of_what_its_kernel_takes() -> None:
    model = Experts(True)
    coupling = couple(model, X)
    assert [(group.size, group.multiple) for group in coupling.groups] == [(32, 8), (16, 8), (16, 8)]
    keep = random_keep(coupling, 0.6)
    assert all(int(mask.sum()) % 8 == 0 for mask in keep.values())
    assert deviation(model, coupling, keep, (X,)) < 1e-5  # there is no kernel for double precision


def test_whole_heads_of_torchs_attention_go_with_the_channels_at_their_places() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.take, self.give = nn.Linear(10, 32), nn.Linear(32, 5)
            self.attend = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.take(x)
            out: Tensor = self.give(y + self.attend(y, y, y, need_weights=False)[0])
            return out

    model = Attending()
    coupling = couple(model, X)
    assert [(group.id, group.size, group.each) for group in coupling.groups] == [("take", 4, 8)]
    check(model, coupling, X)


def test_a_removed_direction_of_weight_normalisation_keeps_its_values() -> None:
    model = _normed(nn.utils.parametrizations.weight_norm)
    coupling = couple(model, X)
    rows = {
        part.name: part.zeroed for part in coupling.groups[0].slices if part.name.startswith("1.") and part.dim == 0
    }
    assert rows == {
        "1.bias": True, "1.parametrizations.weight.original0": True, "1.parametrizations.weight.original1": False,
    }  # fmt: skip
    keep = {coupling.groups[0].id: torch.arange(16) > 2}
    resize.zero(model, coupling, keep)
    assert bool(model(X).isfinite().all())


class TestOutputs:
    """What counts of what a model returns."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(10, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.inner(x).relu()
            return {"features": y, "logits": self.head(y)}

    def test_all_of_it(self) -> None:
        assert couple(self.Both(), X).groups == ()

    def test_a_part_of_it(self) -> None:
        coupling = couple(self.Both(), X, outputs=lambda out: out["logits"])
        assert coupling.ids == ("inner",)


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize(
    ("make", "x"),
    [(lambda: Recurrent("LSTM", num_layers=2), TOKENS), (lambda: _normed(nn.utils.parametrizations.weight_norm), X),
     (lambda: Experts(False), X)],
    ids=["LSTM", "weight norm", "experts"],
)  # fmt: skip
def test_trained_by_iee_and_loaded_again(make: Callable[[], nn.Module], x: Tensor, thin: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh = make(), make()
    model(x), fresh(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pattern = regrow.Channels(params=0.6, round_to=4, thin=thin)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=regrow.IEE(h=2, j=2, q=2), total_steps=24, example_inputs=x
    )
    for _ in range(24):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    before = model.eval()(x).detach()
    compact = sparsifier.compact()
    assert sum(p.numel() for p in compact.parameters()) <= 0.6 * sum(p.numel() for p in fresh.parameters())
    after = compact(x).detach()
    assert bool(after.isfinite().all())
    assert difference([before], [after]) < 1e-5
    regrow.save(compact, tmp_path / "thin")
    assert torch.equal(regrow.load(fresh, tmp_path / "thin").eval()(x), after)
