"""Methods of the user's own whose actions cannot be carried out are refused when attaching, before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import regrow
from engine import batches, network, same, snapshot, train
from regrow.actions import Explore, Fill, Grow, Prune, Select, Start
from regrow.criteria import Criterion
from regrow.latent import Latent
from regrow.methods import Method
from regrow.saliency import Scoring
from regrow.schedule import Phase, Timeline, repeat

MAGNITUDE = Criterion.of("magnitude")


@dataclass(frozen=True)
class Own(Method):
    """Does what it is told."""

    name: ClassVar[str] = "own"

    starts: Any = (Start(0.7),)
    ends: Callable[[Any, float], Any] = lambda of, target: [Prune(target, 0.3), Grow(target)]
    phases: Callable[[], Sequence[Phase]] = lambda: [Phase("estimate", 3)]
    scores: Mapping[str, Any] | None = None

    def timeline(self, total_steps: int) -> Timeline:
        return repeat(*self.phases(), total_steps=total_steps, until=total_steps)

    def scorings(self, criterion: Criterion) -> Any:
        return {"estimate": (Scoring("prune", criterion),)} if self.scores is None else self.scores

    def at_start(self, target: float) -> Any:
        return self.starts

    def at_end(self, of: Any, target: float) -> Any:
        return self.ends(of, target)


def attached(method: Method, steps: int = 12) -> tuple[torch.nn.Module, regrow.Sparsifier, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return model, regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.7, "erk"), method=method, total_steps=steps
    ), optimizer  # fmt: skip


def test_what_can_be_done_is() -> None:
    model, sparsifier, optimizer = attached(Own())
    train(model, optimizer, batches(12))
    assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == 112
    assert [record["grown"] > 0 for record in sparsifier.history] == [True] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ends": lambda of, t: [Prune(0.1)]}, "asks for Prune.* leaves 33[0-9] units of 112 .* leave no more than"),
        ({"starts": [Start(0.1)], "ends": lambda of, t: [Grow(t)]}, "asks for Grow.* leaves 112 units of 33[0-9]"),
        ({"ends": lambda of, t: [Prune(t, 0.5)]}, "own ends with 5[0-9] active units, but the target has 112"),
        ({"starts": [], "ends": lambda of, t: []}, "own ends with 372 active units, but the target has 112"),
        ({"ends": lambda of, t: [Prune(t, 0.3 if of.progress == 1 else 0)]}, "own ends with 80 active units"),
        ({"ends": lambda of, t: None}, r"at_end\(\) of phase 'estimate' gives None, but must give a list of actions"),
        ({"ends": lambda of, t: Prune(t)}, "but must give a list of actions"),
        ({"starts": "start"}, r"at_start\(\) gives 'start', but must give a list of actions"),
        ({"ends": lambda of, t: ["prune"]}, "asks for 'prune', which is none of the actions in regrow.actions"),
        ({"ends": lambda of, t: [Prune(t), Explore()]}, "explores from step 3 on, but .* trains 'active'"),
        ({"phases": lambda: [Phase("a", 2), Phase("b", 1, "removed")]}, "step 2 on that trains 'removed', but"),
        ({"phases": lambda: [Phase("fixed", 3, "all")]}, "'fixed' that trains 'all', but phases of this name"),
        ({"phases": lambda: [Phase("estimate", 0)]}, "the phases of a cycle have no steps"),
        ({"scores": {"estimat": ()}}, "scores in phase 'estimat', which it does not have; did you mean 'estimate'"),
        ({"scores": {"estimate": Scoring("prune", MAGNITUDE)}}, "gives Scoring.* but must give Scorings there"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_changes(options: dict[str, Any], said: str) -> None:
    model = network()
    before = snapshot(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(regrow.UserError, match=said):
        regrow.Sparsifier(
            model, optimizer, pattern=regrow.Weights(0.7, "erk"), method=Own(**options), total_steps=12
        )  # fmt: skip
    assert same(before, snapshot(model))
    assert not optimizer._optimizer_step_pre_hooks


def test_the_last_update_of_very_many_is_tried() -> None:
    seen: list[int] = []

    def ends(of: Any, target: float) -> list[Any]:
        seen.append(of.update)
        return [Prune(target)]

    attached(Own(ends=ends), steps=3_000_000)
    assert seen == [*range(100), 999_999]


def test_a_method_without_at_end_or_timeline() -> None:
    @dataclass(frozen=True)
    class Half(Method):
        name: ClassVar[str] = "half"

        def timeline(self, total_steps: int) -> Timeline:
            return repeat(Phase("estimate", 3), total_steps=total_steps, until=total_steps)

    @dataclass(frozen=True)
    class Nothing(Method):
        name: ClassVar[str] = "nothing"

        def timeline(self, total_steps: int) -> Timeline:
            return None  # type: ignore[return-value]

    with pytest.raises(regrow.UserError, match=r"Half has updates, but no at_end\(\)"):
        attached(Half())
    with pytest.raises(regrow.UserError, match=r"nothing: timeline\(\) gives None"):
        attached(Nothing())


def test_previews_that_would_never_train() -> None:
    with pytest.raises(regrow.UserError, match="in one of 2 steps, but none of these lies in a phase"):
        attached(regrow.IEE(h=1, q=1, shadow_speed=0.5, shadow_every=2))
    attached(regrow.IEE(h=2, q=1, shadow_speed=0.5, shadow_every=2, update_end=3))
    with pytest.raises(regrow.UserError, match="in one of 3 steps"):
        attached(regrow.IEE(h=1, q=1, shadow_speed=0.5, shadow_every=3, update_end=2))


def test_updates_of_a_method_that_removes_nothing() -> None:
    @dataclass(frozen=True)
    class Idle(regrow.RigL):
        name: ClassVar[str] = "idle"
        sparsifies: ClassVar[bool] = False

    model, sparsifier, optimizer = attached(Idle(interval=3))
    train(model, optimizer, batches(12))
    assert [(record["iou"], record["density"]) for record in sparsifier.history] == [(1.0, 1.0)] * 3


def test_layers_that_have_come_to_other_counts() -> None:
    def ends(of: Any, target: float) -> list[Any]:  # the second prunes to what the pattern gives each layer
        return [Prune(target, 0.6, "all"), Grow(target, "zero", layers="all")] if of.update == 0 else [Prune(target)]

    model, sparsifier, optimizer = attached(Own(ends=ends, scores={"estimate": (Scoring("grow", MAGNITUDE),)}))
    with torch.no_grad():
        model[3].weight.mul_(8)
    train(model, optimizer, batches(5))
    with pytest.raises(regrow.UserError, match="cannot be carried out on what layers have come to: cannot choose"):
        train(model, optimizer, batches(1))
    assert (sparsifier.step_count, len(sparsifier.history)) == (5, 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prune(-0.1), "sparsity of Prune is -0.1, but must be a share from 0 to 1"),
        (lambda: Start(float("nan")), "sparsity of Start is nan"),
        (lambda: Select("0.5"), "sparsity of Select is '0.5'"),
        (lambda: Prune(0.5, 1.0), "churn of Prune is 1, but must be below 1"),
        (lambda: Prune(0.5, 1.5), "churn of Prune is 1.5, but must be a share from 0 to 1"),
        (lambda: Prune(0.5, layers="survivors"), "layers of Prune 'survivors' is unknown; use 'fixed', 'now' or 'all'"),
        (lambda: Grow(0.5, "old"), "init of Grow 'old' is unknown; use 'mru', 'explored' or 'zero'"),
        (lambda: Grow(0.5, beyond=-0.5), "beyond of Grow is -0.5, but must be a finite number, at least 0"),
        (lambda: Grow(0.5, layers="now"), "layers of Grow 'now' is unknown"),
        (lambda: Start(0.5, "best"), "how of Start 'best' is unknown; use 'random' or 'criterion'"),
        (lambda: Explore("old"), "value of Explore 'old' is unknown; use 'mru' or 'zero'"),
        (lambda: Fill(3, 3), "part of Fill is 3, but must be one of 3 parts, counted from 0"),
        (lambda: Phase("a", -1), "phase 'a' has -1 steps"),
        (lambda: Phase("a", 2.5), "a phase's steps is 2.5, but must be a whole number"),
        (
            lambda: Phase("a", 2, "some"),
            "a phase's trains 'some' is unknown; use 'active', 'removed', 'all' or 'latent'",
        ),
        (lambda: Phase("a", 2, "latent"), "phase 'a' trains 'latent' with latent=None"),
        (lambda: Phase("a", 2, "active", Latent()), "phase 'a' trains 'active' with latent=Latent"),
        (lambda: repeat(Phase("a", 2), total_steps=9, until=12), "updates are to end by step 12, but the run has 9"),
        (lambda: Scoring("prun", MAGNITUDE), "role of a Scoring 'prun' is unknown; use 'prune' or 'grow'"),
        (lambda: Scoring("prune", "l2"), "a Scoring's criterion is 'l2'; give Criterion.of"),
        (lambda: Scoring("grow", MAGNITUDE, 0), "a Scoring's window is 0"),
    ],
)
def test_values_out_of_range(make: Callable[[], object], said: str) -> None:
    with pytest.raises(regrow.UserError, match=said):
        make()
