"""N of every m weights along the inputs: exact in every group, whatever the method."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import regrow
from engine import batches, train
from regrow import NM, UserError
from regrow.methods import ACDC, GMP, IEE, MEST, METHODS, SET, SRSTE, STE, GaP, GraNet, OneShot, RigL, Static

METHODS_SHORT = [
    IEE(h=3, j=2, q=2), IEE(h=3, ramp=0.0), RigL(interval=5), SET(interval=5), GMP(interval=5), Static(), OneShot(),
    ACDC(sparse=4, dense=3), GraNet(interval=5), STE(every=2), SRSTE(), STE.topkast(),
    MEST(interval=5), GaP(interval=5, parts=2),
]  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 1), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


def by_group(weight: Tensor, axis: int, m: int) -> Tensor:
    return weight.movedim(axis, -1).reshape(-1, m)


def test_what_fits_and_what_stays_dense() -> None:
    chosen = NM(2, 4).select(network())
    assert list(chosen.parameters) == ["2.weight", "6.weight", "8.weight"]
    assert dict(chosen.axes) == {"2.weight": 1, "6.weight": 1, "8.weight": 1}
    assert chosen.dense == {
        "0.weight": "its 1 inputs are no multiple of 4", "4.weight": "its 6 inputs are no multiple of 4",
    }  # fmt: skip
    assert dict(NM(1, 3).select(network()).axes) == {"4.weight": 0}  # transposed: the inputs come first
    with pytest.raises(
        UserError, match=r"that is not excluded and fits \(0.weight: its 1 inputs are no multiple of 5\)"
    ):
        NM(2, 5).select(network())


@pytest.mark.parametrize("method", METHODS_SHORT, ids=lambda m: repr(m)[:40])
@pytest.mark.parametrize("ramp", ["n", "groups"])
def test_exactly_n_of_every_m_once_the_target_is_reached(method, ramp) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=NM(2, 4, ramp), method=method, total_steps=40)

    def check() -> None:
        for name, mask in sparsifier.masks.items():
            kept = by_group(mask, 1, 4).sum(1)
            if ramp == "n":  # the same number in all groups, up to one
                assert kept.max() - kept.min() <= 1
            elif not isinstance(method, IEE | RigL | SET | GraNet):
                assert ((kept != 2) & (kept != 4)).sum() <= 1
            with sparsifier.sparse():
                assert (model.get_parameter(name)[~mask] == 0).all()

    train(model, optimizer, batches(40), check)
    sparsifier.finalize()
    for name, mask in sparsifier.masks.items():
        assert (by_group(mask, 1, 4).sum(1) == 2).all()
        assert (model.get_parameter(name)[~mask] == 0).all()
    assert sparsifier.density() == 0.5


def test_the_result_has_the_layout_of_semi_structured_kernels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    regrow.Sparsifier(model, optimizer, pattern=NM(include=["3"]), method=SRSTE(), total_steps=5)
    train(model, optimizer, batches(5))
    weight = model[3].weight.detach().half()
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.shape == (64, 64)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


def brute_force(scores: Tensor, k: int, candidates: Tensor, occupied: Tensor, m: int) -> float:
    """The best sum of scores of k candidates with groups as evenly filled as can be."""
    best, evenest = -1.0, None
    options = candidates.nonzero().flatten().tolist()
    for chosen in itertools.combinations(options, k):
        filled = occupied.clone()
        filled[list(chosen)] = True
        levels = tuple(sorted(filled.view(-1, m).sum(1).tolist(), reverse=True))
        total = scores[list(chosen)].sum().item()
        if evenest is None or (levels, -total) < (evenest, -best):
            evenest, best = levels, total
    return best


@settings(max_examples=60, deadline=None)
@given(data=st.data(), groups=st.integers(1, 3), m=st.integers(2, 4))
def test_the_choice_is_the_best_of_the_even_ones(data, groups, m) -> None:
    size = groups * m
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size)), dtype=torch.float32)
    held = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    most = data.draw(st.integers(0, m - 1))  # what is occupied is even, as every choice before was
    occupied = held & (held.view(-1, m).cumsum(1) <= most).view(-1)
    k = data.draw(st.integers(0, int((~occupied).sum())))
    found = NM(1, m).choose(lambda name: scores, {"w": k}, {"w": ~occupied}, {"w": occupied})["w"]
    assert int(found.sum()) == k
    assert not (found & occupied).any()
    assert scores[found].sum().item() == brute_force(scores, k, ~occupied, occupied, m)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 4, "m": 4}, r"NM\(4, 4\) removes nothing"),
        ({"n": 0}, "n is 0, but must be a whole number"),
        ({"m": 2.0}, "m is 2.0, but must be a whole number"),
        ({"ramp": "m"}, "ramp 'm' is unknown; use 'n' or 'groups'"),
        ({"exclude": "head"}, "exclude is 'head', but must be a list of names"),
    ],
)
def test_bad_options(options, said) -> None:
    with pytest.raises(UserError, match=said):
        NM(**options)


def test_every_method_but_those_for_channels_is_walked() -> None:
    assert {m.name for m in METHODS_SHORT} == {
        name for name, kind in METHODS.items() if kind.sparsifies and not (kind.channels_only or kind.shares_out)
    }
