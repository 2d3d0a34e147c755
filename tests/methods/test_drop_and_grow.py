"""Drop and grow by hand, as the papers' figures do it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from regrow.methods import DSR, IEE, MEST, METHODS, SNFS, Chase, RigL
from regrow.methods.rigl import DropAndGrow

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


TWO = {"a": [5.0, -4.0, 3.0, -2.0, 1.0], "b": [0.5, -0.4, 0.3, -0.2, 0.1]}  # layers of 10 weights, of which 6 stay
STILL = {"a": [0.0] * 5, "b": [0.0] * 5}


def two_layers(method: DropAndGrow, total_steps: int) -> tuple[nn.ModuleDict, torch.optim.SGD]:
    model = nn.ModuleDict({name: nn.Linear(5, 1, bias=False) for name in TWO})
    for name, weights in TWO.items():
        model.get_submodule(name).weight.data = torch.tensor([weights])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pattern = regrow.Weights(0.4, {"a": 0.6, "b": 0.6})
    regrow.Sparsifier(model, optimizer, pattern=pattern, method=method, total_steps=total_steps)
    return model, optimizer


def steps(model: nn.ModuleDict, optimizer: torch.optim.SGD, *gradients: dict[str, list[float]]) -> list[list[float]]:
    for gradient in gradients:
        for name, of_layer in gradient.items():
            model.get_submodule(name).weight.grad = torch.tensor([of_layer])
        optimizer.step()
    return [model.get_submodule(name).weight.flatten().tolist() for name in TWO]


CONSTANT = {"budget": regrow.Budget("constant", 0.4), "start": "criterion"}


def test_dsr_drops_the_least_of_all_layers_and_grows_where_most_survives() -> None:
    model, optimizer = two_layers(DSR(interval=2, **CONSTANT), 6)
    assert steps(model, optimizer, STILL) == [[5, -4, 3, 0, 0], pytest.approx([0.5, -0.4, 0.3, 0, 0])]
    # one of three goes in each layer, so two in all: 0.4 and 0.3; three and one are left, so both come in the first
    assert steps(model, optimizer, STILL) == [[5, -4, 3, 0, 0], [0.5, 0, 0, 0, 0]]
    one_each = {"a": [0.0, 0.0, 0.0, 1.0, 1.0], "b": [0.0, 1.0, 1.0, 1.0, 1.0]}
    assert steps(model, optimizer, one_each) == [pytest.approx([5, -4, 3, -0.1, -0.1]), [0.5, 0, 0, 0, 0]]


@pytest.mark.parametrize(("of_a", "grown"), [(3.0, ([3, 4], [])), (1.0, ([4], [3])), (0.0, ([], [3, 4]))])
def test_snfs_grows_by_momentum_in_the_layers_that_have_most(of_a: float, grown: tuple[list[int], list[int]]) -> None:
    model, optimizer = two_layers(SNFS(interval=2, **CONSTANT), 4)
    first = {"a": [of_a, -of_a, 0.0, 9.0, 1.5], "b": [1.0, 1.0, 0.0, 6.0, 0.0]}
    second = {"a": [of_a, -of_a, 0.0, -8.0, 1.5], "b": [1.0, 1.0, 0.0, 0.0, 2.0]}  # 9 and -8 cancel but for a half
    started = steps(model, optimizer, first)
    assert [sum(w != 0 for w in of_layer) for of_layer in started] == [3, 3]
    after = steps(model, optimizer, second)
    assert [[w != 0 for w in of_layer[:3]] for of_layer in after] == [[True, True, False]] * 2
    moved = steps(model, optimizer, {name: [1.0] * 5 for name in TWO})
    for now, before, places in zip(moved, after, grown, strict=True):
        assert [i for i in range(5) if now[i] != before[i]] == [0, 1, *places]


def test_chase_grows_first_and_drops_to_size_afterwards_over_all_layers() -> None:
    model, optimizer = two_layers(Chase(interval=2, **CONSTANT), 6)
    gradient = {"a": [0.0, 0.0, 0.0, 0.1, 0.2], "b": [0.0, 0.0, 0.0, 3.0, -2.0]}
    assert steps(model, optimizer, STILL, gradient) == [[5, -4, 3, 0, 0], pytest.approx([0.5, -0.4, 0.3, 0, 0])]
    up = {"a": [0.0] * 5, "b": [0.0, 0.0, 0.0, -6.0, 4.5]}  # both grow beside the six, to 0.6 and -0.45
    expected = [[5, -4, 3, 0, 0], pytest.approx([0.5, -0.4, 0.3, 0.6, -0.45])]
    assert steps(model, optimizer, up) == expected
    # at the last update the six best of the eight stay: with the six of before it would have been 0.4 and 0.3
    assert steps(model, optimizer, STILL) == [[5, -4, 3, 0, 0], pytest.approx([0.5, 0, 0, 0.6, -0.45])]


def test_mest_drops_by_magnitude_and_gradient_what_has_trained_beside_the_new() -> None:
    model, optimizer = two_layers(MEST(interval=2, gradient=2.0, start_steps=1, **CONSTANT), 9)
    first = {"a": [0.0, 0.0, 0.0, 0.0, 3.0], "b": [0.0] * 5}  # |1| + 2·3 outweighs them all
    [a, b] = steps(model, optimizer, first)
    assert a == pytest.approx([5, -4, 0, 0, 0.7])
    assert b == pytest.approx([0.5, -0.4, 0.3, 0, 0])
    ones = {name: [-10.0] * 5 for name in TWO}
    [a, b] = steps(model, optimizer, ones)  # one more in each layer trains as well
    assert [sum(w != 0 for w in of_layer) for of_layer in (a, b)] == [4, 4]
    [new] = {2, 3} & {i for i, w in enumerate(a) if w}
    last = {"a": [0.0] * 5, "b": [0.0] * 5}
    last["a"][new] = 99.0
    [a, b] = steps(model, optimizer, last)
    assert a[new] == pytest.approx(1.0 - 9.9)  # the new one stays, and of the others 1.7 has gone, the least
    assert [w != 0 for w in a] == [True, True, new == 2, new == 3, False]


def trained_to_a_tenth(method: DropAndGrow) -> regrow.Sparsifier:
    """40 steps of one layer, half of them with updates."""
    model = nn.Sequential(nn.Linear(40, 25, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sparsifier = regrow.Sparsifier(
        model, optimizer, pattern=regrow.Weights(0.9, "erk"), method=method, total_steps=40,
        example_inputs=torch.randn(2, 40),
    )  # fmt: skip
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(2, 40)).square().mean().backward()
        optimizer.step()
    return sparsifier


@pytest.mark.parametrize("soft", [True, False])
def test_mest_costs_what_it_holds(soft: bool) -> None:
    """3·f_S a step, at the density with what has been grown beside it (MEST, section 3: EM&S and EM)."""
    method = MEST(interval=5, budget=regrow.Budget("constant", 0.5), update_end=0.5, soft=soft)
    sparsifier = trained_to_a_tenth(method)
    assert sparsifier.training_cost()["total"] == pytest.approx(0.1 * (20 * (1.5 if soft else 1.0) + 20) / 40)
    assert sparsifier.density() == pytest.approx(0.1)


def test_snfs_costs_a_dense_gradient_at_every_step_of_its_updates() -> None:
    """2·f_S + f_D, as in Evci et al. 2020, appendix on FLOPs."""
    sparsifier = trained_to_a_tenth(SNFS(interval=5, update_end=0.5))
    assert sparsifier.training_cost()["total"] == pytest.approx((20 * (2 * 0.1 + 1) + 20 * 0.3) / (3 * 40))


@pytest.mark.parametrize("name", ["snfs", "dsr", "chase"])
def test_what_shares_weights_out_among_layers_takes_single_weights(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for pattern in (regrow.NM(2, 4), regrow.Blocks((2, 2), 0.5, "er")):
        with pytest.raises(regrow.UserError, match=f"{name} shares single weights out among layers; use pattern="):
            regrow.Sparsifier(model, optimizer, pattern=pattern, method=METHODS[name](), total_steps=1000)


def test_settings_of_rigl_and_of_pruning_at_once() -> None:
    itop = RigL.itop(interval=30)
    assert (itop.interval, itop.budget, itop.update_end) == (30, regrow.Budget("cosine", 0.5), 1.0)
    assert RigL.itop() == RigL(1500, regrow.Budget("cosine", 0.5), 1.0)
    model, optimizer = layer()
    regrow.Sparsifier(model, optimizer, pattern=regrow.Weights(0.8), method=regrow.OneShot.snip(h=2), total_steps=4)
    step(model, optimizer, [[0.001, 0.0, 0.0, 0.0, 0.0, 0.09, 0.07, 0.0, 0.02, 0.0]])
    kept = step(model, optimizer, [[0.001, 0.0, 0.0, 0.0, 0.0, -0.09, 0.07, 0.0, 0.02, 0.0]])  # the 6th cancels
    assert [w != 0 for w in kept] == [False] * 6 + [True, False, True, False]
