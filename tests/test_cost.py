"""Training cost against the published formulas."""

import pytest
import torch
import torchvision

from regrow.cost import PhaseSteps, dense_gradient_cost, training_cost
from regrow.schedule import Trains
from regrow.tracing.flops import ModelFlops, count_flops

# --- training

FLOPS = ModelFlops(total=100.0, by_parameter={"a": 60.0, "b": 40.0}, other=0.0)
DENSITY = {"a": 0.1, "b": 0.3}
F_S, F_D = 18.0, 100.0  # 60·0.1 + 40·0.3


def phase(
    steps: int, dense_gradient_steps: int = 0, densities: dict[str, float] = DENSITY, trains: Trains = "active"
) -> PhaseSteps:
    booked = PhaseSteps(trains)
    booked.add(steps, dense_gradient_steps, densities)
    return booked


def total(ledger: dict[str, PhaseSteps]) -> float:
    cost = training_cost(FLOPS, ledger)
    assert cost["total"] == pytest.approx(sum(v for k, v in cost.items() if k != "total"))
    return cost["total"]


def test_dense_static_and_set():
    assert total({"estimate": PhaseSteps(steps=100)}) == 1.0
    assert total({"estimate": phase(100)}) == pytest.approx(3 * F_S / (3 * F_D))


def test_rigl_with_interval_as_in_the_paper():
    # every 100th step takes the dense gradient: ΔT of the formula is 99
    interval, updates = 100, 7
    ledger = {"estimate": phase(interval * updates, dense_gradient_steps=updates)}
    delta = interval - 1
    per_step = (3 * F_S * delta + 2 * F_S + F_D) / (delta + 1)
    assert total(ledger) == pytest.approx(per_step / (3 * F_D))


def test_snfs_takes_dense_gradients_always():
    assert total({"estimate": phase(50, dense_gradient_steps=50)}) == pytest.approx((2 * F_S + F_D) / (3 * F_D))


def test_iee_by_phase():
    ledger = {"estimate": phase(150), "improve": phase(150), "explore": phase(150, trains="removed")}
    ledger["fixed"] = phase(550)
    cost = training_cost(FLOPS, ledger)
    assert list(cost) == ["estimate", "improve", "explore", "fixed", "total"]
    whole = 1000 * 3 * F_D
    assert cost["estimate"] == cost["improve"] == pytest.approx(150 * 3 * F_S / whole)
    assert cost["explore"] == pytest.approx(150 * (2 * F_D + F_D - F_S) / whole)
    assert cost["fixed"] == pytest.approx(550 * 3 * F_S / whole)
    assert cost["total"] == pytest.approx(sum(cost[name] for name in ledger))


def test_unfrozen_exploration_costs_a_dense_step():
    assert total({"explore": phase(10, dense_gradient_steps=10, trains="all")}) == pytest.approx(1.0)


def test_gradual_pruning_averages_the_density():
    booked = PhaseSteps()
    for step in range(10):
        booked.add(1, 0, dict.fromkeys("ab", 1 - 0.09 * step))
    mean = sum(1 - 0.09 * step for step in range(10)) / 10
    assert total({"estimate": booked}) == pytest.approx(mean)


def test_densities_that_change_with_the_dense_gradient_steps():
    booked = PhaseSteps()
    booked.add(10, 0, {"a": 0.5})
    booked.add(5, 5, {"a": 0.2})
    sparse, late = 0.5 * 60 + 40, 0.2 * 60 + 40
    expected = (10 * 3 * sparse + 5 * (2 * late + F_D)) / (15 * 3 * F_D)
    assert total({"estimate": booked}) == pytest.approx(expected)


def test_share_of_a_longer_run():
    cost = training_cost(FLOPS, {"estimate": phase(10)}, total_steps=100)
    assert cost["total"] == pytest.approx(10 * F_S / (100 * F_D))


def test_nothing_trained_and_nothing_counted():
    assert training_cost(FLOPS, {}) == {"total": 0.0}
    nothing = ModelFlops(total=0.0, by_parameter={"a": 0.0}, other=0.0)
    assert training_cost(nothing, {"estimate": PhaseSteps(steps=3, density_steps={"a": 0.3})})["total"] == 1.0


def test_unknown_parameter_in_the_ledger():
    with pytest.raises(KeyError, match="'c' is not a parameter"):
        training_cost(FLOPS, {"estimate": PhaseSteps(steps=3, density_steps={"c": 0.3})})


@pytest.mark.parametrize(
    "ledger",
    [
        {"estimate": phase(50, dense_gradient_steps=50), "fixed": phase(30)},  # a preview in memory, or SNFS
        {"estimate": phase(200, dense_gradient_steps=2), "fixed": phase(100)},  # RigL
        {"estimate": phase(40, dense_gradient_steps=10), "improve": phase(40, dense_gradient_steps=10)},
        {
            "estimate": phase(40),
            "explore": phase(40, trains="removed"),
            "fixed": phase(40),
        },
        {"estimate": PhaseSteps(steps=10)},
    ],
)
@pytest.mark.parametrize("total_steps", [None, 1000])
def test_dense_gradients_are_what_a_run_without_them_would_save(ledger, total_steps):
    without = {name: phase(one.steps, 0, dict(DENSITY) if one.density_steps else {}) for name, one in ledger.items()}
    costs = [training_cost(FLOPS, one, total_steps) for one in (ledger, without)]
    found = dense_gradient_cost(FLOPS, ledger, total_steps)
    for name in ledger.keys() - {"explore"}:
        assert found[name] == pytest.approx(costs[0][name] - costs[1][name])
    assert "explore" not in found


def test_dense_gradients_of_exploring_weights_that_train_are_no_extra():
    assert dense_gradient_cost(FLOPS, {"explore": phase(10, dense_gradient_steps=10, trains="all")}) == {}
    nothing = ModelFlops(total=0.0, by_parameter={"a": 0.0}, other=0.0)
    assert dense_gradient_cost(nothing, {"estimate": phase(3, 1, {"a": 0.3})}) == {"estimate": 0.0}
    assert dense_gradient_cost(FLOPS, {}) == {}


# --- the published costs of ResNet-50


def erk(shapes: dict[str, torch.Size], density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities by the slow way: layers over 1 become dense and the rest is solved again."""
    dense: set[str] = set()
    while True:
        free = {n: s for n, s in shapes.items() if n not in dense}
        budget = density * sum(s.numel() for s in shapes.values()) - sum(shapes[n].numel() for n in dense)
        scale = budget / sum(sum(s) for s in free.values())
        result = {n: scale * sum(s) / s.numel() for n, s in free.items()}
        over = {n for n, d in result.items() if d > 1}
        if not over:
            return result | dict.fromkeys(dense, 1.0)
        dense |= over


@pytest.mark.parametrize(
    ("distribution", "sparsity", "published"),
    [("uniform", 0.8, 0.23), ("uniform", 0.9, 0.10), ("erk", 0.8, 0.42), ("erk", 0.9, 0.25)],
)
def test_resnet50_costs_what_the_rigl_paper_says(distribution, sparsity, published):
    model = torchvision.models.resnet50().to("meta")
    flops = count_flops(model, torch.randn(1, 3, 224, 224))
    shapes = {n: p.shape for n, p in model.named_parameters() if p.dim() > 1}
    if distribution == "uniform":
        densities = dict.fromkeys(list(shapes)[1:], 1 - sparsity)  # the first layer is dense
    else:
        densities = erk(shapes, 1 - sparsity)
    booked = PhaseSteps()
    booked.add(100, 1, densities)
    ours = training_cost(flops, {"estimate": booked})["total"]
    # the dense first layer alone is 2.9% of the FLOPs: the published 0.10 leaves it out, though 0.23 has it
    assert ours == pytest.approx(published, abs=0.03 if published == 0.10 else 0.01)
