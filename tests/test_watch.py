"""A sparsifier that loses hold of its parameters says so, instead of letting the model train dense."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

import regrow
from engine import attach, batches, loss_of, network, train
from regrow.errors import UserError


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    train(model, optimizer, batches(1))


def replaced(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def sharded(model: nn.Module) -> None:  # as FSDP2 does it: every parameter becomes another object
    for module in model.modules():
        for key, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[key] = nn.Parameter(p.detach().clone())


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[7])


def assigned(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def with_another_layer(model: nn.Module) -> None:  # as heads are replaced
    model[7] = nn.Linear(model[7].in_features, model[7].out_features)


@pytest.mark.parametrize("change", [replaced, sharded, parametrized, assigned, with_another_layer])
def test_parameters_that_are_others_are_noticed_at_the_next_step(change: Any) -> None:
    model = network()
    optimizer = sgd(model)
    attach(model, optimizer)
    step(model, optimizer)
    change(model)
    with pytest.raises(UserError, match=r"\d\.weight is not the parameter any more that regrow was attached to"):
        step(model, optimizer)


@pytest.mark.parametrize("change", [replaced, sharded, assigned])
def test_others_that_another_optimizer_trains_are_noticed_too(change: Any) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    step(model, optimizer)
    change(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    other = sgd(model)  # which has nothing of what was attached to
    with pytest.raises(UserError, match=r"\d\.weight is not the parameter any more that regrow was attached to"):
        step(model, other)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    sparsifier.detach()
    step(model, other)


def other_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(model)


def other_kind(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), fused=True)


def only_one_layer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([model[7].weight], 0.1)


@pytest.mark.parametrize("make", [other_sgd, other_kind, only_one_layer])
def test_another_optimizer_is_noticed_at_its_first_step(make: Any) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    step(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    other = make(model)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(UserError, match="would be trained by an optimizer that regrow is not attached to"):
        other.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    sparsifier.detach()
    other.step()


def test_a_second_sparsifier_on_the_same_parameters_is_noticed() -> None:
    model = network()
    first = attach(model, sgd(model))
    second = sgd(model)
    attach(model, second)
    with pytest.raises(UserError, match="regrow is not attached to"):
        step(model, second)
    first.detach()
    step(model, second)


def test_optimizers_of_other_models_and_layers_are_left_alone() -> None:
    model, other = network(), network(seed=1)
    mine = torch.optim.SGD([p for p in model.parameters() if p.dim() > 1], 0.1)
    norms = torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], 0.1)
    attach(model, [mine, norms])
    step(other, sgd(other))
    step(model, mine)
    norms.step()


def test_the_hook_on_all_optimizers_goes_with_detach() -> None:
    before = len(torch_optimizer._global_optimizer_pre_hooks)
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before + 1
    sparsifier.detach()
    assert len(torch_optimizer._global_optimizer_pre_hooks) == before


@pytest.mark.parametrize("pattern", [regrow.Weights(0.5), regrow.Channels(params=0.6, round_to=1)])
def test_one_that_is_given_up_with_its_optimizer_is_in_nobodys_way(pattern: regrow.patterns.Pattern) -> None:
    model = network()
    for _ in range(3):  # as in a notebook whose cell runs again
        model, optimizer = network() if pattern.name == "channels" else model, None
        optimizer = sgd(model)
        sparsifier = attach(model, optimizer, pattern=pattern, method="static", example_inputs=batches(1)[0][0])
        step(model, optimizer)
        del sparsifier


@pytest.mark.parametrize("steps", [3, 10])
def test_a_step_inside_sparse_is_refused(steps: int) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    train(model, optimizer, batches(steps))
    loss_of(model, batches(1)[0]).backward()
    with sparsifier.sparse(), pytest.raises(UserError, match=r"inside sparse\(\)"):
        optimizer.step()
    optimizer.step()
    assert sparsifier.step_count == steps + 1


def thin() -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    sparsifier = attach(
        model, optimizer, pattern=regrow.Channels(params=0.6, round_to=1), method=regrow.IEE(h=2, j=2, q=2),
        criterion="taylor", example_inputs=batches(1)[0][0],
    )  # fmt: skip
    return model, optimizer, sparsifier


class TestThinCheckpoints:
    def test_outside_of_full_width_each_is_refused_with_the_way_out(self) -> None:
        model, optimizer, sparsifier = thin()
        train(model, optimizer, batches(8))
        weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        with sparsifier.full_width():
            whole = copy.deepcopy(sparsifier.state_dict())
        for refused in (
            sparsifier.state_dict,
            lambda: model.load_state_dict(weights),
            lambda: optimizer.load_state_dict(state),
        ):
            with pytest.raises(UserError, match=r"inside `with sparsifier\.full_width\(\):`"):
                refused()
        sparsifier.load_state_dict(whole)  # widens by itself

    def test_inside_it_a_run_goes_on_bit_for_bit(self) -> None:
        model, optimizer, sparsifier = thin()
        train(model, optimizer, batches(8))
        with sparsifier.full_width():
            saved = copy.deepcopy([one.state_dict() for one in (model, optimizer, sparsifier)])
        train(model, optimizer, batches(9, seed=1))
        others = thin()
        with others[2].full_width():
            for one, state in zip(others, saved, strict=True):
                one.load_state_dict(state)
        train(others[0], others[1], batches(9, seed=1))
        assert sparsifier.widths() == others[2].widths()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), others[0].parameters(), strict=True))

    def test_copies_of_the_model_load_what_they_like(self) -> None:
        model, optimizer, _ = thin()
        train(model, optimizer, batches(3))
        twin = copy.deepcopy(model)
        twin.load_state_dict(model.state_dict())

    def test_what_was_trained_thin_loads_after_the_end(self) -> None:
        model, optimizer, sparsifier = thin()
        train(model, optimizer, batches(8))
        sparsifier.compact()
        model.load_state_dict(copy.deepcopy(model.state_dict()))


class Lookup(nn.Module):
    """A sparse embedding beside a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(x).mean(1))


class TestSparseGradients:
    def test_beside_what_is_sparsified_they_are_left_alone(self) -> None:
        model = Lookup()
        optimizers = [torch.optim.SparseAdam([model.table.weight]), torch.optim.Adam(model.out.parameters())]
        sparsifier = regrow.Sparsifier(
            model, optimizers, pattern=regrow.Weights(0.5), method=regrow.IEE(h=2, j=2, q=2), total_steps=12
        )
        before = model.table.weight.detach().clone()
        for _ in range(12):
            model(torch.arange(10).view(2, 5)).square().sum().backward()
            for one in optimizers:
                one.step()
                one.zero_grad()
        assert int((model.out.weight != 0).sum()) == int(sparsifier.masks["out.weight"].sum()) == 24
        assert not torch.equal(before, model.table.weight)

    def test_of_what_is_sparsified_they_are_refused_by_name(self) -> None:
        model = Lookup()
        sparse, dense = torch.optim.SparseAdam([model.table.weight]), torch.optim.Adam(model.out.parameters())
        pattern = regrow.Weights(0.5, include=["table.weight"])
        with pytest.raises(UserError, match=r"SparseAdam does not work with regrow, and it trains table\.weight"):
            regrow.Sparsifier(model, [sparse, dense], pattern=pattern, method="static", total_steps=5)

    def test_lbfgs_only_where_it_trains_what_is_sparsified(self) -> None:
        model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
        lbfgs, sgd = torch.optim.LBFGS(model[1].parameters()), torch.optim.SGD(model[0].parameters(), 0.1)
        with pytest.raises(UserError, match=r"LBFGS does not work with regrow, and it trains 1\.weight"):
            regrow.Sparsifier(model, [sgd, lbfgs], pattern=regrow.Weights(0.5), method="static", total_steps=5)
        regrow.Sparsifier(
            model, [sgd, lbfgs], pattern=regrow.Weights(0.5, "erk", exclude=["1"]), method="static", total_steps=5
        )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Wrapped(nn.Module):
    """As activation checkpointing wraps layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def replace_deep(model: Nested) -> None:
    model.body[1][1] = nn.Linear(16, 8)


def replace_above(model: Nested) -> None:
    model.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def remove(model: Nested) -> None:
    del model.body[1][1]


@pytest.mark.parametrize("change", [replace_deep, replace_above, remove])
def test_modules_that_are_others_are_noticed(change: Any) -> None:
    model = Nested()
    optimizer = sgd(model)
    regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5, "erk"), method="rigl", total_steps=1000)
    change(model)
    model(torch.randn(2, 8)).square().mean().backward()
    with pytest.raises(UserError, match=r"body\.1\.1\.weight is not the parameter any more|body\.0\.weight is not"):
        optimizer.step()


def test_modules_that_are_only_wrapped_go_on() -> None:
    model = Nested()
    optimizer = sgd(model)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.5, "erk"), method="rigl", total_steps=1000
    )
    for wrap in (Wrapped, lambda inner: torch.compile(inner, backend="eager")):
        model.body[1] = wrap(model.body[1])
        for _ in range(3):
            model(torch.randn(2, 8)).square().mean().backward()
            optimizer.step()
    assert sparsifier.density() == sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1) / 256


@pytest.mark.filterwarnings("ignore:.*updates fit")
def test_writing_a_model_while_units_are_on_trial_warns(tmp_path: Any) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, method=regrow.IEE(h=2, j=1, q=3), total_steps=12)
    while sparsifier.phase != "explore":
        step(model, optimizer)
    with pytest.warns(UserWarning, match=r"on trial in this model.*with sparsifier\.sparse"):
        regrow.save(model, tmp_path / "saved")
    with pytest.warns(UserWarning, match="on trial in this model"):
        regrow.export(model, tmp_path / "file.safetensors", "safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with sparsifier.sparse():
            regrow.save(model, tmp_path / "sparse")
        regrow.save(copy.deepcopy(model), tmp_path / "copy")  # which nobody explores
        while sparsifier.phase == "explore":
            step(model, optimizer)
        regrow.save(model, tmp_path / "later")
