"""Counts are exact after every transition, per layer and in total; pruned weights are exactly zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regrow
from engine import batches, loss_of, network, train
from regrow.actions import Explore, Prune, counts_at, kept, sparsity_of
from regrow.methods import GMP, IEE, METHODS, SET, RigL, Static

METHODS_SHORT = [
    IEE(h=3, j=2, q=2),
    IEE(h=3, j=2, q=2, ramp=0.2),
    IEE(h=2, j=2, q=0),
    RigL(interval=5),
    SET(interval=5),
    GMP(interval=5),
    Static(),
    METHODS["oneshot"](),
]


def check(model: nn.Module, sparsifier: regrow.Sparsifier, target: dict[str, tuple[int, int]]) -> None:
    """Everything that holds at any step, from what the method has asked for last."""
    timeline, method = sparsifier._engine.timeline, sparsifier.method
    span = timeline.phase_at(sparsifier.step_count)
    if span.phase == "fixed":
        expected = {name: active for name, (active, _) in target.items()}
    else:
        actions = list(method.at_start(sparsity_of(target)))
        for step in range(sparsifier.step_count + 1):
            for boundary in timeline.ended_at(step):
                actions += method.at_end(boundary, sparsity_of(target))
        last = [action for action in actions if not isinstance(action, Explore)][-1]
        expected = counts_at(target, last.sparsity)
        if isinstance(last, Prune):
            expected = {name: kept(n, target[name][1], last.churn) for name, n in expected.items()}
    masks = sparsifier.masks
    if sparsifier.pattern.ranks_globally:
        assert sum(int(m.sum()) for m in masks.values()) == sum(expected.values())
        assert all(m.any() for m in masks.values())
    else:
        assert {name: int(mask.sum()) for name, mask in masks.items()} == expected
    with sparsifier.sparse():
        for name, mask in masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
    if not span.explores:
        for name, mask in masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()


def run(model, data, pattern, method, criterion="magnitude", lr=0.05) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    target = pattern.counts(model)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=pattern, method=method, criterion=criterion, total_steps=len(data)
    )
    check(model, sparsifier, target)
    train(model, optimizer, data, lambda: check(model, sparsifier, target))
    total = sum(n for _, n in target.values())
    assert sparsifier.density() == sum(a for a, _ in target.values()) / total


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS_SHORT, ids=repr)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "global", {"3": 0.5, "7.weight": 0.11}], ids=str)
def test_after_every_step(distribution, scope, method) -> None:
    run(network(), batches(30), regrow.Weights(0.8, distribution, scope), method)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS_SHORT, ids=repr)
@pytest.mark.parametrize("criterion", ["magnitude", "random", lambda w: torch.zeros_like(w), lambda w, g: g.sign()])
def test_with_tied_scores(method, criterion) -> None:
    model = network()
    if not isinstance(criterion, str):
        if isinstance(method, METHODS["oneshot"]) and criterion.__code__.co_argcount == 2:
            method = METHODS["oneshot"](h=5)
        if method == IEE(h=2, j=2, q=0) and criterion.__code__.co_argcount == 2:
            pytest.skip("a gradient criterion needs steps to explore")
        if isinstance(method, GMP) and criterion.__code__.co_argcount == 2:
            method = GMP(interval=5)
    for p in model.parameters():  # every weight the same size
        p.data = p.data.sign() * 0.1
    run(model, batches(30), regrow.Weights(0.9, "erk"), method, criterion, lr=0.0)


@pytest.mark.parametrize("method", METHODS_SHORT, ids=repr)
def test_tiny_layers_and_extreme_sparsity(method) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 200), nn.Linear(200, 1), nn.Linear(1, 1), nn.Linear(1, 5))
    for distribution in ("uniform", "erk", "global"):
        run(model, batches(30), regrow.Weights(0.999, distribution, include=["1", "2", "3", "4"]), method)


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.floats(0, 0.98),
    h=st.integers(1, 6),
    j=st.integers(0, 4),
    q=st.integers(0, 4),
    start=st.floats(0.01, 0.99),
    shape=st.sampled_from(["cosine", "exponential", "linear", "constant"]),
    ramp=st.none() | st.floats(0, 0.9),
    scope=st.sampled_from(["layer", "global"]),
)
def test_any_iee(sparsity, h, j, q, start, shape, ramp, scope) -> None:
    method = IEE(h=h, j=j, q=q, budget=regrow.Budget(shape, start), ramp=ramp)
    run(network(), batches(20), regrow.Weights(sparsity, "erk", scope), method)


def test_records_add_up() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.7, "erk"), method=IEE(h=3, j=2, q=2), total_steps=60
    )
    before, pruned_to, grown_before = sparsifier.masks, {}, {}
    for batch in batches(60):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        phase, updates = sparsifier.phase, len(sparsifier.history)
        optimizer.step()
        if phase == "estimate" and sparsifier.phase == "improve":
            pruned_to = sparsifier.masks
        if len(sparsifier.history) > updates:
            after, record = sparsifier.masks, sparsifier.history[-1]
            pruned, grown, regrown, union, common, survived = (
                sum(int(mask.sum()) for mask in masks)
                for masks in (
                    [before[n] & ~pruned_to[n] for n in after],
                    [after[n] & ~pruned_to[n] for n in after],
                    [after[n] & ~pruned_to[n] & before[n] for n in after],
                    [before[n] | after[n] for n in after],
                    [before[n] & after[n] for n in after],
                    [grown_before[n] & pruned_to[n] for n in grown_before],
                )
            )
            assert (record["pruned"], record["grown"], record["regrown"]) == (pruned, grown, regrown)
            assert record["iou"] == common / union
            total = sum(int(mask.sum()) for mask in grown_before.values())
            assert record["survival"] == (survived / total if total else None)
            assert (record["update"], record["step"]) == (updates + 1, sparsifier.step_count)
            grown_before = {n: after[n] & ~pruned_to[n] for n in after}
            before = after
    assert len(sparsifier.history) == math.floor(0.75 * 60 / 7)
