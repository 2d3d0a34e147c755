"""Parameters that lie in the same memory are refused where one of them is to be sparsified."""

import pytest
import torch
from torch import nn

import regrow
from regrow.errors import UserError


class Tied(nn.Module):
    """Linear layers, some of whose parameters are others' memory."""

    def __init__(self, tie):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False), nn.Linear(8, 4)
        tie(self)

    def forward(self, x):
        return self.head(self.b(torch.relu(self.a(x))))


def transposed(model):
    model.b.weight.data = model.a.weight.data.t()


def viewed(model):
    model.b.weight.data = model.a.weight.data.view(8, 16)


def parted(model):
    model.head.weight.data = model.a.weight.data.flatten()[:32].view(4, 8)


def apart(model):
    """As recurrent layers hold their weights on a GPU: one storage, no memory in common."""
    whole = torch.randn(256)
    model.a.weight.data, model.b.weight.data = whole[:128].view(16, 8), whole[128:].view(8, 16)


def attach(model, **options):
    return regrow.Sparsifier(
        model, torch.optim.SGD(model.parameters(), lr=0.1), pattern=regrow.Weights(0.5, **options), method="rigl",
        total_steps=1000,
    )  # fmt: skip


@pytest.mark.parametrize("tie", [transposed, viewed, parted])
def test_weights_in_the_memory_of_others(tie):
    model = Tied(tie)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(
        UserError, match=r"a\.weight and (b|head)\.weight are two parameters in the same memory.*exclude="
    ):
        attach(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    attach(model, exclude=["a.weight", "b.weight" if tie is not parted else "head.weight"])
    assert torch.equal(model.a.weight, before["a.weight"])


def test_one_storage_may_hold_several():
    assert attach(Tied(apart)).density() == 0.5


def test_one_parameter_in_two_places_is_one():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    assert attach(model).density() == 0.5


@pytest.mark.filterwarnings("ignore:.*updates fit")
def test_channels_in_the_memory_of_others():
    model = Tied(transposed)
    with pytest.raises(UserError, match="two parameters in the same memory"):
        regrow.Sparsifier(
            model, torch.optim.SGD(model.parameters(), lr=0.1), pattern=regrow.Channels(params=0.7, round_to=1),
            method="oneshot", total_steps=10, example_inputs=torch.randn(2, 8),
        )  # fmt: skip


def test_memory_is_compared_with_all_that_reaches_it():
    model = nn.Module()
    model.whole = nn.Parameter(torch.randn(300))
    model.part = nn.Parameter(model.whole.data[:10])  # lies between the two that matter
    model.layer = nn.Linear(8, 16, bias=False)
    model.layer.weight.data = model.whole.data[20:148].view(16, 8)
    with pytest.raises(UserError, match=r"whole and layer\.weight are two parameters in the same memory"):
        attach(model)
