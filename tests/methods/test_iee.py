"""What IEE decides where its options leave it open."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from engine import attach, batches, network, train
from regrow import IEE, Channels, UserError, Weights, codes
from regrow.actions import Explore, Start, counts_at
from regrow.criteria import Criterion
from regrow.latent import Latent
from regrow.plan import planned_ledger
from regrow.schedule import Budget

MAGNITUDE, TAYLOR = Criterion.of("magnitude"), Criterion.of("taylor")


def test_single_weights_are_previewed_in_memory_at_no_step() -> None:
    method = IEE().resolve(Weights(0.9), MAGNITUDE)
    assert method == IEE()
    assert {phase.latent for phase in method.timeline(1000).cycle if phase.steps} == {Latent(0.2, candidates="random")}
    assert {span.phase for span in method.timeline(1000).spans()} == {"estimate", "fixed"}


@pytest.mark.parametrize(
    ("pattern", "criterion"),
    [(Channels(flops=0.5), TAYLOR), (Channels(flops=0.5), MAGNITUDE), (Weights(0.9), TAYLOR)],
)
def test_what_cannot_be_previewed_in_memory_is_explored(
    pattern: regrow.patterns.pattern.Pattern, criterion: Criterion
) -> None:
    method = IEE().resolve(pattern, criterion)
    assert (method.q, method.speed) == (5, 0.0)
    assert [phase.trains for phase in method.timeline(1000).cycle] == ["active", "active", "removed"]
    share = sum(span.end - span.start for span in method.timeline(10_000).spans() if span.phase == "explore") / 10_000
    assert 0 < share <= 0.1
    assert IEE(h=3, j=2).resolve(pattern, criterion).q == 1
    assert IEE(q=0).resolve(pattern, criterion).q == 0  # what was said stays
    assert IEE(q=7, shadow_speed=0.5).resolve(pattern, criterion) == IEE(q=7, shadow_speed=0.5)


def test_a_projection_is_of_a_preview() -> None:
    with pytest.raises(
        UserError, match=r"p=3.0 is of a preview, but nothing is previewed in memory at shadow_speed=0; leave"
    ):
        IEE(q=5, p=3.0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(
        UserError, match=r"p=3.0 is of a preview, but channels, and criteria that use gradients, have no preview"
    ):
        regrow.Sparsifier(
            model, optimizer, pattern=Weights(0.5), method=IEE(p=3.0), criterion="taylor", total_steps=2000
        )
    with pytest.raises(UserError, match=r"backward=0.4 is of a preview, but nothing is previewed"):
        IEE(shadow_speed=0.0, backward=0.4)
    with pytest.raises(UserError, match=r"backward=0.5 .* must be below the pattern's 0.5"):
        regrow.Sparsifier(model, optimizer, pattern=Weights(0.5), method=IEE(backward=0.5), total_steps=2000)
    with pytest.raises(UserError, match=r"p is 0.5"):
        IEE(p=0.5)


def test_previews_are_a_multiple_of_what_is_active() -> None:
    method = IEE(previews=1.5).resolve(Weights(0.9), MAGNITUDE)
    assert (method.previews, method.backward) == (None, 0.75)
    assert IEE(previews=1.0).resolve(regrow.NM(1, 4), MAGNITUDE) == IEE(backward=0.5)
    assert IEE(previews=20.0).resolve(Weights(0.9), MAGNITUDE).backward == 0.0  # all of them
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be a multiple of the active weights, above 0"):
            IEE(previews=value)
    with pytest.raises(UserError, match="previews and backward both say how many weights train"):
        IEE(previews=1.0, backward=0.5)
    with pytest.raises(UserError, match=r"previews=1.0 is of a preview, but nothing is previewed"):
        IEE(q=5, previews=1.0)
    for pattern, criterion in ((Channels(flops=0.5), MAGNITUDE), (Weights(0.9), TAYLOR)):
        with pytest.raises(UserError, match=r"previews=1.0 is of a preview, but channels, and criteria that use"):
            IEE(previews=1.0).resolve(pattern, criterion)


def test_as_many_are_previewed_as_are_active() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(model, optimizer, pattern=Weights(0.75), method=IEE.sparse(h=5))
    for _ in range(3):
        train(model, optimizer, batches(5))
        for name, state in sparsifier._states.items():
            previewed, active = int((state.code == codes.EXPLORED).sum()), int(state.active.sum())
            assert active == state.active.numel() / 4, name
            assert previewed == active, name


@pytest.mark.parametrize("candidates", ["largest", "random"])
def test_as_many_are_previewed_where_layers_have_come_to_other_counts(candidates: str) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(8)  # keeps more than it is given
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(
        model, optimizer, pattern=Weights(0.8, "erk", scope="global"), total_steps=60,
        method=IEE.sparse(h=2, start="criterion", candidates=candidates),
    )  # fmt: skip
    given = sparsifier._units.planned()
    for batch in batches(40):
        train(model, optimizer, [batch])
        states = sparsifier._states.values()
        assert sum(state.active_count for state in states) == sum(kept for kept, _ in given.values())
        assert sum(state.trainable_count for state in states) == sum(counts_at(given, 0.6).values())
    assert any(sparsifier._states[name].active_count > 1.2 * kept for name, (kept, _) in given.items())


def test_as_many_are_previewed_as_are_active_where_layers_are_given_by_name() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pattern = Weights(0.9, {"3": 0.4})  # so that all layers add up to less than 0.8
    sparsifier = attach(model, optimizer, pattern=pattern, method=IEE.sparse(h=5))
    final = pattern.counts(model)
    active, size = sum(kept for kept, _ in final.values()), sum(of for _, of in final.values())
    assert sparsifier.target_sparsity == 1 - active / size < 0.8
    assert sparsifier.method.backward == 1 - 2 * (1 - sparsifier.target_sparsity)
    assert abs(sum(state.trainable_count for state in sparsifier._states.values()) - 2 * active) <= len(final)
    train(model, optimizer, batches(60))
    planned = planned_ledger(IEE.sparse(h=5).resolve(pattern, MAGNITUDE), MAGNITUDE, final, 60)
    assert planned.keys() == sparsifier.ledger.keys()
    for phase, steps in planned.items():
        trained = steps.gradient_density_steps
        assert sparsifier.ledger[phase].gradient_density_steps == pytest.approx(trained, rel=1e-12)
    other = torch.optim.SGD((model := network()).parameters(), 0.05)
    with pytest.raises(UserError, match=r"backward=0.8 is the sparsity of .* must be below 0.7\d*, what the layers"):
        attach(model, other, pattern=pattern, method=IEE(h=5, backward=0.8))


@pytest.mark.parametrize("method", [IEE.from_dense(h=3), IEE.sparse(h=3, previews=2.0)])
def test_forms_take_options(method: IEE) -> None:
    assert method.h == 3
    assert method.shadow_speed == 0.5


def test_a_real_exploration_needs_no_preview() -> None:
    assert IEE(h=150, j=150, q=150).speed == 0
    assert IEE(q=10, shadow_speed=0.2).speed == 0.2
    assert IEE(q=0, shadow_speed=0.0).speed == 0


def test_memory_of_a_trained_model_is_kept() -> None:
    assert IEE().at_start(0.9) == [Start(0.9, "random"), Explore("zero")]
    assert IEE(start="criterion").at_start(0.9) == [Start(0.9, "criterion")]


def test_exploring_from_zero_is_refused_where_nothing_is_explored() -> None:
    method = IEE(reactivate="zero")  # which is right for channels
    assert method.resolve(Channels(flops=0.5), MAGNITUDE).reactivate == "zero"
    with pytest.raises(UserError, match="needs steps that explore"):
        method.resolve(Weights(0.9), MAGNITUDE)


def test_the_form_of_the_paper() -> None:
    paper = IEE.paper()
    assert paper == IEE(h=150, j=150, q=150, shadow_speed=0.0)
    assert (paper.reactivate, paper.grown_init, paper.freeze, paper.speed) == ("mru", "mru", True, 0.0)
    assert IEE.paper(50, budget=Budget("linear", 0.2)) == IEE(
        h=50, j=50, q=50, shadow_speed=0.0, budget=Budget("linear", 0.2)
    )
    with pytest.raises(UserError, match="steps is 0, but must be a whole number of steps, at least 1"):
        IEE.paper(0)


@pytest.mark.parametrize(
    ("criterion", "phases"), [("magnitude", {"estimate", "fixed"}), ("taylor", {"estimate", "explore", "fixed"})]
)
def test_the_default_trains_with_every_criterion(criterion: str, phases: set[str]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, method="iee", criterion=criterion, total_steps=80)
    seen: set[str] = set()
    train(model, optimizer, batches(80), lambda: seen.add(sparsifier.phase))
    assert seen == phases
    assert len(sparsifier.history) == 1
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
