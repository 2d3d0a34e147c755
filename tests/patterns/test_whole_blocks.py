"""Whole blocks beside channels: selection, training with a block gone, and what is left of it."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from channel_models import Parallel
from priced import made_up
from regrow.errors import UserError
from regrow.latency.network import network_of


class Net(nn.Module):
    """Three residual blocks: with a norm at its end, before its first layer, and with neither but a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.post = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.pre = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10),
            nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1, bias=False),
        )  # fmt: skip
        self.plain = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.post(x)).relu()
        x = x + self.pre(x)
        x = x + self.plain(x)
        return self.head(x.mean((2, 3)))


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(5)
    return [(torch.randn(8, 1, 6, 6, generator=source), torch.randint(0, 5, (8,), generator=source)) for _ in range(n)]


DATA = batches(60)
IEE = regrow.IEE(h=4, j=3, q=3, update_end=0.8)
OPTIONS: dict[str, Any] = {"flops": 0.3, "round_to": 2, "min_channels": 0.6, "blocks": True}


def attached(model: nn.Module, method: Any = IEE, criterion: str = "taylor", steps: int = 60, **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    pattern = regrow.Channels(**{**OPTIONS, **options})
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, criterion=criterion, total_steps=steps,
        example_inputs=DATA[0][0],
    )  # fmt: skip
    return sparsifier, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def gone(sparsifier: Any) -> set[str]:
    return {name for name, (kept, _) in sparsifier._units.widths().items() if name.startswith("block") and not kept}


METHODS = {
    "iee": (IEE, "taylor"),
    "iee-magnitude": (IEE, "magnitude"),
    "iee-start": (regrow.IEE(h=4, j=3, q=3, start="criterion", start_steps=5), "taylor"),
    "halp": (regrow.HALP(prunings=5, interval=4), "taylor"),
    "mest": (regrow.MEST(interval=5), "magnitude"),
    "oneshot": (regrow.OneShot(criterion="l2"), "taylor"),
    "gmp": (regrow.GMP(interval=5), "magnitude"),
    "set": (regrow.SET(interval=5), "magnitude"),
}


SOLVED = [*((name, "joint") for name in METHODS), ("halp", "grouped"), ("iee", "grouped")]


@pytest.mark.parametrize(("name", "solver"), SOLVED)
def test_every_method_keeps_blocks_whole_and_the_budget(name: str, solver: str) -> None:
    model = network()
    sparsifier, optimizer = attached(model, *METHODS[name], solver=solver)
    units = sparsifier._units
    for start in range(0, 60, 6):
        train(model, optimizer, DATA[start : start + 6])
        for block in units.coupling.blocks:
            assert len({bool(units.active[member].any()) for member in block.members}) == 1
            for member in block.inner:
                kept = int(units.active[member].sum())
                assert kept == 0 or kept >= units.floor[member]
    (now, end) = units.costs()["flops"]
    assert now <= end * (1 + 1e-9)


PARAMS = {"flops": None, "params": 0.3}  # a layer that makes the stream is in a block that is gone


@pytest.mark.parametrize(("name", "options"), [("iee", {}), ("iee-magnitude", {}), ("halp", {}), ("mest", PARAMS)])
def test_thin_training_computes_what_masked_training_does(name: str, options: dict[str, Any]) -> None:
    runs = []
    for thin in (True, False):
        model = network().double()
        data = [(x.double(), y) for x, y in DATA]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        method, criterion = METHODS[name]
        sparsifier = regrow.Sparsifier(
            model, optimizer, pattern=regrow.Channels(**{**OPTIONS, **options}, thin=thin), method=method,
            criterion=criterion, total_steps=60, example_inputs=data[0][0],
        )  # fmt: skip
        train(model, optimizer, data[:50])
        with sparsifier.full_width():
            runs.append((sparsifier.masks, {k: v.clone() for k, v in model.state_dict().items()}, gone(sparsifier)))
    (thin_masks, thin_state, thin_gone), (masks, state, lost) = runs
    assert thin_gone == lost
    assert thin_gone
    assert all(torch.equal(thin_masks[key], masks[key]) for key in masks)
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):  # a norm that is not run counts no batches
            continue
        assert torch.allclose(value, thin_state[key], atol=1e-9), key


def test_what_a_layer_that_is_not_run_keeps_is_trained_as_in_masked_training() -> None:
    runs = []
    for thin in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), Parallel(), Parallel(), nn.Linear(8, 5)).double()
        data = [(torch.randn(8, 5).double(), torch.randint(5, (8,))) for _ in range(12)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        pattern = regrow.Channels(flops=0.55, round_to=1, min_channels=6, blocks=True, thin=thin)
        sparsifier = regrow.Sparsifier(
            model, optimizer, pattern=pattern, method=regrow.IEE(h=6), total_steps=36, example_inputs=data[0][0]
        )
        train(model, optimizer, data)
        assert gone(sparsifier)
        with sparsifier.full_width():
            runs.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, p in runs[0].items():  # some rows of `both` are of no group: decay goes on, as it does with momentum
        assert torch.allclose(p, runs[1][name], rtol=0, atol=1e-12), name


def pruned(thin: bool = True, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A model that trains on with blocks gone."""
    model = network()
    options = {"flops": 0.25, "thin": thin, **options}
    sparsifier, optimizer = attached(model, regrow.OneShot(criterion="l2"), **options)
    train(model, optimizer, DATA[:10])
    assert gone(sparsifier)
    return model, sparsifier, optimizer


def test_a_block_that_is_gone_is_not_computed_and_costs_nothing() -> None:
    model, sparsifier, _ = pruned()
    units = sparsifier._units
    lost = [block for block in units.coupling.blocks if block.id in gone(sparsifier)]
    for block in lost:
        for name in block.skips:
            layer = model.get_submodule(name)
            assert "forward" in vars(layer)
            assert all(p.numel() == 0 for p in layer.parameters())
    thin = sparsifier.compact()
    x = DATA[0][0]
    counted = regrow.tracing.flops.count_flops(thin, x)
    exact = units.prices.cost({name: kept for name, (kept, _) in units.widths().items()})["flops"]
    assert counted.total == pytest.approx(exact, rel=1e-12)
    assert not counted.uncounted


def test_parameters_are_priced_to_the_number() -> None:
    _, sparsifier, _ = pruned(flops=None, params=0.25)
    units = sparsifier._units
    exact = units.prices.cost({name: kept for name, (kept, _) in units.widths().items()})["params"]
    assert exact == sum(p.numel() for p in sparsifier.compact().parameters())


def test_values_that_come_back_are_the_most_recent_ones() -> None:
    model = network()
    sparsifier, optimizer = attached(model, regrow.IEE(h=4, j=3, q=3, start="criterion", start_steps=5), flops=0.25)
    train(model, optimizer, DATA[:5])
    with sparsifier.full_width():
        held = {name: p.detach().clone() for name, p in model.named_parameters()}
    while sparsifier.phase != "explore":
        lost = gone(sparsifier)
        train(model, optimizer, DATA[:1])
    assert lost
    lost = [block for block in sparsifier._units.coupling.blocks if block.id in gone(sparsifier)]
    assert lost
    widened = dict(model.named_parameters())
    for block in lost:
        for name in block.skips:
            assert "forward" not in vars(model.get_submodule(name))
        for part in (part for member in block.members for part in sparsifier._units.coupling[member].slices):
            if part.name in widened:
                assert widened[part.name].shape == held[part.name].shape
                assert bool(widened[part.name].abs().any())


def test_growth_brings_a_block_back() -> None:
    model = network()
    sparsifier, optimizer = attached(model, IEE, "magnitude")
    seen: list[set[str]] = []
    for step in range(60):
        train(model, optimizer, DATA[step : step + 1])
        if not seen or seen[-1] != gone(sparsifier):
            seen.append(gone(sparsifier))
    assert any(before - after for before, after in itertools.pairwise(seen))


@pytest.mark.parametrize("thin", [True, False])
def test_resuming_while_a_block_is_gone(thin: bool) -> None:
    def fresh(seed: int) -> tuple[nn.Module, Any, Any]:
        model = network(seed)
        return model, *attached(model, flops=0.25, thin=thin)

    model, sparsifier, optimizer = fresh(3)
    stop = 0
    for step in range(48):
        train(model, optimizer, DATA[step : step + 1])
        if gone(sparsifier) and step > 10:
            stop = step + 1
            break
    assert stop
    with sparsifier.full_width():
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, optimizer, DATA[stop:])
    other, again, adam = fresh(4)
    with again.full_width():
        other.load_state_dict(saved[0])
        adam.load_state_dict(saved[1])
        again.load_state_dict(saved[2])
    assert gone(again)
    train(other, adam, DATA[stop:])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert gone(again) == gone(sparsifier)


def test_a_compact_model_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    _model, sparsifier, _ = pruned()
    thin = sparsifier.compact().eval()
    x = DATA[1][0]
    expected = thin(x)
    regrow.save(thin, tmp_path / "thin")
    loaded = regrow.load(network(9), tmp_path / "thin").eval()
    assert torch.equal(loaded(x), expected)
    assert torch.equal(copy.deepcopy(thin)(x), expected)
    for name in ("model.onnx", "model.pt2", "model.safetensors"):
        regrow.export(thin, tmp_path / name, example_inputs=x)  # which compares what the file computes


def test_what_blocks_do_not_go_with() -> None:
    with pytest.raises(UserError, match='distribution="uniform" keeps a share of everything, and blocks go whole'):
        regrow.Channels(flops=0.5, blocks=True, distribution="uniform")


@pytest.mark.parametrize("thin", [True, False])
def test_an_optimizer_that_fails_on_what_has_no_entries_is_refused(thin: bool) -> None:
    def attach(model: nn.Module, optimizer: Any) -> None:
        regrow.Sparsifier(
            model, optimizer, pattern=regrow.Channels(**OPTIONS, thin=thin), method=regrow.OneShot(criterion="l2"),
            total_steps=9, example_inputs=DATA[0][0],
        )  # fmt: skip
        train(model, optimizer, DATA[:2])

    model = network()
    optimizer = torch.optim.Adafactor(model.parameters())
    state = torch.get_rng_state()
    if thin:
        with pytest.raises(UserError, match=r"Adafactor fails on parameters that have no entries.*ZeroDivisionError"):
            attach(model, optimizer)
        assert not optimizer.state
        assert torch.equal(torch.get_rng_state(), state)
    else:
        attach(model, optimizer)


def test_a_budget_that_only_fewer_blocks_can_meet() -> None:
    model = network()
    with pytest.raises(UserError, match="cannot be met"):
        attached(model, flops=0.06, blocks=False, min_channels=0.5)
    sparsifier, optimizer = attached(model, regrow.OneShot(criterion="l2"), flops=0.06, min_channels=0.5)
    train(model, optimizer, DATA[:5])
    assert len(gone(sparsifier)) >= 2


def test_a_table_prices_what_is_left() -> None:
    x = DATA[0][0]
    table = made_up(network().eval(), x)
    model = network()
    sparsifier, optimizer = attached(
        model, regrow.OneShot(criterion="l2"), flops=None, latency=0.4, table=table, min_channels=0.6
    )
    train(model, optimizer, DATA[:5])
    assert gone(sparsifier)
    budgeted = sparsifier._units.costs()["latency"][0] * table.model()
    thin = sparsifier.compact().eval()
    left = table.predict(table.known(network_of(thin, x)))
    assert sparsifier._units.budgets._gated.keys() == {"batch_norm:10", "relu:11"}  # of the block that begins with them
    assert left == pytest.approx(budgeted, rel=1e-9)
    dense = network_of(network().eval(), x)
    assert table.known(dense) == dense
