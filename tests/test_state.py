from __future__ import annotations

import pytest
import torch
from torch import nn

from regrow.state import EXPLORED, FROZEN, PRUNED, TRAINABLE, WeightState


def state(values: list[float]) -> WeightState:
    return WeightState("w", nn.Parameter(torch.tensor(values)), dict, holds_zero=True)


def test_values_by_code() -> None:
    one = state([1.0, 2.0, 3.0, 4.0])
    one.transition(torch.tensor([TRAINABLE, PRUNED, TRAINABLE, PRUNED], dtype=torch.uint8))
    assert one.param.tolist() == [1, 0, 3, 0]
    assert one.values().tolist() == [1, 2, 3, 4]
    one.transition(torch.tensor([FROZEN, EXPLORED, FROZEN, EXPLORED], dtype=torch.uint8), "mru")
    assert one.param.tolist() == [1, 2, 3, 4]
    with torch.no_grad():
        one.param.add_(10)
    one.enforce()
    assert one.param.tolist() == [1, 12, 3, 14]
    assert one.active.tolist() == [True, False, True, False]
    one.transition(torch.tensor([TRAINABLE, TRAINABLE, TRAINABLE, PRUNED], dtype=torch.uint8), "explored")
    assert one.param.tolist() == [1, 12, 3, 0]
    assert one.values().tolist() == [1, 12, 3, 14]


def test_history_bits_do_not_touch_codes() -> None:
    one = state([1.0, 2.0])
    one.mark(previous=torch.tensor([True, False]), grown=torch.tensor([False, True]))
    assert one.code.tolist() == [TRAINABLE, TRAINABLE]
    assert (one.previous.tolist(), one.grown.tolist()) == ([True, False], [False, True])
    one.transition(torch.tensor([PRUNED, TRAINABLE], dtype=torch.uint8))
    assert (one.previous.tolist(), one.grown.tolist()) == ([True, False], [False, True])


@pytest.mark.parametrize("shape", [(3,), (700, 800), (4, 3, 300, 200)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_masked_in_pieces(shape, channels_last) -> None:
    form = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    torch.manual_seed(0)
    one = WeightState("w", nn.Parameter(torch.randn(shape).to(memory_format=form)), dict, holds_zero=True)
    keep = torch.rand(shape) < 0.3
    one.transition(keep.to(torch.uint8) * TRAINABLE)
    one.mark(previous=keep, grown=~keep)
    gradient = torch.randn(shape).to(memory_format=form)
    one.param.grad = gradient.clone()
    one.mask_gradient()
    assert torch.equal(one.param.grad, gradient * keep)
