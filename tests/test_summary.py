"""Nobody has to guess what was skipped: the summary, its warnings, and what a print shows."""

from __future__ import annotations

import dataclasses
import re
import warnings
from importlib import resources
from typing import Any

import pytest
import torch
from torch import nn

import fixed_latency
import regrow
from engine import attach, batches, network, train
from regrow.latency.spread import Spread
from regrow.summary import Reason, options_of, reasons, unseen


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)


def test_of_weights() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, pattern=regrow.Weights(0.7, "erk", exclude=["0"]))
    summary = sparsifier.summary()
    assert summary.flops is None  # no batch has been seen
    train(model, optimizer, batches(5))
    summary = sparsifier.summary()
    counts = {name: int(mask.sum()) for name, mask in sparsifier.masks.items()}
    assert {one.name: one.active for one in summary.layers} == counts
    assert summary.density == sparsifier.density()
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.dense == (Reason("excluded", ("0.weight",), 36),)
    assert summary.steps == (5, 60)
    assert summary.cycle == (("estimate", 5), ("improve", 4), ("explore", 3))
    assert summary.flops is not None
    assert summary.flops[0] < summary.flops[1] == sparsifier._engine.accounts.flops().total
    text = str(summary)
    for said in ("IEE(h=5", "Weights(sparsity=0.7", "3.weight", "0.weight: excluded (", "step 5 of 60", "FLOPs"):
        assert said in text


def test_of_channels_thin_and_masked() -> None:
    for thin in (True, False):
        model = network()
        optimizer = sgd(model)
        sparsifier = attach(
            model, optimizer, pattern=regrow.Channels(params=0.6, round_to=1, thin=thin), criterion="taylor",
            method=regrow.IEE(h=2, j=2, q=2), example_inputs=batches(1)[0][0],
        )  # fmt: skip
        train(model, optimizer, batches(9))
        summary = sparsifier.summary()
        assert summary.widths == sparsifier.widths()
        ((now, end),) = summary.budgets.values()
        assert end == 0.6
        assert now <= 0.6
        assert summary.parameters == sum(p.numel() for p in network().parameters())
        assert {one.why for one in summary.dense} == {"it is the model's output"}
        assert "keeps all outputs" in str(summary)
        sparsifier.compact()
        assert str(sparsifier.summary())


def test_a_predicted_latency_has_its_margin() -> None:
    for spread, said in ((Spread(wholes=0.1, freedom=4), r"latency to 70\.0% \(now [0-9.]+%, ± 21\.3% of that\)"),
                         (None, r"latency to 70\.0% \(now [0-9.]+%\)")):  # fmt: skip
        model, example = network(), batches(1)[0][0]
        table = dataclasses.replace(fixed_latency.table_of(model, example), spread=spread)
        pattern = regrow.Channels(latency=0.7, round_to=1, table=table)
        sparsifier = attach(model, sgd(model), pattern=pattern, criterion="magnitude", example_inputs=example)
        assert re.search(said, str(sparsifier.summary()))


def test_of_dense() -> None:
    model = network()
    sparsifier = regrow.Sparsifier(model, sgd(model), method="dense", total_steps=3)
    assert sparsifier.summary().density == 1
    assert "nothing" in str(sparsifier)


def test_a_print_shows_the_head() -> None:
    model = network()
    sparsifier = attach(model, sgd(model))
    text = str(sparsifier)
    assert text == repr(sparsifier) == f"Sparsifier: {sparsifier.summary().head()}"
    what, when, cost, how = text.splitlines()
    assert re.fullmatch(
        r"Sparsifier: [\d,]+ of [\d,]+ parameters, in 3 tensors, to density 30\.\d+%, \d+\.\d% to \d+\.\d% per layer "
        r"\(now 30\.\d+%\)",
        what,
    )
    assert when == "3 updates of 5 estimate + 4 improve + 3 explore steps; step 0 of 60, phase estimate"
    assert cost == "training cost and FLOPs: known once the model has seen a batch, or with example_inputs="
    assert how.startswith("by IEE(h=5, j=4, q=3")


COSTLY = [
    (regrow.IEE(h=5), regrow.Weights(0.8, "erk")),
    (regrow.GMP(interval=4), regrow.Weights(0.8)),
    (regrow.RigL(interval=5), regrow.NM(2, 4)),
    (regrow.STE(), regrow.Weights(0.8)),
    (regrow.Uniform(), regrow.Channels(params=0.5, round_to=1)),
    (regrow.Dense(), None),
]


@pytest.mark.parametrize(("method", "pattern"), COSTLY, ids=[type(method).__name__ for method, _ in COSTLY])
def test_the_expected_cost_is_what_training_costs(method: regrow.methods.Method, pattern: Any) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, total_steps=30, example_inputs=batches(1)[0][0]
    )  # fmt: skip
    expected = sparsifier.summary().expected_cost
    train(model, optimizer, batches(10))
    if pattern is None:  # nothing is bound, so the first batch tells
        assert expected is None
        expected = sparsifier.summary().expected_cost
    assert sparsifier.summary().expected_cost == pytest.approx(expected, rel=1e-12)
    spent = sparsifier.training_cost()["total"]
    assert f"expected training cost {expected:.2f} × dense, {spent:.2f} so far; FLOPs" in str(sparsifier)
    train(model, optimizer, batches(20))
    assert sparsifier.summary().expected_cost is None
    assert sparsifier.summary().spent_cost == pytest.approx(expected, rel=1e-12)
    assert f"\ntraining cost {expected:.2f} × dense; FLOPs" in str(sparsifier)


def test_no_cost_is_expected_of_widths_that_are_still_to_be_found() -> None:
    model = network()
    sparsifier = regrow.Sparsifier(
        model, sgd(model), pattern=regrow.Channels(params=0.5, round_to=1), method=regrow.HALP(prunings=2, interval=3),
        criterion="taylor", total_steps=30, example_inputs=batches(1)[0][0],
    )  # fmt: skip
    assert sparsifier.summary().expected_cost is None
    assert "parameters to 50.0% (now 100.0%)" in str(sparsifier)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (regrow.IEE(), "IEE()"),
        (regrow.IEE(h=20, q=None), "IEE(h=20)"),
        (regrow.IEE(budget=regrow.Budget(start=0.5)), "IEE(budget=Budget(start=0.5))"),
        (regrow.Weights(0.9), "Weights(sparsity=0.9)"),
        (regrow.Weights(0.0, exclude=["head"]), "Weights(sparsity=0.0, exclude=['head'])"),
        (regrow.Channels(flops=0.5, min_channels=1), "Channels(flops=0.5, min_channels=1)"),
        (regrow.Weights(0.9, include=["layer"] * 20), "Weights(sparsity=0.9, include=list(…))"),
        (None, "None"),
    ],
)
def test_only_options_that_differ_from_the_defaults_are_shown(given: object, said: str) -> None:
    assert options_of(given) == said


@pytest.mark.parametrize(
    ("entries", "of", "said"),
    [(1, 1_000_000, "less than 0.1%"), (499, 1_000_000, "less than 0.1%"), (500, 1_000_000, "0.1%"), (7, 10, "70.0%")],
)
def test_a_small_share_is_no_zero(entries: int, of: int, said: str) -> None:
    assert Reason("excluded", ("head",), entries).line("head stays dense", of) == (
        f"head stays dense: excluded ({said} of the parameters)"
    )


class Hidden(nn.Module):
    """A matrix that is none of a layer's, and not named like one."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_mix = nn.Parameter(torch.randn(64, 64))
        self.out = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x @ self.pos_mix)


def warned(model: nn.Module, example: Any = None, **options: Any) -> list[str]:
    options = {"pattern": regrow.Weights(0.5, "erk"), "method": "static", "total_steps": 1000} | options
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        regrow.Sparsifier(model, sgd(model), example_inputs=example, **options)
    return [str(one.message) for one in found]


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 4))


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), nn.Linear(64, 4))


def frozen() -> nn.Module:
    model = conv_net()
    model[2].requires_grad_(False)
    return model


class TestUnseen:
    @pytest.mark.parametrize(("build", "said"), [(Hidden, "pos_mix"), (normed, "parametrization")])
    def test_much_that_no_pattern_sees_is_a_warning(self, build: Any, said: str) -> None:
        (text,) = warned(build())
        assert re.search(rf"\d\d% of the model's parameters stay dense although nobody has excluded them.*{said}", text)

    def test_what_is_seen_by_its_use_is_no_warning(self) -> None:
        assert warned(Hidden(), torch.randn(2, 64)) == []

    @pytest.mark.parametrize(
        "model", [conv_net(), frozen(), nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 4)), nn.LSTM(8, 16)]
    )
    def test_what_somebody_has_decided_is_none(self, model: nn.Module) -> None:
        assert warned(model) == []

    def test_excluded_is_none(self) -> None:
        assert warned(conv_net(), pattern=regrow.Weights(0.5, "erk", exclude=["2"])) == []

    def test_channels(self) -> None:
        class Split(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(40, 4, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.c(torch.cat([nn.functional.group_norm(self.a(x), 4), self.b(x)], 1))

        pattern = regrow.Channels(params=0.9, round_to=1)
        (text,) = warned(Split(), torch.randn(2, 3, 8, 8), pattern=pattern, method=regrow.OneShot(), criterion="l2")
        assert "a.weight" in text
        assert warned(conv_net(), torch.randn(2, 3, 8, 8), pattern=pattern, method="uniform") == []

    def test_by_hand(self) -> None:
        found = reasons({"a": "x", "b": "y", "c": "x"}, {"a": 1, "b": 5, "c": 3})
        assert found == (Reason("y", ("b",), 5), Reason("x", ("c", "a"), 4))
        assert unseen(found, 100, {"y"}) == ""
        assert unseen(found, 20, {"y"}).startswith("20% of the model's parameters")


class TestFewUpdates:
    @pytest.mark.parametrize(
        ("method", "steps", "options"),
        [
            (regrow.IEE.paper(20), 120, r"about ten fit with h=3, j=3, q=3 \(.* --method.h 3 …, "),
            (regrow.RigL(interval=100), 400, r"about ten fit with interval=30 \(.* --method.interval 30, "),
            (regrow.SET(interval=50), 100, r"about ten fit with interval=7 \(.* --method.interval 7, "),
        ],
    )
    def test_are_a_warning_with_the_way_out(self, method: regrow.methods.Method, steps: int, options: str) -> None:
        (text,) = warned(conv_net(), method=method, total_steps=steps)
        assert re.match(rf"only (1 update fits|\d updates fit) into total_steps={steps}, as one takes \d+ steps", text)
        assert re.search(options, text)

    @pytest.mark.parametrize(
        ("method", "steps", "way_out"),
        [
            (regrow.IEE(), 20, r"; 5 updates fit with h=3 \(.* --method.h 3, "),
            (regrow.IEE.paper(100), 60, r"; 5 updates fit with h=3, j=3, q=3 \(.* --method.h 3 …, "),
            (regrow.RigL(), 10, r"; 7 updates fit with interval=1 \(.* --method.interval 1, "),
            (regrow.RigL(), 3, r"; 2 updates fit with interval=1 \(.* --method.interval 1, "),
            (regrow.RigL(update_end=1), 3, r"; 1 update fits with interval=1 \(.* --method.interval 1, "),
            (regrow.RigL(), 1, r"; let updates end later \(update_end\), or train longer$"),
            (regrow.IEE(update_end=0.0), 100, r"; let updates end later \(update_end\)$"),
        ],
    )
    def test_of_a_run_too_short_for_one_says_what_would_fit(
        self, method: regrow.methods.Method, steps: int, way_out: str
    ) -> None:
        with pytest.raises(regrow.UserError, match=way_out):
            warned(conv_net(), method=method, total_steps=steps)

    @pytest.mark.parametrize("method", ["static", "oneshot", "gmp", regrow.RigL(interval=100), regrow.IEE.paper(20)])
    def test_are_none_where_there_are_many_or_none_are_meant(self, method: Any) -> None:
        assert warned(conv_net(), method=method, total_steps=2000) == []

    def test_no_shipped_recipe_is_warned_of(self) -> None:
        from regrow.lengths import FEW
        from regrow.training.recipe import load

        names = [one.name for one in (resources.files("regrow") / "recipes").iterdir() if one.name[0] not in "_."]
        assert len(names) > 10
        for name in names:
            recipe = load(name.removesuffix(".yaml"))
            images = {"digits": 1257, "cifar10": 45_000}.get(recipe.data.name, 1_281_167)
            steps = recipe.total_steps(images / recipe.data.batch_size / recipe.train.accumulate)
            timeline = recipe.method.timeline(steps)
            assert not recipe.method.repeats or timeline.updates >= FEW, name


class Checked(nn.Sequential):
    """Refuses boxes without an area, as torchvision's detectors do, and images that are all zero if it is strict."""

    strict = False

    def forward(self, x: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        assert all(bool((box[:, 2:] > box[:, :2]).all()) for box in boxes)
        assert not self.strict or bool(x.any())
        return super().forward(x)


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_model_checks_of_its_targets(strict: bool) -> None:
    model = Checked(nn.Linear(5000, 8), nn.ReLU(), nn.Linear(8, 2))
    model.strict = strict
    sparsifier = attach(model, sgd(model), pattern=regrow.Weights(0.5))
    x, boxes = torch.ones(1, 5000), [torch.tensor([[1.0, 2, 3, 4]])]
    model(x, boxes).sum().backward()
    if not strict:
        assert sparsifier.summary().flops is not None
        return
    assert sparsifier.summary().flops is None
    assert "FLOPs: known once" in str(sparsifier)
    with pytest.raises(regrow.UserError, match=r"call training_cost\(example_inputs=one batch\)"):
        sparsifier.training_cost()
    assert sparsifier.training_cost((x, boxes)) == {"total": 0.0}


def test_warnings_point_at_the_line_that_attaches() -> None:
    model = network()
    with pytest.warns(UserWarning, match="only 3 updates fit") as caught:
        regrow.Sparsifier(
            model, sgd(model), pattern=regrow.Weights(0.5), method=regrow.RigL(interval=20), total_steps=90
        )
    assert [one.filename for one in caught] == [__file__]


def test_a_request_for_blocks_that_finds_none_is_noted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    sparsifier = attach(
        model, sgd(model), pattern=regrow.Channels(flops=0.5, round_to=1, blocks=True), criterion="taylor",
        example_inputs=torch.randn(2, 3, 8, 8),
    )  # fmt: skip
    assert sparsifier.summary().notes == (
        "no block can go whole, as no branch of a residual sum has channels of its own",
    )
