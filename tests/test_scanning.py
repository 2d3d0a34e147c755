"""`regrow.scan`: what it measures is what brute force measures, and nothing of the model has changed afterwards."""

from __future__ import annotations

import copy
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.patterns.entries import EntryPattern
from regrow.scanning import SPARSITIES

BATCHES = [(torch.randn(n, 1, 6, 6), torch.randint(4, (n,))) for n in (8, 8, 3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip


def two_layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 4))


@torch.no_grad()
def loss_of(model: nn.Module) -> tuple[float, float]:
    """Mean loss and accuracy over all examples, written out."""
    model = copy.deepcopy(model).eval()
    loss = right = count = 0.0
    for x, y in BATCHES:
        out = model(x)
        loss += float(nn.functional.cross_entropy(out, y)) * len(y)
        right += float((out.argmax(1) == y).float().mean()) * len(y)
        count += len(y)
    return loss / count, right / count


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x.view(torch.uint8) if x.dim() else x, b[n].view(torch.uint8) if x.dim() else b[n])
        for n, x in a.items()
    )


def test_losses_are_those_of_brute_force() -> None:
    model = two_layers()
    found = regrow.scan(model, BATCHES, sparsities=(0.25, 0.5, 0.99))
    assert (found.loss, found.accuracy) == loss_of(model)
    assert (found.batches, found.examples, found.pattern, found.criterion) == (3, 19, "weights", "magnitude")
    assert [(layer.name, layer.shape, layer.units) for layer in found.layers] == [
        ("1.weight", (6, 36), 216), ("3.weight", (4, 6), 24),
    ]  # fmt: skip
    for layer in found.layers:
        assert layer.kept == tuple(max(1, round((1 - share) * layer.units)) for share in (0.25, 0.5, 0.99))
        for kept, loss, accuracy in zip(layer.kept, layer.loss, layer.accuracy, strict=True):
            pruned = copy.deepcopy(model)
            weight = pruned.get_parameter(layer.name).data.view(-1)
            weight[weight.abs().argsort(descending=True)[kept:]] = 0
            assert (loss, accuracy) == loss_of(pruned)


def test_a_criterion_with_gradients_sees_those_of_the_batches() -> None:
    model = two_layers()
    found = regrow.scan(model, BATCHES, sparsities=(0.5,), criterion="taylor")
    scores = torch.zeros(4, 6)
    for x, y in BATCHES:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        weight = model[3].weight
        assert weight.grad is not None
        scores += (weight * weight.grad).abs().detach()
    model[3].weight.data.view(-1)[scores.view(-1).argsort(descending=True)[12:]] = 0
    assert found.layers[1].loss == (loss_of(model)[0],)


def test_channels_go_with_all_that_goes_with_them() -> None:
    model = network()
    example = BATCHES[0][0]
    found = regrow.scan(model, BATCHES, regrow.Channels(flops=0.5), sparsities=(0.5, 0.95), example_inputs=example)
    assert [(group.name, group.units, group.kept) for group in found.layers] == [("0", 8, (4, 1)), ("3", 8, (4, 1))]
    for place, group in zip((0, 3), found.layers, strict=True):
        for kept, loss in zip(group.kept, group.loss, strict=True):
            pruned = copy.deepcopy(model)
            gone = pruned[place].weight.abs().mean((1, 2, 3)).argsort(descending=True)[kept:]
            for module in (pruned[0], pruned[1]) if place == 0 else (pruned[3],):
                for tensor in [*module.parameters(), *module.buffers()]:
                    if tensor.dim():
                        tensor.data[gone] = 0
            assert loss == pytest.approx(loss_of(pruned)[0], rel=1e-6)


@pytest.mark.parametrize(
    ("pattern", "units"),
    [(regrow.Blocks((2, 1), 0.5), [36, 288, 64]), (regrow.Weights(0.9, exclude=["7"]), [72, 576])],
)
def test_units_are_those_of_the_pattern(pattern: EntryPattern, units: list[int]) -> None:
    """Also the first layer's, which a uniform distribution would leave out."""
    found = regrow.scan(network(), BATCHES[:1], pattern)
    assert found.sparsities == SPARSITIES
    assert [layer.units for layer in found.layers] == units
    for layer in found.layers:
        assert layer.kept == tuple(max(1, round((1 - share) * layer.units)) for share in SPARSITIES)


def test_groups_of_m_have_one_sparsity() -> None:
    model = network()
    found = regrow.scan(model, BATCHES, regrow.NM(1, 4))
    assert [(layer.name, layer.kept) for layer in found.layers] == [("3.weight", (144,)), ("7.weight", (32,))]
    rows = model[7].weight.data.view(-1, 4)
    rows[torch.arange(4) != rows.abs().argmax(1, keepdim=True)] = 0
    assert found.layers[1].loss == (loss_of(model)[0],)


WAYS = {
    "weights": {},
    "gradients": {"criterion": "taylor", "pattern": regrow.Weights(0.5)},
    "random": {"criterion": "random"},
    "channels": {"pattern": regrow.Channels(flops=0.5), "example_inputs": BATCHES[0][0], "criterion": "taylor"},
    "statistics": {"recalibrate": BATCHES},
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_model_has_changed(way: str) -> None:
    """Parameters, buffers, gradients, modes and the random state, with numbers that only bits tell apart."""
    model = network()
    with torch.no_grad():
        model[3].weight.view(-1)[:2] = torch.tensor([-0.0, 0.0])
    model[0].eval()
    model[7].weight.grad = given = torch.ones(4, 32)
    before, modes = everything(model), [module.training for module in model.modules()]
    dice = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = regrow.scan(model, iter(BATCHES), sparsities=(0.5, 0.9), **WAYS[way])
    assert same_bits(everything(model), before)
    assert [module.training for module in model.modules()] == modes
    assert model[7].weight.grad is given
    assert torch.equal(given, torch.ones(4, 32))
    assert model[0].weight.grad is None
    assert torch.equal(torch.get_rng_state(), dice[0])
    assert random.getstate() == dice[1]
    assert np.array_equal(np.random.get_state()[1], dice[2])  # noqa: NPY002
    assert found == regrow.scan(model, BATCHES, sparsities=(0.5, 0.9), **WAYS[way])  # and what it finds is the same


@pytest.mark.parametrize("pattern", [None, regrow.Channels(flops=0.5)])
def test_whatever_ends_it_early_leaves_nothing_pruned(pattern: regrow.Channels | None) -> None:
    model = network()
    before, modes = everything(model), [module.training for module in model.modules()]
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(KeyboardInterrupt):
        regrow.scan(model, BATCHES, pattern, loss=loss, example_inputs=BATCHES[0][0])
    assert calls == 7
    assert same_bits(everything(model), before)
    assert [module.training for module in model.modules()] == modes


def test_statistics_are_re_estimated_where_batches_are_given() -> None:
    model = network()
    found = regrow.scan(model, BATCHES, sparsities=(0.5,), recalibrate=BATCHES)
    assert found.recalibrated
    whole = copy.deepcopy(model)
    regrow.recalibrate(whole, BATCHES)
    assert found.loss == loss_of(whole)[0]
    weight = model[0].weight.data.view(-1)
    weight[weight.abs().argsort(descending=True)[36:]] = 0
    regrow.recalibrate(model, BATCHES)
    assert found.layers[0].loss == (loss_of(model)[0],)


def test_a_loss_of_ones_own() -> None:
    model = two_layers()
    batches = [{"x": x} for x, _ in BATCHES]
    steps: list[tuple[int, int]] = []
    found = regrow.scan(
        model, batches, sparsities=(0.5,), loss=lambda model, batch: model(batch["x"]).square().mean(),
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert found.accuracy is None
    assert [layer.accuracy for layer in found.layers] == [(), ()]
    assert found.examples == 19
    assert steps == [(1, 3), (2, 3), (3, 3)]
    with torch.no_grad():
        by_hand = sum(float(model(x).square().mean()) * len(x) for x, _ in BATCHES) / 19
    assert found.loss == by_hand


def test_a_network_that_is_sparse_already_loses_what_it_lacks_first() -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.8, "er"), method=regrow.Static(), total_steps=9
    )
    found = regrow.scan(model, BATCHES, sparsities=(0.5,))
    assert {layer.loss for layer in found.layers} == {(found.loss,)}
    assert sparsifier.density() == pytest.approx(0.2, abs=0.002)


def test_a_loss_that_is_not_finite_counts_as_infinite() -> None:
    model = two_layers()
    found = regrow.scan(
        model, BATCHES, sparsities=(0.2, 0.5),
        loss=lambda model, batch: torch.tensor(float("nan") if (model[3].weight == 0).any() else 1.0),
    )  # fmt: skip
    assert found.layers[1].loss == (float("inf"), float("inf"))
    assert found.counts(0.4) == {"1.weight": 120, "3.weight": 24}  # which nothing is taken of


BAD = [
    ({"batches": []}, "batches is empty: give a few batches of data"),
    ({"batches": [torch.randn(2, 1, 6, 6)]}, r"a batch is a Tensor, not \(inputs, labels\): give loss="),
    ({"sparsities": (0.9, 0.5)}, "sparsities must be one or several numbers that increase"),
    ({"sparsities": ()}, "sparsities must be one or several numbers that increase"),
    ({"sparsities": (50,)}, r"sparsities has 50, but they must lie in \(0, 1\); did you mean 0.5 \(50%\)\?"),
    ({"pattern": "weights"}, "pattern is 'weights', but scan takes Weights, Blocks, NM or Channels"),
    ({"pattern": regrow.NM(), "sparsities": (0.5,)}, r"NM\(2, 4\) has one sparsity, 0.5: leave out sparsities"),
    ({"pattern": regrow.Channels(flops=0.5)}, "pass example_inputs=one batch to scan"),
    ({"pattern": regrow.Channels(flops=0.5, normalised=True)}, "set normalised=False"),
    ({"criterion": "magnitud"}, "did you mean 'magnitude'?"),
    (
        {"loss": lambda model, batch: model(batch[0])},
        r"loss must return a scalar tensor, .* not \('torch.float32', 8, 4\)",
    ),
    (
        {"loss": lambda model, batch: torch.tensor(1j)},
        r"loss must return a scalar tensor, .* not \('torch.complex64',\)",
    ),
    ({"loss": lambda model, batch: (torch.tensor(1.0), 93.0)}, r"from 0 to 1; did you mean 0\.93 \(93%\)"),
    ({"loss": lambda model, batch: (torch.tensor(1.0), "all")}, "loss returned 'all' as the accuracy, which must be a"),
    ({"loss": lambda model, batch: torch.tensor(float("nan"))}, "the loss of the whole network is nan"),
    ({"loss": lambda model, batch: torch.ones(()), "criterion": "taylor"}, "loss must return a tensor with a gradient"),
    ({"pattern": regrow.Weights(0.5, exclude=["fc"])}, "exclude names 'fc'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input(options: dict[str, object], message: str) -> None:
    model = two_layers()
    before = everything(model)
    with pytest.raises(regrow.UserError, match=message):
        regrow.scan(model, **{"batches": BATCHES, **options})
    assert same_bits(everything(model), before)


def test_inference_mode_makes_no_difference() -> None:
    model = two_layers()
    with torch.inference_mode():
        inside = regrow.scan(model, BATCHES, sparsities=(0.5,), criterion="taylor")
    assert inside == regrow.scan(model, BATCHES, sparsities=(0.5,), criterion="taylor")


def test_batches_of_a_loader_are_read_once() -> None:
    pairs = [(x[0], y[0]) for x, y in BATCHES for _ in range(4)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)
    found = regrow.scan(two_layers(), islice(loader, 2), sparsities=(0.5,))
    assert (found.batches, found.examples) == (2, 8)
