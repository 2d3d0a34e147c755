"""Methods that begin dense, or train what they have removed, by hand: ten weights, plain SGD with a rate of 0.1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from regrow.actions import Fill
from regrow.methods import ACDC, GMP, SET, SRSTE, STE, GaP, GraNet, Method, OneShot

WEIGHTS = [5.0, -4.0, 3.0, -2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
STILL = [0.0] * 10


class Ten:
    """A layer of ten weights, of which five stay, and its optimizer.

    Args:
        method: attached to it.
        total_steps: of the run.
        pattern: half of them by default.
    """

    def __init__(self, method: Method, total_steps: int, pattern: regrow.Weights | regrow.NM | None = None) -> None:
        self.layer = nn.Linear(10, 1, bias=False)
        self.layer.weight.data = torch.tensor([WEIGHTS])
        self.optimizer = torch.optim.SGD(self.layer.parameters(), 0.1)
        self.sparsifier = regrow.Sparsifier(
            self.layer, self.optimizer, pattern=pattern or regrow.Weights(0.5, "global"), method=method,
            total_steps=total_steps,
        )  # fmt: skip

    @property
    def weights(self) -> list[float]:
        return [round(w, 4) + 0.0 for w in self.layer.weight.flatten().tolist()]

    def step(self, gradient: list[float]) -> list[float]:
        """The weights after a step by this gradient."""
        self.layer.weight.grad = torch.tensor([gradient])
        self.optimizer.step()
        return self.weights


def test_gmp_follows_its_cubic() -> None:
    ten = Ten(GMP(interval=1, update_end=4), 8)
    # s = 0.5·(1 − (1 − t)³): 0.289, 0.4375, 0.492, 0.5 of ten weights
    left = [sum(w != 0 for w in ten.step(STILL)) for _ in range(6)]
    assert left == [7, 6, 5, 5, 5, 5]
    assert ten.weights == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]


def test_granet_prunes_along_the_cubic_and_regrows_by_the_gradient() -> None:
    ten = Ten(GraNet(interval=2, update_end=2, budget=regrow.Budget("constant", 0.4)), 6)
    assert ten.step(STILL) == WEIGHTS  # dense
    gradient = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 0.0, -8.0, 0.0]
    # five stay, of which two go again, 2 and 1; what has the largest gradients comes, at zero
    assert ten.step(gradient) == [5, -4, 3, 0, 0, 0, 0, 0, 0, 0]
    assert ten.step([1.0] * 10) == [4.9, -4.1, 2.9, 0, 0, 0, -0.1, 0, -0.1, 0]


def test_acdc_brings_everything_back_at_zero_and_ends_sparse() -> None:
    ten = Ten(ACDC(sparse=1, dense=1, warm_up=1, update_end=3), 6)
    assert ten.step(STILL) == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]  # dense until now
    assert ten.step([1.0] * 10) == [4.9, -4.1, 2.9, -2.1, 0.9, 0, 0, 0, 0, 0]
    assert ten.sparsifier.density() == 1.0
    # what was removed starts from zero; two of it outgrow 2.1 and 0.9 in the dense phase
    assert ten.step([0.0] * 5 + [-30.0, 0.0, 0.0, 0.0, 40.0]) == [4.9, -4.1, 2.9, 0, 0, 3.0, 0, 0, 0, -4.0]
    assert ten.step([1.0] * 10) == [4.8, -4.2, 2.8, 0, 0, 2.9, 0, 0, 0, -4.1]
    assert ten.sparsifier.phase == "fixed"


def test_gap_makes_one_part_after_the_other_dense_and_prunes_it_back() -> None:
    layers = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False))
    layers[0].weight.data, layers[1].weight.data = torch.tensor([[4.0], [3], [2], [1]]), torch.tensor([[1.0, 2, 3, 4]])
    optimizer = torch.optim.SGD(layers.parameters(), 0.1)
    method = GaP(interval=1, parts=2, update_end=3, start="criterion")
    regrow.Sparsifier(layers, optimizer, pattern=regrow.Weights(0.5, {"*": 0.5}), method=method, total_steps=4)

    def values() -> list[list[float]]:
        return [[round(w, 4) + 0.0 for w in layer.weight.flatten().tolist()] for layer in layers]

    def step(first: list[float], second: list[float]) -> list[list[float]]:
        for layer, gradient in zip(layers, (first, second), strict=True):
            layer.weight.grad = torch.tensor(gradient, dtype=torch.float32).view_as(layer.weight)
        optimizer.step()
        return values()

    assert values() == [[4, 3, 0, 0], [0, 0, 3, 4]]
    # all of the first layer trains, what came back from zero, and outgrows 3; then it is the second one's turn
    assert step([0, 0, 0, -35], [-50, 0, 0, 10]) == [[4, 0, 0, 3.5], [0, 0, 3, 3]]
    assert step([0, -50, 0, 0], [-35, 0, 0, 10]) == [[4, 0, 0, 3.5], [3.5, 0, 3, 0]]
    # the first again; after the last update both are sparse and stay so
    assert step([0, 0, -40, 5], [0, 0, 0, -90]) == [[4, 0, 4, 0], [3.5, 0, 3, 0]]
    assert step([10, 10, 10, 10], [10] * 4) == [[3, 0, 3, 0], [2.5, 0, 2, 0]]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_the_parts_of_gap_are_all_layers_once(parts: int) -> None:
    names = ["a", "b", "c", "d", "e"]
    found = [Fill(part, parts).layers(names) for part in range(parts)]
    assert [name for part in found for name in part] == names
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_gap_refuses_channels() -> None:
    with pytest.raises(regrow.UserError, match="they share channels"):
        GaP().check_pattern(regrow.Channels(flops=0.5))


def test_set_grows_as_many_as_it_drops_at_zero() -> None:
    ten = Ten(SET(interval=2, budget=regrow.Budget("constant", 0.4), start="criterion"), 4)
    ten.step(STILL)
    assert ten.step(STILL)[:3] == [5, -4, 3]
    assert ten.weights[3:] == [0] * 7  # the two that come are at zero
    assert sum(w != 0 for w in ten.step([1.0] * 10)) == 5


def test_feather_computes_with_what_is_above_the_largest_removed_weight() -> None:
    ten = Ten(STE.feather(ramp=None, every=100), 200)
    left = [w**3 - 0.9**3 for w in (5, 4, 3, 2, 1)]
    signs = [1, -1, 1, -1, 1]
    assert ten.weights == [round(s * r ** (1 / 3), 4) for s, r in zip(signs, left, strict=True)] + [0] * 5
    # removed weights move by half of their gradient: 0.8 becomes 1.0, the new threshold
    ten.step([0.0] * 6 + [-4.0, 0.0, 0.0, 0.0])
    left = [w**3 - 1.0 for w in (5, 4, 3, 2, 1)]
    assert ten.weights == [round(s * r ** (1 / 3), 4) for s, r in zip(signs, left, strict=True)] + [0] * 5


def test_st3_subtracts_the_threshold_and_takes_gradients_as_they_are() -> None:
    ten = Ten(STE.st3(ramp=None), 200)
    assert ten.weights == [4.1, -3.1, 2.1, -1.1, 0.1, 0, 0, 0, 0, 0]
    # 0.5 becomes 1.5, and takes the place of 1, which is the threshold now
    assert ten.step([0.0] * 9 + [-10.0]) == [4.0, -3.0, 2.0, -1.0, 0, 0, 0, 0, 0, 0.5]


def test_topkast_trains_the_largest_of_what_is_removed() -> None:
    ten = Ten(STE.topkast(backward=0.3), 200)
    assert ten.weights == [5, -4, 3, -2, 1, 0, 0, 0, 0, 0]
    # seven train: the five, 0.9 and 0.8; 0.7 has the largest gradient and stays where it is
    assert ten.step([0.0] * 5 + [1.0, -3.0, -90.0, 0.0, 0.0]) == [5, -4, 3, -2, 0, 0, 1.1, 0, 0, 0]
    assert ten.step([0.0] * 7 + [-4.0, 0.0, 0.0]) == [5, -4, 3, -2, 0, 0, 1.1, 0, 0, 0]  # 1 and 0.8 are next, not 0.7
    assert ten.step([0.0] * 4 + [-2.0] + [0.0] * 5) == [5, -4, 3, -2, 1.2, 0, 0, 0, 0, 0]


def test_srste_pulls_what_is_removed_towards_zero() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = regrow.Sparsifier(layer, optimizer, pattern=regrow.NM(2, 4), method=SRSTE(pull=0.5), total_steps=100)
    assert layer.weight.tolist() == [[4, -3, 0, 0]]
    # w ← w − 0.1·(g + 0.5·w) where removed: 2 becomes 3.4, 1 becomes 0.95; 3 has no pull
    layer.weight.grad = torch.tensor([[0.0, 0.0, -15.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(layer.weight.data, torch.tensor([[4.0, 0.0, 3.4, 0.0]]))
    layer.weight.grad = torch.zeros(1, 4)
    optimizer.step()  # -3 becomes -2.85
    layer.weight.grad = torch.tensor([[25.0, 0.0, 0.0, 0.0]])
    optimizer.step()  # 4 becomes 1.5, -2.85 becomes -2.7075
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.0, -2.7075, 3.4, 0.0]]))
    assert sparsifier.density() == 0.5


@pytest.mark.parametrize(
    ("method", "stay"),
    [(OneShot(), [0, 1, 2, 3, 4]), (OneShot.snip(), [0, 5, 6, 8, 9])],
    ids=["by magnitude", "SNIP"],
)
def test_pruning_at_once(method: OneShot, stay: list[int]) -> None:
    ten = Ten(method, 10)
    after = ten.step([1.0, 0.1, -0.1, 0.1, 0.5, 2.0, -3.0, 0.1, 4.0, -5.0])  # |w·g|: 5, .4, .3, .2, .5, 1.8, 2.4, …
    assert [i for i, w in enumerate(after) if w] == stay
