"""Latent weights: what trains, what the network computes with, and that nothing else is touched."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import regrow
from attack_updates import Interrupted, interrupted_at
from engine import attach, batches, loss_of, network, same, snapshot, train
from regrow import SRSTE, STE, UserError, coded, latent_values, shards
from regrow.actions import counts_at
from regrow.latent import Latent
from regrow.state import EXPLORED, PRUNED, TRAINABLE, WeightState

PATTERN = regrow.Weights(0.7, "erk")
METHODS = [STE(every=3), STE.st3(every=2), STE.topkast(), SRSTE(every=2), STE(p=math.inf, scale=0.0, update_end=0.5)]
METHODS += [regrow.IEE(h=5, j=4), regrow.IEE(h=4, j=3, q=2, shadow_speed=0.3)]
FILE = (latent_values.__file__,)
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01),
}


def states(sparsifier: regrow.Sparsifier) -> list:
    return list(sparsifier._states.values())


@settings(max_examples=60, deadline=None)
@example(values=[1.0, 1e-45, 1e-45], kept=2, p=2.0)  # smaller than any normal number
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20),
    kept=st.integers(1, 20),
    p=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
)
def test_the_projection(values, kept, p) -> None:
    latent = torch.tensor(values)
    order = latent.abs().argsort(descending=True, stable=True)
    active = torch.zeros_like(latent, dtype=torch.bool)
    active[order[:kept]] = True
    found = Latent(p=p).project(latent, active)
    assert (found[~active] == 0).all()
    assert (found.abs() <= latent.abs() * (1 + 1e-6)).all()
    assert ((found == 0) | (found.sign() == latent.sign())).all()
    threshold = latent.abs()[~active].max().item() if kept < len(values) else 0.0
    for value, size, on in zip(found.tolist(), latent.abs().tolist(), active.tolist(), strict=True):
        if on and math.isinf(p):
            assert abs(value) == size
        elif on:
            exact = max(size**p - threshold**p, 0.0) ** (1 / p)
            assert abs(value) == pytest.approx(exact, rel=1e-2, abs=2e-3 * size)
    if threshold == 0:
        assert torch.equal(found, latent.masked_fill(~active, 0))


@pytest.mark.parametrize(("p", "expected"), [(1.0, [0, -2, 0, 3]), (2.0, [0, -math.sqrt(8), 0, math.sqrt(15)])])
def test_of_every_group_by_hand(p, expected) -> None:
    """Two of four stay, above the largest that does not: S-STE (arXiv:2409.09099), equation 8."""
    latent = torch.tensor([[0.5, -3.0, 1.0, 4.0], [9.0, 0.0, 0.0, 7.0]])
    active = torch.tensor([[False, True, False, True], [True, False, False, True]])
    found = Latent(p=p).project(latent, active, rivals=regrow.NM(2, 4).rivals)
    torch.testing.assert_close(found, torch.tensor([expected, [9.0, 0.0, 0.0, 7.0]], dtype=torch.float32))


def test_of_blocks_by_hand() -> None:
    latent = torch.tensor([[1.0, -3.0, 4.0, 4.0], [0.0, 2.0, -0.5, 0.5]])  # in pairs of mean 2, 4, 1, and 0.5
    active = torch.tensor([[True, True, True, True], [False, False, False, False]])
    found = Latent(p=1.0).project(latent, active, rivals=regrow.Blocks((1, 2), 0.5).rivals)
    torch.testing.assert_close(found, torch.tensor([[0.5, -1.5, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]]))


GROUPED = {"nm": regrow.NM(2, 4), "1:4": regrow.NM(1, 4, ramp="groups"), "blocks": regrow.Blocks((2, 2), 0.75, "er")}


@pytest.mark.parametrize("method", [STE(), STE.st3(), STE(every=4, p=2.0)], ids=["feather", "st3", "seldom"])
@pytest.mark.parametrize("pattern", GROUPED.values(), ids=GROUPED)
def test_what_groups_and_blocks_keep_is_not_zero(pattern, method) -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = attach(model, chosen, pattern=pattern, method=method, total_steps=40)
    train(model, chosen, batches(40))
    for name, mask in sparsifier.masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).all()


def test_a_criterion_that_keeps_small_weights_needs_the_hard_projection() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(UserError, match=r"ste computes with what weights are above .*'taylor'.*magnitude.*or p=None"):
        attach(model, chosen, pattern=PATTERN, method=STE(), criterion="taylor", total_steps=20)
    with pytest.raises(UserError, match="'relu' may keep weights below it"):
        attach(model, chosen, pattern=PATTERN, method="ste", criterion=torch.relu, total_steps=20)
    attach(model, chosen, pattern=PATTERN, method=STE(p=None), criterion="taylor", total_steps=60)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float32, 1e-4, 1e-4), (torch.bfloat16, 2**-8, 1e-4), (torch.float16, 2**-10, 1e-4)],
)
def test_the_projection_in_every_precision(dtype, rtol, atol, p) -> None:
    latent = torch.randn(3, 70, 90, generator=torch.Generator().manual_seed(0)).to(dtype)
    active = latent.abs() > 1.5
    exact = Latent(p=p).project(latent.double(), active)
    for shape in (latent, latent.transpose(0, 1)):  # in and out of the order of memory
        mask = active if shape is latent else active.transpose(0, 1).contiguous()
        found = Latent(p=p).project(shape, mask)
        assert found.dtype is dtype
        wanted = exact if shape is latent else exact.transpose(0, 1)
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("largest", [0.0, 1e-20, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("vectors", [True, False])
def test_cube_roots_are_exact_where_weights_agree_with_the_threshold(monkeypatch, largest, vectors) -> None:
    monkeypatch.setattr("regrow.latent.VECTOR_ROOTS", vectors)
    above = torch.logspace(-7, 3, 400) + 1  # in units of the largest removed weight
    latent = torch.cat([torch.linspace(-1, 1, 201) * largest, above * (largest or 1.0), -above * (largest or 1.0)])
    active = torch.arange(len(latent)) > 200
    found = Latent(p=3.0).project(latent, active)
    assert (found[~active] == 0).all()
    threshold = latent[~active].abs().max().double()  # rounded to fp32
    exact = (latent.double().abs() ** 3 - threshold**3).clamp(min=0).pow(1 / 3).copysign(latent.double())[active]
    direct = vectors and 1e-10 < largest < 1e12  # otherwise by powers, which blow rounding up near the threshold
    torch.testing.assert_close(
        found[active].double(), exact, rtol=1e-6 if direct else 2e-3, atol=0 if direct else largest * 1e-2
    )


@pytest.mark.parametrize("large", [1e14, 1e30])
def test_a_weight_whose_cube_overflows_keeps_its_size(monkeypatch, large) -> None:
    monkeypatch.setattr("regrow.latent.VECTOR_ROOTS", True)
    latent = torch.tensor([0.5, -1.0, -large, 2.0])
    found = Latent(p=3.0).project(latent, torch.tensor([False, False, True, True]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, -large, 7 ** (1 / 3)]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m)[:60])
def test_the_network_is_the_projection_after_every_step(method, optimizer) -> None:
    model = network()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = attach(model, chosen, pattern=PATTERN, method=method, total_steps=40)

    def check() -> None:
        for state in states(sparsifier):
            with sparsifier.sparse():
                assert (state.param[~state.active] == 0).all()
            if state.latent is not None:
                assert torch.equal(state.param, state.latent.project(state.memory, state.active))

    check()
    train(model, chosen, batches(40), check)
    assert sparsifier.phase == "fixed"
    assert sparsifier.density() == sum(a for a, _ in PATTERN.counts(network()).values()) / sum(
        n for _, n in PATTERN.counts(network()).values()
    )


@pytest.mark.sampled(5)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 4, 17, 31])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m)[:60])
def test_resumed_at_any_step_it_ends_the_same(method, stop, optimizer) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
        model = network()
        chosen = OPTIMIZERS[optimizer](model.parameters())
        return model, chosen, attach(model, chosen, pattern=PATTERN, method=method, total_steps=40)

    data = batches(40)
    whole = made()
    train(whole[0], whole[1], data)
    first = made()
    train(first[0], first[1], data[:stop])
    saved = copy.deepcopy([part.state_dict() for part in first])
    for order in ((0, 1, 2), (2, 1, 0)):
        again = made()
        for i in order:
            again[i].load_state_dict(copy.deepcopy(saved[i]))
        train(again[0], again[1], data[stop:])
        assert same(snapshot(whole[0]), snapshot(again[0]))
        assert same(whole[2].masks, again[2].masks)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_preparing_a_step_first_changes_nothing(optimizer) -> None:
    models = []
    for prepared in (False, True):
        model = network()
        chosen = OPTIMIZERS[optimizer](model.parameters())
        sparsifier = attach(model, chosen, pattern=PATTERN, method=STE(every=3), total_steps=20)
        for batch in batches(20):
            chosen.zero_grad()
            loss_of(model, batch).backward()
            for _ in range(2 * prepared):
                sparsifier.prepare_step()
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)  # touches every gradient in place
            chosen.step()
        models.append(snapshot(model))
    assert same(*models)


def test_scale_zero_leaves_what_is_removed_to_the_decay() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.1, momentum=0.0, weight_decay=0.1)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=STE(p=math.inf, scale=0.0, every=50), total_steps=60)
    before = {s.name: s.memory.clone() for s in states(sparsifier)}
    removed = {s.name: ~s.active for s in states(sparsifier)}
    train(model, chosen, batches(1))
    for state in states(sparsifier):
        gone = removed[state.name]
        assert torch.equal(state.memory[gone], before[state.name][gone].add(-0.1 * (0.1 * before[state.name][gone])))


@pytest.mark.parametrize("candidates", ["largest", "random"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_no_candidate_rests_to_the_bit(optimizer, candidates) -> None:
    model = network()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    method = STE.topkast(backward=0.4, every=4, candidates=candidates)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=method, total_steps=40)
    seen: dict[str, set[int]] = {state.name: set() for state in states(sparsifier)}
    for batch in batches(39):
        before = [(state, state.code.clone(), state.memory.clone()) for state in states(sparsifier)]
        counts = counts_at(PATTERN.counts(model), 0.4)
        for state, code, memory in before:
            assert int((code != PRUNED).sum()) == counts[state.name]
            assert int((code == TRAINABLE).sum()) == PATTERN.counts(model)[state.name][0]
            resting = (code == PRUNED).flatten().nonzero().flatten().tolist()
            if candidates == "largest" and sparsifier.step_count % 4 == 0 and resting:
                trained = memory[code != PRUNED].abs().min()
                assert memory[code == PRUNED].abs().max() <= trained
            seen[state.name].update(resting)
        train(model, chosen, [batch])
        for state, code, memory in before:
            assert torch.equal(state.memory[code == PRUNED], memory[code == PRUNED])
            if not torch.equal(state.code, code):
                continue
            moved = state.memory[code == EXPLORED] != memory[code == EXPLORED]
            assert moved.float().mean() > 0.9 or not len(moved)
    at_a_time = {s.name: int((s.code == PRUNED).sum()) for s in states(sparsifier)}
    assert any(at_a_time.values())
    if candidates == "random":  # others every time
        assert all(len(seen[name]) > 1.3 * n for name, n in at_a_time.items() if n)


def test_a_smaller_set_that_trains_costs_what_it_computes() -> None:
    """Top-KAST: a step is forward and backward at the structure's density, weight gradients at the larger set's."""
    model = nn.Sequential(nn.Linear(20, 10, bias=False))
    chosen = torch.optim.SGD(model.parameters(), 0.1)
    method = STE.topkast(backward=0.5, every=2)
    sparsifier = regrow.Sparsifier(
        model,
        chosen,
        pattern=regrow.Weights(0.9, "erk"),
        method=method,
        total_steps=20,
        example_inputs=torch.randn(4, 20),
    )
    for _ in range(20):
        chosen.zero_grad()
        model(torch.randn(4, 20)).square().mean().backward()
        chosen.step()
    assert sparsifier.training_cost()["total"] == pytest.approx((2 * 0.1 + 0.5) / 3)


def test_the_set_that_trains_is_larger_than_the_structure() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(UserError, match=r"backward=0.7 is the sparsity of the weights that train, .* pattern's 0.7"):
        attach(model, chosen, pattern=PATTERN, method=STE(backward=0.7), total_steps=20)
    attach(model, chosen, pattern=regrow.Weights(0.0), method=STE(), total_steps=20)  # nothing to remove, all trains


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_adaptive_optimizers_take_a_share_of_the_step(scale) -> None:
    """They undo any scale of gradients; so full and scaled steps of removed entries are in this ratio at first."""
    moved = []
    for one in (1.0, scale):
        model = network()
        chosen = torch.optim.Adam(model.parameters(), 0.01)
        method = STE(p=math.inf, scale=one, every=50, ramp=0.5)
        sparsifier = attach(model, chosen, pattern=PATTERN, method=method, total_steps=60)
        before = [s.memory.clone() for s in states(sparsifier)]
        removed = [~s.active for s in states(sparsifier)]
        train(model, chosen, batches(1))
        pairs = zip(states(sparsifier), before, removed, strict=True)
        moved.append([(s.memory - old)[gone] for s, old, gone in pairs])
    for full, part in zip(*moved, strict=True):
        torch.testing.assert_close(part, full * scale, rtol=1e-4, atol=1e-7)


WRITERS = {
    "in place": lambda p: p.detach().fill_(7.0),
    "its data": lambda p: p.data.fill_(7.0),
    "other data": lambda p: setattr(p, "data", torch.full_like(p, 7.0)),
}


@pytest.mark.parametrize(
    ("method", "writer"),
    [(STE(every=50), "in place"), *((STE(p=math.inf, every=50), writer) for writer in WRITERS)],
    ids=["soft", *WRITERS],
)
def test_what_others_write_between_steps_is_the_latent_value(method, writer) -> None:
    write = WRITERS[writer]
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.0)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=method, total_steps=60)
    train(model, chosen, batches(2))
    state = states(sparsifier)[1]
    active = state.active.clone()
    write(state.param)
    train(model, chosen, batches(1))
    assert (state.memory[active] == 7).all()
    assert (state.param[~active] == 0).all()


@pytest.mark.parametrize("method", [STE(every=2), STE.topkast(every=1), SRSTE(every=3)], ids=["soft", "hard", "pull"])
def test_between_steps_a_parameter_has_its_own_data(method) -> None:
    model = network()
    chosen = torch.optim.AdamW(model.parameters(), 0.01)
    places = [p.data_ptr() for p in model.parameters()]
    attach(model, chosen, pattern=PATTERN, method=method, total_steps=18)
    seen = []

    def look(*_: object) -> None:
        seen.append([p.data_ptr() for p in model.parameters()] == places)

    chosen.register_step_pre_hook(look)
    train(model, chosen, batches(18), lambda: seen.append([p.data_ptr() for p in model.parameters()] == places))
    assert seen == [False, True] * 18


@pytest.mark.parametrize("method", [STE(every=2), STE.topkast(every=1), SRSTE(every=3)], ids=["soft", "hard", "pull"])
def test_optimizers_that_make_new_data(method) -> None:
    class Handwritten(torch.optim.Optimizer):
        def __init__(self, params) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data = p.data - group["lr"] * p.grad

    after = []
    for make in (Handwritten, lambda params: torch.optim.SGD(params, 0.1)):
        model = network()
        chosen = make(model.parameters())
        attach(model, chosen, pattern=PATTERN, method=method, total_steps=20)
        train(model, chosen, batches(20))
        after.append(snapshot(model))
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], rtol=1e-4, atol=1e-6)


def test_a_step_that_fails_half_way_leaves_the_projection() -> None:
    class Broken(torch.optim.SGD):
        fails = False

        @torch.no_grad()
        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("no memory")
            return super().step(closure)

    model = network()
    chosen = Broken(model.parameters(), 0.1)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=STE(every=5), total_steps=40)
    train(model, chosen, batches(3))
    before = snapshot(model)
    loss_of(model, batches(1)[0]).backward()
    Broken.fails = True
    with pytest.raises(RuntimeError, match="no memory"):
        chosen.step()
    model.eval()
    model(batches(1)[0][0])
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
        assert torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize("again", ["hide", "show"])
def test_a_step_that_is_interrupted_while_it_is_scaled_is_scaled_once(again, monkeypatch) -> None:
    monkeypatch.setattr("regrow.codes._PIECE", 40)
    before, at, tried = torch.randn(7, 11), 0, 0
    expected = None
    while expected is None or at <= tried:
        param = nn.Parameter(before.clone())
        state = WeightState("w", param, lambda: {}, holds_zero=False, normalizes=True)
        active = torch.arange(77).view(7, 11) % 3 == 0
        state.transition(torch.where(active, TRAINABLE, EXPLORED).to(torch.uint8), "mru", Latent(scale=0.3))
        state.show_latent()
        param.data.add_(1.0)
        with pytest.raises(Interrupted) if at else contextlib.nullcontext(), interrupted_at(at, "line", FILE) as lines:
            state.latents.hide(project=False)
        if again == "show":
            state.show_latent()
        state.hide_latent()
        if expected is None:
            tried, expected = lines[0], torch.where(active, before + 1.0, torch.lerp(before, before + 1.0, 0.3))
        assert torch.equal(state.memory, expected), at
        assert torch.equal(param.detach(), expected.masked_fill(~active, 0)), at
        at += 1
    assert tried > 20


@pytest.mark.parametrize("event", ["call", "line"])
@pytest.mark.parametrize("normalizes", [False, True], ids=["steps as they are", "steps that are scaled"])
def test_an_interruption_while_latent_values_are_shown_or_hidden_loses_nothing(normalizes, event) -> None:
    """Also between a parameter's data and the note of it: a call of a property stands between the two."""
    files = tuple(module.__file__ for module in (latent_values, coded, shards))
    before, at, tried = torch.randn(7, 11), 0, 0  # at 0 nothing is interrupted
    active = torch.arange(77).view(7, 11) % 3 == 0
    while at <= tried:
        param = nn.Parameter(before.clone())
        state = WeightState("w", param, lambda: {}, holds_zero=False, normalizes=normalizes)
        state.transition(torch.where(active, TRAINABLE, EXPLORED).to(torch.uint8), "mru", Latent(scale=0.3))
        stepped = False
        with contextlib.suppress(Interrupted), interrupted_at(at, event, files) as seen:
            state.show_latent()
            param.data.add_(1.0)
            stepped = True
            state.hide_latent()
        if not stepped:  # once more, as the next step does
            state.show_latent()
            param.data.add_(1.0)
        state.hide_latent()
        moved = torch.lerp(before, before + 1.0, 0.3) if normalizes else before + 1.0
        expected = torch.where(active, before + 1.0, moved)
        assert torch.equal(state.memory, expected), at
        assert torch.equal(param.detach(), expected.masked_fill(~active, 0)), at
        assert param.data_ptr() != state.memory.data_ptr(), at
        tried = max(tried, seen[0])
        at += 1
    assert tried > 20


def test_gradients_that_are_not_finite_are_not_hidden() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=STE.topkast(every=50), total_steps=60)
    loss_of(model, batches(1)[0]).backward()
    state = states(sparsifier)[1]
    where = (~state.active).nonzero()[0]
    state.param.grad[tuple(where)] = math.inf
    chosen.step()
    assert state.memory[tuple(where)] == -math.inf
    assert state.param[tuple(where)] == 0


def test_a_closure_computes_with_the_projection() -> None:
    models = []
    for closed in (False, True):
        model = network()
        chosen = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        attach(model, chosen, pattern=PATTERN, method=STE(every=3), total_steps=20)
        for batch in batches(20):

            def closure(batch=batch, chosen=chosen, model=model):
                chosen.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            if closed:
                chosen.step(closure)
            else:
                closure()
                chosen.step()
        models.append(snapshot(model))
    assert same(*models)


def test_finalize_in_the_middle_keeps_what_the_network_computed_with() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier = attach(model, chosen, pattern=PATTERN, method=STE(ramp=None), total_steps=40)
    train(model, chosen, batches(7))
    before = snapshot(model)
    sparsifier.finalize()
    assert same(before, snapshot(model))
    train(model, chosen, batches(3))
    for name, mask in sparsifier.masks.items():
        assert (model.get_parameter(name)[~mask] == 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": -0.1}, "scale is -0.1, but must be a number of at least 0"),
        ({"p": 0.5}, "p is 0.5, but must be a number of at least 1"),
        ({"every": 0}, "every is 0, but must be a whole number of steps"),
        ({"ramp": 1.0}, "ramp is 1.0, but must be a sparsity"),
        ({"ramp_end": 75}, "ramp_end is 75, but must be a share of the updates"),
        ({"start": "best"}, "start 'best' is unknown"),
    ],
)
def test_bad_options(options, said) -> None:
    with pytest.raises(UserError, match=said):
        STE(**options)


def test_channels_have_nothing_latent() -> None:
    model = network()
    chosen = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(UserError, match="ste needs the gradients of what was removed, but removed channels have none"):
        attach(
            model, chosen, pattern=regrow.Channels(flops=0.5, round_to=1), method="ste", example_inputs=batches(1)[0][0]
        )


@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m)[:60])
def test_a_model_that_is_cast_on_the_way_trains_on(method, to) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = attach(model, optimizer, method=method)
    train(model, optimizer, batches(6))
    model.to(to)
    for x, y in batches(20)[6:]:
        optimizer.zero_grad()
        loss_of(model, (x.to(to), y)).backward()
        optimizer.step()
        for state in states(sparsifier):
            assert (state.param.dtype, state.memory.dtype) == (to, to)
            assert sparsifier.phase == "explore" or (state.param[~state.active] == 0).all()
    assert all(p.isfinite().all() for p in model.parameters())


SOFT = [STE(every=4), STE.st3(every=4), STE(p=2.0, every=4, ramp=None)]


@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", SOFT, ids=lambda m: repr(m)[:60])
def test_what_a_cast_rounds_is_not_taken_for_something_written(method, to) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = attach(model, optimizer, pattern=PATTERN, method=method)
    train(model, optimizer, batches(6))
    kept = [state.memory.to(to) for state in states(sparsifier)]
    model.to(to)
    with sparsifier.sparse():
        pass
    for state, memory in zip(states(sparsifier), kept, strict=True):
        assert state.is_written
        state.param.data[state.active.nonzero()[0].unbind()] = 3.0
        memory[state.active.nonzero()[0].unbind()] = 3.0
        state.show_latent()
        assert torch.equal(state.memory, memory)
        state.hide_latent()
        assert torch.equal(state.param, state.latent.project(memory, state.active))


@pytest.mark.parametrize("ulps", [-2, -1, 1, 2])
@pytest.mark.parametrize("method", SOFT, ids=lambda m: repr(m)[:60])
def test_resumed_where_powers_round_otherwise_it_keeps_its_latent_values(method, ulps) -> None:
    made = []
    for _ in range(2):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        made.append((model, optimizer, attach(model, optimizer, pattern=PATTERN, method=method)))
    train(made[0][0], made[0][1], batches(6))
    saved = copy.deepcopy([part.state_dict() for part in made[0]])
    for state in states(made[0][2]):
        bits = saved[0][state.name].view(torch.int32)
        bits.add_(ulps * (bits << 1 != 0))
    for part, loaded in zip(made[1], saved, strict=True):
        part.load_state_dict(loaded)
    for state, before in zip(states(made[1][2]), states(made[0][2]), strict=True):
        state.fit_to_codes()
        assert torch.equal(state.memory, before.memory)
        assert torch.equal(state.param, before.param)
