"""The built-in networks, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.errors import UserError


class WideResNet(nn.Module):
    """Pre-activation wide residual network for small images (arXiv:1605.07146): a 3x3 stem of 16 channels, then three
    stages of (depth - 4) / 6 blocks with 16, 32 and 64 times ``width`` channels.

    Maps (batch, in_channels, H, W) to logits (batch, num_classes).
    """

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = 16
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages = []
        for out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            first = _PreActBlock(channels, out, stride, dropout)
            stages.append(nn.Sequential(first, *(_PreActBlock(out, out, 1, dropout) for _ in range(blocks - 1))))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stages(self.stem(x))))
        return self.head(x.mean((2, 3)))


class _PreActBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(x))
        # a projection sees the activated input, an identity the raw one
        skip = x if self.shortcut is None else self.shortcut(y)
        return skip + self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(y)))))


class DigitsCNN(nn.Module):
    """A small network for 8x8 images, with about 65,000 weights.

    Maps (batch, in_channels, H, W) to logits (batch, num_classes).
    """

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"the width of 'digits-cnn' must be at least 1, not {width}")
        self.features = nn.Sequential(
            _conv_norm_relu(in_channels, width),
            _conv_norm_relu(width, width),
            nn.MaxPool2d(2),
            _conv_norm_relu(width, 2 * width),
            _conv_norm_relu(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _conv_norm_relu(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
