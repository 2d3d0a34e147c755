"""Which layers become semi-structured, and what is refused. The layout itself: patterns/test_nm.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regrow
from exported import two_of_four
from regrow import UserError
from regrow.exporting.semi_structured import fitting_layers


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.Linear(32, 64), nn.Linear(64, 40), nn.Linear(40, 64), nn.Linear(64, 64),
        nn.Linear(64, 64), nn.Conv1d(64, 64, 1), nn.Linear(64, 96),
    )  # fmt: skip
    model[5].weight = model[4].weight
    return model


def test_layers_that_are_two_of_four_and_of_fitting_sides() -> None:
    model = two_of_four(network())
    assert list(fitting_layers(model)) == ["0", "7"]  # not: inputs of 32, outputs of 40, inputs of 40, shared, conv
    with torch.no_grad():
        model[7].weight[3, :3] = 1.0  # three of a group
    assert list(fitting_layers(model)) == ["0"]


REFUSED = [
    (lambda: two_of_four(network()), "run on CUDA alone, and the model is on cpu: move it with model.cuda()"),
    (network, "no linear layer of the model is 2:4-sparse: train it with pattern=regrow.NM(2, 4)"),
    (lambda: two_of_four(nn.Linear(12, 4)), "has a weight of its own with outputs in multiples of 32"),
    (lambda: nn.Conv2d(64, 64, 1), "no linear layer of the model is 2:4-sparse"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_cannot_be_converted_is_refused_and_left_alone(make, said: str) -> None:
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        regrow.to_semi_structured(model)
    assert said in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="semi-structured kernels run on CUDA alone")
def test_a_converted_model_computes_the_same() -> None:
    model = two_of_four(nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))).cuda().half()
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        expected = model(x)
        assert regrow.to_semi_structured(model) == ["0", "2"]
        assert ((model(x) - expected).abs().max() / expected.abs().max()) < 5e-3
