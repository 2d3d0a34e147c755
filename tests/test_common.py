"""Every method × pattern × criterion × optimizer: in lockstep with the slow engine, frozen and removed to the bit,
planned as it is booked, and resumed as if never interrupted."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import regrow
from engine import batches, network, same, snapshot, train
from reference import ANY, OfEveryM, Pairs
from regrow.criteria import Criterion
from regrow.methods import METHODS
from regrow.patterns import PATTERNS, EntryPattern
from regrow.plan import planned_ledger
from test_lockstep import OPTIMIZERS, OPTIONS, STEPS, WEIGHTS, lockstep

TRIED = {
    "weights": (WEIGHTS, ANY),
    "nm": (regrow.NM(2, 4), OfEveryM(4)),
    "blocks": (regrow.Blocks((1, 2), 0.6, "er"), Pairs()),
}
WAYS = {name: (name, options) for name, options in OPTIONS.items()} | {
    "preview": ("iee", {"h": 5, "j": 4, "q": 0}),
    "ramp": ("iee", {"h": 5, "j": 4, "q": 3, "ramp": 0.0}),
    "hard": ("ste", {"every": 3, "p": None}),
    "backward": ("ste", {"every": 4, "p": None, "scale": 0.7, "backward": 0.3, "candidates": "random"}),
    "topkast": ("ste", {"every": 3, "p": None, "scale": 1.0, "ramp": None, "backward": 0.4}),
    "st3": ("ste", {"every": 2, "p": 1.0, "scale": 1.0}),
}
SINGLE = [way for way, (name, _) in WAYS.items() if METHODS[name].shares_out]
CRITERIA = ("magnitude", "taylor")
ONLY_SIZES = ("preview", "ste", "st3")  # no steps that score, or sizes that shrink
CASES = [
    pytest.param(
        way, pattern, criterion, optimizer, id=f"{way}-{pattern}-{criterion}-{optimizer}",
        marks=() if (i + j + k) % 2 == 0 or way in ONLY_SIZES else pytest.mark.thorough,  # every pair with one of them
    )
    for i, way in enumerate(WAYS)
    for j, pattern in enumerate(TRIED)
    for k, criterion in enumerate(CRITERIA[: 1 if way in ONLY_SIZES else 2])
    for optimizer in (list(OPTIMIZERS)[(i + j + 2 * k) % len(OPTIMIZERS)],)
    if pattern == "weights" or way not in SINGLE
]  # fmt: skip
every = pytest.mark.parametrize(("way", "pattern", "criterion", "optimizer"), CASES)


def start(way: str, pattern: str, criterion: str, optimizer: str, seed: int = 3):
    """A network, what trains it, and what makes it sparse."""
    model = network(seed)
    trains = OPTIMIZERS[optimizer](model.parameters())
    method, options = WAYS[way]
    return model, trains, regrow.Sparsifier(
        model, trains, pattern=TRIED[pattern][0], method=METHODS[method](**options), criterion=criterion,
        total_steps=STEPS,
    )  # fmt: skip


def test_all_that_is_registered_is_tried() -> None:
    assert set(TRIED) == {name for name, kind in PATTERNS.items() if issubclass(kind, EntryPattern)}
    assert set(OPTIONS) == {name for name, kind in METHODS.items() if not kind.channels_only}


@pytest.mark.parametrize(
    ("way", "pattern", "criterion", "optimizer"), [case for case in CASES if case.values[1] != "weights"]
)  # of weights with every optimizer: test_lockstep.py
def test_in_lockstep_with_the_slow_engine(way: str, pattern: str, criterion: str, optimizer: str) -> None:
    method, options = WAYS[way]
    lockstep(method, options, optimizer, criterion, *TRIED[pattern])


def is_legal(pattern: str, mask: Tensor) -> bool:
    """Whether a pattern allows this structure."""
    if pattern == "nm":  # the same number in every group, up to one
        kept = mask.movedim(1, -1).reshape(-1, 4).sum(1)
        return bool(kept.max() - kept.min() <= 1)
    if pattern == "blocks":
        pairs = mask.movedim(1, -1).reshape(-1, 2)
        return torch.equal(pairs[:, 0], pairs[:, 1])
    return True


@every
def test_legal_frozen_removed_and_booked(way: str, pattern: str, criterion: str, optimizer: str) -> None:
    model, trains, sparsifier = start(way, pattern, criterion, optimizer)
    kind = TRIED[pattern][0]
    final = {} if way == "dense" else kind.counts(model)
    active: dict[str, Tensor] = {}

    def check() -> None:
        nonlocal active
        exploring = sparsifier.phase == "explore"
        now = {name: model.get_parameter(name)[mask].detach().clone() for name, mask in sparsifier.masks.items()}
        if exploring and active:
            assert same(now, active)
        active = now if exploring else {}
        for name, mask in sparsifier.masks.items():
            assert is_legal(pattern, mask)
            if not exploring:
                assert (model.get_parameter(name)[~mask] == 0).all()

    train(model, trains, batches(STEPS), check)
    if way in SINGLE:
        assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == sum(kept for kept, _ in final.values())
    for name, (kept, size) in final.items() if way not in SINGLE else ():
        mask = sparsifier.masks[name]
        assert (int(mask.sum()), mask.numel()) == (kept * kind.unit_size, size * kind.unit_size)
        if pattern == "nm":
            assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all()
    plan = planned_ledger(sparsifier.method, Criterion.of(criterion), final, STEPS)
    booked = sparsifier.ledger
    assert list(plan) == list(booked)
    for phase, entry in plan.items():
        for field in dataclasses.fields(entry):
            expected, found = getattr(entry, field.name), getattr(booked[phase], field.name)
            if way in SINGLE and isinstance(expected, dict):  # which layers they will be in, nobody knows
                expected, found = (sum(n * final[name][1] for name, n in of.items()) for of in (expected, found))
            assert found == pytest.approx(expected, abs=1e-9), field.name


@pytest.mark.sampled(2)
@every
def test_resumed_as_if_never_interrupted(way: str, pattern: str, criterion: str, optimizer: str) -> None:
    model, trains, sparsifier = start(way, pattern, criterion, optimizer)
    data = batches(STEPS)
    train(model, trains, data[:25])
    states = copy.deepcopy([model.state_dict(), trains.state_dict(), sparsifier.state_dict()])
    other: nn.Module
    other, again, resumed = start(way, pattern, criterion, optimizer, seed=4)
    for one, state in zip((other, again, resumed), states, strict=True):
        one.load_state_dict(state)
    train(model, trains, data[25:])
    train(other, again, data[25:])
    assert same(snapshot(model), snapshot(other))
    assert resumed.history == sparsifier.history
    assert resumed.training_cost() == sparsifier.training_cost()
