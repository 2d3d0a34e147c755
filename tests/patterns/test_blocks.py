"""Blocks go as a whole, to exact counts."""

from __future__ import annotations

import pytest
import torch
from test_nm import METHODS_SHORT, network
from torch import Tensor, nn

import regrow
from engine import batches, train
from regrow import Blocks, UserError


def blocks(weight: Tensor, rows: int, columns: int) -> Tensor:
    """[blocks, entries], inputs moved to the end."""
    turned = weight.movedim(1, -1).flatten(1, -2) if weight.dim() > 2 else weight[:, None]
    out, places, inputs = turned.shape
    grid = turned.reshape(out // rows, rows, places, inputs // columns, columns)
    return grid.permute(0, 2, 3, 1, 4).reshape(-1, rows * columns)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS_SHORT, ids=lambda m: repr(m)[:40])
@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (8, 1)], ids=str)
def test_every_block_is_whole_after_every_step(shape, method) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    layers = {(1, 4): ["2", "6", "8"], (2, 2): ["2", "6"], (8, 1): ["6"]}[shape]
    pattern = Blocks(shape, 0.75, include=layers)
    counts = pattern.counts(model)
    sparsifier = regrow.Sparsifier(model, optimizer, pattern=pattern, method=method, total_steps=40)

    def check() -> None:
        for name, mask in sparsifier.masks.items():
            whole = blocks(mask, *shape)
            assert (whole.all(1) | ~whole.any(1)).all()
            with sparsifier.sparse():
                assert (model.get_parameter(name)[~mask] == 0).all()

    train(model, optimizer, batches(40), check)
    sparsifier.finalize()
    for name, mask in sparsifier.masks.items():
        active, total = counts[name]
        assert total == mask.numel() // (shape[0] * shape[1])
        assert int(blocks(mask, *shape).all(1).sum()) == active


def test_the_best_blocks_by_their_mean_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    weight = torch.tensor([[9.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 8]])
    model[0].weight.data.copy_(weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pattern = Blocks((2, 2), 0.5, distribution="erk")
    regrow.Sparsifier(model, optimizer, pattern=pattern, method="oneshot", total_steps=3)
    # means: 2.25 and 1 above, 2 and 2 below, of which the first by index stays
    assert model[0].weight.tolist() == [[9, 0, 0, 0], [0, 0, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]]


def test_layers_that_do_not_fit_are_named() -> None:
    found = Blocks((4, 4), 0.5, distribution="erk").select(network())
    assert list(found.parameters) == ["6.weight"]
    assert found.dense["2.weight"] == "its 6 outputs and 8 inputs are no multiples of 4 and 4"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": 4, "sparsity": 0.5}, "shape is 4, but must be"),
        ({"shape": (0, 1), "sparsity": 0.5}, r"shape is \(0, 1\), but must be"),
        ({"shape": (2, 2), "sparsity": 90}, "the share of blocks to remove"),
        ({"shape": (2, 2), "sparsity": 0.5, "distribution": "global"}, "distribution 'global' is unknown"),
    ],
)
def test_bad_options(options, said) -> None:
    with pytest.raises(UserError, match=said):
        Blocks(**options)


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("shape", [(16, 1), (4, 2), (1, 8)], ids=str)
@pytest.mark.parametrize("width", [8, 24, 32])
def test_a_layer_that_holds_its_inputs_first_has_the_same_counts(width, shape, distribution) -> None:
    last = [nn.Flatten(), nn.Linear(48, 32)]
    plain = nn.Sequential(nn.Conv2d(1, width, 1), nn.Conv2d(width, 48, 3), *last)
    turned = nn.Sequential(nn.Conv2d(1, width, 1), nn.ConvTranspose2d(width, 48, 3), *last)
    pattern = Blocks(shape, 0.5, distribution, exclude=["0"])
    counts = pattern.counts(plain)
    assert pattern.counts(turned) == counts
    optimizer = torch.optim.SGD(turned.parameters(), 0.1)
    sparsifier = regrow.Sparsifier(turned, optimizer, pattern=pattern, method="static", total_steps=3)
    kept = {name: int(mask.sum()) // (shape[0] * shape[1]) for name, mask in sparsifier.masks.items()}
    assert kept == {name: active for name, (active, _) in counts.items()}
