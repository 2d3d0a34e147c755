"""Drop and grow by hand, as the papers' figures do it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from regrow.methods import IEE, RigL

WEIGHTS = [[5.0, -4.0, 3.0, -2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]]
GRADIENT = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 9.0, -0.2, -8.0, 0.1]]


def layer() -> tuple[nn.Linear, torch.optim.SGD]:
    model = nn.Linear(10, 1, bias=False)
    model.weight.data = torch.tensor(WEIGHTS)
    return model, torch.optim.SGD(model.parameters(), 0.1)


def step(model: nn.Linear, optimizer: torch.optim.SGD, gradient: list[list[float]]) -> list[float]:
    model.weight.grad = torch.tensor(gradient)
    optimizer.step()
    return model.weight.flatten().tolist()


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest() -> None:
    model, optimizer = layer()
    method = RigL(interval=2, budget=regrow.Budget("constant", 0.4), start="criterion")
    regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5), method=method, total_steps=4)
    assert model.weight.flatten().tolist() == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]
    assert step(model, optimizer, [[0.0] * 9 + [99.0]]) == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]
    # the gradient of the step before the update decides alone: 6 and 8 come, at zero, for 3 and 4
    assert step(model, optimizer, GRADIENT) == [5, -4, 3, 0, 0, 0, 0, 0, 0, 0]
    assert step(model, optimizer, [[1.0] * 10]) == pytest.approx([4.9, -4.1, 2.9, 0, 0, 0, -0.1, 0, -0.1, 0])


@pytest.mark.parametrize(("grown_init", "grown"), [("mru", [0.9, 0.7]), ("explored", [3.9, 3.7]), ("zero", [0.0, 0.0])])
def test_iee_grows_what_the_exploration_made_largest(grown_init, grown) -> None:
    model, optimizer = layer()
    method = IEE(h=1, j=1, q=1, budget=regrow.Budget("constant", 0.4), start="criterion", grown_init=grown_init)
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5), method=method, total_steps=4)
    zero = [[0.0] * 10]
    assert step(model, optimizer, zero) == [5, -4, 3, 0, 0, 0, 0, 0, 0, 0]
    assert sparsifier.phase == "improve"
    assert step(model, optimizer, zero) == pytest.approx(WEIGHTS[0])  # all back, at the values they last had
    assert sparsifier.phase == "explore"
    up = [[-7.0, -7.0, -7.0, 0.0, 0.0, -30.0, 0.0, -30.0, 0.0, 0.0]]  # 5 and 7 grow by 3, the active ones are frozen
    a, b = grown
    assert step(model, optimizer, up) == pytest.approx([5, -4, 3, 0, 0, a, 0, b, 0, 0])
    assert sparsifier.history[0] | {"step": 0} == {
        "update": 1, "step": 0, "pruned": 2, "grown": 2, "regrown": 0, "iou": 3 / 7, "survival": None, "density": 0.5,
    }  # fmt: skip


def test_iee_can_take_back_what_it_has_just_pruned() -> None:
    model, optimizer = layer()
    method = IEE(h=1, j=0, q=0, budget=regrow.Budget("constant", 0.4), start="criterion")
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.5), method=method, total_steps=4)
    assert step(model, optimizer, [[0.0] * 10]) == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]
    assert (sparsifier.history[0]["regrown"], sparsifier.history[0]["iou"]) == (2, 1.0)
