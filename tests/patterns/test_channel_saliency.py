"""Scores of channels against sums written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from channel_engine import DATA, IEE, network


def attached(thin: bool, criterion: Any) -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pattern = regrow.Channels(flops=0.4, round_to=2, thin=thin)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=IEE, criterion=criterion, total_steps=60, example_inputs=DATA[0][0]
    )
    return model, optimizer, sparsifier


def by_hand(model: nn.Module, active: Tensor, group: str) -> Tensor:
    """|Σ γ·∂γ + β·∂β| over the norms of the group (w·∂w of the filters where it has none), of full width."""
    norms = {"stem.0": ("stem.1", "first.7"), "first.0": ("first.1", "first.4"), "second": ()}[group]
    full = torch.zeros(len(active))
    index = active if model.get_parameter(f"{group}.weight").shape[0] < len(active) else torch.ones_like(active)
    for norm in norms:
        for name in ("weight", "bias"):
            p = model.get_parameter(f"{norm}.{name}")
            assert p.grad is not None
            full[index] += (p * p.grad).detach()
    if not norms:
        p = model.get_parameter(f"{group}.weight")
        assert p.grad is not None
        full[index] += (p * p.grad).detach().sum((1, 2, 3))
    return full.abs()


@pytest.mark.parametrize("thin", [True, False])
def test_taylor_is_the_sum_over_the_norms_of_a_group(thin: bool) -> None:
    model, optimizer, sparsifier = attached(thin, "taylor")
    units = sparsifier._units
    assert units is not None
    expected: dict[str, Tensor] = {}
    for x, y in DATA[:3]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for group, mask in units.active.items():  # type: ignore[attr-defined]
            score = by_hand(model, mask, group) / 3
            expected[group] = expected[group] + score if group in expected else score
        optimizer.step()
    for group, mask in units.active.items():  # type: ignore[attr-defined]
        found = units.saliency.scores("prune", group, 3)
        assert torch.allclose(found[mask], expected[group][mask], rtol=1e-5, atol=1e-9)
        assert (found[mask] > 0).all()


@pytest.mark.parametrize("name", ["taylor", "magnitude", "gradient"])
def test_a_function_of_the_users_is_called_whatever_its_name(name: str) -> None:
    calls = []

    def own(weight: Tensor, grad: Tensor) -> Tensor:
        calls.append(weight.shape)
        return grad.square()

    own.__name__ = name
    model, optimizer, _ = attached(True, own)
    x, y = DATA[0]
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert calls


def test_a_step_with_a_nan_adds_nothing() -> None:
    model, optimizer, sparsifier = attached(True, "taylor")
    units = sparsifier._units
    assert units is not None
    for i, (x, y) in enumerate(DATA[:2]):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if i:
            grad = model.get_parameter("first.1.weight").grad
            assert grad is not None
            grad[0] = torch.nan
            before = units.saliency.scores("prune", "stem.0", 1).clone()
        sparsifier.prepare_step()
        if i:
            units.saliency.close_step()
            assert torch.equal(units.saliency.scores("prune", "stem.0", 1), before)
            break
        optimizer.step()


@pytest.mark.parametrize(("criterion", "power"), [("magnitude", 1), ("l2", 2)])
def test_norms_of_filters_are_relative_to_their_group(criterion: str, power: int) -> None:
    _, _, sparsifier = attached(False, criterion)
    units = sparsifier._units
    assert units is not None
    with sparsifier.full_width():
        found = units.saliency.scores("prune", "second", 0)
        weight = sparsifier._states["second.weight"].values().abs() ** power
    expected = weight.mean((1, 2, 3))
    assert torch.allclose(found, expected / expected.mean(), rtol=1e-5)


def test_random_scores_depend_on_seed_step_and_group_only() -> None:
    _, _, sparsifier = attached(True, "random")
    units = sparsifier._units
    assert units is not None
    one, again = (units.saliency.scores("prune", "second", 7) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, units.saliency.scores("prune", "second", 8))


def test_a_function_of_the_users_is_averaged_over_filters() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(flops=0.4, round_to=2, thin=False), method=IEE,
        criterion=lambda weight, grad: grad.abs(), total_steps=60, example_inputs=DATA[0][0],
    )  # fmt: skip
    x, y = DATA[0]
    nn.functional.cross_entropy(model(x), y).backward()
    grad = model.get_parameter("second.weight").grad
    assert grad is not None
    expected = grad.abs().mean((1, 2, 3))
    sparsifier.prepare_step()
    sparsifier._engine.saliency.close_step()
    found = sparsifier._engine.saliency.scores("prune", "second", 1)
    assert torch.allclose(found, expected / expected.mean(), rtol=1e-5)
