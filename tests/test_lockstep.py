"""The engine against the slow reference: same masks and same weights, bit for bit, after every step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import regrow
from engine import batches, network
from reference import ANY, Entries, Reference, Straight
from regrow.methods import METHODS
from regrow.patterns import EntryPattern

STEPS = 48
OPTIMIZERS = {
    "sgd-nesterov": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, nesterov=True),
    "sgd-decay": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=0.05),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, 0.003, momentum=0.5, centered=True),
}
OPTIONS = {
    "iee": {"h": 5, "j": 4, "q": 3},
    "rigl": {"interval": 7},
    "set": {"interval": 7},
    "gmp": {"interval": 7},
    "oneshot": {"h": 9},
    "static": {},
    "dense": {},
    "acdc": {"sparse": 7, "dense": 5, "warm_up": 0.1},
    "granet": {"interval": 7},
    "snfs": {"interval": 7},
    "dsr": {"interval": 7},
    "mest": {"interval": 7},
    "chase": {"interval": 7},
    "gap": {"interval": 7, "parts": 2},
    "ste": {"every": 3},
    "srste": {"every": 2},
}
STRAIGHT = {"p": math.inf, "scale": 1.0, "pull": 0.0, "ramp": None, "ramp_end": 0.75}  # and what each method changes


def options_of(method: str, criterion: str) -> dict:
    """What a method is tried with; soft projections go with magnitude only."""
    return OPTIONS[method] | ({"p": None} if method == "ste" and criterion != "magnitude" else {})


WEIGHTS = regrow.Weights(0.7, "erk")


def lockstep(
    method: str,
    options: dict,
    optimizer: str,
    criterion: str,
    pattern: EntryPattern = WEIGHTS,
    rule: Entries = ANY,
) -> None:
    """Holds a run to the slow engine, whose `rule` says what the pattern makes of entries."""
    fast, slow = network(), network()
    opt_fast, opt_slow = OPTIMIZERS[optimizer](fast.parameters()), OPTIMIZERS[optimizer](slow.parameters())
    sparsifier = regrow.Sparsifier(
        fast, opt_fast, pattern=pattern, method=METHODS[method](**options), criterion=criterion, total_steps=STEPS
    )
    counts = {name: active for name, (active, _) in pattern.counts(slow).items()} if method != "dense" else {}
    params = {name: slow.get_parameter(name) for name in counts}
    legal = {"rule": rule, "axes": pattern.select(slow).axes}
    reference: Reference | Straight
    if method in ("ste", "srste") or getattr(sparsifier.method, "speed", 0):
        own = (
            STRAIGHT
            | {"scale": getattr(sparsifier.method, "speed", 1.0)}
            | {name: value for name, value in vars(sparsifier.method).items() if value is not None}
        )
        reference = Straight(slow, params, opt_slow, counts, own, criterion, STEPS, **legal)
    else:
        reference = Reference(slow, params, opt_slow, counts, method, options, criterion, STEPS, **legal)
    for step, (x, y) in enumerate(batches(STEPS)):
        nn.functional.cross_entropy(fast(x), y).backward()
        opt_fast.step()
        opt_fast.zero_grad()
        reference.train(lambda model, x=x, y=y: nn.functional.cross_entropy(model(x), y))
        for name, mask in sparsifier.masks.items():
            assert set(mask.flatten().nonzero().flatten().tolist()) == reference.active[name], (step, name)
        for (name, a), b in zip(fast.state_dict().items(), slow.state_dict().values(), strict=True):
            assert torch.equal(a, b), (step, name)
    assert copy.deepcopy(sparsifier.phase) == "fixed"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if not kind.channels_only])
def test_every_method_with_every_optimizer(method: str, optimizer: str, criterion: str) -> None:
    lockstep(method, options_of(method, criterion), optimizer, criterion)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("optimizer", ["sgd-decay", "adamw"])
@pytest.mark.parametrize(
    "options",
    [
        {"grown_init": "explored"},
        {"grown_init": "zero"},
        {"reactivate": "zero", "grown_init": "explored"},
        {"freeze": False},
        {"improve": False},
        {"q": 0},
        {"q": 0, "shadow_speed": 0.0},
        {"q": 0, "start": "criterion"},
        {"j": 0, "q": 1},
        {"start": "criterion"},
        {"q": 0, "shadow_speed": 0.1},
        {"q": 0, "shadow_speed": 0.3, "shadow_every": 3},
        {"q": 0, "shadow_speed": 0.5, "p": 3.0},
        {"q": 0, "backward": 0.5},
        {"q": 0, "backward": 0.4, "candidates": "largest", "p": 1.0},
        {"q": 0, "improve": False, "j": 0, "h": 1, "update_end": 1.0},
        {"ramp": 0.0},
        {"ramp": 0.0, "ramp_end": 0.6, "update_end": 1.0},
        {"ramp": 0.5, "start": "criterion", "grown_init": "explored"},
    ],
    ids=str,
)
def test_every_option_of_iee(options: dict, optimizer: str) -> None:
    lockstep("iee", OPTIONS["iee"] | options, optimizer, "magnitude")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("optimizer", "criterion"), [("adamw", "taylor"), ("sgd-nesterov", "magnitude")])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("iee", {"start": "criterion", "start_steps": 6}),
        ("iee", {"start": "criterion", "start_steps": 6, "ramp": 0.5}),
        ("rigl", {"start": "criterion", "start_steps": 4}),
        ("set", {"start": "criterion", "start_steps": 1}),
        ("static", {"start": "criterion", "start_steps": 9}),
        ("gmp", {"initial_sparsity": 0.4, "start_steps": 5}),
        ("gmp", {"initial_sparsity": 0.4, "start_steps": 5, "begin_at": 8}),
    ],
    ids=str,
)
def test_a_start_after_steps_that_score(method: str, options: dict, criterion: str, optimizer: str) -> None:
    lockstep(method, OPTIONS[method] | options, optimizer, criterion)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_preview_with_every_optimizer(optimizer: str) -> None:
    lockstep("iee", {"h": 5, "update_end": 1.0, "shadow_speed": 0.3}, optimizer, "magnitude")


def test_a_preview_after_steps_that_score() -> None:
    lockstep("iee", {"h": 5, "j": 4, "q": 0, "start": "criterion", "start_steps": 6}, "adamw", "magnitude")
