"""Users' own loops: everything that people do around a step, unchanged."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import regrow
from engine import IEE, attach, batches, loss_of, network, same, snapshot, train


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, **options)


def plain(n: int = 50, **options) -> tuple[nn.Module, regrow.Sparsifier]:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, **options)
    train(model, optimizer, batches(n))
    return model, sparsifier


def test_gradient_accumulation_counts_optimizer_steps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5))
    twin = copy.deepcopy(model)
    pattern = regrow.Weights(0.7, "erk")
    whole, halves = sgd(model), sgd(twin)
    first = attach(model, whole, pattern=pattern, criterion="taylor", total_steps=60)
    second = attach(twin, halves, pattern=pattern, criterion="taylor", total_steps=60)
    for x, y in batches(60):
        whole.zero_grad()
        ((loss_of(model, (x[:4], y[:4])) + loss_of(model, (x[4:], y[4:]))) / 2).backward()
        whole.step()
        halves.zero_grad()
        (loss_of(twin, (x[:4], y[:4])) / 2).backward()
        (loss_of(twin, (x[4:], y[4:])) / 2).backward()
        halves.step()
    assert first.step_count == second.step_count == 60
    assert same(first.masks, second.masks)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_clipping_sees_only_the_weights_that_train(set_to_none) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, criterion="taylor")
    for batch in batches(50):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model, batch).backward()
        sparsifier.prepare_step()
        exploring = sparsifier.phase == "explore"
        before = {n: s.clone() for n, s in sparsifier._engine.saliency._sums.get("prune", {}).items()}
        sparsifier.prepare_step()  # idempotent
        assert same(before, dict(sparsifier._engine.saliency._sums.get("prune", {})))
        for name, p in model.named_parameters():
            if name in sparsifier.masks:
                trains = ~sparsifier.masks[name] if exploring else sparsifier.masks[name]
                assert (p.grad[~trains] == 0).all()
            elif exploring:
                assert p.grad is None
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert grads.norm() <= min(norm, torch.tensor(0.1)) * 1.001
        sums = {n: s.clone() for n, s in sparsifier._engine.saliency._sums.get("prune", {}).items()}
        step = sparsifier.step_count
        optimizer.step()
        assert sparsifier.step_count == step + 1
        if step % 12 < 4:  # no boundary after it: the clipped gradients were not added again
            assert same(sums, dict(sparsifier._engine.saliency._sums.get("prune", {})))
        for name, mask in sparsifier.masks.items():
            if sparsifier.phase != "explore":
                assert (model.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler_with_skipped_steps(fused, clip) -> None:
    """A skipped step counts for nothing, and scaled gradients score as unscaled ones."""
    results = []
    for scaled in (False, True):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=fused)
        sparsifier = attach(model, optimizer, criterion="taylor")
        buffers: dict = {}
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**16, growth_interval=10**6)
        for i, batch in enumerate(batches(50)):
            if i in (2, 10, 30):  # inside estimate, explore and later: an overflow
                if not scaled:
                    continue
                optimizer.zero_grad()
                scaler.scale(loss_of(model, batch) * float("inf")).backward()
                before, step = snapshot(model), sparsifier.step_count
                weights = {n: before[n] for n, _ in model.named_parameters()}
                if clip:
                    scaler.unscale_(optimizer)
                    sparsifier.prepare_step()
                scaler.step(optimizer)
                scaler.update(new_scale=2.0**16)
                assert sparsifier.step_count == step
                assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
                model.load_state_dict(buffers)  # the forward pass of the overflow moved batch-norm statistics
                continue
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            if clip:
                scaler.unscale_(optimizer)
                sparsifier.prepare_step()
            scaler.step(optimizer)
            scaler.update()
            buffers = snapshot(model)
        assert sparsifier.step_count == 47
        results.append((sparsifier.masks, snapshot(model)))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])  # scaling by a power of two is exact


def test_closures() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, criterion="taylor")
    for batch in batches(50):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure) if sparsifier.step_count % 2 else optimizer.step(closure=closure)
        assert loss.item() > 0
    other, reference = plain(criterion="taylor")
    assert same(snapshot(model), snapshot(other))
    assert same(sparsifier.masks, reference.masks)


def test_compile_makes_one_graph_over_many_mask_changes() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    results = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend=backend)):
        model = network()
        compiled = wrap(model)
        optimizer = sgd(model)
        sparsifier = attach(compiled, optimizer, method=regrow.IEE(h=2, j=2, q=2))
        train(compiled, optimizer, batches(60))
        assert len(sparsifier.history) == 7
        assert list(sparsifier.masks) == ["0.weight", "3.weight", "7.weight"]
        results.append(snapshot(model))
    assert len(graphs) == 1
    assert same(*results)
    # compiled after attaching, or in place
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    model.compile(backend=backend)
    train(model, optimizer, batches(60))
    assert len(graphs) == 2
    assert sparsifier.training_cost(torch.zeros(8, 1, 6, 6))["total"] < 1


def test_deepcopy_and_pickle_of_the_model() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    early = copy.deepcopy(model)  # before its first batch
    torch.save(model, io.BytesIO())
    train(model, optimizer, batches(20))
    copied = copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    before = snapshot(copied)
    other = sgd(copied)
    train(copied, other, batches(3))  # a copy is plain: nothing holds it, and it holds nothing
    train(early, sgd(early), batches(1))
    assert not same(before, snapshot(copied))
    assert same(before, snapshot(model))
    assert sparsifier.step_count == 20


def test_several_parameter_groups_and_an_added_one() -> None:
    model = network()
    extra = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0, "lr": 0.1},
        ],
        lr=0.01,
    )
    sparsifier = attach(model, optimizer)
    optimizer.add_param_group({"params": [extra]})
    frozen = None
    for batch in batches(50):
        optimizer.zero_grad()
        (loss_of(model, batch) + (extra**2).sum()).backward()
        frozen = extra.detach().clone() if sparsifier.phase == "explore" else None
        optimizer.step()
        assert (frozen is None) != torch.equal(extra, frozen if frozen is not None else extra + 1)
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_tied_weights_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(36, 36, bias=False), nn.Linear(36, 36, bias=False)
            self.decode.weight = self.encode.weight
            self.head = nn.Linear(36, 5)

        def forward(self, x):
            return self.head(self.decode(self.encode(x.flatten(1)).relu()).relu())

    torch.manual_seed(0)
    model = Tied()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    assert list(sparsifier.masks) == ["encode.weight", "head.weight"]
    train(model, optimizer, batches(50))
    assert model.decode.weight is model.encode.weight
    assert (model.decode.weight[~sparsifier.masks["encode.weight"]] == 0).all()
    assert sparsifier.density() == 443 / 1476  # round(0.3 * (36 * 36 + 36 * 5))


def test_frozen_layers_stay_dense_and_still() -> None:
    model = network()
    model[3].requires_grad_(False)
    before = model[3].weight.clone()
    optimizer = sgd(model)  # which holds them all, as is common
    sparsifier = attach(model, optimizer)
    assert list(sparsifier.masks) == ["0.weight", "7.weight"]
    train(model, optimizer, batches(50))
    assert torch.equal(model[3].weight, before)


def test_weights_that_get_no_gradient() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = network(), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    for criterion in ("magnitude", "taylor"):
        model = Branches()
        optimizer = sgd(model)
        sparsifier = attach(model, optimizer, criterion=criterion)
        train(model, optimizer, batches(50))
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()


def test_channels_last_and_low_precision() -> None:
    model = network().to(memory_format=torch.channels_last)
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    train(model, optimizer, [(x.to(memory_format=torch.channels_last), y) for x, y in batches(50)])
    assert same({k: v.contiguous() for k, v in sparsifier.masks.items()}, plain()[1].masks)
    model = network().to(torch.bfloat16)
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, criterion="taylor")
    train(model, optimizer, [(x.bfloat16(), y) for x, y in batches(50)])
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()


def test_accelerate_wrapper_and_lr_scheduler() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20)
    model, wrapped = accelerator.prepare(model, optimizer)
    sparsifier = attach(model, wrapped)
    for batch in batches(50):
        accelerator.backward(loss_of(model, batch))
        wrapped.step()
        wrapped.zero_grad()
        schedule.step()
    assert sparsifier.step_count == 50
    assert len(sparsifier.history) == 3


def test_a_first_step_at_no_learning_rate_counts_though_a_head_of_zeros_lets_no_gradient_pass() -> None:
    model = network()
    nn.init.zeros_(model[-1].weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 5))
    sparsifier = attach(model, optimizer, pattern=regrow.Weights(0.7, exclude=["7"]), total_steps=20)
    for batch in batches(20):
        train(model, optimizer, [batch])
        warm_up.step()
    assert sparsifier.step_count == 20


def test_two_models_with_two_sparsifiers() -> None:
    one, _ = plain()
    model, other = network(), network(seed=8)
    optimizer, second = sgd(model), sgd(other)
    attach(model, optimizer), attach(other, second, method=regrow.RigL(interval=7))
    for batch in batches(50):
        train(model, optimizer, [batch])
        train(other, second, [batch])
    assert same(snapshot(one), snapshot(model))


def test_iee_is_the_default_method() -> None:
    model = network()
    assert attach(model, sgd(model), method=None, total_steps=2000).method == regrow.IEE() != IEE


class Wrapper(torch.optim.Optimizer):
    """Steps by another, which it keeps under this name, as SAM does."""

    def __init__(self, name, inner) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"lr": 0.0})
        self.param_groups = inner.param_groups
        setattr(self, name, inner)
        self.inner = lambda: inner

    def step(self, closure=None):
        return self.inner().step()


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("name", ["_base_optimizer", "base_optimizer", "wrapped"])
def test_an_optimizer_that_steps_by_another_trains_as_that_alone(name, thin) -> None:
    ends = []
    for wrap in (lambda one: one, lambda one: Wrapper(name, one)):
        model = network()
        optimizer = wrap(torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
        pattern = regrow.Channels(params=0.6, round_to=1) if thin else regrow.Weights(0.7)
        method = regrow.IEE(h=3, j=2, q=2) if thin else regrow.RigL(interval=3)
        sparsifier = attach(
            model, optimizer, pattern=pattern, method=method, total_steps=30, example_inputs=batches(1)[0][0]
        )
        train(model, optimizer, batches(30))
        assert sparsifier.step_count == 30
        ends.append(snapshot(model))
    assert same(*ends)


def test_what_is_inside_another_optimizer_does_not_train_past_it() -> None:
    model = network()
    optimizer = Wrapper("base_optimizer", torch.optim.SGD(model.parameters(), 0.05))
    attached = attach(model, optimizer)
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(regrow.UserError, match="would be trained by an optimizer that regrow is not attached to"):
        optimizer.base_optimizer.step()
    assert attached.step_count == 0


def test_a_compiled_step_does_what_a_plain_one_does() -> None:
    ends = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        torch._dynamo.reset()
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        sparsifier = attach(
            model, optimizer, pattern=regrow.Weights(0.5, include=["7"]), method=regrow.RigL(interval=1), total_steps=6
        )
        step = wrap(optimizer.step)
        for batch in batches(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            step()
        assert sparsifier.step_count == 3
        assert len(sparsifier.history) == 3
        ends.append(snapshot(model) | {f"mask of {name}": mask for name, mask in sparsifier.masks.items()})
    assert same(*ends)
