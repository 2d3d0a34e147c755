"""Plans against what the engine books while it trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import regrow
from engine import batches, network, train
from regrow import attach
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.methods import ACDC, GMP, HALP, IEE, METHODS, STE, OneShot, RigL, Static
from regrow.plan import StepTimes, matching_steps, planned_cost, planned_ledger, planned_seconds, steps_in_time
from regrow.schedule import Budget
from regrow.tracing.flops import count_flops
from test_lockstep import OPTIONS, STEPS

PLANS = [(METHODS[name](**options)) for name, options in OPTIONS.items() if not METHODS[name].shares_out] + [
    IEE(h=4, j=3, q=2, ramp=0.3),
    IEE(h=4, j=3, q=2, freeze=False),
    IEE(h=4, j=3, q=0),
    IEE(h=4, j=3, q=0, shadow_speed=0.1),
    IEE(h=4, j=3, q=2, shadow_speed=0.1, shadow_every=3),
    GMP(interval=6, begin_at=10, update_end=45),
    IEE(h=4, j=3, shadow_every=2),
    IEE(h=4, j=3, backward=0.5),
    IEE.sparse(h=4, j=3, previews=0.5),
    IEE.from_dense(h=4, j=3),
    IEE(h=4, j=3, q=2, shadow_speed=0.2),
    STE(every=4, update_end=0.7),
    STE(every=4, update_end=0.7, p=None),
    STE.topkast(backward=0.5, every=4),
    ACDC(sparse=9, dense=4),
    IEE(h=4, j=3, q=2, start="criterion"),
    IEE(h=4, j=3, q=0, start="criterion", start_steps=7),
    RigL(interval=6, start="criterion", start_steps=7),
    Static(start="criterion"),
    OneShot(),
    GMP(interval=6, begin_at=10, initial_sparsity=0.3, start_steps=5),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", PLANS, ids=lambda m: repr(m)[:60])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_plan_is_what_the_engine_books(method, criterion) -> None:
    if criterion == "taylor" and getattr(method, "q", 1) == 0:
        pytest.skip("taylor needs steps to explore")
    if criterion == "taylor" and method.name == "iee" and (method.backward or method.previews):
        pytest.skip("taylor has no preview in memory")
    if criterion == "taylor" and getattr(method, "p", None) is not None:
        pytest.skip("soft projections go by magnitude")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pattern = regrow.Weights(0.7, "erk")
    method, _ = attach.method(method, pattern, Criterion.of(criterion))
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, criterion=criterion, total_steps=STEPS
    )
    final = pattern.counts(model)
    train(model, optimizer, batches(STEPS))
    ledger = sparsifier.state_dict()["ledger"]
    plan = planned_ledger(method, Criterion.of(criterion), final, STEPS)
    assert list(plan) == list(ledger)
    for phase, entry in plan.items():
        assert (entry.steps, entry.dense_gradient_steps) == (
            ledger[phase]["steps"],
            ledger[phase]["dense_gradient_steps"],
        )
        assert entry.density_steps == pytest.approx(ledger[phase]["density_steps"], abs=1e-9)
        assert entry.gradient_density_steps == pytest.approx(ledger[phase]["gradient_density_steps"], abs=1e-9)
        assert entry.dense_density_steps == pytest.approx(ledger[phase]["dense_density_steps"], abs=1e-9)
    planned = planned_cost(method, Criterion.of(criterion), final, count_flops(model, batches(1)[0][0]), STEPS)
    assert planned == pytest.approx(STEPS * sparsifier.training_cost()["total"])


def test_matching_steps_spend_the_same() -> None:
    model = network()
    final = regrow.Weights(0.9, "erk").counts(model)
    flops = count_flops(model, batches(1)[0][0])
    magnitude = Criterion.of("magnitude")
    budget = planned_cost(IEE(h=10, j=10, q=10), magnitude, final, flops, 1000)
    for method in (RigL(interval=20), GMP(interval=20), Static(), METHODS["dense"]()):
        steps = matching_steps(method, magnitude, final, flops, budget)
        spent = planned_cost(method, magnitude, final, flops, steps)
        assert abs(spent - budget) <= 3  # dense steps
    with pytest.raises(UserError, match="rigl cannot be matched"):
        matching_steps(RigL(interval=5000), magnitude, final, flops, budget)


def test_a_method_that_never_has_an_update_is_refused() -> None:
    model = network()
    final, flops = regrow.Weights(0.9).counts(model), count_flops(model, batches(1)[0][0])
    with pytest.raises(UserError, match="total_steps=4294967296 is too short for one update"):
        matching_steps(RigL(update_end=0.0), Criterion.of("magnitude"), final, flops, 100.0)


PAPER = {"budget": Budget("constant", 0.2), "update_end": 1.0, "shadow_speed": 0.0}
TIMES = StepTimes(dense=10.0, even=6.0, thin=5.0, full=11.0, scoring=1.0, prune=20.0, explore=3.0, grow=7.0, target=0.5)


@pytest.mark.parametrize(
    ("method", "target", "criterion", "steps", "seconds"),
    [
        # two updates of 2 scored steps at the target, 1 at 4/5 of it, 2 exploring, and all three actions; 2 steps after
        (IEE(h=2, j=1, q=2, **PAPER), 0.5, "taylor", 12, 2 * (2 * 6 + 4 + 2 * 11 + 30) + 2 * 5),
        (IEE(h=2, j=1, q=2, **PAPER), 0.5, "magnitude", 12, 2 * (2 * 5 + 4 + 2 * 11 + 30) + 2 * 5),
        (IEE(h=2, j=1, q=2, freeze=False, **PAPER), 0.5, "magnitude", 12, 2 * (2 * 5 + 4 + 2 * 10 + 30) + 2 * 5),
        # 3 steps dense, 3 at half of it, which is a third of the way from the target to dense, and 4 at a quarter
        (HALP(prunings=2, interval=3), 0.25, "taylor", 10, 3 * 11 + 3 * (5 + 5 / 3 + 1) + 4 * 5 + 2 * 20),
        (GMP(interval=2, update_end=4), 0.5, "magnitude", 10, 2 * 10 + 2 * (5 + 5 * 0.125) + 6 * 5 + 2 * 20),
        (OneShot(h=2), 0.5, "taylor", 10, 2 * 11 + 20 + 8 * 5),
        (OneShot(h=0), 0.5, "magnitude", 10, 10 * 5),
        (Static(start="criterion", start_steps=2), 0.5, "taylor", 10, 2 * 11 + 20 + 8 * 5),
        (Static(), 0.5, "taylor", 10, 10 * 6),
        (METHODS["uniform"](), 0.5, "taylor", 10, 10 * 6),
        (METHODS["dense"](), 0.5, "taylor", 10, 10 * 10),
        (METHODS["uniform"](), 1.0, "taylor", 10, 10 * 10),
    ],
    ids=repr,
)
def test_planned_seconds(method, target, criterion, steps, seconds) -> None:
    times = dataclasses.replace(TIMES, target=target)
    assert planned_seconds(method, Criterion.of(criterion), times, steps) == pytest.approx(seconds)


def test_steps_below_the_target_take_no_less_than_in_proportion() -> None:
    assert TIMES.at(0.3, thin=5.0) == pytest.approx(3.0)
    assert TIMES.at(0.3, thin=2.0) == pytest.approx(1.2)  # where the line is below zero
    assert TIMES.at(0.3, thin=8.0) == pytest.approx(7.2)


def test_steps_in_equal_time() -> None:
    taylor = Criterion.of("taylor")
    for method, budget, steps in (
        (METHODS["dense"](), 104.0, 10),
        (METHODS["uniform"](), 104.0, 17),
        (METHODS["uniform"](), 1.0, 1),
        (IEE(h=2, j=1, q=2, **PAPER), 146.0, 12),
        (HALP(prunings=2, interval=3), 1000.0, 187),
    ):
        found = steps_in_time(method, taylor, TIMES, budget)
        assert found == steps
        spent = planned_seconds(method, taylor, TIMES, found)
        for other in (steps - 1, steps + 1) if steps > 1 else ():
            assert abs(planned_seconds(method, taylor, TIMES, other) - budget) >= abs(spent - budget)
    with pytest.raises(
        UserError, match=r"halp cannot be matched: its shortest run of 6 steps takes 97\.2 seconds, but"
    ):
        steps_in_time(HALP(prunings=2, interval=3), taylor, TIMES, 50.0)
