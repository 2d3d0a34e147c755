"""An update is all or nothing, wherever it is interrupted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attack_updates as attack
from engine import attach, batches, loss_of, network
from regrow.surgery import scale, skip
from regrow.undo import Scope, all_or_nothing


@pytest.mark.filterwarnings("ignore:.*updates fit")
@pytest.mark.parametrize("kind", attack.KINDS)
def test_interrupted_updates(kind: str) -> None:
    assert attack.attack(kind, 5) == []


@pytest.mark.filterwarnings("ignore:.*updates fit")
@pytest.mark.parametrize("kind", attack.KINDS)
def test_what_is_saved_after_an_interrupted_step_goes_on_as_the_run_itself(kind: str) -> None:
    said = [attack.resume(kind, 7, share) for share in (0.15, 0.7, 0.97)]
    assert [one for one in said if one] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_failed_update_is_tried_again_with_the_next_step(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    sparsifier = attach(model, optimizer)
    *data, last = batches(sparsifier._engine.timeline.cycle[0].steps)
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, last).backward()
    units = sparsifier._units

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise error("in the middle")

    monkeypatch.setattr(type(units), "_prune", fail)
    with pytest.raises(error):
        optimizer.step()
    assert sparsifier.step_count == len(data)
    first = attack.image((model, optimizer, sparsifier))
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in sparsifier.masks.items())
    optimizer.zero_grad()
    loss_of(model, last).backward()
    optimizer.step()
    assert sparsifier.step_count == len(data) + 1
    assert not attack.same(first, attack.image((model, optimizer, sparsifier)))


def test_shapes_gradients_states_and_numbers_come_back() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    gradients = [p.grad.clone() for p in model.parameters()]

    class Part:
        def __init__(self) -> None:
            self.numbers, self.tensor = [1, 2], torch.ones(2)

    part, resized = Part(), []

    def change() -> None:
        with all_or_nothing(Scope(model, [optimizer], [part], lambda: resized.append(True))), torch.no_grad():
            model[0].weight.grad = None
            model[0].weight.data = torch.zeros(2, 4)
            model[0].bias.fill_(7)
            model[1].running_mean.fill_(9)
            model[0].out_features = 2
            optimizer.state[model[0].bias]["exp_avg"].zero_()
            optimizer.state[nn.Parameter(torch.ones(1))] = {}
            part.numbers.append(3)
            part.tensor.zero_()
            part.more = 1
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        change()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)] == [True] * 4
    assert {p: list(s) for p, s in optimizer.state.items()} == {p: list(s) for p, s in states.items()}
    assert all(torch.equal(v, states[p][k]) for p, s in optimizer.state.items() for k, v in s.items())
    assert model[0].out_features == 6
    assert (part.numbers, part.tensor.tolist(), vars(part).keys()) == ([1, 2], [1, 1], {"numbers", "tensor"})
    assert resized == [True]


def test_layers_that_are_not_run_come_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = torch.randn(2, 1, 5, 5)
    expected = model(x).detach()
    skip.skip(model[1], skip.WIDE)
    scale.hold(model, 8)

    def interrupted() -> None:
        with all_or_nothing(Scope(model, [], [])):
            skip.run_again(model[1])
            skip.skip(model[0], skip.WIDE)
            scale.let_go(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not skip.is_skipped(model[0])
    assert model.regrow_scaled == 8
    assert torch.equal(model(x), model[0](x))
    skip.run_again(model[1])
    torch.testing.assert_close(model(x), expected)
