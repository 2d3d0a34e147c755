"""Channels in the engine: exact structures, budgets that hold, and thin training that computes what masked does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fixed_latency
import regrow
from channel_engine import DATA, IEE, METHODS, network
from regrow.coupling.couple import Coupling, couple
from regrow.errors import UserError
from regrow.latency.table import LatencyTable
from regrow.methods import METHODS as REGISTERED
from regrow.surgery.width import active_entries
from regrow.tracing.flops import count_flops

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
}
PATTERN = regrow.Channels(flops=0.4, round_to=2)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> regrow.Sparsifier:
    defaults = {"pattern": PATTERN, "method": IEE, "criterion": "taylor", "total_steps": 60}
    return regrow.Sparsifier(model, optimizer, example_inputs=DATA[0][0], **(defaults | options))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, each: Callable[[], None] | None = None
) -> None:
    for x, y in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)  # kept until the next one is there, as in most loops
        loss.backward()
        optimizer.step()
        if each:
            each()


@functools.cache  # a coupling names parameters and holds none: that of one dense network is that of all
def dense_coupling() -> Coupling:
    return couple(network(), DATA[0][0])


@functools.cache
def dense_flops() -> float:
    return count_flops(network(), DATA[0][0]).total


def flops_of(sparsifier: regrow.Sparsifier) -> float:
    """Of the structure, by counting a compacted copy of the dense network."""
    from regrow.surgery import resize

    assert sparsifier._units is not None
    thin = resize.compact(network(), dense_coupling(), sparsifier._units.active)  # type: ignore[attr-defined]
    return count_flops(thin, DATA[0][0]).total


def test_every_method_is_tried_or_refused() -> None:
    tried = {method.name for method, _ in METHODS.values()} | {"dense"}
    for name, kind in REGISTERED.items():
        if name not in tried:
            model = network()
            with pytest.raises(
                UserError, match=r"needs the gradients of what was removed|shares single weights out|share channels"
            ):
                attach(model, OPTIMIZERS["adamw"](model.parameters()), method=kind())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_budget_holds_and_what_is_removed_is_zero(name: str, thin: bool) -> None:
    method, criterion = METHODS[name]
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pattern = regrow.Channels(flops=0.4, round_to=2, thin=thin)
    sparsifier = attach(model, optimizer, pattern=pattern, method=method, criterion=criterion)
    coupling, dense = dense_coupling(), dense_flops()
    whole = dict(network().named_parameters())

    def check() -> None:
        masks = sparsifier.masks
        if thin and sparsifier.phase != "explore":
            kept = coupling.kept(sparsifier._units.active)  # type: ignore[union-attr]
            for param_name, p in model.named_parameters():
                expected = list(masks[param_name].shape) if param_name in masks else list(p.shape)
                for dim, stays in kept.get(param_name, {}).items():
                    expected[dim] = int(stays.sum())
                assert list(p.shape) == expected
        elif sparsifier.phase != "explore":
            for param_name, mask in masks.items():
                assert (model.get_parameter(param_name)[~mask] == 0).all()
        units = sparsifier._units
        assert units is not None
        params = {n: whole[n] for n in masks}
        expected_masks = active_entries(coupling, units.active, params)  # type: ignore[attr-defined]
        assert all(torch.equal(masks[n], expected_masks[n]) for n in masks)

    train(model, optimizer, DATA, check)
    assert sparsifier.phase == "fixed"
    assert 0.2 * dense < flops_of(sparsifier) <= 0.4 * dense
    for kept_count, size in sparsifier.widths().values():
        assert kept_count % 2 == 0 or kept_count == size


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, kind) for name in ("iee-taylor", "iee-explored") for kind in OPTIMIZERS),
        # with momentum and without, decoupled decay and not: those two methods have all that the optimizers differ in
        *(
            (name, kind)
            for name in ("iee-magnitude", "iee-zero", "halp", "iee-ramp", "iee-start")
            for kind in ("sgd-momentum", "adamw")
        ),
    ],
)
def test_thin_training_computes_what_masked_training_does(name: str, optimizer: str) -> None:
    method, criterion = METHODS[name]
    weights = []
    for thin in (True, False):
        model = network().double()
        one = OPTIMIZERS[optimizer](model.parameters())
        data = [(x.double(), y) for x, y in DATA]
        pattern = regrow.Channels(flops=0.4, round_to=2, thin=thin)
        sparsifier = regrow.Sparsifier(
            model, one, pattern=pattern, method=method, criterion=criterion, total_steps=60, example_inputs=data[0][0]
        )
        train(model, one, data[:50])
        assert len(sparsifier.history) >= 3
        with sparsifier.full_width():
            weights.append((sparsifier.masks, {k: v.clone() for k, v in model.state_dict().items()}))
    (thin_masks, thin_state), (masks, state) = weights
    assert all(torch.equal(thin_masks[name], masks[name]) for name in masks)
    for key, value in state.items():
        assert torch.allclose(value, thin_state[key], atol=1e-5), key


@pytest.mark.parametrize("thin", [True, False])
def test_a_structure_chosen_from_a_trained_model_is_that_of_one_shot_pruning(thin: bool) -> None:
    pattern = regrow.Channels(flops=0.4, round_to=2, thin=thin)
    found = []
    for method in (regrow.Static(start="criterion", start_steps=5), regrow.OneShot(h=5)):
        model = network()
        optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
        sparsifier = attach(model, optimizer, pattern=pattern, method=method)
        train(model, optimizer, DATA[:4])
        assert all(kept == size for kept, size in sparsifier.widths().values())
        train(model, optimizer, DATA[4:10])
        assert any(kept < size for kept, size in sparsifier.widths().values())
        found.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


@pytest.mark.parametrize("thin", [True, False])
def test_exploration_holds_the_active_channels_bit_for_bit(thin: bool) -> None:
    model = network()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier = attach(model, optimizer, pattern=regrow.Channels(params=0.5, round_to=2, thin=thin))
    train(model, optimizer, DATA[:7])
    assert sparsifier.phase == "explore"
    masks = sparsifier.masks
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, DATA[7:9])
    assert sparsifier.phase == "explore"
    moved = 0
    for name, p in model.named_parameters():
        if name not in masks:
            assert torch.equal(p, before[name])
        else:
            assert torch.equal(p[masks[name]], before[name][masks[name]])
            moved += int((p != before[name])[~masks[name]].sum())
    assert moved > 0


STOPS = {"iee-taylor": tuple(range(1, 32, 3)), "iee-start": (3, 5, 6)}


def for_resuming(thin: bool, name: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
    model = network(seed)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pattern = regrow.Channels(flops=0.4, round_to=2, thin=thin)
    return model, optimizer, attach(model, optimizer, pattern=pattern, method=METHODS[name][0])


@functools.cache
def uninterrupted(thin: bool, name: str) -> tuple[dict[int, Any], dict[str, Tensor], regrow.Sparsifier]:
    """What is saved at each stop of one run, and how it ends."""
    model, optimizer, sparsifier = for_resuming(thin, name, 3)
    saved, done = {}, 0
    for stop in STOPS[name]:
        train(model, optimizer, DATA[done:stop])
        done = stop
        with sparsifier.full_width():
            saved[stop] = {
                "model": {k: v.clone() for k, v in model.state_dict().items()},
                "optimizer": {**optimizer.state_dict(), "state": _cloned(optimizer.state_dict()["state"])},
                "sparsifier": sparsifier.state_dict(),
            }
    train(model, optimizer, DATA[done:40])
    return saved, dict(model.state_dict()), sparsifier


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "stop"), [(name, stop) for name, stops in STOPS.items() for stop in stops])
@pytest.mark.parametrize("thin", [True, False])
def test_resuming_is_exact(thin: bool, name: str, stop: int) -> None:
    states, end, sparsifier = uninterrupted(thin, name)
    saved = copy.deepcopy(states[stop])
    again, optimizer2, sparsifier2 = for_resuming(thin, name, 4)
    with sparsifier2.full_width():
        again.load_state_dict(saved["model"])
        optimizer2.load_state_dict(saved["optimizer"])
        sparsifier2.load_state_dict(saved["sparsifier"])
    train(again, optimizer2, DATA[stop:40])
    assert sparsifier.widths() == sparsifier2.widths()
    assert all(torch.equal(a, b) for a, b in zip(end.values(), again.state_dict().values(), strict=True))
    assert sparsifier.history == sparsifier2.history


def _cloned(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {i: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for i, s in state.items()}


@pytest.mark.parametrize("stop", [2, 6, 8, 60])
@pytest.mark.parametrize("thin", [True, False])
def test_compact_gives_a_smaller_model_that_computes_the_same(thin: bool, stop: int) -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    sparsifier = attach(model, optimizer, pattern=regrow.Channels(flops=0.4, round_to=2, thin=thin))
    train(model, optimizer, DATA[:stop])
    sparsifier.finalize()
    model.eval()
    expected = model(DATA[0][0])
    dense = dense_flops()
    assert sparsifier.compact() is model
    assert torch.allclose(model(DATA[0][0]), expected, atol=1e-5)
    assert count_flops(model, DATA[0][0]).total <= 0.4 * dense


def test_sparse_shows_the_active_structure_while_others_are_explored() -> None:
    outputs = []
    for stop in (7, 9):
        model = network()
        optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
        sparsifier = attach(model, optimizer)
        train(model, optimizer, DATA[:stop])
        assert sparsifier.phase == "explore"
        model.eval()
        with sparsifier.sparse():
            outputs.append(model(DATA[0][0]))
    assert torch.equal(*outputs)


def test_several_budgets_hold_together() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = attach(model, optimizer, pattern=regrow.Channels(flops=0.5, params=0.4, round_to=2))
    train(model, optimizer, DATA)
    dense = dense_flops()
    sparsifier.compact()
    assert count_flops(model, DATA[0][0]).total <= 0.5 * dense
    assert sum(p.numel() for p in model.parameters()) <= 0.4 * sum(p.numel() for p in network().parameters())


def test_the_record_of_an_update() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = attach(model, optimizer)
    train(model, optimizer, DATA[:20])
    for record in sparsifier.history:
        assert 0 < record["flops"] <= 0.4
        assert record["grown"] <= record["pruned"] + 40
        assert 0 < record["iou"] <= 1


def test_on_resize_is_called_after_each_change_of_shape() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    calls: list[int] = []
    steps = [0]
    attach(model, optimizer, on_resize=lambda: calls.append(steps[0]))

    def each() -> None:
        steps[0] += 1

    train(model, optimizer, DATA[:10], each)
    assert calls[0] == 0  # the start
    assert calls[-2:] == [6, 9]  # steps done before the ones that ended in exploration, and out of it


def test_cost_is_counted_at_full_width() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = attach(model, optimizer, method=regrow.Uniform())
    train(model, optimizer, DATA)
    cost = sparsifier.training_cost()
    assert 0.2 < cost["total"] <= 0.4
    thin = [p.shape for p in model.parameters()]
    assert sparsifier.training_cost(DATA[0][0]) == cost
    assert [p.shape for p in model.parameters()] == thin
    sparsifier.compact()
    assert sparsifier.training_cost() == cost
    with pytest.raises(UserError, match="the dense model to compare with is gone"):
        sparsifier.training_cost(DATA[0][0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": regrow.Channels(flops=0.01, round_to=2)}, r"flops=0.01 cannot.*smallest that can is 0\.\d+"),
        ({"method": regrow.RigL(interval=5), "criterion": "magnitude"}, "rigl needs the gradients"),
        ({"method": regrow.IEE(h=4, j=0, q=0, shadow_speed=0.1), "criterion": "l2"}, "iee needs the gradients"),
        ({"pattern": regrow.Weights(0.5), "method": regrow.HALP(prunings=2, interval=2)}, "halp removes channels"),
        ({"method": regrow.HALP()}, "too short for 30 prunings"),
        ({"pattern": regrow.Channels(latency=0.5, table="nowhere.json")}, "nowhere.json cannot be read"),
        ({"method": regrow.Static(start="criterion", start_steps=0)}, "needs gradients"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_the_door(options: dict[str, Any], said: str) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=said):
        attach(model, OPTIMIZERS["sgd"](model.parameters()), **options)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_example_inputs_are_asked_for() -> None:
    model = network()
    with pytest.raises(UserError, match="example_inputs"):
        regrow.Sparsifier(model, OPTIMIZERS["sgd"](model.parameters()), pattern=PATTERN, method=IEE, total_steps=60)


def test_a_wrapped_model_needs_a_way_to_be_wrapped_anew() -> None:
    model = network()

    class DistributedDataParallel(nn.Module):  # what the check looks for
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(UserError, match="on_resize"):
        attach(DistributedDataParallel(model), OPTIMIZERS["sgd"](model.parameters()))


def test_a_measured_table_can_be_kept_and_its_user_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def profile(model: nn.Module, example: Any, **options: Any) -> Any:
        asked.append(options)
        return fixed_latency.profile(model, example)

    monkeypatch.setattr("regrow.profiling.profile", profile)
    path = tmp_path / "latency.json"
    widths = []
    for table in (None, path):
        model = network(3)
        pattern = regrow.Channels(latency=0.7, round_to=2, table=table)
        sparsifier = attach(model, OPTIMIZERS["sgd"](model.parameters()), pattern=pattern)
        assert sparsifier.latency_table is not None
        sparsifier.latency_table.save(path)
        widths.append(sparsifier.widths())
    assert len(asked) == 1
    assert "progress" not in asked[0]  # which a terminal gets by default
    assert widths[0] == widths[1]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2  # before and after; the second time nothing is measured
    assert err.startswith("regrow measures what the layers of this model cost on this machine, which takes up to a min")
    for said in ("sparsifier.latency_table.save('latency.json')", "table='latency.json'", "`regrow profile`"):
        assert said in err
    with pytest.raises(UserError, match="cannot be met"):
        attach(model, OPTIMIZERS["sgd"](model.parameters()), pattern=regrow.Channels(latency=1e-3, round_to=2))
    assert "sparsifier" not in capsys.readouterr().err  # there is none whose table could be kept
    model = network(3)
    sparsifier = attach(model, OPTIMIZERS["sgd"](model.parameters()), pattern=regrow.Channels(params=0.7, round_to=2))
    assert sparsifier.latency_table is None


def test_latency_is_measured_where_no_table_is_given_and_goes_along_in_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured, tables = [], []

    def profile(model: nn.Module, example: Any, **_: Any) -> tuple[LatencyTable, list[tuple[float, float]]]:
        measured.append(fixed_latency.table_of(model, example, scale=1.0 + len(measured)))  # never twice the same
        return measured[-1], []

    monkeypatch.setattr("regrow.profiling.profile", profile)
    saved: dict[str, Any] = {}
    for seed in (3, 4):
        model = network(seed)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pattern = regrow.Channels(latency=0.7, round_to=2)
        sparsifier = attach(model, optimizer, pattern=pattern)
        units = sparsifier._units
        assert units is not None
        with sparsifier.full_width():
            if saved:
                sparsifier.load_state_dict(saved)
            else:
                saved = sparsifier.state_dict()
        tables.append((units.prices.dense, units.budgets.amounts, sparsifier.widths()))  # type: ignore[attr-defined]
    assert len(measured) == 2
    assert measured[0].model() < measured[1].model()
    assert tables[0] == tables[1]
    kept = {name: kept for name, (kept, _) in tables[0][2].items()}
    assert units.prices.cost(kept)["latency"] <= 0.7 * units.prices.dense["latency"]  # type: ignore[attr-defined]
