"""What people do to a model, an optimizer and a sparsifier beside training them."""

from __future__ import annotations

import copy
import pickle

import pytest
import schedulefree
import timm.optim
import torch
from torch import nn

import regrow
from engine import attach, batches, loss_of, network, same, snapshot, train
from regrow.criteria import Criterion
from regrow.errors import UserError
from regrow.state import FROZEN


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 0.01),
    "schedulefree": lambda m: schedulefree.SGDScheduleFree(m.parameters(), 0.1),
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("step", [3, 7, 10, 11, 12, 13, 40])
def test_resumed_where_everything_was_loaded_before_attaching(step, optimizer) -> None:
    data = batches(50)

    def fresh():
        model = network()
        made = OPTIMIZERS[optimizer](model)
        if hasattr(made, "train"):
            made.train()
        return model, made

    model, made = fresh()
    sparsifier = attach(model, made)
    train(model, made, data[:step])
    state = copy.deepcopy((model.state_dict(), made.state_dict(), sparsifier.state_dict()))
    train(model, made, data[step:])
    for touch in (False, True):
        other, second = fresh()
        other.load_state_dict(state[0])
        second.load_state_dict(copy.deepcopy(state[1]))  # an optimizer keeps the very tensors
        resumed = attach(other, second)
        if touch:  # as wrapping a model in DistributedDataParallel does
            for p in other.parameters():
                p.data.copy_(p.data.clone())
        resumed.load_state_dict(state[2])
        train(other, second, data[step:])
        assert same(snapshot(model), snapshot(other))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "method",
    [regrow.IEE(h=5, j=4, q=3), regrow.IEE(h=5, j=4), regrow.STE(every=5, update_end=1.0), regrow.RigL(interval=7)],
    ids=["exploration", "preview", "latent", "estimate"],
)
def test_what_runs_can_be_set_back_or_ahead_in_the_middle_of_any_phase(method, optimizer) -> None:
    data = batches(40)
    model = network()
    parts = (model, OPTIMIZERS[optimizer](model))
    parts = (*parts, attach(*parts, method=method, total_steps=40))
    states = []
    for batch in data:
        states.append(copy.deepcopy([part.state_dict() for part in parts]))
        train(*parts[:2], [batch])
    end, masks = snapshot(model), parts[2].masks
    for leaves, to in [(40, 2), (10, 7), (9, 11), (14, 3), (12, 30), (33, 10)]:
        for order in ((0, 1, 2), (2, 1, 0)):
            if leaves < 40:  # at the end it stands by itself
                for i in order:
                    parts[i].load_state_dict(copy.deepcopy(states[leaves - 1][i]))
                train(*parts[:2], data[leaves - 1 : leaves])
            for i in order:
                parts[i].load_state_dict(copy.deepcopy(states[to][i]))
            assert same(snapshot(model), states[to][0]), (leaves, to, order)
            train(*parts[:2], data[to:])
            assert same(end, snapshot(model)), (leaves, to, order)
            assert same(masks, parts[2].masks), (leaves, to, order)


def test_weights_or_momentum_loaded_from_outside_do_not_stay() -> None:
    dense, dense_optimizer = network(), None
    dense_optimizer = sgd(dense)
    train(dense, dense_optimizer, batches(3))
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, method="static")
    train(model, optimizer, batches(2))
    model.load_state_dict(dense.state_dict())
    optimizer.load_state_dict(dense_optimizer.state_dict())
    for batch in batches(3):
        train(model, optimizer, [batch])
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
            assert mask.any()


def test_an_optimizer_that_has_trained_before() -> None:
    model = network()
    optimizer = sgd(model)
    train(model, optimizer, batches(5))
    sparsifier = attach(model, optimizer, method=regrow.Static(start="criterion"))
    for batch in batches(5):
        train(model, optimizer, [batch])
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
            assert (optimizer.state[model.get_parameter(name)]["momentum_buffer"][~mask] == 0).all()


@pytest.mark.parametrize("order", [0, 1])
def test_grad_scaler_with_two_optimizers(order) -> None:
    results = []
    for scale in (None, 2.0**8):
        model = mlp()
        muon = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], 0.02)
        adamw = torch.optim.AdamW([p for p in model.parameters() if p.dim() != 2], 0.01)
        both = [muon, adamw][:: -1 if order else 1]
        sparsifier = attach(model, both, criterion="taylor")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for batch in batches(50):
            for one in both:
                one.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            for one in both:
                scaler.step(one)
            scaler.update()
        assert sparsifier.step_count == 50
        results.append((sparsifier.masks, snapshot(model)))
    assert same(results[0][0], results[1][0])


@pytest.mark.parametrize("kind", [schedulefree.SGDScheduleFree, schedulefree.AdamWScheduleFree])
def test_schedulefree_may_evaluate_inside_an_exploration(kind) -> None:
    def run(evaluate: bool):
        model = network()
        optimizer = kind(model.parameters(), 0.02)
        optimizer.train()
        sparsifier = attach(model, optimizer)
        for batch in batches(12):
            train(model, optimizer, [batch])
            if evaluate and sparsifier.step_count in (4, 7, 10, 11):
                optimizer.eval()
                averaged = snapshot(model)
                with sparsifier.sparse():
                    for name, mask in sparsifier.masks.items():
                        p = model.get_parameter(name)
                        assert torch.equal(p[mask], averaged[name][mask])
                        assert (p[~mask] == 0).all()
                optimizer.train()
        return model, sparsifier

    (plain, one), (evaluated, two) = run(False), run(True)
    for name, p in plain.named_parameters():
        if not name.endswith("bias"):  # before a norm, it only has noise for a gradient, which Adam blows up
            torch.testing.assert_close(p, evaluated.get_parameter(name), rtol=1e-3, atol=1e-4)  # train(eval(x)) rounds
    assert same(one.masks, two.masks)


def test_only_norms_are_put_back_after_an_exploration() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.register_buffer("view", torch.zeros(1).expand(5))
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("last", torch.zeros(0))

        def forward(self, x):
            self.count += 1
            self.last = torch.zeros(int(self.count))
            return self.net(x)

    model = Model()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    for batch in batches(12):
        train(model, optimizer, [batch])
        with sparsifier.sparse():
            pass
    assert model.count == 12
    assert len(sparsifier.history) == 1


def test_a_criterion_that_changes_its_arguments_is_refused() -> None:
    for criterion in (lambda weight, grad: weight.mul_(grad).abs(), lambda weight: weight.abs_()):
        model = network()
        optimizer = sgd(model)
        attach(model, optimizer, criterion=criterion)
        with pytest.raises(UserError, match="changes its arguments in place"):
            train(model, optimizer, batches(6))


def test_a_criterion_may_return_its_argument() -> None:
    results = []
    for criterion in (lambda weight, grad: grad, lambda weight, grad: grad.clone()):
        model = network()
        optimizer = sgd(model)
        sparsifier = attach(model, optimizer, criterion=criterion)
        train(model, optimizer, batches(50))
        results.append((snapshot(model), sparsifier.masks))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


def test_what_a_criterion_takes() -> None:
    def scaled(weight, eps=1e-3):
        return weight.abs() + eps

    assert not Criterion.of(scaled).uses_grad
    assert not Criterion.of(torch.abs).uses_grad
    assert Criterion.of(torch.abs)(torch.tensor([-2.0])).tolist() == [2.0]


def test_lookahead_keeps_its_state_inside() -> None:
    model = network()
    optimizer = timm.optim.create_optimizer_v2(model, "lookahead_adamw", lr=0.01)
    sparsifier = attach(model, optimizer)
    state = sparsifier._states["3.weight"]
    held = None
    for batch in batches(12):
        train(model, optimizer, [batch])
        if sparsifier.phase == "explore":
            slow = state.optimizer_state()["lookahead_slow_buff"]
            frozen = state.code == FROZEN
            held = slow.clone() if held is None else held
            assert torch.equal(slow[frozen], held[frozen])
    assert held is not None


def test_a_long_pruned_entry_does_not_leap_under_adam() -> None:
    """Its second moment has faded: an Adam step from zero moments would be 3 learning rates."""
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.arange(1.0, 9.0).view(1, 8)
    # moments that fade ten times as fast as by default
    optimizer = torch.optim.Adam(model.parameters(), 0.01, betas=(0.7, 0.99))
    method = regrow.RigL(interval=2_000, budget=regrow.Budget("constant", 0.5), start="criterion", update_end=1.0)
    regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5), method=method, total_steps=2_100)
    gradient = torch.ones(1, 8)
    gradient[0, :2] = 50.0  # pruned at first, with the largest gradients
    for _ in range(2_000):
        model.weight.grad = gradient.clone()
        optimizer.step()
    assert model.weight[0, 0] == model.weight[0, 1] == 0
    model.weight.grad = torch.ones(1, 8)
    optimizer.step()
    assert (model.weight[0, :2].abs() < 0.01).all()
    assert (model.weight[0, :2] != 0).all()


def test_a_step_without_any_sparsified_gradient_freezes_the_others_too() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, pattern=regrow.Weights(0.8, include=["1"]))
    train(model, optimizer, batches(9))
    assert sparsifier.phase == "explore"
    before = snapshot(model)
    model[1].weight.requires_grad_(False)
    optimizer.zero_grad()
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    assert same(before, snapshot(model))


def test_no_checkpoint_from_inside_sparse_while_exploring() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    with sparsifier.sparse():
        sparsifier.state_dict()
    train(model, optimizer, batches(10))
    with sparsifier.sparse(), sparsifier.sparse(), pytest.raises(UserError, match="inside sparse"):
        sparsifier.state_dict()
    sparsifier.state_dict()


def test_a_damaged_state_is_named() -> None:
    model = network()
    sparsifier = attach(model, sgd(model))
    for key in ("config", "ledger", "saliency", "weights"):
        state = {k: v for k, v in sparsifier.state_dict().items() if k != key}
        with pytest.raises(UserError, match=f"lacks '{key}'"):
            sparsifier.load_state_dict(state)


def test_odd_inputs_do_not_disturb_the_model() -> None:
    class Batch:
        def __init__(self, x) -> None:
            self.x = x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, batch):
            return self.net(batch.x)

    model = Model()
    sparsifier = attach(model, sgd(model))
    x = torch.randn(2, 1, 6, 6, requires_grad=True) * 2
    model(Batch(x))
    copy.deepcopy(model)
    with pytest.raises(UserError, match="pass example_inputs"):
        sparsifier.training_cost()


def test_a_sparsifier_is_not_copied_or_pickled() -> None:
    model = network()
    sparsifier = attach(model, sgd(model))
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(sparsifier)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(sparsifier)


def test_a_parameters_own_name_decides_its_density() -> None:
    model = network()
    counts = regrow.Weights(0.5, {"3.weight": 0.25, "*": 0.5}).counts(model)
    assert {name: active / total for name, (active, total) in counts.items()} == {
        "0.weight": 0.5, "3.weight": 54 / 216, "7.weight": 0.5,
    }  # fmt: skip


def test_empty_parameters_are_left_alone() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "empty": nn.Linear(0, 3)})
    assert list(regrow.Weights(0.5, "erk").parameters(model)) == ["a.weight"]


def test_half_precision_adam_whose_eps_vanishes_is_enforced() -> None:
    model = mlp().half()
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    sparsifier = attach(model, optimizer, method="static")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
