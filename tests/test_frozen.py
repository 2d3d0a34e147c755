"""Frozen means bit-identical: through a whole exploration, for every kind of optimizer."""

from __future__ import annotations

import pytest
import schedulefree
import torch
from torch import nn

import regrow
from engine import attach, batches, loss_of, network, snapshot
from regrow.state import EXPLORED, FROZEN
from test_lockstep import OPTIMIZERS

ALL = OPTIMIZERS | {
    "nadam": lambda ps: torch.optim.NAdam(ps, 0.01, weight_decay=0.1),
    "radam": lambda ps: torch.optim.RAdam(ps, 0.01, weight_decay=0.1),
    "adamax": lambda ps: torch.optim.Adamax(ps, 0.01, weight_decay=0.1),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, 0.01, weight_decay=0.1),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, 0.1, weight_decay=0.1),
    "asgd": lambda ps: torch.optim.ASGD(ps, 0.01, weight_decay=0.1),
    "rprop": lambda ps: torch.optim.Rprop(ps, 0.001),
    "fused-adamw": lambda ps: torch.optim.AdamW(ps, 0.01, fused=True),
    "foreach-sgd": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=0.05, foreach=True),
    "schedulefree-sgd": lambda ps: schedulefree.SGDScheduleFree(ps, 0.1, weight_decay=0.05),
    "schedulefree-adamw": lambda ps: schedulefree.AdamWScheduleFree(ps, 0.01, weight_decay=0.05),
}


def explore(model: nn.Module, optimizers: list[torch.optim.Optimizer], sparsifier: regrow.Sparsifier) -> None:
    """Trains through two cycles and checks every step of both explorations."""
    before: dict = {}
    checked = 0
    for batch in batches(24):
        if sparsifier.phase == "explore" and not before:
            before = snapshot(model)
            masks = sparsifier.masks
            kept = {n: {k: v.clone() for k, v in state.held.items()} for n, state in sparsifier._states.items()}
        for one in optimizers:
            one.zero_grad()
        loss_of(model, batch).backward()
        for one in optimizers:
            one.step()
        for name, state in sparsifier._states.items():  # the invariant of every phase
            p = model.get_parameter(name).detach()
            code = state.code
            assert (p[code == 0] == 0).all()
            assert torch.equal(p[code == FROZEN], state.memory[code == FROZEN])
        if before:
            now = snapshot(model)
            ended = sparsifier.phase != "explore"
            for name, value in now.items():
                if name in masks:
                    assert torch.equal(value[masks[name]], before[name][masks[name]]), name
                    if not ended:
                        explored = sparsifier._states[name].code == EXPLORED
                        assert bool(masks[name].all()) or not torch.equal(value[explored], before[name][explored])
                elif ended or name in dict(model.named_parameters()):
                    assert torch.equal(value, before[name]), name
            for name, held in kept.items():
                for key, value in held.items():
                    state = optimizers[0].state[model.get_parameter(name)]
                    assert torch.equal(state[key][masks[name]], value[masks[name]])
            checked += 1
            if ended:
                before = {}
    assert checked == 6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("optimizer", ALL)
def test_through_exploration(optimizer: str, criterion: str) -> None:
    model = network()
    made = ALL[optimizer](model.parameters())
    if hasattr(made, "train"):
        made.train()
    explore(model, [made], attach(model, made, criterion=criterion))


def test_muon_with_adamw_beside_it() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
    )
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    muon = torch.optim.Muon(matrices, 0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(others, 0.01, weight_decay=0.1)
    explore(model, [muon, adamw], attach(model, [muon, adamw]))


def test_held_optimizer_state_really_is_there() -> None:
    model = network()
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), 0.1)
    optimizer.train()
    sparsifier = attach(model, optimizer)
    for batch in batches(10):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert sparsifier.phase == "explore"
    assert all("z" in state.held for state in sparsifier._states.values())


def test_without_freezing_everything_trains_on() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(model, optimizer, method=regrow.IEE(h=5, j=4, q=3, freeze=False))
    data = batches(10)
    for batch in data[:9]:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert sparsifier.phase == "explore"
    before, masks = snapshot(model), sparsifier.masks
    optimizer.zero_grad()
    loss_of(model, data[9]).backward()
    optimizer.step()
    for name in ("1.weight", "4.bias", "7.bias", "3.weight", "7.weight"):
        moved = model.get_parameter(name).detach() != before[name]
        assert (moved[masks[name]] if name in masks else moved).any(), name
