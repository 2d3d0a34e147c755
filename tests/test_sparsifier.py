from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn

import attack_states
import regrow
from engine import IEE, attach, batches, loss_of, network, same, snapshot, train
from regrow.errors import UserError


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def test_phases_and_step_count() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    seen = []
    train(model, optimizer, batches(60), lambda: seen.append(sparsifier.phase))
    cycle = ["estimate"] * 4 + ["improve"] * 4 + ["explore"] * 3 + ["estimate"]
    assert seen == (cycle * 3)[:-1] + ["fixed"] * 25  # 3 cycles of 12 end by step 45
    assert sparsifier.step_count == 60


@pytest.mark.parametrize("steps", [0, 3, 7, 10, 11, 12, 20, 34, 50])
def test_finalize_at_any_step_ends_at_the_target(steps) -> None:
    for ramp in (None, 0.1):
        model = network()
        optimizer = sgd(model)
        sparsifier = attach(model, optimizer, method=regrow.IEE(h=5, j=4, q=3, ramp=ramp))
        train(model, optimizer, batches(steps))
        before = snapshot(model)
        masks = sparsifier.masks
        sparsifier.finalize()
        target = sparsifier.pattern.counts(model)
        assert {n: int(m.sum()) for n, m in sparsifier.masks.items()} == {n: a for n, (a, _) in target.items()}
        assert sparsifier.phase == "fixed"
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
            both = mask & masks[name]
            assert torch.equal(model.get_parameter(name)[both], before[name][both])
        train(model, optimizer, batches(5, seed=9))
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize("kind", ["SNFS", "DSR", "Chase"])
def test_finalize_where_layers_have_come_to_fewer_than_the_pattern_gives_them(kind) -> None:
    model = network()
    optimizer = sgd(model)
    method = getattr(regrow, kind)(interval=2, budget=regrow.Budget("constant", 0.5), update_end=1.0)
    sparsifier = attach(model, optimizer, pattern=regrow.Weights(0.5, "erk"), method=method, total_steps=20)
    train(model, optimizer, batches(9))
    target = sparsifier.pattern.counts(model)
    assert any(int(mask.sum()) < target[name][0] for name, mask in sparsifier.masks.items())
    sparsifier.finalize()
    assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == sum(active for active, _ in target.values())
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in sparsifier.masks.items())


def test_detach_leaves_a_plain_model() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    train(model, optimizer, batches(10))
    sparsifier.detach()
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not model._forward_pre_hooks
    train(model, optimizer, batches(1))
    assert any((model.get_parameter(n)[~m] != 0).any() for n, m in sparsifier.masks.items())
    attach(model, optimizer)  # and may be taken again


@pytest.mark.parametrize("steps", [3, 7, 10, 40])
def test_sparse_shows_the_active_structure_and_puts_everything_back(steps) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    kept_buffers = {}

    def note() -> None:
        if sparsifier.step_count == 9:
            kept_buffers.update({n: b.clone() for n, b in model.named_buffers()})

    train(model, optimizer, batches(steps), note)
    before = snapshot(model)
    with sparsifier.sparse():
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()
            assert torch.equal(model.get_parameter(name)[mask], before[name][mask])
        if steps == 10:
            assert all(torch.equal(b, kept_buffers[n]) for n, b in model.named_buffers())
    assert same(before, snapshot(model))
    with pytest.raises(KeyError), sparsifier.sparse():
        raise KeyError
    assert same(before, snapshot(model))


def test_sparse_mends_weights_that_somebody_else_wrote() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    model.load_state_dict(network(seed=4).state_dict())
    with sparsifier.sparse():
        for name, mask in sparsifier.masks.items():
            assert (model.get_parameter(name)[~mask] == 0).all()


LENGTH = 36  # steps: two updates of each, and some after the last
RESUMED = [
    IEE,
    regrow.IEE(h=5, j=4, q=3, start="criterion", start_steps=8),
    regrow.RigL(interval=7),
    regrow.GMP(interval=7),
    regrow.SET(interval=7),
]
Made = tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]


def for_resuming(method, criterion, state=None) -> Made:
    """A run, before its first step; with the weights of this state loaded before it is attached."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    if state is not None:
        model.load_state_dict(state)
    return model, optimizer, attach(model, optimizer, method=method, criterion=criterion, total_steps=LENGTH)


@functools.cache
def uninterrupted(number: int, criterion: str) -> tuple[list[bytes], list[list], list]:
    """A run's state before each of its steps and at the end, as `torch.save` writes it and as it is, and what has been
    spent until then."""
    made = for_resuming(RESUMED[number], criterion)
    states, written, costs = [], [], []
    for batch in (*batches(LENGTH), None):
        states.append(copy.deepcopy([one.state_dict() for one in made]))
        file = io.BytesIO()
        torch.save(states[-1], file)
        written.append(file.getvalue())
        costs.append(made[2].training_cost() if len(states) > 1 else {})
        if batch is not None:
            train(*made[:2], [batch])
    return written, states, costs


def resumed(method, criterion, load_first, written: bytes) -> Made:
    """A run that goes on from a state."""
    for_model, for_optimizer, for_sparsifier = torch.load(io.BytesIO(written), weights_only=True)
    model, optimizer, sparsifier = for_resuming(
        method, criterion, for_model if load_first == "before attaching" else None
    )
    if load_first == "model":
        model.load_state_dict(for_model)
    optimizer.load_state_dict(for_optimizer)
    sparsifier.load_state_dict(for_sparsifier)
    if load_first == "sparsifier":
        model.load_state_dict(for_model)
    assert same(snapshot(model), for_model)
    return model, optimizer, sparsifier


@pytest.mark.parametrize("number", range(len(RESUMED)), ids=lambda number: repr(RESUMED[number]))
def test_resumed_at_every_other_step_equals_uninterrupted(number) -> None:
    """Longer than a cycle, after which all that there is must be the same; the next test goes on to the end."""
    written, states, costs = uninterrupted(number, "taylor")
    for step in range(number % 2, LENGTH, 2):
        made = resumed(RESUMED[number], "taylor", "model", written[step])
        then = min(step + 13, LENGTH)
        train(*made[:2], batches(LENGTH)[step:then])
        # what was spent is added up anew where a run is saved: the same but for rounding
        found, expected = (
            [for_model, for_optimizer, {**for_sparsifier, "ledger": None}]
            for for_model, for_optimizer, for_sparsifier in ([one.state_dict() for one in made], states[then])
        )
        assert attack_states.equal(found, expected), step
        assert made[2].training_cost() == pytest.approx(costs[then])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("number", "criterion", "load_first"),
    [
        (number, criterion, order)
        for number in range(len(RESUMED))
        for i, criterion in enumerate(("magnitude", "taylor"))
        # either criterion with each order, with another method
        for order in (("model", "sparsifier") if (number + i) % 2 else ("model", "before attaching"))
    ],
)
def test_resumed_in_any_order_equals_uninterrupted(number, criterion, load_first) -> None:
    written, states, costs = uninterrupted(number, criterion)
    for step in range(0, LENGTH, 6):
        model, optimizer, sparsifier = resumed(RESUMED[number], criterion, load_first, written[step])
        train(model, optimizer, batches(LENGTH)[step:])
        assert same(states[LENGTH][0], snapshot(model)), step
        assert sparsifier.history == states[LENGTH][2]["history"]
        assert sparsifier.training_cost() == pytest.approx(costs[LENGTH])


@pytest.mark.parametrize(
    "method",
    [
        regrow.IEE(h=5, start="criterion"),
        regrow.RigL(interval=7, start="criterion"),
        regrow.SET(interval=7, start="criterion"),
        regrow.Static(start="criterion"),
        regrow.GMP(interval=7, initial_sparsity=0.6),
        regrow.OneShot(),
    ],
    ids=repr,
)
def test_a_criterion_of_gradients_scores_a_trained_model_before_it_starts(method) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, method=method, criterion="taylor")
    densities = []
    train(model, optimizer, batches(21), lambda: densities.append(sparsifier.density()))
    assert densities[:19] == [1.0] * 19
    start = 0.4 if isinstance(method, regrow.GMP) else 0.3
    assert densities[19:] == pytest.approx([start] * 2, abs=0.01)


@pytest.mark.parametrize("method", [regrow.IEE(h=5, start="criterion"), regrow.OneShot()], ids=repr)
def test_a_run_that_ends_while_it_is_scored_ends_at_the_target(method) -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer, method=method, criterion="taylor")
    train(model, optimizer, batches(3))
    sparsifier.finalize()
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == {
        name: active for name, (active, _) in regrow.Weights(0.7, "erk").counts(model).items()
    }


def test_a_foreign_state_is_refused_and_nothing_changes() -> None:
    model = network()
    sparsifier = attach(model, sgd(model))
    good, before = sparsifier.state_dict(), snapshot(model)
    weights = good["weights"]
    cases = {
        "not the state of a regrow.Sparsifier": {"format": 99},
        "belongs to method rigl": good | {"config": good["config"] | {"method": "rigl"}},
        "belongs to total_steps 70": good | {"config": good["config"] | {"total_steps": "70"}},
        "another model: '0.weight'": good | {"weights": {k: v for k, v in weights.items() if k != "0.weight"}},
        "of shape": good | {"weights": {k: v | {"flags": torch.zeros(2, 2)} for k, v in weights.items()}},
    }
    for words, state in cases.items():
        with pytest.raises(UserError, match=words):
            sparsifier.load_state_dict(state)
        assert same(before, snapshot(model))
        assert same(sparsifier.masks, {name: w["flags"] & 1 == 1 for name, w in weights.items()})


def refused(words: str, model: nn.Module | None = None, optimizer=None, **options) -> None:
    model = model or network()
    before = snapshot(model)
    optimizer = optimizer(model) if optimizer else sgd(model)
    with pytest.raises(UserError, match=words):
        attach(model, optimizer, **options)
    assert same(before, snapshot(model))


def test_misuse_is_refused_when_attaching() -> None:
    refused("LBFGS does not work", optimizer=lambda m: torch.optim.LBFGS(m.parameters()))
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        refused(r"eps for 0\.weight is 0", optimizer=lambda m, kind=kind: kind(m.parameters(), eps=0.0))
    refused("must be a torch.optim.Optimizer", optimizer=lambda m: "sgd")
    refused("empty list", optimizer=lambda m: [])
    refused("trains none of this model's parameters", optimizer=lambda m: torch.optim.SGD(network().parameters(), 0.1))
    refused("7.weight is in no optimizer", optimizer=lambda m: torch.optim.SGD(m[:6].parameters(), 0.1))
    refused("in two optimizers", optimizer=lambda m: [sgd(m), sgd(m)])
    refused("total_steps is None", total_steps=None)
    refused("total_steps is 0", total_steps=0)
    refused("total_steps=10 is too short", total_steps=10)
    refused("method 'ieee' is unknown; did you mean 'iee'", method="ieee")
    refused("method must be", method=regrow.IEE)
    refused("criterion 'magnitud' is unknown; did you mean 'magnitude'", criterion="magnitud")
    refused(r"must take \(weight\) or \(weight, grad\)", criterion=lambda a, b, c: a)
    refused("pattern is missing", pattern=None)
    refused("include names 'fc'", pattern=regrow.Weights(0.9, include=["fc"]))
    refused("exclude names 'layer9'", pattern=regrow.Weights(0.9, exclude=["layer9"]))
    refused("nothing is left to sparsify", pattern=regrow.Weights(0.9, exclude=["*"]))
    refused("cannot cover 3 layers", pattern=regrow.Weights(0.999, "erk"))
    refused("needs gradients", method=regrow.Static(start="criterion", start_steps=0), criterion="taylor")
    refused("needs gradients", method=regrow.OneShot(h=0), criterion="taylor")
    refused("leaves no step to train", method=regrow.Static(start="criterion", start_steps=60), criterion="taylor")
    refused("begins after 50", method=regrow.RigL(interval=7, start="criterion", start_steps=50), criterion="taylor")
    refused("use q ≥ 1", method=regrow.IEE(h=5, j=5, q=0), criterion="taylor")
    refused("update_end=2.0 lies outside", method=regrow.RigL(update_end=2.0))
    lazy = nn.Sequential(network(), nn.LazyLinear(3))
    with pytest.raises(UserError, match="a lazy module"):
        attach(lazy, sgd(lazy))
    half = network()
    half[7].requires_grad_(False)
    refused("requires_grad=False", half, pattern=regrow.Weights(0.9, include=["7"]))
    model = network()
    optimizer = sgd(model)
    attach(model, optimizer)
    with pytest.raises(UserError, match="already has a sparsifier"):
        attach(model, optimizer)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regrow.Weights(90), "sparsity is 90"),
        (lambda: regrow.Weights(1.0), "sparsity is 1.0"),
        (lambda: regrow.Weights(0.9, "erkk"), "did you mean 'erk'"),
        (lambda: regrow.Weights(0.9, {"a": 1.5}), "density 1.5"),
        (lambda: regrow.Weights(0.9, scope="all"), "scope 'all'"),
        (lambda: regrow.Weights(0.9, exclude="fc"), "must be a list"),
        (lambda: regrow.IEE(h=0), "h is 0"),
        (lambda: regrow.IEE(q=-1), "q is -1"),
        (lambda: regrow.IEE(grown_init="one"), "grown_init 'one'"),
        (lambda: regrow.IEE(reactivate="explored"), "reactivate 'explored'"),
        (lambda: regrow.IEE(ramp=1.0), "ramp is 1.0"),
        (lambda: regrow.IEE(q=0, reactivate="zero"), "use q ≥ 1, or reactivate='mru'"),
        (lambda: regrow.IEE(start="dense"), "start 'dense'"),
        (lambda: regrow.RigL(interval=0), "interval is 0"),
        (lambda: regrow.GMP(initial_sparsity=1.0), "initial_sparsity is 1.0"),
        (lambda: regrow.OneShot(h=1.5), "h is 1.5"),
        (lambda: regrow.IEE(start="criterion", start_steps=-1), "start_steps is -1"),
        (lambda: regrow.RigL(start_steps=5), "start='random' needs none"),
        (lambda: regrow.GMP(start_steps=5), "choose nothing"),
    ],
)
def test_options_out_of_range(make, words) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_training_cost_by_phase_and_without_a_forward_pass() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = attach(model, optimizer)
    with pytest.raises(UserError, match="pass example_inputs"):
        sparsifier.training_cost()
    train(model, optimizer, batches(60))
    cost = sparsifier.training_cost()
    assert set(cost) == {"estimate", "improve", "explore", "fixed", "total"}
    assert cost["total"] == pytest.approx(sum(v for k, v in cost.items() if k != "total"))
    assert cost == sparsifier.training_cost(torch.zeros(8, 1, 6, 6))


def test_a_wrong_shape_from_a_users_criterion_is_named() -> None:
    model = network()
    optimizer = sgd(model)
    attach(model, optimizer, criterion=lambda weight: weight.sum())
    with pytest.raises(UserError, match=r"must return scores of shape \(4, 1, 3, 3\)"):
        train(model, optimizer, batches(5))


def test_a_step_with_nan_or_inf_adds_nothing() -> None:
    data = batches(8)
    scores = []
    for poisoned in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        sparsifier = attach(model, optimizer, criterion="taylor", method=regrow.IEE(h=20, j=4, q=3))
        for i, batch in enumerate(data):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            if i == 3:
                if not poisoned:
                    continue
                model[7].weight.grad[0, 0] = float("inf")
                model[3].weight.grad[0, 0] = float("nan")
            sparsifier.prepare_step()
            optimizer.zero_grad() if i == 3 else optimizer.step()
        scores.append({n: sparsifier._engine.saliency.scores("prune", n, 0) for n in sparsifier.masks})
    assert same(*scores)


@pytest.mark.filterwarnings("ignore:.*updates fit")
@pytest.mark.parametrize("kind", attack_states.attack_updates.KINDS)
def test_damaged_states_change_nothing(kind):
    assert attack_states.attack(kind, 25) == []
