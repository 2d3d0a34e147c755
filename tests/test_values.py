"""What is in pruned and frozen entries, whatever gradients hold, others write, the model is cast to or loads."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import regrow
from engine import attach, batches, loss_of, network, same, snapshot, train
from regrow.state import FROZEN, PRUNED, TRAINABLE, WeightState

PAPER = regrow.IEE(h=3, j=2, q=4, shadow_speed=0.0)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda model: torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1),
    "rprop": lambda model: torch.optim.Rprop(model.parameters(), 0.01),  # writes zeros after every step
}


def nonzero(sparsifier: regrow.Sparsifier, model: nn.Module) -> int:
    """How many pruned entries are something else than zero."""
    return sum(int((model.get_parameter(name)[~mask] != 0).sum()) for name, mask in sparsifier.masks.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_no_gradient_of_a_pruned_entry_reaches_the_network(optimizer, bad) -> None:
    results = []
    for poisoned in (False, True):
        model = network()
        made = OPTIMIZERS[optimizer](model)
        sparsifier = attach(model, made, method="static")
        for batch in batches(3):
            made.zero_grad()
            loss_of(model, batch).backward()
            if poisoned:
                for name, mask in sparsifier.masks.items():
                    model.get_parameter(name).grad[~mask] = bad
            made.step()
        assert nonzero(sparsifier, model) == 0
        results.append(snapshot(model))
    assert same(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_of_every_width_are_masked(dtype) -> None:
    param = nn.Parameter(torch.ones(3, 5, dtype=dtype))
    one = WeightState("w", param, dict, holds_zero=True)
    one.transition(torch.tensor([[TRAINABLE, PRUNED, TRAINABLE, PRUNED, PRUNED]] * 3, dtype=torch.uint8))
    param.grad = torch.tensor([[1.5, math.inf, -2.5, math.nan, 3.0]] * 3, dtype=dtype)
    one.mask_gradient()
    assert param.grad.tolist() == [[1.5, 0.0, -2.5, 0.0, 0.0]] * 3


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_memory_follows_an_optimizer_that_maximizes_uphill(make) -> None:
    moved = []
    for maximize in (False, True):
        model = nn.Linear(6, 6, bias=False)
        optimizer = make(model.parameters(), 0.1, maximize=maximize)
        sparsifier = regrow.Sparsifier(
            model, optimizer, pattern=regrow.Weights(0.5), method=regrow.IEE(h=50), total_steps=100, seed=1
        )
        (mask,) = sparsifier.masks.values()
        for _ in range(2):
            model.weight.grad = torch.ones(6, 6)
            optimizer.step()
        moved.append(sparsifier._states["weight"].memory[~mask])
    assert (moved[0] < 0).all()
    assert torch.equal(moved[0], -moved[1])


def noise(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.full_like(p, 0.01))


def past_autograd(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.data.copy_(p.data + 0.01)


def one_entry(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        model[7].weight[model[7].weight == 0] = torch.eye(int((model[7].weight == 0).sum()))[0]


def in_the_gradient(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def disturb(*_: object) -> None:
        handle.remove()
        for p in model.parameters():
            p.grad.add_(0.01)

    handle = optimizer.register_step_pre_hook(disturb)


@pytest.mark.parametrize("write", [noise, past_autograd, one_entry, in_the_gradient])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_others_write_is_gone_with_the_next_step_and_leaves_nothing(write, optimizer) -> None:
    model = network()
    made = OPTIMIZERS[optimizer](model)
    sparsifier = attach(model, made, method="static")
    train(model, made, batches(3))
    write(model, made)
    for batch in batches(4):
        train(model, made, [batch])
        assert nonzero(sparsifier, model) == 0
        for name, mask in sparsifier.masks.items():
            momentum = made.state[model.get_parameter(name)].get("momentum_buffer")
            assert momentum is None or (momentum[~mask] == 0).all()


def test_single_writes_into_a_large_layer_are_found_in_turn() -> None:
    model = nn.Linear(100, 60, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = attach(model, optimizer, method="static", pattern=regrow.Weights(0.9))
    (mask,) = sparsifier.masks.values()
    model.weight.data[tuple((~mask).nonzero()[7])] = 1.0  # past autograd's notice
    for _ in range(6):  # 6,000 entries, of which every step looks at 1,024 or a little more
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    assert nonzero(sparsifier, model) == 0


@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 2, 4, 6])
@pytest.mark.parametrize("optimizer", ["sgd", "schedule"])
def test_a_model_that_is_cast_on_the_way_goes_on_exactly(to, at, optimizer) -> None:
    model = network()
    made = sgd(model) if optimizer == "sgd" else torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(model, made, method=PAPER)
    counts = {name: int(mask.sum()) for name, mask in sparsifier.masks.items()}
    data = batches(10)
    train(model, made, data[:at])
    model.to(to)
    held: dict[str, Tensor] = {}
    for x, y in data[at:]:
        made.zero_grad()
        nn.functional.cross_entropy(model(x.to(to)), y).backward()
        made.step()
        assert nonzero(sparsifier, model) == 0 or sparsifier.phase == "explore"
        if sparsifier.phase != "explore":
            held.clear()
            continue
        for name, state in sparsifier._states.items():
            frozen = model.get_parameter(name).detach()[state.code == FROZEN]
            assert frozen.numel()
            assert torch.equal(held.setdefault(name, frozen), frozen)
    assert len(sparsifier.history) == 1
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == counts


def test_a_thin_model_that_is_cast_and_widened_keeps_what_was_removed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    optimizer = sgd(model)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(params=0.6, round_to=1), method=PAPER, total_steps=40,
        example_inputs=torch.zeros(2, 1, 6, 6),
    )  # fmt: skip
    train(model, optimizer, batches(2))
    model.double()
    for i, (x, y) in enumerate(batches(30)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        with sparsifier.full_width():
            assert model[0].weight.shape == (8, 1, 3, 3), i
            assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert len(sparsifier.history) == 3


def test_weights_loaded_in_an_exploration_stand() -> None:
    other = network(seed=4)
    for batch in batches(3):
        other(batch[0])
    for order in ("model", "model and optimizer", "twice"):
        model = network()
        optimizer = sgd(model)
        sparsifier = attach(model, optimizer, method=PAPER)
        train(model, optimizer, batches(6))
        assert sparsifier.phase == "explore"
        model.load_state_dict(other.state_dict())
        if order == "model and optimizer":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if order == "twice":
            model.load_state_dict(other.state_dict())
        train(model, optimizer, batches(1))
        assert sparsifier.phase == "explore"
        for name, state in sparsifier._states.items():
            frozen = state.code == FROZEN
            assert torch.equal(model.get_parameter(name)[frozen], other.get_parameter(name)[frozen])
        live = {name: b.clone() for name, b in model.named_buffers()}
        with sparsifier.sparse():  # with statistics that go on from the loaded ones, not those of the model before
            assert same(live, dict(model.named_buffers()))
