"""Thin networks with strided 1×1 convolutions of few channels train right, also with channels last on a CPU."""

import copy

import pytest
import torch
from torch import nn

import regrow
from regrow.surgery.strided import Strided, guard, unguard


class Shortcuts(nn.Module):
    """A residual network whose stream narrows and is strided over."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.inner, self.outer = nn.Conv2d(24, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.shortcut = nn.Conv2d(24, 24, 1, 2, bias=False)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.outer(self.inner(x)) + self.shortcut(x)).mean((2, 3)))


@pytest.mark.parametrize("width", [1, 2, 4, 7, 15])
@pytest.mark.parametrize("stride", [2, (1, 3), (2, 1)])
def test_they_compute_the_same_and_so_do_their_gradients(width, stride) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(width, 12, 1, stride)
    x = torch.randn(8, width, 13, 16)
    expected = copy.deepcopy(conv).double()
    wide = x.double().requires_grad_()
    expected(wide).square().sum().backward()
    conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last).requires_grad_()
    guard(conv)
    conv(x).square().sum().backward()
    for found, exact in (
        (x.grad, wide.grad),
        (conv.weight.grad, expected.weight.grad),
        (conv.bias.grad, expected.bias.grad),
    ):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    unguard(conv)
    assert "_conv_forward" not in vars(conv)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, 2, padding=1), nn.Linear(4, 4)]
)
def test_what_the_fault_does_not_come_to_stays(conv) -> None:
    guard(conv)
    assert "_conv_forward" not in vars(conv)


def test_wide_ones_are_computed_as_ever() -> None:
    conv = nn.Conv2d(16, 4, 1, 2)
    x = torch.randn(2, 16, 8, 8)
    plain = conv(x)
    guard(conv)
    assert torch.equal(conv(x), plain)


def test_a_thin_network_trains_with_channels_last_as_without() -> None:
    ends = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = Shortcuts().to(memory_format=form)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        x = torch.randn(32, 3, 16, 16).to(memory_format=form)
        y = torch.arange(32) % 4
        sparsifier = regrow.Sparsifier(
            model, optimizer, pattern=regrow.Channels(params=0.2, round_to=1, min_channels=1), method=regrow.OneShot(),
            criterion="taylor", total_steps=30, example_inputs=x[:2],
        )  # fmt: skip
        for step in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            assert isinstance(vars(model.shortcut)["_conv_forward"], Strided), step
        assert model.shortcut.in_channels < 8
        sparsifier.finalize()
        sparsifier.compact()
        assert "_conv_forward" not in vars(model.shortcut)
        ends.append(model.double()(x.double()))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-3)
