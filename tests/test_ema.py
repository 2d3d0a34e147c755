"""Averages of weights: in the structure after every update, begun afresh by what is grown, thin where the model is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import channel_engine
import regrow
from engine import attach, batches, network, train
from regrow.errors import UserError

DECAY = 0.7
AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "AveragedModel, exponential": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "AveragedModel, one at a time": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(DECAY), use_buffers=True),
    "ModelEmaV3": lambda m: ModelEmaV3(m, decay=DECAY),
    "ModelEmaV3 of parameters": lambda m: ModelEmaV3(m, decay=DECAY, exclude_buffers=True, foreach=False),
    "ModelEmaV2": lambda m: ModelEmaV2(m, decay=DECAY),
}
METHODS = {
    "exploring": regrow.IEE(h=5, j=4, q=3),
    "unfrozen": regrow.IEE(h=5, j=4, q=3, freeze=False),
    "previewed": regrow.IEE(h=6, j=0, q=0),
    "grown at zero": regrow.RigL(interval=6),
    "gradually": regrow.GMP(interval=6),
}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.01)


def by_hand(average: Tensor, live: Tensor, mask: Tensor) -> Tensor:
    begins = mask & (average == 0)
    return torch.where(begins, live, DECAY * average + (1 - DECAY) * live) * mask


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_the_average_by_hand_while_weights_are_pruned_and_regrown(method: str, kind: str) -> None:
    model = network()
    averaged = AVERAGES[kind](model)
    optimizer = adamw(model)
    sparsifier = attach(model, optimizer, method=METHODS[method])
    average = sparsifier.average(averaged)
    expected: dict[str, Tensor] = {} if "AveragedModel" in kind else dict(averaged.module.named_parameters())
    expected = {name: value.detach().clone() for name, value in expected.items()}
    moved = set()
    for batch in batches(40):
        exploring = sparsifier._engine.span.trains == "removed"
        before = sparsifier.masks
        train(model, optimizer, [batch])
        average.update()
        masks = sparsifier.masks
        moved |= {name for name in masks if not torch.equal(masks[name], before[name])}
        if not exploring:
            with sparsifier.sparse():
                live = {name: p.detach().clone() for name, p in model.named_parameters()}
            for name, value in live.items():
                mask = masks.get(name, torch.ones_like(value, dtype=torch.bool))
                if name not in expected:
                    expected[name] = value
                elif name in masks:
                    expected[name] = by_hand(expected[name], value, mask)
                else:
                    expected[name] = DECAY * expected[name] + (1 - DECAY) * value
            for name, p in averaged.module.named_parameters():
                torch.testing.assert_close(p.detach(), expected[name], rtol=1e-5, atol=1e-7)
                if name in masks:
                    assert (p[~masks[name]] == 0).all()
    assert moved
    before = copy.deepcopy(model.state_dict())
    with average.shown():
        for name, p in model.named_parameters():
            mask = sparsifier.masks.get(name)
            assert torch.equal(p, averaged.module.get_parameter(name))
            assert mask is None or (p[~mask] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def channel_run(thin: bool, steps: int, kind: str = "ModelEmaV3") -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = channel_engine.network().double()
    averaged = AVERAGES[kind](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    data = [(x.double(), y) for x, y in channel_engine.DATA]
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Channels(flops=0.4, round_to=2, thin=thin), method=channel_engine.IEE,
        criterion="taylor", total_steps=60, example_inputs=data[0][0],
    )  # fmt: skip
    average = sparsifier.average(averaged)
    for batch in data[:steps]:
        train(model, optimizer, [batch])
        average.update()
    return model, optimizer, sparsifier, average, data


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["AveragedModel, one at a time", "ModelEmaV3", "ModelEmaV2"])
@pytest.mark.parametrize("steps", [7, 8, 33, 60])
def test_thin_and_masked_channels_have_the_same_average(steps: int, kind: str) -> None:
    outputs = []
    for thin in (True, False):
        model, _, sparsifier, average, data = channel_run(thin, steps, kind)
        masks = sparsifier.masks
        for name, p in average.module.named_parameters():
            assert p.shape == channel_engine.network().get_parameter(name).shape
            assert name not in masks or (p[~masks[name]] == 0).all()
        x = data[-1][0]
        before = copy.deepcopy(model.state_dict())
        with average.shown(), torch.no_grad():
            shown = model.eval()(x)
            torch.testing.assert_close(average.module.eval()(x), shown)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
        if steps == 60:
            sparsifier.finalize()
            average.apply()
            torch.testing.assert_close(sparsifier.compact().eval()(x), shown)
            with pytest.raises(UserError, match=r"apply\(\) it before compact\(\)"):
                average.update()
        outputs.append([shown, *average.module.parameters()])
    for thin_value, masked_value in zip(*outputs, strict=True):
        torch.testing.assert_close(thin_value, masked_value, rtol=1e-4, atol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stop", [3, 8, 11, 20])
@pytest.mark.parametrize("thin", [True, False, None])
def test_resuming_is_exact(thin: bool | None, stop: int) -> None:
    def start() -> tuple[Any, ...]:
        if thin is not None:
            return channel_run(thin, 0)
        model = network()
        averaged = AVERAGES["ModelEmaV3"](model)
        optimizer = adamw(model)
        sparsifier = attach(model, optimizer, method=METHODS["grown at zero"])
        return model, optimizer, sparsifier, sparsifier.average(averaged), batches(60)

    def go(run: tuple[Any, ...], first: int, last: int) -> None:
        model, optimizer, _, average, data = run
        for batch in data[first:last]:
            train(model, optimizer, [batch])
            average.update()

    one = start()
    go(one, 0, stop)
    with one[2].full_width():
        saved = copy.deepcopy([part.state_dict() for part in (*one[:3], one[3].averaged)])
    go(one, stop, 30)
    again = start()
    with again[2].full_width():
        for part, state in zip((*again[:3], again[3].averaged), saved, strict=True):
            part.load_state_dict(state)
    go(again, stop, 30)
    for a, b in zip(one[3].module.state_dict().values(), again[3].module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_average_of_a_dense_run_is_the_plain_one() -> None:
    model, twin = network(), network()
    averaged, plain = AVERAGES["ModelEmaV3"](model), AVERAGES["ModelEmaV3"](twin)
    optimizer, other = adamw(model), adamw(twin)
    average = attach(model, optimizer, method="dense").average(averaged)
    for step, batch in enumerate(batches(5)):
        train(model, optimizer, [batch])
        train(twin, other, [batch])
        average.update(step=step)
        plain.update(twin, step=step)
    for a, b in zip(averaged.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_is_no_average_of_the_model_is_refused() -> None:
    model = network()
    sparsifier = attach(model, adamw(model))
    for wrong in (network(), copy.copy(model.state_dict()), nn.DataParallel(network())):
        with pytest.raises(UserError, match=r"is no average of a model; give torch's AveragedModel or timm's Model"):
            sparsifier.average(wrong)
    with pytest.raises(UserError, match=r"the average is of another model: '[\w.]+' does not match"):
        sparsifier.average(ModelEmaV3(nn.Linear(3, 3)))
    wider = network()
    wider[0] = nn.Conv2d(1, 5, 3)
    with pytest.raises(UserError, match=r"has '0.weight' of shape \(5, 1, 3, 3\), but the model of \(4, 1, 3, 3\)"):
        sparsifier.average(ModelEmaV3(wider))


@pytest.mark.parametrize("steps", [0, 20, 60])
def test_an_average_made_of_a_thin_model_is_refused(steps: int) -> None:
    model, _, sparsifier, _, _ = channel_run(True, steps)
    with pytest.raises(UserError, match="make it of the dense model, before attaching"):
        sparsifier.average(ModelEmaV3(model))
    with sparsifier.full_width():
        averaged = ModelEmaV3(model)
    sparsifier.average(averaged).update()
